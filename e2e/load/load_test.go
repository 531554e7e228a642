package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/google/go-cmp/cmp"
)

// patience bounds each test's waiting; all of it takes milliseconds.
const patience = time.Minute

// peer is the other end of a Client's connection: paho's codec, and nothing
// that a broker knows.
type peer struct {
	t  *testing.T
	nc net.Conn
	in *bufio.Reader
}

func (p *peer) read() *packets.ControlPacket {
	p.t.Helper()
	cp, err := packets.ReadPacket(p.in)
	if err != nil {
		p.t.Fatalf("read what the client sends: %v", err)
	}
	return cp
}

func (p *peer) write(c packets.Packet) {
	p.t.Helper()
	if _, err := c.WriteTo(p.nc); err != nil {
		p.t.Fatalf("write to the client: %v", err)
	}
}

func (p *peer) puback(id uint16, code byte) {
	p.t.Helper()
	p.write(&packets.Puback{PacketID: id, ReasonCode: code, Properties: &packets.Properties{}})
}

// dial starts to connect a client; the peer has not read its CONNECT.
func dial(t *testing.T, cfg Config) (*peer, func() (*Client, error)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cfg.Addr = l.Addr().String()
	type result struct {
		c   *Client
		err error
	}
	dialled := make(chan result, 1)
	go func() {
		c, err := Dial(ctx, cfg)
		dialled <- result{c, err}
	}()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { nc.Close() })
	return &peer{t, nc, bufio.NewReaderSize(nc, 1<<20)}, func() (*Client, error) {
		r := <-dialled
		return r.c, r.err
	}
}

// connected returns a client that was let in, and its peer.
func connected(t *testing.T) (*peer, *Client) {
	t.Helper()
	p, dialled := dial(t, Config{ClientID: "frame"})
	p.read()
	p.write(&packets.Connack{Properties: &packets.Properties{}})
	c, err := dialled()
	if err != nil {
		t.Fatal(err)
	}
	return p, c
}

func TestConnect(t *testing.T) {
	expiry := uint32(86400)
	for name, tc := range map[string]struct {
		cfg  Config
		want *packets.Connect
	}{
		"durable, with a token": {
			Config{ClientID: "frame", User: "ben", Password: strings.Repeat("x", 600), Expiry: expiry},
			&packets.Connect{ClientID: "frame", Username: "ben", UsernameFlag: true, Password: bytes.Repeat([]byte("x"), 600), PasswordFlag: true,
				Properties: &packets.Properties{SessionExpiryInterval: &expiry}},
		},
		"clean, anonymous": {
			Config{ClientID: "phone"},
			&packets.Connect{ClientID: "phone", CleanStart: true, Properties: &packets.Properties{}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, dialled := dial(t, tc.cfg)
			tc.want.ProtocolName, tc.want.ProtocolVersion, tc.want.KeepAlive = "MQTT", 5, keepAlive
			if diff := cmp.Diff(tc.want, p.read().Content); diff != "" {
				t.Errorf("CONNECT differs (-want +got):\n%s", diff)
			}
			p.write(&packets.Connack{SessionPresent: true, Properties: &packets.Properties{AssignedClientID: "x"}})
			c, err := dialled()
			if err != nil || !c.Resumed() {
				t.Fatalf("got %v, want a client whose session was resumed", err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if cp := p.read(); cp.Type != packets.DISCONNECT {
				t.Errorf("the client said %v at last, want DISCONNECT", cp)
			}
		})
	}
}

func TestSubscribe(t *testing.T) {
	p, c := connected(t)
	done := make(chan error, 1)
	go func() { done <- c.Subscribe("pairs/p/photos/ann/#") }()
	got, ok := p.read().Content.(*packets.Subscribe)
	want := []packets.SubOptions{{Topic: "pairs/p/photos/ann/#", QoS: 1}}
	if !ok || !cmp.Equal(got.Subscriptions, want) {
		t.Errorf("got %v, want SUBSCRIBE to %v", got, want)
	}
	p.write(&packets.Suback{PacketID: got.PacketID, Reasons: []byte{1}, Properties: &packets.Properties{}})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPublish: every message is right, in order, and no more than the window
// are unacknowledged; packet ids begin anew after 65,535.
func TestPublish(t *testing.T) {
	for _, tc := range []struct{ count, window, bytes int }{
		{70_000, 20, 1}, {300, 7, 128}, {20, 10, 200_000}, {5, 1, 0}, {3, 10, 16_384},
	} {
		t.Run(fmt.Sprintf("%+v", tc), func(t *testing.T) {
			p, c := connected(t)
			payload := bytes.Repeat([]byte{0xA5}, tc.bytes)
			done := make(chan error, 1)
			go func() {
				done <- c.Publish(Publishing{Topic: "t/", First: 9, Count: tc.count, Window: tc.window, Payload: payload})
			}()
			var unacked []uint16
			for i := range tc.count {
				got, ok := p.read().Content.(*packets.Publish)
				if !ok || got.Topic != fmt.Sprintf("t/%d", 9+i) || got.QoS != 1 || got.PacketID == 0 || !bytes.Equal(got.Payload, payload) {
					t.Fatalf("message %d is not what was asked for: topic %q, QoS %d, id %d, %d bytes", i, got.Topic, got.QoS, got.PacketID, len(got.Payload))
				}
				unacked = append(unacked, got.PacketID)
				if len(unacked) < tc.window && i < tc.count-1 {
					continue
				}
				if n := p.in.Buffered(); n > 0 {
					t.Fatalf("%d messages are unacknowledged, and %d more bytes came", len(unacked), n)
				}
				for _, id := range unacked {
					p.puback(id, 0)
				}
				unacked = nil
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if got := c.Acked(); got != int64(tc.count) {
				t.Errorf("%d are acknowledged, want %d", got, tc.count)
			}
		})
	}
}

// TestReceive: messages of all sizes, one at a time and many at once, are
// counted and acknowledged.
func TestReceive(t *testing.T) {
	p, c := connected(t)
	sizes := []int{0, 1, 100, 16_384, 200_000}
	done := make(chan error, 1)
	go func() { done <- c.Receive(int64(11 * len(sizes))) }()
	message := func(id uint16, size int) *packets.Publish {
		return &packets.Publish{Topic: "pairs/p/photos/ann/x", QoS: 1, PacketID: id, Payload: make([]byte, size), Duplicate: id%2 == 0,
			Properties: &packets.Properties{ContentType: "image/jpeg", User: []packets.User{{Key: "stored-at", Value: "now"}}}}
	}
	acked := func(id uint16) {
		t.Helper()
		if got, ok := p.read().Content.(*packets.Puback); !ok || got.PacketID != id {
			t.Fatalf("got %v, want PUBACK of %d", got, id)
		}
	}
	id := uint16(0)
	for _, size := range sizes {
		id++
		p.write(message(id, size))
		acked(id) // not held back until more comes
	}
	first := id + 1
	for _, size := range sizes {
		for range 10 {
			id++
			p.write(message(id, size))
		}
	}
	for ; first <= id; first++ {
		acked(first)
	}
	if err := <-done; err != nil || c.Received() != int64(id) {
		t.Errorf("got %d messages and the error %v, want %d", c.Received(), err, id)
	}
}

// poked sends something for the peer to read first.
func poked(c *Client, receive func(int64) error) error {
	if _, err := c.nc.Write(goodbye); err != nil {
		return err
	}
	return receive(1)
}

// TestRefused: whatever a server refuses ends the run with its reason.
func TestRefused(t *testing.T) {
	none := &packets.Properties{}
	for name, tc := range map[string]struct {
		do     func(*Client) error
		answer packets.Packet
		want   string
	}{
		"subscribe": {func(c *Client) error { return c.Subscribe("a/#") }, &packets.Suback{PacketID: 1, Reasons: []byte{0x87}, Properties: none}, "0x87"},
		"publish": {
			func(c *Client) error { return c.Publish(Publishing{Topic: "a/", Count: 3, Window: 1}) },
			&packets.Puback{PacketID: 1, ReasonCode: 0x97, Properties: &packets.Properties{ReasonString: "full"}}, "0x97",
		},
		"disconnected publisher": {
			func(c *Client) error { return c.Publish(Publishing{Topic: "a/", Count: 3, Window: 1}) },
			&packets.Disconnect{ReasonCode: 0x96, Properties: none}, "0x96",
		},
		"disconnected receiver": {
			func(c *Client) error { return poked(c, c.Receive) },
			&packets.Disconnect{ReasonCode: 0x8E, Properties: none}, "0x8E",
		},
		"a message at QoS 0": {
			func(c *Client) error { return poked(c, c.Receive) },
			&packets.Publish{Topic: "a", Properties: none}, "QoS 0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, c := connected(t)
			done := make(chan error, 1)
			go func() { done <- tc.do(c) }()
			p.read()
			p.write(tc.answer)
			if err := <-done; err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got the error %v, want one with %s", err, tc.want)
			}
		})
	}
	t.Run("connect", func(t *testing.T) {
		p, dialled := dial(t, Config{ClientID: "frame"})
		p.read()
		p.write(&packets.Connack{ReasonCode: 0x86, Properties: none})
		if _, err := dialled(); err == nil || !strings.Contains(err.Error(), "0x86") {
			t.Errorf("got the error %v, want one with 0x86", err)
		}
	})
}
