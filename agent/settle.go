package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// propPair is the user property of a CONNACK in which a pairsync broker names
// the user's pair.
const propPair = "pair"

// pair returns the pair that the broker named in its CONNACK, or else the
// token. Whether it is current shows when subscribing.
func (s *session) pair() string {
	for _, p := range s.link.Props() {
		if p.Key == propPair && moment.CheckID("pair", p.Value) == nil {
			return p.Value
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claim
}

// settle learns the pair after a connect and puts the subscriptions in place.
// It returns errNewSession when the broker continued a session that was not
// set up for this.
func (s *session) settle(ctx context.Context, present bool) error {
	ctx, stop := whileMoving(ctx, s.link, settleTimeout)
	defer stop()
	pair := s.pair()
	want := s.a.wanted(s.id, pair)
	have, ok, err := s.a.store.subscribed()
	if err != nil {
		return err
	}
	inPlace := ok && present && have == want
	if ok && !inPlace {
		// From here to the last SUBACK, a crash must lead to a new session.
		if err := s.a.store.setSubscribed(ctx, nil); err != nil {
			return err
		}
	}
	if err := s.link.Subscribe(ctx, mqttlink.Subscription{Filter: moment.EventsTopic(s.id.User), QoS: 1}); err != nil {
		return err
	}
	member, err := s.learnMember(ctx, pair)
	if err != nil {
		return err
	}
	if want.Pair = member.Pair; present && (!ok || have != want) {
		return errors.Join(errNewSession, s.a.store.setSubscribed(ctx, nil))
	}
	if err := s.subscribePair(ctx, member); err != nil {
		return err
	}
	if !inPlace {
		if err := s.a.store.setSubscribed(ctx, &want); err != nil {
			return err
		}
		if err := s.a.store.dropForeignReceipts(ctx, member.Pair); err != nil {
			return err
		}
	}
	s.online(member)
	return nil
}

// whileMoving returns a context that ends when nothing has moved on l for limit
// (and is found within twice that). stop ends it, and has to be called.
func whileMoving(ctx context.Context, l link, limit time.Duration) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		moved := l.Moved()
		for pause(ctx, limit) {
			now := l.Moved()
			if now == moved {
				return
			}
			moved = now
		}
	}()
	return ctx, func() { cancel(); <-ended }
}

// online tells everybody that the subscriptions are in place, unless the
// connection is gone already.
func (s *session) online(member membership) {
	s.a.board.set(func(v *view) {
		if v.ready = v.connected; v.ready {
			v.offline = ""
		}
	})
	partner, _ := member.partner()
	s.a.log.Info("online", "pair", member.Pair, "partner", partner.ID)
}

// learnMember finds out who is in pair. A pair that the broker does not let
// the device follow is over: it is unpaired then.
func (s *session) learnMember(ctx context.Context, pair string) (membership, error) {
	none := membership{User: s.id.User, Device: s.id.Device}
	if pair == "" {
		return none, s.setMember(ctx, none)
	}
	v, _ := s.a.board.get()
	if v.Pair != pair || v.User != s.id.User || v.Device != s.id.Device {
		// Until the info is here, the device serves nobody.
		if err := s.setMember(ctx, none); err != nil {
			return none, err
		}
	}
	s.a.board.set(func(v *view) { v.awaited = pair })
	err := s.link.Subscribe(ctx, mqttlink.Subscription{Filter: moment.InfoTopic(pair)})
	var refusal *mqttlink.ReasonError
	if errors.As(err, &refusal) && refusal.Code == mqttlink.CodeNotAuthorized {
		s.a.log.Info("the pair is over", "pair", pair)
		return none, s.setMember(ctx, none)
	}
	if err != nil {
		return none, err
	}
	for {
		v, changed := s.a.board.get()
		if v.Pair == pair {
			return v.membership, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return none, fmt.Errorf("the broker did not tell who is in pair %s", pair)
		}
	}
}

// setMember records the pair that is served, on disk and for everybody.
func (s *session) setMember(ctx context.Context, m membership) error {
	if v, _ := s.a.board.get(); m.equal(v.membership) {
		return nil
	}
	if err := s.a.store.setMember(ctx, m); err != nil {
		return err
	}
	s.a.board.set(func(v *view) { v.membership = m })
	return nil
}

// subscribePair subscribes to what the pair shares. Only a new session is
// given what the ledger already holds.
func (s *session) subscribePair(ctx context.Context, m membership) error {
	partner, ok := m.partner()
	if !ok {
		return nil
	}
	users := []string{partner.ID}
	if s.a.cfg.Show == ShowBoth {
		users = append(users, m.User)
	}
	var subs []mqttlink.Subscription
	add := func(kind moment.Kind, user string) {
		subs = append(subs, mqttlink.Subscription{Filter: moment.KindFilter(m.Pair, kind, user), QoS: 1, Backfill: "all"})
	}
	for _, user := range users {
		add(moment.Photo, user)
		add(moment.Delete, user)
	}
	add(moment.Note, partner.ID)
	return s.link.Subscribe(ctx, subs...)
}
