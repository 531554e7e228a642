package engineio

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A poll is a GET that waits for packets.
type poll struct {
	wake chan struct{} // holds one signal; nobody closes it
	late bool          // it came after a WebSocket had come to take over
}

func (p *poll) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// probePoll is how long a poll may wait while an upgrade is probed. The client
// waits for its poll to end before it switches.
const probePoll = 100 * time.Millisecond

// openPolling starts a session and answers with its open packet.
func (s *Server) openPolling(w http.ResponseWriter, r *http.Request) {
	sess := s.newSession(r)
	if !s.start(sess, nil) {
		refused(w)
		return
	}
	sess.servePoll(w, r)
}

// servePoll answers a GET with what is queued, waiting for something first.
func (s *Session) servePoll(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.state == stateClosed || s.ws != nil {
		s.mu.Unlock()
		refuse(w, badRequest())
		return
	}
	if s.poll != nil {
		s.mu.Unlock()
		s.shut(ReasonTransportError, false)
		refuse(w, badRequest())
		return
	}
	p := &poll{wake: make(chan struct{}, 1), late: s.upgrading}
	s.poll = p
	if s.polled != nil {
		close(s.polled)
		s.polled = nil
	}
	s.mu.Unlock()

	if !s.await(p, r) {
		s.mu.Lock()
		s.poll = nil
		s.mu.Unlock()
		s.shut(ReasonTransportClose, false)
		return
	}
	s.answer(w, p)
}

// await returns when there is something to answer a poll with, false when the
// client has given up.
func (s *Session) await(p *poll, r *http.Request) bool {
	var probed <-chan time.Time
	for {
		s.mu.Lock()
		ready := len(s.queue) > 0 || s.state != stateOpen || s.ws != nil
		if s.probing && probed == nil {
			timer := time.NewTimer(probePoll)
			defer timer.Stop()
			probed = timer.C
		}
		s.mu.Unlock()
		if ready {
			return true
		}
		select {
		case <-p.wake:
		case <-probed:
			return true
		case <-r.Context().Done():
			return false
		}
	}
}

// answer ends the waiting poll with what is queued, or a noop.
func (s *Session) answer(w http.ResponseWriter, p *poll) {
	s.mu.Lock()
	s.poll = nil
	if s.ws != nil && p.late {
		// A client ends its poll before it switches. One that polled while it
		// switched gets what it would have got a moment later.
		s.mu.Unlock()
		refuse(w, badRequest())
		return
	}
	var batch []Message
	size := 0
	if s.ws == nil {
		batch, size = s.take(maxPollPackets, maxPollBytes)
	}
	// The close packet has an answer of its own: socket.io-client acts on it
	// before it has looked at what precedes it.
	packets, last := batch, false
	if len(packets) == 0 {
		packets, last = []Message{s.farewell()}, s.state != stateOpen
	}
	s.answers++
	s.mu.Unlock()

	err := s.writeAnswer(w, encodePayload(packets))

	s.mu.Lock()
	s.answers--
	s.sent(batch, size, s.polledOut.Load())
	last = last || s.state == stateClosing && s.reason == ReasonShutdown && len(s.queue) == 0
	s.mu.Unlock()
	switch {
	case err != nil:
		s.shut(ReasonTransportError, false)
	case last:
		s.shut(ReasonForcedClose, false)
	}
}

// farewell answers a poll that has nothing else to get: a noop, or the close
// packet when the server has ended the session for good. The caller holds s.mu.
func (s *Session) farewell() Message {
	if s.state == stateOpen || s.reason == ReasonTransportClose || s.reason == ReasonShutdown {
		return control(packetNoop)
	}
	return control(packetClose)
}

// writeAnswer writes a polling body in chunks, each with its own deadline.
func (s *Session) writeAnswer(w http.ResponseWriter, body []byte) error {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=UTF-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	rc := http.NewResponseController(w)
	for len(body) > 0 {
		// Not every ResponseWriter has deadlines; without them the server's own count.
		_ = rc.SetWriteDeadline(time.Now().Add(s.srv.cfg.PingTimeout))
		n, err := w.Write(body[:min(len(body), writeChunk)])
		s.polledOut.Add(int64(n))
		if err != nil {
			return err
		}
		body = body[n:]
	}
	if err := rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	_ = rc.SetWriteDeadline(time.Time{})
	return nil
}

// servePost takes a payload of packets.
func (s *Session) servePost(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	overlap := s.posting
	usable := s.state == stateOpen && s.ws == nil
	s.posting = true
	s.mu.Unlock()
	binary := strings.HasPrefix(r.Header.Get("Content-Type"), "application/octet-stream")
	switch {
	case overlap || binary:
		s.shut(ReasonTransportError, false)
		refuse(w, badRequest())
		return
	case !usable:
		refuse(w, badRequest())
		return
	}
	status := s.post(w, r)
	s.mu.Lock()
	s.posting = false
	s.mu.Unlock()
	switch status {
	case http.StatusOK:
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Content-Length", "2")
		_, _ = io.WriteString(w, "ok") // a client that is gone needs no answer
	case http.StatusRequestEntityTooLarge:
		w.Header().Set("Connection", "close")
		w.WriteHeader(status)
	default:
		refuse(w, badRequest())
	}
}

// post reads and delivers a payload and returns the status for it.
func (s *Session) post(w http.ResponseWriter, r *http.Request) int {
	body, err := s.readBody(w, r)
	switch {
	case errors.Is(err, errTooLarge):
		return http.StatusRequestEntityTooLarge
	case err != nil:
		s.shut(ReasonTransportError, false)
		return http.StatusBadRequest
	}
	for rest := body.B; ; {
		p, more, err := nextPacket(rest)
		if err != nil {
			s.srv.log.Debug("session sent a malformed payload", "err", err)
			s.shut(ReasonParseError, false)
			return http.StatusBadRequest
		}
		buf := body
		if more != nil || len(rest) != len(body.B) || p.binary {
			buf = Buffer{} // the body is shared: a packet gets its own memory
			if !p.binary {
				p.data = append([]byte(nil), p.data...)
			}
		}
		if p.kind == packetClose {
			s.awaitPoll()
		}
		if !s.deliver(p, buf) {
			return s.postStatus()
		}
		if rest = more; rest == nil {
			return http.StatusOK
		}
	}
}

// crossing is how long a close packet waits for a poll that the client sent
// before it, on another connection: it is owed an answer.
const crossing = 50 * time.Millisecond

// awaitPoll waits for a poll to be there, for a moment.
func (s *Session) awaitPoll() {
	s.mu.Lock()
	if s.poll != nil || s.state != stateOpen {
		s.mu.Unlock()
		return
	}
	polled := make(chan struct{})
	s.polled = polled
	s.mu.Unlock()
	timer := time.NewTimer(crossing)
	defer timer.Stop()
	select {
	case <-polled:
	case <-timer.C:
	}
}

// postStatus answers the post that ended the session: a close packet is in
// order, everything else was an error.
func (s *Session) postStatus() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason == ReasonParseError {
		return http.StatusBadRequest
	}
	return http.StatusOK
}

var errTooLarge = errors.New("payload over the limit")

// readBody reads a POST's body; every part that arrives extends its deadline.
func (s *Session) readBody(w http.ResponseWriter, r *http.Request) (Buffer, error) {
	limit := s.srv.cfg.MaxPayload
	if r.ContentLength > int64(limit) {
		return Buffer{}, errTooLarge
	}
	rc := http.NewResponseController(w)
	want := firstBytes
	if r.ContentLength >= 0 {
		want = min(want, int(r.ContentLength)+1)
	}
	buf := s.srv.bufs.get(want)
	for used := 0; ; {
		_ = rc.SetReadDeadline(time.Now().Add(s.srv.cfg.PingTimeout)) // see writeAnswer
		n, err := r.Body.Read(buf.B[used:])
		used += n
		s.polledIn.Add(int64(n))
		switch {
		case used > limit:
			return Buffer{}, errTooLarge
		case errors.Is(err, io.EOF):
			buf.B = buf.B[:used]
			return buf, nil
		case err != nil:
			return Buffer{}, err
		case used == len(buf.B):
			buf = s.srv.bufs.grow(buf, used, min(limit+1, max(2*used, firstBytes)))
		}
	}
}
