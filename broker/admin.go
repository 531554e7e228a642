package broker

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// What one admin session may hold.
const (
	maxAdminFilters = 1000
	maxWaiting      = 8192 // messages not sent yet; what is over it is dropped
	maxWaitingBytes = 16 << 20
)

// adminSession is the MQTT session of an admin's client id, in memory: its
// filters, what waits for it, and the handshakes of QoS 1 and 2 in both
// directions. mochi's own keep both directions in one table by packet id,
// stall at a Receive Maximum and lose order and messages (facts-mochi.md), so
// nothing of QoS 1 or 2 is left to it.
type adminSession struct {
	id string // "/<user>/<client id>"

	mu      sync.Mutex // guards the fields below; b.mu is taken before it
	owner   *client    // nil while offline
	held    bool       // a SUBACK is due before anything else
	expiry  time.Duration
	offline time.Time // since when without a connection
	subs    []subscription
	waiting []*delivery // not sent yet, in order
	bytes   int         // of waiting
	sent    []*delivery // at QoS 1 and 2, not completed, in the order of sending
	nextID  uint16
	// received holds the packet ids of the client's QoS 2 publishes that it
	// has not released with PUBREL: another PUBLISH with one is a repetition.
	received map[uint16]bool
}

// delivery is one message on its way to one session.
type delivery struct {
	*message
	qos      byte
	retain   bool
	ids      []int  // subscription identifiers
	id       uint16 // packet id; 0 until it is sent
	serial   uint64 // the connection it was last sent on
	released bool   // PUBREC was received: PUBREL is due instead of PUBLISH
}

// beginAdmin gives c its session before CONNACK: the one that is there, or a
// new one.
func (b *Broker) beginAdmin(c *client, clean bool) error {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.clients[c.cl.ID] != c {
		return errStopped
	}
	s := b.adminSessions[c.cl.ID]
	if s == nil || clean || s.over(now) {
		s = &adminSession{id: c.cl.ID, received: map[uint16]bool{}}
		b.adminSessions[s.id] = s
	} else {
		c.present = true
	}
	s.mu.Lock()
	s.owner, s.held, s.expiry = c, false, b.grantedExpiry(c.cl)
	subs := slices.Clone(s.subs)
	s.mu.Unlock()
	c.admin = s
	b.restoreFilters(c.cl, slices.DeleteFunc(subs, func(f subscription) bool {
		_, shared := f.shared() // as in subscribedAdmin
		return shared
	}))
	b.limitAdminSessions("/" + c.who().User + "/")
	return nil
}

// over reports whether the session has ended, or does with the connection that
// it has.
func (s *adminSession) over(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expiry == 0 || s.owner == nil && !now.Before(s.offline.Add(s.expiry))
}

// limitAdminSessions ends the session of a user that has been offline longest,
// while there are more than Config.UserSessions; b.mu is held.
func (b *Broker) limitAdminSessions(prefix string) {
	n := 0
	var oldest *adminSession
	for id, s := range b.adminSessions {
		if !strings.HasPrefix(id, prefix) {
			continue
		}
		n++
		s.mu.Lock()
		if s.owner == nil && (oldest == nil || s.offline.Before(oldest.offline)) {
			oldest = s // its offline does not change while b.mu is held
		}
		s.mu.Unlock()
	}
	if n > b.cfg.UserSessions && oldest != nil {
		delete(b.adminSessions, oldest.id)
	}
}

// releaseAdmin takes the session from a connection that has ended.
func (b *Broker) releaseAdmin(c *client) {
	s := c.admin
	b.mu.Lock()
	defer b.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != c {
		return
	}
	s.owner, s.offline, s.expiry = nil, time.Now(), b.grantedExpiry(c.cl)
	s.waiting = slices.DeleteFunc(s.waiting, func(d *delivery) bool { return d.qos == 0 })
	s.bytes = 0
	for _, d := range s.waiting {
		s.bytes += d.size()
	}
	if s.expiry == 0 && b.adminSessions[s.id] == s {
		delete(b.adminSessions, s.id)
	}
}

// expireAdmins forgets the admin sessions and retained messages that are over.
func (b *Broker) expireAdmins(now time.Time) {
	b.mu.Lock()
	for id, s := range b.adminSessions {
		if s.over(now) {
			s.mu.Lock()
			if s.owner == nil {
				delete(b.adminSessions, id)
			}
			s.mu.Unlock()
		}
	}
	b.mu.Unlock()
	b.kept.expire(now)
}

// subscribedAdmin keeps the filters that a SUBSCRIBE was granted, before
// SUBACK is written.
func (b *Broker) subscribedAdmin(c *client, pk packets.Packet, codes []byte) {
	b.routing.Lock()
	defer b.routing.Unlock()
	for i, f := range pk.Filters {
		if codes[i] >= packets.ErrUnspecifiedError.Code {
			continue
		}
		sub := subscriptionOf(f)
		existed, ok := c.admin.put(sub)
		if !ok {
			codes[i] = packets.ErrQuotaExceeded.Code
			b.ungrant(c, f.Filter, codes, i)
			continue
		}
		if _, shared := sub.shared(); shared {
			// mochi still delivers $SYS, also where a shared # matches it.
			b.mq.Topics.Unsubscribe(f.Filter, c.cl.ID)
			continue // and gets no retained messages (MQTT 5, section 4.8.2)
		}
		if f.RetainHandling == 0 || f.RetainHandling == 1 && !existed {
			b.sendKept(c.admin, sub)
		}
	}
}

// hold keeps messages back while a SUBSCRIBE is processed: retained ones follow
// its SUBACK.
func (s *adminSession) hold(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = on
}

// put adds or replaces a filter; not ok when there are too many.
func (s *adminSession) put(f subscription) (existed, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.subs, func(have subscription) bool { return have.Filter == f.Filter }); i >= 0 {
		s.subs[i] = f
		return true, true
	}
	if len(s.subs) >= maxAdminFilters {
		return false, false
	}
	s.subs = append(s.subs, f)
	return false, true
}

// remove drops the filters of an UNSUBSCRIBE. What waits stays (MQTT 5,
// section 3.10.4).
func (s *adminSession) remove(pk packets.Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range pk.Filters {
		s.subs = slices.DeleteFunc(s.subs, func(have subscription) bool { return have.Filter == f.Filter })
	}
}

// filters returns a copy of the subscriptions.
func (s *adminSession) filters() []subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.subs)
}

// offer queues m for the session where subs match it, as one copy with the
// highest QoS and every identifier of them (MQTT 5, section 3.3.4). It reports whether m was
// dropped because too much waits already.
func (s *adminSession) offer(m *message, subs []subscription, retained bool) (dropped bool) {
	own := m.origin == s.id && !retained
	match, qos, ids, rap := matchFilters(subs, m.topic, false, own)
	if !match {
		return false
	}
	d := &delivery{message: m, qos: min(m.qos, qos), ids: ids, retain: retained || m.retain && rap}
	s.mu.Lock()
	owner := s.owner
	full := len(s.waiting) > 0 && (len(s.waiting) >= maxWaiting || s.bytes+d.size() > maxWaitingBytes)
	if !full && (owner != nil || d.qos > 0) {
		s.waiting = append(s.waiting, d)
		s.bytes += d.size()
	}
	s.mu.Unlock()
	if owner != nil {
		owner.poke()
	}
	return full
}

// next returns a copy of what is to be sent next; false when nothing is due.
// First comes what an earlier connection has not completed, in its order.
func (s *adminSession) next(c *client, now time.Time) (d delivery, again, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != c {
		return d, false, false, errStopped
	}
	if s.held {
		return d, false, false, nil
	}
	open := 0
	var old *delivery
	for _, d := range s.sent {
		if d.serial == c.serial {
			open++
		} else if old == nil {
			old = d
		}
	}
	if old != nil && (open < c.window || old.released) {
		old.serial = c.serial
		return *old, true, true, nil
	}
	for i := 0; i < len(s.waiting); i++ {
		d := s.waiting[i]
		if d.qos > 0 && (old != nil || open >= c.window) {
			continue // beyond the client's Receive Maximum; QoS 0 is not counted
		}
		s.waiting = slices.Delete(s.waiting, i, i+1)
		s.bytes -= d.size()
		if d.expired(now) { // [MQTT-3.3.2-5]
			i--
			continue
		}
		if d.qos > 0 {
			d.id, d.serial = s.packetID(), c.serial
			s.sent = append(s.sent, d)
		}
		return *d, false, true, nil
	}
	return d, false, false, nil
}

// packetID returns one that nothing in flight uses; mu is held. The window is
// far smaller than the 65,535 ids.
func (s *adminSession) packetID() uint16 {
	for {
		s.nextID++
		if s.nextID != 0 && s.flying(s.nextID) < 0 {
			return s.nextID
		}
	}
}

// flying returns the place of packet id in sent, or -1; mu is held.
func (s *adminSession) flying(id uint16) int {
	return slices.IndexFunc(s.sent, func(d *delivery) bool { return d.id == id })
}

// complete ends the handshake of packet id at qos; mu is held.
func (s *adminSession) complete(id uint16, qos byte) {
	if i := s.flying(id); i >= 0 && s.sent[i].qos == qos {
		s.sent = slices.Delete(s.sent, i, i+1)
	}
}

// deliverAdmin writes what is due next. It runs on the pump.
func (c *client) deliverAdmin() (moved bool, err error) {
	now := time.Now()
	d, again, ok, err := c.admin.next(c, now)
	if !ok || err != nil {
		return false, err
	}
	if d.released {
		return true, c.cl.WritePacket(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel, Qos: 1}, PacketID: d.id})
	}
	pk := d.packet(c.cl.Properties.ProtocolVersion, now)
	pk.FixedHeader.Qos, pk.FixedHeader.Retain, pk.FixedHeader.Dup = d.qos, d.retain, again
	pk.PacketID, pk.Properties.SubscriptionIdentifier = d.id, d.ids
	err = c.writePublish(&pk, d.payload)
	if errors.Is(err, packets.ErrPacketTooLarge) && d.qos > 0 {
		c.admin.mu.Lock()
		c.admin.complete(d.id, d.qos)
		c.admin.mu.Unlock()
	}
	return true, c.tolerate(err)
}

// handshake takes the packets of QoS 1 and 2 that follow a PUBLISH, in either
// direction (MQTT 5, section 4.3). It runs on the reader's goroutine.
func (c *client) handshake(pk packets.Packet) error {
	answer := packets.Packet{PacketID: pk.PacketID}
	s := c.admin
	s.mu.Lock()
	switch pk.FixedHeader.Type {
	case packets.Puback:
		s.complete(pk.PacketID, 1)
	case packets.Pubcomp:
		s.complete(pk.PacketID, 2)
	case packets.Pubrec:
		i := s.flying(pk.PacketID)
		known := i >= 0 && s.sent[i].qos == 2
		switch {
		case pk.ReasonCode >= packets.ErrUnspecifiedError.Code: // refused: done with [MQTT-4.3.3-4]
			s.complete(pk.PacketID, 2)
		default:
			answer.FixedHeader = packets.FixedHeader{Type: packets.Pubrel, Qos: 1}
			if known {
				s.sent[i].released, s.sent[i].serial = true, c.serial
			} else {
				answer.ReasonCode = packets.ErrPacketIdentifierNotFound.Code
			}
		}
	case packets.Pubrel:
		answer.FixedHeader.Type = packets.Pubcomp
		if !s.received[pk.PacketID] {
			answer.ReasonCode = packets.ErrPacketIdentifierNotFound.Code
		}
		delete(s.received, pk.PacketID)
	}
	s.mu.Unlock()
	c.poke()
	if answer.FixedHeader.Type == 0 {
		return nil
	}
	return c.cl.WritePacket(answer)
}

// repeated reports whether the client has sent a QoS 2 publish with this
// packet id that it has not released, and whether another one would be more
// than the Receive Maximum that CONNACK told (MQTT 5, section 3.3.4).
func (s *adminSession) repeated(id uint16) (again, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received[id], !s.received[id] && len(s.received) >= receiveMaximum
}

// receive notes a QoS 2 publish that was taken.
func (s *adminSession) receive(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received[id] = true
}
