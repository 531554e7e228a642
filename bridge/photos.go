package bridge

import (
	"encoding/json"
	"slices"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// delivery is one photo of the partner's on its way to the phones. Its fields
// are guarded by the user's mutex.
type delivery struct {
	in inbound // of the newest delivery by the broker
	m  moment.Moment

	settling bool // a phone has it; receipt and PUBACK are under way
	overdue  bool // unanswered: others go on before it, until its timer

	text, binary *prepared // made when its turn begins, dropped when that ends
	round        int       // which emit to all is the newest
	counted      bool      // the newest round was proven by a pong
	arrived      time.Time // when it was
	tried        bool      // and by that of a socket that takes photos
	timer        *time.Timer
	attempts
}

// photo takes a photo from the broker; u.mu is held.
func (s *session) photo(in inbound, m moment.Moment) {
	if d := s.find(m.ID); d != nil {
		d.in = in // delivered again after a reconnect of the link
		return
	}
	d := &delivery{in: in, m: m}
	if e := s.u.acked.find(photoKey(m.ID)); e != nil {
		s.u.b.metrics.repeated.Inc()
		s.passBefore(len(s.photos))
		if e.settled {
			s.ack(in)
			return
		}
		s.photos = append(s.photos, d)
		s.settle(d, e.at)
		return
	}
	if a, ok := s.u.attempts[m.ID]; ok {
		d.attempts = a
		delete(s.u.attempts, m.ID)
	}
	s.photos = append(s.photos, d)
	if o := s.outstanding; o != nil && o.late() && !d.late() {
		s.pass(o)
	} else if o != nil && o.counted {
		s.awaitAnswer(o)
	}
	s.pump()
}

// find returns the photo's delivery, or nil.
func (s *session) find(id string) *delivery {
	for _, d := range s.photos {
		if d.m.ID == id {
			return d
		}
	}
	return nil
}

// pump emits the next photo, if none is outstanding and somebody listens.
func (s *session) pump() {
	for s.outstanding == nil && !s.ended && len(s.u.audience(s.pair.ID)) > 0 {
		d := s.next()
		if d == nil {
			return
		}
		s.outstanding = d
		s.show(d)
	}
}

// next returns the photo whose turn it is, or should be; nil where none waits.
func (s *session) next() *delivery {
	i := slices.IndexFunc(s.photos, func(d *delivery) bool { return d.pending() && !d.late() })
	if i < 0 {
		i = slices.IndexFunc(s.photos, (*delivery).pending)
	}
	if i < 0 {
		return nil
	}
	return s.photos[i]
}

// pending reports whether d waits for its turn, or has it.
func (d *delivery) pending() bool { return !d.settling && !d.overdue }

// startOver lets the oldest photo that nobody has answered have its turn, for
// a socket that has had none of them: it is to get them in order.
func (s *session) startOver() {
	for _, d := range s.photos {
		if d.overdue {
			d.overdue = false
			d.stopTimer()
		}
	}
	if o := s.outstanding; o != nil && s.next() != o {
		o.stopTimer()
		s.outstanding = nil
	}
}

func (d *delivery) stopTimer() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

// show starts a round: it emits d to all phones, or gives it up.
func (s *session) show(d *delivery) {
	if d.exhausted() {
		s.giveUp(d)
		return
	}
	d.round++
	d.counted, d.tried = false, false
	if d.round == 1 && d.rounds == 0 && !d.passed {
		s.u.b.metrics.emitted.Inc()
	} else {
		s.u.b.metrics.emittedAgain.Inc()
	}
	for _, p := range s.u.audience(s.pair.ID) {
		s.emitPhoto(p, d)
	}
}

// emitPhoto emits d to one phone, and has the pong that proves it counted. What
// is still on its way there is not sent twice: on a slow line that takes long.
func (s *session) emitPhoto(p *phone, d *delivery) {
	if p.unproven == d {
		return
	}
	prep, err := d.prepare(p.binary, s)
	if err != nil {
		s.log.Error("photo cannot be encoded", "photo", d.m.ID, "err", err)
		return
	}
	p.unproven = d
	id := d.m.ID // the app never answers: what waits for it must be small
	s.u.later(func() {
		if p.emitPhoto(prep, func(args []json.RawMessage) { p.photoAnswered(id, args) }) {
			p.confirm(func() { s.proven(p, d) })
		}
	})
}

// proven counts a pong behind an emit of d. Every phone has its time to answer
// from its own pong on, also one that joined late in the round.
func (s *session) proven(p *phone, d *delivery) {
	s.u.mu.Lock()
	defer s.u.unlock()
	if p.unproven == d {
		p.unproven = nil
	}
	if s.outstanding != d || s.ended {
		return
	}
	if p.takes && !p.gone {
		d.live.start()
		if d.sockets == nil {
			d.sockets = map[string]bool{}
		}
		if len(d.sockets) < deadSockets {
			d.sockets[p.id()] = true
		}
		if !d.tried {
			d.tried = true
			d.tries++
		}
	}
	if !d.counted {
		d.counted = true
		d.rounds++
	}
	d.arrived = time.Now()
	s.awaitAnswer(d)
}

// awaitAnswer sets the timer of a round that a pong has proven. Where another
// photo waits, d has its turn for the shortest time.
func (s *session) awaitAnswer(d *delivery) {
	wait := d.wait(d.rounds)
	if s.mayPass(d) {
		wait = min(wait, retryWaits[0])
	}
	d.stopTimer()
	round := d.round
	d.timer = time.AfterFunc(max(0, wait-time.Since(d.arrived)), func() { s.overdue(d, round) })
}

// overdue goes on when a round has stayed without an answer: with the next
// photo, where there is one that may go before d, else with d once more.
func (s *session) overdue(d *delivery, round int) {
	s.u.mu.Lock()
	defer s.u.unlock()
	if s.outstanding != d || d.round != round || s.ended {
		return
	}
	if s.mayPass(d) {
		s.pass(d)
	} else {
		s.show(d)
	}
	s.pump()
}

// pass ends d's turn without an answer; its next one comes by its timer.
func (s *session) pass(d *delivery) {
	s.outstanding, d.overdue = nil, true
	d.text, d.binary = nil, nil // a window of them would be much
	d.stopTimer()
	round := d.round
	d.timer = time.AfterFunc(d.wait(d.rounds+1), func() { s.again(d, round) })
}

// mayPass reports whether another photo waits that may go before d: where the
// phone's word for d was lost on the way, its app ignores every repeat, and
// nothing behind d must wait for that. A phone that d is still on its way to
// has ignored nothing yet.
func (s *session) mayPass(d *delivery) bool {
	for _, p := range s.u.audience(s.pair.ID) {
		if p.unproven == d {
			return false
		}
	}
	return slices.ContainsFunc(s.photos, func(other *delivery) bool { return other != d && other.pending() })
}

// again gives an overdue photo its next turn, as soon as none is outstanding.
func (s *session) again(d *delivery, round int) {
	s.u.mu.Lock()
	defer s.u.unlock()
	if d.overdue && d.round == round && !s.ended {
		d.overdue = false
		if o := s.outstanding; o != nil && o.counted {
			s.awaitAnswer(o) // which may have been given long, with nobody waiting
		}
		s.pump()
	}
}

// photoAcked takes a phone's word for a photo that the session holds, and
// reports whether it does. u.mu is held.
func (s *session) photoAcked(id string, at time.Time) bool {
	d := s.find(id)
	if d == nil {
		return false
	}
	if d.settling {
		return true
	}
	s.u.b.metrics.acked.Inc()
	s.passBefore(slices.Index(s.photos, d))
	s.settle(d, at)
	s.pump()
	return true
}

// passBefore notes that a phone took what is behind the first n photos: each of
// them that is not settled was shown to it before, because they are shown in
// order, and it has said nothing.
func (s *session) passBefore(n int) {
	for _, d := range s.photos[:n] {
		d.pass()
	}
}

// settle starts what follows a phone's acknowledgement: the receipt, and then
// the PUBACK. The photo itself is not needed any more.
func (s *session) settle(d *delivery, at time.Time) {
	s.u.acked.add(photoKey(d.m.ID), at)
	s.retire(d)
	d.settling = true
	if !s.begin() {
		return // the session is over: the broker delivers it again, and acked knows it
	}
	slot := s.u.acked.nextSlot()
	receipt := s.receipt(d, at)
	go s.settled(d, at, slot, receipt)
}

// retire ends d's time as the outstanding photo and frees what it held.
func (s *session) retire(d *delivery) {
	if s.outstanding == d {
		s.outstanding = nil
	}
	d.overdue = false
	d.stopTimer()
	d.text, d.binary, d.m.Payload, d.in.Payload = nil, nil, nil, nil
}

// settled is a goroutine of the session: it makes the acknowledgement durable
// and tells the sender, and only then lets the broker forget the photo. A
// crash in between repeats the receipt, which the broker stores once.
func (s *session) settled(d *delivery, at time.Time, slot int, receipt mqttlink.Publish) {
	ctx := s.ctx
	saved := make(chan error, 1)
	go func() { saved <- saveAck(ctx, s.u.b.deps.KV, s.u.key, slot, d.m.ID, at) }()
	accepted := s.deliverReceipt(ctx, d.m.ID, receipt)
	if err := <-saved; err != nil && ctx.Err() == nil {
		s.log.Warn("acknowledged photo not kept; after a crash it may be emitted again", "err", err)
	}
	s.u.mu.Lock()
	defer s.u.unlock()
	s.release()
	if !accepted {
		return
	}
	s.u.acked.settle(photoKey(d.m.ID), at)
	s.forget(d)
}

// forget acknowledges d to the broker and drops it.
func (s *session) forget(d *delivery) {
	s.photos = slices.DeleteFunc(s.photos, func(other *delivery) bool { return other == d })
	s.ack(d.in)
}

// ack acknowledges a message. On a connection that is gone that does nothing:
// the broker delivers it again.
func (s *session) ack(in inbound) {
	if err := in.ack(); err != nil {
		s.log.Debug("acknowledgement not sent", "topic", in.Topic, "err", err)
	}
}

// giveUp keeps d as a dead letter and lets the broker forget it.
func (s *session) giveUp(d *delivery) {
	s.u.b.metrics.dead.Inc()
	letter := DeadLetter{
		Pair: d.m.Pair, User: s.u.key.user, Device: s.u.key.device, Sender: d.m.User, Photo: d.m.ID,
		Tries: d.tries, Sockets: len(d.sockets), At: time.Now().UTC(),
	}
	s.log.Warn("photo given up: no phone acknowledged it", "photo", d.m.ID, "sender", d.m.User,
		"tries", d.tries, "live", d.live.total())
	s.retire(d)
	d.settling = true
	if !s.begin() {
		return
	}
	go func() {
		err := saveDead(s.ctx, s.u.b.deps.KV, letter)
		s.u.mu.Lock()
		defer s.u.unlock()
		s.release()
		if err != nil {
			s.log.Error("dead letter not kept; the photo is delivered again in the next session", "photo", letter.Photo, "err", err)
			return
		}
		s.forget(d)
	}()
}

// takeBack drops a photo that its sender deleted.
func (s *session) takeBack(id string) {
	d := s.find(id)
	if d == nil || d.settling {
		return
	}
	s.retire(d)
	s.forget(d)
	s.pump()
}

// stopPhotos ends all timers and keeps how often each photo that nobody has
// answered was tried, for the next session.
func (s *session) stopPhotos() {
	if len(s.u.attempts) > ackSlots { // left over are those that did not come again this time
		clear(s.u.attempts)
	}
	for _, d := range s.photos {
		if d.settling {
			continue
		}
		s.retire(d)
		d.pause()
		if d.rounds > 0 || d.passed {
			s.u.attempts[d.m.ID] = d.attempts
		}
	}
}
