package broker

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// subscribed keeps the filters that a SUBSCRIBE was granted, on disk for a
// durable session, before SUBACK is written. Filters that cannot be kept are
// taken back and refused in codes, which mochi sends.
func (b *Broker) subscribed(c *client, pk packets.Packet, codes []byte) {
	s := c.sess
	before := s.filters()
	var moved []ledger.LogID
	var granted []int
	for i, f := range pk.Filters {
		if codes[i] >= packets.ErrUnspecifiedError.Code {
			continue
		}
		sub := subscription{
			Filter: strings.Clone(f.Filter), QoS: f.Qos, ID: f.Identifier,
			NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished,
		}
		existed, log, err := b.addFilter(c, sub, backfillOf(pk))
		if err != nil {
			b.log.Info("subscription refused", "client", s.id, "reason", err)
			codes[i] = packets.ErrQuotaExceeded.Code
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
		s.mu.Lock()
		s.subs = before
		s.mu.Unlock()
		c.retain = nil
		for _, i := range granted {
			codes[i] = packets.ErrImplementationSpecificError.Code
			b.ungrant(c, pk.Filters[i].Filter, codes, i)
		}
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
func (b *Broker) addFilter(c *client, sub subscription, backfill string) (existed bool, moved ledger.LogID, err error) {
	s := c.sess
	log, ok := sub.log()
	if !ok {
		return false, "", fmt.Errorf("filter %q names no single pair or user", sub.Filter)
	}
	if err := b.limits.topic(sub.Filter); err != nil {
		b.metrics.overLimit.Inc()
		return false, "", err
	}
	start, err := b.startOf(c, log, backfill)
	if err != nil {
		return false, "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.find(sub.Filter); old != nil {
		existed, sub.From = true, old.From
	} else {
		sub.From = start
		if most := b.cfg.Limits.SessionFilters; len(s.subs) >= most {
			b.metrics.overLimit.Inc()
			return false, "", fmt.Errorf("more than %d filters", most)
		}
	}
	had := s.needsCursor(log)
	fl := s.follows[log]
	switch {
	case fl == nil:
		s.follows[log] = &follow{cursor: start, pos: start}
	case sub.From < fl.pos && !existed:
		// A second SUBSCRIBE of a new session asks for what the pump has read
		// past: go back, and let the others not see again what they are
		// through with.
		for i := range s.subs {
			if l, ok := s.subs[i].log(); ok && l == log {
				s.subs[i].From = max(s.subs[i].From, fl.cursor)
			}
		}
		had = had && sub.From >= fl.cursor
		fl.cursor, fl.pos, fl.resets = min(sub.From, fl.cursor), sub.From, fl.resets+1
	}
	s.put(sub)
	if s.needsCursor(log) && !had {
		moved = log
	}
	return existed, moved, nil
}

// startOf is the place from which a new filter delivers: the log's head, or
// what backfill asks for where the session, when it connected, had no place in
// that log.
func (b *Broker) startOf(c *client, log ledger.LogID, backfill string) (ledger.Seq, error) {
	c.sess.mu.Lock()
	placed := c.sess.placed[log]
	c.sess.mu.Unlock()
	if all, n, ok := parseBackfill(backfill); ok && !placed {
		if all {
			return 0, nil
		}
		return b.deps.Ledger.Tail(c.ctx, log, n)
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
	for log, at := range places {
		if err := b.deps.Ledger.SetCursor(c.ctx, s.id, log, at); err != nil {
			return err
		}
	}
	if same {
		return nil
	}
	return b.save(c.ctx, s)
}

// unsubscribed drops filters, and the places of logs that none is left for.
func (b *Broker) unsubscribed(c *client, pk packets.Packet) {
	s := c.sess
	s.mu.Lock()
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
	for _, log := range gone {
		if err := b.deps.Ledger.DropCursor(c.ctx, s.id, log); err != nil {
			b.log.Warn("cursor not dropped", "client", s.id, "error", err)
		}
		b.markDirty(log)
	}
}
