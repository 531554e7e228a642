package broker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/moment"
)

// TestBasicsQoS2In: a repeated PUBLISH is acknowledged again and not delivered
// again until PUBREL, on this connection and the next [MQTT-4.3.3-10]; a
// PUBREL for what is not there gets 0x92 [MQTT-4.3.3-11].
func TestBasicsQoS2In(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		sub := w.admin(t, "sub", version, nil)
		sub.listens("t", 2)
		pub := w.admin(t, "pub", version, keeps(time.Hour))
		send := func(payload string, dup bool) {
			t.Helper()
			pk := publishOf("t", payload, 2, 9)
			pk.FixedHeader.Dup = dup
			pub.send(pk)
			if code := pub.acked(packets.Pubrec, 9); code != 0 {
				t.Fatalf("PUBREC 0x%02X", code)
			}
		}
		release := func(want byte) {
			t.Helper()
			pub.ack(packets.Pubrel, 9, 0)
			if code := pub.acked(packets.Pubcomp, 9); version == 5 && code != want {
				t.Fatalf("PUBCOMP 0x%02X, want 0x%02X", code, want)
			}
		}
		send("one", false)
		sub.gets("t", "one", 2)
		send("one", true)
		pub.cut()
		pub = w.admin(t, "pub", version, keeps(time.Hour))
		send("one", true)
		sub.quiet()
		release(0)
		release(0x92)
		send("two", false) // the id is free again
		sub.gets("t", "two", 2)
		release(0)
		// An id in use is free for SUBSCRIBE and for what the broker sends.
		pub.listens("back", 2)
		sub.publish("back", "x", 2)
		pub.gets("back", "x", 2)
		// A new session knows nothing of the old one.
		send("three", false)
		sub.gets("t", "three", 2)
		pub.cut()
		pub = w.admin(t, "pub", version, nil)
		release(0x92)
	})
}

// TestBasicsQoS2Durable: an admin's QoS 2 publish of what the ledger keeps, and
// of a live message, ends with PUBCOMP as on any topic.
func TestBasicsQoS2Durable(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		c := w.admin(t, "c", version, nil)
		other := w.admin(t, "other", version, nil)
		other.listens("pairs/#", 2)
		for _, topic := range []string{"pairs/" + w.pair.ID + "/notes/ann/n", moment.LiveTopic(w.pair.ID, "ann", "typing")} {
			if code := c.publish(topic, "hello", 2); code != 0 {
				t.Errorf("%s: 0x%02X", topic, code)
			}
			other.gets(topic, "hello", 0)
		}
	})
}

// TestBasicsQoS2Out: what the subscriber does not acknowledge comes again after
// the reconnect, PUBLISH before PUBREC with DUP, PUBREL after it, with the same
// packet ids and in order [MQTT-4.4.0-1] [MQTT-3.3.1-1] [MQTT-4.6.0-1].
func TestBasicsQoS2Out(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		pub := w.admin(t, "pub", version, nil)
		sub := w.admin(t, "sub", version, keeps(time.Hour))
		sub.listens("t", 2)
		ids := map[string]uint16{}
		for i := range 6 {
			payload := fmt.Sprint(i)
			pub.publish("t", payload, 1+byte(i%2))
			pk := sub.want(packets.Publish)
			sub.same(pk, "t", payload, 1+byte(i%2))
			ids[payload] = pk.PacketID
		}
		sub.ack(packets.Pubrec, ids["1"], 0)
		sub.acked(packets.Pubrel, ids["1"])
		sub.ack(packets.Puback, ids["2"], 0) // out of order
		sub.ack(packets.Puback, ids["3"], 0) // not the answer to QoS 2
		sub.quiet()                          // nothing is repeated on a connection [MQTT-4.4.0-1]
		for range 2 {
			sub.cut()
			sub = w.admin(t, "sub", version, keeps(time.Hour))
			if !sub.connack.SessionPresent {
				t.Fatal("no session")
			}
			for _, payload := range []string{"0", "1", "3", "4", "5"} {
				if payload == "1" {
					sub.acked(packets.Pubrel, ids["1"])
					continue
				}
				pk := sub.want(packets.Publish)
				if !pk.FixedHeader.Dup || pk.PacketID != ids[payload] || string(pk.Payload) != payload {
					t.Fatalf("redelivered %q as %d, DUP %v; want %q as %d", pk.Payload, pk.PacketID, pk.FixedHeader.Dup, payload, ids[payload])
				}
			}
			sub.quiet()
		}
		sub.ack(packets.Pubcomp, ids["1"], 0)
		sub.ack(packets.Puback, ids["0"], 0)
		sub.ack(packets.Pubrec, ids["3"], 0x80) // refused: done with [MQTT-4.3.3-4]
		sub.ack(packets.Puback, ids["4"], 0)
		sub.ack(packets.Pubrec, ids["5"], 0)
		if version < 5 {
			sub.acked(packets.Pubrel, ids["3"]) // which 3.1.1 cannot say
			sub.ack(packets.Pubcomp, ids["3"], 0)
		}
		sub.acked(packets.Pubrel, ids["5"])
		sub.ack(packets.Pubcomp, ids["5"], 0)
		sub.ack(packets.Pubrec, 999, 0)
		if code := sub.acked(packets.Pubrel, 999); version == 5 && code != 0x92 {
			t.Errorf("PUBREL 0x%02X for an id that is not there, want 0x92", code)
		}
		sub.cut()
		sub = w.admin(t, "sub", version, keeps(time.Hour))
		sub.quiet()
	})
}

// TestBasicsPacketIDsBothWays: the ids of the two directions have nothing to do
// with each other (MQTT 5, section 2.2.1).
func TestBasicsPacketIDsBothWays(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		pub := w.admin(t, "pub", version, nil)
		c := w.admin(t, "c", version, keeps(time.Hour))
		c.listens("t", 2)
		for i := range 10 {
			pub.publish("t", fmt.Sprint(i), 1+byte(i%2))
			if pk := c.want(packets.Publish); pk.PacketID != uint16(i+1) {
				t.Fatalf("delivered as %d, want %d: the test is about equal ids", pk.PacketID, i+1)
			}
		}
		for id := range uint16(10) {
			c.send(publishOf("elsewhere", "x", 2, id+1))
			c.acked(packets.Pubrec, id+1)
		}
		for id := range uint16(10) { // none of ours is disturbed by theirs
			c.ack(packets.Pubrel, id+1, 0)
			if code := c.acked(packets.Pubcomp, id+1); code != 0 {
				t.Fatalf("PUBCOMP 0x%02X", code)
			}
		}
		c.nextID = 0
		c.listens("more", 1)
		if codes := c.unsubscribe("more"); version == 5 && codes[0] != 0 {
			t.Fatalf("UNSUBACK % x", codes)
		}
		c.cut()
		c = w.admin(t, "c", version, keeps(time.Hour))
		for i := range 10 { // nor theirs by ours
			c.gets("t", fmt.Sprint(i), 1+byte(i%2))
		}
	})
}

// TestBasicsQueue: an offline session gets what came at QoS 1 and 2, in order
// and once, however much it is; nothing of QoS 0.
func TestBasicsQueue(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		pub := w.admin(t, "pub", version, nil)
		sub := w.admin(t, "sub", version, keeps(time.Hour))
		sub.listens("t/#", 2)
		sub.bye()
		const n = 300
		for i := range n {
			pub.publish("t/x", fmt.Sprint(i), byte(i%3))
			settle(100 * time.Millisecond)
		}
		sub = w.admin(t, "sub", version, keeps(time.Hour))
		for i := range n {
			if i%3 > 0 {
				sub.gets("t/x", fmt.Sprint(i), byte(i%3))
			}
		}
		sub.quiet()
		// And a connected one, however fast they come.
		for i := range n {
			pub.send(publishOf("t/x", fmt.Sprint(i), 1, uint16(i+1)))
		}
		for i := range n {
			sub.gets("t/x", fmt.Sprint(i), 1)
		}
	})
}

// TestBasicsQueueBound: a session that nobody comes back to stays within its
// bound, and loses the newest.
func TestBasicsQueueBound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pub := w.admin(t, "pub", 5, nil)
		sub := w.admin(t, "sub", 5, keeps(time.Hour))
		sub.listens("t", 1)
		sub.bye()
		payload := strings.Repeat("x", 2<<20)
		fit := 0
		for bytes := 0; bytes+len(payload)+1 <= maxWaitingBytes; bytes += len(payload) + 1 {
			fit++
		}
		for i := range fit + 3 {
			pub.publish("t", fmt.Sprint(i, payload), 1)
		}
		sub = w.admin(t, "sub", 5, keeps(time.Hour))
		for i := range fit {
			sub.gets("t", fmt.Sprint(i, payload), 1)
		}
		sub.quiet()
	})
}

// TestBasicsReceiveMaximumOut: never more unacknowledged than the client's
// Receive Maximum, and no stall [MQTT-3.3.4-9]; QoS 0 is not counted.
func TestBasicsReceiveMaximumOut(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		few := func(pk *packets.Packet) { keeps(time.Hour)(pk); pk.Properties.ReceiveMaximum = 2 }
		pub := w.admin(t, "pub", 5, nil)
		sub := w.admin(t, "sub", 5, few)
		sub.listens("t", 2)
		for i := range 12 {
			pub.publish("t", fmt.Sprint(i), 1+byte(i/2%2))
		}
		pub.publish("t", "quick", 0)
		took := func(i int, pk packets.Packet) {
			t.Helper()
			sub.same(pk, "t", fmt.Sprint(i), 1+byte(i/2%2))
		}
		first, second := sub.want(packets.Publish), sub.want(packets.Publish)
		took(0, first)
		took(1, second)
		sub.gets("t", "quick", 0)
		sub.quiet()
		sub.ack(packets.Puback, first.PacketID, 0)
		third := sub.want(packets.Publish)
		took(2, third)
		sub.quiet()
		sub.ack(packets.Puback, second.PacketID, 0)
		fourth := sub.want(packets.Publish)
		took(3, fourth)
		sub.ack(packets.Pubrec, third.PacketID, 0)
		sub.acked(packets.Pubrel, third.PacketID)
		sub.quiet() // PUBREC alone makes no room (MQTT 5, section 4.9)
		sub.ack(packets.Pubcomp, third.PacketID, 0)
		took(4, sub.want(packets.Publish))
		sub.cut()
		sub = w.admin(t, "sub", 5, few)
		for i := 3; i < 5; i++ {
			took(i, sub.want(packets.Publish))
		}
		sub.quiet()
		sub.cut()
		sub = w.admin(t, "sub", 5, func(pk *packets.Packet) { few(pk); pk.Properties.ReceiveMaximum = 1 })
		first = sub.want(packets.Publish)
		sub.quiet() // what was sent to an earlier connection counts for this one
		sub.early = []packets.Packet{first}
		for i := 3; i < 12; i++ {
			sub.gets("t", fmt.Sprint(i), 1+byte(i/2%2))
		}
		sub.quiet()
	})
}

// TestBasicsReceiveMaximumIn: more QoS 2 publishes open than CONNACK allows end
// the connection with 0x93 [MQTT-3.3.4-7]; as many do not, nor does QoS 0.
func TestBasicsReceiveMaximumIn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.admin(t, "c", 5, nil)
		most := c.connack.Properties.ReceiveMaximum
		if most == 0 {
			t.Fatal("CONNACK tells no Receive Maximum")
		}
		for id := range most {
			c.send(publishOf("t", "x", 2, id+1))
			c.acked(packets.Pubrec, id+1)
		}
		c.publish("t", "x", 0)
		c.send(publishOf("t", "x", 2, 1)) // a repetition is no other one
		c.acked(packets.Pubrec, 1)
		c.send(publishOf("t", "x", 2, most+1))
		c.closed(time.Second, 0x93)

		old := w.admin(t, "old", 4, nil) // 3.1.1 knows no limit
		for id := range 3 * most {
			old.send(publishOf("t", "x", 2, id+1))
			old.acked(packets.Pubrec, id+1)
		}
	})
}

// TestBasicsMaximumPacketSize: what is larger than the client takes counts as
// delivered [MQTT-3.1.2-24] [MQTT-3.1.2-25], on this connection and the next,
// and is not made to fit by leaving things out.
func TestBasicsMaximumPacketSize(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		small := func(pk *packets.Packet) {
			keeps(time.Hour)(pk)
			pk.Properties.MaximumPacketSize, pk.Properties.ReceiveMaximum = 100, 1
		}
		props := func(pk *packets.Packet) {
			pk.Properties.User = []packets.UserProperty{{Key: "k", Val: strings.Repeat("v", 100)}}
		}
		pub := w.admin(t, "pub", 5, nil)
		sub := w.admin(t, "sub", 5, small)
		sub.listens("t", 2)
		for range 2 {
			for qos := range byte(3) {
				pub.publish("t", strings.Repeat("x", 100), qos)
				pub.publish("t", "x", qos, props)
				pub.publish("t", "fits", qos)
			}
			if sub == nil {
				sub = w.admin(t, "sub", 5, small)
			}
			for qos := range byte(3) {
				if qos == 0 && !sub.connack.SessionPresent || qos > 0 {
					sub.gets("t", "fits", qos)
				}
			}
			sub.quiet()
			sub.bye()
			sub = nil
		}
	})
}
