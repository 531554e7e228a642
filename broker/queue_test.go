package broker

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

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

// TestBackfillAfterAcknowledging: the place that a second filter goes back to is
// on disk, though the first filter's was further on.
func TestBackfillAfterAcknowledging(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		if err := ann.send(moment.Note, "n1", "x"); err != nil {
			t.Fatal(err)
		}
		ann.sendN(t, 0, 2)
		ben := w.connect("ben", nil)
		for _, kind := range []moment.Kind{moment.Photo, moment.Note} {
			if err := ben.Subscribe(t.Context(), mqttlink.Subscription{Filter: moment.KindFilter(w.pair.ID, kind, "ann"), QoS: 1, Backfill: "all"}); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
			ben.setHold(true) // from the note on
		}
		ben.end()
		ann.end()
		w.restart()
		ben = w.connect("ben", nil)
		defer ben.end()
		settle(time.Second)
		if diff := cmp.Diff([]string{"pairs/" + w.pair.ID + "/notes/ann/n1"}, ben.topics()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
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

// TestNoPubackBeforeTheDisk: the answer waits for the ledger's.
func TestNoPubackBeforeTheDisk(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		stored := make(chan struct{})
		w.set(func() { w.onStored = func() { <-stored } })
		ann := w.connect("ann", nil)
		defer ann.end()
		answered := make(chan error, 1)
		go func() { answered <- ann.send(moment.Photo, "p", "x") }()
		settle(10 * time.Second)
		select {
		case err := <-answered:
			t.Errorf("answered with %v before the ledger was", err)
		default:
		}
		close(stored)
		if err := <-answered; err != nil {
			t.Error(err)
		}
	})
}

// TestNoLocal: a filter with No Local does not bring back what its own client
// published, durable or not.
func TestNoLocal(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := func(noLocal bool) func(c *mqttlink.Config) {
			return func(c *mqttlink.Config) {
				c.Subscriptions = []mqttlink.Subscription{
					{Filter: "pairs/" + w.pair.ID + "/photos/#", QoS: 1, NoLocal: noLocal},
					{Filter: "pairs/" + w.pair.ID + "/live/#", NoLocal: noLocal},
				}
			}
		}
		ann, ben := w.connect("ann", all(true)), w.connect("ben", all(false))
		defer ann.end()
		defer ben.end()
		for _, p := range []*peer{ann, ben} {
			p.sendN(t, 0, 1)
			if err := p.Publish(t.Context(), mqttlink.Publish{Topic: moment.LiveTopic(w.pair.ID, p.user, "x"), Payload: []byte("x"), QoS: 1}); err != nil {
				t.Fatal(err)
			}
		}
		settle(time.Second)
		if got := ann.topics(); len(got) != 2 || ann.last(moment.LiveTopic(w.pair.ID, "ann", "x")) != nil {
			t.Errorf("ann got %v, want ben's two", got)
		}
		if got := ben.topics(); len(got) != 4 {
			t.Errorf("ben got %v, want his own and ann's", got)
		}
	})
}

// TestUnsubscribeAndCleanStart: what was unsubscribed, or belonged to a session
// that a clean start ended, is not delivered later.
func TestUnsubscribeAndCleanStart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		phone := func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") }
		ben := w.connect("ben", nil)
		filter := w.photosOf("ann")[0]
		if err := ben.Subscribe(t.Context(), filter); err != nil {
			t.Fatal(err)
		}
		if err := ben.Unsubscribe(t.Context(), filter.Filter); err != nil {
			t.Fatal(err)
		}
		ann.sendN(t, 0, 2)
		ben.end()
		ann.end()
		w.restart()
		ann = w.connect("ann", nil)
		defer ann.end()
		ben = w.connect("ben", phone) // subscribes again
		want := ann.sendN(t, 2, 4)
		settle(time.Second)
		ben.end()
		if diff := cmp.Diff(want, ben.topics()); diff != "" {
			t.Errorf("subscribed again (-want +got):\n%s", diff)
		}
		ann.sendN(t, 4, 6)
		ben = w.connect("ben", func(c *mqttlink.Config) { phone(c); c.CleanStart = true })
		defer ben.end()
		settle(time.Second)
		if got := ben.topics(); len(got) > 0 {
			t.Errorf("after a clean start: %v", got)
		}
	})
}

// TestFilterStartsWhereItWasSubscribed, also where the session has not come
// that far in the log yet.
func TestFilterStartsWhereItWasSubscribed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		w.hold = true
		ben := w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") })
		defer ben.end()
		want := ann.sendN(t, 0, 20) // more than the window
		note := func(id string) {
			if err := ann.send(moment.Note, id, id); err != nil {
				t.Fatal(err)
			}
		}
		note("before")
		if err := ben.Subscribe(t.Context(), mqttlink.Subscription{Filter: moment.KindFilter(w.pair.ID, moment.Note, "ann"), QoS: 1}); err != nil {
			t.Fatal(err)
		}
		note("after")
		ben.mu.Lock()
		ben.hold = false
		for _, m := range ben.got {
			m.Ack()
		}
		ben.mu.Unlock()
		settle(time.Second)
		if diff := cmp.Diff(append(want, "pairs/"+w.pair.ID+"/notes/ann/after"), ben.topics()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestMessageExpiry: what has expired (MQTT 5, section 3.3.2.3.3) is passed
// over, what follows is delivered.
func TestMessageExpiry(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		phone := func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") }
		w.connect("ben", phone).end()
		c := w.raw()
		defer c.Close()
		c.Write(w.connectBytes(t, "ann", "x", nil))
		c.Write(encode(t, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 5,
			PacketID: 1, TopicName: "pairs/" + w.pair.ID + "/photos/ann/short", Payload: []byte("x"),
			Properties: packets.Properties{MessageExpiryInterval: 60},
		}))
		ann := w.connect("ann", nil)
		defer ann.end()
		settle(time.Second)
		want := ann.sendN(t, 0, 1)
		settle(2 * time.Minute)
		ben := w.connect("ben", phone)
		defer ben.end()
		settle(time.Second)
		if diff := cmp.Diff(want, ben.topics()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
