package broker

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// What a connection may take before and between packets.
const (
	// connectWait is how long a client has to get its CONNECT in; mochi has no
	// deadline of its own before CONNECT (facts-mochi.md).
	connectWait = 5 * time.Second
	// writeChunkBytes is how much is written under one deadline: a link of
	// 2 KiB/s moves it within writeWait.
	writeChunkBytes = 32 << 10
	// writeWait is how long one chunk may take before the reader counts as
	// gone.
	writeWait = 20 * time.Second
	// packetWait is the grace for a packet that has begun, whatever the
	// keepalive: its memory is taken already.
	packetWait = 60 * time.Second
	// largePacket is the size from which a packet needs room in the budget of
	// what is being received.
	largePacket = 64 << 10
	// slowestBytes is the slowest upload that is let through, per second: a
	// packet's deadline moves by a second for so many bytes received, up to
	// packetWait from then.
	slowestBytes = 2 << 10
)

// conn wraps a client's connection with what mochi lacks: it refuses a foreign
// first packet and every oversized one before it is allocated, writes in chunks
// whose deadline moves with progress, and lets a packet that is arriving
// slowly, but arriving, take longer than 1.5 × keepalive. A writer that
// trickles is cut by the same rule.
type conn struct {
	net.Conn
	b      *Broker
	ctx    context.Context // of the connection's storage work; outlives a shutdown's start
	will   *will           // of the CONNECT, likewise
	client *client         // set in OnConnect, on the reader's goroutine

	// What follows is used on the reader's goroutine only.
	in       inbound
	begun    bool      // the first packet is a CONNECT
	last     byte      // the newest byte that mochi has read
	deadline time.Time // for the next packet to be read; zero: no keepalive
	packet   time.Time // of the packet that has begun; zero: none has
	room     *hold     // for a large packet that has begun, until it is dealt with; or nil

	// turn is held, by a value in it, while a packet is written. It is not a
	// mutex, so that a test world's clock goes on while somebody waits for it.
	turn chan struct{}
	// Bytes, to tell slow clients from slower ones.
	written, received atomic.Int64

	writeMu sync.Mutex // guards the fields below
	limit   time.Time  // no write goes on after it; zero: no limit
	broken  bool       // a packet was cut short: nothing may follow it
}

func newConn(ctx context.Context, b *Broker, nc net.Conn) *conn {
	return &conn{Conn: nc, b: b, ctx: ctx, turn: make(chan struct{}, 1)}
}

// readBy returns until when to wait for more of the packet that has begun,
// after n bytes of it have come.
func (c *conn) readBy(n int) time.Time {
	if c.client == nil {
		return c.deadline // before CONNECT is answered, progress buys nothing
	}
	most := time.Now().Add(packetWait)
	switch {
	case !c.packet.IsZero():
		c.packet = c.packet.Add(time.Duration(n) * time.Second / slowestBytes)
	case !c.deadline.IsZero():
		c.packet = c.deadline
	default:
		c.packet = most
	}
	if c.packet.After(most) {
		c.packet = most
	}
	return c.packet
}

// SetDeadline is called by mochi before each packet, with 1.5 × keepalive or
// the zero time. Only reading follows it; writing has deadlines of its own.
func (c *conn) SetDeadline(t time.Time) error {
	c.deadline, c.packet = t, time.Time{}
	if len(c.in.buf) > 0 { // it has begun
		t = c.readBy(0)
	}
	return c.Conn.SetReadDeadline(t)
}

// Write writes p in chunks; each must move within writeWait. After a packet
// that could not be written whole nothing more is: what followed would be read
// as its rest.
func (c *conn) Write(p []byte) (int, error) {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	return c.write(p)
}

// write is Write for whoever has the turn.
func (c *conn) write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		if err = c.extendWrite(); err != nil {
			break
		}
		var k int
		k, err = c.Conn.Write(p[n:min(n+writeChunkBytes, len(p))])
		n += k
		c.written.Add(int64(k))
	}
	if err != nil {
		c.writeMu.Lock()
		defer c.writeMu.Unlock()
		c.broken = true
	}
	return n, err
}

// writeTwo writes head and then body as one packet. The head goes with the
// body's beginning, so that it does not cost a segment of its own.
func (c *conn) writeTwo(head, body []byte) error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	n := min(len(body), max(0, writeChunkBytes-len(head)))
	if _, err := c.write(append(head, body[:n]...)); err != nil {
		return err
	}
	_, err := c.write(body[n:])
	return err
}

func (c *conn) extendWrite() error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.broken {
		return net.ErrClosed
	}
	t := time.Now().Add(writeWait)
	if !c.limit.IsZero() && c.limit.Before(t) {
		t = c.limit
	}
	return c.Conn.SetWriteDeadline(t)
}

// endBy lets nothing be written after t, so that whoever ends the connection
// does not wait behind a reader that is stuck.
func (c *conn) endBy(t time.Time) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.limit = t
	c.Conn.SetWriteDeadline(t)
}
