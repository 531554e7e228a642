package broker

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/token"
)

// TestBasicsOverlapping: one copy, at the highest QoS, with every identifier
// [MQTT-3.3.4-2] [MQTT-3.3.4-4]; a filter that is subscribed again is replaced
// [MQTT-3.8.4-3].
func TestBasicsOverlapping(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pub, sub := w.admin(t, "pub", 5, nil), w.admin(t, "sub", 5, nil)
		check := func(topic string, qos byte, ids ...int) {
			t.Helper()
			pub.publish(topic, "x", 2)
			if diff := cmp.Diff(ids, sub.gets(topic, "x", qos).Properties.SubscriptionIdentifier); diff != "" {
				t.Errorf("identifiers of %s (-want +got):\n%s", topic, diff)
			}
			sub.quiet()
		}
		sub.listensWithID("a/#", 0, 300)
		sub.listensWithID("a/+", 2, 2)
		sub.listens("a/b", 1)
		check("a/b", 2, 2, 300)
		check("a/b/c", 0, 300)
		sub.listensWithID("a/+", 1, 268_435_455)
		check("a/b", 1, 300, 268_435_455)
		sub.listens("a/+", 1) // a subscription without an identifier
		check("a/b", 1, 300)
		// No Local of one filter says nothing about another.
		sub.subscribe(packets.Subscription{Filter: "a/b", Qos: 1, NoLocal: true})
		sub.publish("a/b", "own", 0)
		sub.gets("a/b", "own", 0)
	})
}

// TestBasicsNoLocal: [MQTT-3.8.3-3].
func TestBasicsNoLocal(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.admin(t, "a", 5, keeps(time.Hour)), w.admin(t, "b", 5, nil)
		a.subscribe(packets.Subscription{Filter: "t", Qos: 1, NoLocal: true})
		a.publish("t", "own", 1)
		a.quiet()
		b.publish("t", "other's", 1)
		a.gets("t", "other's", 1)
		a.cut()
		a = w.admin(t, "a", 5, keeps(time.Hour)) // the option is the session's
		a.publish("t", "own", 1)
		a.quiet()
		// What is retained is sent, whoever it is from (MQTT 5, section 3.8.3.1).
		a.publish("t", "kept", 1, retained)
		a.subscribe(packets.Subscription{Filter: "t", Qos: 1, NoLocal: true})
		a.gets("t", "kept", 1)
	})
}

// TestBasicsUnsubscribe: reason codes by filter [MQTT-3.11.3-1], and what is in
// flight stays [MQTT-3.10.4-3].
func TestBasicsUnsubscribe(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		c, other := w.admin(t, "c", version, nil), w.admin(t, "other", version, nil)
		other.listens("a", 1)
		other.listens("a/b/c", 1)
		other.publish("kept", "x", 1, retained)
		c.listens("mine", 1)
		c.listens("$share/g/a", 1)
		other.publish("mine", "x", 1)
		pk := c.want(packets.Publish)
		codes := c.unsubscribe("mine", "a", "a/b", "kept", "$share/g/a", "$share/h/a")
		if want := []byte{0, 0x11, 0x11, 0x11, 0, 0x11}; version == 5 && !bytes.Equal(codes, want) {
			t.Errorf("UNSUBACK % x, want % x", codes, want)
		}
		c.ack(packets.Puback, pk.PacketID, 0)
		other.publish("mine", "x", 1)
		other.publish("a", "x", 1)
		c.quiet()
		other.gets("a", "x", 1)
		if codes := c.unsubscribe("mine"); version == 5 && codes[0] != 0x11 {
			t.Errorf("UNSUBACK 0x%02X for a filter that was there once, want 0x11", codes[0])
		}
	})
}

// TestBasicsFiltersOfUsers: the same for everybody else.
func TestBasicsFiltersOfUsers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		filter := "pairs/" + w.pair.ID + "/live/#"
		as := func(user string) func(*packets.Packet) {
			return func(pk *packets.Packet) {
				pk.Connect.Password = []byte(w.token(token.Principal{User: user, Role: token.RoleApp}))
			}
		}
		ann, ben := w.admin(t, "p", 5, as("ann")), w.admin(t, "p", 5, as("ben"))
		ann.listens(filter, 1)
		if codes := ben.unsubscribe(filter); codes[0] != 0x11 {
			t.Errorf("0x%02X for the partner's filter, want 0x11", codes[0])
		}
		if codes := ann.unsubscribe(filter); codes[0] != 0 {
			t.Errorf("0x%02X for one's own, want 0", codes[0])
		}
		// One filter like this would hold mochi's index for minutes.
		if codes := ann.subscribe(packets.Subscription{Filter: "pairs/" + w.pair.ID + strings.Repeat("/", 60_000)}); codes[0] != 0x8F {
			t.Errorf("0x%02X for a filter of 60,000 levels, want 0x8F", codes[0])
		}
	})
}

// TestBasicsFilters: which filters are valid (MQTT 5, section 4.7), and what
// they match.
func TestBasicsFilters(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		c := w.admin(t, "c", version, nil)
		refused := byte(0x8F)
		if version < 5 {
			refused = 0x80
		}
		for filter, ok := range map[string]bool{
			"a/#/b": false, "a#": false, "a/b#": false, "#/a": false, "##": false, "a/#/#": false, "#/#": false,
			"a+": false, "+a/b": false, "a/+b/c": false, "++": false, "": false,
			"$share/g": false, "$share//a": false, "$share/g/": false, "$share/g+/a": false, "$share/#/a": false, "$share/g/a#": false,
			strings.Repeat("/", 65535): false, strings.Repeat("+/", 200) + "+": false,
			"#": true, "+": true, "/": true, "+/+": true, "/+": true, "a/#": true, "+/#": true, "a//b": true, "$share/g/#": true,
			"$SYS/#": true, strings.Repeat("x", 65535): true, strings.Repeat("+/", 199) + "+": true,
		} {
			codes := c.subscribe(packets.Subscription{Filter: "before/" + fmt.Sprint(ok), Qos: 0}, packets.Subscription{Filter: filter, Qos: 1})
			for c.early = nil; ; { // what $SYS retains
				if _, _, more := c.next(time.Millisecond); !more {
					break
				}
			}
			want := []byte{0, 1}
			if !ok {
				want[1] = refused
			}
			if !bytes.Equal(codes, want) {
				t.Errorf("%.20q: SUBACK % x, want % x", filter, codes, want)
			}
		}
	})
	inWorld(t, func(t *testing.T, w *world) {
		pub := w.admin(t, "pub", 5, nil)
		for i, tc := range []struct {
			filter string
			match  string
		}{
			{"sport/#", "sport sport/ sport/x sport/x/y"},
			{"sport/+", "sport/ sport/x"},
			{"+", "sport"},
			{"+/+", "/ sport/ /x sport/x"},
			{"+/#", "/ sport sport/ /x sport/x sport/x/y"},
			{"#", "/ sport sport/ /x sport/x sport/x/y"},
			{"/#", "/ /x"},
			{"/+", "/ /x"},
			{"Sport", ""}, // [MQTT-4.7.3-4]
			{"$other/#", "$other/x"},
			{"$share/g/+/#", "/ sport sport/ /x sport/x sport/x/y"},
		} {
			c := w.admin(t, fmt.Sprint(i), 5, nil)
			c.listens(tc.filter, 1)
			var live, kept, before []string
			gather := func(into *[]string) {
				for {
					pk, _, ok := c.next(time.Millisecond)
					if !ok {
						return
					}
					c.ack(packets.Puback, pk.PacketID, 0)
					*into = append(*into, pk.TopicName)
				}
			}
			gather(&before)
			topics := []string{"/", "sport", "sport/", "/x", "sport/x", "sport/x/y", "$other/x"}
			for _, topic := range topics {
				pub.publish(topic, "x", 1, retained)
				gather(&live)
			}
			c.listens(tc.filter, 1)
			gather(&kept)
			want := strings.Fields(tc.match)
			slices.Sort(want)
			slices.Sort(live)
			slices.Sort(kept)
			if !slices.Equal(live, want) {
				t.Errorf("%s delivers %q, want %q", tc.filter, live, want)
			}
			if shared := strings.HasPrefix(tc.filter, "$share"); shared && len(kept) > 0 || !shared && !slices.Equal(kept, want) {
				t.Errorf("%s has retained %q, want %q", tc.filter, kept, want)
			}
			c.bye()
		}
	})
}

// TestBasicsSys: $SYS is the broker's to publish, and not for # or + to match
// [MQTT-4.7.2-1].
func TestBasicsSys(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		wild, sys := w.admin(t, "wild", version, keeps(time.Hour)), w.admin(t, "sys", version, nil)
		for _, f := range []string{"#", "+/#", "$share/g/#"} {
			wild.listens(f, 1)
		}
		again := w.admin(t, "again", version, keeps(time.Hour))
		again.listens("$share/h/#", 1)
		again.cut()
		again = w.admin(t, "again", version, keeps(time.Hour))
		sys.listens("$SYS/broker/version", 1)
		sys.want(packets.Publish)
		settle(11 * time.Minute) // the next round of values
		sys.want(packets.Publish)
		wild.quiet()
		again.quiet()
		// MQTT 5 is told why; 3.1.1 can only be closed, or be told a lie.
		sys.send(publishOf("$SYS/broker/version", "mine", 1, 5))
		if version < 5 {
			sys.closed(5 * time.Second)
		} else if code := sys.acked(packets.Puback, 5); code != 0x90 {
			t.Errorf("PUBACK 0x%02X, want 0x90", code)
		} else if code := sys.publish("$SYS/x", "mine", 2); code != 0x90 {
			t.Errorf("PUBREC 0x%02X, want 0x90", code)
		}
	})
}

// TestBasicsShared: each message to one of a group; each group gets its own, and
// so do other subscriptions (MQTT 5, section 4.8.2).
func TestBasicsShared(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		pub, plain := w.admin(t, "pub", 5, nil), w.admin(t, "plain", 5, nil)
		plain.listens("t/+", 2)
		counts := map[string]int{}
		members := map[string][]*wire{}
		for _, group := range []string{"g", "h"} {
			for i := range 3 {
				c := w.admin(t, fmt.Sprint(group, i), 5, nil)
				c.listensWithID("$share/"+group+"/t/#", byte(i), i+1)
				members[group] = append(members[group], c)
			}
		}
		gone := w.admin(t, "gone", 5, keeps(time.Hour))
		gone.listens("$share/g/t/#", 1)
		gone.cut()
		const n = 60
		for i := range n {
			payload := fmt.Sprint(i)
			pub.publish("t/x", payload, 2)
			plain.gets("t/x", payload, 2)
			for group, cs := range members {
				for k, c := range cs {
					if _, _, ok := peek(c); ok {
						pk := c.gets("t/x", payload, byte(k))
						if !slices.Equal(pk.Properties.SubscriptionIdentifier, []int{k + 1}) {
							t.Errorf("identifiers %v, want %d", pk.Properties.SubscriptionIdentifier, k+1)
						}
						counts[group]++
						counts[fmt.Sprint(group, k)]++
					}
				}
			}
		}
		for _, group := range []string{"g", "h"} {
			if counts[group] != n {
				t.Errorf("group %s got %d of %d messages", group, counts[group], n)
			}
			for k := range 3 {
				if counts[fmt.Sprint(group, k)] == 0 {
					t.Errorf("member %d of %s got nothing", k, group)
				}
			}
		}
		gone = w.admin(t, "gone", 5, keeps(time.Hour))
		gone.quiet() // the others were there
		for _, c := range members["g"] {
			c.bye()
		}
		gone.cut()
		pub.publish("t/x", "alone", 1)
		gone = w.admin(t, "gone", 5, keeps(time.Hour))
		gone.gets("t/x", "alone", 1)
	})
}

// peek tells whether something has come.
func peek(c *wire) (pk packets.Packet, open, ok bool) {
	if pk, open, ok = c.next(time.Millisecond); ok {
		c.early = append([]packets.Packet{pk}, c.early...)
	}
	return pk, open, ok
}
