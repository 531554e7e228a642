package token

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// keyServer is an issuer's JWKS endpoint in the same bubble.
type keyServer struct {
	mu     sync.Mutex // guards the fields below
	set    []byte
	status int
	down   error
	hangs  bool
	floods bool // the set is followed by spaces without end
	taken  int  // of those
	asked  []time.Time
}

// flood gives spaces, and gives up when far too many were taken.
type flood struct{ s *keyServer }

// Read fills b with spaces.
func (f flood) Read(b []byte) (int, error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.taken += len(b); f.s.taken > 100*maxSetBytes {
		return 0, errors.New("nobody stops")
	}
	return copy(b, bytes.Repeat([]byte(" "), len(b))), nil
}

// RoundTrip answers with the set.
func (s *keyServer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, time.Now())
	if s.hangs {
		s.mu.Unlock()
		<-r.Context().Done()
		s.mu.Lock()
		return nil, r.Context().Err()
	}
	if s.down != nil {
		return nil, s.down
	}
	body := io.Reader(bytes.NewReader(s.set))
	if s.floods {
		s.taken = 0
		body = io.MultiReader(body, flood{s})
	}
	return &http.Response{
		StatusCode: s.status, Status: fmt.Sprint(s.status, " ", http.StatusText(s.status)), Header: http.Header{}, Request: r,
		Body: io.NopCloser(body),
	}, nil
}

func (s *keyServer) change(fn func(*keyServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s)
}

func (s *keyServer) times() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

// clerkWorld is a verifier of one external issuer in a bubble.
type clerkWorld struct {
	t      *testing.T
	server *keyServer
	keys   *RemoteKeys
	v      *Verifier
	start  func()
}

const clerkIssuer = "https://clerk.example"

// inClerkWorld runs fn with an issuer that publishes testRSA as "k1".
func inClerkWorld(t *testing.T, fn func(t *testing.T, w *clerkWorld)) {
	t.Helper()
	testRSA()
	synctest.Test(t, func(t *testing.T) {
		w := &clerkWorld{t: t, server: &keyServer{status: 200}}
		w.server.set = keySet(t, publish(t, "k1", &testRSA().PublicKey))
		algorithms := []string{"RS256", "EdDSA"}
		w.keys = NewRemoteKeys("https://clerk.example/jwks", algorithms, &http.Client{Transport: w.server}, slog.New(slog.NewTextHandler(t.Output(), nil)))
		w.v = newTestVerifier(t, nil, Issuer{Name: clerkIssuer, Algorithms: algorithms, Keys: w.keys.Keyfunc, External: true})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		w.start = func() { wg.Go(func() { w.keys.Run(ctx) }); synctest.Wait() }
		defer func() { cancel(); wg.Wait() }()
		fn(t, w)
	})
}

// token is one of a user whose session is fresh, signed with key as id.
func (w *clerkWorld) token(id, alg string, key any) string {
	return forge(w.t, alg, key, `{"alg":"`+alg+`","kid":"`+id+`"}`, edit(ownClaims(), map[string]any{"iss": clerkIssuer, "aud": nil, "sid": "s1"}))
}

func (w *clerkWorld) good() string { return w.token("k1", "RS256", testRSA()) }

// verify fails unless raw is taken, or refused with a reason.
func (w *clerkWorld) verify(what, raw, reason string, retryable bool) {
	w.t.Helper()
	p, err := w.v.Verify(w.t.Context(), raw)
	if reason == "" {
		if err != nil || p.User != "ann" {
			w.t.Errorf("%s: %v, want it accepted", what, err)
		}
		return
	}
	if e := refusedWith(w.t, p, err, CodeInvalid); !strings.Contains(e.Reason, reason) || e.Retryable() != retryable {
		w.t.Errorf("%s: refused as %q (retryable %t), want %q (%t)", what, e, e.Retryable(), reason, retryable)
	}
}

func TestRemoteKeysAreFetchedOnce(t *testing.T) {
	inClerkWorld(t, func(t *testing.T, w *clerkWorld) {
		if n := w.server.times(); n != 0 {
			t.Errorf("%d fetches before Run", n)
		}
		w.start()
		for range 50 {
			w.verify("a good token", w.good(), "", false)
		}
		if n := w.server.times(); n != 1 {
			t.Errorf("%d fetches for 50 tokens, want 1", n)
		}
		time.Sleep(keysMaxAge - time.Second)
		if n, age := w.server.times(), w.keys.Age(); n != 1 || age != keysMaxAge-time.Second {
			t.Errorf("%d fetches, age %v, just before the keys are old", n, age)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n, age := w.server.times(), w.keys.Age(); n != 2 || age != 0 {
			t.Errorf("%d fetches, age %v, once the keys are old; want 2 and 0", n, age)
		}
	})
}

// TestRemoteKeysRotate: a new key is found by the first token that names it,
// an old one goes when the issuer takes it back.
func TestRemoteKeysRotate(t *testing.T) {
	inClerkWorld(t, func(t *testing.T, w *clerkWorld) {
		w.start()
		time.Sleep(time.Minute)
		next := foreignKey(t)
		w.server.change(func(s *keyServer) {
			s.set = keySet(t, publish(t, "k1", &testRSA().PublicKey), publish(t, "k2", next.Public()))
		})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { w.verify("a token of the new key", w.token("k2", "EdDSA", next), "", false) })
		}
		wg.Wait()
		if n := w.server.times(); n != 2 {
			t.Errorf("%d fetches, want one more for twenty tokens at once", n)
		}
		w.verify("a token of the old key", w.good(), "", false)
		w.verify("the new id with the old key", w.token("k2", "RS256", testRSA()), `key "k2" is not for RS256`, false)
		w.verify("the new id with a stranger's key", w.token("k2", "EdDSA", foreignKey(t)), "signature", false)

		w.server.change(func(s *keyServer) { s.set = keySet(t, publish(t, "k2", next.Public())) })
		time.Sleep(keysMaxAge)
		synctest.Wait()
		w.verify("a key that was taken back", w.good(), "cannot be fetched at the moment", true)
		time.Sleep(minRefresh)
		w.verify("a key that was taken back, asked again", w.good(), "no key for this token", false)
	})
}

// TestRemoteKeysAreNotHammered: made-up key ids cost one fetch in 30 s.
func TestRemoteKeysAreNotHammered(t *testing.T) {
	inClerkWorld(t, func(t *testing.T, w *clerkWorld) {
		w.start()
		began := time.Now()
		for i := range 600 {
			w.v.Verify(t.Context(), w.token(fmt.Sprint("made-up-", i), "EdDSA", foreignKey(t)))
			w.verify("a good token meanwhile", w.good(), "", false)
			time.Sleep(time.Second)
		}
		if n, most := w.server.times(), int(time.Since(began)/minRefresh)+1; n > most || n < most-1 {
			t.Errorf("%d fetches in %v, want one in %v", n, time.Since(began), minRefresh)
		}
		for i, at := range w.server.asked[1:] {
			if gap := at.Sub(w.server.asked[i]); gap < minRefresh {
				t.Errorf("two fetches %v apart", gap)
			}
		}
	})
}

// TestRemoteKeysOutlast: while the issuer is away its tokens are still taken.
func TestRemoteKeysOutlast(t *testing.T) {
	outages := map[string]func(*keyServer){
		"no connection": func(s *keyServer) { s.down = errors.New("no route to host") },
		"error 500":     func(s *keyServer) { s.status = 500 },
		"a redirect":    func(s *keyServer) { s.status = 302 },
		"it hangs":      func(s *keyServer) { s.hangs = true },
		"another page":  func(s *keyServer) { s.set = []byte("<html>maintenance</html>") },
		"no keys":       func(s *keyServer) { s.set = []byte(`{"keys":[]}`) },
		"too long":      func(s *keyServer) { s.set = append(s.set, bytes.Repeat([]byte(" "), maxSetBytes)...) },
		"endless":       func(s *keyServer) { s.floods = true },
	}
	for name, begin := range outages {
		t.Run(name, func(t *testing.T) {
			inClerkWorld(t, func(t *testing.T, w *clerkWorld) {
				w.start()
				time.Sleep(time.Second)
				w.server.change(begin)
				time.Sleep(2 * time.Hour)
				w.verify("a token after hours of outage", w.good(), "", false)
				if age := w.keys.Age(); age < 2*time.Hour {
					t.Errorf("age %v after two hours of outage", age)
				}
				if w.keys.Failures() == 0 {
					t.Error("no failure was counted")
				}
				w.verify("a key nobody has seen", w.token("k2", "EdDSA", foreignKey(t)), "cannot be fetched at the moment", true)
				w.server.change(func(s *keyServer) {
					if s.taken > 2*maxSetBytes {
						t.Errorf("%d bytes of an endless answer were read", s.taken)
					}
					s.status, s.down, s.hangs, s.floods = 200, nil, false, false
					s.set = keySet(t, publish(t, "k3", &testRSA().PublicKey))
				})
				time.Sleep(minRefresh + fetchTimeout)
				if age := w.keys.Age(); age > minRefresh {
					t.Errorf("age %v: nobody tried again without being asked", age)
				}
				w.verify("the new key afterwards", w.token("k3", "RS256", testRSA()), "", false)
			})
		})
	}
}

// TestRemoteKeysFirstFetch: without any keys a token is refused for now, and
// the next try is soon.
func TestRemoteKeysFirstFetch(t *testing.T) {
	inClerkWorld(t, func(t *testing.T, w *clerkWorld) {
		w.server.down = errors.New("no route to host")
		w.start()
		w.verify("a token before the first fetch", w.good(), "cannot be fetched at the moment", true)
		w.server.change(func(s *keyServer) { s.down = nil })
		time.Sleep(firstRefresh)
		w.verify("a token after it", w.good(), "", false)
	})
	inClerkWorld(t, func(t *testing.T, w *clerkWorld) {
		began := time.Now()
		w.verify("a token when nobody fetches", w.good(), "cannot be fetched at the moment", true)
		if waited := time.Since(began); waited > 5*time.Second {
			t.Errorf("a handshake waited %v", waited)
		}
		go func() {
			time.Sleep(time.Second)
			w.start()
		}()
		w.verify("a token that came before Run", w.good(), "", false)
	})
	inClerkWorld(t, func(t *testing.T, w *clerkWorld) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w.keys.Run(ctx)
		began := time.Now()
		w.verify("a token after Run", w.good(), "cannot be fetched at the moment", true)
		if waited := time.Since(began); waited > 0 {
			t.Errorf("it waited %v for nobody", waited)
		}
	})
}

// TestRemoteKeysRefuse has what no key set lets through.
func TestRemoteKeysRefuse(t *testing.T) {
	inClerkWorld(t, func(t *testing.T, w *clerkWorld) {
		w.start()
		claims := edit(ownClaims(), map[string]any{"iss": clerkIssuer, "aud": nil})
		pub := testRSA().PublicKey
		for _, key := range [][]byte{pub.N.Bytes(), w.server.set, nil} {
			w.verify("HMAC with what is public", forge(t, "HS256", key, `{"alg":"HS256","kid":"k1"}`, claims), `algorithm "HS256" is not accepted`, false)
		}
		w.verify("none", forge(t, "", nil, `{"alg":"none","kid":"k1"}`, claims), `algorithm "none" is not accepted`, false)
		w.verify("no key id", forge(t, "RS256", testRSA(), `{"alg":"RS256"}`, claims), "names no key", false)
		w.verify("another algorithm of that key", forge(t, "RS512", testRSA(), `{"alg":"RS512","kid":"k1"}`, claims), `algorithm "RS512" is not accepted`, false)
		w.verify("EdDSA under an RSA key's id", w.token("k1", "EdDSA", foreignKey(t)), `key "k1" is not for EdDSA`, false)
		if n := w.server.times(); n != 1 {
			t.Errorf("%d fetches for tokens that name a known key or none", n)
		}
	})
}

// TestRemoteKeysOverHTTP fetches from a real server, which sees no redirect
// followed.
func TestRemoteKeysOverHTTP(t *testing.T) {
	var signer crypto.Signer = foreignKey(t)
	var asked, elsewhere atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("/jwks", func(rw http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		rw.Write(keySet(t, publish(t, "k", signer.Public())))
	})
	mux.Handle("/moved", http.RedirectHandler("/elsewhere", http.StatusFound))
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) })
	server := httptest.NewServer(mux)
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for path, ok := range map[string]bool{"/jwks": true, "/moved": false} {
		keys := NewRemoteKeys(server.URL+path, []string{"EdDSA"}, server.Client(), slog.New(slog.DiscardHandler))
		wg.Go(func() { keys.Run(ctx) })
		v := newTestVerifier(t, nil, Issuer{Name: clerkIssuer, Algorithms: []string{"EdDSA"}, Keys: keys.Keyfunc, External: true})
		raw := forge(t, "EdDSA", signer, `{"alg":"EdDSA","kid":"k"}`, edit(ownClaims(), map[string]any{"iss": clerkIssuer, "aud": nil}))
		if _, err := v.Verify(t.Context(), raw); (err == nil) != ok {
			t.Errorf("%s: %v, want accepted %t", path, err, ok)
		}
	}
	if asked.Load() != 1 || elsewhere.Load() != 0 {
		t.Errorf("the set was fetched %d times and a redirect followed %d times, want 1 and 0", asked.Load(), elsewhere.Load())
	}
}
