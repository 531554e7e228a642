package engineio

import (
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

type state uint8

const (
	stateOpen    state = iota
	stateClosing       // takes no more messages, sends what is queued
	stateClosed
)

// A Request is what is kept of the request that opened a session.
type Request struct {
	Query      url.Values
	Header     http.Header
	RemoteAddr string
}

// Session is one client's connection, over whichever transport it uses now.
type Session struct {
	srv  *Server
	id   string
	req  Request
	recv Receiver

	mu     sync.Mutex // guards the fields below
	state  state
	reason string
	// queue is what waits to be sent. Whoever sends it, the WebSocket's writer
	// or a poll, takes it from the front; queued counts its bytes and those
	// being written.
	queue   []Message
	queued  int
	ws      *wsConn       // nil while polling
	writing bool          // a writer goroutine runs
	poll    *poll         // the GET that waits for packets
	polled  chan struct{} // closed when a poll comes; nil when nobody waits
	answers int           // polls whose answers are being written
	posting bool          // a POST is being read
	// An upgrade goes through upgrading (a WebSocket is being accepted), probe
	// (it is there) and probing (it has been probed). Once switched, upgrading
	// stays set: there is no second one.
	upgrading, probing bool
	probe              *wsConn
	linger             *time.Timer
	beat               heartbeat

	// polledIn and polledOut count the bytes of polling bodies.
	polledIn, polledOut atomic.Int64
}

// ID returns the session's id. It is a secret of the client: who knows it can
// speak for the session.
func (s *Session) ID() string { return s.id }

// Request returns what opened the session. Treat it as read-only.
func (s *Session) Request() Request { return s.req }

// Transport returns "polling" or "websocket".
func (s *Session) Transport() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.transport()
}

func (s *Session) transport() string {
	if s.ws != nil {
		return "websocket"
	}
	return "polling"
}

// Writable reports whether a message sent now would leave at once.
func (s *Session) Writable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == stateOpen && s.queued == 0 && (s.poll != nil || s.ws != nil && !s.writing)
}

// Send queues messages, contiguous and in order, and returns at once:
// ErrBacklog when they do not fit, ErrClosed when the session has ended. An
// empty queue takes messages of any size. Bodies are not copied.
func (s *Session) Send(messages ...Message) error {
	size := 0
	for i := range messages {
		if !messages[i].Binary && len(messages[i].Head) == 0 {
			messages[i].Head = []byte(TextHead)
		}
		size += messages[i].size()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateOpen {
		return ErrClosed
	}
	if s.queued > 0 && (s.queued+size > s.srv.cfg.QueueBytes || len(s.queue)+len(messages) > s.srv.cfg.QueuePackets) {
		return ErrBacklog
	}
	s.push(messages...)
	return nil
}

// push queues without asking for room. The caller holds s.mu.
func (s *Session) push(messages ...Message) {
	for i := range messages {
		s.queued += messages[i].size()
	}
	s.queue = append(s.queue, messages...)
	s.wake()
}

// wake sees to it that somebody sends the queue. The caller holds s.mu.
func (s *Session) wake() {
	switch {
	case s.ws != nil && !s.writing:
		s.writing = true
		ws := s.ws
		s.spawn(func() { s.writeLoop(ws) })
	case s.poll != nil:
		s.poll.signal()
	}
}

// take removes up to packets messages from the front of the queue, and no more
// than bytes of them unless the first is larger. The caller holds s.mu, and
// calls sent with the size once they are written.
func (s *Session) take(packets, bytes int) (batch []Message, size int) {
	n := 0
	for n < len(s.queue) && n < packets {
		next := s.queue[n].size()
		if n > 0 && size+next > bytes {
			break
		}
		size += next
		n++
	}
	batch = s.queue[:n:n]
	s.queue = s.queue[n:]
	if len(s.queue) == 0 {
		s.queue = nil // an idle session keeps no array
	}
	return batch, size
}

// sent accounts for a written batch. The caller holds s.mu.
func (s *Session) sent(batch []Message, size int, position int64) {
	s.queued -= size
	for i := range batch {
		if batch[i].isControl(packetPing) {
			s.beat.pingPos = position
		}
	}
}

// Go runs fn on a goroutine that Server.Close waits for. Call it only from a
// Receiver's methods or from an fn.
func (s *Session) Go(fn func()) { s.spawn(fn) }

func (s *Session) spawn(fn func()) {
	s.srv.tasks.add()
	go func() {
		defer s.srv.tasks.done()
		fn()
	}()
}

// Close sends what is queued and ends the session. The receiver's Closed gets
// ReasonForcedClose unless the session had ended before.
func (s *Session) Close() { s.shut(ReasonForcedClose, true) }

// Abort ends the session at once; what is queued is lost.
func (s *Session) Abort() { s.shut(ReasonForcedClose, false) }

// shut ends the session for reason: at once, or after the queue is sent.
func (s *Session) shut(reason string, flush bool) {
	s.mu.Lock()
	if s.state == stateClosed || s.state == stateClosing && flush {
		s.mu.Unlock()
		return
	}
	first := s.state == stateOpen
	if first {
		s.reason = reason
		s.srv.tasks.add() // until Closed has returned below
	}
	waiting := s.beat.stop()
	if s.probe != nil {
		_ = s.probe.conn.Close() // its reader tidies up
	}
	if flush {
		s.state = stateClosing
		s.startLinger()
	} else {
		s.state = stateClosed
	}
	ended := s.settle()
	s.mu.Unlock()

	if ended {
		s.srv.drop(s)
	}
	if first {
		for _, fn := range waiting {
			fn(false)
		}
		s.recv.Closed(s.reason)
		s.srv.tasks.done()
	}
}

// startLinger bounds the flush of a closing session. The caller holds s.mu.
func (s *Session) startLinger() {
	s.linger = time.AfterFunc(s.srv.cfg.PingTimeout, func() { s.shut(s.reason, false) })
}

// settle moves a closing or closed session on after a change: it wakes whoever
// has to act and reports, once, that the session is over and must be dropped.
// The caller holds s.mu.
func (s *Session) settle() (ended bool) {
	if s.state == stateClosing {
		switch {
		case s.ws != nil:
			s.wake() // the writer sends the rest, then a close frame
			return false
		case s.poll != nil || s.answers > 0 || s.owes() || s.reason != ReasonShutdown:
			// A poll takes the rest and the close packet. Without anything left,
			// a server that shuts down owes a polling client no goodbye: one
			// that has a ping waiting may be gone.
			s.wake()
			return false
		}
		s.state = stateClosed
	}
	s.queue, s.queued = nil, 0
	if s.linger != nil {
		s.linger.Stop()
	}
	if s.poll != nil {
		s.poll.signal()
	}
	if s.ws != nil {
		_ = s.ws.conn.Close() // the reader and the writer see it
	}
	return true
}

// owes reports whether more than pings wait to be sent. The caller holds s.mu.
func (s *Session) owes() bool {
	return slices.ContainsFunc(s.queue, func(m Message) bool { return !m.isControl(packetPing) })
}

// deliver hands one packet from the client on. It returns false when the
// transport should stop reading.
func (s *Session) deliver(p incoming, buf Buffer) bool {
	switch p.kind {
	case packetMessage:
		s.mu.Lock()
		open := s.state == stateOpen
		s.beat.delivering = true
		s.mu.Unlock()
		if !open {
			return false
		}
		buf.B = p.data
		err := s.recv.Message(p.binary, buf)
		s.mu.Lock()
		s.beat.delivering = false
		s.mu.Unlock()
		if err != nil {
			s.srv.log.Debug("session sent a malformed packet", "err", err)
			s.shut(ReasonParseError, false)
			return false
		}
		return true
	case packetPong:
		s.pong()
		return true
	case packetUpgrade, packetNoop:
		return true
	case packetClose:
		s.shut(ReasonTransportClose, false)
		return false
	default: // open and ping are the server's to send
		s.shut(ReasonParseError, false)
		return false
	}
}
