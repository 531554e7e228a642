package engineio

import (
	"math"
	"time"
)

// heartbeat is the ping's state. Session.mu guards it.
type heartbeat struct {
	timer   *time.Timer // fires when due
	due     time.Time   // the next ping, or the pong's latest arrival
	waiting bool        // a ping is outstanding
	behind  bool        // other bytes were on their way before the ping
	// pingPos is the outgoing byte count up to the ping's end, once written.
	pingPos int64
	// acked and in are what the last check saw of outgoing and incoming bytes.
	acked, in  int64
	delivering bool         // the receiver makes the client wait
	confirms   []func(bool) // called with the outstanding ping's pong
	next       []func(bool) // need a ping of their own
}

// maxConfirms bounds the functions that wait for a pong.
const maxConfirms = 1024

// stop disarms the heartbeat and returns the functions that still wait.
func (h *heartbeat) stop() []func(bool) {
	if h.timer != nil {
		h.timer.Stop()
	}
	waiting := append(h.confirms, h.next...)
	h.confirms, h.next = nil, nil
	return waiting
}

// Confirm calls fn(true) once a pong proves that everything sent before the
// call has reached the client, and fn(false) when the session ends first (or
// when 1,024 functions wait already). It sends a ping at once unless one is
// outstanding; at most one ever is. fn must not block.
func (s *Session) Confirm(fn func(ok bool)) {
	s.mu.Lock()
	full := len(s.beat.confirms)+len(s.beat.next) >= maxConfirms
	switch {
	case s.state != stateOpen || full:
		s.mu.Unlock()
		fn(false)
		return
	case s.beat.waiting:
		s.beat.next = append(s.beat.next, fn)
	default:
		s.beat.confirms = append(s.beat.confirms, fn)
		s.ping(time.Now())
	}
	s.mu.Unlock()
}

// arm sets the timer. The caller holds s.mu.
func (h *heartbeat) arm(due time.Time) {
	h.due = due
	h.timer.Reset(time.Until(due))
}

// ping queues a ping that was due at from, and arms the timeout. The caller
// holds s.mu.
func (s *Session) ping(from time.Time) {
	s.beat.waiting = true
	s.beat.pingPos = math.MaxInt64
	s.beat.acked, s.beat.in = s.progress()
	s.beat.behind = s.queued > 0 || s.ws != nil && s.beat.acked < s.ws.out.Load()
	s.push(control(packetPing))
	s.beat.arm(from.Add(s.srv.cfg.PingTimeout))
}

// pong ends the wait for a pong.
func (s *Session) pong() {
	s.mu.Lock()
	if s.state != stateOpen || !s.beat.waiting {
		s.mu.Unlock()
		return
	}
	s.beat.waiting = false
	confirmed := s.beat.confirms
	s.beat.confirms, s.beat.next = s.beat.next, nil
	if len(s.beat.confirms) > 0 {
		s.ping(time.Now())
	} else {
		s.beat.arm(time.Now().Add(s.srv.cfg.PingInterval))
	}
	s.mu.Unlock()
	for _, fn := range confirmed {
		fn(true)
	}
}

// tick runs when the heartbeat's timer fires.
func (s *Session) tick() {
	s.mu.Lock()
	if s.state != stateOpen || time.Now().Before(s.beat.due) { // armed anew meanwhile
		s.mu.Unlock()
		return
	}
	if !s.beat.waiting {
		s.ping(s.beat.due) // not from now: a late timer must not add up
		s.mu.Unlock()
		return
	}
	if s.advances() {
		s.beat.arm(time.Now().Add(s.srv.cfg.PingTimeout))
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	s.shut(ReasonPingTimeout, false)
}

// advances reports whether the missing pong is excused: a frame moved in
// either direction since the last look, so that the ping may still be on its
// way behind a photo, or the pong behind one. Once the client's host has taken
// the ping, what else it takes is no excuse. The caller holds s.mu.
func (s *Session) advances() bool {
	acked, in := s.progress()
	was := s.beat.acked
	moved := s.beat.behind && was < s.beat.pingPos && acked > was || in >= s.beat.in+minProgress
	s.beat.acked, s.beat.in = acked, in
	return moved || s.beat.delivering
}

// minProgress is how many bytes per PingTimeout count as a frame that arrives.
const minProgress = 1 << 10
