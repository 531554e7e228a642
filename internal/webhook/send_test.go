package webhook

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pairsync/internal/config"
	"pairsync/internal/moment"
)

// TestBackendDown has the backend away for hours: every event arrives when it
// is back, what has become untrue does not, and one event covers what came for
// a recipient meanwhile.
func TestBackendDown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.backend.refuse(true)
		var ids []string
		for range 6 {
			ids = append(ids, w.photo("ann"))
			w.photo("ben")
			settle(30 * time.Minute)
		}
		w.receipt(ids[0], moment.StatusStored, "frame1")
		settle(time.Minute)
		leave := w.app("ann", true) // ann has fetched hers: her phone needs no push
		settle(time.Minute)
		leave()
		w.crash()
		w.backend.expect()
		w.backend.refuse(false)
		settle(7 * time.Hour) // the longest wait between two tries
		got := w.backend.expect(MomentDelivered, MomentQueued, MomentQueued)
		var counts []float64
		for _, r := range got {
			if r.Type != MomentQueued {
				continue
			}
			if r.Data["recipient"] != "ben" {
				t.Errorf("told of %v, who has everything", r.Data["recipient"])
			}
			counts = append(counts, r.Data["count"].(float64))
		}
		if !slices.Equal(counts, []float64{1, 5}) {
			t.Errorf("moment.queued counted %v, want the first photo and then the other five", counts)
		}
	})
}

// TestNotSentWhileThere: an event that waited for the backend is not sent while
// the recipient's app is there and taking what it is about.
func TestNotSentWhileThere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.backend.refuse(true)
		w.photo("ann")
		settle(time.Minute)
		leave := w.app("ben", false)
		w.backend.refuse(false)
		settle(time.Hour)
		w.backend.expect()
		leave()
		settle(time.Minute)
		w.backend.expect(MomentQueued)
	})
}

// TestTries checks the times of tries, over a restart, and the end of them.
func TestTries(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stop()
		w.cfg.GiveUp = time.Hour
		w.start()
		w.backend.status(http.StatusInternalServerError)
		began := time.Now()
		w.hooks.Expired(w.pair.ID, 1)
		settle(time.Minute)
		w.stop()
		w.start()
		settle(6 * time.Hour)
		tries := w.backend.all()
		want := []time.Duration{0, 5 * time.Second, 15 * time.Second, 45 * time.Second, 135 * time.Second, 405 * time.Second, 1215 * time.Second, 3645 * time.Second}
		if len(tries) != len(want) {
			t.Fatalf("%d tries, want %d", len(tries), len(want))
		}
		last := began
		for i, r := range tries {
			if r.id != tries[0].id {
				t.Errorf("try %d has the id %s, want %s", i, r.id, tries[0].id)
			}
			if wait := r.at.Sub(last); wait < want[i]*8/10 || wait > want[i]*12/10+10*time.Millisecond {
				t.Errorf("try %d came after %v, want %v and up to a fifth more or less", i, wait, want[i])
			}
			last = r.at
		}
		if n := len(w.hooks.out.events); n != 0 {
			t.Errorf("%d events are kept after they were given up", n)
		}
	})
}

// TestRetryAfter: the backend is left alone as long as it asks, by every event.
func TestRetryAfter(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.backend.says(func(h http.ResponseWriter, _ request) {
			h.Header().Set("Retry-After", "1800")
			h.WriteHeader(http.StatusServiceUnavailable)
		})
		w.hooks.Expired(w.pair.ID, 1)
		settle(time.Second)
		w.backend.expect(MomentExpired)
		w.hooks.Expired(w.pair.ID, 2)
		settle(29 * time.Minute)
		w.backend.expect()
		w.backend.status(http.StatusOK)
		settle(2 * time.Minute)
		w.backend.expect(MomentExpired, MomentExpired)
	})
	now := time.Date(2026, 11, 23, 6, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, "-1": 0, "soon": 0, "999999999": 24 * time.Hour,
		now.Add(time.Hour).Format(http.TimeFormat):            time.Hour,
		now.Add(-time.Hour).Format(http.TimeFormat):           0,
		now.Add(100 * 24 * time.Hour).Format(http.TimeFormat): 24 * time.Hour,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("Retry-After %q: %v, want %v", text, got, want)
		}
	}
}

// TestGone: after 410 nothing is sent any more, until the next start.
func TestGone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.backend.status(http.StatusGone)
		w.hooks.Expired(w.pair.ID, 1)
		settle(time.Second)
		w.backend.expect(MomentExpired)
		w.photo("ann")
		w.hooks.Expired(w.pair.ID, 2)
		settle(time.Hour)
		w.backend.expect()
		w.backend.status(http.StatusOK)
		w.crash()
		settle(time.Hour)
		w.backend.expect()
		w.hooks.Expired(w.pair.ID, 3)
		settle(time.Second)
		w.backend.expect(MomentExpired)
	})
}

// TestRedirect: an event goes where the configuration says and nowhere else.
func TestRedirect(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.backend.says(func(h http.ResponseWriter, r request) {
			h.Header().Set("Location", "http://elsewhere/other")
			h.WriteHeader(http.StatusPermanentRedirect)
		})
		w.hooks.Expired(w.pair.ID, 1)
		settle(time.Second)
		if got := w.backend.expect(MomentExpired); got[0].path != "/hooks" {
			t.Errorf("sent to %s", got[0].path)
		}
		w.backend.status(http.StatusOK)
		settle(time.Minute)
		w.backend.expect(MomentExpired) // a redirect is a failure: tried again
	})
}

// TestSlowBackend: one that never answers, and one that never stops answering.
func TestSlowBackend(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.backend.says(func(h http.ResponseWriter, _ request) { time.Sleep(time.Hour) })
		w.hooks.Expired(w.pair.ID, 1)
		settle(14 * time.Second)
		w.backend.expect(MomentExpired)
		w.backend.says(func(h http.ResponseWriter, _ request) {
			h.WriteHeader(http.StatusOK)
			for range 1 << 20 {
				if _, err := h.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
			t.Error("the whole endless answer was read")
		})
		settle(time.Minute)
		w.backend.expect(MomentExpired) // 200 is what counts
		settle(2 * time.Hour)
		w.backend.expect()
	})
}

// TestBound: above max_events the oldest go, on disk too.
func TestBound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stop()
		w.cfg.MaxEvents = 3
		w.start()
		w.backend.refuse(true)
		for i := range 5 {
			w.hooks.Expired(w.pair.ID, i+1)
			settle(time.Second)
		}
		w.crash()
		w.backend.refuse(false)
		settle(time.Hour)
		var counts []float64
		for _, r := range w.backend.expect(MomentExpired, MomentExpired, MomentExpired) {
			counts = append(counts, r.Data["count"].(float64))
		}
		slices.Sort(counts)
		if !slices.Equal(counts, []float64{3, 4, 5}) {
			t.Errorf("events %v were kept, want the newest three", counts)
		}
	})
}

// TestSignature is the test vector of the specification's reference libraries.
func TestSignature(t *testing.T) {
	keys, err := parseSecret(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	at := time.Unix(1614265330, 0)
	body := []byte(`{"test": 2432232314}`)
	sign(h, keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", at, body)
	if got, want := h.Get("webhook-signature"), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
	if err := verify(testSecret, h, body, at); err != nil {
		t.Error(err)
	}
	other := "whsec_" + strings.Repeat("AAAA", 8)
	if verify(other, h, body, at) == nil {
		t.Error("another secret fits")
	}
	if verify(testSecret, h, []byte(`{"test": 1}`), at) == nil {
		t.Error("another body fits")
	}
	// While the backend goes over to a new secret, both fit.
	both, err := parseSecret(other + "\n" + testSecret + "\n")
	if err != nil {
		t.Fatal(err)
	}
	sign(h, both, "x", at, body)
	if err := errors.Join(verify(testSecret, h, body, at), verify(other, h, body, at)); err != nil {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
	good := Default()
	good.URL, good.Secret = "https://backend.example/hooks", config.NewSecret(testSecret)
	if err := good.Validate(); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for want, change := range map[string]func(*Config){
		"url: must begin":                   func(c *Config) { c.URL = "backend.example" },
		"url: must not hold a password":     func(c *Config) { c.URL = "https://a:hunter2@b" },
		"url: is not a URL":                 func(c *Config) { c.URL = "https://hunter2\x7f" },
		"secret_file: must be set":          func(c *Config) { c.Secret = config.Secret{} },
		"secret_file: must begin with":      func(c *Config) { c.Secret = config.NewSecret("hunter2") },
		"secret_file: what follows":         func(c *Config) { c.Secret = config.NewSecret("whsec_hunter2") },
		"secret_file: has 3 bytes":          func(c *Config) { c.Secret = config.NewSecret("whsec_AAAA") },
		"secret_file: holds 5":              func(c *Config) { c.Secret = config.NewSecret(strings.Repeat(testSecret+" ", 5)) },
		"queued_after: 0s is shorter":       func(c *Config) { c.QueuedAfter = 0 },
		"max_events: must be at least":      func(c *Config) { c.MaxEvents = 0 },
		"give_up: 500ms is shorter than 1s": func(c *Config) { c.GiveUp = 500 * time.Millisecond },
	} {
		bad := good
		change(&bad)
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
