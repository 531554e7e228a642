package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/token"
)

// call makes a request of /pairs/ as user, and checks the form of the answer.
func (w *world) call(method, path, user, body, remote string) (status int, got map[string]any, h http.Header) {
	w.t.Helper()
	return w.callWith(method, path, w.token(token.Principal{User: user, Role: token.RoleApp}, time.Hour), body, remote)
}

func (w *world) callWith(method, path, raw, body, remote string) (status int, got map[string]any, h http.Header) {
	w.t.Helper()
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	req.RemoteAddr = remote
	req.Header.Set("Authorization", "Bearer "+raw)
	rec := httptest.NewRecorder()
	w.bridge.Handler().ServeHTTP(rec, req)
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		w.t.Fatalf("%s %s: %d %s: %v", method, path, rec.Code, rec.Body, err)
	}
	if ok := rec.Code == 200; got["success"] != ok || ok == (got["error"] != nil) || rec.Header().Get("Cache-Control") != "no-store" {
		w.t.Errorf("%s %s: %d %v", method, path, rec.Code, got)
	}
	return rec.Code, got, rec.Header()
}

const here = "203.0.113.7:1"

// code makes a pairing code of user.
func (w *world) code(user string) string {
	w.t.Helper()
	status, got, _ := w.call("POST", "/pairs/generate-code", user, "", here)
	data, _ := got["data"].(map[string]any)
	code, _ := data["code"].(string)
	expires, err := time.Parse(time.RFC3339, fmt.Sprint(data["expiresAt"]))
	if status != 200 || len(code) != 6 || err != nil || time.Until(expires) != 15*time.Minute {
		w.t.Fatalf("generate-code: %d %v", status, got)
	}
	return code
}

func joinBody(code string) string { return `{"code":"` + code + `"}` }

func TestPairs(t *testing.T) {
	inWorld(t, func(w *world) {
		if err := w.reg.SeeUser(w.t.Context(), "cem", "Cem D.", "cem@example.org"); err != nil {
			t.Fatal(err)
		}
		_, got, _ := w.call("GET", "/pairs/current", "cem", "", here)
		diff(t, "current without a pair", got, map[string]any{"success": true, "data": nil})

		code := w.code("cem")
		w.restart(func(*Config) {})
		status, joined, _ := w.call("POST", "/pairs/join", "dan", joinBody(strings.ToLower(code)), here)
		p, _ := w.reg.PairOf("dan")
		want := func(partner map[string]any) map[string]any {
			partner["clerkId"], partner["photoUrl"] = partner["id"], nil
			return map[string]any{"success": true, "data": map[string]any{
				"pair":    map[string]any{"id": p.ID, "user1Id": "cem", "user2Id": "dan", "pairedAt": stamp(p.Created)},
				"partner": partner,
			}}
		}
		cem := map[string]any{"id": "cem", "displayName": "Cem D.", "email": "cem@example.org"}
		if status != 200 {
			t.Errorf("join: %d", status)
		}
		diff(t, "join", joined, want(cem))
		_, got, _ = w.call("GET", "/pairs/current", "dan", "", here)
		diff(t, "current of dan", got, want(cem))
		_, got, _ = w.call("GET", "/pairs/current", "cem", "", here)
		diff(t, "current of cem", got, want(map[string]any{"id": "dan", "displayName": "dan", "email": nil}))

		_, got, _ = w.call("DELETE", "/pairs/disconnect", "cem", "", here)
		diff(t, "disconnect", got, map[string]any{"success": true, "data": nil})
		for _, user := range []string{"cem", "dan"} {
			_, got, _ = w.call("GET", "/pairs/current", user, "", here)
			diff(t, "current after the end", got, map[string]any{"success": true, "data": nil})
		}
	})
}

func TestPairsRefuses(t *testing.T) {
	inWorld(t, func(w *world) {
		used, old, cem := w.code("fay"), w.code("cem"), ""
		if status, _, _ := w.call("POST", "/pairs/join", "gus", joinBody(used), here); status != 200 {
			t.Fatal(status)
		}
		cem = w.code("cem") // replaces the old one
		dead := w.code("hal")
		if _, err := w.reg.CreatePair(w.t.Context(), "hal", "ida"); err != nil {
			t.Fatal(err)
		}
		expired := w.token(token.Principal{User: "dan"}, time.Second)
		device, err := w.reg.AddDevice(w.t.Context(), "dan", "frame")
		if err != nil {
			t.Fatal(err)
		}
		good := func(user string) string { return w.token(token.Principal{User: user}, time.Hour) }
		time.Sleep(time.Minute)
		guess := ""
		for name, tc := range map[string]struct {
			method, path, token, body string
			status                    int
			error                     string
		}{
			"unknown":         {"POST", "join", good("dan"), joinBody("AAAAAA"), 404, "invalid_code"},
			"used":            {"POST", "join", good("dan"), joinBody(used), 404, "invalid_code"},
			"replaced":        {"POST", "join", good("dan"), joinBody(old), 404, "invalid_code"},
			"none":            {"POST", "join", good("dan"), `{}`, 404, "invalid_code"},
			"own":             {"POST", "join", good("cem"), joinBody(cem), 409, "own_code"},
			"paired":          {"POST", "join", good("ana"), joinBody(cem), 409, "already_paired"},
			"partner paired":  {"POST", "join", good("dan"), joinBody(dead), 409, "partner_already_paired"},
			"code of a pair":  {"POST", "generate-code", good("ana"), "", 409, "already_paired"},
			"no JSON":         {"POST", "join", good("dan"), "code=x", 400, "invalid_request"},
			"too long":        {"POST", "join", good("dan"), joinBody(strings.Repeat("A", maxPairsBody)), 400, "invalid_request"},
			"no pair":         {"DELETE", "disconnect", good("dan"), "", 404, "not_paired"},
			"no token":        {"GET", "current", "", "", 401, "token_missing"},
			"bad token":       {"POST", "generate-code", "x", "", 401, "token_invalid"},
			"expired token":   {"GET", "current", expired, "", 401, "token_expired"},
			"token of device": {"DELETE", "disconnect", w.token(token.Principal{User: "dan", Device: device.ID}, time.Hour), "", 401, "token_invalid"},
		} {
			status, got, _ := w.callWith(tc.method, "/pairs/"+tc.path, tc.token, tc.body, here)
			if status != tc.status || got["error"] != tc.error || got["message"] == "" {
				t.Errorf("%s: %d %v, want %d %s", name, status, got, tc.status, tc.error)
			}
			if tc.error == "invalid_code" {
				text := fmt.Sprint(got)
				if guess != "" && text != guess {
					t.Errorf("%s: %s, but another wrong code: %s", name, text, guess)
				}
				guess = text
			}
		}
		time.Sleep(15 * time.Minute)
		if status, got, _ := w.call("POST", "/pairs/join", "dan", joinBody(cem), here); status != 404 || fmt.Sprint(got) != guess {
			t.Errorf("too old: %d %v, want what other wrong codes get", status, got)
		}
		w.store.Break(errors.New("disk gone"))
		if status, got, h := w.call("POST", "/pairs/generate-code", "dan", "", here); status != 503 || got["error"] != "unavailable" || h.Get("Retry-After") == "" {
			t.Errorf("without a disk: %d %v", status, got)
		}
		w.store.Break(nil)
	})
}

// TestGuessing: one user behind many addresses, and many users behind one, can
// make a few dozen guesses; everybody else goes on.
func TestGuessing(t *testing.T) {
	for name, who := range map[string]func(i int) (user, from string){
		"one user":    func(i int) (string, string) { return "eve", fmt.Sprintf("10.0.%d.%d:1", i/250, i%250+1) },
		"one address": func(i int) (string, string) { return fmt.Sprintf("eve-%d", i), "198.51.100.1:1" },
	} {
		inWorld(t, func(w *world) {
			w.bridge.cfg.AddressConnects = 1e6
			tokens := map[string]string{}
			looked := 0
			for i := range 10_000 {
				time.Sleep(100 * time.Millisecond)
				user, from := who(i)
				if tokens[user] == "" {
					tokens[user] = w.token(token.Principal{User: user}, time.Hour)
				}
				status, got, h := w.callWith("POST", "/pairs/join", tokens[user], joinBody(fmt.Sprintf("A%05d", i)), from)
				if status == 404 {
					looked++
					continue
				}
				if wait, err := strconv.Atoi(h.Get("Retry-After")); status != 429 || got["error"] != "rate_limited" || err != nil || wait < 1 {
					t.Fatalf("%s, guess %d: %d %v, Retry-After %q", name, i, status, got, h.Get("Retry-After"))
				}
			}
			if looked < userWrongCodes || looked > addressWrongCodes+25 {
				t.Errorf("%s: %d of 10,000 guesses were looked at", name, looked)
			}
			code := w.code("cem")
			user, from := who(0)
			if status, _, _ := w.call("POST", "/pairs/join", user, joinBody(code), from); status != 429 {
				t.Errorf("%s: the right code at last: %d, want 429", name, status)
			}
			if status, _, _ := w.call("POST", "/pairs/join", "dan", joinBody(code), here); status != 200 {
				t.Errorf("%s: somebody else: %d", name, status)
			}
		})
	}
}

// TestCodesWithoutEnd: making codes costs the disk something.
func TestCodesWithoutEnd(t *testing.T) {
	inWorld(t, func(w *world) {
		made := 0
		for range 1000 {
			if status, _, _ := w.call("POST", "/pairs/generate-code", "cem", "", here); status == 200 {
				made++
			}
		}
		if made > 50 {
			t.Errorf("%d codes in no time", made)
		}
		time.Sleep(time.Minute)
		w.code("cem")
	})
}

// TestPairsCORS: a web page may use the API where it may use Socket.IO.
func TestPairsCORS(t *testing.T) {
	inWorld(t, func(w *world) {
		w.restart(func(c *Config) { c.SocketIO.Origins, c.SocketIO.CORS = []string{"https://app.example"}, true })
		for origin, ok := range map[string]bool{"https://app.example": true, "https://evil.example": false} {
			req := httptest.NewRequest("OPTIONS", "/pairs/join", nil)
			req.Header.Set("Origin", origin)
			req.Header.Set("Access-Control-Request-Method", "POST")
			req.Header.Set("Access-Control-Request-Headers", "authorization,content-type")
			rec := httptest.NewRecorder()
			w.bridge.Handler().ServeHTTP(rec, req)
			h := rec.Header()
			if got := h.Get("Access-Control-Allow-Origin") == origin && h.Get("Access-Control-Allow-Headers") == "authorization,content-type" && rec.Code == 204; got != ok {
				t.Errorf("preflight from %s: %d %v", origin, rec.Code, h)
			}
			req = httptest.NewRequest("GET", "/pairs/current", nil)
			req.Header.Set("Origin", origin)
			rec = httptest.NewRecorder()
			w.bridge.Handler().ServeHTTP(rec, req)
			if got := rec.Header().Get("Access-Control-Allow-Origin") == origin; got != ok || rec.Code != 401 {
				t.Errorf("answer for %s: %d %v", origin, rec.Code, rec.Header())
			}
		}
		synctest.Wait()
	})
}
