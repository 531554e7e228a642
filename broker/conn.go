package broker

import (
	"context"
	"net"
	"sync"
	"time"
)

// What a connection may take before and between packets.
const (
	// connectWait is how long a client has to get its CONNECT in; mochi has no
	// deadline of its own before CONNECT (facts-mochi.md).
	connectWait = 5 * time.Second
	// maxConnectBytes bounds the first packet, which mochi allocates before
	// anybody is authenticated. A token is at most 8 KiB.
	maxConnectBytes = 16 << 10
	// writeChunkBytes is how much is written under one deadline: a link of
	// 2 KiB/s moves it within writeWait.
	writeChunkBytes = 32 << 10
	// writeWait is how long one chunk may take before the reader counts as
	// gone.
	writeWait = 20 * time.Second
	// idlePacketWait is the grace for a packet that has begun on a connection
	// without keepalive.
	idlePacketWait = 60 * time.Second
	// slowestBytes is the slowest upload that is let through, per second: a
	// packet's deadline moves by a second for so many bytes received.
	slowestBytes = 2 << 10
)

// conn wraps a client's connection with what mochi lacks: it refuses an
// oversized or foreign first packet before it is allocated, writes in chunks
// whose deadline moves with progress, and lets a packet that is arriving
// slowly, but arriving, take longer than 1.5 × keepalive. A writer that
// trickles is cut by the same rule.
type conn struct {
	net.Conn
	ctx    context.Context // of the connection's storage work; outlives a shutdown's start
	will   *will           // of the CONNECT, likewise
	client *client         // set in OnConnect, on the reader's goroutine

	// What follows is used on the reader's goroutine only.
	in       inbound
	begun    bool      // the first packet is a CONNECT
	largest  int       // packet that is read whole
	last     byte      // the newest byte that mochi has read
	deadline time.Time // of the packet that is being read; zero: no keepalive
	received int       // bytes since deadline was set

	writeMu sync.Mutex // guards the fields below
	limit   time.Time  // no write goes on after it; zero: no limit
	broken  bool       // a packet was cut short: nothing may follow it
}

func (c *conn) packetDeadline() time.Time {
	base := c.deadline
	if c.client == nil {
		return base // before CONNECT is answered, progress buys nothing
	}
	if base.IsZero() {
		base = time.Now().Add(idlePacketWait)
		c.deadline = base
	}
	return base.Add(time.Duration(c.received) * time.Second / slowestBytes)
}

// SetDeadline is called by mochi before each packet, with 1.5 × keepalive or
// the zero time. Only reading follows it; writing has deadlines of its own.
func (c *conn) SetDeadline(t time.Time) error {
	c.deadline, c.received = t, 0
	return c.Conn.SetReadDeadline(t)
}

// Write writes p in chunks; each must move within writeWait. After a packet
// that could not be written whole nothing more is: what followed would be read
// as its rest.
func (c *conn) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		if err = c.extendWrite(); err != nil {
			break
		}
		var k int
		k, err = c.Conn.Write(p[n:min(n+writeChunkBytes, len(p))])
		n += k
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
	n := min(len(body), max(0, writeChunkBytes-len(head)))
	if _, err := c.Write(append(head, body[:n]...)); err != nil {
		return err
	}
	_, err := c.Write(body[n:])
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
