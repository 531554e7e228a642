package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"

	"pairsync/internal/config"
)

// Defaults of Config.
const (
	DefaultKioskListen = "127.0.0.1:8088"
	// DefaultKeepPhotos is what the footprint of the device is measured with.
	DefaultKeepPhotos = 5000
	// DefaultKeepBytes leaves room on the smallest SD card in use (4 GB), and
	// below the 1.78 GB at which the store wedges on 32-bit machines.
	DefaultKeepBytes = 1 << 30
)

// maxKeepBytes32 is what a 32-bit machine can hold: it cannot map more value
// log than that (facts: badger).
const maxKeepBytes32 = 1500 << 20

// Show says whose photos the frame takes and shows.
type Show string

// The values of Show.
const (
	ShowPartner Show = "partner" // the partner's only
	ShowBoth    Show = "both"    // the device's own user's too
)

// Config is everything the agent can be told. Start from Default. The yaml
// tags are the names in the configuration file.
type Config struct {
	// DataDir holds the store and the local socket; made when it is missing
	// (mode 0700). One agent per directory.
	DataDir string `yaml:"data_dir"`
	// Broker is the URL to connect to: mqtt, mqtts, ws or wss.
	Broker string `yaml:"broker"`
	// CAFile, where set, holds the PEM certificates to trust for mqtts and
	// wss instead of the system's.
	CAFile string `yaml:"ca_file"`
	// TokenFile holds the device token. It is read again at every connect, so
	// it may be replaced while the agent runs.
	TokenFile string `yaml:"token_file"`
	Show      Show   `yaml:"show"`
	// KeepPhotos and KeepBytes bound what is kept; the oldest photos go first.
	KeepPhotos int          `yaml:"keep_photos"`
	KeepBytes  config.Bytes `yaml:"keep_bytes"`
	LogLevel   string       `yaml:"log_level"`
	Kiosk      KioskConfig  `yaml:"kiosk"`
}

// KioskConfig is about the page the frame shows.
type KioskConfig struct {
	// Listen is the page's address; empty for no page.
	Listen string `yaml:"listen"`
}

// Default returns the configuration with every default set. DataDir, Broker
// and TokenFile have none.
func Default() Config {
	return Config{
		Show:       ShowPartner,
		KeepPhotos: DefaultKeepPhotos,
		KeepBytes:  DefaultKeepBytes,
		LogLevel:   "info",
		Kiosk:      KioskConfig{Listen: DefaultKioskListen},
	}
}

// Validate reports everything that is wrong with c, each problem with its key.
// TokenFile and Broker are not required here, because a program may bring its
// own (Deps); New is where one of the two must be there.
func (c Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	if c.DataDir == "" {
		bad("data_dir", "is empty: name the directory that keeps the photos")
	}
	if c.Broker != "" {
		if err := checkBroker(c.Broker); err != nil {
			bad("broker", "%w", err)
		}
	}
	if c.Show != ShowPartner && c.Show != ShowBoth {
		bad("show", "%q is neither %q nor %q", c.Show, ShowPartner, ShowBoth)
	}
	if c.KeepPhotos < 1 {
		bad("keep_photos", "%d: keep at least 1", c.KeepPhotos)
	}
	if c.KeepBytes < maxPhotoBytes {
		bad("keep_bytes", "%v: keep at least the size of one photo, %v", c.KeepBytes, config.Bytes(maxPhotoBytes))
	}
	if ^uint(0)>>32 == 0 && c.KeepBytes > maxKeepBytes32 {
		bad("keep_bytes", "%v: a 32-bit machine holds at most %v", c.KeepBytes, config.Bytes(maxKeepBytes32))
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		bad("log_level", "%q is none of debug, info, warn, error", c.LogLevel)
	}
	if c.Kiosk.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Kiosk.Listen); err != nil {
			bad("kiosk.listen", "%q is not host:port", c.Kiosk.Listen)
		}
	}
	return errors.Join(errs...)
}

func checkBroker(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		// url.Error repeats the URL, which may hold a password.
		return errors.New("is not a URL")
	}
	if !slices.Contains([]string{"mqtt", "mqtts", "ws", "wss"}, u.Scheme) {
		return fmt.Errorf("scheme %q is none of mqtt, mqtts, ws, wss", u.Scheme)
	}
	if u.Host == "" {
		return errors.New("names no host")
	}
	if u.User != nil {
		return errors.New("holds a user or password: the token goes into token_file")
	}
	return nil
}
