package engineio

import (
	"net/http"
	"time"
)

// upgrade takes a WebSocket for a session that polls. The client probes it
// ("2probe", answered "3probe"), lets its poll end, and switches with "5";
// until then messages go by poll.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request, sess *Session) {
	mine := sess.beginUpgrade() // before the client can know of its WebSocket
	ws, err := s.accept(w, r)
	switch {
	case err != nil:
		if mine {
			sess.endUpgrade()
		}
	case !mine || !sess.attach(ws):
		_ = ws.conn.Close()
	}
}

// beginUpgrade reserves the upgrade; false when the session has none to give.
func (s *Session) beginUpgrade() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateOpen || s.ws != nil || s.upgrading {
		return false
	}
	s.upgrading = true
	return true
}

// endUpgrade lets another upgrade begin.
func (s *Session) endUpgrade() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upgrading, s.probing, s.probe = false, false, nil
}

// attach starts the reserved upgrade; false when the session has ended.
func (s *Session) attach(ws *wsConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateOpen {
		return false
	}
	s.probe = ws
	s.spawn(func() { s.takeOver(ws) })
	return true
}

// takeOver runs the upgrade and then reads the WebSocket. An upgrade that fails
// leaves the session polling.
func (s *Session) takeOver(ws *wsConn) {
	_ = ws.conn.SetDeadline(time.Now().Add(s.srv.cfg.UpgradeTimeout))
	if !s.probed(ws) || !s.switchTo(ws) {
		s.endUpgrade()
		_ = ws.conn.Close()
		return
	}
	s.readLoop(ws)
}

// probed waits for the probe and answers it.
func (s *Session) probed(ws *wsConn) bool {
	if !expect(ws, "2probe") {
		return false
	}
	if ws.write([]Message{{Head: []byte("3probe")}}, nil) != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probing = true
	if s.poll != nil {
		s.poll.signal() // it ends with a noop, soon
	}
	return true
}

// switchTo waits for the upgrade packet and makes ws the session's transport.
func (s *Session) switchTo(ws *wsConn) bool {
	if !expect(ws, "5") {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateOpen {
		return false
	}
	if ws.conn.SetDeadline(time.Time{}) != nil {
		return false
	}
	s.ws, s.probe = ws, nil
	s.beat.acked, s.beat.in = s.progress()
	if s.poll != nil {
		s.poll.signal()
	}
	if len(s.queue) > 0 {
		s.wake()
	}
	return true
}

// expect reads one message and reports whether it is the text want.
func expect(ws *wsConn, want string) bool {
	binary, buf, err := ws.read()
	defer buf.Release()
	return err == nil && !binary && string(buf.B) == want
}
