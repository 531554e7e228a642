package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// errFilterLimit is a filter over one of the limits.
var errFilterLimit = errors.New("over the limit")

// subscribed keeps the filters that a SUBSCRIBE was granted, on disk for a
// durable session, before SUBACK is written. Filters that cannot be kept are
// taken back and refused in codes, which mochi sends.
func (b *Broker) subscribed(c *client, pk packets.Packet, codes []byte) {
	s := c.sess
	before := s.filters()
	var moved []ledger.LogID
	var granted []int
	back, err := parseBackfill(backfillOf(pk))
	for i, f := range pk.Filters {
		if codes[i] >= packets.ErrUnspecifiedError.Code {
			continue
		}
		sub := subscriptionOf(f)
		var existed bool
		var log ledger.LogID
		why := err
		if why == nil {
			existed, log, why = b.addFilter(c, sub, back)
		}
		if why != nil {
			b.log.Info("subscription refused", "client", s.id, "reason", why)
			codes[i] = packets.ErrImplementationSpecificError.Code
			if errors.Is(why, errFilterLimit) {
				codes[i] = packets.ErrQuotaExceeded.Code
			}
			c.refusal = why.Error()
			b.ungrant(c, f.Filter, codes, i)
			continue
		}
		if log != "" {
			moved = append(moved, log)
		}
		if f.RetainHandling == 0 || f.RetainHandling == 1 && !existed {
			c.retain = append(c.retain, sub)
		}
		granted = append(granted, i)
	}
	if err := b.keepFilters(c, before, moved); err != nil {
		b.log.Error("subscriptions not stored", "client", s.id, "error", err)
		c.retain = nil
		c.refusal = "not stored: " + publicReason(err)
		for _, i := range granted {
			s.restore(pk.Filters[i].Filter, before)
			codes[i] = packets.ErrImplementationSpecificError.Code
			b.ungrant(c, pk.Filters[i].Filter, codes, i)
		}
	}
}

// restore makes one filter what it was before; others may have changed since.
func (s *session) restore(filter string, before []subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs = slices.DeleteFunc(s.subs, func(f subscription) bool { return f.Filter == filter })
	for _, f := range before {
		if f.Filter == filter {
			s.put(f)
		}
	}
}

// maxLevels is how deep a filter may be, as in mosquitto: mochi looks for the
// place of each level from the first one on, with its index locked (8,000
// levels took it 2.9 s).
const maxLevels = 200

// validFilter reports whether a topic filter is one (MQTT 5, sections 4.7 and
// 4.8.2); mochi overlooks wildcards that share a level.
func validFilter(filter string) bool {
	if rest, shared := strings.CutPrefix(filter, sharePrefix); shared {
		name, inner, ok := strings.Cut(rest, "/")
		if !ok || name == "" || strings.ContainsAny(name, "+#") { // [MQTT-4.8.2-1] [MQTT-4.8.2-2]
			return false
		}
		filter = inner
	}
	if filter == "" || strings.Count(filter, "/") >= maxLevels { // [MQTT-4.7.3-1]
		return false
	}
	for level := range strings.SplitSeq(strings.TrimSuffix(filter, "/#"), "/") {
		if level != "+" && strings.ContainsAny(level, "+#") { // [MQTT-4.7.1-1] [MQTT-4.7.1-2]
			return filter == "#"
		}
	}
	return true
}

const sharePrefix = "$share/"

// shared returns the filter without the name of a shared subscription.
func (s *subscription) shared() (filter string, ok bool) {
	rest, ok := strings.CutPrefix(s.Filter, sharePrefix)
	if !ok {
		return s.Filter, false
	}
	_, filter, _ = strings.Cut(rest, "/")
	return filter, true
}

// filters returns a copy of what the client has subscribed.
func (c *client) filters() []subscription {
	if c.admin != nil {
		return c.admin.filters()
	}
	return c.sess.filters()
}

// subscriptionOf takes a filter from a SUBSCRIBE.
func subscriptionOf(f packets.Subscription) subscription {
	return subscription{
		Filter: strings.Clone(f.Filter), QoS: f.Qos, ID: f.Identifier,
		NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished,
	}
}

// ungrant takes a filter back from mochi, which has it already.
func (b *Broker) ungrant(c *client, filter string, codes []byte, i int) {
	b.mq.Topics.Unsubscribe(filter, c.cl.ID)
	c.cl.State.Subscriptions.Delete(filter)
	if !c.v5() {
		codes[i] = packets.ErrUnspecifiedError.Code // the one error of 3.1.1's SUBACK
	}
}

func backfillOf(pk packets.Packet) string {
	for _, p := range pk.Properties.User {
		if p.Key == moment.PropBackfill {
			return p.Val
		}
	}
	return ""
}

// addFilter puts one filter into the session, and gives its log a place. It
// returns the log when its durable cursor has to be written.
func (b *Broker) addFilter(c *client, sub subscription, back backfill) (existed bool, moved ledger.LogID, err error) {
	s := c.sess
	log, ok := sub.log()
	if !ok {
		return false, "", fmt.Errorf("filter %q names no single pair or user", sub.Filter)
	}
	if err := b.limits.topic(sub.Filter); err != nil {
		b.metrics.overLimit.Inc()
		return false, "", fmt.Errorf("%w: %w", errFilterLimit, err)
	}
	start, err := b.startOf(c, log, back)
	if err != nil {
		b.log.Error("place of a filter not read", "client", s.id, "error", err)
		return false, "", errors.New(publicReason(err)) // the client is told
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != c || s.ended != nil {
		return false, "", errStopped
	}
	if old := s.find(sub.Filter); old != nil {
		existed, sub.From = true, old.From
	} else {
		sub.From = start
		if most := b.cfg.Limits.SessionFilters; len(s.subs) >= most {
			b.metrics.overLimit.Inc()
			return false, "", fmt.Errorf("%w: more than %d filters in one session", errFilterLimit, most)
		}
	}
	had := s.needsCursor(log)
	fl := s.follows[log]
	switch {
	case fl == nil:
		s.follows[log] = &follow{cursor: start, pos: start}
	case sub.From < fl.pos && !existed:
		// A second SUBSCRIBE of a new session asks for what the pump has read past.
		had = had && sub.From >= fl.cursor
		s.goBack(log, fl, sub.From)
	}
	s.put(sub)
	if s.needsCursor(log) && !had {
		moved = log
	}
	return existed, moved, nil
}

// goBack lets log be read again from a place that was read past, for a new
// filter; the others do not see again what they are through with. mu is held.
func (s *session) goBack(log ledger.LogID, fl *follow, to ledger.Seq) {
	for i := range s.subs {
		if l, ok := s.subs[i].log(); ok && l == log {
			s.subs[i].From = max(s.subs[i].From, fl.cursor)
		}
	}
	fl.cursor, fl.pos, fl.resets = min(to, fl.cursor), to, fl.resets+1
}

// startOf is the place from which a new filter delivers: the log's head, or
// what backfill asks for where the session, when it connected, had no place in
// that log.
func (b *Broker) startOf(c *client, log ledger.LogID, back backfill) (ledger.Seq, error) {
	c.sess.mu.Lock()
	placed := c.sess.placed[log]
	c.sess.mu.Unlock()
	if back.all && !placed {
		return 0, nil
	}
	if back.n > 0 && !placed {
		return b.deps.Ledger.Tail(c.ctx, log, back.n)
	}
	st, err := b.deps.Ledger.Stat(c.ctx, log)
	return st.Head, err
}

// keepFilters writes new cursors, then the record, where anything has changed.
// A crash in between leaves a cursor without a session, which nobody reads.
func (b *Broker) keepFilters(c *client, before []subscription, moved []ledger.LogID) error {
	s := c.sess
	s.mu.Lock()
	durable := s.durable()
	same := slices.Equal(before, s.subs)
	places := map[ledger.LogID]ledger.Seq{}
	for _, log := range moved {
		if fl := s.follows[log]; fl != nil {
			places[log] = fl.cursor
		}
	}
	s.mu.Unlock()
	if !durable {
		return nil
	}
	if err := b.setPlaces(c.ctx, s, places); err != nil || same {
		return err
	}
	return b.save(c.ctx, s)
}

// setPlaces writes a session's durable cursors, unless it has ended: a new one
// of the same id has places of its own.
func (b *Broker) setPlaces(ctx context.Context, s *session, places map[ledger.LogID]ledger.Seq) error {
	if len(places) == 0 {
		return nil
	}
	s.saving.Lock() // drop holds it: the session does not end meanwhile
	defer s.saving.Unlock()
	if s.over() {
		return nil
	}
	for log, at := range places {
		if err := b.deps.Ledger.SetCursor(ctx, s.id, log, at); err != nil {
			return err
		}
	}
	return nil
}

// unsubscribed drops filters, and the places of logs that none is left for.
func (b *Broker) unsubscribed(c *client, pk packets.Packet) {
	s := c.sess
	s.mu.Lock()
	if s.owner != c {
		s.mu.Unlock()
		return // taken over meanwhile
	}
	old := s.logs()
	for _, f := range pk.Filters {
		s.subs = slices.DeleteFunc(s.subs, func(have subscription) bool { return have.Filter == f.Filter })
	}
	var gone []ledger.LogID
	for _, log := range old {
		if !s.needsCursor(log) {
			gone = append(gone, log)
		}
		if !slices.Contains(s.logs(), log) {
			s.unfollow(log)
		}
	}
	durable := s.durable()
	s.mu.Unlock()
	if !durable {
		return
	}
	if err := b.save(c.ctx, s); err != nil {
		b.log.Error("unsubscribe not stored", "client", s.id, "error", err)
	}
	s.saving.Lock() // as in setPlaces
	defer s.saving.Unlock()
	if s.over() {
		return
	}
	for _, log := range gone {
		if err := b.deps.Ledger.DropCursor(c.ctx, s.id, log); err != nil {
			b.log.Warn("cursor not dropped", "client", s.id, "error", err)
		}
		b.markDirty(log)
	}
}
