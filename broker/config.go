package broker

import (
	"errors"
	"fmt"
	"time"
)

// Config is the broker's part of the configuration. The zero value is not
// valid; start from DefaultConfig.
type Config struct {
	PhotoBytes    int           `yaml:"-"`              // largest payload of a photo; set by the daemon from limits.photo_bytes
	SessionExpiry time.Duration `yaml:"session_expiry"` // longest session expiry that is granted
	KeepLast      int           `yaml:"keep_last"`      // newest photos of a pair that are kept though everybody has them
	MaxAge        time.Duration `yaml:"max_age"`        // age at which everything goes
	ReceiptAge    time.Duration `yaml:"receipt_age"`    // age at which receipts go
	UserSessions  int           `yaml:"user_sessions"`  // durable sessions of one user
	Window        int           `yaml:"window"`         // unacknowledged moments per connection, at most
	WindowBytes   int           `yaml:"window_bytes"`   // and their bytes, above which no other is sent
	PublicURL     string        `yaml:"-"`              // where renditions are served; set by the daemon from http.public_url
	Limits        LimitsConfig  `yaml:"limits"`
	StopWait      time.Duration `yaml:"stop_wait"` // how long a shutdown waits for connections
}

// The limits of the contract (section 2) and architecture.md.
const (
	receiveMaximum = 64 // QoS 1 publishes of a client that may be unanswered
	maxSmallBytes  = 4 << 10
	maxNoteBytes   = 64 << 10
	maxJSONBytes   = 16 << 10 // a reaction or a receipt
)

// DefaultConfig returns the defaults that configs/pairsync.yaml documents.
func DefaultConfig() Config {
	const day = 24 * time.Hour
	return Config{
		PhotoBytes:    4 << 20,
		SessionExpiry: 90 * day,
		KeepLast:      50,
		MaxAge:        90 * day,
		ReceiptAge:    30 * day,
		UserSessions:  32,
		Window:        16,
		WindowBytes:   4 << 20,
		Limits:        defaultLimits(),
		StopWait:      5 * time.Second,
	}
}

// Validate reports every setting that is out of range, by its key.
func (c Config) Validate() error {
	var errs []error
	check := func(key string, ok bool, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %s", key, want))
		}
	}
	check("photo_bytes", c.PhotoBytes >= 1<<10 && c.PhotoBytes <= 12<<20, "must be 1 KiB to 12 MiB")
	check("session_expiry", c.SessionExpiry >= time.Second && c.SessionExpiry <= 10*365*24*time.Hour, "must be 1s to 10 years")
	check("keep_last", c.KeepLast >= 0, "must not be negative")
	check("max_age", c.MaxAge >= time.Minute, "must be at least 1m")
	check("receipt_age", c.ReceiptAge >= time.Minute, "must be at least 1m")
	check("user_sessions", c.UserSessions >= 1, "must be at least 1")
	check("window", c.Window >= 1 && c.Window <= 1000, "must be 1 to 1000")
	check("window_bytes", c.WindowBytes >= 64<<10, "must be at least 64 KiB")
	check("stop_wait", c.StopWait > 0, "must be more than 0")
	return errors.Join(append(errs, c.Limits.validate(c.PhotoBytes))...)
}
