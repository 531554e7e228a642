package broker

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/moment"
	"pairsync/internal/token"
)

// leaves puts a will into a CONNECT.
func leaves(topic, payload string, qos byte, change ...func(*packets.Packet)) func(*packets.Packet) {
	return func(pk *packets.Packet) {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload, pk.Connect.WillQos = true, topic, []byte(payload), qos
		for _, fn := range change {
			fn(pk)
		}
	}
}

func willDelay(seconds uint32) func(*packets.Packet) {
	return func(pk *packets.Packet) { pk.Connect.WillProperties.WillDelayInterval = seconds }
}

// disconnect sends DISCONNECT with a reason code and, where it is not
// negative, a session expiry.
func (c *wire) disconnect(code byte, expiry int) {
	c.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: code}
	if expiry >= 0 {
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = uint32(expiry), true
	}
	c.send(pk)
}

// TestBasicsWill: published when the connection ends without DISCONNECT 0x00
// [MQTT-3.1.2-8] [MQTT-3.14.4-3], once [MQTT-3.1.2-10], at its QoS.
func TestBasicsWill(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		watch := w.admin(t, "watch", version, nil)
		watch.listens("will/#", 2)
		for name, tc := range map[string]struct {
			end  func(c *wire)
			will bool
		}{
			"cut": {func(c *wire) { c.cut() }, true},
			"bye": {func(c *wire) { c.bye() }, false},
			"a second CONNECT": {func(c *wire) { // [MQTT-3.1.0-2]
				c.conn.Write(w.connectBytes(t, "root", "x", func(pk *packets.Packet) { pk.ProtocolVersion = version }))
				c.closed(time.Second, 0x82)
			}, true},
			"garbage":   {func(c *wire) { c.conn.Write([]byte{0xF3, 0}); c.closed(time.Second) }, true},
			"silence":   {func(c *wire) { c.closed(91 * time.Second) }, true},
			"take-over": {func(c *wire) { w.admin(t, "c", version, nil); c.closed(time.Second, 0x8E) }, true},
			"kicked":    {func(c *wire) { w.broker.Kick("/root/c"); c.closed(time.Second, 0x98) }, true},
			"DISCONNECT 0x04": {func(c *wire) {
				if c.disconnect(0x04, -1); version < 5 {
					c.cut() // which has no such code
				}
			}, true},
			"DISCONNECT 0x04 alone": {func(c *wire) { // as paho-python sends it
				if c.conn.Write([]byte{0xE0, 1, 0x04}); version < 5 {
					c.cut()
				}
			}, true},
			"goodbye 0x00 alone": {func(c *wire) { c.conn.Write([]byte{0xE0, 1, 0x00}); c.closed(time.Second) }, false},
			"DISCONNECT 0x80": {func(c *wire) {
				if c.disconnect(0x80, -1); version < 5 {
					c.cut()
				}
			}, true},
		} {
			if version < 5 && name[:3] == "DIS" {
				tc.will = false // DISCONNECT is a goodbye there, whatever follows
			}
			for qos := range byte(3) {
				c := w.admin(t, "c", version, leaves("will/x", name, qos, func(pk *packets.Packet) { pk.Connect.Keepalive = 60 }))
				tc.end(c)
				if tc.will {
					watch.gets("will/x", name, qos)
				}
				watch.quiet()
			}
		}
	})
}

// TestBasicsWillRetained: a will is retained where it says so, also an empty
// one, which clears [MQTT-3.1.2-14] [MQTT-3.1.2-15].
func TestBasicsWillRetained(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		keep := func(pk *packets.Packet) { pk.Connect.WillRetain = true }
		w.admin(t, "a", version, leaves("w", "kept", 1, keep)).cut()
		w.admin(t, "b", version, leaves("w", "not kept", 1)).cut()
		w.admin(t, "sub1", version, nil).listens("w", 1)
		sub := w.admin(t, "sub", version, nil)
		sub.listens("w", 1)
		sub.gets("w", "kept", 1)
		w.admin(t, "c", version, leaves("w", "", 1, keep)).cut()
		sub.gets("w", "", 1)
		sub.listens("w", 1)
		sub.quiet()
	})
}

// TestBasicsWillProperties: they are those of the message.
func TestBasicsWillProperties(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		want := packets.Properties{
			PayloadFormat: 1, PayloadFormatFlag: true, ContentType: "text/plain", ResponseTopic: "r", CorrelationData: []byte("c"),
			User: []packets.UserProperty{{Key: "b", Val: "1"}, {Key: "a", Val: "2"}}, MessageExpiryInterval: 60,
		}
		watch := w.admin(t, "watch", 5, nil)
		watch.listens("w", 1)
		w.admin(t, "c", 5, leaves("w", "x", 1, func(pk *packets.Packet) {
			pk.Connect.WillProperties = want
			pk.Mods.AllowResponseInfo = true
		})).cut()
		if diff := cmp.Diff(want, watch.gets("w", "x", 1).Properties); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestBasicsWillDelay: after the delay or at the session's end, whichever comes
// first, and not at all for a client that is back [MQTT-3.1.3-9].
func TestBasicsWillDelay(t *testing.T) {
	const slack = 2 * time.Second
	for name, tc := range map[string]struct {
		delay  uint32
		expiry int           // of the session
		back   time.Duration // 0: stays away
		clean  bool
		end    func(c *wire)
		after  time.Duration // 0: no will
	}{
		"delay":                       {delay: 20, expiry: 100, after: 20 * time.Second},
		"session ends first":          {delay: 100, expiry: 20, after: 20 * time.Second},
		"no session":                  {delay: 20, expiry: 0, after: time.Millisecond},
		"back in time":                {delay: 20, expiry: 100, back: 10 * time.Second},
		"back too late":               {delay: 20, expiry: 100, back: 30 * time.Second, after: 20 * time.Second},
		"back with a new session":     {delay: 20, expiry: 100, back: 10 * time.Second, clean: true, after: 10 * time.Second},
		"DISCONNECT 0x04":             {delay: 20, expiry: 100, end: func(c *wire) { c.disconnect(4, -1) }, after: 20 * time.Second},
		"DISCONNECT ends the session": {delay: 20, expiry: 100, end: func(c *wire) { c.disconnect(4, 0) }, after: time.Millisecond},
		"goodbye":                     {delay: 20, expiry: 100, end: func(c *wire) { c.disconnect(0, -1) }},
		"longer than is kept to":      {delay: 1 << 31, expiry: 100_000, after: maxWillDelay},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				watch := w.admin(t, "watch", 5, nil)
				watch.listens("w", 1)
				kept := keeps(time.Duration(tc.expiry) * time.Second)
				c := w.admin(t, "c", 5, leaves("w", "gone", 1, kept, willDelay(tc.delay)))
				start := time.Now()
				if tc.end == nil {
					tc.end = func(c *wire) { c.conn.Close() }
				}
				tc.end(c)
				if tc.back > 0 {
					time.AfterFunc(tc.back-time.Second, func() { // admin settles for a second
						w.dialAdmin(t, "c", 5, func(pk *packets.Packet) {
							kept(pk)
							pk.Connect.Clean = tc.clean
						})
					})
					tc.after -= time.Second * time.Duration(map[bool]int{true: 1}[tc.clean])
				}
				pk, _, ok := watch.next(10 * time.Minute)
				switch took := time.Since(start); {
				case ok != (tc.after > 0):
					t.Errorf("the will came: %v (%q)", ok, pk.Payload)
				case ok && (took < tc.after-time.Millisecond || took > tc.after+slack):
					t.Errorf("the will came after %v, want %v", took, tc.after)
				}
			})
		})
	}
}

// TestBasicsWillRefused: a will is checked at CONNECT as its PUBLISH would be.
func TestBasicsWillRefused(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		for _, tc := range []struct {
			will func(*packets.Packet)
			code byte // of MQTT 5; 0x05 to 3.1.1
		}{
			{leaves("", "x", 0), 0x90},
			{leaves("a/#", "x", 0), 0x90},
			{leaves("a/+", "x", 0), 0x90},
			{leaves("$SYS/x", "x", 0), 0x90},
			{leaves("a", "x", 3), 0x81},                                                            // [MQTT-3.1.2-12]
			{func(pk *packets.Packet) { pk.Connect.WillQos = 1 }, 0x81},                            // [MQTT-3.1.2-11]
			{func(pk *packets.Packet) { pk.Connect.WillRetain = true }, 0x82},                      // [MQTT-3.1.2-13]
			{leaves("pairs/"+w.pair.ID+"/notes/ann/x", "x", 1), 0x87},                              // durable
			{leaves(moment.LiveTopic(w.pair.ID, "ann", "x"), string(make([]byte, 4097)), 1), 0x87}, // too large
			{func(pk *packets.Packet) {
				leaves("w", "x", 1)(pk)
				pk.Connect.Password = nil
				pk.Connect.PasswordFlag = false
			}, 0x86},
		} {
			c := w.dialAdmin(t, "c", version, tc.will)
			want := tc.code
			if version < 5 {
				want = v3Connack(want)
			}
			if pk := c.want(packets.Connack); pk.ReasonCode != want {
				t.Errorf("CONNACK 0x%02X, want 0x%02X", pk.ReasonCode, want)
			}
			c.closed(time.Second)
		}
		watch := w.admin(t, "watch", version, nil)
		watch.listens("#", 0)
		watch.quiet() // who was not let in leaves nothing
	})
}

// TestBasicsWillOfUsers: on a pair's live topic, delayed too; not when the pair
// has ended meanwhile.
func TestBasicsWillOfUsers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		as := func(user string, more ...func(*packets.Packet)) func(*packets.Packet) {
			return func(pk *packets.Packet) {
				for _, fn := range more {
					fn(pk)
				}
				pk.Connect.Password = []byte(w.token(token.Principal{User: user, Role: token.RoleApp}))
			}
		}
		topic := moment.LiveTopic(w.pair.ID, "ann", "gone")
		ben := w.admin(t, "b", 5, as("ben"))
		ben.listens("pairs/"+w.pair.ID+"/live/#", 1)
		dies := func(seconds uint32) {
			c := w.admin(t, "a", 5, as("ann", leaves(topic, "bye", 2, keeps(time.Hour), willDelay(seconds))))
			c.cut()
		}
		dies(0)
		ben.gets(topic, "bye", 0)
		dies(10)
		ben.quiet()
		settle(8 * time.Second)
		ben.gets(topic, "bye", 0)
		dies(10)
		if _, err := w.reg.RemovePair(t.Context(), w.pair.ID); err != nil {
			t.Fatal(err)
		}
		settle(20 * time.Second)
		ben.quiet()
	})
}
