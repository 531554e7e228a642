package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pairsync/internal/mqttlink"
	"pairsync/internal/simtest"
)

// writeCert makes a self-signed certificate for loopback in dir and returns it.
func writeCert(t *testing.T, dir, name string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// served returns the certificate that a TLS listener shows.
func served(t *testing.T, addr string) *x509.Certificate {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0]
}

// lookAgain lets the next handshake compare the files.
func (r *running) lookAgain() {
	r.mqttsCert.mu.Lock()
	defer r.mqttsCert.mu.Unlock()
	r.mqttsCert.checked = time.Time{}
}

func TestCertificateReload(t *testing.T) {
	dir := t.TempDir()
	first := writeCert(t, dir, "server")
	r := start(t, func(c *Config) {
		c.MQTTS.Listen = "127.0.0.1:0"
		c.TLS.CertFile, c.TLS.KeyFile = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	})
	addr := r.l.MQTTS.Addr().String()
	pool := x509.NewCertPool()
	pool.AddCert(first)
	link, err := mqttlink.New(mqttlink.Config{
		Broker: &url.URL{Scheme: "mqtts", Host: addr}, TLS: &tls.Config{RootCAs: pool}, ClientID: "x",
		Token: func(context.Context) (string, error) { return r.token("ann"), nil },
	}, simtest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- link.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	up, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	if err := link.AwaitUp(up); err != nil {
		t.Fatalf("mqtts: %v", err)
	}

	// Half a renewal changes nothing; the whole one does; nobody is dropped.
	if err := os.WriteFile(filepath.Join(dir, "server.crt"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.lookAgain()
	if got := served(t, addr); !got.Equal(first) {
		t.Error("a broken file replaced the certificate")
	}
	second := writeCert(t, dir, "server")
	r.lookAgain()
	if got := served(t, addr); !got.Equal(second) {
		t.Error("the new certificate is not in use")
	}
	if !link.Connected() {
		t.Error("the reload dropped a connection")
	}
	if c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		c.Close()
		t.Error("TLS 1.1 was accepted")
	}
}

func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	writeCert(t, dir, "server")
	writeCert(t, dir, "frame")
	writeCert(t, dir, "stranger")
	r := start(t, func(c *Config) {
		c.MQTTS.Listen = "127.0.0.1:0"
		c.TLS = TLSConfig{filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"), filepath.Join(dir, "frame.crt")}
	})
	for name, ok := range map[string]bool{"frame": true, "stranger": false, "": false} {
		cfg := &tls.Config{InsecureSkipVerify: true}
		if name != "" {
			cert, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
			if err != nil {
				t.Fatal(err)
			}
			cfg.Certificates = []tls.Certificate{cert}
		}
		c, err := tls.Dial("tcp", r.l.MQTTS.Addr().String(), cfg)
		if err == nil {
			// TLS 1.3 tells the refusal with the first read.
			c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err = c.Write([]byte{0x00}); err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			c.Close()
		}
		var alert *net.OpError // what crypto/tls makes of the other side's alert
		if refused := errors.As(err, &alert) && alert.Op == "remote error"; refused == ok {
			t.Errorf("certificate %q: %v, want let in %v", name, err, ok)
		}
	}
}
