package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"pairsync/bridge"
	"pairsync/internal/token"
)

// AuthConfig says whose tokens are accepted, and for how long.
type AuthConfig struct {
	Issuer   string `yaml:"issuer"`
	Audience string `yaml:"audience"`
	// HS256SecretFile holds a shared secret for development.
	HS256SecretFile string `yaml:"hs256_secret_file"`

	Expiry          bridge.Expiry  `yaml:"expiry"` // of our own tokens, and of issuers that say none
	MaxSession      time.Duration  `yaml:"max_session"`
	ReconnectWindow time.Duration  `yaml:"reconnect_window"`
	Issuers         []IssuerConfig `yaml:"issuers"`
}

// IssuerConfig is an external issuer whose tokens say who somebody is.
type IssuerConfig struct {
	Issuer            string        `yaml:"issuer"`
	JWKSURL           string        `yaml:"jwks_url"`
	Algorithms        []string      `yaml:"algorithms"` // empty: RS256
	Audience          string        `yaml:"audience"`
	AuthorizedParties []string      `yaml:"authorized_parties"`
	Expiry            bridge.Expiry `yaml:"expiry"` // empty: auth.expiry
	NameClaim         string        `yaml:"name_claim"`
	EmailClaim        string        `yaml:"email_claim"`
}

// minAuthTime is the least max_session and reconnect_window: below it phones
// would be busy with connecting.
const minAuthTime = time.Minute

// defaultTrustedProxies is a proxy on the same machine.
var defaultTrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// validate reports every problem with its key below auth.
func (c AuthConfig) validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Issuer == "" {
		add("issuer: must be set")
	}
	if c.Audience == "" {
		add("audience: must be set")
	}
	switch c.Expiry {
	case bridge.ExpirySession, bridge.ExpiryGrace, bridge.ExpiryStrict:
	default:
		add("expiry: %q is none of session, grace and strict", c.Expiry)
	}
	for key, d := range map[string]time.Duration{"max_session": c.MaxSession, "reconnect_window": c.ReconnectWindow} {
		if d != 0 && d < minAuthTime {
			add("%s: %v is shorter than %v (0 is off)", key, d, minAuthTime)
		}
	}
	var seen []string
	for i, x := range c.Issuers {
		key := fmt.Sprintf("issuers[%d]", i)
		if x.Issuer == c.Issuer || slices.Contains(seen, x.Issuer) {
			add("%s.issuer: %q is configured twice", key, x.Issuer)
		}
		seen = append(seen, x.Issuer)
		for _, err := range x.problems() {
			add("%s.%w", key, err)
		}
	}
	return errors.Join(errs...)
}

func (x IssuerConfig) problems() (errs []error) {
	u, err := url.Parse(x.JWKSURL)
	switch {
	case x.JWKSURL == "":
		errs = append(errs, errors.New("jwks_url: must be set"))
	case err != nil || u.Host == "" || u.Scheme != "https" && !isLoopback(u):
		// Whoever can change the answer on its way can be anybody.
		errs = append(errs, fmt.Errorf("jwks_url: %q must begin with https:// and a host", x.JWKSURL))
	}
	switch x.Expiry {
	case "", bridge.ExpirySession, bridge.ExpiryGrace, bridge.ExpiryStrict:
	default:
		errs = append(errs, fmt.Errorf("expiry: %q is none of session, grace and strict", x.Expiry))
	}
	if x.Issuer == "" {
		return append(errs, errors.New("issuer: must be set"))
	}
	if _, err := token.NewVerifier(nil, x.issuer(x.keys(http.DefaultClient, slog.New(slog.DiscardHandler)))); err != nil {
		errs = append(errs, fmt.Errorf("issuer: %w", err))
	}
	return errs
}

func isLoopback(u *url.URL) bool {
	a, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "http" && (err == nil && a.IsLoopback() || u.Hostname() == "localhost")
}

func (x IssuerConfig) algorithms() []string {
	if len(x.Algorithms) == 0 {
		return []string{"RS256"}
	}
	return x.Algorithms
}

func (x IssuerConfig) keys(client *http.Client, log *slog.Logger) *token.RemoteKeys {
	return token.NewRemoteKeys(x.JWKSURL, x.algorithms(), client, log)
}

func (x IssuerConfig) issuer(keys *token.RemoteKeys) token.Issuer {
	return token.Issuer{
		Name: x.Issuer, Audience: x.Audience, Algorithms: x.algorithms(), AuthorizedParties: x.AuthorizedParties,
		NameClaim: x.NameClaim, EmailClaim: x.EmailClaim, Keys: keys.Keyfunc, External: true,
	}
}

// bridge returns what the bridge has to know of c.
func (c AuthConfig) bridge() bridge.AuthConfig {
	out := bridge.AuthConfig{
		Expiry: c.Expiry, MaxSession: c.MaxSession, ReconnectWindow: c.ReconnectWindow, Issuers: map[string]bridge.Expiry{},
	}
	for _, x := range c.Issuers {
		if x.Expiry != "" {
			out.Issuers[x.Issuer] = x.Expiry
		}
	}
	return out
}

// issuerKeys are an external issuer's keys, which Run keeps fresh.
type issuerKeys struct {
	issuer string
	*token.RemoteKeys
}

func (d *Daemon) openAuth() (err error) {
	auth := d.cfg.Auth
	if d.keys, err = token.OpenKeys(filepath.Join(d.cfg.DataDir, "keys")); err != nil {
		return err
	}
	issuers := []token.Issuer{d.keys.Issuer(auth.Issuer, auth.Audience)}
	if path := auth.HS256SecretFile; path != "" {
		secret, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("auth.hs256_secret_file: %w", err)
		}
		shared, err := token.SharedSecret(auth.Issuer, auth.Audience, bytes.TrimRight(secret, "\r\n"))
		if err != nil {
			return fmt.Errorf("auth.hs256_secret_file: %w", err)
		}
		d.log.Warn("tokens of a shared secret are accepted: for development only", "issuer", shared.Name)
		issuers = append(issuers, shared)
	}
	// http.DefaultTransport knows the machine's proxy and root certificates.
	client := &http.Client{Transport: http.DefaultTransport}
	for _, x := range auth.Issuers {
		keys := x.keys(client, d.log.With("part", "token", "issuer", x.Issuer))
		d.external = append(d.external, issuerKeys{x.Issuer, keys})
		issuers = append(issuers, x.issuer(keys))
	}
	d.signer = token.NewSigner(d.keys, auth.Issuer, auth.Audience)
	d.verifier, err = token.NewVerifier(d.registry.Revoked, issuers...)
	return err
}

// runKeys adds to g what keeps the external issuers' keys fresh.
func (d *Daemon) runKeys(ctx context.Context, g *errgroup.Group) {
	for _, k := range d.external {
		g.Go(func() error { return k.Run(ctx) })
	}
}

// registerKeys adds the metrics of the external issuers' keys.
func (d *Daemon) registerKeys() error {
	var errs []error
	for _, k := range d.external {
		label := prometheus.Labels{"issuer": k.issuer}
		errs = append(errs,
			d.metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Namespace: "pairsync", Subsystem: "token", Name: "jwks_age_seconds", ConstLabels: label,
				Help: "Time since the issuer's signing keys were last fetched.",
			}, func() float64 { return k.Age().Seconds() })),
			d.metrics.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Namespace: "pairsync", Subsystem: "token", Name: "jwks_failures_total", ConstLabels: label,
				Help: "Times that the issuer's signing keys could not be fetched.",
			}, func() float64 { return float64(k.Failures()) })))
	}
	return errors.Join(errs...)
}
