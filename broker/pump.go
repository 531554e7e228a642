package broker

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/bufpool"
	"pairsync/internal/kv"
	"pairsync/internal/ledger"
)

// readBytes stops a read from the ledger, so that a pump holds one photo, or a
// handful of small moments, at a time.
const readBytes = 64 << 10

// errStopped ends a pump whose connection is no longer the session's.
var errStopped = errors.New("the session has another connection")

// run is the pump: the one goroutine that writes to the client what is ours,
// answers, ephemeral messages and moments. It ends with the connection.
func (c *client) run() {
	defer close(c.gone)
	for {
		select {
		case <-c.closed:
			return
		case <-c.wake:
		}
		if err := c.turn(); err != nil {
			c.cl.Stop(err) // the reader returns, and ServeConn detaches
			return
		}
	}
}

// turn writes all there is to write at the moment.
func (c *client) turn() error {
	for {
		if err := c.flush(false); err != nil {
			return err
		}
		if c.admin != nil {
			if moved, err := c.deliverAdmin(); err != nil || !moved {
				return err
			}
			continue
		}
		again, err := c.redeliver()
		if err != nil {
			return err
		}
		if again {
			continue
		}
		moved := false
		for _, log := range c.logs() {
			ok, err := c.deliver(log)
			if err != nil {
				return err
			}
			moved = moved || ok
		}
		if !moved {
			return nil
		}
	}
}

func (c *client) logs() []ledger.LogID {
	c.sess.mu.Lock()
	defer c.sess.mu.Unlock()
	return c.sess.logs()
}

// flush writes the answers that are due, in order, and what else is queued; a
// pump that holds room in the budget, or waits for it, loads no other photo.
func (c *client) flush(holds bool) error {
	for {
		c.mu.Lock()
		var r *reply
		if len(c.replies) > 0 && c.replies[0].ready {
			r = c.replies[0]
			c.replies = c.replies[1:]
		}
		var o *outgoing
		if r == nil && len(c.out) > 0 && !(holds && c.out[0].photo) {
			o = &c.out[0]
			c.out = c.out[1:]
			c.outBytes -= len(o.payload)
			if o.load != nil {
				c.values--
			}
		}
		c.mu.Unlock()
		switch {
		case r != nil:
			if err := c.writeReply(r); err != nil {
				return err
			}
		case o != nil:
			if err := c.writeOut(o); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

func (c *client) writeReply(r *reply) error {
	<-c.room
	if r.after != nil {
		if err := r.after(); err != nil {
			c.b.log.Error("storage work of a publish not done", "client", c.cl.ID, "error", err)
			if !c.v5() {
				return err // no PUBACK: it is sent again after the reconnect
			}
			r.code = storageCode(err)
		}
	}
	if r.qos == 0 || r.closes {
		return nil
	}
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Puback},
		PacketID:    r.id, ReasonCode: r.code.Code,
	}
	if r.qos == 2 {
		// An admin's handshake goes on in admin.go. 3.1.1 clients of others get
		// their PUBCOMP from mochi, which knows no packet id of theirs but has
		// no reason code to say so; a repeated PUBLISH in between is a
		// duplicate to the ledger.
		pk.FixedHeader.Type = packets.Pubrec
	}
	if r.code.Code >= packets.ErrUnspecifiedError.Code {
		pk.Properties.ReasonString = r.code.Reason
	}
	if r.dup {
		pk.Properties.User = []packets.UserProperty{{Key: "duplicate", Val: "true"}}
	}
	return c.cl.WritePacket(pk)
}

// settleReplies does what answers were to do when the connection has ended
// before they were written. It waits for the results of what was submitted,
// which the ledger gives in the time of a commit.
func (c *client) settleReplies() {
	patience := time.NewTimer(10 * time.Second)
	defer patience.Stop()
	for {
		c.mu.Lock()
		if len(c.replies) == 0 {
			c.mu.Unlock()
			return
		}
		r := c.replies[0]
		ready := r.ready
		if ready {
			c.replies = c.replies[1:]
		}
		c.mu.Unlock()
		if ready {
			<-c.room
			if r.after != nil {
				_ = r.after() // it was not acknowledged and is sent again
			}
			continue
		}
		select {
		case <-c.wake: // an answer has come
		case <-patience.C:
			return // a panic in the decoder left a publish unanswered
		}
	}
}

func (c *client) writeOut(o *outgoing) error {
	if o.photo {
		h, err := c.take(c.b.maxLoaded())
		if err != nil {
			return err
		}
		defer c.b.budget.free(h)
	}
	if o.load != nil {
		got, err := o.load(c.ctx)
		if errors.Is(err, ledger.ErrNotFound) || errors.Is(err, kv.ErrNotFound) {
			return nil // there is no such value
		}
		if err != nil {
			c.b.log.Warn("retained value not read", "error", err)
			return nil
		}
		o.payload, o.contentType, o.props, o.expires = got.payload, got.contentType, got.props, got.expires
	}
	return c.tolerate(c.writePublish(&packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Publish, Retain: o.retained || o.asPublished},
		ProtocolVersion: c.cl.Properties.ProtocolVersion,
		TopicName:       o.topic,
		Properties: packets.Properties{
			ContentType: o.contentType, User: o.props, SubscriptionIdentifier: o.ids, MessageExpiryInterval: expiryLeft(o.expires),
		},
	}, o.payload))
}

// tolerate passes over a packet that is larger than the client takes (MQTT 5,
// section 3.1.2.11.4: it is as if it had been delivered).
func (c *client) tolerate(err error) error {
	if errors.Is(err, packets.ErrPacketTooLarge) {
		c.b.metrics.skipped.Inc()
		return nil
	}
	return err
}

// redeliver sends the oldest moment that was sent on an earlier connection and
// never acknowledged, with DUP and its old packet id. This connection's window
// may be smaller than that one's was.
func (c *client) redeliver() (again bool, err error) {
	s := c.sess
	s.mu.Lock()
	if s.owner != c {
		s.mu.Unlock()
		return false, errStopped
	}
	open, can := 0, c.can.Load()
	i := slices.IndexFunc(s.sent, func(f *inflight) bool {
		if f.serial == c.serial {
			open++
			return false
		}
		return can.follow(f.log)
	})
	if i < 0 || open >= c.window {
		s.mu.Unlock()
		return false, nil
	}
	f := s.sent[i]
	f.serial = c.serial
	s.mu.Unlock()

	got, room, err := c.load(f.log, f.seq-1, ledger.Limit{Entries: 1})
	if err != nil {
		return false, err
	}
	defer c.b.budget.free(room)
	now := time.Now()
	s.mu.Lock()
	var ids []int
	// Where it was taken back, the next one is in its place.
	ok := len(got.Entries) == 1 && got.Entries[0].Seq == f.seq && c.can.Load().read(got.Entries[0].Topic())
	if ok {
		_, ids, ok = s.want(f.log, &got.Entries[0], now)
	}
	s.mu.Unlock()
	if !ok { // taken back, expired or no longer subscribed meanwhile
		c.b.acked(c, f.id)
		return true, nil
	}
	c.b.metrics.redelivered.Inc()
	err = c.writeMoment(&got.Entries[0], 1, f.id, true, ids)
	bufpool.Put(got.Entries[0].Payload)
	return true, err
}

// deliver reads on in one log and sends what is for this session, as far as
// its window allows. It reports whether it came any further.
func (c *client) deliver(log ledger.LogID) (moved bool, err error) {
	s := c.sess
	s.mu.Lock()
	fl := s.follows[log]
	entries := min(c.window-len(s.sent), 32)
	bytes := c.b.cfg.WindowBytes - s.bytes
	if s.owner != c || fl == nil || !c.can.Load().follow(log) || entries <= 0 || bytes <= 0 {
		stopped := s.owner != c
		s.mu.Unlock()
		if stopped {
			return false, errStopped
		}
		return false, nil
	}
	after, resets := fl.pos, fl.resets
	s.mu.Unlock()

	now := time.Now()
	got, room, err := c.load(log, after, ledger.Limit{
		Entries: entries, Bytes: min(readBytes, bytes),
		Want: func(e *ledger.Entry) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			_, _, ok := s.want(log, e, now)
			return ok
		},
	})
	if err != nil {
		return false, err
	}
	defer c.b.budget.free(room)
	for i := range got.Entries {
		err := c.send(log, resets, &got.Entries[i])
		bufpool.Put(got.Entries[i].Payload)
		if err != nil {
			return false, err
		}
		got.Entries[i].Payload = nil
		c.b.budget.resize(room, payloadBytes(got.Entries[i:]))
		if err := c.flush(true); err != nil {
			return false, err
		}
	}
	c.passed(log, fl, resets, got.Through)
	return got.Through > after, nil
}

// send registers one entry as in flight, where it is sent at QoS 1, and writes
// it. It may have expired since it was read.
func (c *client) send(log ledger.LogID, resets int, e *ledger.Entry) error {
	s, now := c.sess, time.Now()
	s.mu.Lock()
	if s.owner != c {
		s.mu.Unlock()
		return errStopped
	}
	fl := s.follows[log]
	qos, ids, ok := s.want(log, e, now)
	ok = ok && fl != nil && c.can.Load().read(e.Topic()) &&
		!slices.ContainsFunc(s.sent, func(f *inflight) bool { return f.log == log && f.seq == e.Seq })
	if !ok {
		s.mu.Unlock()
		return nil
	}
	var id uint16
	if qos > 0 {
		id = s.packetID()
		s.sent = append(s.sent, &inflight{log: log, seq: e.Seq, id: id, size: e.Size, serial: c.serial})
		s.bytes += e.Size
	}
	if fl.resets == resets {
		fl.pos = max(fl.pos, e.Seq)
	}
	s.mu.Unlock()
	c.b.metrics.delivered.Inc()
	return c.writeMoment(e, qos, id, false, ids)
}

// passed notes that everything up to through was looked at, unless a
// subscription set the place back meanwhile (backfill): the next turn then
// reads again from there.
func (c *client) passed(log ledger.LogID, fl *follow, resets int, through ledger.Seq) {
	s := c.sess
	s.mu.Lock()
	if s.follows[log] == fl && fl.resets == resets {
		fl.pos = max(fl.pos, through)
	}
	to, moved := s.settle(log)
	s.mu.Unlock()
	if moved {
		c.b.advance(c, log, to)
	}
}

// acked takes a PUBACK. An error code in it counts too: the client has had the
// moment and does not want it again (MQTT 5, section 4.4).
func (b *Broker) acked(c *client, id uint16) {
	c.sess.mu.Lock()
	log, to, moved := c.sess.ack(id)
	c.sess.mu.Unlock()
	b.metrics.acked.Inc()
	if moved {
		b.advance(c, log, to)
	}
	c.poke()
}

// advance moves the durable cursor, where there is one; a failure only
// redelivers.
func (b *Broker) advance(c *client, log ledger.LogID, to ledger.Seq) {
	if err := b.keepPlace(c.ctx, c.sess, log, to); err != nil {
		b.log.Warn("cursor not advanced", "client", c.sess.id, "error", err)
	}
	b.markDirty(log)
}

// keepPlace moves a session's durable cursor, unless the session has ended: a
// new one of the same id has places of its own.
func (b *Broker) keepPlace(ctx context.Context, s *session, log ledger.LogID, to ledger.Seq) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return nil
	}
	return b.deps.Ledger.Advance(ctx, s.id, log, to)
}
