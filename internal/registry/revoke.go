package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pairsync/internal/moment"
)

const (
	// revocationSlack is how long a token's revocation is kept beyond its
	// expiry: the verifier's leeway, and clocks that were put right.
	revocationSlack = 24 * time.Hour
	// maxPruned bounds the old revocations removed in one write. Each new one
	// takes so many with it, so nothing piles up.
	maxPruned = 64
	// maxTokenIDBytes is the longest jti that the verifier lets through.
	maxTokenIDBytes = 256
)

// RevokeToken refuses the token with that jti from now on, and every token of
// the session with that sid: those that an external issuer made in it, and ours
// that were given for one of them. until is the end
// of its life, after which the record is not needed and is removed some time
// (a day later at the earliest); zero keeps it for good. Where expired tokens
// are let in again for a while, until includes that while. Revoking it again
// can only make the record stay longer.
func (r *Registry) RevokeToken(ctx context.Context, jti string, until time.Time) error {
	if jti == "" || len(jti) > maxTokenIDBytes {
		return fmt.Errorf("revoke token: an id (jti) of %d bytes: 1 to %d are possible", len(jti), maxTokenIDBytes)
	}
	if err := r.lock(ctx); err != nil {
		return fmt.Errorf("revoke token %q: %w", jti, err)
	}
	defer r.unlock()
	if !until.IsZero() {
		until = until.UTC().Truncate(time.Millisecond)
	}
	if had, ok := r.revoked[jti]; ok && (had.IsZero() || !until.IsZero() && !until.After(had)) {
		return nil
	}
	op, err := put(keyToken+jti, tokenRecord{recordVersion, until})
	if err != nil {
		return fmt.Errorf("revoke token: %w", err)
	}
	old := r.outlived(time.Now(), jti)
	err = r.commit(ctx, func() {
		for _, id := range old {
			delete(r.revoked, id)
		}
		r.revoked[jti] = until
	}, Change{Kind: TokenRevoked, TokenID: jti}, append(forget(keyToken, old), op)...)
	if err != nil {
		return fmt.Errorf("revoke token %q: %w", jti, err)
	}
	return nil
}

// outlived returns up to maxPruned revocations of tokens that expired long
// ago, other than except.
func (r *Registry) outlived(now time.Time, except string) []string {
	var old []string
	for id, until := range r.revoked {
		if len(old) == maxPruned {
			break
		}
		if id != except && !until.IsZero() && now.After(until.Add(revocationSlack)) {
			old = append(old, id)
		}
	}
	return old
}

// prune removes all revocations of tokens that expired long ago. Only Open
// may call it: nobody else has the registry yet.
func (r *Registry) prune(ctx context.Context) error {
	for {
		old := r.outlived(time.Now(), "")
		if len(old) == 0 {
			return nil
		}
		if err := r.store.Apply(ctx, forget(keyToken, old)...); err != nil {
			return err
		}
		for _, id := range old {
			delete(r.revoked, id)
		}
	}
}

// RevokeUser refuses every token of user, device tokens too, that was issued
// before the given time, or does not say when it was. Tokens carry whole
// seconds, so one made later in the same second as before is refused as well.
// It never takes an earlier call back.
func (r *Registry) RevokeUser(ctx context.Context, user string, before time.Time) error {
	if err := moment.CheckID("user", user); err != nil {
		return fmt.Errorf("revoke user: %w", err)
	}
	if before.IsZero() {
		return errors.New("revoke user: no time given")
	}
	if err := r.lock(ctx); err != nil {
		return fmt.Errorf("revoke user %q: %w", user, err)
	}
	defer r.unlock()
	u := r.users[user]
	if !before.After(u.RevokedBefore) {
		return nil
	}
	u.ID, u.RevokedBefore = user, before.UTC().Round(0)
	op, err := u.op()
	if err != nil {
		return fmt.Errorf("revoke user: %w", err)
	}
	err = r.commit(ctx, func() { r.users[user] = u }, Change{Kind: UserRevoked, User: user}, op)
	if err != nil {
		return fmt.Errorf("revoke user %q: %w", user, err)
	}
	return nil
}
