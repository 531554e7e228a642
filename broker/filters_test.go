package broker

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// TestSubscriptionIdentifiers: a moment that several filters match comes once,
// at the highest QoS, with all their identifiers (MQTT 5, section 3.3.4).
func TestSubscriptionIdentifiers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.wire("ben", "phone", nil)
		root := "pairs/" + w.pair.ID
		for _, sub := range []packets.Subscription{
			{Filter: root + "/#", Qos: 0, Identifier: 300},
			{Filter: root + "/photos/+/+", Qos: 1, Identifier: 2},
			{Filter: root + "/photos/ann/+", Qos: 1},
			{Filter: root + "/photos/ann/p000", Qos: 0, Identifier: 2},
			{Filter: root + "/+/ann/#", Qos: 1, Identifier: 2},
			{Filter: root + "/notes/#", Qos: 1, Identifier: 9},
			{Filter: root + "/live/+/x", Qos: 1, Identifier: 4},
		} {
			c.subscribe(sub)
			c.await(time.Second)
		}
		ann := w.connect("ann", nil)
		defer ann.end()
		ann.sendN(t, 0, 1)
		if err := ann.Publish(t.Context(), mqttlink.Publish{Topic: moment.LiveTopic(w.pair.ID, "ann", "x"), Payload: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		seen := map[string][]int{}
		for _, pk := range c.only(packets.Publish, time.Second) {
			tail := w.tails([]packets.Packet{pk})[0]
			if _, twice := seen[tail]; twice {
				t.Errorf("%s came twice", tail)
			}
			ids := slices.Clone(pk.Properties.SubscriptionIdentifier)
			slices.Sort(ids)
			seen[tail] = ids
			if want := strings.HasPrefix(tail, "photos"); want != (pk.FixedHeader.Qos == 1) {
				t.Errorf("%s came at QoS %d", tail, pk.FixedHeader.Qos)
			}
		}
		delete(seen, "presence/ann")
		want := map[string][]int{"photos/ann/p000": {2, 300}, "live/ann/x": {2, 4, 300}, "newest": {300}}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		c.Close() // a redelivery carries them too
		settle(time.Second)
		c = w.wire("ben", "phone", nil)
		for _, pk := range c.only(packets.Publish, time.Second) {
			if ids := pk.Properties.SubscriptionIdentifier; pk.FixedHeader.Dup && len(ids) != 2 {
				t.Errorf("redelivered with %v, want both", ids)
			}
		}
	})
}

// TestFilters: which topics of the pair's tree a filter brings, live and later.
func TestFilters(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		for _, tc := range []struct {
			filter string
			want   string
		}{
			{"#", "photos/ann/m notes/ann/m deletes/ann/x"},
			{"photos/#", "photos/ann/m"},
			{"photos/+/+", "photos/ann/m"},
			{"+/ann/+", "photos/ann/m notes/ann/m deletes/ann/x"},
			{"+/+/m", "photos/ann/m notes/ann/m"},
			{"+/ann/#", "photos/ann/m notes/ann/m deletes/ann/x"},
			{"notes/ann/m", "notes/ann/m"},
			{"notes/ann/m/#", "notes/ann/m"},
			{"notes/ann", ""},
			{"notes/ben/#", ""},
			{"+", ""},
			{"+/ann", ""},
			{"photos/ann/+/+", ""},
		} {
			c := w.wire("ben", "x", func(pk *packets.Packet) { pk.Connect.Clean = true })
			sub := packets.Subscription{Filter: "pairs/" + w.pair.ID + "/" + tc.filter, Qos: 1, RetainHandling: 2}
			c.subscribe(sub)
			c.await(time.Second)
			if err := ann.send(moment.Photo, "m", "x"); err != nil {
				t.Fatal(err)
			}
			if err := ann.send(moment.Note, "m", "x"); err != nil {
				t.Fatal(err)
			}
			if err := ann.send(moment.Delete, "x", ""); err != nil {
				t.Fatal(err)
			}
			durable := func(pks []packets.Packet) string {
				var out []string
				for _, tail := range w.tails(pks) {
					if first, _, _ := strings.Cut(tail, "/"); moment.Kind(first).InPair() {
						out = append(out, tail)
					}
				}
				return strings.Join(out, " ")
			}
			if got := durable(c.only(packets.Publish, time.Second)); got != tc.want {
				t.Errorf("%s live: got %q, want %q", tc.filter, got, tc.want)
			}
			c.Close()
			settle(time.Second)
			c = w.wire("ben", "x", nil)
			if got := durable(c.only(packets.Publish, time.Second)); got != tc.want {
				t.Errorf("%s later: got %q, want %q", tc.filter, got, tc.want)
			}
			c.Close()
			if _, err := w.reg.RemovePair(t.Context(), w.pair.ID); err != nil { // a new log
				t.Fatal(err)
			}
			pair, err := w.reg.CreatePair(t.Context(), "ann", "ben")
			if err != nil {
				t.Fatal(err)
			}
			w.pair = pair
			settle(time.Second)
		}
	})
}

// TestGrantedQoS: 2 is granted as 1 (MQTT 5, section 3.8.4), to 3.1.1 too.
func TestGrantedQoS(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for name, change := range map[string]func(*packets.Packet){"5": nil, "311": v3(false)} {
			c := w.wire("ben", name, change)
			pk := c.connack()
			if p := pk.Properties; change == nil && (!p.MaximumQosFlag || p.MaximumQos != 1) {
				t.Errorf("CONNACK says Maximum QoS %d (%v), want 1", p.MaximumQos, p.MaximumQosFlag)
			}
			var filters []packets.Subscription
			for qos, kind := range []string{"photos", "notes", "reactions"} {
				filters = append(filters, packets.Subscription{Filter: "pairs/" + w.pair.ID + "/" + kind + "/#", Qos: byte(qos)})
			}
			c.subscribe(filters...)
			got := c.only(packets.Suback, time.Second)
			if len(got) != 1 || !slices.Equal(got[0].ReasonCodes, []byte{0, 1, 1}) {
				t.Errorf("%s: got %+v, want QoS 0, 1, 1", name, got)
			}
		}
	})
}

// TestMixedQoS: filters of QoS 0 and 1 on one session; order is the log's, and
// only QoS 1 waits for PUBACKs.
func TestMixedQoS(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		c := w.wire("ben", "phone", nil)
		c.subscribe(packets.Subscription{Filter: w.photosOf("ann")[0].Filter, Qos: 1},
			packets.Subscription{Filter: "pairs/" + w.pair.ID + "/notes/#", Qos: 0})
		c.await(time.Second)
		send := func(kind moment.Kind, id string) {
			if err := ann.send(kind, id, "x"); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range []string{"1", "2"} {
			send(moment.Note, id)
			send(moment.Photo, id)
		}
		want := []string{"nn/1 qos0 id0", "nn/1 qos1 id1", "nn/2 qos0 id0", "nn/2 qos1 id2"}
		if diff := cmp.Diff(want, brief(c.await(time.Second))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		c.answer(packets.Puback, 1)
		c.answer(packets.Puback, 2)
		settle(time.Second)
		c.Close()
		settle(time.Minute)
		w.restart()
		c = w.wire("ben", "phone", nil)
		if got := c.only(packets.Publish, time.Second); len(got) > 0 {
			t.Errorf("again: %v", brief(got))
		}
	})
}

// TestQoS0IsNotQueued: what comes while a session of QoS 0 alone is offline is
// not for it, before and after a restart; what comes afterwards is.
func TestQoS0IsNotQueued(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		c := w.wire("ben", "phone", nil)
		c.subscribe(packets.Subscription{Filter: w.photosOf("ann")[0].Filter})
		c.await(time.Second)
		ann.sendN(t, 0, 1)
		if got := c.await(time.Second); len(got) != 1 {
			t.Errorf("got %d live, want 1", len(got))
		}
		for i := range 2 {
			c.Close()
			settle(time.Second)
			ann.sendN(t, 1+i, 2+i)
			if i > 0 {
				ann.end()
				w.restart()
				ann = w.connect("ann", nil)
			}
			c = w.wire("ben", "phone", nil)
			if got := c.only(packets.Publish, time.Second); len(got) > 0 {
				t.Errorf("got %v from while it was offline", brief(got))
			}
		}
		ann.sendN(t, 5, 6)
		if got := c.only(packets.Publish, time.Second); len(got) != 1 {
			t.Errorf("got %d live after the restart, want 1", len(got))
		}
		ann.end()
	})
}

// TestNoLocalByClient: No Local keeps back what the same client published (MQTT
// 5, section 3.8.3.1), not what another of the same user did, also where it is
// delivered later.
func TestNoLocalByClient(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		sub := []packets.Subscription{
			{Filter: "pairs/" + w.pair.ID + "/notes/#", Qos: 1, NoLocal: true},
			{Filter: "users/ann/#", Qos: 1, NoLocal: true},
			{Filter: "pairs/" + w.pair.ID + "/live/#", NoLocal: true},
		}
		settle(time.Second) // the pairing event is told
		phone, tablet := w.wire("ann", "phone", nil), w.wire("ann", "tablet", nil)
		phone.subscribe(sub...)
		phone.await(time.Second)
		note := func(c *packetClient, id, device string) {
			c.publish(packets.Packet{
				FixedHeader: packets.FixedHeader{Qos: 1}, PacketID: 1, TopicName: "pairs/" + w.pair.ID + "/notes/ann/" + id, Payload: []byte("x"),
				Properties: packets.Properties{User: []packets.UserProperty{{Key: "device", Val: device}}},
			})
			c.publish(packets.Packet{TopicName: moment.LiveTopic(w.pair.ID, "ann", id)})
			settle(time.Second)
		}
		note(phone, "a", "")
		note(phone, "b", "other")
		note(tablet, "c", "")
		note(tablet, "d", "phone")
		live := w.tails(phone.only(packets.Publish, time.Second))
		slices.Sort(live)
		if diff := cmp.Diff([]string{"live/ann/c", "live/ann/d", "notes/ann/c", "notes/ann/d"}, live); diff != "" {
			t.Errorf("live (-want +got):\n%s", diff)
		}
		note(phone, "e", "")                // acknowledged nothing so far: all of it comes again
		bens := w.wire("ben", "phone", nil) // of the same name, and another's
		bens.publish(packets.Packet{
			FixedHeader: packets.FixedHeader{Qos: 1}, PacketID: 1, TopicName: "pairs/" + w.pair.ID + "/notes/ben/f", Payload: []byte("x"),
		})
		settle(time.Second)
		bens.Close()
		phone.Close()
		tablet.Close()
		w.restart()
		phone = w.wire("ann", "phone", nil)
		got := w.tails(phone.only(packets.Publish, time.Second))
		if diff := cmp.Diff([]string{"notes/ann/c", "notes/ann/d", "notes/ben/f"}, got); diff != "" {
			t.Errorf("after a restart (-want +got):\n%s", diff)
		}
		if _, err := w.reg.RemovePair(t.Context(), w.pair.ID); err != nil {
			t.Fatal(err)
		}
		if got := phone.only(packets.Publish, time.Second); len(got) != 1 || got[0].TopicName != "users/ann/events" {
			t.Errorf("got %v, want the event: nobody's client published it", w.tails(got))
		}
	})
}

// TestPairEndsWhileAMomentIsRead: rights are looked at again when it is sent.
func TestPairEndsWhileAMomentIsRead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		phone := func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") }
		w.hold = true
		ben := w.connect("ben", phone)
		w.hold = false
		ann.sendN(t, 0, 1) // in flight: it would be redelivered
		settle(time.Second)
		ben.end()
		ann.sendN(t, 1, 2) // queued
		for range 2 {
			w.set(func() {
				w.onRead = func(got ledger.Batch) {
					if len(got.Entries) > 0 && got.Entries[0].Payload != nil {
						w.broker.mu.RLock()
						c := w.broker.clients["ben/ben-phone"]
						w.broker.mu.RUnlock()
						c.can.Store(&rights{user: "ben"}) // as registryChanged does
					}
				}
			})
			ben = w.connect("ben", phone)
			settle(time.Second)
			if got := ben.topics(); len(got) > 0 {
				t.Errorf("got %v without the right to", got)
			}
			ben.end()
		}
	})
}

// TestLiveNeedsRights: filters that are left of another time bring nothing to
// whom may not read there now.
func TestLiveNeedsRights(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		all := func(c *mqttlink.Config) {
			c.Subscriptions = []mqttlink.Subscription{{Filter: "pairs/" + w.pair.ID + "/live/#"}, {Filter: "pairs/" + w.pair.ID + "/presence/+"}}
		}
		w.connect("ben", all).end()
		raw := w.token(token.Principal{User: "ben", Pair: "ended", Role: token.RoleApp})
		ben := w.connect("ben", withToken(raw))
		defer ben.end()
		ann := w.asApp("ann", nil)
		defer ann.end()
		if err := ann.Publish(t.Context(), mqttlink.Publish{Topic: moment.LiveTopic(w.pair.ID, "ann", "x"), Payload: []byte("x"), QoS: 1}); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if got := ben.topics(); len(got) > 0 {
			t.Errorf("got %v", got)
		}
	})
}
