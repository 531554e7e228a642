package broker

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// tails shortens topics to what follows the pair's id.
func (w *world) tails(pks []packets.Packet) []string {
	out := []string{}
	for _, pk := range pks {
		out = append(out, strings.TrimPrefix(pk.TopicName, "pairs/"+w.pair.ID+"/"))
	}
	return out
}

// TestPacketIDs: a redelivery has the packet id of the delivery, and DUP;
// everything else has neither.
func TestPacketIDs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		c := w.wire("ben", "phone", nil)
		c.subscribe(packets.Subscription{Filter: w.photosOf("ann")[0].Filter, Qos: 1})
		c.await(time.Second)
		ann.sendN(t, 0, 3)
		if diff := cmp.Diff([]string{"p000 qos1 id1", "p001 qos1 id2", "p002 qos1 id3"}, brief(c.await(time.Second))); diff != "" {
			t.Fatalf("at first (-want +got):\n%s", diff)
		}
		c.answer(packets.Puback, 2)
		settle(time.Second)
		for range 2 {
			c.Close()
			settle(time.Second)
			c = w.wire("ben", "phone", nil)
			if diff := cmp.Diff([]string{"p000 qos1 id1 dup", "p002 qos1 id3 dup"}, brief(c.only(packets.Publish, time.Second))); diff != "" {
				t.Fatalf("after a reconnect (-want +got):\n%s", diff)
			}
		}
		ann.sendN(t, 3, 4)
		if diff := cmp.Diff([]string{"p003 qos1 id4"}, brief(c.await(time.Second))); diff != "" {
			t.Fatalf("a new one (-want +got):\n%s", diff)
		}
		c.answer(packets.Puback, 1)
		settle(time.Second)
		c.Close()
		w.restart() // which forgets what was sent, not what was acknowledged
		c = w.wire("ben", "phone", nil)
		if diff := cmp.Diff([]string{"p002 qos1 id1", "p003 qos1 id2"}, brief(c.only(packets.Publish, time.Second))); diff != "" {
			t.Errorf("after a restart (-want +got):\n%s", diff)
		}
	})
}

// TestPacketIDsInUse are not given again, and none is 0.
func TestPacketIDsInUse(t *testing.T) {
	s := session{nextID: 65534, sent: []*inflight{{id: 1}, {id: 65535}, {id: 2}}}
	if id := s.packetID(); id != 3 {
		t.Errorf("got %d, want 3: 65535, 1 and 2 are in use", id)
	}
}

// TestWindow is the smaller of the client's Receive Maximum and ours, and of
// as many bytes as Config.WindowBytes.
func TestWindow(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		sub := packets.Subscription{Filter: w.photosOf("ann")[0].Filter, Qos: 1}
		var all []*packetClient
		for _, tc := range []struct {
			name    string
			connect func(*packets.Packet)
		}{
			{"a", nil},
			{"b", func(pk *packets.Packet) { pk.Properties.ReceiveMaximum = 5 }},
			{"c", func(pk *packets.Packet) { pk.Properties.ReceiveMaximum = 60 }},
			{"d", v3(false)},
		} {
			c := w.wire("ben", tc.name, tc.connect)
			c.subscribe(sub)
			c.await(time.Second)
			all = append(all, c)
		}
		want := ann.sendN(t, 0, 40)
		for i, n := range []int{16, 5, 16, 16} {
			c := all[i]
			got := c.await(time.Second)
			if len(got) != n {
				t.Errorf("client %d got %d without an answer, want %d", i, len(got), n)
			}
			for len(got) < len(want) { // each PUBACK brings one
				c.answer(packets.Puback, got[len(got)-n].PacketID)
				more := c.await(time.Second)
				if len(more) != 1 {
					t.Fatalf("client %d got %d for its PUBACK, want 1", i, len(more))
				}
				got = append(got, more...)
			}
			var topics []string
			for _, pk := range got {
				topics = append(topics, pk.TopicName)
			}
			if diff := cmp.Diff(want, topics); diff != "" {
				t.Errorf("client %d (-want +got):\n%s", i, diff)
			}
		}
	})
}

func TestByteWindow(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		c := w.wire("ben", "phone", nil)
		c.subscribe(packets.Subscription{Filter: w.photosOf("ann")[0].Filter, Qos: 1})
		c.await(time.Second)
		big := string(make([]byte, 1<<20))
		for _, id := range []string{"a", "b", "c", "d", "e", "f", "g"} {
			if err := ann.send(moment.Photo, id, big); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.await(time.Second); len(got) != 4 {
			t.Errorf("got %d photos of 1 MiB without an answer, want the 4 of 4 MiB", len(got))
		}
		c.answer(packets.Puback, 2)
		if got := c.await(time.Second); len(got) != 1 {
			t.Errorf("got %d for a PUBACK, want 1", len(got))
		}
	})
}

// TestExpiryCountsDown (MQTT 5, section 3.3.2.3.3): a delivery and each
// redelivery say how much is left; what ran out is not sent again.
func TestExpiryCountsDown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.wire("ben", "phone", nil)
		c.subscribe(packets.Subscription{Filter: "pairs/" + w.pair.ID + "/notes/#", Qos: 1})
		c.await(time.Second)
		c.Close()
		ann := w.wire("ann", "phone", nil)
		for id, expiry := range map[string]uint32{"a": 100, "b": 0} {
			ann.publish(packets.Packet{
				FixedHeader: packets.FixedHeader{Qos: 1}, PacketID: 1, TopicName: "pairs/" + w.pair.ID + "/notes/ann/" + id, Payload: []byte("x"),
				Properties: packets.Properties{MessageExpiryInterval: expiry},
			})
			settle(0)
		}
		left := func() map[string]uint32 {
			c = w.wire("ben", "phone", nil)
			out := map[string]uint32{}
			for _, pk := range c.only(packets.Publish, 0) {
				out[pk.TopicName[len(pk.TopicName)-1:]] = pk.Properties.MessageExpiryInterval
			}
			c.Close()
			settle(0)
			return out
		}
		start := time.Now()
		for _, tc := range []struct {
			at   time.Duration
			want map[string]uint32
		}{
			{30 * time.Second, map[string]uint32{"a": 70, "b": 0}},
			{99 * time.Second, map[string]uint32{"a": 1, "b": 0}},
			{101 * time.Second, map[string]uint32{"b": 0}},
		} {
			settle(time.Until(start.Add(tc.at)))
			if diff := cmp.Diff(tc.want, left()); diff != "" {
				t.Errorf("after %v (-want +got):\n%s", tc.at, diff)
			}
		}
	})
}

// TestExpiresWhileItIsRead: what runs out between the disk and the client is
// not sent, and what is left of the others is counted when they are.
func TestExpiresWhileItIsRead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.wire("ann", "phone", nil)
		for id, expiry := range map[string]uint32{"a": 10, "b": 100} {
			ann.publish(packets.Packet{
				FixedHeader: packets.FixedHeader{Qos: 1}, PacketID: 1, TopicName: "pairs/" + w.pair.ID + "/notes/ann/" + id, Payload: []byte("x"),
				Properties: packets.Properties{MessageExpiryInterval: expiry},
			})
		}
		settle(0)
		w.set(func() {
			w.onRead = func(got ledger.Batch) {
				if len(got.Entries) > 0 {
					time.Sleep(20 * time.Second)
				}
			}
		})
		ben := w.connect("ben", func(c *mqttlink.Config) {
			c.SessionExpiry = 0
			c.Subscriptions = []mqttlink.Subscription{{Filter: "pairs/" + w.pair.ID + "/notes/#", QoS: 1, Backfill: "all"}}
		})
		defer ben.end()
		settle(time.Minute)
		if got := ben.topics(); len(got) != 1 || !strings.HasSuffix(got[0], "/b") {
			t.Errorf("got %v, want b alone", got)
		}
	})
}

// TestLatestExpires: an expired photo is no retained value any more, and one
// that will expire says so.
func TestLatestExpires(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.wire("ann", "phone", nil)
		ann.publish(packets.Packet{
			FixedHeader: packets.FixedHeader{Qos: 1}, PacketID: 1, TopicName: "pairs/" + w.pair.ID + "/photos/ann/a", Payload: []byte("x"),
			Properties: packets.Properties{MessageExpiryInterval: 100},
		})
		settle(30 * time.Second)
		subs := []packets.Subscription{
			{Filter: "pairs/" + w.pair.ID + "/latest/+"}, {Filter: "pairs/" + w.pair.ID + "/newest"},
		}
		c := w.wire("ben", "phone", nil)
		c.subscribe(subs...)
		got := c.only(packets.Publish, time.Second)
		for _, pk := range got {
			if left := pk.Properties.MessageExpiryInterval; left != 70 {
				t.Errorf("%s expires in %ds, want 70", pk.TopicName, left)
			}
		}
		if len(got) != 2 {
			t.Errorf("got %v, want latest and newest", w.tails(got))
		}
		settle(time.Minute + 20*time.Second)
		c.subscribe(subs...)
		if got := c.only(packets.Publish, time.Second); len(got) > 0 {
			t.Errorf("got %v after they have expired", w.tails(got))
		}
	})
}

// TestTooLargeForTheClient: a moment over its Maximum Packet Size counts as
// delivered (MQTT 5, section 3.1.2.11.4): nothing waits for its PUBACK.
func TestTooLargeForTheClient(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		c := w.wire("ben", "phone", func(pk *packets.Packet) {
			pk.Properties.MaximumPacketSize, pk.Properties.ReceiveMaximum = 1000, 2
		})
		c.subscribe(packets.Subscription{Filter: w.photosOf("ann")[0].Filter, Qos: 1})
		c.await(time.Second)
		for i := range 6 {
			payload := "small"
			if i < 5 {
				payload = strings.Repeat("x", 2000)
			}
			if err := ann.send(moment.Photo, "p"+string(rune('0'+i)), payload); err != nil {
				t.Fatal(err)
			}
		}
		got := c.await(time.Second)
		if len(got) != 1 || !strings.HasSuffix(got[0].TopicName, "p5") {
			t.Fatalf("got %v, want p5", w.tails(got))
		}
		c.answer(packets.Puback, got[0].PacketID)
		settle(time.Second)
		all, err := w.broker.Sessions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if s.ID == "ben/phone" && s.Backlog != 0 {
				t.Errorf("%d are not acknowledged", s.Backlog)
			}
		}
	})
}

// TestRedeliveryOfATakenBackMoment looks at that moment's place, not at all
// that follows.
func TestRedeliveryOfATakenBackMoment(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		c := w.wire("ben", "phone", func(pk *packets.Packet) { pk.Properties.ReceiveMaximum = 2 })
		c.subscribe(packets.Subscription{Filter: w.photosOf("ann")[0].Filter, Qos: 1})
		c.await(time.Second)
		ann.sendN(t, 0, 100)
		c.Close()
		settle(time.Second)
		if err := ann.send(moment.Delete, "p000", ""); err != nil {
			t.Fatal(err)
		}
		var passed atomic.Int64
		w.set(func() {
			w.onRead = func(got ledger.Batch) { // from the place of p000 on
				if len(got.Entries) == 0 {
					passed.Add(int64(got.Through))
				}
			}
		})
		c = w.wire("ben", "phone", func(pk *packets.Packet) { pk.Properties.ReceiveMaximum = 2 })
		got := c.only(packets.Publish, time.Second)
		if diff := cmp.Diff([]string{"p001 qos1 id2 dup", "p002 qos1 id3"}, brief(got)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if n := passed.Load(); n > 0 {
			t.Errorf("a read went to the log's end")
		}
	})
}
