package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// header is the fixed header of a packet of n more bytes.
func header(first byte, n int) []byte { return binary.AppendUvarint([]byte{first}, uint64(n)) }

// counted is what a counter says.
func counted(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	got, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return got[0].GetMetric()[0].GetCounter().GetValue()
}

// lastPacket returns the packet that ends b, by its fixed header: all of a
// connection's packets that a test here sees are short.
func lastPacket(b []byte) (last []byte) {
	for len(b) > 1 && len(b) >= 2+int(b[1]) && b[1] < 0x80 {
		last, b = b[:2+b[1]], b[2+b[1]:]
	}
	return last
}

// TestOversizedPackets: one that announces too much is refused before it is
// allocated, with 0x95 where the version has it.
func TestOversizedPackets(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		largest := int(w.broker.mq.Options.Capabilities.MaximumPacketSize)
		old := func(pk *packets.Packet) { pk.ProtocolVersion = 4 }
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for name, tc := range map[string]struct {
			header []byte
			change func(*packets.Packet)
			code   byte // of DISCONNECT; 0: none
		}{
			"PUBLISH":           {header(0x32, largest), nil, 0x95},
			"PUBLISH in 3.1.1":  {header(0x32, largest), old, 0},
			"SUBSCRIBE of 1 MB": {header(0x82, 1<<20), nil, 0x95},
			"PUBACK of 1 MB":    {header(0x40, 1<<20), nil, 0x95},
			"AUTH of 1 MB":      {header(0xF0, 1<<20), nil, 0x95},
			"CONNECT again":     {header(0x10, 1<<20), nil, 0x95},
		} {
			for range 10 {
				c := w.raw()
				c.Write(w.connectBytes(t, "ann", "x", tc.change))
				settle(time.Second)
				before := counted(t, w.broker.metrics.overLimit)
				c.Write(tc.header)
				got := lastPacket(ended(t, c, time.Second))
				if is := got[0] == 0xE0 && got[2] == tc.code; is != (tc.code != 0) || got[0] != 0xE0 && got[0] != 0x20 {
					t.Errorf("%s: ended with % x, want DISCONNECT 0x%02X", name, got, tc.code)
				}
				if counted(t, w.broker.metrics.overLimit) != before+1 {
					t.Errorf("%s is not counted", name)
				}
				c.Close()
			}
		}
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
			t.Errorf("%d MB were allocated for 60 packets that were refused", grown>>20)
		}
	})
}

// TestPhotoTooLarge: one that is only somewhat too large is answered, and the
// connection stays.
func TestPhotoTooLarge(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.raw()
		defer c.Close()
		c.Write(w.connectBytes(t, "ann", "x", nil))
		c.Write(encode(t, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 5, PacketID: 7,
			TopicName: "pairs/" + w.pair.ID + "/photos/ann/p", Payload: make([]byte, w.cfg.PhotoBytes+1<<20),
		}))
		settle(time.Second)
		if got := lastPacket(readAll(c)); !bytes.HasPrefix(got, []byte{0x40, byte(len(got) - 2), 0, 7, 0x83}) {
			t.Errorf("answered with % x, want PUBACK 0x83", got)
		}
		if w.broker.Connections() != 1 {
			t.Error("the connection has ended")
		}
	})
}

// readAll returns what has come.
func readAll(c net.Conn) (out []byte) {
	b := make([]byte, 4096)
	for {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, err := c.Read(b)
		if out = append(out, b[:n]...); err != nil {
			return out
		}
	}
}

// TestFilterLimits: filters over a limit get 0x97, and nothing of them stays.
func TestFilterLimits(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.limited(func(l *LimitsConfig) { l.SessionFilters = 5 })
		ben := w.connect("ben", nil)
		defer ben.end()
		root := "pairs/" + w.pair.ID + "/"
		l := w.cfg.Limits
		for i, tc := range []struct {
			filter string
			ok     bool
		}{
			{root + strings.Repeat("x", l.TopicBytes-len(root)), true},
			{root + strings.Repeat("x", l.TopicBytes-len(root)+1), false},
			{root + "x" + strings.Repeat("/x", l.TopicLevels-3), true},
			{root + "x" + strings.Repeat("/x", l.TopicLevels-2), false},
			{root + "a", true}, {root + "b", true}, {root + "c", true},
			{root + "a", true}, // again: no new one
			{root + "d", false},
		} {
			before := counted(t, w.broker.metrics.overLimit)
			err := ben.Subscribe(t.Context(), mqttlink.Subscription{Filter: tc.filter, QoS: 1})
			var re *mqttlink.ReasonError
			if tc.ok && err != nil || !tc.ok && (!errors.As(err, &re) || re.Code != 0x97) {
				t.Errorf("%d: %.60s…: %v, want allowed %v or 0x97", i, tc.filter, err, tc.ok)
			}
			if more := counted(t, w.broker.metrics.overLimit) > before; more == tc.ok {
				t.Errorf("%d: counted %v", i, more)
			}
		}
		s := w.broker.sessions["ben/ben-phone"]
		cl, _ := w.broker.mq.Clients.Get("ben/ben-phone")
		if got, mochi := len(s.filters()), cl.State.Subscriptions.Len(); got != 5 || mochi != 5 {
			t.Errorf("%d filters are kept, %d by mochi; want 5", got, mochi)
		}
	})
}

// TestAdminTopicLimits: what admins keep in memory on topics of their own is
// bounded, and told in the codes of PUBACK.
func TestAdminTopicLimits(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.broker.kept.most = 3
		admin := w.connect("root", withToken(w.token(token.Principal{User: "root", Role: token.RoleAdmin})))
		defer admin.end()
		for i, tc := range []struct {
			topic   string
			payload int
			retain  bool
			code    byte
		}{
			{"ops/1", 1, true, 0}, {"ops/2", 1, true, 0}, {"ops/3", 1, true, 0},
			{"ops/4", 1, true, 0x97}, {"ops/4", 1, false, 0},
			{"ops/3", 2, true, 0}, {"ops/3", 0, true, 0}, {"ops/4", 1, true, 0},
		} {
			err := admin.Publish(t.Context(), mqttlink.Publish{Topic: tc.topic, Payload: make([]byte, tc.payload), QoS: 1, Retain: tc.retain})
			re := &mqttlink.ReasonError{}
			if err != nil && !errors.As(err, &re) || re.Code != tc.code {
				t.Errorf("%d: %.20s: %v, want 0x%02X", i, tc.topic, err, tc.code)
			}
		}
		// At QoS 0 there is no answer.
		if err := admin.Publish(t.Context(), mqttlink.Publish{Topic: "ops/5", Payload: []byte("x"), Retain: true}); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if got := w.broker.kept.matching("ops/#", time.Now()); len(got) != 3 || got[2].topic != "ops/4" {
			t.Errorf("%d messages are kept, want ops/1, ops/2 and ops/4", len(got))
		}
	})
}

// TestLiveTopicsCostNothing: a client may use as many names as it likes, for
// nothing is kept of them.
func TestLiveTopicsCostNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ben := w.connect("ben", func(c *mqttlink.Config) {
			c.Receive = func(*mqttlink.Message) {}
			c.Subscriptions = []mqttlink.Subscription{{Filter: "pairs/" + w.pair.ID + "/live/#"}}
		})
		defer ben.end()
		ann := w.connect("ann", nil)
		defer ann.end()
		n := 0
		send := func(count int) {
			for range count {
				n++
				p := mqttlink.Publish{Topic: moment.LiveTopic(w.pair.ID, "ann", fmt.Sprintf("%0100d", n)), Payload: make([]byte, 1<<10), QoS: 1}
				if err := ann.Publish(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			settle(time.Minute)
		}
		heap := func() int {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int(m.HeapAlloc)
		}
		send(100)
		before := heap()
		send(20_000 / underRace)
		if grown := heap() - before; grown > 4<<20 {
			t.Errorf("the heap has grown by %d after 20,000 names of 100 bytes", grown)
		}
	})
}

// TestTopicAlias: none is taken, as CONNACK says: mochi would keep the whole
// packet for each.
func TestTopicAlias(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.raw()
		defer c.Close()
		c.Write(w.connectBytes(t, "ann", "x", nil))
		c.Write(encode(t, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish}, ProtocolVersion: 5,
			TopicName: moment.LiveTopic(w.pair.ID, "ann", "x"), Payload: []byte("x"),
			Properties: packets.Properties{TopicAlias: 1, TopicAliasFlag: true},
		}))
		if got := lastPacket(ended(t, c, time.Second)); got[0] != 0xE0 || got[2] != 0x94 {
			t.Errorf("ended with % x, want DISCONNECT 0x94", got)
		}
	})
}

// TestPubackEchoesNothing: not the user properties of the publish, which mochi
// would send back.
func TestPubackEchoesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		admin := w.token(token.Principal{User: "root", Role: token.RoleAdmin})
		for topic, raw := range map[string]string{
			"pairs/" + w.pair.ID + "/photos/ann/p":     "",
			moment.LiveTopic(w.pair.ID, "ann", "live"): "",
			"ops/own": admin,
		} {
			c := w.raw()
			c.Write(w.connectBytes(t, "ann", "x", func(pk *packets.Packet) {
				if raw != "" {
					pk.Connect.Password = []byte(raw)
				}
			}))
			c.Write(encode(t, packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 5, PacketID: 7,
				TopicName: topic, Payload: []byte("x"),
				Properties: packets.Properties{User: []packets.UserProperty{{Key: "caption", Val: "echo"}}},
			}))
			settle(time.Second)
			got := readAll(c)
			if bytes.Contains(got, []byte("echo")) || !bytes.Contains(got, []byte{0x40, 2, 0, 7}) && !bytes.Contains(got, []byte{0x40, 4, 0, 7, 0, 0}) {
				t.Errorf("%s: answered with % x, want a bare PUBACK", topic, got)
			}
			c.Close()
		}
	})
}

// TestDelayedWill is told when its session ends, and that is with the
// connection where nothing else was asked for.
func TestDelayedWill(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		topic := moment.LiveTopic(w.pair.ID, "ann", "gone")
		ben := w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = []mqttlink.Subscription{{Filter: topic}} })
		defer ben.end()
		c := w.raw()
		c.Write(w.connectBytes(t, "ann", "x", func(pk *packets.Packet) {
			pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, topic, []byte("bye")
			pk.Connect.WillProperties.WillDelayInterval = 200
		}))
		settle(time.Second)
		c.Close()
		settle(5 * time.Second)
		if ben.last(topic) == nil {
			t.Error("not told though the session has ended")
		}
	})
}

// TestNoPacketIsLogged: mochi logs whole packets of those it refuses.
func TestNoPacketIsLogged(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(quiet{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})})
	pk := packets.Packet{Payload: []byte("secret")}
	log.Warn("refused", "client", "x", "pk", pk)
	log.WithGroup("g").Error("refused", "packet", pk)
	if got := out.String(); strings.Contains(got, "115 101 99") || strings.Contains(got, "secret") || !strings.Contains(got, "client=x") {
		t.Errorf("logged %s", got)
	}
}

func TestLimitsAreChecked(t *testing.T) {
	for key, change := range map[string]func(*LimitsConfig){
		"connections":         func(l *LimitsConfig) { l.Connections = 0 },
		"address_connections": func(l *LimitsConfig) { l.AddressConnections = 0 },
		"user_connections":    func(l *LimitsConfig) { l.UserConnections = -1 },
		"address_connects":    func(l *LimitsConfig) { l.AddressConnects = 0 },
		"login_failures":      func(l *LimitsConfig) { l.LoginFailures = 0 },
		"user_publishes":      func(l *LimitsConfig) { l.UserPublishes = 0 },
		"user_publish_bytes":  func(l *LimitsConfig) { l.UserPublishBytes = 1000 },
		"connect_bytes":       func(l *LimitsConfig) { l.ConnectBytes = 1000 },
		"session_filters":     func(l *LimitsConfig) { l.SessionFilters = 0 },
		"topic_bytes":         func(l *LimitsConfig) { l.TopicBytes = 1 << 16 },
		"topic_levels":        func(l *LimitsConfig) { l.TopicLevels = 4 },
		"retained_topics":     func(l *LimitsConfig) { l.RetainedTopics = 0 },
		"write_memory":        func(l *LimitsConfig) { l.WriteMemory = 4 << 20 },
		"read_memory":         func(l *LimitsConfig) { l.ReadMemory = 4 << 20 },
	} {
		cfg := DefaultConfig()
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&cfg.Limits)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v, want an error that names it", key, err)
		}
	}
}
