package broker

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// connack returns the CONNACK that has come, first of all.
func (c *packetClient) connack() packets.Packet {
	c.t.Helper()
	got := c.await(time.Second)
	if len(got) == 0 || got[0].FixedHeader.Type != packets.Connack {
		c.t.Fatalf("got %d packets, none a CONNACK in front", len(got))
	}
	return got[0]
}

// TestSessionPresent: which CONNECTs find the session of the connection before.
func TestSessionPresent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		clean := func(pk *packets.Packet) { pk.Connect.Clean = true }
		bye := func(expiry uint32, flag bool) packets.Packet {
			return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, Properties: packets.Properties{
				SessionExpiryInterval: expiry, SessionExpiryIntervalFlag: flag,
			}}
		}
		for _, tc := range []struct {
			name          string
			first, second func(*packets.Packet)
			bye           *packets.Packet
			away          time.Duration
			present       bool
		}{
			{name: "a day", present: true},
			{name: "clean start", second: clean},
			{name: "begun with a clean start", first: clean, present: true},
			{name: "no expiry", first: expiring(0)},
			{name: "within its expiry", first: expiring(10 * time.Second), away: 8 * time.Second, present: true},
			{name: "after its expiry", first: expiring(10 * time.Second), away: 11 * time.Second},
			{name: "3.1.1", first: v3(false), second: v3(false), present: true},
			{name: "3.1.1, clean", first: v3(true), second: v3(false)},
			{name: "3.1.1, cleaned", first: v3(false), second: v3(true)},
			{name: "3.1.1, then 5", first: v3(false), present: true},
			{name: "ended by DISCONNECT", bye: new(bye(0, true))},
			{name: "shortened by DISCONNECT", bye: new(bye(10, true)), away: 11 * time.Second},
			{name: "shortened, and in time", bye: new(bye(10, true)), away: 8 * time.Second, present: true},
			{name: "prolonged by DISCONNECT", first: expiring(10 * time.Second), bye: new(bye(3600, true)), away: time.Minute, present: true},
			{name: "left as it is by DISCONNECT", bye: new(bye(0, false)), present: true},
			{name: "made durable by DISCONNECT", first: expiring(0), bye: new(bye(3600, true))}, // a protocol error
		} {
			c := w.wire("ben", "phone", tc.first)
			if pk := c.connack(); pk.SessionPresent || pk.ReasonCode != 0 {
				t.Errorf("%s: at first code 0x%02X, session present %v", tc.name, pk.ReasonCode, pk.SessionPresent)
			}
			if tc.bye != nil {
				c.send(*tc.bye)
			} else {
				c.Close()
			}
			settle(max(tc.away, time.Second))
			c = w.wire("ben", "phone", tc.second)
			if pk := c.connack(); pk.SessionPresent != tc.present {
				t.Errorf("%s: session present %v, want %v", tc.name, pk.SessionPresent, tc.present)
			}
			c.Close()
			settle(time.Second)
			c = w.wire("ben", "phone", func(pk *packets.Packet) { clean(pk); expiring(0)(pk) }) // for the next case
			settle(time.Second)
			c.Close()
			settle(time.Second)
		}
	})
}

// TestExpirySurvivesARestart: what DISCONNECT said of the session's expiry too.
func TestExpirySurvivesARestart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for name, expiry := range map[string]uint32{"short": 30, "long": 3600} {
			c := w.wire("ben", name, nil)
			settle(time.Second)
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, Properties: packets.Properties{
				SessionExpiryInterval: expiry, SessionExpiryIntervalFlag: true,
			}})
			settle(time.Second)
		}
		w.restart()
		settle(2 * time.Minute)
		if got, want := w.sessionIDs(), "ann/app ben/app ben/long"; got != want {
			t.Errorf("sessions %s, want %s", got, want)
		}
	})
}

// TestLastConnectionOfASession: a client that comes back without a session
// expiry gets what waits for it (MQTT 5, section 3.1.2.4); then the session is
// over.
func TestLastConnectionOfASession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		phone := func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") }
		w.hold = true
		ben := w.connect("ben", phone)
		w.hold = false
		want := ann.sendN(t, 0, 2) // in flight
		settle(time.Second)
		ben.end()
		want = append(want, ann.sendN(t, 2, 40)...)
		ben = w.connect("ben", func(c *mqttlink.Config) { phone(c); c.SessionExpiry = 0 })
		settle(time.Second)
		if diff := cmp.Diff(want, ben.topics()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		ben.end()
		settle(time.Second)
		if got, want := w.sessionIDs(), "ann/ann-phone ann/app ben/app"; got != want {
			t.Errorf("sessions %s, want %s", got, want)
		}
		w.connect("ben", phone).end()
		ben = w.connect("ben", func(c *mqttlink.Config) {
			phone(c)
			c.SessionExpiry = 0
			c.MinBackoff, c.MaxBackoff = time.Hour, time.Hour
		})
		settle(10 * time.Second)
		w.crash(ben.end, ann.end)
		settle(time.Minute)
		if got, want := w.sessionIDs(), "ann/ann-phone ann/app ben/app"; got != want {
			t.Errorf("after a kill: sessions %s, want %s", got, want)
		}
	})
}

// TestTrimWaitsForTheConnected: what a connected client of QoS 1 has not had
// yet is not trimmed, though its session ends with its connection.
func TestTrimWaitsForTheConnected(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		app := w.asApp("ben", nil)
		defer app.end()
		w.hold = true
		widget := w.connect("ben", func(c *mqttlink.Config) {
			c.SessionExpiry = 0
			c.Subscriptions = []mqttlink.Subscription{{Filter: moment.KindFilter(w.pair.ID, moment.Note, "ann"), QoS: 1}}
		})
		defer widget.end()
		for i := range 20 {
			if err := ann.send(moment.Note, string(rune('a'+i)), "note"); err != nil {
				t.Fatal(err)
			}
		}
		settle(time.Minute)
		widget.mu.Lock()
		widget.hold = false
		for _, m := range widget.got {
			m.Ack()
		}
		widget.mu.Unlock()
		settle(time.Second)
		if n := len(widget.topics()); n != 20 {
			t.Errorf("got %d of 20 notes", n)
		}
		settle(time.Minute)
		if st, err := w.ledger.Stat(t.Context(), ledger.PairLog(w.pair.ID)); err != nil || st.Entries != 0 {
			t.Errorf("%d notes are left (%v) after everybody had them", st.Entries, err)
		}
	})
}

// TestTakeoverOfAStuckConnection: CONNACK comes within a second, what the stuck
// one had not acknowledged comes again with DUP and its packet ids, and what
// the stuck one still does changes nothing.
func TestTakeoverOfAStuckConnection(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		stuck := w.mute("ben", "phone", nil)
		stuck.subscribe(packets.Subscription{Filter: w.photosOf("ann")[0].Filter, Qos: 1})
		settle(time.Second)
		big := string(make([]byte, 1<<20))
		for _, id := range []string{"a", "b", "c"} {
			if err := ann.send(moment.Photo, id, big); err != nil {
				t.Fatal(err)
			}
		}
		settle(time.Second)
		start := time.Now()
		c := w.mute("ben", "phone", nil)
		for w.broker.Connections() != 2 { // ann and the new one
			time.Sleep(10 * time.Millisecond)
		}
		go c.read()
		for {
			c.mu.Lock()
			n := len(c.got)
			c.mu.Unlock()
			if n > 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("CONNACK after %v, want it within 1s", took)
		}
		got := c.await(time.Second)
		if got[0].FixedHeader.Type != packets.Connack || !got[0].SessionPresent {
			t.Fatalf("first came packet type %d, session present %v", got[0].FixedHeader.Type, got[0].SessionPresent)
		}
		if diff := cmp.Diff([]string{"nn/a qos1 id1 dup", "nn/b qos1 id2", "nn/c qos1 id3"}, brief(got[1:])); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// lingering connects ben's phone and lets its connection be there for a while
// after it was closed: an answer of the ledger is awaited. stop ends that.
func (w *world) lingering(change func(*packets.Packet)) (c *packetClient, stop func()) {
	w.t.Helper()
	held := make(chan struct{})
	w.set(func() { w.onStored = func() { <-held } })
	c = w.wire("ben", "phone", change)
	c.subscribe(packets.Subscription{Filter: w.photosOf("ann")[0].Filter, Qos: 1})
	c.publish(packets.Packet{
		FixedHeader: packets.FixedHeader{Qos: 1}, PacketID: 9, TopicName: "pairs/" + w.pair.ID + "/notes/ben/n", Payload: []byte("x"),
	})
	settle(time.Second)
	return c, func() {
		w.set(func() { w.onStored = nil })
		close(held)
		settle(time.Second)
	}
}

// TestTakeoverEndsASessionWithoutExpiry, also where its connection is not
// through yet: a client that has no session must not be told that there is one
// (MQTT 5, section 3.2.2.1.1).
func TestTakeoverEndsASessionWithoutExpiry(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, stop := w.lingering(expiring(0))
		c := w.wire("ben", "phone", nil)
		if pk := c.connack(); pk.SessionPresent {
			t.Error("session present, though it ended with its connection")
		}
		stop()
		if got, want := w.sessionIDs(), "ann/app ben/app ben/phone"; got != want || c.ended() {
			t.Errorf("sessions %s, the new connection ended %v; want %s and a live one", got, c.ended(), want)
		}
	})
}

// TestOvertakenConnection: of two connections that wait for the same session,
// the older one does not take it from the newer.
func TestOvertakenConnection(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i := range 20 {
			c, stop := w.lingering(nil)
			older := func(pk *packets.Packet) {
				expiring(0)(pk)
				pk.Connect.Clean = i%2 > 0
			}
			first, second := w.wire("ben", "phone", older), w.wire("ben", "phone", nil)
			settle(5 * time.Second)
			if first.ended() == second.ended() {
				t.Fatalf("ended: first %v, second %v; want the older alone", first.ended(), second.ended())
			}
			stop()
			if first.ended() {
				first = second
			}
			first.Close()
			c.Close()
			settle(time.Second)
		}
	})
}
