package broker

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/mqttlink"
)

func TestDeliverLiveAndLater(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ben := w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") })
		ann := w.connect("ann", nil)
		want := ann.sendN(t, 0, 3)
		settle(time.Second)
		if diff := cmp.Diff(want, ben.topics()); diff != "" {
			t.Fatalf("live (-want +got):\n%s", diff)
		}
		ben.end()
		want = ann.sendN(t, 3, 40)
		ann.end()
		w.restart()
		settle(time.Hour)
		ben = w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") })
		settle(time.Second)
		if diff := cmp.Diff(want, ben.topics()); diff != "" {
			t.Fatalf("after days and a restart (-want +got):\n%s", diff)
		}
		ben.end()
	})
}

func TestQueueSurvivesDisconnectsInTheMiddle(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		hold := func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") }
		ben := w.connect("ben", hold)
		ben.mu.Lock()
		ben.hold = true
		ben.mu.Unlock()
		want := ann.sendN(t, 0, 40)
		settle(time.Second)
		if got := ben.topics(); len(got) != 16 {
			t.Fatalf("a client that does not acknowledge got %d moments, want the window of 16", len(got))
		}
		ids := map[string]bool{}
		ben.mu.Lock()
		// Out of order on purpose: 3, 1, 2, and never 0.
		for _, i := range []int{3, 1, 2} {
			ben.got[i].Ack()
		}
		ben.hold = false
		ben.got = nil
		ben.mu.Unlock()
		ben.Bounce()
		settle(2 * time.Second)
		ben.mu.Lock()
		for i, m := range ben.got {
			if i < 16 != m.Duplicate {
				t.Errorf("delivery %d of %s: DUP %v", i, m.Topic, m.Duplicate)
			}
			ids[m.Topic] = true
		}
		ben.mu.Unlock()
		if diff := cmp.Diff(want, ben.topics()); diff != "" {
			t.Fatalf("after the reconnect (-want +got):\n%s", diff)
		}
		ben.end()
		w.restart()
		ben = w.connect("ben", hold)
		settle(time.Second)
		if got := ben.topics(); len(got) != 0 {
			t.Fatalf("acknowledged moments came again: %v", got)
		}
		ann.end()
		ben.end()
	})
}
