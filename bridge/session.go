package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/registry"
)

// link is what a session needs of its MQTT connection. brokerLink is the real
// one.
type link interface {
	Run(ctx context.Context) error
	AwaitUp(ctx context.Context) error
	Publish(ctx context.Context, p mqttlink.Publish) (duplicate bool, err error)
	Subscribe(ctx context.Context, subs ...mqttlink.Subscription) error
	Unsubscribe(ctx context.Context, filters ...string) error
}

// inbound is a message of the link, and how to acknowledge it.
type inbound struct {
	*mqttlink.Message
	ack func() error
}

// session is one run of a user's MQTT session: the link, what it subscribed,
// and what was received and not yet acknowledged. All fields below mu's are
// guarded by the user's mu.
type session struct {
	u     *user
	log   *slog.Logger
	link  link
	since time.Time // when it was made: what was stored before is pending

	changed chan struct{} // capacity 1: the pair may be another one
	idle    chan struct{} // closed when ended and busy is 0
	over    chan struct{} // closed when it is not the user's session any more
	// live ends when end was called; ctx a little later, when what was on the
	// way has had its time. Both end with Bridge.base.
	live, ctx    context.Context
	endLive, cut context.CancelFunc

	// Guarded by user.mu.
	ended   bool
	up      bool
	busy    int // receipts and publishes on the way
	pair    registry.Pair
	partner string   // empty: no pair
	filters []string // subscribed, of the pair
	pres    *partnerPresence

	photos      []*delivery // received and not yet acknowledged, in order
	outstanding *delivery   // the one that the phones have
	others      []*notice   // other kinds, likewise
}

// Waits of a session.
const (
	// resubscribeTimeout bounds one attempt to follow a change of the pair.
	resubscribeTimeout = 10 * time.Second
	// resubscribeWait is the time to the next attempt: the broker may not have
	// heard of the change yet.
	resubscribeWait = time.Second
)

func newSession(u *user) (*session, error) {
	s := &session{
		u: u, log: u.log, since: time.Now(),
		changed: make(chan struct{}, 1),
		idle:    make(chan struct{}),
		over:    make(chan struct{}),
	}
	s.live, s.endLive = context.WithCancel(u.b.base)
	s.ctx, s.cut = context.WithCancel(u.b.base)
	s.pair, s.partner, _ = u.partner()
	subs := append(userSubscriptions(u.key.user), pairSubscriptions(s.pair.ID, s.partner)...)
	s.filters = filtersOf(pairSubscriptions(s.pair.ID, s.partner))
	l, err := u.b.newLink(mqttlink.Config{
		Dial:          u.b.deps.Dial,
		ClientID:      u.key.clientID(),
		Username:      u.key.user,
		Token:         func(ctx context.Context) (string, error) { return u.b.deps.Token(ctx, u.key.user) },
		SessionExpiry: u.b.cfg.SessionExpiry,
		Subscriptions: subs,
		Up:            func(bool) { s.setUp(true) },
		Down: func(err error) {
			s.setUp(false)
			s.log.Debug("broker link down", "err", err)
		},
		Refused: s.refused,
	}, s.receive, s.log)
	if err != nil {
		s.endLive()
		s.cut()
		return nil, fmt.Errorf("session of %q: %w", u.key.user, err)
	}
	s.link = l
	return s, nil
}

// userSubscriptions is what a session follows whatever the pair.
func userSubscriptions(user string) []mqttlink.Subscription {
	return []mqttlink.Subscription{{Filter: moment.EventsTopic(user), QoS: 1, Backfill: "all"}}
}

// pairSubscriptions is what a session follows of its partner; never one's own
// photos (architecture, "Data's way", 3). None without a pair.
func pairSubscriptions(pair, partner string) []mqttlink.Subscription {
	if partner == "" {
		return nil
	}
	var subs []mqttlink.Subscription
	for _, k := range []moment.Kind{moment.Photo, moment.Note, moment.Reaction, moment.Receipt, moment.Delete} {
		subs = append(subs, mqttlink.Subscription{Filter: moment.KindFilter(pair, k, partner), QoS: 1, Backfill: "all"})
	}
	return append(subs,
		mqttlink.Subscription{Filter: moment.PresenceTopic(pair, partner)},
		mqttlink.Subscription{Filter: moment.LiveTopic(pair, partner, "+")})
}

func filtersOf(subs []mqttlink.Subscription) []string {
	var out []string
	for _, s := range subs {
		out = append(out, s.Filter)
	}
	return out
}

// run keeps the link connected until end was called and what was on the way is
// done, or the bridge stops.
func (s *session) run() {
	s.u.mu.Lock()
	s.setPair() // it may have changed before anybody could tell this session
	s.pairChanged()
	s.u.unlock()

	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.link.Run(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log.Error("broker link ended", "err", err)
		}
	}()
	s.follow()
	s.drain()
	s.cut()
	<-done
	s.setUp(false)
	<-s.idle // every goroutine of the session has ended
}

// follow keeps the subscriptions those of the present pair, until the session
// is to end.
func (s *session) follow() {
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-s.live.Done():
			return
		case <-s.changed:
		case <-retry.C:
		}
		if err := s.resubscribe(); err != nil && s.live.Err() == nil {
			s.log.Info("subscriptions not yet those of the pair", "err", err)
			retry.Reset(resubscribeWait)
		}
	}
}

// resubscribe drops the filters of a former pair and adds those of the present.
func (s *session) resubscribe() error {
	ctx, cancel := context.WithTimeout(s.live, resubscribeTimeout)
	defer cancel()
	s.u.mu.Lock()
	s.setPair()
	subs := pairSubscriptions(s.pair.ID, s.partner)
	have := s.filters
	s.u.unlock()

	want := filtersOf(subs)
	gone := slices.DeleteFunc(slices.Clone(have), func(f string) bool { return slices.Contains(want, f) })
	fresh := slices.DeleteFunc(subs, func(sub mqttlink.Subscription) bool { return slices.Contains(have, sub.Filter) })
	var err error
	if len(gone) > 0 {
		err = s.link.Unsubscribe(ctx, gone...)
	}
	if len(fresh) > 0 {
		err = errors.Join(err, s.link.Subscribe(ctx, fresh...))
	}
	if err != nil {
		return err
	}
	s.u.mu.Lock()
	defer s.u.unlock()
	s.filters = want
	return nil
}

// setPair takes over the registry's present state. What is left of a former
// pair is not delivered any more; u.mu is held.
func (s *session) setPair() {
	pair, partner, _ := s.u.partner()
	if pair.ID == s.pair.ID {
		return
	}
	s.pair, s.partner, s.pres = pair, partner, nil
	s.u.receipts = nil
	s.dropForeign()
}

// refused hears that the broker did not grant a filter at a connect: it may
// not have heard of the pair yet, or we not of its end.
func (s *session) refused(filter string, err *mqttlink.ReasonError) {
	s.log.Info("subscription refused", "filter", filter, "err", err)
	s.u.mu.Lock()
	s.filters = slices.DeleteFunc(slices.Clone(s.filters), func(f string) bool { return f == filter })
	s.u.unlock()
	time.AfterFunc(resubscribeWait, s.pairChanged)
}

// pairChanged wakes follow.
func (s *session) pairChanged() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// end makes run finish; u.mu is held.
func (s *session) end() {
	if s.ended {
		return
	}
	s.ended = true
	s.endLive()
	if s.busy == 0 {
		close(s.idle)
	}
}

// drain waits until what was on the way is done, if the link is up to do it.
func (s *session) drain() {
	s.u.mu.Lock()
	s.end()
	up := s.up
	s.u.unlock()
	if !up {
		return
	}
	t := time.NewTimer(s.u.b.cfg.DrainTimeout)
	defer t.Stop()
	select {
	case <-s.idle:
	case <-t.C:
	case <-s.ctx.Done():
	}
}

// begin and release bracket what the session's end waits for; u.mu is held.
// begin reports false when the session is over.
func (s *session) begin() bool {
	if s.ended {
		return false
	}
	s.busy++
	return true
}

func (s *session) release() {
	s.busy--
	if s.ended && s.busy == 0 {
		close(s.idle)
	}
}

func (s *session) setUp(up bool) {
	s.u.mu.Lock()
	was := s.up
	s.up = up
	s.u.unlock()
	if was != up {
		s.u.b.countUp(s.u.key.user, up)
	}
}

// awaitEnd waits until the user may have another session.
func (s *session) awaitEnd(ctx context.Context) error {
	select {
	case <-s.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// publish sends p through the session's link and waits for the broker's word.
func (s *session) publish(ctx context.Context, p mqttlink.Publish) (duplicate bool, err error) {
	s.u.mu.Lock()
	ok := s.begin()
	s.u.unlock()
	if !ok {
		return false, mqttlink.ErrClosed
	}
	defer func() {
		s.u.mu.Lock()
		s.release()
		s.u.unlock()
	}()
	if p.QoS > 0 {
		if err := s.link.AwaitUp(ctx); err != nil {
			return false, err
		}
	}
	return s.link.Publish(ctx, p)
}
