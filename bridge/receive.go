package bridge

import (
	"encoding/json"
	"slices"
	"time"

	"pairsync/internal/moment"
)

// notice is a moment other than a photo on its way to the phones: acknowledged
// to the broker once a pong has proven that a phone has it.
type notice struct {
	in     inbound
	key    string // in ackMemory; empty where nothing tells a repeat
	pair   string // empty for the user's own events
	events []event
}

// event is one Socket.IO event to emit.
type event struct {
	name string
	body any
}

// receive takes a message from the link. It is called for one at a time.
func (s *session) receive(in inbound) {
	s.u.mu.Lock()
	defer s.u.unlock()
	if s.ended {
		return // the broker delivers it again in the next session
	}
	t, err := moment.ParseTopic(in.Topic)
	if err != nil {
		s.discard(in, "unknown topic", err)
		return
	}
	switch t.Class {
	case moment.ClassMoment:
		s.moment(in, t)
	case moment.ClassEvents:
		s.pairing(in)
	case moment.ClassPresence:
		s.presence(in, t)
	case moment.ClassLive:
		s.ephemeral(in, t)
	default:
		s.ack(in)
	}
}

// discard drops what nobody could ever read.
func (s *session) discard(in inbound, why string, err error) {
	s.u.b.metrics.malformed.Inc()
	s.log.Warn("message dropped", "why", why, "topic", in.Topic, "err", err)
	s.ack(in)
}

// ofPartner reports whether t belongs to the partner in the present pair. What
// does not is dropped: a moment reaches only its own pair, checked once more
// where it leaves.
func (s *session) ofPartner(in inbound, t moment.Topic) bool {
	if t.Pair != s.pair.ID {
		s.setPair()
	}
	if s.partner != "" && t.Pair == s.pair.ID && t.User == s.partner {
		return true
	}
	s.u.b.metrics.foreign.Inc()
	s.log.Warn("message dropped", "why", "not from the partner", "topic", in.Topic)
	s.ack(in)
	return false
}

func (s *session) moment(in inbound, t moment.Topic) {
	if !s.ofPartner(in, t) {
		return
	}
	m := moment.Moment{Pair: t.Pair, User: t.User, Kind: t.Kind, ID: t.ID, ContentType: in.ContentType, Payload: in.Payload}
	if err := m.SetDelivered(in.Properties); err != nil {
		s.discard(in, "bad properties", err)
		return
	}
	var events []event
	switch m.Kind {
	case moment.Photo:
		if len(m.Payload) == 0 {
			s.discard(in, "empty photo", nil)
			return
		}
		s.photo(in, m)
		return
	case moment.Note:
		events = []event{{"receive_note", noteBody(&m, s.nameOf(&m))}}
	case moment.Delete:
		s.takeBack(m.ID)
		events = []event{{"photo_deleted", map[string]any{"photoId": m.ID, "senderId": m.User}}}
	case moment.Reaction:
		var r moment.ReactionBody
		if err := json.Unmarshal(m.Payload, &r); err != nil {
			s.discard(in, "bad reaction", err)
			return
		}
		events = []event{{"photo_reaction", reactionBody(&m, r)}}
	case moment.Receipt:
		var r moment.ReceiptBody
		if err := json.Unmarshal(m.Payload, &r); err != nil {
			s.discard(in, "bad receipt", err)
			return
		}
		events = s.receiptEvents(r)
	}
	s.notify(&notice{in: in, key: m.Key().String(), pair: m.Pair, events: events})
}

// nameOf is the sender's name as people should read it.
func (s *session) nameOf(m *moment.Moment) string {
	if m.SenderName != "" {
		return m.SenderName
	}
	return s.u.b.deps.Registry.Name(m.User)
}

// receiptEvents tells the sender that a device of the partner's has stored
// their moment. What was merely shown has been stored before.
func (s *session) receiptEvents(r moment.ReceiptBody) []event {
	if r.Sender != s.u.key.user || r.Status != moment.StatusStored {
		return nil
	}
	body := map[string]any{"photoId": r.Moment, "momentId": r.Moment, "receivedAt": stamp(r.At), "device": r.Device}
	s.u.remember(r.Moment, body)
	return deliveredEvents(body)
}

func deliveredEvents(body map[string]any) []event {
	return []event{{"photo_delivered", body}, {"moment_received_ack", body}}
}

// pairingEvents are the events of a user's own log that the app knows.
var pairingEvents = []string{"code_used", "pairing_success", "partner_connected", "partner_disconnected"}

// pairing passes on an event of the user's own log: a JSON object whose
// "event" names it and whose other members are its body.
func (s *session) pairing(in inbound) {
	var body map[string]json.RawMessage
	var name string
	if err := json.Unmarshal(in.Payload, &body); err != nil {
		s.discard(in, "bad pairing event", err)
		return
	}
	if json.Unmarshal(body["event"], &name) != nil || !slices.Contains(pairingEvents, name) {
		s.ack(in) // of a newer version: nothing a phone would understand
		return
	}
	delete(body, "event")
	key := ""
	for _, p := range in.Properties {
		if p.Key == moment.PropMessageID {
			key = "event:" + p.Value
		}
	}
	s.notify(&notice{in: in, key: key, events: []event{{name, body}}})
}

// notify emits n to the phones; u.mu is held.
func (s *session) notify(n *notice) {
	if len(n.events) == 0 {
		s.ack(n.in)
		return
	}
	if n.key != "" {
		if s.u.acked.find(n.key) != nil {
			s.ack(n.in)
			return
		}
		for _, other := range s.others {
			if other.key == n.key {
				other.in = n.in // delivered again after a reconnect of the link
				return
			}
		}
	}
	s.others = append(s.others, n)
	for _, p := range s.u.audience(n.pair) {
		s.emitNotices(p, n)
	}
}

// emitNotices emits some notices to one phone, with one pong behind them all.
func (s *session) emitNotices(p *phone, notices ...*notice) {
	if len(notices) == 0 {
		return
	}
	s.u.later(func() {
		for _, n := range notices {
			for _, e := range n.events {
				if !p.emit(e.name, e.body) {
					return
				}
			}
		}
		p.confirm(func() {
			s.u.mu.Lock()
			defer s.u.unlock()
			for _, n := range notices {
				s.noticed(n)
			}
		})
	})
}

// noticed acknowledges a notice that a phone has.
func (s *session) noticed(n *notice) {
	i := slices.Index(s.others, n)
	if i < 0 {
		return
	}
	s.others = slices.Delete(s.others, i, i+1)
	if n.key != "" {
		s.u.acked.settle(n.key, time.Now())
	}
	s.ack(n.in)
}

// partnerPresence is what the phones were last told.
type partnerPresence struct {
	user   string
	online bool
	at     time.Time
}

func (p *partnerPresence) event() event {
	return event{"partner_presence", map[string]any{"userId": p.user, "isOnline": p.online, "timestamp": p.at.UnixMilli()}}
}

func (s *session) presence(in inbound, t moment.Topic) {
	if !s.ofPartner(in, t) {
		return
	}
	var body moment.Presence
	if err := json.Unmarshal(in.Payload, &body); err != nil {
		s.discard(in, "bad presence", err)
		return
	}
	if s.pres != nil && s.pres.online == body.Online && s.pres.at.Equal(body.Since) {
		return // only the partner's devices have changed
	}
	s.pres = &partnerPresence{user: t.User, online: body.Online, at: body.Since}
	s.broadcast(s.pres.event())
}

// ephemeral passes on what is of the moment and never stored.
func (s *session) ephemeral(in inbound, t moment.Topic) {
	if !s.ofPartner(in, t) || t.Name != liveHeartbeat {
		return
	}
	var body liveBody
	if json.Unmarshal(in.Payload, &body) != nil || body.Timestamp <= 0 {
		body.Timestamp = time.Now().UnixMilli()
	}
	s.broadcast(event{"partner_heartbeat", map[string]any{"userId": t.User, "timestamp": body.Timestamp}})
}

// broadcast emits e to the phones that are there.
func (s *session) broadcast(e event) {
	for _, p := range s.u.audience(s.pair.ID) {
		s.u.later(func() { p.emit(e.name, e.body) })
	}
}

// joined gives a phone what the others already have; u.mu is held.
func (s *session) joined(p *phone) {
	var pending []*notice
	if s.ended {
		return
	}
	for _, n := range s.others {
		if p.entitled(n.pair) {
			pending = append(pending, n)
		}
	}
	s.emitNotices(p, pending...)
	if !p.entitled(s.pair.ID) {
		return
	}
	if s.pres != nil {
		e := s.pres.event()
		s.u.later(func() { p.emit(e.name, e.body) })
	}
	s.startOver()
	if d := s.outstanding; d != nil {
		s.emitPhoto(p, d)
		return
	}
	s.pump()
}

// left notes that a phone has gone; u.mu is held.
func (s *session) left() {
	if slices.ContainsFunc(s.u.audience(s.pair.ID), func(p *phone) bool { return p.takes }) {
		return
	}
	for _, d := range s.photos {
		d.pause()
	}
}

// dropForeign drops what is not of the present pair; u.mu is held. Receipts
// that are on the way are the broker's to judge.
func (s *session) dropForeign() {
	for _, d := range slices.Clone(s.photos) {
		if d.m.Pair != s.pair.ID && !d.settling {
			s.retire(d)
			s.forget(d)
		}
	}
	s.others = slices.DeleteFunc(s.others, func(n *notice) bool {
		gone := n.pair != "" && n.pair != s.pair.ID
		if gone {
			s.ack(n.in)
		}
		return gone
	})
}
