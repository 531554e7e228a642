package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"image"
	"image/jpeg"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/registry"
	"pairsync/internal/simtest"
	"pairsync/internal/token"
)

// running is a daemon on free TCP ports with ann and ben as a pair.
type running struct {
	*Daemon
	t    *testing.T
	pair registry.Pair
	url  string
}

func testConfig(dir string) Config {
	c := Default()
	c.DataDir = dir
	c.MQTT.Listen, c.HTTP.Listen, c.Ops.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	return c
}

func start(t *testing.T, change func(*Config)) *running {
	t.Helper()
	cfg := testConfig(t.TempDir())
	if change != nil {
		change(&cfg)
	}
	d, err := New(t.Context(), cfg, Listeners{}, simtest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	<-d.Ready()
	pair, err := d.registry.CreatePair(t.Context(), "ann", "ben")
	if err != nil {
		t.Fatal(err)
	}
	return &running{Daemon: d, t: t, pair: pair, url: "http://" + d.HTTPAddr().String()}
}

func (r *running) token(user string) string {
	r.t.Helper()
	raw, _, err := r.signer.Sign(token.Principal{User: user, Role: token.RoleApp}, time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	return raw
}

func (r *running) get(url, bearer string) (*http.Response, []byte) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, body
}

func testJPEG(t *testing.T, w, h int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := jpeg.Encode(&b, image.NewRGBA(image.Rect(0, 0, w, h)), nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestMoments(t *testing.T) {
	r := start(t, nil)
	photo := testJPEG(t, 400, 200)
	if _, _, err := ledger.Append(t.Context(), r.ledger, ledger.PairLog(r.pair.ID), moment.Moment{
		Pair: r.pair.ID, User: "ann", Kind: moment.Photo, ID: "m1", Payload: photo,
	}); err != nil {
		t.Fatal(err)
	}
	ben := r.token("ben")
	for _, tc := range []struct {
		path, token string
		status      int
	}{
		{"/moments/ann/m1", "", 401},
		{"/moments/ann/m1", "nonsense", 401},
		{"/moments/ann/m1", r.token("eve"), 404},
		{"/moments/ann/m2", ben, 404},
		{"/moments/eve/m1", ben, 404},
		{"/moments/ann/m1?w=0&h=100", ben, 400},
		{"/moments/ann/m1?w=100000&h=100", ben, 400},
		{"/moments/ann/m1?fit=sideways", ben, 400},
		{"/moments/ann/m1?format=webp", ben, 400},
		{"/moments/ann/m1", ben, 200},
		{"/moments/ann/m1", r.token("ann"), 200},
	} {
		if resp, body := r.get(r.url+tc.path, tc.token); resp.StatusCode != tc.status {
			t.Errorf("GET %s: %s %s, want %d", tc.path, resp.Status, body, tc.status)
		} else if tc.status == 200 && !bytes.Equal(body, photo) {
			t.Errorf("GET %s: %d bytes that are not the photo", tc.path, len(body))
		}
	}
	resp, body := r.get(r.url+"/moments/ann/m1?w=100&h=100", ben)
	got, err := jpeg.DecodeConfig(bytes.NewReader(body))
	if err != nil || got.Width != 100 || got.Height != 50 || resp.Header.Get("Content-Type") != "image/jpeg" {
		t.Errorf("rendition: %dx%d %s (%v), want 100x50 JPEG", got.Width, got.Height, resp.Header.Get("Content-Type"), err)
	}
}

func TestWebSocketOrigins(t *testing.T) {
	r := start(t, func(c *Config) { c.HTTP.Origins = []string{"https://app.example"} })
	for origin, ok := range map[string]bool{"": true, r.url: true, "https://app.example": true, "https://evil.example": false, "null": false} {
		h := http.Header{}
		if origin != "" {
			h.Set("Origin", origin)
		}
		d := websocket.Dialer{Subprotocols: []string{"mqtt"}}
		ws, resp, err := d.Dial("ws"+strings.TrimPrefix(r.url, "http")+"/mqtt", h)
		if (err == nil) != ok {
			t.Errorf("origin %q: %v, want let in %v", origin, err, ok)
		}
		if err == nil {
			ws.Close()
		}
		resp.Body.Close()
	}
	resp, body := r.get(r.url+"/mqtt", "")
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "subprotocol") {
		t.Errorf("without a subprotocol: %s %s", resp.Status, body)
	}
}

func TestOpenEndpoints(t *testing.T) {
	r := start(t, nil)
	ops := "http://" + r.OpsAddr().String()
	for url, want := range map[string]string{
		r.url + "/health":                `"ok"`,
		r.url + "/.well-known/jwks.json": `"kty":"OKP"`,
		ops + "/healthz":                 "ok",
		ops + "/readyz":                  "ready",
		ops + "/metrics":                 "pairsync_broker_moments_stored_total",
	} {
		if resp, body := r.get(url, ""); resp.StatusCode != 200 || !strings.Contains(string(body), want) {
			t.Errorf("GET %s: %s without %q", url, resp.Status, want)
		}
	}
	_, body := r.get(r.url+"/.well-known/jwks.json", "")
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(body, &set); err != nil || len(set.Keys) != 1 || set.Keys[0]["d"] != nil {
		t.Errorf("jwks %s: want one key and nothing private (%v)", body, err)
	}
	if resp, _ := r.get(r.url+"/metrics", ""); resp.StatusCode != 404 {
		t.Errorf("metrics on the app's port: %s", resp.Status)
	}
}

// TestOneDaemonPerDirectory: a second one is refused and disturbs nothing.
func TestOneDaemonPerDirectory(t *testing.T) {
	r := start(t, nil)
	if _, err := New(t.Context(), testConfig(r.cfg.DataDir), Listeners{}, simtest.Logger(t)); err == nil {
		t.Fatal("a second daemon opened the same directory")
	}
	if resp, _ := r.get(r.url+"/health", ""); resp.StatusCode != 200 {
		t.Errorf("the first one: %s", resp.Status)
	}
}

func TestConfigProblemsAllAtOnce(t *testing.T) {
	c := Default()
	c.MQTT.Listen, c.HTTP.PublicURL, c.TLS.CertFile, c.Log.Level, c.Broker.Window = "nowhere", "ftp://x", "x.pem", "loud", 0
	err := c.Validate()
	for _, key := range []string{"data_dir", "mqtt.listen", "http.public_url", "tls", "log.level", "broker.window"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("the error does not name %s: %v", key, err)
		}
	}
}
