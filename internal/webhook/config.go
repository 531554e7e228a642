package webhook

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"pairsync/internal/config"
)

// Config says whom to tell, and when. Start from Default.
type Config struct {
	URL string `yaml:"url"` // empty: off
	// Secret signs every request; see parseSecret for its form.
	Secret     config.Secret `yaml:"secret"`
	SecretFile string        `yaml:"secret_file"`
	// QueuedAfter is how long somebody's app is away before moment.queued says
	// that something waits for it.
	QueuedAfter time.Duration `yaml:"queued_after"`
	Timeout     time.Duration `yaml:"timeout"`    // of one request
	GiveUp      time.Duration `yaml:"give_up"`    // age at which an event is tried no more
	MaxEvents   int           `yaml:"max_events"` // that wait to be sent; above it the oldest goes
}

// Default returns the defaults; nobody is told anything.
func Default() Config {
	return Config{QueuedAfter: 30 * time.Second, Timeout: 15 * time.Second, GiveUp: 72 * time.Hour, MaxEvents: 10_000}
}

// Validate reports every problem with its key.
func (c Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.URL != "" {
		u, err := url.Parse(c.URL)
		switch {
		case err != nil: // which would repeat a password in it
			add("url: is not a URL")
		case u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			add("url: must begin with https:// (or http://) and a host")
		case u.User != nil:
			add("url: must not hold a password: requests are signed instead")
		}
		if _, err := parseSecret(c.Secret.Reveal()); err != nil {
			add("secret_file: %w", err)
		}
	}
	for key, d := range map[string]time.Duration{"queued_after": c.QueuedAfter, "timeout": c.Timeout, "give_up": c.GiveUp} {
		if d < time.Second {
			add("%s: %v is shorter than 1s", key, d)
		}
	}
	if c.MaxEvents < 1 {
		add("max_events: must be at least 1")
	}
	return errors.Join(errs...)
}
