package engineio

import (
	"math"
	"time"
)

const (
	// maxConfirms bounds the functions that wait for a pong.
	maxConfirms = 1024
	// minProgress is how many bytes per PingTimeout count as a frame that arrives.
	minProgress = 1 << 10
	// minAhead is how many bytes before a ping may delay it noticeably.
	minAhead = 16 << 10
)

// heartbeat is the ping's state. Session.mu guards it.
type heartbeat struct {
	timer *time.Timer // fires when due
	due   time.Time   // the next ping, or the pong's latest arrival

	// outstanding is the number of pings without a pong: at most one, unless
	// the receiver blocks, so that pongs cannot be read.
	outstanding int
	confirms    []func(bool) // called when nothing is outstanding any more
	next        []func(bool) // need a ping of their own after that

	delivering bool // the receiver makes the client wait
	// behind says that much was on its way before the last ping, and
	// pingPos is the outgoing byte count up to the ping's end, once written.
	behind  bool
	pingPos int64
	// acked and in are what the last check saw of outgoing and incoming bytes.
	acked, in int64
}

// arm sets the timer.
func (h *heartbeat) arm(due time.Time) {
	h.due = due
	h.timer.Reset(time.Until(due))
}

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
// outstanding; then it sends one after that one's pong. fn must not block.
func (s *Session) Confirm(fn func(ok bool)) {
	s.mu.Lock()
	full := len(s.beat.confirms)+len(s.beat.next) >= maxConfirms
	switch {
	case s.state != stateOpen || full:
		s.mu.Unlock()
		fn(false)
		return
	case s.beat.outstanding > 0:
		s.beat.next = append(s.beat.next, fn)
	default:
		s.beat.confirms = append(s.beat.confirms, fn)
		s.ping(time.Now())
	}
	s.mu.Unlock()
}

// ping queues a ping that was due at from, and arms the timeout. The caller
// holds s.mu.
func (s *Session) ping(from time.Time) {
	s.beat.outstanding++
	s.beat.pingPos = math.MaxInt64
	s.beat.acked, s.beat.in = s.progress()
	ahead := int64(s.queued)
	if s.ws != nil {
		ahead += s.ws.out.Load() - s.beat.acked
	}
	s.beat.behind = ahead >= minAhead
	s.push(control(packetPing))
	s.beat.arm(from.Add(s.srv.cfg.PingTimeout))
}

// pong takes a pong.
func (s *Session) pong() {
	s.mu.Lock()
	if s.state != stateOpen || s.beat.outstanding == 0 {
		s.mu.Unlock()
		return
	}
	if s.beat.outstanding--; s.beat.outstanding > 0 {
		s.mu.Unlock()
		return
	}
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
	switch {
	case s.beat.outstanding == 0:
		s.ping(s.beat.due) // not from now: a late timer must not add up
	case s.beat.delivering:
		// The pong may be there but cannot be read. The client wants pings all the same.
		s.ping(time.Now())
	case s.advances():
		s.beat.arm(time.Now().Add(s.srv.cfg.PingTimeout))
	default:
		s.mu.Unlock()
		s.shut(ReasonPingTimeout, false)
		return
	}
	s.mu.Unlock()
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
	return moved
}
