package broker

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/token"
)

// What every MQTT conformance suite checks, for an admin on topics of their
// own, packet by packet: Paho's interoperability suite (client_test.py,
// client_test5.py) and the normative statements of MQTT 5, cited as [MQTT-…].

// wire is a client that speaks packets. Every wait has an end in fake time.
type wire struct {
	t       *testing.T
	w       *world
	conn    net.Conn
	version byte
	in      chan packets.Packet // closed with the connection
	connack packets.Packet
	nextID  uint16
	early   []packets.Packet // messages that came while a handshake went on
}

// admin connects a client with an admin's token, and is let in. A new session
// is asked for unless change says otherwise.
func (w *world) admin(t *testing.T, id string, version byte, change func(*packets.Packet)) *wire {
	t.Helper()
	settle(time.Second) // nothing of the pair's making is still under way
	c := w.dialAdmin(t, id, version, change)
	c.connack = c.want(packets.Connack)
	if c.connack.ReasonCode != 0 {
		t.Fatalf("CONNACK 0x%02X of %q, want success", c.connack.ReasonCode, id)
	}
	return c
}

// dialAdmin connects and sends CONNECT.
func (w *world) dialAdmin(t *testing.T, id string, version byte, change func(*packets.Packet)) *wire {
	t.Helper()
	c := &wire{t: t, w: w, conn: w.raw(), version: version, in: make(chan packets.Packet, 10_000)}
	w.ends = append(w.ends, func() { c.conn.Close() })
	go c.read()
	c.conn.Write(w.connectBytes(t, "root", id, func(pk *packets.Packet) {
		pk.ProtocolVersion, pk.Connect.Keepalive = version, 0
		pk.Connect.Password = []byte(w.token(token.Principal{User: "root", Role: token.RoleAdmin}))
		if version < 5 { // where a password needs a user name [MQTT-3.1.2-22 of 3.1.1]
			pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte("root")
		}
		if change != nil {
			change(pk)
		}
	}))
	return c
}

// keeps asks for a session that outlives its connection by d.
func keeps(d time.Duration) func(*packets.Packet) {
	return func(pk *packets.Packet) {
		pk.Connect.Clean = false
		if pk.ProtocolVersion == 5 {
			pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = uint32(d/time.Second), true
		}
	}
}

func (c *wire) read() {
	defer close(c.in)
	r := bufio.NewReader(c.conn)
	for {
		b, err := r.ReadByte()
		if err != nil {
			return
		}
		pk := packets.Packet{ProtocolVersion: c.version}
		n, _, err := packets.DecodeLength(r)
		if err == nil {
			err = pk.FixedHeader.Decode(b)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		pk.FixedHeader.Remaining = n
		decode := map[byte]func([]byte) error{
			packets.Connack: pk.ConnackDecode, packets.Publish: pk.PublishDecode, packets.Puback: pk.PubackDecode,
			packets.Pubrec: pk.PubrecDecode, packets.Pubrel: pk.PubrelDecode, packets.Pubcomp: pk.PubcompDecode,
			packets.Suback: pk.SubackDecode, packets.Unsuback: pk.UnsubackDecode, packets.Disconnect: pk.DisconnectDecode,
			packets.Pingresp: func([]byte) error { return nil },
		}[pk.FixedHeader.Type]
		if err == nil && decode == nil {
			err = fmt.Errorf("a server sends no packet of type %d", pk.FixedHeader.Type)
		}
		if err == nil {
			err = decode(body)
		}
		if err != nil {
			c.t.Errorf("the broker sent what is no packet: %v", err)
			return
		}
		c.in <- pk
	}
}

// send writes one packet.
func (c *wire) send(pk packets.Packet) {
	c.t.Helper()
	pk.ProtocolVersion, pk.Mods.AllowResponseInfo = c.version, true
	var b bytes.Buffer
	err := map[byte]func(*bytes.Buffer) error{
		packets.Publish: pk.PublishEncode, packets.Puback: pk.PubackEncode, packets.Pubrec: pk.PubrecEncode,
		packets.Pubrel: pk.PubrelEncode, packets.Pubcomp: pk.PubcompEncode, packets.Subscribe: pk.SubscribeEncode,
		packets.Unsubscribe: pk.UnsubscribeEncode, packets.Pingreq: pk.PingreqEncode, packets.Disconnect: pk.DisconnectEncode,
	}[pk.FixedHeader.Type](&b)
	if err != nil {
		c.t.Fatal(err)
	}
	c.conn.Write(b.Bytes())
}

// ack sends one packet of a handshake.
func (c *wire) ack(kind byte, id uint16, code byte) {
	c.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: kind}, PacketID: id, ReasonCode: code}
	if kind == packets.Pubrel {
		pk.FixedHeader.Qos = 1 // its reserved bits
	}
	c.send(pk)
}

// next returns what comes within d; false when nothing does.
func (c *wire) next(d time.Duration) (pk packets.Packet, open, ok bool) {
	if len(c.early) > 0 {
		pk, c.early = c.early[0], c.early[1:]
		return pk, true, true
	}
	select {
	case pk, open = <-c.in:
		return pk, open, true
	case <-time.After(d):
		return pk, true, false
	}
}

// want returns the next packet, which must be of this type.
func (c *wire) want(kind byte) packets.Packet {
	c.t.Helper()
	pk, open, ok := c.next(5 * time.Second)
	switch {
	case !ok:
		c.t.Fatalf("nothing came, want %s", packets.PacketNames[kind])
	case !open:
		c.t.Fatalf("the connection was closed, want %s", packets.PacketNames[kind])
	case pk.FixedHeader.Type != kind:
		c.t.Fatalf("got %s (code 0x%02X, topic %q), want %s",
			packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode, pk.TopicName, packets.PacketNames[kind])
	}
	return pk
}

// quiet checks that nothing comes for a while.
func (c *wire) quiet() {
	c.t.Helper()
	if pk, open, ok := c.next(3 * time.Second); ok {
		c.t.Fatalf("got %s on %q %q (open %v), want nothing", packets.PacketNames[pk.FixedHeader.Type], pk.TopicName, pk.Payload, open)
	}
}

// closed checks that the broker ends the connection within d: MQTT 5 with
// DISCONNECT and one of codes (none: without), 3.1.1 without a word.
func (c *wire) closed(d time.Duration, codes ...byte) {
	c.t.Helper()
	pk, open, ok := c.next(d)
	if !ok {
		c.t.Fatalf("the connection is open after %v", d)
	}
	if c.version == 5 && len(codes) > 0 {
		if !open || pk.FixedHeader.Type != packets.Disconnect || !slices.Contains(codes, pk.ReasonCode) {
			c.t.Fatalf("got %s 0x%02X (open %v), want DISCONNECT % x", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode, open, codes)
		}
		_, open, ok = c.next(d)
	}
	if open || !ok {
		c.t.Fatalf("the connection is open, want it closed")
	}
}

func (c *wire) id() uint16 {
	c.nextID++
	return c.nextID
}

// subscribe returns the reason codes of the SUBACK.
func (c *wire) subscribe(subs ...packets.Subscription) []byte {
	c.t.Helper()
	return c.subscribeWith(packets.Properties{}, subs...)
}

func (c *wire) subscribeWith(p packets.Properties, subs ...packets.Subscription) []byte {
	c.t.Helper()
	id := c.id()
	c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: id, Properties: p, Filters: subs})
	pk := c.want(packets.Suback)
	if pk.PacketID != id { // [MQTT-3.8.4-2]
		c.t.Fatalf("SUBACK for %d, want %d", pk.PacketID, id)
	}
	return pk.ReasonCodes
}

// listens subscribes a filter and is granted its QoS.
func (c *wire) listens(filter string, qos byte) {
	c.t.Helper()
	if codes := c.subscribe(packets.Subscription{Filter: filter, Qos: qos}); !bytes.Equal(codes, []byte{qos}) {
		c.t.Fatalf("SUBACK % x for %q, want %d", codes, filter, qos)
	}
}

// listensWithID subscribes with a subscription identifier.
func (c *wire) listensWithID(filter string, qos byte, id int) {
	c.t.Helper()
	if codes := c.subscribeWith(packets.Properties{SubscriptionIdentifier: []int{id}}, packets.Subscription{Filter: filter, Qos: qos}); codes[0] != qos {
		c.t.Fatalf("SUBACK % x for %q, want %d", codes, filter, qos)
	}
}

func (c *wire) unsubscribe(filters ...string) []byte {
	c.t.Helper()
	id := c.id()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: id}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f})
	}
	c.send(pk)
	return c.want(packets.Unsuback).ReasonCodes
}

func publishOf(topic, payload string, qos byte, id uint16) packets.Packet {
	return packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, TopicName: topic, Payload: []byte(payload), PacketID: id,
	}
}

// publish publishes with the whole handshake of its QoS, and returns the code
// of a refusal.
func (c *wire) publish(topic, payload string, qos byte, change ...func(*packets.Packet)) byte {
	c.t.Helper()
	pk := publishOf(topic, payload, qos, 0)
	if qos > 0 {
		pk.PacketID = c.id()
	}
	for _, fn := range change {
		fn(&pk)
	}
	c.send(pk)
	switch qos {
	case 1:
		return c.acked(packets.Puback, pk.PacketID)
	case 2:
		if code := c.acked(packets.Pubrec, pk.PacketID); code >= 0x80 {
			return code
		}
		c.ack(packets.Pubrel, pk.PacketID, 0)
		return c.acked(packets.Pubcomp, pk.PacketID)
	}
	return 0
}

func retained(pk *packets.Packet) { pk.FixedHeader.Retain = true }

// acked waits for one packet of a handshake and returns its code.
func (c *wire) acked(kind byte, id uint16) byte {
	c.t.Helper()
	var early []packets.Packet
	pk, open, ok := c.next(5 * time.Second)
	for ok && open && pk.FixedHeader.Type == packets.Publish {
		early = append(early, pk)
		pk, open, ok = c.next(5 * time.Second)
	}
	c.early = append(early, c.early...)
	if !ok || !open || pk.FixedHeader.Type != kind {
		c.t.Fatalf("got %s 0x%02X (came %v, open %v), want %s", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode, ok, open, packets.PacketNames[kind])
	}
	if pk.PacketID != id {
		c.t.Fatalf("%s for %d, want %d", packets.PacketNames[kind], pk.PacketID, id)
	}
	return pk.ReasonCode
}

// gets waits for a message and completes its handshake.
func (c *wire) gets(topic, payload string, qos byte) packets.Packet {
	c.t.Helper()
	pk := c.want(packets.Publish)
	c.same(pk, topic, payload, qos)
	switch qos {
	case 1:
		c.ack(packets.Puback, pk.PacketID, 0)
	case 2:
		c.ack(packets.Pubrec, pk.PacketID, 0)
		c.acked(packets.Pubrel, pk.PacketID)
		c.ack(packets.Pubcomp, pk.PacketID, 0)
	}
	return pk
}

func (c *wire) same(pk packets.Packet, topic, payload string, qos byte) {
	c.t.Helper()
	if pk.TopicName != topic || string(pk.Payload) != payload || pk.FixedHeader.Qos != qos {
		c.t.Fatalf("got %.40q %.40q at QoS %d, want %.40q %.40q at QoS %d", pk.TopicName, pk.Payload, pk.FixedHeader.Qos, topic, payload, qos)
	}
	if qos == 0 != (pk.PacketID == 0) { // [MQTT-2.2.1-2]
		c.t.Fatalf("packet id %d at QoS %d", pk.PacketID, qos)
	}
}

// bye disconnects in the way of the book.
func (c *wire) bye() {
	c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
	c.closed(time.Second)
	settle(100 * time.Millisecond)
}

// cut breaks the connection.
func (c *wire) cut() {
	c.conn.Close()
	settle(100 * time.Millisecond)
}

var versions = []byte{4, 5}

// eachVersion runs fn in a world of its own for 3.1.1 and for 5.
func eachVersion(t *testing.T, fn func(t *testing.T, w *world, version byte)) {
	for _, v := range versions {
		t.Run(map[byte]string{4: "3.1.1", 5: "5"}[v], func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) { fn(t, w, v) })
		})
	}
}

// TestBasicsPubSub: each QoS to each, across versions; the QoS is the lower of
// both [MQTT-3.8.4-8].
func TestBasicsPubSub(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, from := range versions {
			for _, to := range versions {
				a, b := w.admin(t, fmt.Sprintf("a%d%d", from, to), from, nil), w.admin(t, fmt.Sprintf("b%d%d", from, to), to, nil)
				for granted := range byte(3) {
					b.listens("basics/+/x", granted)
					for qos := range byte(3) {
						payload := fmt.Sprint(from, to, granted, qos)
						if code := a.publish("basics/t/x", payload, qos); code != 0 {
							t.Errorf("published at QoS %d: 0x%02X", qos, code)
						}
						if pk := b.gets("basics/t/x", payload, min(granted, qos)); pk.FixedHeader.Dup || pk.FixedHeader.Retain {
							t.Errorf("DUP %v, RETAIN %v on a first delivery", pk.FixedHeader.Dup, pk.FixedHeader.Retain) // [MQTT-3.3.1-3]
						}
					}
				}
				a.publish("basics/t/y", "other", 2)
				b.quiet()
				a.bye()
				b.bye()
			}
		}
	})
}

// TestBasicsPayloads: an empty one, a large one, the longest topic name.
func TestBasicsPayloads(t *testing.T) {
	eachVersion(t, func(t *testing.T, w *world, version byte) {
		c := w.admin(t, "c", version, nil)
		c.listens("#", 2)
		for _, topic := range []string{"a", "/", "/a//b/", "with space", "grüß/🙂", strings.Repeat("x", 65535), strings.Repeat("/", 65535)} {
			for _, size := range []int{0, 1, 200_000} {
				payload := strings.Repeat("p", size)
				c.publish(topic, payload, 2)
				c.gets(topic, payload, 2)
			}
		}
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
		c.want(packets.Pingresp) // [MQTT-3.12.4-1]
	})
}
