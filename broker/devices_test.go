package broker

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/kv"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// device adds a device of user and connects it.
func (w *world) device(user, name string, change func(*mqttlink.Config)) (registry.Device, *peer) {
	w.t.Helper()
	d, err := w.reg.AddDevice(w.t.Context(), user, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return d, w.connectDevice(d, change)
}

func (w *world) connectDevice(d registry.Device, change func(*mqttlink.Config)) *peer {
	w.t.Helper()
	return w.connect(d.User, func(c *mqttlink.Config) {
		withToken(w.token(token.Principal{User: d.User, Device: d.ID, Role: token.RoleDevice}))(c)
		if change != nil {
			change(c)
		}
	})
}

func (p *peer) tell(t *testing.T, topic, payload string) {
	t.Helper()
	if err := p.Publish(t.Context(), mqttlink.Publish{Topic: topic, Payload: []byte(payload), QoS: 1}); err != nil {
		t.Fatal(err)
	}
}

// TestDeviceState is a retained value: told when it changes, and to whoever
// subscribes later, also after a restart; an empty payload ends it, and so do
// the device's revocation and the pair's end.
func TestDeviceState(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		d, frame := w.device("ben", "kitchen", nil)
		defer func() { frame.end() }()
		topic := moment.StateTopic(w.pair.ID, d.ID)
		states := func(c *mqttlink.Config) {
			c.SessionExpiry = 0
			c.Subscriptions = []mqttlink.Subscription{{Filter: "pairs/" + w.pair.ID + "/devices/+/state"}}
		}
		// retained is what somebody finds who subscribes now.
		retained := func() string {
			p := w.connect("ann", func(c *mqttlink.Config) { c.ClientID = "late"; states(c) })
			settle(time.Second)
			p.end()
			m := p.last(topic)
			if m == nil {
				return "nothing"
			}
			if !m.Retained || m.QoS != 0 || len(p.topics()) != 1 {
				t.Errorf("got %v, retained %v at QoS %d; want one, retained, at QoS 0", p.topics(), m.Retained, m.QoS)
			}
			return string(m.Payload)
		}
		ann := w.connect("ann", states)
		defer ann.end()
		if got := retained(); got != "nothing" {
			t.Errorf("at first %q", got)
		}
		frame.tell(t, topic, `{"awake":true}`)
		settle(time.Second)
		if m := ann.last(topic); m == nil || m.Retained || string(m.Payload) != `{"awake":true}` {
			t.Errorf("told %+v, want it without RETAIN", m)
		}
		frame.tell(t, topic, `{"awake":false}`)
		if got := retained(); got != `{"awake":false}` {
			t.Errorf("retained %q", got)
		}
		ann.end()
		frame.end()
		w.restart()
		if got := retained(); got != `{"awake":false}` {
			t.Errorf("after a restart %q", got)
		}
		frame = w.connectDevice(d, nil)
		frame.tell(t, topic, "")
		if got := retained(); got != "nothing" {
			t.Errorf("cleared, but %q", got)
		}
		kept := func() (keys []string) {
			if err := w.broker.deps.KV.Scan(t.Context(), keyState, func(key string, _ []byte) error {
				keys = append(keys, key)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return keys
		}
		other, second := w.device("ann", "hall", nil)
		defer second.end()
		frame.tell(t, topic, "{}")
		second.tell(t, moment.StateTopic(w.pair.ID, other.ID), "{}")
		if n := len(kept()); n != 2 {
			t.Fatalf("%v are kept, want both", kept())
		}
		if _, err := w.reg.RevokeDevice(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if got := kept(); len(got) != 1 || !strings.HasSuffix(got[0], other.ID) {
			t.Errorf("kept %v, want that of the other alone", got)
		}
		late := kv.Op{Key: stateKey(w.pair.ID, d.ID), Value: []byte("{}")} // its last publish was on the way
		if err := w.broker.deps.KV.Apply(t.Context(), late); err != nil {
			t.Fatal(err)
		}
		if got := retained(); got != "nothing" {
			t.Errorf("of a revoked device %q", got)
		}
		if _, err := w.reg.RemovePair(t.Context(), w.pair.ID); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if got := kept(); len(got) > 0 {
			t.Errorf("kept %v of a pair that has ended", got)
		}
	})
}

// TestCommands reach the device from both users, and are not kept.
func TestCommands(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		d, err := w.reg.AddDevice(t.Context(), "ben", "kitchen")
		if err != nil {
			t.Fatal(err)
		}
		topic := moment.CommandTopic(w.pair.ID, d.ID)
		cmds := func(c *mqttlink.Config) { c.Subscriptions = []mqttlink.Subscription{{Filter: topic, QoS: 1}} }
		ann, ben := w.connect("ann", nil), w.connect("ben", nil)
		defer ann.end()
		defer ben.end()
		ann.tell(t, topic, `{"cmd":"early"}`)
		frame := w.connectDevice(d, cmds)
		defer frame.end()
		settle(time.Second)
		ann.tell(t, topic, `{"cmd":"next"}`)
		ben.tell(t, topic, `{"cmd":"sleep"}`)
		settle(time.Second)
		frame.mu.Lock()
		var got []string
		for _, m := range frame.got {
			if m.Retained || m.QoS != 0 {
				t.Errorf("%s came retained %v at QoS %d", m.Payload, m.Retained, m.QoS)
			}
			got = append(got, string(m.Payload))
		}
		frame.mu.Unlock()
		if diff := cmp.Diff([]string{`{"cmd":"next"}`, `{"cmd":"sleep"}`}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestQoS2From311 (section 4.3.3): PUBREC and PUBCOMP, and a repeat before the
// PUBREL, on the same connection or the next, tells nobody twice.
func TestQoS2From311(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		live := moment.LiveTopic(w.pair.ID, "ann", "x")
		ben := w.connect("ben", func(c *mqttlink.Config) {
			c.Subscriptions = append(w.photosOf("ann"), mqttlink.Subscription{Filter: live})
		})
		defer ben.end()
		c := w.wire("ann", "old", v3(false))
		c.connack()
		publish := func(id uint16, topic string, dup bool) {
			c.publish(packets.Packet{FixedHeader: packets.FixedHeader{Qos: 2, Dup: dup}, PacketID: id, TopicName: topic, Payload: []byte("x")})
		}
		answers := func(kind byte, ids ...uint16) {
			t.Helper()
			var got []uint16
			for _, pk := range c.await(time.Second) {
				if pk.FixedHeader.Type != kind || pk.FixedHeader.Qos != 0 {
					t.Errorf("got packet type %d, QoS bits %d; want type %d", pk.FixedHeader.Type, pk.FixedHeader.Qos, kind)
				}
				got = append(got, pk.PacketID)
			}
			if !slices.Equal(got, ids) {
				t.Errorf("answers for %v, want for %v", got, ids)
			}
		}
		photo := "pairs/" + w.pair.ID + "/photos/ann/p"
		publish(5, photo, false)
		publish(6, live, false)
		answers(packets.Pubrec, 5, 6)
		publish(5, photo, true)
		publish(6, live, true)
		answers(packets.Pubrec, 5, 6)
		c.Close()
		settle(time.Second)
		c = w.wire("ann", "old", v3(false))
		if !c.connack().SessionPresent {
			t.Error("no session present")
		}
		publish(5, photo, true)
		publish(6, live, true)
		answers(packets.Pubrec, 5, 6)
		for range 2 { // PUBREL may be repeated too
			c.answer(packets.Pubrel, 5)
			c.answer(packets.Pubrel, 6)
			answers(packets.Pubcomp, 5, 6)
		}
		if diff := cmp.Diff([]string{live, photo}, slices.Sorted(slices.Values(ben.topics()))); diff != "" {
			t.Errorf("ben (-want +got):\n%s", diff)
		}
		publish(6, live, false) // the id is free again
		answers(packets.Pubrec, 6)
		if n := len(ben.topics()); n != 3 {
			t.Errorf("ben got %d, want another live message", n)
		}
	})
}

// TestUnreleasedIsBounded: a client that never sends PUBREL costs no more.
func TestUnreleasedIsBounded(t *testing.T) {
	var s session
	for id := range 60000 {
		if !s.received(uint16(id + 1)) {
			t.Fatalf("id %d came before", id+1)
		}
	}
	if len(s.unreleased) != maxUnreleased || s.received(1) {
		t.Errorf("%d are kept, want %d and the first of all", len(s.unreleased), maxUnreleased)
	}
}
