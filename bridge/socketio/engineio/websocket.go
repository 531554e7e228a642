package engineio

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"pairsync/internal/sendqueue"
)

// scratch holds the writers' buffers: only sessions that write need one.
type scratch struct{ pool sync.Pool }

func (s *scratch) get() *[]byte {
	if b, ok := s.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, scratchBytes)
	return &b
}

// accept answers the opening handshake and returns the connection. The
// client's Origin has been checked before.
func (s *Server) accept(w http.ResponseWriter, r *http.Request) (*wsConn, error) {
	up := websocket.Upgrader{
		HandshakeTimeout: s.cfg.UpgradeTimeout,
		CheckOrigin:      func(*http.Request) bool { return true },
	}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return nil, err // Upgrade has answered
	}
	// Upgrade refuses clients that sent anything early, so nothing is left in
	// its reader and the connection can be read directly.
	return newWSConn(conn.NetConn(), s.cfg.MaxPayload, s.bufs), nil
}

// openWebSocket starts a session on a WebSocket.
func (s *Server) openWebSocket(w http.ResponseWriter, r *http.Request) {
	ws, err := s.accept(w, r)
	if err != nil {
		return
	}
	sess := s.newSession(r)
	if !s.start(sess, ws) {
		_ = ws.conn.SetWriteDeadline(time.Now().Add(closeWait))
		_ = ws.sendClose(closeGoingAway, "")
		_ = ws.conn.Close()
		return
	}
	sess.spawn(func() { sess.readLoop(ws) })
}

// readLoop reads ws until it ends.
func (s *Session) readLoop(ws *wsConn) {
	for {
		binary, buf, err := ws.read()
		if err != nil {
			s.readFailed(ws, err)
			return
		}
		if !s.deliverFrame(binary, buf) && !s.open() {
			s.drain(ws)
			return
		}
	}
}

func (s *Session) open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == stateOpen
}

// deliverFrame hands on the packet in one WebSocket message.
func (s *Session) deliverFrame(binary bool, buf Buffer) bool {
	if binary {
		return s.deliver(incoming{kind: packetMessage, binary: true, data: buf.B}, buf)
	}
	p, err := parsePacket(buf.B)
	if err != nil {
		s.shut(ReasonParseError, false)
		return false
	}
	return s.deliver(p, buf)
}

// readFailed ends the session after a failed read, with a close frame where
// the client is owed one.
func (s *Session) readFailed(ws *wsConn, err error) {
	var breach *frameError
	switch {
	case errors.As(err, &breach):
		s.srv.log.Debug("websocket closed", "err", err)
		ws.goodbye(breach.code, breach.reason)
		s.shut(ReasonTransportError, false)
	case errors.Is(err, errPeerClosed):
		s.shut(ReasonTransportClose, false)
	default:
		s.shut(ReasonTransportClose, false)
	}
	_ = ws.conn.Close()
}

// drain reads and drops what a client still sends while the session closes,
// until the client or a deadline ends the connection.
func (s *Session) drain(ws *wsConn) {
	for {
		if _, buf, err := ws.read(); err != nil {
			break
		} else {
			buf.Release()
		}
	}
	s.shut(s.reason, false)
	_ = ws.conn.Close()
}

// goodbye sends a close frame and waits a moment for the client to take it:
// closing a TCP connection with unread input would destroy the frame.
func (c *wsConn) goodbye(code int, reason string) {
	if !c.wmu.TryLock() {
		return // in the middle of a frame that does not move
	}
	c.wmu.Unlock()
	end := time.Now().Add(closeWait)
	_ = c.conn.SetDeadline(end)
	if c.sendClose(code, reason) != nil {
		return
	}
	if half, ok := c.conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	for {
		if _, err := c.br.Discard(readBytes); err != nil {
			return
		}
	}
}

// writeLoop sends the queue to ws and ends when the queue is empty.
func (s *Session) writeLoop(ws *wsConn) {
	scratch := s.srv.scratch.get()
	defer s.srv.scratch.pool.Put(scratch)
	for {
		s.mu.Lock()
		if len(s.queue) == 0 || s.state == stateClosed {
			s.writing = false
			closing := s.state == stateClosing
			s.mu.Unlock()
			if closing {
				s.finishWebSocket(ws)
			}
			return
		}
		batch, size := s.take(len(s.queue), maxPollBytes)
		s.mu.Unlock()
		err := ws.write(batch, *scratch)
		s.mu.Lock()
		s.sent(batch, size, ws.out.Load())
		if err != nil {
			s.writing = false
		}
		s.mu.Unlock()
		if err != nil {
			s.shut(ReasonTransportError, false)
			return
		}
	}
}

// finishWebSocket starts the closing handshake after the last message.
func (s *Session) finishWebSocket(ws *wsConn) {
	code := closeNormal
	if s.reason == ReasonShutdown {
		code = closeGoingAway
	}
	_ = ws.conn.SetDeadline(time.Now().Add(closeWait)) // ends the reader
	_ = ws.sendClose(code, "")
}

// progress returns how many bytes the client's host has taken, as far as
// this one can tell, and how many arrived. The caller holds s.mu.
func (s *Session) progress() (acked, in int64) {
	if s.ws == nil {
		return s.polledOut.Load(), s.polledIn.Load()
	}
	return s.ws.out.Load() - sendqueue.Unsent(s.ws.conn), s.ws.in.Load()
}
