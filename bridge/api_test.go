package bridge

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pairsync/internal/token"
)

// post sends body to the bridge's HTTP handler, as somebody from remote.
func (w *world) post(path, body, remote string) (*httptest.ResponseRecorder, map[string]any) {
	w.t.Helper()
	req := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	req.RemoteAddr = remote
	rec := httptest.NewRecorder()
	w.bridge.Handler().ServeHTTP(rec, req)
	var out map[string]any
	if err := json.Unmarshal(rec.Body.Bytes(), &out); err != nil {
		w.t.Fatalf("POST %s: %d %s: %v", path, rec.Code, rec.Body, err)
	}
	return rec, out
}

func idToken(raw string) string { return `{"idToken":"` + raw + `"}` }

func TestExchange(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, path := range []string{"/auth/exchange", "/auth/google"} {
			raw, _, err := w.clerk.Sign(token.Principal{User: "ana", Name: "Ana B.", Email: "ana@example.org", Session: "s1"}, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			rec, got := w.post(path, idToken(raw), "203.0.113.7:1")
			app, _ := got["token"].(string)
			delete(got, "token")
			want := map[string]any{"user": map[string]any{"id": "ana", "clerkId": "ana", "email": "ana@example.org", "displayName": "Ana B."}}
			diff(t, path, got, want)
			if rec.Code != 200 || rec.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %d, Cache-Control %q", path, rec.Code, rec.Header().Get("Cache-Control"))
			}
			who, err := w.deps.Verifier.Verify(w.t.Context(), app)
			if err != nil || who.User != "ana" || who.Role != token.RoleApp || who.External || who.Session != "s1" || time.Until(who.Expires) != 30*24*time.Hour {
				t.Errorf("%s gave a token of %+v (%v), want ana's own for 30 days", path, who, err)
			}
			a := w.connect("ana", map[string]any{"token": app})
			a.room()
			a.leave()
			if rec, got := w.post(path, idToken(app), "203.0.113.7:1"); rec.Code != 401 || got["code"] != "token_invalid" {
				t.Errorf("%s of our own token: %d %v, want 401", path, rec.Code, got)
			}
			if err := w.reg.RevokeToken(w.t.Context(), who.ID, time.Time{}); err != nil {
				t.Fatal(err)
			}
			w.refusedAs(app, token.CodeRevoked, false)
		}
	})
}

func TestExchangeRefuses(t *testing.T) {
	inWorld(t, func(w *world) {
		old := w.minute("ana", "s1")
		time.Sleep(2 * time.Minute)
		for name, tc := range map[string]struct {
			body   string
			status int
			code   string
		}{
			"no JSON":      {"idToken=x", 400, "invalid_request"},
			"not text":     {`{"idToken":7}`, 400, "invalid_request"},
			"too long":     {idToken(strings.Repeat("x", maxBodyBytes)), 400, "invalid_request"},
			"none":         {`{}`, 401, "token_missing"},
			"nonsense":     {idToken("x"), 401, "token_invalid"},
			"expired":      {idToken(old), 401, "token_expired"},
			"our own kind": {idToken(w.token(token.Principal{User: "ana"}, time.Hour)), 401, "token_invalid"},
		} {
			rec, got := w.post("/auth/exchange", tc.body, "203.0.113.7:1")
			if rec.Code != tc.status || got["code"] != tc.code || got["retryable"] != false || got["token"] != nil {
				t.Errorf("%s: %d %v, want %d %s", name, rec.Code, got, tc.status, tc.code)
			}
		}
		for range DefaultLoginFailures {
			w.post("/auth/exchange", idToken("x"), "203.0.113.7:1")
		}
		rec, got := w.post("/auth/exchange", idToken(w.minute("ana", "s1")), "203.0.113.7:1")
		if rec.Code != 429 || got["code"] != "rate_limited" || got["retryable"] != true || rec.Header().Get("Retry-After") == "" {
			t.Errorf("after failures: %d %v (Retry-After %q), want 429", rec.Code, got, rec.Header().Get("Retry-After"))
		}
		if rec, got := w.post("/auth/exchange", idToken(w.minute("ana", "s1")), "203.0.113.8:1"); rec.Code != 200 {
			t.Errorf("another address: %d %v", rec.Code, got)
		}
	})
}

// TestTrustedProxy: behind a proxy that is named, one phone's failures are not
// another's.
func TestTrustedProxy(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, trusted := range []bool{true, false} {
			w.restart(func(c *Config) {
				c.TrustedProxies = nil
				if trusted {
					c.TrustedProxies = prefixes("127.0.0.0/8")
				}
			})
			post := func(client, raw string) int {
				req := httptest.NewRequest(http.MethodPost, "/auth/exchange", strings.NewReader(idToken(raw)))
				req.RemoteAddr = "127.0.0.1:1"
				req.Header.Set("X-Forwarded-For", client)
				rec := httptest.NewRecorder()
				w.bridge.Handler().ServeHTTP(rec, req)
				return rec.Code
			}
			for range 2 * DefaultLoginFailures {
				post("203.0.113.7", "x")
			}
			if got := post("203.0.113.7", "x"); got != 429 {
				t.Errorf("trusted %t: the one who fails: %d, want 429", trusted, got)
			}
			if got, want := post("203.0.113.8", w.minute("ana", "s1")), map[bool]int{true: 200, false: 429}[trusted]; got != want {
				t.Errorf("trusted %t: another behind the proxy: %d, want %d", trusted, got, want)
			}
		}
	})
}
