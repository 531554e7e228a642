package broker

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/bufpool"
)

// minBody is the length from which a PUBLISH is read here instead of by mochi,
// which would allocate it twice.
const minBody = 4 << 10

// The buffer of a connection: what most of them need, which only wait, and
// what one gets that fills it.
const (
	smallBuffer = 512
	largeBuffer = 4 << 10
)

// maxFixedHeader is the longest there is (MQTT 5, section 2.1).
const maxFixedHeader = 5

// inbound cuts what a client sends into packets. mochi reads them one at a
// time: what it is given never goes beyond the packet it is at. A large
// PUBLISH it gets without its payload, which waits here for the hook. All of
// it is used on the reader's goroutine only.
type inbound struct {
	buf  []byte // read and not taken yet
	room []byte // the memory of buf

	left int    // bytes of the current packet that mochi has yet to read
	head []byte // those of them that are not in buf any more: a fixed header, or a PUBLISH without its payload

	body []byte // the payload that belongs to head
	lent []byte // of bufpool; what body is a part of
}

// Read gives mochi the current packet, or the beginning of the next.
func (c *conn) Read(p []byte) (int, error) {
	in := &c.in
	if in.left == 0 {
		if err := c.nextPacket(); err != nil {
			return 0, err
		}
	}
	p = p[:min(len(p), in.left)]
	n := copy(p, in.head)
	in.head = in.head[n:]
	if n == 0 {
		var err error
		if n, err = c.receive(p); err != nil {
			return n, err
		}
	}
	in.left -= n
	c.last = p[n-1]
	return n, nil
}

// receive takes what is buffered, or reads what has come.
func (c *conn) receive(p []byte) (int, error) {
	if len(c.in.buf) > 0 {
		n := copy(p, c.in.buf)
		c.in.buf = c.in.buf[n:]
		return n, nil
	}
	return c.readSome(p)
}

// readSome reads from the network and moves the packet's deadline along.
func (c *conn) readSome(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.received.Add(int64(n))
		c.Conn.SetReadDeadline(c.readBy(n))
		return n, nil // an error comes again
	}
	return n, err
}

// nextPacket reads a fixed header (MQTT 5, section 2.1), and a large PUBLISH
// whole.
func (c *conn) nextPacket() error {
	in := &c.in
	in.body, in.lent = nil, nil // of a packet that was refused, maybe
	if c.room != nil {
		c.b.incoming.free(c.room) // the packet before is dealt with, or the ledger's
		c.room = nil
	}
	var rest, size int
	for size == 0 {
		if err := c.check(); err != nil {
			return err
		}
		if rest, size = fixedHeader(in.buf); size > 0 {
			break
		}
		if len(in.buf) >= maxFixedHeader {
			return fmt.Errorf("remaining length: %w", packets.ErrMalformedVariableByteInteger)
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
	in.head, in.buf = in.buf[:size], in.buf[size:]
	in.left = size + rest
	if err := c.makeRoom(rest); err != nil {
		return err
	}
	if in.head[0]>>4 != packets.Publish || c.client == nil || rest < minBody {
		return nil
	}
	return c.takePublish(rest)
}

// makeRoom waits until there is memory for a large packet.
func (c *conn) makeRoom(size int) (err error) {
	if c.client == nil || size < largePacket {
		return nil
	}
	start := time.Now()
	c.room, err = c.client.receive(size)
	if waited := time.Since(start); waited > 0 && !c.deadline.IsZero() { // not the client's fault
		c.deadline = c.deadline.Add(waited)
		c.packet = time.Time{}
		c.Conn.SetReadDeadline(c.readBy(0))
	}
	return err
}

// fill reads more into the buffer.
func (c *conn) fill() error {
	in := &c.in
	if in.room == nil {
		in.room = make([]byte, smallBuffer)
	}
	kept := copy(in.room, in.buf)
	n, err := c.readSome(in.room[kept:])
	in.buf = in.room[:kept+n]
	if kept+n == smallBuffer {
		in.room = make([]byte, largeBuffer)
	}
	return err
}

// fixedHeader returns the size of the fixed header that b begins with and the
// remaining length it tells; size 0, and what it tells so far, when b does not
// hold all of it.
func fixedHeader(b []byte) (rest, size int) {
	for i := 1; i < min(len(b), maxFixedHeader); i++ {
		rest |= int(b[i]&0x7f) << (7 * (i - 1))
		if b[i]&0x80 == 0 {
			return rest, i + 1
		}
	}
	return rest, 0
}

// check refuses a first packet that is not a CONNECT, and one that is larger
// than its type may be, as soon as that can be seen: mochi allocates a packet
// when it sees the header.
func (c *conn) check() error {
	b := c.in.buf
	if len(b) == 0 {
		return nil
	}
	kind := b[0] >> 4
	if !c.begun && kind != packets.Connect {
		return packets.ErrProtocolViolationRequireFirstConnect
	}
	rest, size := fixedHeader(b)
	c.begun = c.begun || size > 0
	if most := c.b.maxIncoming(kind); rest > most {
		err := fmt.Errorf("packet of %d bytes (at most %d): %w", rest, most, packets.ErrPacketTooLarge)
		c.b.metrics.overLimit.Inc()
		if c.client != nil {
			c.client.farewell(refusal(packets.ErrPacketTooLarge, err))
		}
		return err
	}
	return nil
}

// takePublish reads the rest of a PUBLISH and leaves mochi what comes before
// its payload. One that cannot be understood is left to mochi as it is.
func (c *conn) takePublish(rest int) error {
	in := &c.in
	flags := in.head[0]
	all := bufpool.Get(rest)
	if _, err := io.ReadFull(receiver{c}, all); err != nil {
		return err
	}
	head := []byte{flags}
	if n, ok := payloadAt(all, flags>>1&3 > 0, c.client.v5()); ok {
		in.body, in.lent = all[n:], all
		all = all[:n]
	}
	head = binary.AppendUvarint(head, uint64(len(all))) // the form of a variable byte integer
	in.head = append(head, all...)
	in.left = len(in.head)
	return nil
}

// receiver is a connection behind what it has buffered.
type receiver struct{ c *conn }

func (r receiver) Read(p []byte) (int, error) { return r.c.receive(p) }

// payloadAt returns where the payload of a PUBLISH begins, in what follows its
// fixed header (MQTT 5, section 3.3.2).
func payloadAt(b []byte, hasID, v5 bool) (int, bool) {
	if len(b) < 2 {
		return 0, false
	}
	at := 2 + int(binary.BigEndian.Uint16(b))
	if hasID {
		at += 2
	}
	if v5 && at < len(b) {
		n, size := fixedHeader(b[at-1:]) // a variable byte integer has the same form
		if size == 0 {
			return 0, false
		}
		at += size - 1 + n
	}
	return at, at <= len(b)
}

// claim returns the payload of the PUBLISH that mochi has just decoded, or nil
// when mochi has it itself.
func (in *inbound) claim() []byte {
	body := in.body
	in.body = nil
	return body
}

// keep gives the memory of the claimed payload to the caller, who returns it to
// bufpool when nobody uses it any more.
func (in *inbound) keep() []byte {
	lent := in.lent
	in.lent = nil
	return lent
}
