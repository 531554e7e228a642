package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/registry"
)

// TestManyRetainedValues: nobody's device is left out, though their states are
// more than what else may wait; of hundreds of messages some are.
func TestManyRetainedValues(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, frame := w.device("ben", "d0", nil)
		defer frame.end()
		want := []string{}
		for i := range 2 * registry.MaxDevicesPerUser {
			d, err := w.reg.AddDevice(t.Context(), w.pair.Users[i%2], fmt.Sprintf("d%d", i))
			if err != nil { // with the frame, ben has one more than he may
				break
			}
			if err := w.broker.keepState(w.clientOf("ben/"+w.reg.DevicesOf("ben")[0].ID), moment.Topic{Pair: w.pair.ID, Device: d.ID}, []byte("{}")); err != nil {
				t.Fatal(err)
			}
			want = append(want, moment.StateTopic(w.pair.ID, d.ID))
		}
		if len(want) < 200 {
			t.Fatalf("only %d devices", len(want))
		}
		// Not read until everything is queued, and more than the link holds.
		c := w.mute("ben", "widget", nil)
		c.subscribe(packets.Subscription{Filter: "pairs/" + w.pair.ID + "/#"})
		settle(time.Second)
		go c.read()
		got := []string{}
		for _, pk := range c.only(packets.Publish, time.Second) {
			if strings.HasSuffix(pk.TopicName, "/state") {
				got = append(got, pk.TopicName)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestQueueOfASlowClient: what waits for a client that does not read is bounded,
// values and messages apart, and a value waits once.
func TestQueueOfASlowClient(t *testing.T) {
	load := func(context.Context) (outgoing, error) { return outgoing{}, nil }
	c := &client{b: &Broker{metrics: newCounters()}, wake: make(chan struct{}, 1)}
	for i := range 3 * maxValues {
		c.enqueue(outgoing{topic: "message", payload: make([]byte, 100)})
		c.enqueue(outgoing{topic: "presence", load: load})
		c.enqueue(outgoing{topic: fmt.Sprint(i), retained: true, load: load})
	}
	if n := len(c.out); c.values != maxValues || n != maxValues+maxOut {
		t.Errorf("%d wait, %d of them values; want %d and %d", n, c.values, maxValues+maxOut, maxValues)
	}
	c = &client{b: c.b, wake: c.wake}
	for range 20 {
		c.enqueue(outgoing{topic: "message", payload: make([]byte, 100<<10)})
	}
	if len(c.out) != maxOutBytes/(100<<10) || c.outBytes > maxOutBytes {
		t.Errorf("%d messages of %d bytes wait, want %d", len(c.out), c.outBytes, maxOutBytes/(100<<10))
	}
	for i, tc := range []struct {
		o    outgoing
		want bool
	}{
		{outgoing{topic: "a", load: load}, true},
		{outgoing{topic: "b", load: load}, false},
		{outgoing{topic: "a", load: load, retained: true}, false},
		{outgoing{topic: "a", load: load, ids: []int{1}}, false},
	} {
		if got := tc.o.replaces(outgoing{topic: "a", load: load}); got != tc.want {
			t.Errorf("%d: replaced by one that waits %v, want %v", i, got, tc.want)
		}
	}
}

// TestPresenceAfterAKill: nobody is online who is not, and who comes back is.
func TestPresenceAfterAKill(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		topic := moment.PresenceTopic(w.pair.ID, "ben")
		watch := func(c *mqttlink.Config) {
			c.Subscriptions = []mqttlink.Subscription{{Filter: "pairs/" + w.pair.ID + "/presence/+"}}
			c.MinBackoff, c.MaxBackoff = time.Hour, time.Hour
		}
		ann := w.connect("ann", watch)
		app := w.asApp("ben", nil)
		settle(time.Second)
		if p := presenceOf(t, ann.last(topic)); !p.Online {
			t.Fatalf("%+v, want online", p)
		}
		w.crash(ann.end, app.end)
		killed := time.Now()
		settle(time.Minute)
		ann = w.connect("ann", func(c *mqttlink.Config) { watch(c); c.Subscriptions = nil }) // a session resumes
		defer ann.end()
		settle(time.Second)
		p := presenceOf(t, ann.last(topic))
		if p.Online || len(p.Clients) > 0 || p.Since.Before(killed.Add(-time.Minute)) {
			t.Errorf("after the kill %+v, want offline since then", p)
		}
		back := time.Now()
		app = w.asApp("ben", nil)
		settle(time.Second)
		if p := presenceOf(t, ann.last(topic)); !p.Online || p.Since.Before(back.Add(-time.Second)) || p.Since.After(time.Now()) {
			t.Errorf("after the return %+v, want online since %v", p, back)
		}
		w.asApp("ben", func(c *mqttlink.Config) { c.ClientID = "app-2" }).end() // two apps, one left
		settle(time.Second)
		if p := presenceOf(t, ann.last(topic)); !p.Online || !p.Since.Equal(back.UTC()) && p.Since.After(back.Add(time.Second)) {
			t.Errorf("with one of two apps gone %+v, want online since %v", p, back)
		}
		app.end()
	})
}

// TestRetainHandling (MQTT 5, section 3.8.3.1), and that a session that resumes
// is told what is retained without asking.
func TestRetainHandling(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.wire("ben", "phone", nil)
		c.connack()
		info := moment.InfoTopic(w.pair.ID)
		for i, tc := range []struct {
			handling byte
			want     int
		}{{2, 0}, {1, 0}, {0, 1}, {0, 1}, {1, 0}} { // it exists from the second on
			c.subscribe(packets.Subscription{Filter: info, RetainHandling: tc.handling})
			if got := c.only(packets.Publish, time.Second); len(got) != tc.want || tc.want > 0 && !got[0].FixedHeader.Retain {
				t.Errorf("subscribe %d with retain handling %d brought %v, want %d", i, tc.handling, w.tails(got), tc.want)
			}
		}
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: 8, Filters: packets.Subscriptions{{Filter: info}}})
		c.subscribe(packets.Subscription{Filter: info, RetainHandling: 1})
		if got := c.only(packets.Publish, time.Second); len(got) != 1 {
			t.Errorf("a new filter with retain handling 1 brought %v, want info", w.tails(got))
		}
		c.Close()
		settle(time.Second)
		c = w.wire("ben", "phone", nil)
		if got := c.only(packets.Publish, time.Second); len(got) != 1 {
			t.Errorf("at the next connect: %v, want info", w.tails(got))
		}
	})
}

// TestRetainAsPublished (MQTT 5, section 3.8.3.1): RETAIN is kept on what is
// told when it changes, for filters that ask for it.
func TestRetainAsPublished(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		d, frame := w.device("ben", "kitchen", nil)
		defer frame.end()
		for _, rap := range []bool{false, true} {
			c := w.wire("ann", fmt.Sprint(rap), nil)
			c.subscribe(packets.Subscription{Filter: "pairs/" + w.pair.ID + "/devices/#", RetainAsPublished: rap, RetainHandling: 2},
				packets.Subscription{Filter: "pairs/" + w.pair.ID + "/photos/#", Qos: 1, RetainAsPublished: rap})
			c.await(time.Second)
			frame.tell(t, moment.StateTopic(w.pair.ID, d.ID), "{}")
			frame.sendN(t, 0, 1)
			for _, pk := range c.only(packets.Publish, time.Second) {
				if want := rap && strings.HasSuffix(pk.TopicName, "state"); pk.FixedHeader.Retain != want {
					t.Errorf("retain as published %v: %s came with RETAIN %v", rap, pk.TopicName, pk.FixedHeader.Retain)
				}
			}
			c.Close()
		}
	})
}

// TestLatestByNameAlone: only filters that name latest bring it, so that nobody
// gets a photo twice by accident.
func TestLatestByNameAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		ann.sendN(t, 0, 1)
		for filter, want := range map[string]bool{
			"#": false, "+/ann": false, "+/+": false, "latest/#": true, "latest/+": true, "latest/ann": true, "latest/ben": false,
		} {
			c := w.wire("ben", "x", func(pk *packets.Packet) { pk.Connect.Clean = true })
			c.subscribe(packets.Subscription{Filter: "pairs/" + w.pair.ID + "/" + filter})
			if found := slices.Contains(w.tails(c.only(packets.Publish, time.Second)), "latest/ann"); found != want {
				t.Errorf("%s brought latest %v, want %v", filter, found, want)
			}
			if err := ann.send(moment.Photo, "x"+fmt.Sprint(time.Now().UnixNano()), "y"); err != nil {
				t.Fatal(err)
			}
			if found := slices.Contains(w.tails(c.only(packets.Publish, time.Second)), "latest/ann"); found != want {
				t.Errorf("%s, a new photo: latest %v, want %v", filter, found, want)
			}
			c.Close()
			settle(time.Second)
		}
	})
}

// TestEvents: pairing events wait for any durable session of their user, in
// order, across restarts, and for nobody else.
func TestEvents(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		settle(time.Second)
		subs := func(c *mqttlink.Config) {
			c.Subscriptions = []mqttlink.Subscription{{Filter: "users/" + c.Username + "/events", QoS: 1}}
		}
		as := func(user string) func(*mqttlink.Config) {
			return func(c *mqttlink.Config) { c.Username = user; subs(c) }
		}
		w.connect("ben", as("ben")).end()
		w.connect("eve", as("eve")).end()
		old := w.pair.ID
		if _, err := w.reg.RemovePair(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		next, err := w.reg.CreatePair(t.Context(), "ben", "ann")
		if err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		w.restart()
		ben, eve := w.connect("ben", as("ben")), w.connect("eve", as("eve"))
		defer ben.end()
		defer eve.end()
		settle(time.Second)
		var got []string
		ben.mu.Lock()
		for _, m := range ben.got {
			var e struct{ Event, PairID string }
			if err := json.Unmarshal(m.Payload, &e); err != nil || m.QoS != 1 {
				t.Errorf("%s at QoS %d: %v", m.Payload, m.QoS, err)
			}
			got = append(got, e.Event+" "+e.PairID)
		}
		ben.mu.Unlock()
		if diff := cmp.Diff([]string{"partner_disconnected " + old, "pairing_success " + next.ID, "partner_connected " + next.ID}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if got := eve.topics(); len(got) > 0 {
			t.Errorf("eve got %v", got)
		}
		settle(10 * time.Second)
		if at, err := w.ledger.Cursor(t.Context(), "ben/ben-phone", ledger.UserLog("ben")); err != nil || at == 0 {
			t.Errorf("cursor at %d, %v", at, err)
		}
	})
}
