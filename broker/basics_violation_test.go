package broker

import (
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// TestBasicsViolations: packets that are malformed or break the protocol end the
// connection [MQTT-4.13.1-1]. MQTT 5 is told why where mochi's decoder lets the
// packet through; where the decoder itself fails, mochi closes without the
// DISCONNECT that section 4.13.1 says a server should send, which harms nobody.
func TestBasicsViolations(t *testing.T) {
	publish := func(qos byte, change func(*packets.Packet)) func(c *wire) {
		return func(c *wire) {
			pk := publishOf("t", "x", qos, uint16(qos))
			change(&pk)
			c.send(pk)
		}
	}
	property := func(change func(*packets.Properties)) func(c *wire) {
		return publish(1, func(pk *packets.Packet) { change(&pk.Properties) })
	}
	subscribe := func(p packets.Properties, subs ...packets.Subscription) func(c *wire) {
		return func(c *wire) {
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1, Properties: p, Filters: subs})
		}
	}
	raw := func(bytes ...byte) func(c *wire) { return func(c *wire) { c.conn.Write(bytes) } }
	cases := map[string]struct {
		send  func(c *wire)
		codes []byte // of the DISCONNECT to MQTT 5; none: closed without
		only5 bool
		only3 bool
	}{
		"wildcard # in a topic name [MQTT-3.3.2-2]": {send: publish(0, func(pk *packets.Packet) { pk.TopicName = "a/#" }), codes: []byte{0x82, 0x90}},
		"wildcard + in a topic name":                {send: publish(1, func(pk *packets.Packet) { pk.TopicName = "a/+" }), codes: []byte{0x82, 0x90}},
		"empty topic name [MQTT-4.7.3-1]":           {send: publish(1, func(pk *packets.Packet) { pk.TopicName = "" }), codes: []byte{0x82, 0x90}},
		"NUL in a topic name [MQTT-4.7.3-2]":        {send: publish(0, func(pk *packets.Packet) { pk.TopicName = "a\x00b" })},
		"topic name not UTF-8 [MQTT-3.3.2-1]":       {send: publish(0, func(pk *packets.Packet) { pk.TopicName = "a\xFF" })},
		"surrogate in a topic name [MQTT-1.5.4-1]":  {send: publish(0, func(pk *packets.Packet) { pk.TopicName = "a\xED\xA0\x80" })},
		"QoS 3 [MQTT-3.3.1-4]":                      {send: raw(0x36, 6, 0, 1, 't', 0, 1, 0)},
		"DUP at QoS 0 [MQTT-3.3.1-2]":               {send: raw(0x38, 4, 0, 1, 't', 0)},
		"packet id 0 in PUBLISH [MQTT-2.2.1-3]":     {send: raw(0x32, 6, 0, 1, 't', 0, 0, 0), codes: []byte{0x82}},
		"PUBLISH cut short":                         {send: raw(0x32, 3, 0, 9, 't')},
		"topic alias [MQTT-3.3.2-9]":                {send: property(func(p *packets.Properties) { p.TopicAlias, p.TopicAliasFlag = 1, true }), codes: []byte{0x94}, only5: true},
		"topic alias 0 [MQTT-3.3.2-8]":              {send: raw(0x30, 8, 0, 1, 't', 3, 0x23, 0, 0, 'x'), codes: []byte{0x94}, only5: true},
		"alias instead of a topic":                  {send: raw(0x30, 6, 0, 0, 3, 0x23, 0, 1), codes: []byte{0x94}, only5: true},
		"identifier in PUBLISH [MQTT-3.3.4-6]":      {send: property(func(p *packets.Properties) { p.SubscriptionIdentifier = []int{1} }), codes: []byte{0x82}, only5: true},
		"wildcard response topic [MQTT-3.3.2-14]":   {send: raw(append([]byte{0x30, 10, 0, 1, 't', 6, 0x08, 0, 3}, "a/#"...)...), codes: []byte{0x82}, only5: true},
		"payload format 2":                          {send: property(func(p *packets.Properties) { p.PayloadFormat, p.PayloadFormatFlag = 2, true }), codes: []byte{0x82}, only5: true},
		"property of another packet":                {send: raw(0x30, 9, 0, 1, 't', 5, 0x11, 0, 0, 0, 1), only5: true},
		"no filter in SUBSCRIBE [MQTT-3.8.3-2]":     {send: subscribe(packets.Properties{}), codes: []byte{0x82}},
		"packet id 0 in SUBSCRIBE":                  {send: func(c *wire) { c.conn.Write(subscribeWithID0(c.version)) }, codes: []byte{0x82}},
		"QoS 3 in SUBSCRIBE [MQTT-3.8.3-5]":         {send: subscribe(packets.Properties{}, packets.Subscription{Filter: "t", Qos: 3})},
		"SUBSCRIBE flags [MQTT-3.8.1-1]":            {send: raw(0x80, 0)},
		"filter not UTF-8 [MQTT-3.8.3-1]":           {send: subscribe(packets.Properties{}, packets.Subscription{Filter: "a\xFF"})},
		"NUL in a filter":                           {send: subscribe(packets.Properties{}, packets.Subscription{Filter: "a\x00"})},
		"No Local when shared [MQTT-3.8.3-4]":       {send: subscribe(packets.Properties{}, packets.Subscription{Filter: "$share/g/t", NoLocal: true}), codes: []byte{0x82}, only5: true},
		"retain handling 3":                         {send: subscribe(packets.Properties{}, packets.Subscription{Filter: "t", RetainHandling: 3}), codes: []byte{0x82}, only5: true},
		"identifier 0":                              {send: raw(0x82, 9, 0, 1, 2, 0x0B, 0, 0, 1, 't', 0), codes: []byte{0x82}, only5: true},
		"two identifiers":                           {send: subscribe(packets.Properties{SubscriptionIdentifier: []int{1, 2}}, packets.Subscription{Filter: "t"}), codes: []byte{0x82}, only5: true},
		"no filter in UNSUBSCRIBE [MQTT-3.10.3-2]": {send: func(c *wire) {
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: 1})
		}, codes: []byte{0x82}},
		"UNSUBSCRIBE flags [MQTT-3.10.1-1]": {send: raw(0xA0, 0)},
		"PUBREL flags [MQTT-3.6.1-1]":       {send: raw(0x60, 2, 0, 1)},
		"PINGREQ flags":                     {send: raw(0xC1, 0)},
		"DISCONNECT flags [MQTT-3.14.1-1]":  {send: raw(0xE1, 0)},
		"expiry from 0 [MQTT-3.1.2-23]":     {send: func(c *wire) { c.disconnect(0, 5) }, codes: []byte{0x82}, only5: true},
		"type 0":                            {send: raw(0x00, 0)},
		"a server's packet":                 {send: raw(0x20, 2, 0, 0)},
		"AUTH in 3.1.1":                     {send: raw(0xF0, 2, 0x19, 0), only3: true},
		"AUTH without a method":             {send: raw(0xF0, 2, 0x19, 0), codes: []byte{0x8C, 0x82}, only5: true},
		"a remaining length of five bytes":  {send: raw(0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x01), codes: []byte{0x81, 0x95}},
	}
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		watch := w.admin(t, "watch", version, nil)
		watch.listens("t", 2)
		for name, tc := range cases {
			if tc.only5 && version < 5 || tc.only3 && version == 5 {
				continue
			}
			t.Log(name) // what a failure is about
			c := w.admin(t, "c", version, nil)
			tc.send(c)
			c.closed(time.Second, tc.codes...)
			watch.quiet() // and had no effect
			watch.publish("elsewhere", "x", 2)
		}
	})
}

// subscribeWithID0 is a SUBSCRIBE with packet id 0 [MQTT-2.2.1-3].
func subscribeWithID0(version byte) []byte {
	if version == 5 {
		return []byte{0x82, 7, 0, 0, 0, 0, 1, 't', 0}
	}
	return []byte{0x82, 6, 0, 0, 0, 1, 't', 0}
}

// TestBasicsLenient: what mochi's decoder does not tell us, so that it passes
// though it is a protocol error. None of it changes what anybody else gets.
func TestBasicsLenient(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.admin(t, "c", 5, nil)
		c.conn.Write([]byte{0xC0, 1, 0}) // PINGREQ with a body
		c.want(packets.Pingresp)
		c.conn.Write([]byte{0x82, 7, 0, 1, 0, 0, 1, 't', 0xC0}) // reserved bits of the options
		c.want(packets.Suback)
		c.conn.Write(append([]byte{0x30, 14, 0, 1, 't', 10, 0x02, 0, 0, 0, 1, 0x02, 0, 0, 0, 9}, "x"[:0]...)) // a property twice
		if pk := c.gets("t", "", 0); pk.Properties.MessageExpiryInterval != 9 {
			t.Errorf("expiry %d: want the last of both", pk.Properties.MessageExpiryInterval)
		}
		c.conn.Write([]byte{0x30, 9, 0, 1, 't', 5, 0x02, 0, 0, 0, 0}) // an expiry of 0 counts as none
		c.gets("t", "", 0)
	})
}
