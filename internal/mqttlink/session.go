package mqttlink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pairsync/internal/moment"
)

// session is what outlives a connection: subscriptions, requests and messages
// that wait for their acknowledgement. Guarded by Link.mu.
type session struct {
	subs []Subscription // in the order added, one per filter

	queue  []*outgoing // publishes in the order of their calls, until acknowledged
	sent   int         // queue[:sent] are written or being written on the live connection
	reqs   []*request  // SUBSCRIBEs and UNSUBSCRIBEs without an answer
	ids    map[uint16]any
	lastID uint16
}

// outgoing is one publish that is not yet settled.
type outgoing struct {
	pub       *Publish
	packetID  uint16            // 0 until first written
	tried     bool              // written before: DUP
	abandoned bool              // its caller has left: not sent again after a reconnect
	done      chan error        // capacity 1; gets exactly one value, from whoever removes it
	props     []moment.Property // of its PUBACK; set before done gets its value
}

// attach makes c the live connection: what was in flight is to be sent again,
// with DUP and its old packet id where the server kept the session, and as
// something new where it did not (so that a forgetful server loses nothing).
func (l *Link) attach(c *connection, sessionPresent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.sessionPresent = sessionPresent
	l.queue = slices.DeleteFunc(l.queue, func(o *outgoing) bool { return o.abandoned })
	l.sent = 0
	l.ids = make(map[uint16]any)
	for _, o := range l.queue {
		if sessionPresent && o.packetID != 0 {
			l.ids[o.packetID] = o
		} else {
			o.packetID, o.tried = 0, false
		}
	}
	for _, q := range l.reqs {
		q.packetID = 0
	}
	initial := subscribeRequests(l.subs)
	c.initial = len(initial)
	l.reqs = append(initial, l.reqs...)
	c.subDeadline = time.AfterFunc(subscribeTimeout, func() {
		c.fail(fmt.Errorf("the server did not answer SUBSCRIBE within %v", subscribeTimeout))
	})
	l.live = c
	c.nudge()
}

// detach ends what belongs to c alone.
func (l *Link) detach(c *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live = nil
	l.reqs = slices.DeleteFunc(l.reqs, func(q *request) bool { return q.done == nil })
	l.queue = slices.DeleteFunc(l.queue, func(o *outgoing) bool {
		if o.pub.QoS == 0 {
			o.done <- ErrDown
		}
		return o.pub.QoS == 0
	})
}

// Publish sends p. At QoS 0 it returns when p is written, or ErrDown. At QoS 1
// it returns when the server has acknowledged p, however many connections that
// takes; a refusal is a *ReasonError. When ctx ends first, p may or may not
// have arrived, and is not sent again after a reconnect.
func (l *Link) Publish(ctx context.Context, p Publish) error {
	_, err := l.PublishProps(ctx, p)
	return err
}

// PublishProps is Publish for a caller that wants to know what the server says
// in the PUBACK's user properties: a pairsync server sets "duplicate" to "true"
// where it had the moment already.
func (l *Link) PublishProps(ctx context.Context, p Publish) ([]moment.Property, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	o := &outgoing{pub: &p, done: make(chan error, 1)}
	l.mu.Lock()
	if p.QoS == 0 && l.live == nil {
		l.mu.Unlock()
		return nil, ErrDown
	}
	l.queue = append(l.queue, o)
	l.nudge()
	l.mu.Unlock()

	select {
	case err := <-o.done:
		return o.props, wrapPublish(p.Topic, err)
	case <-l.done:
		return nil, ErrClosed
	case <-ctx.Done():
		l.abandon(o)
		return nil, wrapPublish(p.Topic, ctx.Err())
	}
}

func wrapPublish(topic string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("publish %q: %w", topic, err)
}

// nudge wakes the live connection's sender. Callers hold l.mu.
func (l *Link) nudge() {
	if l.live != nil {
		l.live.nudge()
	}
}

// abandon forgets o, or, where it is written and the answer may still come,
// keeps only its packet id until then.
func (l *Link) abandon(o *outgoing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.queue, o)
	if i < 0 {
		return
	}
	if i < l.sent {
		o.abandoned = true
		return
	}
	l.queue = slices.Delete(l.queue, i, i+1)
	if o.packetID != 0 {
		delete(l.ids, o.packetID)
	}
}

// settle ends the publish that a PUBACK names; unknown ids are ignored.
func (l *Link) settle(c *connection, packetID uint16, props []moment.Property, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o, ok := l.ids[packetID].(*outgoing)
	if !ok {
		return
	}
	delete(l.ids, packetID)
	i := slices.Index(l.queue, o)
	l.queue = slices.Delete(l.queue, i, i+1)
	if i < l.sent {
		l.sent--
		c.quota++
	}
	o.props = props
	o.done <- err
	if l.sent < len(l.queue) {
		c.nudge()
	}
}

// next takes the publish that c is to write now, marked as written; nil when
// there is none or the server's window is full. Callers hold l.mu.
func (l *Link) next(c *connection) *outgoing {
	for l.sent < len(l.queue) {
		o := l.queue[l.sent]
		err := c.allows(o.pub)
		switch {
		case err != nil || o.pub.QoS == 0:
			l.queue = slices.Delete(l.queue, l.sent, l.sent+1)
			if err == nil {
				return o
			}
			delete(l.ids, o.packetID) // it has one where it was sent before
			o.done <- err
			continue
		case c.quota == 0:
			return nil
		}
		if o.packetID == 0 {
			if o.packetID = l.newID(o); o.packetID == 0 {
				return nil
			}
		}
		c.quota--
		l.sent++
		return o
	}
	return nil
}

// allows reports what the server's CONNACK forbids about p. Sending it all the
// same would end the connection, again and again.
func (c *connection) allows(p *Publish) error {
	size := len(publishHead(p, 1, false)) + len(p.Payload)
	switch {
	case size > c.maxPacket:
		return &ReasonError{Code: CodePacketTooLarge, Reason: fmt.Sprintf("%d bytes; the server takes %d", size, c.maxPacket)}
	case p.QoS > c.maxQoS:
		return &ReasonError{Code: codeQoSUnsupported}
	case p.Retain && c.noRetain:
		return &ReasonError{Code: codeRetainUnsupported}
	}
	return nil
}

// newID reserves a packet id for owner; 0 when all are taken. Callers hold l.mu.
func (l *Link) newID(owner any) uint16 {
	for range 1 << 16 {
		l.lastID++
		if _, taken := l.ids[l.lastID]; l.lastID != 0 && !taken {
			l.ids[l.lastID] = owner
			return l.lastID
		}
	}
	return 0
}

// sendLoop writes acknowledgements, requests and publishes as they become
// due, and pings when the connection is idle.
func (c *connection) sendLoop() {
	var idle keepAlive
	timer := time.NewTimer(idle.start(c))
	defer timer.Stop()
	for {
		worked, err := c.sendNext()
		if err != nil {
			c.fail(fmt.Errorf("write: %w", err))
			return
		}
		if worked {
			continue
		}
		select {
		case <-c.wake:
		case <-c.gone:
			return
		case <-timer.C:
			wait, err := idle.check(c)
			if err != nil {
				c.fail(err)
				return
			}
			timer.Reset(wait)
		}
	}
}

// sendNext writes the most urgent thing; false when there is nothing to write.
func (c *connection) sendNext() (bool, error) {
	l := c.l
	l.mu.Lock()
	if len(c.acks) > 0 {
		b := make([]byte, 0, 4*len(c.acks))
		for _, id := range c.acks {
			b = appendPuback(b, id)
		}
		c.acks = c.acks[:0]
		l.mu.Unlock()
		return true, c.wire.send(b, nil)
	}
	if q := l.nextRequest(); q != nil {
		b := q.encode()
		l.mu.Unlock()
		return true, c.wire.send(b, nil)
	}
	o := l.next(c)
	if o == nil {
		l.mu.Unlock()
		return false, nil
	}
	id, duplicate := o.packetID, o.tried
	o.tried = true
	l.mu.Unlock()
	err := c.wire.send(publishHead(o.pub, id, duplicate), o.pub.Payload)
	if o.pub.QoS == 0 {
		o.done <- err
	}
	return true, err
}

// keepAlive decides when to ping and when the other side is dead.
type keepAlive struct {
	pinged time.Duration // when the ping was sent that nothing has answered yet; zero: none
	moved  uint64        // Link.Moved when it last grew since then
}

// start returns when to check first.
func (k *keepAlive) start(c *connection) time.Duration {
	if c.keepAlive == 0 {
		return never
	}
	return c.keepAlive
}

// never is longer than any connection lives.
const never = 1000 * time.Hour * 24

// check pings when nothing was sent or nothing was received for a keepalive
// (half-open connections are found by the second), and fails when a ping stays
// unanswered while nothing moves. It returns when to check again.
func (k *keepAlive) check(c *connection) (time.Duration, error) {
	if c.keepAlive == 0 {
		return never, nil
	}
	now := time.Since(c.wire.opened)
	read, written := time.Duration(c.wire.lastRead.Load()), time.Duration(c.wire.lastWrite.Load())
	if k.pinged > 0 && read < k.pinged {
		moved := c.l.Moved()
		if moved <= k.moved {
			return 0, errors.New("the server does not answer")
		}
		k.moved = moved
		return pingTimeout, nil
	}
	k.pinged = 0
	if due := min(read, written) + c.keepAlive - now; due > 0 {
		return due, nil
	}
	k.pinged, k.moved = now, c.l.Moved()
	if err := c.wire.send([]byte{0xC0, 0}, nil); err != nil { // PINGREQ
		return 0, fmt.Errorf("ping: %w", err)
	}
	k.moved += 2
	return min(pingTimeout, c.keepAlive), nil
}
