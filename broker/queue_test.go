package broker

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

func (p *peer) setHold(hold bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold = hold
}

// TestSmallerWindowAtReconnect: what was in flight is redelivered within the
// Receive Maximum of the new connection (MQTT 5, section 4.9).
func TestSmallerWindowAtReconnect(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		phone := func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") }
		w.hold = true
		ben := w.connect("ben", phone)
		w.hold = false
		want := ann.sendN(t, 0, 20)
		settle(time.Second)
		ben.end()
		small := func(c *mqttlink.Config) {
			phone(c)
			c.ReceiveMaximum = 3
		}
		w.hold = true
		ben = w.connect("ben", small)
		defer ben.end()
		settle(10 * time.Second)
		if diff := cmp.Diff(want[:3], ben.topics()); diff != "" {
			t.Fatalf("without a PUBACK (-want +got):\n%s", diff)
		}
		ben.mu.Lock()
		ben.hold = false
		for _, m := range ben.got {
			m.Ack()
		}
		ben.mu.Unlock()
		settle(time.Minute)
		if diff := cmp.Diff(want, ben.topics()); diff != "" {
			t.Errorf("in the end (-want +got):\n%s", diff)
		}
	})
}

// TestBackfillWhileUnacknowledged: a second filter of a new session starts
// where it asks to, though the log was read on for the first already.
func TestBackfillWhileUnacknowledged(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		note := func(id string) string {
			if err := ann.send(moment.Note, id, id); err != nil {
				t.Fatal(err)
			}
			return "pairs/" + w.pair.ID + "/notes/ann/" + id
		}
		photos := ann.sendN(t, 0, 1)
		notes := []string{note("n1"), note("n2")}
		photos = append(photos, ann.sendN(t, 1, 3)...)
		w.hold = true
		ben := w.connect("ben", nil)
		w.hold = false
		for _, kind := range []moment.Kind{moment.Photo, moment.Note} {
			if err := ben.Subscribe(t.Context(), mqttlink.Subscription{Filter: moment.KindFilter(w.pair.ID, kind, "ann"), QoS: 1, Backfill: "all"}); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
		}
		if diff := cmp.Diff(append(photos, notes...), ben.topics()); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		ben.end()
		w.restart()
		ben = w.connect("ben", nil)
		defer ben.end()
		settle(time.Second)
		all := []string{photos[0], notes[0], notes[1], photos[1], photos[2]}
		if diff := cmp.Diff(all, ben.topics()); diff != "" {
			t.Errorf("nothing was acknowledged, after a restart (-want +got):\n%s", diff)
		}
	})
}

// TestQueueWaitsForRights: what a session may not see at the moment stays
// queued; it is not passed over.
func TestQueueWaitsForRights(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		phone := func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") }
		stale := func(c *mqttlink.Config) {
			raw := w.token(token.Principal{User: "ben", Pair: "ended", Role: token.RoleApp})
			c.Token = func(context.Context) (string, error) { return raw, nil }
		}
		w.hold = true
		ben := w.connect("ben", phone)
		w.hold = false
		want := ann.sendN(t, 0, 2) // in flight
		settle(time.Second)
		ben.end()
		want = append(want, ann.sendN(t, 2, 4)...) // queued
		ben = w.connect("ben", stale)
		settle(time.Second)
		if got := ben.topics(); len(got) > 0 {
			t.Errorf("with a token of another pair: got %v", got)
		}
		ben.end()
		ben = w.connect("ben", phone)
		defer ben.end()
		settle(time.Second)
		if diff := cmp.Diff(want, ben.topics()); diff != "" {
			t.Errorf("with the right token (-want +got):\n%s", diff)
		}
	})
}

// TestAdminPublishesIntoPairsOnly: not even an admin makes a log of no pair.
func TestAdminPublishesIntoPairsOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		admin := w.connect("root", withToken(w.token(token.Principal{User: "root", Role: token.RoleAdmin})))
		defer admin.end()
		for topic, ok := range map[string]bool{
			"pairs/" + w.pair.ID + "/photos/ann/a1": true,
			"pairs/" + w.pair.ID + "/photos/eve/a1": false,
			"pairs/nobody/photos/ann/a1":            false,
			"pairs/nobody/live/ann/x":               false,
		} {
			err := admin.Publish(t.Context(), mqttlink.Publish{Topic: topic, Payload: []byte("x"), QoS: 1})
			if (err == nil) != ok {
				t.Errorf("%s: %v, want allowed %v", topic, err, ok)
			}
		}
	})
}

// TestAdminSessionIsApart: a user's client does not come into what an admin of
// the same name left behind.
func TestAdminSessionIsApart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		named := func(role token.Role) func(c *mqttlink.Config) {
			return func(c *mqttlink.Config) {
				c.ClientID = "x"
				withToken(w.token(token.Principal{User: "ann", Role: role}))(c)
			}
		}
		admin := w.connect("ann", func(c *mqttlink.Config) {
			named(token.RoleAdmin)(c)
			c.Subscriptions = []mqttlink.Subscription{{Filter: "ops/#", QoS: 1}}
		})
		admin.setHold(true)
		if err := admin.Publish(t.Context(), mqttlink.Publish{Topic: "ops/secret", Payload: []byte("x"), QoS: 1}); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		admin.end()
		app := w.connect("ann", named(token.RoleApp))
		defer app.end()
		settle(time.Second)
		if got := app.topics(); len(got) > 0 {
			t.Errorf("the app got %v", got)
		}
	})
}
