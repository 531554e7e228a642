package broker

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/mqttlink"
)

func TestDeliverLiveAndLater(t *testing.T) {
	inWorld(t, func(w *world) {
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
