package registry

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"pairsync/internal/kv"
	"pairsync/internal/moment"
)

// Pair is two users who share moments.
type Pair struct {
	ID      string
	Users   [2]string // as they were given to CreatePair
	Created time.Time // UTC, whole milliseconds
	ByCode  bool      // Users[1] joined with a code of Users[0]
}

// Partner returns the other user of the pair; ok is false when user is not
// one of the two.
func (p Pair) Partner(user string) (partner string, ok bool) {
	switch user {
	case "":
		return "", false
	case p.Users[0]:
		return p.Users[1], true
	case p.Users[1]:
		return p.Users[0], true
	}
	return "", false
}

// CreatePair makes users a and b a pair, with an id that no pair had before.
// It fails with ErrSameUser, or with ErrPaired when one of them is in a pair;
// the error names who. Neither needs to have been seen.
func (r *Registry) CreatePair(ctx context.Context, a, b string) (Pair, error) {
	for _, u := range []string{a, b} {
		if err := moment.CheckID("user", u); err != nil {
			return Pair{}, fmt.Errorf("create pair: %w", err)
		}
	}
	if a == b {
		return Pair{}, fmt.Errorf("create pair of %q: %w", a, ErrSameUser)
	}
	if err := r.lock(ctx); err != nil {
		return Pair{}, fmt.Errorf("create pair: %w", err)
	}
	defer r.unlock()
	for _, u := range []string{a, b} {
		if p, ok := r.PairOf(u); ok {
			return Pair{}, fmt.Errorf("create pair: user %q is in pair %q: %w", u, p.ID, ErrPaired)
		}
	}
	p, err := r.makePair(ctx, a, b, false)
	if err != nil {
		return Pair{}, fmt.Errorf("create pair: %w", err)
	}
	return p, nil
}

// makePair makes two users who may be one a pair; with byCode the code of a
// is used up. The write lock is held.
func (r *Registry) makePair(ctx context.Context, a, b string, byCode bool) (Pair, error) {
	rec := pairRecord{Users: [2]string{a, b}, Created: now(), ByCode: byCode}
	var err error
	if rec.ID, err = r.newID(rec.Created); err != nil {
		return Pair{}, err
	}
	if _, used := r.pairs[rec.ID]; used {
		return Pair{}, fmt.Errorf("id %q was used before: the random source repeats itself", rec.ID)
	}
	op, err := rec.op()
	if err != nil {
		return Pair{}, err
	}
	var ops []kv.Op
	endCodes := func() {}
	if byCode {
		ops, endCodes = r.endCodes(a)
	}
	err = r.commit(ctx, func() {
		r.pairs[rec.ID] = rec
		r.pairOf[a], r.pairOf[b] = rec.ID, rec.ID
		endCodes()
	}, Change{Kind: PairCreated, Pair: rec.pair()}, append(ops, op)...)
	return rec.pair(), err
}

// RemovePair ends a pair and returns what it was, or ErrNotFound. Its users
// may pair again at once; the new pair has another id.
func (r *Registry) RemovePair(ctx context.Context, id string) (Pair, error) {
	if err := r.lock(ctx); err != nil {
		return Pair{}, fmt.Errorf("remove pair %q: %w", id, err)
	}
	defer r.unlock()
	rec, ok := r.pairs[id]
	if !ok || !rec.Removed.IsZero() {
		return Pair{}, fmt.Errorf("remove pair %q: %w", id, ErrNotFound)
	}
	rec.Removed = now()
	op, err := rec.op()
	if err != nil {
		return Pair{}, fmt.Errorf("remove pair: %w", err)
	}
	ops, endCodes := r.endCodes(rec.Users[:]...)
	err = r.commit(ctx, func() {
		endCodes()
		r.pairs[id] = rec
		for _, u := range rec.Users {
			delete(r.pairOf, u)
		}
	}, Change{Kind: PairRemoved, Pair: rec.pair()}, append(ops, op)...)
	if err != nil {
		return Pair{}, fmt.Errorf("remove pair %q: %w", id, err)
	}
	return rec.pair(), nil
}

// Pair returns a present pair by its id.
func (r *Registry) Pair(id string) (Pair, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	rec, ok := r.pairs[id]
	if !ok || !rec.Removed.IsZero() {
		return Pair{}, false
	}
	return rec.pair(), true
}

// PairOf returns the pair that user is in at present. The user's devices act
// in the same pair.
func (r *Registry) PairOf(user string) (Pair, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	id, ok := r.pairOf[user]
	if !ok {
		return Pair{}, false
	}
	return r.pairs[id].pair(), true
}

// Pairs returns the present pairs, oldest first.
func (r *Registry) Pairs() []Pair { return r.list(false) }

// RemovedPairs returns the pairs that have ended, oldest first. A pair's end
// and the deletion of its moments are two writes; after a crash between them
// this tells whose deletion to finish.
func (r *Registry) RemovedPairs() []Pair { return r.list(true) }

func (r *Registry) list(removed bool) []Pair {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []Pair
	for _, rec := range r.pairs {
		if rec.Removed.IsZero() != removed {
			out = append(out, rec.pair())
		}
	}
	slices.SortFunc(out, func(a, b Pair) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return out
}
