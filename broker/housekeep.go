package broker

import (
	"context"
	"errors"
	"maps"
	"sort"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/kv"
	"pairsync/internal/ledger"
)

// How often Run looks after things.
const (
	trimEvery   = 5 * time.Second // logs that something was appended to or acknowledged in
	sweepEvery  = time.Hour       // every log, for what has grown too old
	expireEvery = 30 * time.Second
	retryWait   = time.Second // after a registry change that could not be written
)

// housekeep runs until ctx ends.
func (b *Broker) housekeep(ctx context.Context) error {
	trim, sweep, expire := time.NewTicker(trimEvery), time.NewTicker(sweepEvery), time.NewTicker(expireEvery)
	defer trim.Stop()
	defer sweep.Stop()
	defer expire.Stop()
	var retry <-chan time.Time
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-b.changes:
			err = b.applyChanges(ctx)
		case <-retry:
			retry = nil
			err = b.applyChanges(ctx)
		case <-trim.C:
			err = errors.Join(b.trimDirty(ctx), b.saveUnsaved(ctx))
		case <-sweep.C:
			err = b.markAll(ctx)
		case <-expire.C:
			b.expireAdmins(time.Now())
			err = b.expireSessions(ctx)
		}
		if err != nil && ctx.Err() == nil {
			b.log.Error("housekeeping", "error", err)
			if b.hasPending() {
				retry = time.After(retryWait)
			}
		}
	}
}

func (b *Broker) hasPending() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.pending) > 0
}

// markDirty notes that a trim may find something in log.
func (b *Broker) markDirty(log ledger.LogID) {
	b.mu.Lock()
	b.dirty[log] = true
	b.mu.Unlock()
}

func (b *Broker) markAll(ctx context.Context) error {
	logs, err := b.deps.Ledger.Logs(ctx)
	for _, log := range logs {
		b.markDirty(log)
	}
	return err
}

func (b *Broker) trimDirty(ctx context.Context) error {
	b.mu.Lock()
	dirty := b.dirty
	b.dirty = map[ledger.LogID]bool{}
	b.mu.Unlock()
	var errs []error
	for log := range dirty {
		if err := b.trim(ctx, log); err != nil {
			errs = append(errs, err)
			b.markDirty(log)
		}
	}
	return errors.Join(errs...)
}

// trim removes from one log what every durable session has passed and what has
// grown too old.
func (b *Broker) trim(ctx context.Context, log ledger.LogID) error {
	if _, ok := log.Later(); ok {
		return nil // nobody follows it: whoever filled it takes it out
	}
	if id, ok := log.Pair(); ok {
		if ready, err := b.pairReady(ctx, id); err != nil || !ready {
			return err // not everybody who will follow it is there yet
		}
	}
	st, err := b.deps.Ledger.Stat(ctx, log)
	if err != nil {
		return err
	}
	upTo := st.Head
	for _, s := range b.sessionsOf(log) {
		at, follows, err := b.place(ctx, s, log)
		if err != nil {
			return err
		}
		if follows {
			upTo = min(upTo, at)
		}
	}
	now := time.Now()
	done, err := b.deps.Ledger.Trim(ctx, log, ledger.Retention{
		UpTo: upTo, KeepPhotos: b.cfg.KeepLast,
		Before: now.Add(-b.cfg.MaxAge), ReceiptsBefore: now.Add(-b.cfg.ReceiptAge),
	})
	if err != nil {
		return err
	}
	b.metrics.trimmed.Add(float64(done.Entries))
	if done.Undelivered > 0 {
		b.metrics.undelivered.Add(float64(done.Undelivered))
		b.log.Warn("moments expired before everybody had them", "log", string(log), "count", done.Undelivered)
		if id, ok := log.Pair(); ok && b.deps.Expired != nil {
			b.deps.Expired(id, done.Undelivered)
		}
	}
	return nil
}

// sessionsOf returns the sessions that may follow log.
func (b *Broker) sessionsOf(log ledger.LogID) []*session {
	var users []string
	if id, ok := log.Pair(); ok {
		p, _ := b.deps.Registry.Pair(id)
		users = p.Users[:]
	} else if id, ok := log.User(); ok {
		users = []string{id}
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	var out []*session
	for _, id := range users {
		if u := b.users[id]; u != nil {
			for _, s := range u.sessions {
				out = append(out, s)
			}
		}
	}
	return out
}

// place returns how far a session is through with log, where it has to be waited
// for: while it is kept or connected, and follows at QoS 1. An offline one is
// first moved past what does not match its filters: a phone's own photos must
// not wait for that phone to come back.
func (b *Broker) place(ctx context.Context, s *session, log ledger.LogID) (at ledger.Seq, follows bool, err error) {
	s.mu.Lock()
	fl := s.follows[log]
	if fl == nil || !s.atLeastOnce(log) || s.owner == nil && !s.durable() {
		s.mu.Unlock()
		return 0, false, nil
	}
	after, resets, offline := fl.pos, fl.resets, s.owner == nil
	at = fl.cursor
	s.mu.Unlock()
	if !offline {
		return at, true, nil
	}
	now := time.Now()
	got, err := b.deps.Ledger.Read(ctx, log, after, ledger.Limit{
		Entries: 1, HeadersOnly: true,
		Want: func(e *ledger.Entry) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			_, _, ok := s.want(log, e, now)
			return ok
		},
	})
	if err != nil {
		return 0, false, err
	}
	through := got.Through
	if len(got.Entries) > 0 && !got.Entries[0].Damaged {
		through = got.Entries[0].Seq - 1
	}
	s.mu.Lock()
	if s.owner == nil && s.follows[log] == fl && fl.resets == resets {
		fl.pos = max(fl.pos, through)
	}
	to, moved := s.settle(log)
	at = fl.cursor
	s.mu.Unlock()
	if moved {
		if err := b.keepPlace(ctx, s, log, to); err != nil {
			return 0, false, err
		}
	}
	return at, true, nil
}

// saveUnsaved writes since when sessions are offline. It is done in batches
// rather than at each disconnect: after a crash they count from the restart.
func (b *Broker) saveUnsaved(ctx context.Context) error {
	b.mu.Lock()
	unsaved := b.unsaved
	b.unsaved = map[*session]bool{}
	b.mu.Unlock()
	err := b.saveAll(ctx, unsaved)
	if err != nil {
		b.mu.Lock()
		maps.Copy(b.unsaved, unsaved) // at the next turn
		b.mu.Unlock()
	}
	return err
}

func (b *Broker) saveAll(ctx context.Context, sessions map[*session]bool) error {
	var ops []kv.Op
	for s := range sessions {
		s.saving.Lock()
		defer s.saving.Unlock()
		op, ok, err := s.op()
		if err != nil {
			return err
		}
		if ok && s.stored {
			ops = append(ops, op)
		}
	}
	if len(ops) == 0 {
		return nil
	}
	return b.deps.KV.Apply(ctx, ops...)
}

// expireSessions ends the sessions whose expiry has passed.
func (b *Broker) expireSessions(ctx context.Context) error {
	now := time.Now()
	for _, s := range b.allSessions() {
		over, err := b.dropIf(ctx, s, func() bool { return s.expired(now) })
		if over {
			b.log.Info("session expired", "client", s.id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Session is what an operator sees of a session.
type Session struct {
	ID           string     `json:"id"` // "<user>/<client id>"
	User         string     `json:"user"`
	Device       string     `json:"device"`
	Connected    bool       `json:"connected"`
	Backlog      int        `json:"backlog"`      // moments not acknowledged
	BacklogBytes int64      `json:"backlogBytes"` // and their payloads
	Oldest       *time.Time `json:"oldest"`       // when the oldest of them was stored; nil without a backlog
}

// Sessions lists all sessions but admins', by id. It reads the headers of what
// is queued: its cost grows with the backlog.
func (b *Broker) Sessions(ctx context.Context) ([]Session, error) {
	all := b.allSessions()
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	out := make([]Session, 0, len(all))
	for _, s := range all {
		info, err := b.sessionInfo(ctx, s)
		if err != nil {
			return nil, err
		}
		out = append(out, info)
	}
	return out, nil
}

func (b *Broker) sessionInfo(ctx context.Context, s *session) (Session, error) {
	s.mu.Lock()
	info := Session{ID: s.id, User: s.user, Device: s.device, Connected: s.owner != nil}
	places := map[ledger.LogID]ledger.Seq{}
	for log, fl := range s.follows {
		places[log] = fl.cursor
	}
	s.mu.Unlock()
	now := time.Now()
	for log, at := range places {
		want := func(e *ledger.Entry) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			_, _, ok := s.want(log, e, now)
			return ok
		}
		for {
			got, err := b.deps.Ledger.Read(ctx, log, at, ledger.Limit{Entries: 256, HeadersOnly: true, Want: want})
			if err != nil {
				return info, err
			}
			for i := range got.Entries {
				e := &got.Entries[i]
				info.Backlog++
				info.BacklogBytes += int64(e.Size)
				if stored := e.StoredAt; info.Oldest == nil || stored.Before(*info.Oldest) {
					info.Oldest = &stored
				}
			}
			if got.Through <= at {
				break
			}
			at = got.Through
		}
	}
	return info, nil
}

// Kick disconnects a session's client (0x98 Administrative action); its queue
// stays. It reports whether one was connected.
func (b *Broker) Kick(id string) bool {
	b.mu.RLock()
	c := b.clients[id]
	b.mu.RUnlock()
	if c == nil {
		return false
	}
	c.end(packets.ErrAdministrativeAction)
	return true
}

// Connections returns how many clients are connected.
func (b *Broker) Connections() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.clients)
}
