// Package registry keeps who belongs to whom: the users that were seen, the
// pairs they form, the codes that make pairs, their devices, and what was revoked.
//
// Everything is in memory and written through to a kv.Store: a change is on
// disk before anybody can see it, and all of one change or nothing. Reads
// never touch the store. It decides nothing about MQTT or HTTP, and keeps no
// moments; those of a removed pair are the caller's to delete.
//
// # Records
//
//	registry/pair/{id}     a pair, also after its end: ids are never reused
//	registry/device/{id}   a device, also a revoked one
//	registry/code/{user}   a pairing code that may still be used
//	registry/user/{id}     last seen name and e-mail, "tokens before" bound
//	registry/token/{jti}   a revoked token or session (sid), until it has long expired
//	registry/session/{…}   when a session's token was last seen alive
//
// A value is a JSON object with a version "v". A version or a kind of record
// that this program does not know is refused at Open, so that an older
// program never misreads (and rewrites) a newer one's data.
package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"pairsync/internal/kv"
	"pairsync/internal/token"

	"github.com/oklog/ulid/v2"
)

var (
	// ErrPaired is wrapped by CreatePair when one of the two is in a pair
	// already, also when it is the very pair asked for.
	ErrPaired = errors.New("already paired")
	// ErrSameUser is wrapped by CreatePair when both are the same user.
	ErrSameUser = errors.New("a pair needs two different users")
	// ErrNotFound is wrapped when there is no such pair or device, or the
	// pair has ended.
	ErrNotFound = errors.New("not found")
	// ErrTooManyDevices is wrapped by AddDevice at MaxDevicesPerUser.
	ErrTooManyDevices = errors.New("too many devices")
)

// Registry is safe for concurrent use. Its values are copies: nothing that it
// returns changes later.
type Registry struct {
	store kv.Store

	// writing serialises changes from the decision to the last watcher, over
	// the write to the store. A channel and not a mutex: whoever waits for a
	// slow disk can still give up.
	writing chan struct{}

	mu       sync.RWMutex // guards the fields below; written only while writing is held
	pairs    map[string]pairRecord
	pairOf   map[string]string      // user to the pair's id, present pairs only
	codes    map[string]PairingCode // by code, old ones too
	codeOf   map[string]string      // user to code
	entropy  *ulid.MonotonicEntropy // of new ids; used under the write lock
	devices  map[string]Device
	owned    map[string]map[string]bool // ids of devices, by user
	users    map[string]userRecord
	revoked  map[string]time.Time // token id to when the record may go
	sessions map[string]seenSession
	watchers []*watcher
}

// Open loads the registry from store, which it uses alone under "registry/".
// It fails on a record that is damaged or newer than this program.
func Open(ctx context.Context, store kv.Store) (*Registry, error) {
	r := &Registry{
		store:   store,
		writing: make(chan struct{}, 1),
		pairs:   make(map[string]pairRecord),
		pairOf:  make(map[string]string),
		codes:   make(map[string]PairingCode),
		codeOf:  make(map[string]string),
		entropy: ulid.Monotonic(rand.Reader, 0),
		devices: make(map[string]Device),
		owned:   make(map[string]map[string]bool),
		users:   make(map[string]userRecord),
		revoked: make(map[string]time.Time),

		sessions: make(map[string]seenSession),
	}
	if err := store.Scan(ctx, keyRoot, r.load); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	if err := r.prune(ctx); err != nil {
		return nil, fmt.Errorf("open registry: remove old revocations: %w", err)
	}
	if err := r.pruneSessions(ctx); err != nil {
		return nil, fmt.Errorf("open registry: remove old sessions: %w", err)
	}
	return r, nil
}

// commit makes the changes ops, then those that apply makes in memory, then
// tells the watchers. The caller holds writing. The write does not end with
// ctx: a change that was given up half-way would be on disk or not, and
// memory could not follow. When the store fails, memory stays as it was; what
// is on disk then is known at the next Open.
func (r *Registry) commit(ctx context.Context, apply func(), change Change, ops ...kv.Op) error {
	if err := r.store.Apply(context.WithoutCancel(ctx), ops...); err != nil {
		return err
	}
	r.mu.Lock()
	apply()
	watchers := slices.Clone(r.watchers)
	r.mu.Unlock()
	for _, w := range watchers {
		w.tell(change)
	}
	return nil
}

// lock takes the right to change things; unlock gives it back.
func (r *Registry) lock(ctx context.Context) error {
	// An ended ctx always loses, also against a free lock.
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case r.writing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Registry) unlock() { <-r.writing }

// Revoked reports whether p's token may not be used any more: it or its session
// was revoked, or its user's tokens of that age were, or it is a device token of
// ours whose device is revoked, unknown or another user's. It is made for
// token.NewVerifier.
func (r *Registry) Revoked(p token.Principal) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if _, gone := r.revoked[p.ID]; gone {
		return true
	}
	if _, gone := r.revoked[p.Session]; gone {
		return true
	}
	// A token without iat has the zero time and is before everything.
	if u, ok := r.users[p.User]; ok && p.IssuedAt.Before(u.RevokedBefore) {
		return true
	}
	if p.Role != token.RoleDevice || p.External {
		return false
	}
	d, ok := r.devices[p.Device]
	return !ok || d.Revoked || d.User != p.User
}

// newID returns a lower-case ULID: ids of pairs and devices sort by age, also
// those of one millisecond. The write lock is held.
func (r *Registry) newID(now time.Time) (string, error) {
	id, err := ulid.New(ulid.Timestamp(now), r.entropy)
	if err != nil {
		return "", fmt.Errorf("make id: %w", err)
	}
	return strings.ToLower(id.String()), nil
}

// now has the precision of an id's time and of a record, so that a value is
// the same before and after a restart.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
