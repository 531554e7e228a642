package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certCheck is how often a handshake looks whether the files have changed.
const certCheck = time.Second

// certificate is the server's certificate, read again when its files change,
// so that a renewal needs no restart and drops nobody. It is safe for
// concurrent use.
type certificate struct {
	cfg TLSConfig
	log *slog.Logger

	mu      sync.Mutex // guards the fields below
	current *tls.Config
	stamp   string    // of the files that current, or the last failure, is from
	checked time.Time // when stamp was last compared
}

// newCertificate reads the files once, so that a mistake is found at start.
func newCertificate(cfg TLSConfig, log *slog.Logger) (*certificate, error) {
	c := &certificate{cfg: cfg, log: log, checked: time.Now(), stamp: cfg.stamp()}
	var err error
	c.current, err = cfg.load()
	return c, err
}

// config returns the configuration for a listener.
func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return c.newest(), nil
	}}
}

// newest returns the configuration for one handshake. Files that cannot be
// read, as in the middle of a renewal, leave the old one in use.
func (c *certificate) newest() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.checked) < certCheck {
		return c.current
	}
	c.checked = now
	stamp := c.cfg.stamp()
	if stamp == c.stamp {
		return c.current
	}
	c.stamp = stamp
	next, err := c.cfg.load()
	if err != nil {
		c.log.Error("certificate not reloaded, the old one stays in use", "error", err)
		return c.current
	}
	c.log.Info("certificate reloaded", "file", c.cfg.CertFile)
	c.current = next
	return next
}

// stamp changes when a file of the certificate does.
func (t TLSConfig) stamp() string {
	out := ""
	for _, f := range []string{t.CertFile, t.KeyFile, t.ClientCAFile} {
		if f == "" {
			continue
		}
		info, err := os.Stat(f)
		if err != nil {
			out += err.Error()
			continue
		}
		out += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), ";")
	}
	return out
}

// load reads the files.
func (t TLSConfig) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("tls.cert_file, tls.key_file: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	if t.ClientCAFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(t.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("tls.client_ca_file: %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("tls.client_ca_file: holds no PEM certificate")
	}
	return c, nil
}
