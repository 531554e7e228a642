package simtest

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pairsync/internal/memnet"
)

const (
	chunkBytes   = 4 << 10 // what a lane moves at once, on a link without a rate
	queuedChunks = 64      // chunks under way in one direction: a window of 256 KiB at most
	ticksPerSec  = 20      // a limited rate moves its bytes in this many steps a second
)

// link is one connection: a pipe from the dialing side to the relay, a pipe
// from the relay to the accepting side, and two lanes that carry the bytes
// between them.
type link struct {
	network  *Network
	addr     memnet.Addr
	port     int
	from, to string        // who dialed whom
	near     net.Conn      // the relay's end towards the dialing side
	dead     chan struct{} // closed by reset
	lanes    atomic.Int32  // how many are still running

	mu      sync.Mutex // guards the fields below
	far     net.Conn   // the relay's end towards the accepting side; nil until start
	isReset bool
}

// start begins to carry bytes.
func (l *link) start(far net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isReset { // cut while it was being accepted
		far.Close()
		return
	}
	l.far = far
	up := l.network.lane(l, l.from, l.to, l.near, far)
	down := l.network.lane(l, l.to, l.from, far, l.near)
	if up.cut == 0 || down.cut == 0 {
		l.resetLocked()
		return
	}
	l.lanes.Store(2)
	for _, a := range []*lane{up, down} {
		l.network.running.Go(a.take)
		l.network.running.Go(a.give)
	}
}

// reset ends the link as a TCP RST does.
func (l *link) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resetLocked()
}

func (l *link) resetLocked() {
	if l.isReset {
		return
	}
	l.isReset = true
	close(l.dead)
	l.near.Close()
	if l.far != nil {
		l.far.Close()
	}
	l.network.forget(l)
}

func (l *link) wasReset() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isReset
}

// chunk is some bytes under way, or the end of the stream.
type chunk struct {
	bytes []byte
	due   time.Time
	end   bool
}

// lane carries the bytes of one direction: take reads them from the sender at
// the route's rate, give writes them to the receiver when they are due, one
// after the other: jitter never changes their order.
type lane struct {
	link           *link
	route          route
	random         *rand.Rand // used by take
	queue          chan chunk // nobody closes it; ends with an end chunk or with link.dead
	source, target net.Conn
	cut            int64 // cut the link when this many bytes arrived; -1 is never
	flip           int64 // flip a bit of the byte at this offset; -1 is none
	taken          int64 // bytes that take has read
	given          int64 // bytes that give has written
}

func (a *lane) take() {
	buf := make([]byte, chunkBytes)
	for {
		rate := a.link.network.rulesOf(a.route.from, a.route.to).rate
		space := buf
		if rate > 0 {
			space = buf[:min(len(buf), max(1, rate/ticksPerSec))]
		}
		n, err := a.source.Read(space)
		if rate > 0 && !sleep(a.link.dead, time.Duration(n)*time.Second/time.Duration(rate)) {
			return
		}
		c := chunk{bytes: append([]byte(nil), space[:n]...), due: a.due(), end: err != nil}
		if at := a.flip - a.taken; a.flip >= 0 && at >= 0 && at < int64(n) {
			c.bytes[at] ^= 1 << a.random.IntN(8)
		}
		a.taken += int64(n)
		select {
		case a.queue <- c:
		case <-a.link.dead:
			return
		}
		if err != nil {
			return
		}
	}
}

// due returns when bytes that set out now arrive.
func (a *lane) due() time.Time {
	r := a.link.network.rulesOf(a.route.from, a.route.to)
	at := time.Now().Add(r.delay)
	if r.jitter > 0 {
		at = at.Add(time.Duration(a.random.Int64N(int64(r.jitter))))
	}
	return at
}

func (a *lane) give() {
	defer a.finish()
	for {
		var c chunk
		select {
		case c = <-a.queue:
		case <-a.link.dead:
			return
		}
		if !sleep(a.link.dead, time.Until(c.due)) || !a.link.network.awaitMoving(a.link.dead, a.route.from, a.route.to) {
			return
		}
		if !a.deliver(c.bytes) || c.end {
			return
		}
	}
}

// deliver hands bytes to the receiver and reports whether the link goes on. A
// receiver that has closed its end makes them vanish: the sender learns of it
// when the end of the other lane reaches it.
func (a *lane) deliver(b []byte) bool {
	last := false
	if a.cut >= 0 && a.given+int64(len(b)) >= a.cut {
		b, last = b[:a.cut-a.given], true
	}
	a.given += int64(len(b))
	a.link.network.arrived(a.route, len(b))
	a.target.Write(b)
	if last {
		a.link.reset()
	}
	return !last
}

func (n *Network) arrived(r route, bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.moved[r] += int64(bytes)
}

// finish passes the end of the stream on. Closing the relay's end makes the
// other lane end too, as nobody is left to read what it carries.
func (a *lane) finish() {
	a.target.Close()
	if a.link.lanes.Add(-1) == 0 {
		a.link.network.forget(a.link)
	}
}

// end is what a program holds: it names the errors as a socket does.
type end struct {
	net.Conn
	link   *link
	closed atomic.Bool
}

func (e *end) Read(p []byte) (int, error) {
	n, err := e.Conn.Read(p)
	return n, e.named("read", err)
}

func (e *end) Write(p []byte) (int, error) {
	n, err := e.Conn.Write(p)
	return n, e.named("write", err)
}

func (e *end) Close() error {
	if e.closed.Swap(true) {
		return e.opError("close", net.ErrClosed)
	}
	return e.Conn.Close()
}

func (e *end) named(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case e.closed.Load():
		return e.opError(op, net.ErrClosed)
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe):
		return e.opError(op, err) // a deadline
	case e.link.wasReset():
		return e.opError(op, syscall.ECONNRESET)
	case errors.Is(err, io.ErrClosedPipe):
		return e.opError(op, syscall.EPIPE)
	}
	return err // io.EOF, bare, as net.Conn gives it
}

func (e *end) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "mem", Source: e.LocalAddr(), Addr: e.RemoteAddr(), Err: err}
}
