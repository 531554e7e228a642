package broker

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/token"
)

// packetClient writes and reads single packets, for what a
// well-behaved one cannot do or does not show: packet ids, DUP, 3.1.1.
type packetClient struct {
	net.Conn
	t       *testing.T
	version byte

	mu  sync.Mutex // guards the fields below
	got []packets.Packet
	eof bool
}

// wire connects as user without a clean start, in MQTT 5 with a session expiry
// of a day; change, where not nil, changes the CONNECT. What comes is read from
// now on.
func (w *world) wire(user, id string, change func(*packets.Packet)) *packetClient {
	w.t.Helper()
	c := w.mute(user, id, change)
	go c.read()
	return c
}

// mute is wire for a client that does not read until read is called.
func (w *world) mute(user, id string, change func(*packets.Packet)) *packetClient {
	w.t.Helper()
	c := &packetClient{Conn: w.raw(), t: w.t}
	pk := w.connectPacket(user, id)
	pk.Connect.Clean = false
	pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 24*3600, true
	if change != nil {
		change(&pk)
	}
	c.version = pk.ProtocolVersion
	c.send(pk)
	w.ends = append(w.ends, func() { c.Close() })
	return c
}

// v3 makes a CONNECT one of MQTT 3.1.1, clean or not.
func v3(clean bool) func(*packets.Packet) {
	return func(pk *packets.Packet) {
		pk.ProtocolVersion, pk.Properties, pk.Connect.Clean = 4, packets.Properties{}, clean
		pk.Connect.UsernameFlag = true // without one 3.1.1 knows no password
	}
}

// expiring gives a CONNECT another session expiry.
func expiring(d time.Duration) func(*packets.Packet) {
	return func(pk *packets.Packet) { pk.Properties.SessionExpiryInterval = uint32(d / time.Second) }
}

func (c *packetClient) send(pk packets.Packet) {
	c.t.Helper()
	pk.ProtocolVersion = c.version
	if _, err := c.Write(encode(c.t, pk)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *packetClient) subscribe(filters ...packets.Subscription) {
	c.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 7, Filters: filters}
	if len(filters) > 0 && filters[0].Identifier > 0 {
		pk.Properties.SubscriptionIdentifier = []int{filters[0].Identifier}
	}
	c.send(pk)
}

func (c *packetClient) publish(pk packets.Packet) {
	c.t.Helper()
	pk.FixedHeader.Type = packets.Publish
	c.send(pk)
}

// answer sends a packet that has an id and nothing else.
func (c *packetClient) answer(kind byte, id uint16) {
	c.t.Helper()
	fh := packets.FixedHeader{Type: kind}
	if kind == packets.Pubrel {
		fh.Qos = 1
	}
	c.send(packets.Packet{FixedHeader: fh, PacketID: id})
}

// read keeps every packet that comes until the connection ends.
func (c *packetClient) read() {
	r := bufio.NewReader(c.Conn)
	for {
		pk, err := readPacket(r, c.version)
		c.mu.Lock()
		if err != nil {
			c.eof = true
			c.mu.Unlock()
			return
		}
		c.got = append(c.got, pk)
		c.mu.Unlock()
	}
}

// ended reports whether the broker has closed the connection.
func (c *packetClient) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.eof
}

// await returns what has come within d of fake time and was not returned yet.
func (c *packetClient) await(d time.Duration) []packets.Packet {
	settle(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	got := c.got
	c.got = nil
	return got
}

// only is await for packets of one type.
func (c *packetClient) only(kind byte, d time.Duration) (out []packets.Packet) {
	for _, pk := range c.await(d) {
		if pk.FixedHeader.Type == kind {
			out = append(out, pk)
		}
	}
	return out
}

// brief names packets by the end of their topic, their QoS, id and DUP.
func brief(pks []packets.Packet) []string {
	out := []string{}
	for _, pk := range pks {
		s := fmt.Sprintf("%s qos%d id%d", pk.TopicName[max(0, len(pk.TopicName)-4):], pk.FixedHeader.Qos, pk.PacketID)
		if pk.FixedHeader.Dup {
			s += " dup"
		}
		out = append(out, s)
	}
	return out
}

func readPacket(r *bufio.Reader, version byte) (pk packets.Packet, err error) {
	pk.ProtocolVersion = version
	first, err := r.ReadByte()
	if err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, err
	}
	if pk.FixedHeader.Remaining, _, err = packets.DecodeLength(r); err != nil {
		return pk, err
	}
	body := make([]byte, pk.FixedHeader.Remaining)
	if _, err := io.ReadFull(r, body); err != nil {
		return pk, err
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Pubrec:
		err = pk.PubrecDecode(body)
	case packets.Pubcomp:
		err = pk.PubcompDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	}
	return pk, err
}

func (w *world) connectPacket(user, id string) packets.Packet {
	return connectPacket(w.token(token.Principal{User: user, Role: token.RoleApp}), id)
}

// connectPacket is a CONNECT with a token, MQTT 5, clean start.
func connectPacket(raw, id string) packets.Packet {
	return packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 5,
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), ClientIdentifier: id, Keepalive: 60, Clean: true,
			PasswordFlag: true, Password: []byte(raw),
		},
	}
}
