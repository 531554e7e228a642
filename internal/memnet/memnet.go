// Package memnet is a network inside the process: buffered connections and a
// listener that a program dials without a socket. The daemon joins its bridge
// to its broker with it; tests build whole worlds on it (internal/simtest adds
// the faults).
//
// It is not net.Pipe: writes go into a bounded buffer and return, so that two
// sides that both write do not wait for each other. Deadlines work, also on
// the fake clock of testing/synctest, and every wait is one that synctest
// counts as durably blocked.
package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// DefaultBufferBytes is how much one direction of a Pipe holds before Write
// waits: a few socket buffers' worth, so that a photo is copied in few turns.
const DefaultBufferBytes = 256 << 10

// Addr is the address of a memnet listener or connection: a name.
type Addr string

// Network returns "mem".
func (a Addr) Network() string { return "mem" }

// String returns the name.
func (a Addr) String() string { return string(a) }

// Pipe returns two connected ends. Closing one lets the other read what was
// written and then gives it io.EOF; writing to a closed peer fails with
// io.ErrClosedPipe.
func Pipe(a, b Addr) (net.Conn, net.Conn) {
	ab, ba := newHalf(DefaultBufferBytes), newHalf(DefaultBufferBytes)
	return &conn{in: ba, out: ab, local: a, remote: b}, &conn{in: ab, out: ba, local: b, remote: a}
}

// half is one direction: a bounded buffer between one writer and one reader.
type half struct {
	mu       sync.Mutex // guards the fields below
	cond     *sync.Cond
	buf      []byte // the bytes written and not yet read are buf[start:]
	start    int
	max      int
	writing  bool // a Write is under way; others wait, so that none is mixed with it
	noMore   bool // the writer has closed: EOF after the buffer
	dropped  bool // the reader has closed: writing fails
	readEnd  deadline
	writeEnd deadline
}

// deadline is a point in time after which waits on its side fail.
type deadline struct {
	timer   *time.Timer
	expired bool
	version int // which Set the running timer belongs to
}

func newHalf(max int) *half {
	h := &half{max: max}
	h.cond = sync.NewCond(&h.mu)
	return h
}

// set arms d for t; the zero time disarms it.
func (h *half) set(d *deadline, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.expired = false
	d.version++
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.expired = true
		h.cond.Broadcast()
		return
	}
	version := d.version
	d.timer = time.AfterFunc(wait, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if d.version == version {
			d.expired = true
			h.cond.Broadcast()
		}
	})
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.dropped:
			return 0, io.ErrClosedPipe
		case h.readEnd.expired:
			return 0, os.ErrDeadlineExceeded
		case len(h.buf) > h.start:
			n := copy(p, h.buf[h.start:])
			h.start += n
			if h.start == len(h.buf) {
				h.buf, h.start = h.buf[:0], 0
				if cap(h.buf) > 64<<10 && !h.writing {
					h.buf = nil // an idle link keeps no photo-sized buffer
				}
			}
			h.cond.Broadcast()
			return n, nil
		case h.noMore:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		h.cond.Wait()
	}
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	mine := false // it is this Write's turn
	for {
		switch {
		case h.noMore || h.dropped:
			err = io.ErrClosedPipe
		case h.writeEnd.expired:
			err = os.ErrDeadlineExceeded
		}
		if err != nil || len(p) == 0 {
			if mine {
				h.writing = false
				h.cond.Broadcast()
			}
			return n, err
		}
		if h.writing && !mine {
			h.cond.Wait()
			continue
		}
		h.writing, mine = true, true
		if room := h.max - (len(h.buf) - h.start); room > 0 {
			// Moving the rest to the front only once as much was read makes a
			// small reader cost no more than a large one.
			if live := len(h.buf) - h.start; h.start > 0 && h.start >= live && len(h.buf)+len(p) > cap(h.buf) {
				h.buf = h.buf[:copy(h.buf, h.buf[h.start:])]
				h.start = 0
			}
			k := min(room, len(p))
			h.buf = append(h.buf, p[:k]...)
			p, n = p[k:], n+k
			h.cond.Broadcast()
			continue
		}
		h.cond.Wait()
	}
}

// closeWrite ends the direction from its writer's side.
func (h *half) closeWrite() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noMore = true
	h.cond.Broadcast()
}

// closeRead ends the direction from its reader's side and frees the buffer.
func (h *half) closeRead() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropped = true
	h.buf, h.start = nil, 0
	h.cond.Broadcast()
}

// conn is one end of a Pipe.
type conn struct {
	in, out       *half
	local, remote Addr
	once          sync.Once
}

func (c *conn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *conn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *conn) LocalAddr() net.Addr         { return c.local }
func (c *conn) RemoteAddr() net.Addr        { return c.remote }

func (c *conn) Close() error {
	c.once.Do(func() {
		c.out.closeWrite()
		c.in.closeRead()
		c.SetDeadline(time.Time{}) // stops the timers
	})
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.set(&c.in.readEnd, t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.set(&c.out.writeEnd, t)
	return nil
}

// ErrRefused is what Dial returns when the listener is closed.
var ErrRefused = errors.New("memnet: connection refused")

// Listener is an in-memory net.Listener.
type Listener struct {
	addr Addr
	// accept hands the far end over; nobody closes it.
	accept chan net.Conn
	closed chan struct{} // closed by Close
	once   sync.Once
}

// Listen returns a listener named addr.
func Listen(addr Addr) *Listener {
	return &Listener{addr: addr, accept: make(chan net.Conn), closed: make(chan struct{})}
}

// Dial connects to l under the name from. It waits until l accepts, ctx ends
// or l is closed (ErrRefused).
func (l *Listener) Dial(ctx context.Context, from Addr) (net.Conn, error) {
	near, far := Pipe(from, l.addr)
	select {
	case l.accept <- far:
		return near, nil
	case <-l.closed:
		return nil, ErrRefused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept returns the next connection, or net.ErrClosed after Close.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and every waiting Dial; open connections stay.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns the listener's name.
func (l *Listener) Addr() net.Addr { return l.addr }
