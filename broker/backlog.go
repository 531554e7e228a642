package broker

import (
	"context"
	"time"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// AppBacklog is what waits for a user's app.
type AppBacklog struct {
	Online bool      // an app session is connected
	Since  time.Time // since when it is, or is not
	// Photos, Notes and Reactions count what no app session of the user has
	// acknowledged.
	Photos, Notes, Reactions int
	// After is the place behind which was counted, Through the last moment
	// that was; equal where nothing waits.
	After, Through ledger.Seq
}

// AppBacklog counts the moments behind after in the log of user's pair that no
// app session of theirs has acknowledged. Of several phones the one that is
// furthest counts: what one of them has, its owner has seen.
func (b *Broker) AppBacklog(ctx context.Context, user string, after ledger.Seq) (AppBacklog, error) {
	pair, ok := b.deps.Registry.PairOf(user)
	if !ok {
		return AppBacklog{After: after, Through: after}, nil
	}
	log := ledger.PairLog(pair.ID)
	out := AppBacklog{Since: b.started}
	var best *session
	b.mu.RLock()
	if u := b.users[user]; u != nil {
		out.Online = u.online
		if !u.since.IsZero() {
			out.Since = u.since
		}
		for _, s := range u.sessions {
			if !isAppName(s.name) {
				continue
			}
			s.mu.Lock()
			if fl := s.follows[log]; fl != nil && (best == nil || fl.cursor > after) {
				best, after = s, max(after, fl.cursor)
			}
			s.mu.Unlock()
		}
	}
	b.mu.RUnlock()
	out.After, out.Through = after, after
	if best == nil {
		return out, nil
	}
	now := time.Now()
	want := func(e *ledger.Entry) bool {
		switch e.Kind {
		case moment.Photo, moment.Note, moment.Reaction:
		default:
			return false
		}
		best.mu.Lock()
		defer best.mu.Unlock()
		_, _, ok := best.want(log, e, now)
		return ok
	}
	for {
		got, err := b.deps.Ledger.Read(ctx, log, after, ledger.Limit{Entries: 256, HeadersOnly: true, Want: want})
		if err != nil {
			return out, err
		}
		for i := range got.Entries {
			out.Through = got.Entries[i].Seq
			switch got.Entries[i].Kind {
			case moment.Photo:
				out.Photos++
			case moment.Note:
				out.Notes++
			default:
				out.Reactions++
			}
		}
		if got.Through <= after {
			return out, nil
		}
		after = got.Through
	}
}
