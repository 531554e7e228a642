package broker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// TestBasicsSession: Session Present, Clean Start and the session's expiry
// [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.2.2-2] [MQTT-3.2.2-3].
func TestBasicsSession(t *testing.T) {
	for name, tc := range map[string]struct {
		keep    time.Duration
		end     func(c *wire)
		wait    time.Duration
		clean   bool // Clean Start of the return
		present bool
		only5   bool
	}{
		"kept":                      {keep: time.Hour, wait: time.Minute, present: true},
		"kept after a goodbye":      {keep: time.Hour, end: (*wire).bye, wait: time.Minute, present: true},
		"clean start":               {keep: time.Hour, wait: time.Minute, clean: true},
		"expired":                   {keep: 10 * time.Second, wait: 10 * time.Second, only5: true},
		"almost expired":            {keep: 10 * time.Second, wait: 7 * time.Second, present: true, only5: true},
		"none was asked for":        {keep: 0, wait: time.Millisecond, only5: true},
		"DISCONNECT ends it":        {keep: time.Hour, end: func(c *wire) { c.disconnect(0, 0) }, wait: time.Second, only5: true},
		"DISCONNECT shortens it":    {keep: time.Hour, end: func(c *wire) { c.disconnect(0, 10) }, wait: 12 * time.Second, only5: true},
		"DISCONNECT lengthens it":   {keep: 10 * time.Second, end: func(c *wire) { c.disconnect(0, 100) }, wait: 50 * time.Second, present: true, only5: true},
		"the end, with bookkeeping": {keep: 10 * time.Second, wait: 2 * time.Minute, only5: true},
	} {
		for _, version := range versions {
			if tc.only5 && version < 5 {
				continue
			}
			t.Run(fmt.Sprint(name, "/", version), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					pub := w.admin(t, "pub", version, nil)
					c := w.admin(t, "c", version, keeps(tc.keep))
					if c.connack.SessionPresent {
						t.Error("a session before there was one")
					}
					c.listens("t", 1)
					if tc.end == nil {
						tc.end = (*wire).cut
					}
					tc.end(c)
					settle(time.Millisecond)
					pub.publish("t", "waits", 1)
					settle(tc.wait)
					if _, there := w.broker.adminSessions["/root/c"]; !tc.present && !tc.clean && tc.wait > time.Minute && there {
						t.Error("an expired session is kept in memory")
					}
					c = w.admin(t, "c", version, func(pk *packets.Packet) { keeps(tc.keep)(pk); pk.Connect.Clean = tc.clean })
					if c.connack.SessionPresent != tc.present {
						t.Fatalf("session present %v, want %v", c.connack.SessionPresent, tc.present)
					}
					if tc.present {
						c.gets("t", "waits", 1)
						pub.publish("t", "live", 1)
						c.gets("t", "live", 1)
					} else {
						pub.publish("t", "live", 1)
						c.quiet()
					}
				})
			})
		}
	}
}

// TestBasicsCleanSession: a 3.1.1 clean session leaves nothing to a later one
// that is not clean, nor takes anything from an earlier one.
func TestBasicsCleanSession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.admin(t, "c", 4, nil)
		c.listens("t", 1)
		c.cut()
		c = w.admin(t, "c", 4, keeps(0))
		if c.connack.SessionPresent {
			t.Error("a clean session was kept")
		}
		c.listens("t", 1)
		c.bye()
		w.admin(t, "c", 4, nil).bye()
		if c = w.admin(t, "c", 4, keeps(0)); c.connack.SessionPresent {
			t.Error("a clean session ended without ending the one before it")
		}
	})
}

// TestBasicsTakeOver: a second connection of a client id ends the first
// [MQTT-3.1.4-3] and goes on with its session, in flight and all; other users'
// sessions of that name are others.
func TestBasicsTakeOver(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		pub := w.admin(t, "pub", version, nil)
		first := w.admin(t, "c", version, keeps(time.Hour))
		first.listens("t", 2)
		pub.publish("t", "x", 2)
		first.want(packets.Publish)
		second := w.admin(t, "c", version, keeps(time.Hour))
		if !second.connack.SessionPresent {
			t.Error("no session")
		}
		first.closed(time.Second, 0x8E)
		if pk := second.gets("t", "x", 2); !pk.FixedHeader.Dup {
			t.Error("redelivered without DUP")
		}
	})
}

// TestBasicsSessionsPerUser: of more sessions than a user may have, the one that
// is offline longest ends.
func TestBasicsSessionsPerUser(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i := range w.cfg.UserSessions + 2 {
			w.admin(t, fmt.Sprint(i), 5, keeps(time.Hour)).bye()
		}
		for _, i := range []int{w.cfg.UserSessions + 1, 2, 1} {
			c := w.admin(t, fmt.Sprint(i), 5, keeps(time.Hour))
			if want := i > 1; c.connack.SessionPresent != want {
				t.Errorf("session %d: present %v, want %v", i, c.connack.SessionPresent, want)
			}
			c.bye()
		}
	})
}

// TestBasicsClientID: an empty one is assigned in MQTT 5 [MQTT-3.1.3-6]
// [MQTT-3.2.2-16] and for a clean session in 3.1.1, else refused with 0x02
// [MQTT-3.1.3-8 of 3.1.1].
func TestBasicsClientID(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.admin(t, "", 5, keeps(time.Hour)), w.admin(t, "", 5, keeps(time.Hour))
		id := a.connack.Properties.AssignedClientID
		if id == "" || id == b.connack.Properties.AssignedClientID {
			t.Errorf("assigned %q and %q, want two names", id, b.connack.Properties.AssignedClientID)
		}
		a.bye()
		a = w.admin(t, id, 5, keeps(time.Hour))
		if !a.connack.SessionPresent || a.connack.Properties.AssignedClientID != "" {
			t.Errorf("came back as %q: session present %v, assigned %q", id, a.connack.SessionPresent, a.connack.Properties.AssignedClientID)
		}
		w.admin(t, "", 4, nil).bye()
		c := w.dialAdmin(t, "", 4, keeps(0))
		if pk := c.want(packets.Connack); pk.ReasonCode != 0x02 || pk.SessionPresent {
			t.Errorf("CONNACK 0x%02X for an empty client id without clean session, want 0x02", pk.ReasonCode)
		}
		c.closed(time.Second)
		for _, name := range []string{"a/b", "+", "#", "$x", "grüß", strings.Repeat("x", 128)} {
			w.admin(t, name, 5, nil).bye()
		}
	})
}

// TestBasicsVersion: a protocol version that we do not speak is refused with
// 0x01 (MQTT 3.1.1, section 3.1.2.2).
func TestBasicsVersion(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, version := range []byte{0, 2, 6, 9, 0x84} {
			c := &wire{t: t, w: w, conn: w.raw(), version: 4, in: make(chan packets.Packet, 10)}
			go c.read()
			c.conn.Write([]byte{0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', version, 2, 0, 0, 0, 1, 'x'})
			if pk := c.want(packets.Connack); pk.ReasonCode != 0x01 {
				t.Errorf("version %d: CONNACK 0x%02X, want 0x01", version, pk.ReasonCode)
			}
			c.closed(time.Second)
			c.conn.Close()
		}
	})
}

// TestBasicsKeepAlive: the connection of a silent client is closed after one and
// a half times its Keep Alive [MQTT-3.1.2-22], that of a pinging one is not.
func TestBasicsKeepAlive(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		for _, seconds := range []uint16{10, 60, 50_000} {
			alive := func(pk *packets.Packet) { pk.Connect.Keepalive = seconds }
			c := w.admin(t, "c", version, alive)
			told := time.Duration(seconds) * time.Second
			if seconds > maxKeepAlive {
				told = maxKeepAlive * time.Second
			}
			if p := c.connack.Properties; version == 5 && (p.ServerKeepAliveFlag != (seconds > maxKeepAlive) || p.ServerKeepAliveFlag && p.ServerKeepAlive != maxKeepAlive) {
				t.Errorf("Keep Alive %d: Server Keep Alive %d (%v)", seconds, p.ServerKeepAlive, p.ServerKeepAliveFlag) // [MQTT-3.2.2-21]
			}
			for range 2 {
				settle(min(told, 10_000*time.Second)) // mochi alone would cut the longest after 9,464 s
				c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
				c.want(packets.Pingresp)
			}
			if seconds > maxKeepAlive {
				continue // many fake seconds are not cheap
			}
			start := time.Now()
			c.closed(told * 2)
			if took := time.Since(start); took < told*3/2-2*time.Second || took > told*3/2+2*time.Second {
				t.Errorf("Keep Alive %d: closed after %v of silence, want %v", seconds, took, told*3/2)
			}
		}
		c := w.admin(t, "c", version, nil)
		settle(time.Hour) // no Keep Alive
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		c.want(packets.Pingresp)
	})
}

// TestBasicsConnack: what the broker says it can do.
func TestBasicsConnack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const year = 365 * 24 * time.Hour
		p := w.admin(t, "c", 5, func(pk *packets.Packet) { keeps(year)(pk); pk.Properties.TopicAliasMaximum = 10 }).connack.Properties
		if p.MaximumQosFlag || p.RetainAvailableFlag || p.SharedSubAvailableFlag || p.WildcardSubAvailableFlag || p.SubIDAvailableFlag {
			t.Errorf("CONNACK takes something back: %+v", p)
		}
		if p.TopicAliasMaximum != 0 || p.ReceiveMaximum != receiveMaximum || p.MaximumPacketSize != w.broker.maxPacket() {
			t.Errorf("Topic Alias Maximum %d, Receive Maximum %d, Maximum Packet Size %d", p.TopicAliasMaximum, p.ReceiveMaximum, p.MaximumPacketSize)
		}
		if want := uint32(w.cfg.SessionExpiry / time.Second); p.SessionExpiryInterval != want { // [MQTT-3.2.2-21]
			t.Errorf("Session Expiry Interval %d, want %d", p.SessionExpiryInterval, want)
		}
	})
}
