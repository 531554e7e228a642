package bridge

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pairsync/bridge/socketio"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// restart goes on with another configuration, as after a restart of the server.
func (w *world) restart(change func(*Config)) {
	w.t.Helper()
	w.stop()
	change(&w.cfg)
	var err error
	if w.reg, err = registry.Open(w.t.Context(), w.store); err != nil {
		w.t.Fatal(err)
	}
	w.deps.Registry = w.reg
	w.begin()
}

// minute is a token as Clerk gives them: of a session, for 60 s.
func (w *world) minute(user, session string) string {
	w.t.Helper()
	raw, _, err := w.clerk.Sign(token.Principal{User: user, Role: token.RoleApp, Session: session}, time.Minute)
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

// ended reports whether the server has ended the socket, and whether it told
// the app to stay away.
func (a *app) ended() (ended, away bool) {
	synctest.Wait()
	select {
	case <-a.sock.Done():
		err := a.sock.Err()
		return true, err != nil && err.Error() == socketio.ReasonServerDisconnect
	default:
		return false, false
	}
}

// refusedAs fails unless a handshake with raw gets code as connect_error.
func (w *world) refusedAs(raw string, code token.Code, retryable bool) *socketio.ConnectError {
	w.t.Helper()
	refused := w.refusal(map[string]any{"token": raw})
	var data struct {
		Code       token.Code
		Retryable  *bool
		ServerTime int64
	}
	raw2, _ := refused.Data.(json.RawMessage)
	if err := json.Unmarshal(raw2, &data); err != nil || data.Retryable == nil {
		w.t.Fatalf("data %s: %v", raw2, err)
	}
	if data.Code != code || *data.Retryable != retryable || data.ServerTime != time.Now().UnixMilli() {
		w.t.Errorf("refused with %s %q, want %s (retryable %t) and the server's time", raw2, refused.Message, code, retryable)
	}
	return refused
}

// TestExpiryPolicies: how long a socket lives, by policy, with an external
// token of a minute.
func TestExpiryPolicies(t *testing.T) {
	for name, tc := range map[string]struct {
		change  func(*AuthConfig)
		asked   time.Duration // until auth:expiring; 0: never
		ends    time.Duration // 0: within a day never
		offered int           // resume tokens
	}{
		"session":             {func(*AuthConfig) {}, 0, 0, 1},
		"longest session":     {func(c *AuthConfig) { c.MaxSession = 2 * time.Hour }, 0, 2 * time.Hour, 1},
		"grace":               {func(c *AuthConfig) { c.Issuers = map[string]Expiry{"clerk": ExpiryGrace} }, 30 * time.Second, 90 * time.Second, 0},
		"strict":              {func(c *AuthConfig) { c.Issuers = map[string]Expiry{"clerk": ExpiryStrict} }, 0, time.Minute, 0},
		"strict for all":      {func(c *AuthConfig) { c.Expiry = ExpiryStrict }, 0, time.Minute, 0},
		"strict for others":   {func(c *AuthConfig) { c.Issuers = map[string]Expiry{"pairsync": ExpiryStrict, "x": ExpiryStrict} }, 0, 0, 1},
		"short session first": {func(c *AuthConfig) { c.Expiry, c.MaxSession = ExpiryGrace, 40*time.Second }, 30 * time.Second, 40 * time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.restart(func(c *Config) { tc.change(&c.Auth) })
				began := time.Now()
				a := w.connect("ana", map[string]any{"token": w.minute("ana", "s1")})
				a.room()
				if got := len(a.heard("auth:token")); got != tc.offered {
					t.Errorf("%d resume tokens, want %d", got, tc.offered)
				}
				if tc.ends == 0 {
					time.Sleep(24 * time.Hour)
					if ended, _ := a.ended(); ended {
						t.Errorf("ended: %v", a.sock.Err())
					}
				} else {
					time.Sleep(tc.ends - time.Millisecond)
					if ended, _ := a.ended(); ended {
						t.Errorf("ended before %v", tc.ends)
					}
					time.Sleep(time.Second)
					if ended, away := a.ended(); !ended || away {
						t.Errorf("after %v: ended %t, told to stay away %t; want it ended so that it comes back", tc.ends, ended, away)
					}
				}
				asked := a.heard("auth:expiring")
				if tc.asked == 0 {
					if len(asked) > 0 {
						t.Errorf("asked for a token: %v", asked)
					}
				} else if len(asked) != 1 || asked[0].at.Sub(began).Round(time.Second) != tc.asked ||
					int64(asked[0].body["expiresAt"].(float64)) != began.Add(time.Minute).UnixMilli() ||
					int64(asked[0].body["disconnectAt"].(float64)) != began.Add(tc.ends).UnixMilli() {
					t.Errorf("asked for a token: %v, want once after %v", asked, tc.asked)
				}
			})
		})
	}
}

// TestGoneSocketsDoNotExpire: a socket's timers end with it.
func TestGoneSocketsDoNotExpire(t *testing.T) {
	inWorld(t, func(w *world) {
		w.restart(func(c *Config) { c.Auth.Expiry = ExpiryGrace })
		w.connect("ana", map[string]any{"token": w.minute("ana", "s1")}).leave()
		time.Sleep(time.Hour)
		reg := prometheus.NewRegistry()
		if err := reg.Register(w.bridge.metrics.expired); err != nil {
			t.Fatal(err)
		}
		got, err := reg.Gather()
		if err != nil || len(got) != 1 {
			t.Fatalf("%v, %v", got, err)
		}
		if n := got[0].GetMetric()[0].GetCounter().GetValue(); n != 0 {
			t.Errorf("%v sockets ended with their token, want none", n)
		}
	})
}

// TestStrictTakesNoLeeway: what would end at once is not let in.
func TestStrictTakesNoLeeway(t *testing.T) {
	inWorld(t, func(w *world) {
		old := w.minute("ana", "s1")
		time.Sleep(61 * time.Second) // within the verifier's leeway
		w.connect("ana", map[string]any{"token": old}).leave()
		w.restart(func(c *Config) { c.Auth.Expiry = ExpiryStrict })
		w.refusedAs(old, token.CodeExpired, false)
	})
}

// TestRefresh: a new token takes over; another user's, or none, changes nothing.
func TestRefresh(t *testing.T) {
	inWorld(t, func(w *world) {
		w.restart(func(c *Config) { c.Auth.Expiry = ExpiryGrace })
		a := w.connect("ana", map[string]any{"token": w.minute("ana", "s1")})
		a.room()
		for i := range 5 {
			time.Sleep(70 * time.Second) // in the time of grace
			got := a.ask("auth:refresh", map[string]any{"token": w.minute("ana", "s1")})
			if got["success"] != true || int64(got["expiresAt"].(float64)) != time.Now().Add(time.Minute).Truncate(time.Second).UnixMilli() {
				t.Fatalf("refresh %d answered %v", i, got)
			}
		}
		if got := len(a.heard("auth:expiring")); got != 5 {
			t.Errorf("asked %d times for a token, want 5", got)
		}
		device := w.token(token.Principal{User: "ana", Device: "d1", Role: token.RoleDevice}, time.Hour)
		admin := w.token(token.Principal{User: "ana", Role: token.RoleAdmin}, time.Hour)
		expired := w.minute("ana", "s1")
		time.Sleep(70 * time.Second)
		for name, tc := range map[string]struct {
			body any
			code string
		}{
			"another user's": {map[string]any{"token": w.minute("ben", "s2")}, "token_invalid"},
			"an admin's":     {map[string]any{"token": admin}, "token_invalid"},
			"a device's":     {map[string]any{"token": device}, "revoked"}, // of no device
			"an expired one": {map[string]any{"token": expired}, "token_expired"},
			"nonsense":       {map[string]any{"token": "x"}, "token_invalid"},
			"none":           {map[string]any{}, "token_missing"},
			"no object":      {"x", "invalid_request"},
		} {
			if got := a.ask("auth:refresh", tc.body); got["success"] != false || got["code"] != tc.code || got["retryable"] != false || got["error"] == "" {
				t.Errorf("%s answered %v, want the code %s", name, got, tc.code)
			}
		}
		time.Sleep(21 * time.Second)
		if ended, _ := a.ended(); !ended {
			t.Error("refused tokens kept the socket")
		}
	})
}

// TestRefreshRearmsStrict: the old timer does not end what was refreshed.
func TestRefreshRearmsStrict(t *testing.T) {
	inWorld(t, func(w *world) {
		w.restart(func(c *Config) { c.Auth.Expiry = ExpiryStrict })
		a := w.connect("ana", map[string]any{"token": w.minute("ana", "s1")})
		time.Sleep(59 * time.Second)
		if got := a.ask("auth:refresh", map[string]any{"token": w.minute("ana", "s1")}); got["success"] != true {
			t.Fatalf("refresh answered %v", got)
		}
		time.Sleep(59 * time.Second)
		if ended, _ := a.ended(); ended {
			t.Fatal("ended by the old token's timer")
		}
		time.Sleep(2 * time.Second)
		if ended, _ := a.ended(); !ended {
			t.Error("the new token's end passed")
		}
	})
}

// TestRefreshChangesRights: a token of a former pair reaches nothing; one of
// the present pair does from then on.
func TestRefreshChangesRights(t *testing.T) {
	inWorld(t, func(w *world) {
		claim := func(pair string) map[string]any {
			return map[string]any{"token": w.token(token.Principal{User: "ben", Role: token.RoleApp, Pair: pair}, time.Hour)}
		}
		b := w.connect("ben", claim("former"))
		b.room()
		w.fromPartner("ana", 1)
		if got := b.ask("send_photo", photoOf("ana", 7)); got["code"] != "not_paired" {
			t.Errorf("a send with a token of a former pair: %v", got)
		}
		diff(t, "photos with a token of a former pair", b.photos(), []string{})
		if got := b.ask("auth:refresh", claim(w.pair.ID)); got["success"] != true {
			t.Fatalf("refresh answered %v", got)
		}
		diff(t, "photos after the refresh", b.photos(), []string{"photo-1"})
		if got := b.ask("send_photo", photoOf("ana", 7)); got["success"] != true {
			t.Errorf("a send after the refresh: %v", got)
		}
		if got := b.ask("auth:refresh", claim("former")); got["success"] != true {
			t.Fatalf("refresh answered %v", got)
		}
		w.fromPartner("ana", 2)
		diff(t, "photos after the rights have gone", b.photos(), []string{"photo-1"})
	})
}

// TestResumeToken: the token that the bridge hands out lets the app in when
// its own is long expired, also after a restart, until its session is revoked.
func TestResumeToken(t *testing.T) {
	inWorld(t, func(w *world) {
		w.restart(func(c *Config) { c.Auth.Issuers = map[string]Expiry{"clerk": ExpirySession} })
		old := w.minute("ana", "s1")
		a := w.connect("ana", map[string]any{"token": old})
		offered := a.heard("auth:token")
		if len(offered) != 1 {
			t.Fatalf("auth:token %v, want one", offered)
		}
		resume, _ := offered[0].body["token"].(string)
		if got, want := int64(offered[0].body["expiresAt"].(float64)), time.Now().Add(30*24*time.Hour).UnixMilli(); got != want {
			t.Errorf("expiresAt %d, want %d", got, want)
		}
		a.leave()
		w.restart(func(*Config) {})
		time.Sleep(29 * 24 * time.Hour)
		w.refusedAs(old, token.CodeExpired, false)
		b := w.connect("ana", map[string]any{"token": resume})
		b.room()
		if got := b.heard("auth:token"); len(got) > 0 {
			t.Errorf("a token of ours was answered with another: %v", got)
		}
		if err := w.reg.RevokeToken(w.t.Context(), "s1", time.Time{}); err != nil {
			t.Fatal(err)
		}
		if got := b.heard("auth:revoked"); len(got) != 1 {
			t.Errorf("auth:revoked %v after the session was revoked, want one", got)
		}
		if ended, away := b.ended(); !ended || !away {
			t.Errorf("ended %t, told to stay away %t; want both", ended, away)
		}
		w.refusedAs(resume, token.CodeRevoked, false)
		time.Sleep(2 * 24 * time.Hour)
		w.refusedAs(resume, token.CodeExpired, false)
	})
}

// TestReconnectWindow: an app that only has its first token is let in for so
// long after its session was last seen alive.
func TestReconnectWindow(t *testing.T) {
	window := func(d time.Duration) func(*Config) {
		return func(c *Config) { c.Auth.ReconnectWindow = d }
	}
	inWorld(t, func(w *world) {
		w.restart(window(24 * time.Hour))
		old, never := w.minute("ana", "s1"), w.minute("ben", "s2")
		w.connect("ana", map[string]any{"token": old}).leave()
		time.Sleep(time.Hour)
		again := w.connect("ana", map[string]any{"token": old})
		again.room()
		if got := again.heard("auth:token"); len(got) > 0 {
			t.Errorf("an expired token was answered with a fresh one: %v", got)
		}
		if got := again.ask("auth:refresh", map[string]any{"token": old}); got["code"] != "token_expired" {
			t.Errorf("refresh with an expired token: %v", got)
		}
		again.leave()
		w.refusedAs(never, token.CodeExpired, false) // its session was never seen
		w.restart(window(24 * time.Hour))
		w.connect("ana", map[string]any{"token": old}).leave()

		time.Sleep(22*time.Hour + 59*time.Minute)
		w.connect("ana", map[string]any{"token": old}).leave()
		time.Sleep(time.Minute + time.Second)
		w.refusedAs(old, token.CodeExpired, false) // being let in does not prolong it

		fresh := w.minute("ana", "s1")
		w.connect("ana", map[string]any{"token": fresh}).leave()
		time.Sleep(time.Hour)
		w.connect("ana", map[string]any{"token": old}).leave() // the same session
		w.restart(window(0))
		w.refusedAs(old, token.CodeExpired, false)
		w.restart(func(c *Config) {
			window(24 * time.Hour)(c)
			c.Auth.Issuers = map[string]Expiry{"clerk": ExpiryGrace}
		})
		w.refusedAs(old, token.CodeExpired, false)
		w.restart(func(c *Config) { c.Auth.Issuers = nil })
		w.connect("ana", map[string]any{"token": old}).leave()
		if err := w.reg.RevokeToken(w.t.Context(), "s1", time.Time{}); err != nil {
			t.Fatal(err)
		}
		w.refusedAs(old, token.CodeRevoked, false)
	})
}

// TestFailedHandshakesHaveToWait: an address that shows bad tokens waits, with
// a reason; an expired one is not held against its home.
func TestFailedHandshakesHaveToWait(t *testing.T) {
	inWorld(t, func(w *world) {
		w.from = "203.0.113.7:4711"
		old := w.minute("ana", "s1")
		time.Sleep(2 * time.Minute)
		for range 3 * DefaultLoginFailures {
			w.refusedAs(old, token.CodeExpired, false)
		}
		w.connect("ana", nil).leave()
		for range DefaultLoginFailures {
			w.refusedAs("nonsense", token.CodeInvalid, false)
		}
		refused := w.refusedAs("nonsense", token.CodeRateLimited, true)
		if !strings.Contains(refused.Message, "wait 1s") {
			t.Errorf("message %q does not say how long to wait", refused.Message)
		}
		w.refusedAs(w.minute("ana", "s1"), token.CodeRateLimited, true)
		w.from = "203.0.113.8:4711"
		w.connect("ana", nil).leave()
		w.from = "203.0.113.7:4711"
		time.Sleep(time.Second)
		a := w.connect("ana", nil)
		for range 3 {
			if got := a.ask("auth:refresh", map[string]any{"token": "nonsense"}); got["success"] != false {
				t.Errorf("refresh answered %v", got)
			}
		}
		if got := a.ask("auth:refresh", map[string]any{"token": w.minute("ana", "s1")}); got["code"] != "rate_limited" || got["retryable"] != true {
			t.Errorf("refresh after failed ones answered %v, want rate_limited", got)
		}
	})
}
