package broker

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/moment"
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

// TestBackfill: a filter delivers what was there before it only where backfill
// says so, and that counts where the session has no place in the log yet.
func TestBackfill(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		want := ann.sendN(t, 0, 5)
		sub := w.photosOf("ann")
		for _, tc := range []struct {
			name, backfill string
			want           []string
		}{
			{"none", "", want[5:]},
			{"all", "all", want},
			{"two", "2", want[3:]},
			{"more than there are", "50", want},
			{"nothing", "0", want[5:]},
		} {
			p := w.connect("ben", func(c *mqttlink.Config) {
				c.ClientID = "b-" + tc.backfill
				sub[0].Backfill = tc.backfill
				c.Subscriptions = sub
			})
			settle(time.Second)
			p.end()
			if diff := cmp.Diff(tc.want, append([]string{}, p.topics()...)); diff != "" && len(tc.want)+len(p.topics()) > 0 {
				t.Errorf("backfill %s (-want +got):\n%s", tc.name, diff)
			}
			again := w.connect("ben", func(c *mqttlink.Config) { c.ClientID = "b-" + tc.backfill; c.Subscriptions = sub })
			settle(time.Second)
			again.end()
			if got := again.topics(); len(got) > 0 {
				t.Errorf("backfill %s counted again at the next connect: %v", tc.name, got)
			}
		}
		// Filters of one new session, one after the other.
		p := w.connect("ben", func(c *mqttlink.Config) { c.ClientID = "b-steps" })
		defer p.end()
		for _, kind := range []moment.Kind{moment.Note, moment.Photo} {
			if err := p.Subscribe(t.Context(), mqttlink.Subscription{Filter: moment.KindFilter(w.pair.ID, kind, "ann"), QoS: 1, Backfill: "all"}); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
		}
		if diff := cmp.Diff(want, p.topics()); diff != "" {
			t.Errorf("a second SUBSCRIBE with backfill (-want +got):\n%s", diff)
		}
	})
}
