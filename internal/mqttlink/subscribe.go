package mqttlink

import (
	"context"
	"fmt"
	"slices"

	"github.com/eclipse/paho.golang/packets"

	"pairsync/internal/moment"
)

// request is a SUBSCRIBE (add) or UNSUBSCRIBE (remove) without an answer.
// Guarded by Link.mu.
type request struct {
	add      []Subscription // all with the same Backfill
	remove   []string
	packetID uint16     // 0: not sent on the live connection
	done     chan error // capacity 1; nil for the SUBSCRIBEs of the connect itself
}

// subscribeRequests packs subs into one SUBSCRIBE per Backfill, because the
// user property counts for the whole packet.
func subscribeRequests(subs []Subscription) []*request {
	var out []*request
	for _, s := range subs {
		i := slices.IndexFunc(out, func(q *request) bool { return q.add[0].Backfill == s.Backfill })
		if i < 0 {
			out = append(out, &request{add: []Subscription{s}})
		} else {
			out[i].add = append(out[i].add, s)
		}
	}
	return out
}

// Subscribe adds subs to the set that every connect subscribes to, and waits
// until the server has granted them, over reconnects if it must. Filters that
// it refuses are not kept, and the first is returned as a *ReasonError. When
// ctx ends first, none that is still unanswered is kept.
func (l *Link) Subscribe(ctx context.Context, subs ...Subscription) error {
	for _, s := range subs {
		if err := s.check(); err != nil {
			return err
		}
	}
	for _, q := range subscribeRequests(subs) {
		if err := l.request(ctx, q); err != nil {
			return fmt.Errorf("subscribe: %w", err)
		}
	}
	return nil
}

// Unsubscribe takes filters out of the set at once, and waits until the server
// has forgotten them. When ctx ends first, a session that the server keeps may
// still hold them.
func (l *Link) Unsubscribe(ctx context.Context, filters ...string) error {
	if len(filters) == 0 {
		return nil
	}
	l.mu.Lock()
	l.subs = slices.DeleteFunc(l.subs, func(s Subscription) bool { return slices.Contains(filters, s.Filter) })
	l.mu.Unlock()
	if err := l.request(ctx, &request{remove: slices.Clone(filters)}); err != nil {
		return fmt.Errorf("unsubscribe: %w", err)
	}
	return nil
}

// request queues q and waits for its answer.
func (l *Link) request(ctx context.Context, q *request) error {
	q.done = make(chan error, 1)
	l.mu.Lock()
	l.reqs = append(l.reqs, q)
	l.nudge()
	l.mu.Unlock()
	select {
	case err := <-q.done:
		return err
	case <-l.done:
		return ErrClosed
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		// Its packet id stays taken until the connection ends.
		l.reqs = slices.DeleteFunc(l.reqs, func(other *request) bool { return other == q })
		return ctx.Err()
	}
}

// nextRequest takes the next request to write, with its packet id. Callers
// hold l.mu.
func (l *Link) nextRequest() *request {
	for _, q := range l.reqs {
		if q.packetID == 0 {
			if q.packetID = l.newID(q); q.packetID == 0 {
				return nil
			}
			return q
		}
	}
	return nil
}

// encode returns q as a packet.
func (q *request) encode() []byte {
	if len(q.add) == 0 {
		return encode(&packets.Unsubscribe{PacketID: q.packetID, Topics: q.remove, Properties: &packets.Properties{}})
	}
	p := &packets.Subscribe{PacketID: q.packetID, Properties: &packets.Properties{}}
	if b := q.add[0].Backfill; b != "" {
		p.Properties.User = []packets.User{{Key: moment.PropBackfill, Value: b}}
	}
	for _, s := range q.add {
		p.Subscriptions = append(p.Subscriptions, packets.SubOptions{Topic: s.Filter, QoS: s.QoS, NoLocal: s.NoLocal})
	}
	return encode(p)
}

// answered settles the request that a SUBACK or UNSUBACK names.
func (c *connection) answered(packetID uint16, codes []byte, props *packets.Properties) error {
	l := c.l
	l.mu.Lock()
	q, ok := l.ids[packetID].(*request)
	if !ok {
		l.mu.Unlock()
		return fmt.Errorf("%w: answer to packet id %d, which asked for nothing", errPacket, packetID)
	}
	if want := len(q.add) + len(q.remove); len(codes) != want {
		l.mu.Unlock()
		return fmt.Errorf("%w: %d reason codes for %d filters", errPacket, len(codes), want)
	}
	delete(l.ids, packetID)
	waiting := slices.Contains(l.reqs, q)
	l.reqs = slices.DeleteFunc(l.reqs, func(other *request) bool { return other == q })
	refused := q.refusals(codes, props)
	initial := q.done == nil
	if initial {
		c.initial--
	} else if waiting {
		l.keepGranted(q, codes)
		q.done <- firstRefusal(refused)
	}
	up := initial && c.initial == 0
	l.mu.Unlock()

	for i := 0; initial && i < len(refused); i++ {
		l.log.Warn("mqtt subscription refused", "filter", refused[i].filter, "err", refused[i].err)
		c.emit(event{refused: refused[i]})
	}
	if up {
		c.emit(event{up: true})
	}
	return nil
}

// refusals lists the filters of q that the server refused.
func (q *request) refusals(codes []byte, props *packets.Properties) []*refusal {
	var out []*refusal
	for i, code := range codes {
		if code < 0x80 {
			continue
		}
		r := &refusal{err: &ReasonError{Code: code, Reason: props.ReasonString}}
		if i < len(q.add) {
			r.filter = q.add[i].Filter
		} else {
			r.filter = q.remove[i]
		}
		out = append(out, r)
	}
	return out
}

func firstRefusal(refused []*refusal) error {
	if len(refused) == 0 {
		return nil
	}
	return fmt.Errorf("%q: %w", refused[0].filter, refused[0].err)
}

// keepGranted adds the granted filters of q to the set. Callers hold l.mu.
func (l *Link) keepGranted(q *request, codes []byte) {
	for i, s := range q.add {
		if codes[i] < 0x80 {
			l.addSubscription(s)
		}
	}
}

// addSubscription adds s to the set or replaces the one of the same filter.
// Callers hold l.mu, or have the only reference.
func (l *Link) addSubscription(s Subscription) {
	if i := slices.IndexFunc(l.subs, func(o Subscription) bool { return o.Filter == s.Filter }); i >= 0 {
		l.subs[i] = s
		return
	}
	l.subs = append(l.subs, s)
}
