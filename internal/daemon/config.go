package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"

	"pairsync/bridge"
	"pairsync/broker"
	"pairsync/internal/config"
	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/webhook"
)

// Config is the whole configuration of the server, as configs/pairsync.yaml
// documents it. Start from Default.
type Config struct {
	DataDir string         `yaml:"data_dir"`
	MQTT    ListenConfig   `yaml:"mqtt"`
	MQTTS   ListenConfig   `yaml:"mqtts"` // used once a certificate is set
	HTTP    HTTPConfig     `yaml:"http"`
	Ops     ListenConfig   `yaml:"ops"`
	TLS     TLSConfig      `yaml:"tls"`
	Auth    AuthConfig     `yaml:"auth"`
	Limits  LimitsConfig   `yaml:"limits"`
	Broker  broker.Config  `yaml:"broker"`
	Bridge  bridge.Config  `yaml:"bridge"`
	Webhook webhook.Config `yaml:"webhook"`
	Log     LogConfig      `yaml:"log"`
}

// ListenConfig is one listener.
type ListenConfig struct {
	Listen string `yaml:"listen"` // host:port; empty: off
}

// HTTPConfig is the listener of the app: Socket.IO, MQTT over WebSocket, HTTP.
type HTTPConfig struct {
	Listen    string   `yaml:"listen"`
	PublicURL string   `yaml:"public_url"` // what links to us begin with
	Origins   []string `yaml:"origins"`    // browser origins that may connect beside our own; "*": any
	// TrustedProxies are the reverse proxies whose X-Forwarded-For counts.
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies"`
}

// TLSConfig is the certificate of mqtts.
type TLSConfig struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ClientCAFile, where set, lets in only clients that show a certificate
	// signed by one of its certificates, beside their token.
	ClientCAFile string `yaml:"client_ca_file"`
}

// LimitsConfig bounds what is stored.
type LimitsConfig struct {
	PhotoBytes  config.Bytes `yaml:"photo_bytes"`
	PairMoments int          `yaml:"pair_moments"` // photos, notes and reactions of one pair
	PairBytes   config.Bytes `yaml:"pair_bytes"`   // and their bytes
}

// LogConfig says how to log.
type LogConfig struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // text, json; empty: text on a terminal
}

// Default returns the defaults of the contract (section 6). DataDir is empty:
// its default depends on who runs the program, which cmd knows.
func Default() Config {
	c := Config{
		MQTT:    ListenConfig{Listen: ":1883"},
		MQTTS:   ListenConfig{Listen: ":8883"},
		HTTP:    HTTPConfig{Listen: ":8080", TrustedProxies: slices.Clone(defaultTrustedProxies)},
		Ops:     ListenConfig{Listen: "127.0.0.1:9464"},
		Auth:    AuthConfig{Issuer: "pairsync", Audience: "pairsync", Expiry: bridge.ExpirySession, MaxSession: bridge.DefaultMaxSession},
		Broker:  broker.DefaultConfig(),
		Bridge:  bridge.Default(),
		Webhook: webhook.Default(),
		Log:     LogConfig{Level: "info"},
	}
	c.Limits = LimitsConfig{
		PhotoBytes:  config.Bytes(c.Broker.PhotoBytes),
		PairMoments: badgerledger.DefaultMaxEntries,
		PairBytes:   config.Bytes(badgerledger.DefaultMaxBytes),
	}
	return c
}

// Validate reports every problem at once, each with its key path.
func (c Config) Validate() error {
	var errs []error
	add := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	if c.DataDir == "" {
		add("data_dir", errors.New("must be set"))
	}
	for key, listen := range map[string]string{
		"mqtt.listen": c.MQTT.Listen, "mqtts.listen": c.MQTTS.Listen, "http.listen": c.HTTP.Listen, "ops.listen": c.Ops.Listen,
	} {
		if listen != "" {
			_, _, err := net.SplitHostPort(listen)
			add(key, err)
		}
	}
	if c.HTTP.PublicURL != "" {
		u, err := url.Parse(c.HTTP.PublicURL)
		if err == nil && (u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			err = fmt.Errorf("%q must begin with http:// or https:// and a host", c.HTTP.PublicURL)
		}
		add("http.public_url", err)
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		add("tls", errors.New("cert_file and key_file go together"))
	}
	if c.TLS.ClientCAFile != "" && c.TLS.CertFile == "" {
		add("tls.client_ca_file", errors.New("needs tls.cert_file"))
	}
	if c.Limits.PairMoments < 1 || c.Limits.PairBytes < c.Limits.PhotoBytes {
		add("limits", errors.New("pair_moments must be at least 1 and pair_bytes at least photo_bytes"))
	}
	var level slog.Level
	add("log.level", level.UnmarshalText([]byte(c.Log.Level)))
	switch c.Log.Format {
	case "", "text", "json":
	default:
		add("log.format", fmt.Errorf("%q is neither text nor json", c.Log.Format))
	}
	errs = append(errs, config.Prefix("auth", c.Auth.validate()), config.Prefix("broker", c.broker().Validate()), config.Prefix("bridge", c.bridge().Validate()),
		config.Prefix("webhook", c.Webhook.Validate()))
	return errors.Join(errs...)
}

// broker and bridge hand on the settings that both share.
func (c Config) broker() broker.Config {
	b := c.Broker
	b.PhotoBytes = int(c.Limits.PhotoBytes)
	b.PublicURL = c.HTTP.PublicURL
	return b
}

func (c Config) bridge() bridge.Config {
	b := c.Bridge
	b.PhotoBytes = int(c.Limits.PhotoBytes)
	b.SocketIO.Origins, b.SocketIO.CORS = c.HTTP.Origins, len(c.HTTP.Origins) > 0
	b.TrustedProxies = c.HTTP.TrustedProxies
	b.Auth = c.Auth.bridge()
	return b
}
