package broker

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// TestAppLeavesWhilePairIsMade: the session gets its filters though the
// connection that wanted to hear of them ends in the middle.
func TestAppLeavesWhilePairIsMade(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		app := w.asApp("cat", nil)
		w.slow("session/cat/app", 2*time.Second)
		if _, err := w.reg.CreatePair(t.Context(), "cat", "dan"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		app.end()
		settle(10 * time.Second)
		if err := w.broker.AwaitChanges(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// TestExpiryCountsFromTheLastDisconnect: a session that was connected when the
// daemon was killed has not been offline since it was offline the last time.
func TestExpiryCountsFromTheLastDisconnect(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		frame := func(c *mqttlink.Config) {
			c.ClientID, c.SessionExpiry, c.Subscriptions = "frame", time.Hour, w.photosOf("ann")
			c.MinBackoff, c.MaxBackoff = 24*time.Hour, 24*time.Hour
		}
		w.connect("ben", frame).end()
		settle(10 * time.Second) // that it is offline is on disk
		ben := w.connect("ben", frame)
		settle(3 * time.Hour)
		w.crash(ben.end)
		settle(time.Minute)
		if got := w.sessionIDs(); !strings.Contains(got, "ben/frame") {
			t.Errorf("sessions %s, want the frame's: it was connected a minute ago", got)
		}
	})
}

// TestConnectWhileItsSessionEnds: a client that comes back in the very moment
// in which its session expires gets a new one, and that one is kept.
func TestConnectWhileItsSessionEnds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		frame := func(c *mqttlink.Config) {
			c.ClientID, c.SessionExpiry, c.Subscriptions = "frame", time.Hour, w.photosOf("ann")
		}
		w.connect("ben", frame).end()
		settle(10 * time.Second)
		ending := make(chan struct{})
		w.apply(func(ops []kv.Op) error {
			if ops[0].Key == "session/ben/frame" && ops[0].Delete {
				close(ending)
				time.Sleep(2 * time.Second)
			}
			return nil
		})
		<-ending
		ben := w.connect("ben", frame)
		settle(10 * time.Second)
		w.apply(nil)
		ben.end()
		want := ann.sendN(t, 0, 3)
		ann.end()
		w.restart()
		ben = w.connect("ben", frame)
		defer ben.end()
		settle(time.Second)
		if diff := cmp.Diff(want, ben.topics()); diff != "" {
			t.Errorf("the new session's queue (-want +got):\n%s", diff)
		}
	})
}

// TestRevokedWhileItConnects: nothing stays locked, and the device is not let in.
func TestRevokedWhileItConnects(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		d, err := w.reg.AddDevice(t.Context(), "cat", "kitchen")
		if err != nil {
			t.Fatal(err)
		}
		raw := w.token(token.Principal{User: "cat", Device: d.ID, Role: token.RoleDevice})
		w.apply(func(ops []kv.Op) error {
			if ops[0].Key != "session/cat/"+d.ID || ops[0].Delete {
				return nil
			}
			if _, err := w.reg.RevokeDevice(t.Context(), d.ID); err != nil {
				t.Error(err)
			}
			for range 100_000 { // let Run end the session, if it does not wait
				runtime.Gosched()
			}
			return nil
		})
		p := w.connect("cat", withToken(raw))
		defer p.end()
		settle(10 * time.Second)
		if !w.broker.mu.TryLock() {
			t.Fatal("the broker is locked for good")
		}
		w.broker.mu.Unlock()
		if w.broker.Connections() != 0 || strings.Contains(w.sessionIDs(), d.ID) {
			t.Errorf("connections %d, sessions %s; want nothing of the revoked device", w.broker.Connections(), w.sessionIDs())
		}
	})
}

// TestRefusedSessionIsForgotten: a session that could not be stored is not
// taken for one that is, when its client tries again.
func TestRefusedSessionIsForgotten(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.apply(func(ops []kv.Op) error {
			if strings.HasPrefix(ops[0].Key, "session/cat/") {
				return ledger.ErrFull
			}
			return nil
		})
		if got := w.refusedWith("cat", func(*mqttlink.Config) {}); got.Code != 0x89 || !strings.Contains(got.Reason, "full") {
			t.Errorf("refused with 0x%02X %q, want 0x89 storage full", got.Code, got.Reason)
		}
		if got := w.sessionIDs(); strings.Contains(got, "cat/") {
			t.Errorf("sessions %s, want none of the refused", got)
		}
	})
}

// TestTrimWaitsForThePair: before both users have their app sessions nothing
// of the pair is trimmed: the partner has not even begun to follow it.
func TestTrimWaitsForThePair(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.apply(func(ops []kv.Op) error {
			if ops[0].Key == "session/cat/app" {
				return ledger.ErrFull
			}
			return nil
		})
		pair, err := w.reg.CreatePair(t.Context(), "cat", "dan")
		if err != nil {
			t.Fatal(err)
		}
		w.pair = pair
		cat := w.connect("cat", nil)
		defer cat.end()
		if err := cat.send(moment.Note, "n1", "hello"); err != nil {
			t.Fatal(err)
		}
		settle(20 * time.Second)
		w.apply(nil)
		settle(20 * time.Second)
		dan := w.asApp("dan", nil)
		defer dan.end()
		settle(time.Second)
		if dan.last("pairs/"+pair.ID+"/notes/cat/n1") == nil {
			t.Errorf("dan got %v, want cat's note", dan.topics())
		}
	})
}

// TestFullEventLogStopsNobodyElse: a user whose log of pairing events is full
// keeps no other pair from being made.
func TestFullEventLogStopsNobodyElse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stop()
		w.quotas = badgerledger.Config{MaxEntries: 4}
		w.start()
		for range 4 {
			if _, err := w.reg.RemovePair(t.Context(), w.pair.ID); err != nil {
				t.Fatal(err)
			}
			pair, err := w.reg.CreatePair(t.Context(), "ann", "ben")
			if err != nil {
				t.Fatal(err)
			}
			w.pair = pair
		}
		if _, err := w.reg.CreatePair(t.Context(), "cat", "dan"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := w.broker.AwaitChanges(ctx); err != nil {
			t.Fatalf("changes are not carried out: %v", err)
		}
		if got := w.sessionIDs(); !strings.Contains(got, "cat/app") {
			t.Errorf("sessions %s, want cat/app", got)
		}
	})
}

// TestPairRemovedInACrash: the partner learns of the end though the daemon
// died between the registry's change and what follows from it.
func TestPairRemovedInACrash(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		settle(time.Second)
		w.broker.unwatch() // died before it heard of it
		if _, err := w.reg.RemovePair(t.Context(), w.pair.ID); err != nil {
			t.Fatal(err)
		}
		w.restart()
		ben := w.asApp("ben", nil)
		defer ben.end()
		settle(time.Second)
		ben.mu.Lock()
		defer ben.mu.Unlock()
		if !slices.ContainsFunc(ben.got, func(m *mqttlink.Message) bool {
			return strings.Contains(string(m.Payload), "partner_disconnected")
		}) {
			t.Errorf("ben got %d messages, none of them partner_disconnected", len(ben.got))
		}
	})
}

// TestDeleteThatFails is not acknowledged: the sender tries again.
func TestDeleteThatFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		ann.sendN(t, 0, 1)
		w.set(func() { w.onRemove = func() error { return ledger.ErrUnhealthy } })
		var re *mqttlink.ReasonError
		if err := ann.send(moment.Delete, "p000", ""); !errors.As(err, &re) || re.Code != 0x83 {
			t.Errorf("a delete that was not carried out: %v, want 0x83", err)
		}
		w.set(func() { w.onRemove = nil })
		if err := ann.send(moment.Delete, "p000", ""); err != nil {
			t.Error(err)
		}
		if st, err := w.ledger.Stat(t.Context(), ledger.PairLog(w.pair.ID)); err != nil || st.Bytes != 0 {
			t.Errorf("%d bytes are left (%v)", st.Bytes, err)
		}
	})
}

// TestSubscriptionSurvivesACrash: SUBACK says that it is on disk.
func TestSubscriptionSurvivesACrash(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ben := w.connect("ben", nil)
		if err := ben.Subscribe(t.Context(), w.photosOf("ann")[0]); err != nil {
			t.Fatal(err)
		}
		w.crash(ben.end)
		ann := w.connect("ann", nil)
		defer ann.end()
		want := ann.sendN(t, 0, 2)
		ben = w.connect("ben", nil) // and does not subscribe again
		defer ben.end()
		settle(time.Second)
		if diff := cmp.Diff(want, ben.topics()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestTooManySessions: the one that has been offline longest makes room, and
// never the app's.
func TestTooManySessions(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stop()
		w.cfg.UserSessions = 3
		w.start()
		for _, id := range []string{"a", "b", "c"} {
			w.connect("ben", func(c *mqttlink.Config) { c.ClientID = id }).end()
			settle(time.Minute)
		}
		if got, want := w.sessionIDs(), "ann/app ben/app ben/b ben/c"; got != want {
			t.Errorf("sessions %s, want %s", got, want)
		}
	})
}
