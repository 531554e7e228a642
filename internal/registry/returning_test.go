package registry

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/kv/kvtest"
	"pairsync/internal/token"
)

func TestSeeSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, store := newTest(t)
		start := time.Now()
		ann := token.Principal{User: "ann", Issuer: "clerk", ID: "j1", Session: "s1", External: true}
		must(t, r.SeeSession(t.Context(), ann, time.Hour))
		later := ann
		later.ID = "j2"
		noSession := token.Principal{User: "ann", Issuer: "clerk", ID: "j9", External: true}
		must(t, r.SeeSession(t.Context(), noSession, time.Hour))
		time.Sleep(10 * time.Minute)
		for name, open := range map[string]*Registry{"running": r, "reopened": openTest(t, store)} {
			for what, p := range map[string]token.Principal{"the token": ann, "another of its session": later, "one without a session": noSession} {
				if got := open.SessionSeen(p); !got.Equal(start) {
					t.Errorf("%s (%s): seen at %v, want %v", what, name, got, start)
				}
			}
			for what, p := range map[string]token.Principal{
				"another session": {User: "ann", Issuer: "clerk", Session: "s2"},
				"another user":    {User: "ben", Issuer: "clerk", Session: "s1"},
				"another issuer":  {User: "ann", Issuer: "other", Session: "s1"},
				"no id at all":    {User: "ann", Issuer: "clerk"},
			} {
				if got := open.SessionSeen(p); !got.IsZero() {
					t.Errorf("%s (%s): seen at %v, want never", what, name, got)
				}
			}
		}
		must(t, r.SeeSession(t.Context(), ann, time.Hour))
		if got := r.SessionSeen(ann); !got.Equal(start.Add(10 * time.Minute)) {
			t.Errorf("seen again at %v, want ten minutes after %v", got, start)
		}
	})
}

// TestSeeSessionWrites: a repeat within a minute, and nothing to remember, cost
// no write; a store that fails is told.
func TestSeeSessionWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, store := newTest(t)
		ann := token.Principal{User: "ann", Issuer: "clerk", Session: "s1", External: true}
		must(t, r.SeeSession(t.Context(), ann, time.Hour))
		broken := errors.New("disk full")
		store.Break(broken)
		time.Sleep(seenAgain - 1)
		must(t, r.SeeSession(t.Context(), ann, time.Hour))
		must(t, r.SeeSession(t.Context(), token.Principal{User: "ann", Issuer: "clerk"}, time.Hour))
		must(t, r.SeeSession(t.Context(), token.Principal{User: "ann", Issuer: "clerk", ID: "x"}, 0))
		time.Sleep(1)
		if err := r.SeeSession(t.Context(), ann, time.Hour); !errors.Is(err, broken) {
			t.Errorf("SeeSession on a full disk: %v", err)
		}
		if age := time.Since(r.SessionSeen(ann)); age != seenAgain {
			t.Errorf("seen %v ago, want the time that is on disk", age)
		}
		store.Break(nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.SeeSession(ctx, ann, time.Hour); !errors.Is(err, context.Canceled) {
			t.Errorf("SeeSession with an ended context: %v", err)
		}
	})
}

func TestSessionsArePruned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(kvtest.Memory)
		r := openTest(t, store)
		see := func(i int) {
			must(t, r.SeeSession(t.Context(), token.Principal{User: "ann", Issuer: "clerk", Session: fmt.Sprint("s", i)}, time.Hour))
		}
		for i := range 2*maxPruned + 1 {
			see(i)
		}
		time.Sleep(time.Hour)
		see(1000)
		if got, want := len(keysOf(t, store, keySession)), 2*maxPruned+2; got != want {
			t.Fatalf("%d records within the time, want %d", got, want)
		}
		time.Sleep(time.Second)
		see(1001)
		if got, want := len(keysOf(t, store, keySession)), maxPruned+3; got != want || len(r.sessions) != want {
			t.Errorf("%d records on disk and %d in memory after one more, want %d", got, len(r.sessions), want)
		}
		openTest(t, store)
		if got := len(keysOf(t, store, keySession)); got != 2 {
			t.Errorf("%d records after Open, want the 2 that count", got)
		}
	})
}
