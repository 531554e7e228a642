package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/registry"
)

// retryWait is the time after which what the store refused is tried again.
const retryWait = time.Second

// state is what was told of things that are no pair's.
type state struct {
	Since  time.Time `json:"since"`  // when webhooks were switched on
	Device string    `json:"device"` // the newest that was told; ids sort by age
}

// pair is how far a pair's log was told.
type pair struct {
	pairRecord
	stop func() // ends the watch of its log
}

// pairRecord is a pair on disk.
type pairRecord struct {
	Users [2]string  `json:"users"`
	Read  ledger.Seq `json:"read"` // receipts up to here were told
	// Told is, by recipient, up to where moment.queued has told.
	Told map[string]ledger.Seq `json:"told,omitempty"`
}

func (r pairRecord) op(id string) (kv.Op, error) {
	value, err := json.Marshal(r)
	return kv.Op{Key: keyPair + id, Value: value}, err
}

// load reads what is on disk; the first time it notes what there is already,
// of which nothing is told.
func (w *Webhooks) load(ctx context.Context) error {
	value, err := w.deps.KV.Get(ctx, keyState)
	switch {
	case errors.Is(err, kv.ErrNotFound):
		w.state.Since = time.Now().UTC().Truncate(time.Millisecond)
		for _, d := range w.deps.Registry.Devices() {
			w.state.Device = max(w.state.Device, d.ID)
		}
		op, err := w.state.op()
		if err != nil {
			return err
		}
		if err := w.deps.KV.Apply(ctx, op); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(value, &w.state); err != nil {
			return fmt.Errorf("state: %w", err)
		}
	}
	return w.deps.KV.Scan(ctx, keyPair, func(key string, value []byte) error {
		p := &pair{stop: func() {}}
		if err := json.Unmarshal(value, &p.pairRecord); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		w.pairs[key[len(keyPair):]] = p
		return nil
	})
}

func (s state) op() (kv.Op, error) {
	value, err := json.Marshal(s)
	return kv.Op{Key: keyState, Value: value}, err
}

// changed is told of every change of the registry. It must not block.
func (w *Webhooks) changed(ch registry.Change) {
	switch ch.Kind {
	case registry.PairCreated, registry.PairRemoved, registry.DeviceAdded:
		w.mu.Lock()
		w.changes = append(w.changes, ch)
		w.mu.Unlock()
		w.poke()
	}
}

// Expired notes that moments of a pair were removed before everybody had them.
// It never blocks. Without Config.URL it does nothing.
func (w *Webhooks) Expired(pair string, count int) {
	if w.cfg.URL == "" {
		return
	}
	w.mu.Lock()
	w.expired[pair] += count
	w.mu.Unlock()
	w.poke()
}

func (w *Webhooks) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// watch turns what happens into events until ctx ends.
func (w *Webhooks) watch(ctx context.Context) {
	defer func() {
		for _, p := range w.pairs {
			p.stop()
		}
	}()
	begun := false
	for {
		var err error
		if !begun {
			err = w.begin(ctx)
			begun = err == nil
		}
		if begun {
			err = w.turn(ctx)
		}
		var next <-chan time.Time
		switch first, ok := w.firstDue(); {
		case ctx.Err() != nil:
			return
		case err != nil:
			w.log.Error("webhook events not noted", "error", err)
			next = time.After(retryWait)
		case ok:
			next = time.After(time.Until(first))
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-next:
		}
	}
}

// begin finds what happened while nobody watched.
func (w *Webhooks) begin(ctx context.Context) error {
	for id, p := range maps.Clone(w.pairs) {
		if _, there := w.deps.Registry.Pair(id); !there {
			if err := w.pairRemoved(ctx, registry.Pair{ID: id, Users: p.Users}); err != nil {
				return err
			}
		}
	}
	for _, p := range w.deps.Registry.Pairs() {
		if err := w.pairCreated(ctx, p); err != nil {
			return err
		}
		w.follow(p.ID, w.pairs[p.ID])
		for _, user := range p.Users {
			w.lookLater(user)
		}
	}
	for _, d := range w.deps.Registry.Devices() {
		if err := w.deviceAdded(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// turn tells everything that there is to tell now.
func (w *Webhooks) turn(ctx context.Context) error {
	for {
		w.mu.Lock()
		if len(w.changes) == 0 {
			w.mu.Unlock()
			break
		}
		ch := w.changes[0]
		w.mu.Unlock()
		var err error
		switch ch.Kind {
		case registry.PairCreated:
			err = w.pairCreated(ctx, ch.Pair)
		case registry.PairRemoved:
			err = w.pairRemoved(ctx, ch.Pair)
		case registry.DeviceAdded:
			err = w.deviceAdded(ctx, ch.Device)
		}
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.changes = w.changes[1:]
		w.mu.Unlock()
	}
	w.mu.Lock()
	dirty, expired := w.dirty, w.expired
	w.dirty, w.expired = map[string]bool{}, map[string]int{}
	w.mu.Unlock()
	var errs []error
	for id := range dirty {
		if err := w.readLog(ctx, id); err != nil {
			errs = append(errs, err)
			w.grown(id)
		}
	}
	for id, count := range expired {
		if err := w.tell(ctx, MomentExpired, time.Now(), Expired{id, count}, nil, id, time.Now().UnixNano()); err != nil {
			errs = append(errs, err)
			w.Expired(id, count)
		}
	}
	now := time.Now()
	for user, at := range w.due {
		if at.After(now) {
			continue
		}
		if err := w.look(ctx, user); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// tell puts one event into the outbox, with the change that says so.
func (w *Webhooks) tell(ctx context.Context, kind string, at time.Time, data any, ops []kv.Op, identity ...any) error {
	e, err := newEvent(kind, at, data, identity...)
	if err != nil {
		return err
	}
	return w.out.put(ctx, []*event{e}, ops...)
}

// pairCreated notes a pair that is not known yet, and tells of it where it is
// newer than the webhooks are.
func (w *Webhooks) pairCreated(ctx context.Context, p registry.Pair) error {
	if w.pairs[p.ID] != nil {
		return nil
	}
	known := &pair{pairRecord: pairRecord{Users: p.Users}, stop: func() {}}
	if p.Created.Before(w.state.Since) {
		st, err := w.deps.Ledger.Stat(ctx, ledger.PairLog(p.ID))
		if err != nil {
			return err
		}
		known.Read = st.Head
		known.Told = map[string]ledger.Seq{p.Users[0]: st.Head, p.Users[1]: st.Head}
	}
	op, err := known.op(p.ID)
	if err != nil {
		return err
	}
	if p.Created.Before(w.state.Since) {
		err = w.deps.KV.Apply(ctx, op)
	} else {
		err = w.tell(ctx, PairCreated, p.Created, Pair{p.ID, p.Users}, []kv.Op{op}, p.ID)
	}
	if err != nil {
		return err
	}
	w.pairs[p.ID] = known
	w.follow(p.ID, known)
	return nil
}

// follow watches a pair's log.
func (w *Webhooks) follow(id string, p *pair) {
	p.stop()
	p.stop = w.deps.Ledger.Watch(ledger.PairLog(id), func() { w.grown(id) })
	w.grown(id)
}

func (w *Webhooks) grown(id string) {
	w.mu.Lock()
	w.dirty[id] = true
	w.mu.Unlock()
	w.poke()
}

func (w *Webhooks) pairRemoved(ctx context.Context, p registry.Pair) error {
	known := w.pairs[p.ID]
	if known == nil {
		return nil
	}
	ops := []kv.Op{{Key: keyPair + p.ID, Delete: true}}
	if err := w.tell(ctx, PairRemoved, time.Now(), Pair{p.ID, p.Users}, ops, p.ID); err != nil {
		return err
	}
	known.stop()
	delete(w.pairs, p.ID)
	return nil
}

func (w *Webhooks) deviceAdded(ctx context.Context, d registry.Device) error {
	if d.ID <= w.state.Device {
		return nil
	}
	told := w.state
	told.Device = d.ID
	op, err := told.op()
	if err != nil {
		return err
	}
	p, _ := w.deps.Registry.PairOf(d.User)
	if err := w.tell(ctx, DeviceLinked, d.Created, Device{d.ID, d.User, p.ID}, []kv.Op{op}, d.ID); err != nil {
		return err
	}
	w.state = told
	return nil
}
