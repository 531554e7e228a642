package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"pairsync/internal/kv"
	"pairsync/internal/token"
)

// seenAgain is how old the record of a session may be before it is written
// again: an app that opens two sockets at once costs one write.
const seenAgain = time.Minute

// seenSession is when a token of an external session was last verified while
// it had not expired, and until when anybody wants to know.
type seenSession struct{ seen, until time.Time }

// sessionKey is a hash, because the names in it are an external issuer's.
func sessionKey(p token.Principal) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", p.Issuer, p.User, p.Lineage())
	return hex.EncodeToString(h.Sum(nil))
}

// SeeSession remembers, for the time keep and over restarts, that p's token was
// verified before it expired. A token without a session or an id cannot be
// remembered.
func (r *Registry) SeeSession(ctx context.Context, p token.Principal, keep time.Duration) error {
	if p.Lineage() == "" || keep <= 0 {
		return nil
	}
	if time.Since(r.SessionSeen(p)) < seenAgain {
		return nil
	}
	if err := r.lock(ctx); err != nil {
		return fmt.Errorf("see session of %q: %w", p.User, err)
	}
	defer r.unlock()
	key, at := sessionKey(p), now()
	s := seenSession{seen: at, until: at.Add(keep)}
	op, err := put(keySession+key, sessionRecord{recordVersion, p.User, s.seen, s.until})
	if err != nil {
		return fmt.Errorf("see session: %w", err)
	}
	old := r.unwanted(at, maxPruned)
	if err := r.store.Apply(context.WithoutCancel(ctx), append(forget(keySession, old), op)...); err != nil {
		return fmt.Errorf("see session of %q: %w", p.User, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range old {
		delete(r.sessions, k)
	}
	r.sessions[key] = s
	return nil
}

// SessionSeen returns when a token of p's session was last verified before it
// expired, or the zero time where that is not known.
func (r *Registry) SessionSeen(p token.Principal) time.Time {
	if p.Lineage() == "" {
		return time.Time{}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.sessions[sessionKey(p)].seen
}

// unwanted returns up to most records that nobody wants any more; the caller
// holds writing, or has the registry alone.
func (r *Registry) unwanted(at time.Time, most int) []string {
	var old []string
	for key, s := range r.sessions {
		if len(old) == most {
			break
		}
		if at.After(s.until) {
			old = append(old, key)
		}
	}
	return old
}

// pruneSessions removes all records that nobody wants any more, as prune does
// with revocations.
func (r *Registry) pruneSessions(ctx context.Context) error {
	for {
		old := r.unwanted(time.Now(), maxPruned)
		if len(old) == 0 {
			return nil
		}
		if err := r.store.Apply(ctx, forget(keySession, old)...); err != nil {
			return err
		}
		for _, key := range old {
			delete(r.sessions, key)
		}
	}
}

// forget returns the removal of the records prefix+name.
func forget(prefix string, names []string) []kv.Op {
	ops := make([]kv.Op, 0, len(names)+1)
	for _, name := range names {
		ops = append(ops, kv.Op{Key: prefix + name, Delete: true})
	}
	return ops
}
