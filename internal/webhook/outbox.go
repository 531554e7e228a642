package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"pairsync/internal/kv"
)

// Keys in the key-value store.
const (
	keyPrefix = "webhook/"
	keyEvent  = keyPrefix + "event/" // + webhook-id: event
	keyPair   = keyPrefix + "pair/"  // + pair id: pairRecord
	keyState  = keyPrefix + "state"  // state
)

// outbox is the events that wait to be sent: on disk, and in memory as they
// are on disk. An event that is being sent is its sender's alone; no lock is
// held while the disk is written.
type outbox struct {
	kv      kv.Store
	max     int
	metrics *counters
	changed chan struct{} // capacity 1: there may be something to send

	mu     sync.Mutex // guards the fields below
	events map[string]*event
	queued map[string]int // moment.queued events, by recipient
	paused time.Time      // nothing is sent before: the backend asked for it
	gone   bool           // the backend wants nothing any more
}

func newOutbox(store kv.Store, most int, m *counters) *outbox {
	return &outbox{kv: store, max: most, metrics: m, changed: make(chan struct{}, 1), events: map[string]*event{}, queued: map[string]int{}}
}

func (o *outbox) load(ctx context.Context) error {
	defer o.count()
	return o.kv.Scan(ctx, keyEvent, func(key string, value []byte) error {
		var e event
		if err := json.Unmarshal(value, &e); err != nil {
			return fmt.Errorf("event %q: %w", strings.TrimPrefix(key, keyEvent), err)
		}
		o.add(&e)
		return nil
	})
}

// put adds events and makes the other changes, all or none; they are on disk
// when it returns nil. An event that is there already stays as it is. Above
// max the oldest go. It is called by one goroutine at a time.
func (o *outbox) put(ctx context.Context, events []*event, ops ...kv.Op) error {
	var added []*event
	var evicted []string
	o.mu.Lock()
	for _, e := range events {
		if _, there := o.events[e.ID]; !there && !o.gone {
			added = append(added, e)
		}
	}
	discarded := len(events)
	if !o.gone {
		discarded = 0
		evicted = o.oldest(len(o.events) + len(added) - o.max)
	}
	o.mu.Unlock()
	for _, e := range added {
		value, err := json.Marshal(e)
		if err != nil {
			return err
		}
		ops = append(ops, kv.Op{Key: keyEvent + e.ID, Value: value})
	}
	for _, id := range evicted {
		ops = append(ops, kv.Op{Key: keyEvent + id, Delete: true})
	}
	if len(ops) == 0 {
		return nil
	}
	if err := o.kv.Apply(ctx, ops...); err != nil {
		return err
	}
	o.mu.Lock()
	for _, e := range added {
		o.add(e)
	}
	for _, id := range evicted {
		o.del(id)
	}
	o.mu.Unlock()
	o.metrics.events.Add(float64(len(added)))
	o.metrics.dropped.Add(float64(len(evicted) + discarded))
	o.count()
	o.poke()
	return nil
}

// oldest returns the n oldest events that are not being sent; mu is held.
func (o *outbox) oldest(n int) (ids []string) {
	taken := map[string]bool{}
	for ; n > 0; n-- {
		var first *event
		for id, e := range o.events {
			if !e.busy && !taken[id] && (first == nil || e.Created.Before(first.Created)) {
				first = e
			}
		}
		if first == nil {
			return ids
		}
		taken[first.ID] = true
		ids = append(ids, first.ID)
	}
	return ids
}

// next returns an event to send now, the one that is due longest, and marks it
// busy; or the time until there may be one, 0 for not before poke.
func (o *outbox) next(now time.Time) (e *event, wait time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, other := range o.events {
		if !other.busy && (e == nil || other.Next.Before(e.Next)) {
			e = other
		}
	}
	if e == nil {
		return nil, 0
	}
	at := e.Next
	if o.paused.After(at) {
		at = o.paused
	}
	if at.After(now) {
		return nil, at.Sub(now)
	}
	e.busy = true
	return e, 0
}

// queuedFor reports whether a moment.queued of recipient waits.
func (o *outbox) queuedFor(recipient string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.queued[recipient] > 0
}

// add and del keep both maps in step; mu is held.
func (o *outbox) add(e *event) {
	o.events[e.ID] = e
	if e.Recipient != "" {
		o.queued[e.Recipient]++
	}
}

func (o *outbox) del(id string) {
	e := o.events[id]
	if e == nil {
		return
	}
	delete(o.events, id)
	if o.queued[e.Recipient]--; o.queued[e.Recipient] <= 0 {
		delete(o.queued, e.Recipient)
	}
}

// remove takes an event out that its caller has marked busy. Where the disk
// refuses, it is sent once more after the next start, with the same id.
func (o *outbox) remove(ctx context.Context, e *event) error {
	err := o.kv.Apply(ctx, kv.Op{Key: keyEvent + e.ID, Delete: true})
	o.mu.Lock()
	o.del(e.ID)
	o.mu.Unlock()
	o.count()
	return err
}

// later gives an event back that its caller has marked busy, to be sent at
// next. A try counts; tries are on disk so that a restart does not begin anew.
func (o *outbox) later(ctx context.Context, e *event, next time.Time, tried bool) error {
	changed := *e
	changed.Next = next
	if tried {
		changed.Tries++
	}
	value, err := json.Marshal(&changed)
	if err == nil && tried {
		err = o.kv.Apply(ctx, kv.Op{Key: keyEvent + e.ID, Value: value})
	}
	o.mu.Lock()
	e.Next, e.Tries, e.busy = changed.Next, changed.Tries, false
	o.mu.Unlock()
	o.poke()
	return err
}

// pause keeps everything back until then.
func (o *outbox) pause(until time.Time) {
	o.mu.Lock()
	if until.After(o.paused) {
		o.paused = until
	}
	o.mu.Unlock()
}

// close drops everything, now and later: the backend is gone.
func (o *outbox) close(ctx context.Context) error {
	var ops []kv.Op
	o.mu.Lock()
	o.gone = true
	for id := range o.events {
		ops = append(ops, kv.Op{Key: keyEvent + id, Delete: true})
	}
	clear(o.events)
	clear(o.queued)
	o.mu.Unlock()
	o.metrics.dropped.Add(float64(len(ops)))
	o.count()
	if len(ops) == 0 {
		return nil
	}
	return o.kv.Apply(ctx, ops...)
}

func (o *outbox) count() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.metrics.waiting.Set(float64(len(o.events)))
}

func (o *outbox) poke() {
	select {
	case o.changed <- struct{}{}:
	default:
	}
}
