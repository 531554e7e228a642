package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"pairsync/bridge"
	"pairsync/bridge/socketio"
	"pairsync/internal/config"
	"pairsync/internal/simtest"
)

// clerk is an external issuer on a real port.
type clerk struct {
	t      *testing.T
	key    *rsa.PrivateKey
	server *httptest.Server
}

func newClerk(t *testing.T) *clerk {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &clerk{t: t, key: key}
	c.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		b64 := base64.RawURLEncoding.EncodeToString
		json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]any{
			"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "ins_1", "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes()),
		}}})
	}))
	t.Cleanup(c.server.Close)
	return c
}

// configure makes the daemon accept c's tokens.
func (c *clerk) configure(cfg *Config) {
	cfg.Auth.Issuers = []IssuerConfig{{
		Issuer: "https://clerk.example", JWKSURL: c.server.URL, AuthorizedParties: []string{"https://app.example"}, Expiry: bridge.ExpirySession,
	}}
}

// token is one of a session for a minute, with some claims changed.
func (c *clerk) token(user string, changes jwt.MapClaims) string {
	c.t.Helper()
	now := time.Now()
	claims := jwt.MapClaims{
		"iss": "https://clerk.example", "sub": user, "sid": "sess_" + user, "azp": "https://app.example", "name": "Ann A.",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Minute).Unix(), "sts": "active",
	}
	maps.Copy(claims, changes)
	t := jwt.NewWithClaims(jwt.SigningMethodRS256, claims)
	t.Header["kid"] = "ins_1"
	raw, err := t.SignedString(c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	return raw
}

// dial connects a phone with raw. What it hears is sent to heard.
func (r *running) dial(raw string, heard chan<- string) (*socketio.Client, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	on := map[string]func(*socketio.Event){}
	for _, name := range []string{"auth:token", "auth:revoked"} {
		on[name] = func(e *socketio.Event) {
			args, err := e.Args()
			if err == nil && len(args) == 1 && heard != nil {
				heard <- e.Name + " " + string(args[0])
			}
		}
	}
	return socketio.Dial(ctx, r.url, socketio.DialOptions{Auth: map[string]any{"token": raw}, On: on})
}

// refusedAs fails unless raw gets a connect_error with code.
func (r *running) refusedAs(what, raw, code string) {
	r.t.Helper()
	c, err := r.dial(raw, nil)
	var refused *socketio.ConnectError
	if !errors.As(err, &refused) {
		if c != nil {
			c.Close()
		}
		r.t.Errorf("%s: %v, want a connect_error", what, err)
		return
	}
	data, _ := refused.Data.(json.RawMessage)
	if !strings.Contains(string(data), `"code":"`+code+`"`) || !strings.Contains(string(data), `"serverTime":1`) {
		r.t.Errorf("%s: refused with %s, want the code %s", what, data, code)
	}
}

func (r *running) post(path, body string) (int, map[string]any) {
	r.t.Helper()
	resp, err := http.Post(r.url+path, "application/json", strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	var out map[string]any
	if err != nil || json.Unmarshal(b, &out) != nil {
		r.t.Fatalf("POST %s: %s %s %v", path, resp.Status, b, err)
	}
	return resp.StatusCode, out
}

func TestExternalIssuer(t *testing.T) {
	clerk := newClerk(t)
	r := start(t, func(c *Config) {
		clerk.configure(c)
		c.Bridge.LoginFailures = 1000
	})
	heard := make(chan string, 8)
	phone, err := r.dial(clerk.token("ann", nil), heard)
	if err != nil {
		t.Fatal(err)
	}
	defer phone.Close()
	var offered struct{ Token string }
	if got := <-heard; !strings.HasPrefix(got, "auth:token ") || json.Unmarshal([]byte(got[len("auth:token "):]), &offered) != nil {
		t.Fatalf("heard %q, want a resume token", got)
	}
	again, err := r.dial(offered.Token, nil)
	if err != nil {
		t.Fatalf("with the resume token: %v", err)
	}
	again.Close()

	public := clerk.key.PublicKey
	none := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{"iss": "https://clerk.example", "sub": "ann", "exp": time.Now().Add(time.Hour).Unix()})
	none.Header["kid"] = "ins_1"
	unsigned, err := none.SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	hmac := jwt.NewWithClaims(jwt.SigningMethodHS256, none.Claims)
	hmac.Header["kid"] = "ins_1"
	confused, err := hmac.SignedString(public.N.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct{ raw, code string }{
		"none":             {"", "token_missing"},
		"nonsense":         {"x", "token_invalid"},
		"alg none":         {unsigned, "token_invalid"},
		"the public key":   {confused, "token_invalid"},
		"another issuer":   {clerk.token("ann", jwt.MapClaims{"iss": "https://clerk.example/"}), "token_invalid"},
		"our own issuer":   {clerk.token("ann", jwt.MapClaims{"iss": "pairsync", "aud": "pairsync"}), "token_invalid"},
		"another party":    {clerk.token("ann", jwt.MapClaims{"azp": "https://evil.example"}), "token_invalid"},
		"an audience":      {clerk.token("ann", jwt.MapClaims{"aud": "somebody"}), "token_invalid"},
		"a pending one":    {clerk.token("ann", jwt.MapClaims{"sts": "pending"}), "token_invalid"},
		"an admin":         {clerk.token("ann", jwt.MapClaims{"role": "admin"}), "token_invalid"},
		"an expired token": {clerk.token("ann", jwt.MapClaims{"exp": time.Now().Add(-time.Hour).Unix()}), "token_expired"},
	} {
		r.refusedAs(what, tc.raw, tc.code)
	}

	status, body := r.post("/auth/google", `{"idToken":"`+clerk.token("ann", nil)+`"}`)
	app, _ := body["token"].(string)
	if user, _ := body["user"].(map[string]any); status != 200 || user["clerkId"] != "ann" || user["displayName"] != "Ann A." {
		t.Errorf("exchange: %d %v", status, body)
	}
	if resp, got := r.get(r.url+"/moments/ann/none", app); resp.StatusCode != 404 {
		t.Errorf("the app token on another door: %s %s, want 404", resp.Status, got)
	}
	_, metrics := r.get("http://"+r.OpsAddr().String()+"/metrics", "")
	for _, want := range []string{`pairsync_token_jwks_age_seconds{issuer="https://clerk.example"}`, `pairsync_token_jwks_failures_total{issuer="https://clerk.example"} 0`} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("the metrics have no %s", want)
		}
	}

	clerk.server.Close() // an outage
	during, err := r.dial(clerk.token("ben", nil), nil)
	if err != nil {
		t.Errorf("while the issuer is away: %v", err)
	} else {
		during.Close()
	}
	// The session's end ends what was given for it.
	if err := r.registry.RevokeToken(t.Context(), "sess_ann", time.Time{}); err != nil {
		t.Fatal(err)
	}
	<-phone.Done()
	if got := <-heard; !strings.HasPrefix(got, "auth:revoked ") {
		t.Errorf("heard %q, want auth:revoked", got)
	}
	for what, raw := range map[string]string{"a fresh token": clerk.token("ann", nil), "the resume token": offered.Token, "the exchanged token": app} {
		r.refusedAs(what+" of a revoked session", raw, "revoked")
	}
}

// TestReconnectAfterRestart: a phone that only knows its first token finds its
// way back to a server that was restarted meanwhile, within the window.
func TestReconnectAfterRestart(t *testing.T) {
	clerk := newClerk(t)
	dir := t.TempDir()
	var old string
	for run, window := range []time.Duration{time.Hour, time.Hour, 0} {
		cfg := testConfig(dir)
		clerk.configure(&cfg)
		cfg.Auth.ReconnectWindow = window
		d, err := New(t.Context(), cfg, Listeners{}, simtest.Logger(t))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Run(ctx) }()
		<-d.Ready()
		r := &running{Daemon: d, t: t, url: "http://" + d.HTTPAddr().String()}
		connect := func(what, raw string) {
			phone, err := r.dial(raw, nil)
			if err != nil {
				t.Errorf("run %d, %s: %v", run, what, err)
				return
			}
			phone.Close()
		}
		if run == 0 {
			connect("a live token", clerk.token("ann", nil))
			old = clerk.token("ann", jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()})
			r.refusedAs("a session never seen", clerk.token("ben", jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()}), "token_expired")
		}
		if window > 0 {
			connect("an expired token", old)
		} else {
			r.refusedAs("an expired token without a window", old, "token_expired")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

func TestAuthConfigProblems(t *testing.T) {
	c := Default()
	c.DataDir = "x"
	c.Auth.Issuer, c.Auth.Expiry, c.Auth.MaxSession, c.Auth.ReconnectWindow = "", "never", -1, time.Second
	good := IssuerConfig{Issuer: "https://a.example", JWKSURL: "https://a.example/jwks"}
	bad := func(change func(*IssuerConfig)) IssuerConfig {
		x := good
		x.Issuer = "https://b" + string(rune('a'+len(c.Auth.Issuers)))
		change(&x)
		return x
	}
	c.Auth.Issuers = append(c.Auth.Issuers, good, good)
	for _, change := range []func(*IssuerConfig){
		func(x *IssuerConfig) { x.Issuer = "" },
		func(x *IssuerConfig) { x.JWKSURL = "" },
		func(x *IssuerConfig) { x.JWKSURL = "http://a.example/jwks" },
		func(x *IssuerConfig) { x.Expiry = "soon" },
		func(x *IssuerConfig) { x.Algorithms = []string{"HS256"} },
		func(x *IssuerConfig) { x.Algorithms = []string{"none"} },
		func(x *IssuerConfig) { x.NameClaim = "sub" },
		func(x *IssuerConfig) { x.JWKSURL = "http://127.0.0.1:9/jwks" }, // good
	} {
		c.Auth.Issuers = append(c.Auth.Issuers, bad(change))
	}
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"auth.issuer: must be set", `auth.expiry: "never" is none of`, "auth.max_session: -1ns is shorter", "auth.reconnect_window: 1s is shorter",
		`auth.issuers[1].issuer: "https://a.example" is configured twice`, "auth.issuers[2].issuer: must be set", "auth.issuers[3].jwks_url: must be set",
		"auth.issuers[4].jwks_url: ", `auth.issuers[5].expiry: "soon"`, "auth.issuers[6].issuer: ", "auth.issuers[7].issuer: ", `claim "sub"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not hold %q", want)
		}
	}
	if strings.Contains(err.Error(), "issuers[9]") || strings.Contains(err.Error(), "issuers[0]") {
		t.Error("a good issuer is refused")
	}
	if t.Failed() {
		t.Log(err)
	}
	c = Default()
	c.DataDir = "x"
	c.Auth.Issuers = []IssuerConfig{{Issuer: c.Auth.Issuer, JWKSURL: good.JWKSURL}}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "configured twice") {
		t.Errorf("an external issuer of our own name: %v", err)
	}
}

// TestSampleIssuers: the example in the documented configuration loads, and
// sets every key that an issuer has.
func TestSampleIssuers(t *testing.T) {
	b, err := os.ReadFile("../../configs/pairsync.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := bytes.Cut(b, []byte("  #\n  # issuers:\n"))
	example, _, _ := bytes.Cut(rest, []byte("\n  issuers: []"))
	if !ok {
		t.Fatal("no example of issuers")
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	text := append([]byte("auth:\n  issuers:\n"), bytes.ReplaceAll(append([]byte("\n"), example...), []byte("\n  # "), []byte("\n  "))...)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c := testConfig(t.TempDir())
	if _, err := config.Load(&c, config.Options{File: path}); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	if len(c.Auth.Issuers) != 1 {
		t.Fatalf("%d issuers in:\n%s", len(c.Auth.Issuers), text)
	}
	keys := config.Keys(&c.Auth.Issuers[0])
	for _, key := range keys {
		if !slices.Contains(strings.Fields(string(text)), key+":") {
			t.Errorf("the example does not set %s", key)
		}
	}
	if len(keys) != 8 {
		t.Errorf("an issuer has the keys %v", keys)
	}
}
