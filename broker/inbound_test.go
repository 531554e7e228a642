package broker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// chunks is a connection on which bytes come in pieces of random size.
type chunks struct {
	net.Conn
	b    []byte
	rand *rand.Rand
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(c.b), 1+c.rand.IntN(9000))
	if c.rand.IntN(4) == 0 {
		n = 1
	}
	copy(p, c.b[:n])
	c.b = c.b[n:]
	return n, nil
}

func (c *chunks) SetReadDeadline(time.Time) error  { return nil }
func (c *chunks) SetWriteDeadline(time.Time) error { return nil }
func (c *chunks) Write(p []byte) (int, error)      { return len(p), nil }
func (c *chunks) Close() error                     { return nil }
func (c *chunks) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// limits is as much of a broker as reading needs.
var limits = &Broker{
	cfg: DefaultConfig(), metrics: newCounters(), incoming: newBudget(64 << 20),
	mq: mqtt.New(&mqtt.Options{
		Capabilities: &mqtt.Capabilities{MaximumPacketSize: 8 << 20}, Logger: slog.New(slog.DiscardHandler),
	}),
}

// readPackets reads packets as mochi does, and puts each together again.
func readPackets(stream []byte, version byte, seed uint64) (got [][]byte, err error) {
	c := newConn(context.Background(), limits, &chunks{b: stream, rand: rand.New(rand.NewPCG(seed, 1))})
	c.begun = true
	c.client = &client{b: limits, nc: c, cl: limits.mq.NewClient(c, "test", "c", false)}
	c.client.cl.Properties.ProtocolVersion = version
	c.client.token.Store(&token.Principal{User: "ann"})
	r := bufio.NewReaderSize(c, 256)
	for {
		first, err := r.ReadByte()
		if err != nil {
			return got, err
		}
		rest, err := binary.ReadUvarint(r)
		if err != nil || rest > 1<<28 {
			return got, err
		}
		packet := make([]byte, rest)
		if _, err := io.ReadFull(r, packet); err != nil {
			return got, err
		}
		body := c.in.claim()
		if len(body) > 0 && &body[0] != &c.in.lent[len(c.in.lent)-len(body)] {
			return got, io.ErrShortBuffer
		}
		whole := binary.AppendUvarint([]byte{first}, uint64(len(packet)+len(body)))
		got = append(got, append(append(whole, packet...), body...))
	}
}

func publishPacket(t testing.TB, version byte, qos byte, topic string, size int, props packets.Properties) []byte {
	t.Helper()
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, ProtocolVersion: version,
		TopicName: topic, PacketID: 7, Payload: bytes.Repeat([]byte("photo"), size/5), Properties: props,
	}
	var b bytes.Buffer
	if err := pk.PublishEncode(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestInbound sends packets of every size in pieces of every size: each comes
// out as it went in, and a large payload is never mochi's to read.
func TestInbound(t *testing.T) {
	long := packets.Properties{ContentType: "image/jpeg", User: []packets.UserProperty{{Key: "caption", Val: string(bytes.Repeat([]byte("c"), 5000))}}}
	for _, version := range []byte{4, 5} {
		var want [][]byte
		for _, size := range []int{0, 5, 100, minBody - 50, minBody, 5000, 200_000, 1<<20 + 50} {
			for qos := range byte(3) {
				want = append(want, publishPacket(t, version, qos, "pairs/p/photos/u/m", size, packets.Properties{}),
					[]byte{packets.Pingreq << 4, 0}, publishPacket(t, version, qos, "t", size, long),
					[]byte{packets.Puback<<4 | 0, 2, 0, 9})
			}
		}
		for seed := range uint64(20) {
			got, err := readPackets(bytes.Join(want, nil), version, seed)
			if err != io.EOF || len(got) != len(want) {
				t.Fatalf("version %d, seed %d: %d packets, %v; want %d", version, seed, len(got), err, len(want))
			}
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Errorf("version %d, seed %d: packet %d of %d bytes came out as %d", version, seed, i, len(want[i]), len(got[i]))
				}
			}
		}
	}
}

// FuzzInbound: what comes out is what went in, as far as it is whole packets.
func FuzzInbound(f *testing.F) {
	f.Add(publishPacket(f, 5, 1, "t", 5000, packets.Properties{}), uint64(1), true)
	f.Add(publishPacket(f, 4, 0, "t", 5000, packets.Properties{}), uint64(2), false)
	f.Add(append([]byte{0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}, make([]byte, 100)...), uint64(3), true)
	f.Add(append([]byte{0x32, 0x88, 0x27, 0xFF, 0xFF}, make([]byte, 5000)...), uint64(4), true)
	f.Add(append([]byte{0x32, 0x88, 0x27, 0, 1, 't', 0, 1, 0xFF, 0xFF, 0xFF, 0xFF}, make([]byte, 5000)...), uint64(5), true)
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64, v5 bool) {
		version := byte(4)
		if v5 {
			version = 5
		}
		got, err := readPackets(stream, version, seed)
		if err == io.ErrShortBuffer {
			t.Fatal("a payload is not the end of its packet")
		}
		for _, packet := range got {
			rest, size := fixedHeader(packet)
			// A length may be sent with more bytes than it needs.
			if head, n := fixedHeader(stream); head != rest || !bytes.Equal(packet[size:], stream[n:n+rest]) || packet[0] != stream[0] {
				t.Fatalf("%d bytes came out that went in as %d", rest, head)
			}
			_, n := fixedHeader(stream)
			stream = stream[n+rest:]
		}
	})
}

// TestLargePhotosArriveWhole: their memory is lent again and again while many
// of them are on their way; every byte arrives as it was sent.
func TestLargePhotosArriveWhole(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		ben := w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") })
		defer ben.end()
		const n = 60
		want := make([]string, n)
		var wg sync.WaitGroup
		for i := range n {
			photo := make([]byte, 5_000+(i%7)*30_000)
			_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(photo)
			want[i] = string(photo)
			wg.Go(func() {
				if err := ann.send(moment.Photo, fmt.Sprint("p", i), want[i]); err != nil {
					t.Errorf("photo %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		settle(time.Second)
		ben.mu.Lock()
		defer ben.mu.Unlock()
		if len(ben.got) != n {
			t.Fatalf("%d photos arrived, want %d", len(ben.got), n)
		}
		for _, m := range ben.got {
			var i int
			if _, err := fmt.Sscanf(m.Topic[strings.LastIndexByte(m.Topic, '/'):], "/p%d", &i); err != nil || string(m.Payload) != want[i] {
				t.Errorf("%s: %d bytes, %v, not the %d that were sent", m.Topic, len(m.Payload), err, len(want[i]))
			}
		}
	})
}
