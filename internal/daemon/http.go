package daemon

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pairsync/internal/token"
	"pairsync/internal/wsconn"
)

// bridgeTokenLife is how long the bridge's own token is used before a new one
// is signed.
const bridgeTokenLife = time.Hour

// bridgeToken is the cached token that the bridge connects with.
type bridgeToken struct {
	mu      sync.Mutex // guards the fields below
	raw     string
	expires time.Time
}

// bridgeToken returns a token of the bridge role; whom the bridge acts for is
// said by the MQTT username.
func (d *Daemon) bridgeToken(context.Context, string) (string, error) {
	t := &d.tokens
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Until(t.expires) > bridgeTokenLife/2 {
		return t.raw, nil
	}
	raw, p, err := d.signer.Sign(token.Principal{User: "bridge", Role: token.RoleBridge}, bridgeTokenLife)
	if err != nil {
		return "", err
	}
	t.raw, t.expires = raw, p.Expires
	return raw, nil
}

// appHandler serves phones, browsers and widgets.
func (d *Daemon) appHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", d.bridge.Handler())
	mux.HandleFunc("GET /.well-known/jwks.json", d.serveJWKS)
	mux.HandleFunc("GET /moments/{user}/{moment}", d.serveMoment)
	mux.HandleFunc("GET /mqtt", d.serveWebSocket)
	return mux
}

func (d *Daemon) serveJWKS(w http.ResponseWriter, _ *http.Request) {
	keys, err := d.keys.JWKS()
	if err != nil {
		d.log.Error("jwks", "error", err)
		http.Error(w, "keys cannot be read", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "public, max-age=300")
	_, _ = w.Write(keys) // a client that has gone misses nothing
}

// serveWebSocket hands MQTT over WebSocket to the broker (MQTT 5, section 6).
func (d *Daemon) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{
		ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10, HandshakeTimeout: 10 * time.Second,
		Subprotocols: []string{wsconn.Subprotocol}, CheckOrigin: d.originAllowed,
	}
	if !slices.Contains(websocket.Subprotocols(r), wsconn.Subprotocol) {
		http.Error(w, "MQTT over WebSocket needs the subprotocol \"mqtt\"", http.StatusBadRequest)
		return
	}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	ws.SetReadLimit(2*int64(d.cfg.Limits.PhotoBytes) + 256<<10)
	d.broker.ServeConn(r.Context(), wsconn.New(ws))
}

// originAllowed lets in programs (no Origin), our own pages and the configured
// origins. CORS does not protect WebSockets; this does.
func (d *Daemon) originAllowed(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || slices.Contains(d.cfg.HTTP.Origins, "*") || slices.Contains(d.cfg.HTTP.Origins, origin) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, r.Host)
}

// opsHandler serves the operator's machines; it listens on loopback by default.
func (d *Daemon) opsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := d.db.Writable(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
	return mux
}

// guessURL is the public URL where none is configured: the first address that
// is not loopback.
func guessURL(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "localhost"
		addrs, _ := net.InterfaceAddrs() // without them localhost is the answer
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
				host = n.IP.String()
				break
			}
		}
	}
	return "http://" + net.JoinHostPort(host, port)
}
