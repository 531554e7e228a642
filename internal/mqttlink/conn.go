package mqttlink

import (
	"net"
	"sync/atomic"
	"time"

	"pairsync/internal/sendqueue"
)

const (
	// writeChunk is the unit of progress of a write: at 32 KB/s one takes a
	// second, so that Link.Moved tells a slow link from a dead one.
	writeChunk = 32 << 10
	// joinBytes is how much payload is copied behind the head of a packet, so
	// that a small packet is one write (and one TLS record, one segment).
	joinBytes = 8 << 10
	// stallTimeout is how long one chunk may wait for room in the socket.
	stallTimeout = 30 * time.Second
	// goodbyeTimeout bounds the orderly end of a connection.
	goodbyeTimeout = 2 * time.Second
	// sendBufferBytes keeps at most this much of our data in the kernel: what
	// is written there cannot be overtaken by an acknowledgement or a ping.
	sendBufferBytes = 256 << 10
)

// wire is a net.Conn that counts what moves, writes whole packets only, and
// gives a deadline to every write.
type wire struct {
	raw   net.Conn
	moved *atomic.Uint64 // bytes in either direction, of all connections of the Link

	opened              time.Time
	lastRead, lastWrite atomic.Int64 // time.Duration since opened: the wall clock of a frame jumps

	// turn holds a token while a packet is written; it guards broken and join.
	// It is not a mutex, because testing/synctest does not let time pass for
	// somebody who waits for one.
	turn   chan struct{}
	broken error  // why nothing more may be written: a packet may have been cut
	join   []byte // scratch of the first chunk
}

func newWire(raw net.Conn, moved *atomic.Uint64) *wire {
	if tcp, ok := sendqueue.Innermost(raw).(*net.TCPConn); ok {
		tcp.SetWriteBuffer(sendBufferBytes) // a hint; the link works without it
	}
	return &wire{raw: raw, moved: moved, opened: time.Now(), turn: make(chan struct{}, 1)}
}

// Read implements io.Reader for the packet reader.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.raw.Read(p)
	if n > 0 {
		w.moved.Add(uint64(n))
		w.lastRead.Store(int64(time.Since(w.opened)))
	}
	return n, err
}

// send writes one packet (or several whole ones): head, then payload. After
// an error every further send fails, because the packet may have been cut.
func (w *wire) send(head, payload []byte) error {
	w.turn <- struct{}{}
	defer func() { <-w.turn }()
	if w.broken != nil {
		return w.broken
	}
	k := min(len(payload), joinBytes)
	w.join = append(append(w.join[:0], head...), payload[:k]...)
	if w.broken = w.write(w.join); w.broken == nil {
		w.broken = w.write(payload[k:])
	}
	return w.broken
}

func (w *wire) write(b []byte) error {
	for len(b) > 0 {
		w.raw.SetWriteDeadline(time.Now().Add(stallTimeout))
		n, err := w.raw.Write(b[:min(len(b), writeChunk)])
		if n > 0 {
			w.moved.Add(uint64(n))
			w.lastWrite.Store(int64(time.Since(w.opened)))
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// cut ends the connection at once: closing TLS or a WebSocket in order could
// wait for a peer that does not read.
func (w *wire) cut() {
	sendqueue.Innermost(w.raw).Close()
	w.raw.Close()
}

// unsent is how much of what was written the peer's machine has not yet
// acknowledged, where the system can tell.
func (w *wire) unsent() uint64 { return uint64(sendqueue.Unsent(w.raw)) }
