package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// Photos that were waiting come before the answers to SUBSCRIBE. Connecting
// again would fetch the same ones from their start, for ever.
func TestABacklogOnASlowLinkIsNotADeadBroker(t *testing.T) {
	b := newFakeBroker()
	b.deaf, b.creeping = true, true
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		time.Sleep(10 * time.Minute)
		b.get(func(b *fakeBroker) {
			if len(b.connects) != 1 {
				t.Errorf("%d connects while bytes moved, want 1", len(b.connects))
			}
		})
		b.set(func(b *fakeBroker) { b.creeping = false })
		time.Sleep(10 * time.Minute)
		b.get(func(b *fakeBroker) {
			if len(b.connects) == 1 {
				t.Error("a broker that is silent for ten minutes was not left")
			}
		})
	})
}

// The broker keeps a session from its CONNACK on; what a cut left half set up
// would never be given what the ledger holds.
func TestSessionCutWhileItIsSetUpStartsClean(t *testing.T) {
	b := newFakeBroker()
	b.deaf = true
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		time.Sleep(time.Second)
		b.set(func(b *fakeBroker) { b.away = true })
		synctest.Wait()
		b.set(func(b *fakeBroker) { b.away, b.deaf = false, false })
		awaitView(t, a, "ready", ready)
		b.get(func(b *fakeBroker) {
			if got := b.connects[len(b.connects)-1]; got != "clean" {
				t.Errorf("connected %v, want a new session at last", b.connects)
			}
		})
	})
}

// A broker that no longer grants what the frame needs must not see it come back
// every second.
func TestRefusedSubscriptionsAreAskedForLessAndLess(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		b.set(func(b *fakeBroker) { b.unsubscribable = moment.KindFilter(testPair, moment.Photo, testPartner) })
		b.cut()
		time.Sleep(time.Hour)
		b.get(func(b *fakeBroker) {
			if n := len(b.connects); n < 30 || n > 90 {
				t.Errorf("%d connects in an hour, want about one a minute", n)
			}
		})
		b.set(func(b *fakeBroker) { b.unsubscribable = "" })
		time.Sleep(2 * time.Minute)
		if v, _ := a.board.get(); !v.ready {
			t.Errorf("granted again, and still %q", v.offline)
		}
	})
}

// The acknowledgement of a pairing event may wait behind a photo on a slow link.
func TestAPairingEventThatComesAgainChangesNothing(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		bounces := func(event mqttlink.Message) (n int) {
			event.Topic = moment.EventsTopic(testUser)
			l := b.current()
			l.calls <- func() { l.cfg.Receive(&event) }
			time.Sleep(time.Minute)
			b.get(func(b *fakeBroker) { n = b.bounces })
			return n
		}
		if got := bounces(mqttlink.Message{}); got != 1 {
			t.Fatalf("a new event: %d reconnects, want 1", got)
		}
		if got := bounces(mqttlink.Message{Duplicate: true}); got != 1 {
			t.Errorf("the same again: %d reconnects, want none more", got-1)
		}
	})
}

// What still comes in has nobody to take it when the store has failed.
func TestSessionEndsWithMessagesOnTheirWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBroker()
		a := newTestAgent(t, b, testConfig(t), deviceClaims)
		ended := make(chan error, 1)
		go func() { ended <- a.runSession(t.Context()) }()
		awaitView(t, a, "ready", ready)
		resume := make(chan struct{}) // the store's queue is full until then
		err := a.store.db.Submit(t.Context(), 1<<30, func(*badgerdb.Tx) error { <-resume; return nil }, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		for range 5 * receiveMaximum { // more than any queue holds
			b.deliver(photoTopic(testPartner, "m"), testJPEG(t, 1))
		}
		synctest.Wait()
		go a.store.close()
		synctest.Wait()
		close(resume)
		if err := <-ended; !errors.Is(err, badgerdb.ErrClosed) || errors.Is(err, context.Canceled) {
			t.Errorf("session ended with %v, want that the store is closed", err)
		}
	})
}
