package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/registry"
)

// registryChanged is told of every change of the registry, after it is on
// disk. What concerns connections happens here and now; work on disk is left
// to Run. It must not block.
func (b *Broker) registryChanged(ch registry.Change) {
	switch ch.Kind {
	case registry.PairCreated, registry.PairRemoved:
		for _, c := range b.audience(ch.Pair.Users[:]...) {
			b.refreshRights(c)
			c.poke()
		}
	case registry.UserSeen:
		if p, ok := b.deps.Registry.PairOf(ch.User); ok {
			b.tellInfo(p)
		}
	case registry.DeviceRevoked, registry.TokenRevoked, registry.UserRevoked:
		b.mu.RLock()
		clients := slices.Collect(maps.Values(b.clients))
		b.mu.RUnlock()
		for _, c := range clients {
			if b.deps.Registry.Revoked(c.who()) {
				c.end(packets.ErrAdministrativeAction)
			}
		}
	}
	b.mu.Lock()
	b.pending = append(b.pending, ch)
	b.mu.Unlock()
	select {
	case b.changes <- struct{}{}:
	default:
	}
}

// applyChanges does the disk work of registry changes.
func (b *Broker) applyChanges(ctx context.Context) error {
	for {
		b.mu.Lock()
		if len(b.pending) == 0 {
			b.mu.Unlock()
			return nil
		}
		ch := b.pending[0]
		b.mu.Unlock()
		var err error
		switch ch.Kind {
		case registry.PairCreated:
			err = b.pairCreated(ctx, ch.Pair)
		case registry.PairRemoved:
			err = b.pairRemoved(ctx, ch.Pair)
		case registry.DeviceRevoked:
			err = b.deviceRevoked(ctx, ch.Device)
		}
		if err != nil {
			return fmt.Errorf("registry change %v: %w", ch.Kind, err) // tried again at the next turn
		}
		b.mu.Lock()
		b.pending = b.pending[1:]
		if len(b.pending) == 0 {
			close(b.settled)
			b.settled = make(chan struct{})
		}
		b.mu.Unlock()
	}
}

// AwaitChanges returns when the disk work of every registry change so far is
// done; it needs Run to be running.
func (b *Broker) AwaitChanges(ctx context.Context) error {
	b.mu.RLock()
	settled, none := b.settled, len(b.pending) == 0
	b.mu.RUnlock()
	if none {
		return nil
	}
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reconcile completes what a crash interrupted: pairs without their app
// sessions, logs and states of pairs that have ended, sessions and states of
// revoked devices.
func (b *Broker) reconcile(ctx context.Context) error {
	for _, d := range b.deps.Registry.Devices() {
		if d.Revoked {
			if err := b.deviceRevoked(ctx, d); err != nil {
				return err
			}
		}
	}
	for _, p := range b.deps.Registry.Pairs() {
		if err := b.pairCreated(ctx, p); err != nil {
			return err
		}
	}
	logs, err := b.deps.Ledger.Logs(ctx)
	if err != nil {
		return err
	}
	gone := map[string]registry.Pair{}
	note := func(id string) {
		if _, there := b.deps.Registry.Pair(id); !there {
			gone[id] = registry.Pair{ID: id}
		}
	}
	for _, log := range logs {
		b.markDirty(log)
		if id, ok := log.Pair(); ok {
			note(id)
		}
		if id, ok := log.Later(); ok {
			note(id)
		}
	}
	for _, prefix := range []string{keyPairUp, keyState} {
		if err := b.deps.KV.Scan(ctx, prefix, func(key string, _ []byte) error {
			id, _, _ := strings.Cut(strings.TrimPrefix(key, prefix), "/")
			note(id)
			return nil
		}); err != nil {
			return err
		}
	}
	for _, p := range b.deps.Registry.RemovedPairs() {
		if _, found := gone[p.ID]; found {
			gone[p.ID] = p
		}
	}
	for _, p := range gone {
		if err := b.pairRemoved(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// pairCreated makes the app sessions of both users, at the log's start, so
// that a partner who has never connected loses nothing, and tells both. It is
// done once per pair: the marker is written last.
func (b *Broker) pairCreated(ctx context.Context, p registry.Pair) error {
	if ready, err := b.pairReady(ctx, p.ID); err != nil || ready {
		return err
	}
	if _, still := b.deps.Registry.Pair(p.ID); !still {
		return nil // removed again meanwhile
	}
	for _, user := range p.Users {
		partner, _ := p.Partner(user)
		if err := b.makeAppSession(ctx, p.ID, user, partner); err != nil {
			return err
		}
		for _, name := range pairedEvents(p) {
			if err := b.event(ctx, user, name, p.ID, map[string]any{
				"pairId":   p.ID,
				"partner":  map[string]string{"id": partner, "clerkId": partner, "displayName": b.deps.Registry.Name(partner)},
				"pairedAt": p.Created.UTC(),
			}); err != nil {
				return err
			}
		}
	}
	if err := b.deps.KV.Apply(ctx, kv.Op{Key: keyPairUp + p.ID, Value: []byte("1")}); err != nil {
		return err
	}
	b.markDirty(ledger.PairLog(p.ID)) // trims have passed it over so far
	b.tellInfo(p)
	return nil
}

// pairedEvents are what both users are told of a new pair, in order.
func pairedEvents(p registry.Pair) []string {
	if p.ByCode {
		return []string{"code_used", "pairing_success", "partner_connected"}
	}
	return []string{"pairing_success", "partner_connected"}
}

// pairReady reports whether the app sessions of a pair were made.
func (b *Broker) pairReady(ctx context.Context, id string) (bool, error) {
	_, err := b.deps.KV.Get(ctx, keyPairUp+id)
	if errors.Is(err, kv.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// tellInfo tells the connected who is in their pair.
func (b *Broker) tellInfo(p registry.Pair) {
	if o, err := jsonOut(b.pairInfo(p)); err == nil {
		o.topic, o.asPublished = moment.InfoTopic(p.ID), true
		b.fanOut(p.ID, o, nil)
	}
}

// makeAppSession gives user's app session the filters of the new pair, from the
// log's start, and makes the session where it is not there.
func (b *Broker) makeAppSession(ctx context.Context, pair, user, partner string) error {
	userLog, pairLog := ledger.UserLog(user), ledger.PairLog(pair)
	st, err := b.deps.Ledger.Stat(ctx, userLog)
	if err != nil {
		return err
	}
	s := b.appSession(user)
	s.mu.Lock()
	if ended := s.ended; ended != nil { // its client or its expiry ends it just now
		s.mu.Unlock()
		<-ended
		return b.makeAppSession(ctx, pair, user, partner)
	}
	if s.follows[userLog] == nil {
		s.follows[userLog] = &follow{cursor: st.Head, pos: st.Head}
	}
	if s.follows[pairLog] == nil {
		s.follows[pairLog] = &follow{}
	}
	back := false
	for _, f := range appFilters(pair, user, partner) {
		if s.find(f.Filter) != nil {
			continue
		}
		if log, _ := f.log(); log == userLog {
			f.From = st.Head
		} else if !back {
			back = true
			s.goBack(pairLog, s.follows[pairLog], 0) // the app may have subscribed others already
		}
		s.put(f)
	}
	places := map[ledger.LogID]ledger.Seq{userLog: s.follows[userLog].cursor, pairLog: s.follows[pairLog].cursor}
	durable, owner := s.durable(), s.owner
	s.mu.Unlock()
	if durable {
		if err := b.setPlaces(ctx, s, places); err != nil {
			return err
		}
		if err := b.save(ctx, s); err != nil {
			return err
		}
	}
	if owner != nil {
		owner.watchLogs()
		owner.poke()
	}
	return nil
}

// appFilters are what a user's app session subscribes: everything durable that
// the partner sends, and the user's own events. Never one's own photos.
func appFilters(pair, user, partner string) []subscription {
	var out []subscription
	for _, k := range []moment.Kind{moment.Photo, moment.Note, moment.Reaction, moment.Receipt, moment.Delete} {
		out = append(out, subscription{Filter: moment.KindFilter(pair, k, partner), QoS: 1})
	}
	return append(out, subscription{Filter: moment.EventsTopic(user), QoS: 1})
}

// appSession returns user's app session, made where needed.
func (b *Broker) appSession(user string) *session {
	id := user + "/app"
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sessions[id]
	if s == nil {
		s = &session{
			id: id, user: user, name: "app", version: 5, expiry: b.cfg.SessionExpiry,
			offline: time.Now(), follows: map[ledger.LogID]*follow{},
		}
		b.sessions[id] = s
		b.user(user).sessions[id] = s
	}
	return s
}

// event appends a pairing event to a user's own log: a JSON object with the
// event's name beside its fields. The id makes a repeat after a crash harmless.
func (b *Broker) event(ctx context.Context, user, name, pair string, data map[string]any) error {
	data["event"] = name
	payload, err := json.Marshal(data)
	if err != nil {
		return err
	}
	id := name + "-" + pair
	m := moment.Moment{User: user, Kind: moment.Event, ID: id, MessageID: id, ContentType: "application/json", Payload: payload}
	log := ledger.UserLog(user)
	_, _, err = ledger.Append(ctx, b.deps.Ledger, log, m)
	if errors.Is(err, ledger.ErrQuota) {
		// Thousands of events that nobody fetched: other pairs do not wait.
		b.log.Warn("pairing event dropped", "user", user, "event", name, "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("event %s for %q: %w", name, user, err)
	}
	b.markDirty(log)
	return nil
}

// pairRemoved takes a pair off the disk: its log, its places in all sessions,
// its devices' states. Rights have ended already.
func (b *Broker) pairRemoved(ctx context.Context, p registry.Pair) error {
	log := ledger.PairLog(p.ID)
	for _, log := range []ledger.LogID{log, ledger.LaterLog(p.ID)} {
		if err := b.deps.Ledger.Delete(ctx, log); err != nil {
			return err
		}
	}
	for _, s := range b.allSessions() {
		s.mu.Lock()
		n := len(s.subs)
		s.forget(log)
		changed, owner := len(s.subs) != n, s.owner
		s.mu.Unlock()
		if !changed {
			continue
		}
		if owner != nil {
			owner.watchLogs()
		}
		if s.isStored() {
			if err := b.save(ctx, s); err != nil {
				return err
			}
		}
	}
	for _, user := range p.Users {
		if user == "" {
			continue // a log without a registry record
		}
		if err := b.event(ctx, user, "partner_disconnected", p.ID, map[string]any{
			"pairId": p.ID, "reason": "pair_removed", "timestamp": time.Now().UnixMilli(),
		}); err != nil {
			return err
		}
	}
	// The marker goes last: with it a restart knows that this is to be done.
	ops := []kv.Op{{Key: keyPairUp + p.ID, Delete: true}}
	err := b.deps.KV.Scan(ctx, keyState+p.ID+"/", func(key string, _ []byte) error {
		ops = append(ops, kv.Op{Key: key, Delete: true})
		return nil
	})
	if err == nil {
		err = b.deps.KV.Apply(ctx, ops...)
	}
	return err
}

// deviceRevoked removes what a revoked device leaves behind; done again it does
// nothing.
func (b *Broker) deviceRevoked(ctx context.Context, d registry.Device) error {
	b.mu.RLock()
	s := b.sessions[d.User+"/"+d.ID]
	b.mu.RUnlock()
	if s != nil {
		if err := b.drop(ctx, s); err != nil {
			return err
		}
	}
	pair, ok := b.deps.Registry.PairOf(d.User)
	if !ok {
		return nil
	}
	key := stateKey(pair.ID, d.ID)
	_, err := b.deps.KV.Get(ctx, key)
	if errors.Is(err, kv.ErrNotFound) {
		return nil // at each start, for every device that was ever revoked
	}
	if err == nil {
		err = b.deps.KV.Apply(ctx, kv.Op{Key: key, Delete: true})
	}
	return err
}

func (b *Broker) allSessions() []*session {
	b.mu.RLock()
	defer b.mu.RUnlock()
	out := make([]*session, 0, len(b.sessions))
	for _, s := range b.sessions {
		out = append(out, s)
	}
	return out
}

// isStored reports whether the session has a record on disk.
func (s *session) isStored() bool {
	s.saving.Lock()
	defer s.saving.Unlock()
	return s.stored
}
