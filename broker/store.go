package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/kv"
	"pairsync/internal/ledger"
)

// Keys in the key-value store.
const (
	keySession = "session/"    // + session id: record
	keyPairUp  = "pair-ready/" // + pair id: the pair's app sessions were made
	keyState   = "state/"      // + pair "/" device: the device's state payload
)

// recordVersion is the version of record; a newer one is refused at start.
const recordVersion = 1

// record is a durable session on disk. Its cursors are the ledger's.
type record struct {
	V       int            `json:"v"`
	User    string         `json:"user"`
	Name    string         `json:"name"`
	Device  string         `json:"device,omitempty"`
	Version byte           `json:"version"`
	Expiry  int64          `json:"expiry"`           // seconds
	Offline time.Time      `json:"offline,omitzero"` // zero while connected
	Subs    []subscription `json:"subs,omitempty"`
}

// begin gives c its session before CONNACK: the one that is there, or a new
// one, which is on disk when it is durable.
func (b *Broker) begin(c *client, clean bool) error {
	b.mu.RLock()
	s := b.sessions[c.cl.ID]
	b.mu.RUnlock()
	if s != nil {
		now := time.Now()
		// One without an expiry ended with its connection, which may not be through yet.
		over := func() bool { return s.serial < c.serial && (clean || !s.durable() || s.expired(now)) }
		if _, err := b.dropIf(c.ctx, s, over); err != nil {
			return err
		}
	}
	expiry := b.grantedExpiry(c.cl)
	changed, ok := false, false
	if s != nil {
		var err error
		if changed, ok, err = s.take(c, expiry); err != nil {
			return err
		}
	}
	if c.present = ok; !ok {
		if s != nil {
			<-s.ended // its record must be gone before another is written
		}
		s = &session{
			id: c.cl.ID, user: c.who().User, name: strings.TrimPrefix(c.cl.ID, c.who().User+"/"), device: c.who().Device,
			follows: map[ledger.LogID]*follow{},
		}
		changed, _, _ = s.take(c, expiry)
	}
	c.sess = s
	b.mu.Lock()
	current := b.clients[c.cl.ID] == c
	if current {
		b.sessions[s.id] = s
		b.user(s.user).sessions[s.id] = s
		if c.present {
			b.unsaved[s] = true // the record says that it is offline
		}
	}
	b.mu.Unlock()
	if !current {
		return errStopped
	}
	if err := b.catchUp(c.ctx, s); err != nil {
		return err
	}
	b.restoreFilters(c.cl, s.filters())
	if expiry == 0 || !changed {
		return nil
	}
	if err := b.save(c.ctx, s); err != nil {
		if !c.present { // the next CONNECT must not take it for one that is kept
			err = errors.Join(err, b.drop(c.ctx, s))
		}
		return err
	}
	return b.limitSessions(c.ctx, s.user, s)
}

// take gives the session to c; false when it has ended, errStopped when a newer
// connection has had it. It reports whether its record has to be written before
// CONNACK: where it says something else, or says that the session has been
// offline for so long that it would be over soon after a crash.
func (s *session) take(c *client, expiry time.Duration) (changed, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return false, false, nil
	}
	if c.serial < s.serial {
		return false, false, errStopped
	}
	version := c.cl.Properties.ProtocolVersion
	changed = s.expiry != expiry || s.version != version || time.Since(s.offline) > expiry/2
	s.owner = nil
	s.skipUnkept() // by what it was until now: what waits comes, also to the session's last connection
	s.unfollow("")
	s.owner, s.serial, s.expiry, s.version, s.offline = c, c.serial, expiry, version, time.Time{}
	s.placed = map[ledger.LogID]bool{}
	for log := range s.follows {
		s.placed[log] = true
	}
	return changed, true, nil
}

// grantedExpiry is the session expiry of a CONNECT: MQTT 5's interval within
// our limit, for 3.1.1 without clean session our limit.
func (b *Broker) grantedExpiry(cl *mqtt.Client) time.Duration {
	if cl.Properties.ProtocolVersion < 5 {
		if cl.Properties.Clean {
			return 0
		}
		return b.cfg.SessionExpiry
	}
	return min(time.Duration(cl.Properties.Props.SessionExpiryInterval)*time.Second, b.cfg.SessionExpiry)
}

// skipUnkept forgets the places in logs without a durable cursor: what came
// while the session was offline was not for it (QoS 0). mu is held.
func (s *session) skipUnkept() {
	for log := range s.follows {
		if !s.needsCursor(log) {
			s.unfollow(log)
		}
	}
}

// catchUp gives every log that the session follows a place: those without one
// start now.
func (b *Broker) catchUp(ctx context.Context, s *session) error {
	s.mu.Lock()
	logs := s.logs()
	s.mu.Unlock()
	for _, log := range logs {
		st, err := b.deps.Ledger.Stat(ctx, log)
		if err != nil {
			return err
		}
		s.mu.Lock()
		if s.follows[log] == nil {
			s.follows[log] = &follow{cursor: st.Head, pos: st.Head}
		}
		s.mu.Unlock()
	}
	return nil
}

// restoreFilters tells mochi the filters of a session that was offline: it
// answers UNSUBSCRIBE from its own list.
func (b *Broker) restoreFilters(cl *mqtt.Client, subs []subscription) {
	for _, f := range subs {
		sub := packets.Subscription{Filter: f.Filter, Qos: f.QoS, Identifier: f.ID, NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished}
		b.mq.Topics.Subscribe(cl.ID, sub)
		cl.State.Subscriptions.Add(f.Filter, sub)
	}
}

// release takes the session from a connection that has ended: a durable one
// goes offline, another one is over.
func (b *Broker) release(c *client) {
	s := c.sess
	expiry := b.grantedExpiry(c.cl) // DISCONNECT may have changed it (MQTT 5, 3.14.2.2.2)
	s.mu.Lock()
	if s.owner != c {
		s.mu.Unlock()
		return
	}
	s.owner = nil
	s.offline = time.Now()
	s.expiry = expiry
	s.mu.Unlock()
	if expiry == 0 {
		if err := b.drop(c.ctx, s); err != nil {
			b.log.Warn("ended session not removed; it will be at the next start", "client", s.id, "error", err)
		}
		return
	}
	b.mu.Lock()
	if b.sessions[s.id] == s {
		b.unsaved[s] = true
	}
	b.mu.Unlock()
}

// drop ends a session for good, on disk too.
func (b *Broker) drop(ctx context.Context, s *session) error {
	_, err := b.dropIf(ctx, s, func() bool { return true })
	return err
}

// dropIf is drop where cond holds, which is asked with s.mu held: from then on
// nobody takes the session. It is found under its id until it is off the disk,
// so that a new one of that id is not written before; where it has ended
// already, dropIf does not wait for that.
func (b *Broker) dropIf(ctx context.Context, s *session, cond func() bool) (dropped bool, err error) {
	if s.over() {
		return false, nil
	}
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	if s.ended != nil || !cond() {
		s.mu.Unlock()
		return false, nil
	}
	s.ended = make(chan struct{})
	defer close(s.ended)
	logs := s.logs()
	s.mu.Unlock()
	err = b.erase(ctx, s, logs)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sessions[s.id] == s {
		delete(b.sessions, s.id)
		delete(b.user(s.user).sessions, s.id)
		b.dropUser(s.user)
	}
	delete(b.unsaved, s)
	return true, err
}

// erase takes a session off the disk; s.saving is held.
func (b *Broker) erase(ctx context.Context, s *session, logs []ledger.LogID) error {
	if s.stored {
		if err := b.deps.KV.Apply(ctx, kv.Op{Key: keySession + s.id, Delete: true}); err != nil {
			return err
		}
	}
	var errs []error
	for _, log := range logs {
		errs = append(errs, b.deps.Ledger.DropCursor(ctx, s.id, log))
		b.markDirty(log)
	}
	return errors.Join(errs...)
}

// save writes the session's record; it is on disk when save returns.
func (b *Broker) save(ctx context.Context, s *session) error {
	s.saving.Lock()
	defer s.saving.Unlock()
	op, ok, err := s.op()
	if err != nil || !ok {
		return err
	}
	if err := b.deps.KV.Apply(ctx, op); err != nil {
		return err
	}
	s.stored = true
	return nil
}

// op is the change that saves the session; false when it has ended.
func (s *session) op() (kv.Op, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return kv.Op{}, false, nil
	}
	data, err := json.Marshal(record{
		V: recordVersion, User: s.user, Name: s.name, Device: s.device, Version: s.version,
		Expiry: int64(s.expiry / time.Second), Offline: s.offline, Subs: s.subs,
	})
	return kv.Op{Key: keySession + s.id, Value: data}, true, err
}

// limitSessions ends the durable session of user that has been offline
// longest, while there are more than Config.UserSessions; never keep.
func (b *Broker) limitSessions(ctx context.Context, userID string, keep *session) error {
	for {
		b.mu.RLock()
		var oldest *session
		var since time.Time
		n := 0
		var sessions map[string]*session
		if u := b.users[userID]; u != nil { // else its device was revoked meanwhile
			sessions = u.sessions
		}
		for _, s := range sessions {
			s.mu.Lock()
			if s.durable() {
				n++
				if s != keep && s.owner == nil && !isAppName(s.name) && (oldest == nil || s.offline.Before(since)) {
					oldest, since = s, s.offline
				}
			}
			s.mu.Unlock()
		}
		b.mu.RUnlock()
		if n <= b.cfg.UserSessions || oldest == nil {
			return nil
		}
		over, err := b.dropIf(ctx, oldest, func() bool { return oldest.owner == nil })
		if over {
			b.log.Info("session ended: its user has too many", "client", oldest.id, "offline_since", since)
		}
		if err != nil {
			return err
		}
	}
}

// loadSessions reads the durable sessions and their places.
func (b *Broker) loadSessions(ctx context.Context) error {
	now := time.Now()
	err := b.deps.KV.Scan(ctx, keySession, func(key string, value []byte) error {
		var r record
		if err := json.Unmarshal(value, &r); err != nil {
			return fmt.Errorf("session %q: %w", key, err)
		}
		if r.V > recordVersion {
			return fmt.Errorf("session %q was written by a newer pairsync (record version %d, this one knows %d)", key, r.V, recordVersion)
		}
		s := &session{
			id: strings.TrimPrefix(key, keySession), user: r.User, name: r.Name, device: r.Device,
			version: r.Version, expiry: time.Duration(r.Expiry) * time.Second, offline: r.Offline,
			subs: r.Subs, follows: map[ledger.LogID]*follow{}, stored: true,
		}
		if s.offline.IsZero() {
			s.offline = now // it was connected when the daemon ended
		}
		b.sessions[s.id] = s
		b.user(s.user).sessions[s.id] = s
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range b.sessions {
		for _, log := range s.logs() {
			at, err := b.deps.Ledger.Cursor(ctx, s.id, log)
			if errors.Is(err, ledger.ErrNotFound) {
				continue
			}
			if err != nil {
				return fmt.Errorf("cursor of %q: %w", s.id, err)
			}
			s.follows[log] = &follow{cursor: at, pos: at}
		}
	}
	return b.reconcile(ctx)
}
