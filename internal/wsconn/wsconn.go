// Package wsconn turns a WebSocket into the byte stream that MQTT runs on
// (MQTT 5, section 6): packets and messages need not line up. It neither
// dials nor upgrades; both sides of MQTT over WebSocket share it.
package wsconn

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// Subprotocol is what both sides must agree on (MQTT-6.0.0-3).
const Subprotocol = "mqtt"

// New takes ws over and returns it as a net.Conn with one reader and one
// writer at a time. A message that is not binary ends it (MQTT-6.0.0-1); the
// caller bounds messages with ws.SetReadLimit.
func New(ws *websocket.Conn) net.Conn { return &conn{Conn: ws} }

type conn struct {
	*websocket.Conn
	message io.Reader // what is left of the current message; nil between two
	closing sync.Once
	// until is the write deadline, in Unix nanoseconds; 0: none. gorilla's own
	// belongs to its writer, and a deadline may be set beside it.
	until atomic.Int64
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.NextReader()
			if err != nil {
				return 0, streamError(err)
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("websocket message is not binary")
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// streamError makes the peer's orderly end an io.EOF, as on a socket.
func streamError(err error) error {
	if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived) {
		return io.EOF
	}
	return err
}

// Write implements net.Conn: p becomes one binary message.
func (c *conn) Write(p []byte) (int, error) {
	var t time.Time
	if n := c.until.Load(); n != 0 {
		t = time.Unix(0, n)
	}
	if err := c.Conn.SetWriteDeadline(t); err != nil {
		return 0, err
	}
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetWriteDeadline implements net.Conn; it also moves that of a Write that is
// under way.
func (c *conn) SetWriteDeadline(t time.Time) error {
	n := int64(0)
	if !t.IsZero() {
		n = t.UnixNano()
	}
	c.until.Store(n)
	return c.NetConn().SetWriteDeadline(t)
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Close implements net.Conn; it may be called again.
func (c *conn) Close() (err error) {
	c.closing.Do(func() { err = c.Conn.Close() })
	return err
}
