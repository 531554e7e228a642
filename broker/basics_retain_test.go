package broker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"
)

// TestBasicsRetained: set, replaced, cleared by an empty payload, told to new
// subscriptions with RETAIN and the lower QoS (MQTT 5, section 3.3.1.3).
func TestBasicsRetained(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		pub, watch := w.admin(t, "pub", version, nil), w.admin(t, "watch", version, nil)
		watch.listens("kept/#", 2)
		for qos := range byte(3) {
			for _, payload := range []string{"first", "second"} {
				pub.publish(fmt.Sprint("kept/", qos), payload, qos, retained)
				// To an established subscription it is a message like any [MQTT-3.3.1-12].
				if pk := watch.gets(fmt.Sprint("kept/", qos), payload, qos); pk.FixedHeader.Retain {
					t.Error("RETAIN on a live message")
				}
			}
		}
		pub.publish("kept/0", "not retained", 1)
		pub.publish("kept/9", "", 1, retained) // nothing was there
		watch.gets("kept/0", "not retained", 1)
		watch.gets("kept/9", "", 1)
		sub := w.admin(t, "sub", version, nil)
		sub.listens("kept/+", 1)
		for qos := range byte(3) {
			if pk := sub.gets(fmt.Sprint("kept/", qos), "second", min(1, qos)); !pk.FixedHeader.Retain || pk.FixedHeader.Dup {
				t.Errorf("retained: RETAIN %v, DUP %v", pk.FixedHeader.Retain, pk.FixedHeader.Dup) // [MQTT-3.3.1-8] of 3.1.1
			}
		}
		for qos := range byte(3) {
			pub.publish(fmt.Sprint("kept/", qos), "", qos, retained) // [MQTT-3.3.1-6]
			sub.gets(fmt.Sprint("kept/", qos), "", min(1, qos))      // an empty one is a message too
		}
		sub.listens("kept/+", 1)
		sub.quiet()
		if n := w.broker.kept.bytes; n != 0 {
			t.Errorf("%d bytes are counted as retained, want none", n)
		}
		// Many at once, more than any buffer on the way holds.
		const many = 500
		for i := range many {
			pub.publish(fmt.Sprintf("many/%03d", i), "x", 1, retained)
		}
		pub.bye() // they outlive who published them
		sub.listens("many/#", 0)
		for i := range many {
			sub.gets(fmt.Sprintf("many/%03d", i), "x", 0)
		}
	})
}

// TestBasicsRetainHandling: 0 each time, 1 for a new subscription, 2 never
// [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11].
func TestBasicsRetainHandling(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pub := w.admin(t, "pub", 5, nil)
		pub.publish("t", "kept", 1, retained)
		for handling, want := range [][]bool{{true, true}, {true, false}, {false, false}} {
			c := w.admin(t, fmt.Sprint(handling), 5, keeps(time.Hour))
			for round, comes := range want {
				c.subscribeWith(packets.Properties{SubscriptionIdentifier: []int{7}},
					packets.Subscription{Filter: "t", Qos: 1, RetainHandling: byte(handling)})
				if comes {
					pk := c.gets("t", "kept", 1)
					if diff := cmp.Diff([]int{7}, pk.Properties.SubscriptionIdentifier); diff != "" {
						t.Errorf("identifiers of a retained message (-want +got):\n%s", diff) // [MQTT-3.3.4-3]
					}
				} else {
					c.quiet()
				}
				if round == 0 { // a resumed session still has the subscription
					c.cut()
					c = w.admin(t, fmt.Sprint(handling), 5, keeps(time.Hour))
					c.quiet()
				}
			}
		}
	})
}

// TestBasicsRetainAsPublished: RETAIN is forwarded where it is asked for
// [MQTT-3.3.1-13], and is set on what is told at SUBSCRIBE either way.
func TestBasicsRetainAsPublished(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pub := w.admin(t, "pub", 5, nil)
		for _, rap := range []bool{false, true} {
			c := w.admin(t, fmt.Sprint(rap), 5, nil)
			pub.publish("t", "old", 1, retained)
			c.subscribe(packets.Subscription{Filter: "t", Qos: 1, RetainAsPublished: rap})
			if !c.gets("t", "old", 1).FixedHeader.Retain {
				t.Error("a retained message without RETAIN")
			}
			pub.publish("t", "new", 1, retained)
			if got := c.gets("t", "new", 1).FixedHeader.Retain; got != rap {
				t.Errorf("Retain As Published %v: RETAIN %v", rap, got)
			}
			pub.publish("t", "plain", 1)
			if c.gets("t", "plain", 1).FixedHeader.Retain {
				t.Error("RETAIN on what was published without")
			}
		}
	})
}

// TestBasicsRetainedBound: what there is no room for is refused, and replacing
// or clearing makes room.
func TestBasicsRetainedBound(t *testing.T) {
	k := kept{messages: map[string]*message{}, most: 1000}
	big := make([]byte, 1<<20)
	n := 0
	for ; k.set(&message{topic: fmt.Sprint(n), payload: big}) == nil; n++ {
	}
	if n != 63 { // and their topics
		t.Errorf("%d MiB were kept, want 63", n)
	}
	if err := k.set(&message{topic: "0", payload: big}); err != nil {
		t.Errorf("not replaced: %v", err)
	}
	k.set(&message{topic: "0"})
	if err := k.set(&message{topic: "again", payload: big}); err != nil {
		t.Errorf("no room after one was cleared: %v", err)
	}
	const most = 100
	k = kept{messages: map[string]*message{}, most: most}
	for n = 0; k.set(&message{topic: fmt.Sprint(n), payload: []byte("x")}) == nil; n++ {
	}
	if n != most {
		t.Errorf("%d messages were kept, want %d", n, most)
	}
}

// TestBasicsExpiry: what has expired is not delivered [MQTT-3.3.2-5], what waits
// is delivered with the time that is left [MQTT-3.3.2-6].
func TestBasicsExpiry(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pub := w.admin(t, "pub", 5, nil)
		sub := w.admin(t, "sub", 5, keeps(time.Hour))
		sub.listens("t/#", 1)
		sub.bye()
		expires := func(seconds uint32) func(*packets.Packet) {
			return func(pk *packets.Packet) {
				pk.Properties.MessageExpiryInterval = seconds
				retained(pk)
			}
		}
		pub.publish("t/short", "x", 1, expires(5))
		pub.publish("t/long", "x", 1, expires(100))
		pub.publish("t/never", "x", 1)
		settle(10 * time.Second)
		sub = w.admin(t, "sub", 5, keeps(time.Hour))
		if pk := sub.gets("t/long", "x", 1); pk.Properties.MessageExpiryInterval > 90 || pk.Properties.MessageExpiryInterval < 85 {
			t.Errorf("%d s are left of 100 after more than 10", pk.Properties.MessageExpiryInterval)
		}
		if pk := sub.gets("t/never", "x", 1); pk.Properties.MessageExpiryInterval != 0 {
			t.Errorf("%d s are left of a message without expiry", pk.Properties.MessageExpiryInterval)
		}
		old := w.admin(t, "old", 4, nil)
		old.listens("t/#", 1)
		old.gets("t/long", "x", 1)
		old.quiet()
		settle(3 * time.Minute)
		if n := len(w.broker.kept.messages); n != 0 {
			t.Errorf("%d expired retained messages are kept in memory", n)
		}
	})
}

// TestBasicsProperties: everything that belongs to a message travels with it,
// unaltered and in order [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16]
// [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20], also to who asked for no
// problem information, and retained.
func TestBasicsProperties(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pub, old := w.admin(t, "pub", 5, nil), w.admin(t, "old", 4, nil)
		want := packets.Properties{
			PayloadFormat: 1, PayloadFormatFlag: true, ContentType: "text/plain", ResponseTopic: "answers/here", CorrelationData: []byte{0, 1, 0xFF},
			User: []packets.UserProperty{{Key: "b", Val: "1"}, {Key: "a", Val: "2"}, {Key: "b", Val: "1"}, {Key: "", Val: ""}, {Key: "grüß", Val: strings.Repeat("x", 1000)}},
		}
		for _, noProblems := range []bool{false, true} {
			sub := w.admin(t, fmt.Sprint(noProblems), 5, func(pk *packets.Packet) { pk.Properties.RequestProblemInfoFlag = noProblems })
			sub.listens("t/"+fmt.Sprint(noProblems), 2)
			for qos := range byte(3) {
				pub.publish("t/"+fmt.Sprint(noProblems), "x", qos, retained, func(pk *packets.Packet) { pk.Properties = want })
				if diff := cmp.Diff(want, sub.gets("t/"+fmt.Sprint(noProblems), "x", qos).Properties); diff != "" {
					t.Errorf("live (-want +got):\n%s", diff)
				}
			}
			sub.listens("t/+", 0)
			if diff := cmp.Diff(want, sub.gets("t/false", "x", 0).Properties); diff != "" {
				t.Errorf("retained (-want +got):\n%s", diff)
			}
		}
		old.listens("t/false", 1) // 3.1.1 has none of them
		old.gets("t/false", "x", 1)
		// Acknowledgements to who asked for none carry neither reason string
		// nor user properties [MQTT-3.1.2-29].
		c := w.admin(t, "c", 5, func(pk *packets.Packet) { pk.Properties.RequestProblemInfoFlag = true })
		c.send(publishOf("pairs/none/notes/ann/x", "x", 1, 3))
		if pk := c.want(packets.Puback); pk.ReasonCode < 0x80 || pk.Properties.ReasonString != "" || len(pk.Properties.User) > 0 {
			t.Errorf("PUBACK 0x%02X %q %v, want an error without words", pk.ReasonCode, pk.Properties.ReasonString, pk.Properties.User)
		}
	})
}

// TestBasicsRetainedAndLive: a publish beside a SUBSCRIBE comes once, after what
// was retained before it, and SUBACK comes first.
func TestBasicsRetainedAndLive(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pub, sub := w.admin(t, "pub", 5, nil), w.admin(t, "sub", 5, nil)
		for i := range 200 {
			topic := fmt.Sprint("t/", i)
			pub.publish(topic, "old", 1, retained)
			sub.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1, Filters: packets.Subscriptions{{Filter: topic, Qos: 1}}})
			pub.publish(topic, "new", 1, retained)
			sub.want(packets.Suback)
			got := ""
			for pk, _, ok := sub.next(time.Millisecond); ok; pk, _, ok = sub.next(time.Millisecond) {
				sub.ack(packets.Puback, pk.PacketID, 0)
				got += string(pk.Payload)
			}
			if got != "oldnew" && got != "new" {
				t.Fatalf("round %d: got %q, want old and new or new alone", i, got)
			}
		}
	})
}
