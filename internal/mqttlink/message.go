package mqttlink

import (
	"errors"
	"fmt"

	"pairsync/internal/moment"
)

// Message is one PUBLISH from the server. It belongs to whoever received it;
// Payload stays valid for as long as it is kept.
type Message struct {
	Topic       string
	Payload     []byte
	ContentType string
	Properties  []moment.Property
	QoS         byte
	Retained    bool
	Duplicate   bool // the server may have sent it before

	conn   *connection // nil at QoS 0
	serial uint64      // position among the connection's QoS 1 messages
}

// Ack acknowledges a QoS 1 message; at QoS 0 and when called again it does
// nothing. It does not block and is safe from any goroutine. PUBACKs leave in
// the order in which the messages arrived (MQTT-4.6.0-2), so one that is never
// acknowledged holds back all behind it, and after Config.ReceiveMaximum of
// them nothing more comes. It returns ErrStale when the connection that
// brought the message is gone.
func (m *Message) Ack() error {
	if m.conn == nil {
		return nil
	}
	return m.conn.ack(m.serial)
}

// errGone stops the reader of a connection that has failed; why it has is
// already known.
var errGone = errors.New("the connection has ended")

// received enters a PUBLISH into the window and hands it on.
func (c *connection) received(p *published) error {
	m := &p.msg
	if m.QoS > 0 {
		c.l.mu.Lock()
		if len(c.window) >= int(c.l.cfg.ReceiveMaximum) {
			c.l.mu.Unlock()
			return fmt.Errorf("the server sent more than %d messages without waiting for an acknowledgement", c.l.cfg.ReceiveMaximum)
		}
		m.conn, m.serial = c, c.base+uint64(len(c.window))
		c.window = append(c.window, unsure{packetID: p.packetID})
		c.l.mu.Unlock()
	}
	if !c.emit(event{msg: m}) {
		// What was read behind it must not be handed on either: it would
		// arrive before m, which comes again.
		return errGone
	}
	return nil
}

// ack marks one message and moves the acknowledged head of the window to acks.
func (c *connection) ack(serial uint64) error {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if c.l.live != c {
		return ErrStale
	}
	if serial < c.base {
		return nil
	}
	c.window[serial-c.base].acked = true
	n := 0
	for n < len(c.window) && c.window[n].acked {
		c.acks = append(c.acks, c.window[n].packetID)
		n++
	}
	if n == 0 {
		return nil
	}
	c.base += uint64(n)
	c.window = append(c.window[:0], c.window[n:]...)
	c.nudge()
	return nil
}

// nudge wakes the sender.
func (c *connection) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
