// Package ledger is the durable, ordered record of what pairs share: one
// ordered log per pair and one per user for pairing events, and a cursor per
// (session, log) that says how far each durable session has come.
//
// The package holds the interface, its promises and what is common to every
// implementation. internal/ledger/badgerledger is the embedded one;
// internal/ledger/ledgertest is the suite that every one passes. It is not a
// queue per subscriber: an offline session costs a cursor, nothing else.
//
// # Promises
//
//   - A moment is on disk (fsync) when its Result arrives without error.
//   - The same Key in the same log is stored once; the first bytes win, and a
//     repeat gets the first Seq and Duplicate, also long after the moment was
//     trimmed (IdentityLife).
//   - Seq strictly increases in commit order per log, is opaque, and may have
//     holes. Read never skips a committed entry below one that it returned.
//   - A lost Advance only redelivers.
//   - Nothing is appended to a deleted log, ever again.
package ledger

import (
	"context"
	"errors"
	"strings"
	"time"

	"pairsync/internal/moment"
)

// LogID names one ordered log: "pair:<id>", "user:<id>" or "later:<id>".
type LogID string

// PairLog returns the log of a pair's moments.
func PairLog(pair string) LogID { return LogID("pair:" + pair) }

// UserLog returns the log of a user's pairing events.
func UserLog(user string) LogID { return LogID("user:" + user) }

// LaterLog returns the log of the moments that are to go to a pair's log later.
// The two share one quota, and a moment that waits here has its room there:
// appending it to the pair's log is never refused with ErrQuota.
func LaterLog(pair string) LogID { return LogID("later:" + pair) }

// LogOf returns the log that m belongs to.
func LogOf(m *moment.Moment) LogID {
	if m.Kind == moment.Event {
		return UserLog(m.User)
	}
	return PairLog(m.Pair)
}

// Pair returns the pair's id when l is a pair's log, else "".
func (l LogID) Pair() (id string, ok bool) { return l.cut("pair:") }

// User returns the user's id when l is a user's log, else "".
func (l LogID) User() (id string, ok bool) { return l.cut("user:") }

// Later returns the pair's id when l is the log of what comes later, else "".
func (l LogID) Later() (pair string, ok bool) { return l.cut("later:") }

func (l LogID) cut(prefix string) (id string, ok bool) {
	if id, ok = strings.CutPrefix(string(l), prefix); !ok {
		return "", false
	}
	return id, true
}

// Seq is a place in one log. Zero is before its first entry.
type Seq uint64

// IdentityLife is how long a moment's identity outlives it, so that a repeat
// of an old publish is still known for one (contract, section 2).
const IdentityLife = 90 * 24 * time.Hour

var (
	// ErrNotFound says that there is no such entry, cursor or identity. It
	// does not mean that the log does not exist: a log nobody wrote to is
	// empty, not absent.
	ErrNotFound = errors.New("not in the ledger")
	// ErrDeleted says that the log was deleted; permanent.
	ErrDeleted = errors.New("log deleted")
	// ErrQuota says that the log has reached its quota; permanent until
	// something is trimmed. Nothing was stored.
	ErrQuota = errors.New("quota of the log reached")
	// ErrFull says that the disk has too little room; retryable. Nothing was
	// stored, reads go on.
	ErrFull = errors.New("storage full")
	// ErrUnhealthy says that the storage reported a fault (a failed fsync, a
	// closed store) and acknowledges nothing any more until it is reopened.
	ErrUnhealthy = errors.New("storage unhealthy")
	// ErrTooLarge says that the moment does not fit the store; permanent.
	ErrTooLarge = errors.New("moment too large for the store")
)

// Entry is one stored moment. The receiver owns it, payload included.
type Entry struct {
	Seq Seq
	// Size is the payload's length, also where the payload was not read.
	Size int
	// Damaged is set when what is on disk does not match its length or hash:
	// the header may be incomplete and the payload is nil. The implementation
	// has counted and logged it; a reader skips it.
	Damaged bool
	moment.Moment
}

// Limit bounds one Read.
type Limit struct {
	Entries int // at most so many entries; 0 means 64
	// Bytes stops a Read after the payload that reaches it, so at least one
	// wanted entry is returned however large it is; 0 means no bound.
	Bytes int
	// HeadersOnly leaves every Payload nil and reads none from disk.
	HeadersOnly bool
	// Want, when set, sees each entry's header (Payload nil) and says whether
	// to return it. Entries it declines are passed over without reading their
	// payload, and without counting against Entries. It must not block and
	// must not keep its argument.
	Want func(*Entry) bool
}

// Batch is what a Read found: the entries, in order, and the place up to which
// the log was looked through (at least the last entry's Seq; more where Want
// declined what follows). Reading on from Through skips nothing.
type Batch struct {
	Entries []Entry
	Through Seq
}

// Result is the outcome of a Submit.
type Result struct {
	Seq       Seq
	Duplicate bool
	Err       error
}

// Retention says what Trim may remove. An entry is removed when it is at or
// below UpTo and not kept (KeepPhotos newest photos of the log, and each
// user's newest photo), or stored before Before, or a receipt stored before
// ReceiptsBefore.
type Retention struct {
	UpTo           Seq
	KeepPhotos     int
	Before         time.Time // zero: no age limit
	ReceiptsBefore time.Time
}

// Trimmed counts what a Trim removed. Undelivered counts those of the removed
// entries that were above UpTo: some session never got them.
type Trimmed struct {
	Entries, Undelivered int
	Bytes                int64
}

// Stat is the size of one log. Entries and Bytes do not count receipts and
// deletes, as quotas do not.
type Stat struct {
	Entries int
	Bytes   int64
	Head    Seq // the newest entry ever committed, 0 when none was
}

// Ledger is the durable record. It is safe for concurrent use. Every method
// returns ErrUnhealthy (wrapped) once the store has failed.
type Ledger interface {
	// Submit queues m for log and returns; it blocks while the bounded queue
	// is full, and fails only when ctx ends or the store is closed first. done
	// is called exactly once for each nil return, after m is on disk or
	// refused, in the order of Submit calls, on a goroutine that must not be
	// blocked. StoredAt is set by the ledger. m.Payload must stay unmodified
	// until done.
	Submit(ctx context.Context, log LogID, m moment.Moment, done func(Result)) error
	// Read returns what follows after, within limit. An unknown or deleted
	// log is empty.
	Read(ctx context.Context, log LogID, after Seq, limit Limit) (Batch, error)
	// Latest returns user's newest photo, payload included, or ErrNotFound.
	Latest(ctx context.Context, log LogID, user string) (Entry, error)
	// Lookup returns the stored moment of that identity, payload included, or
	// ErrNotFound; also when only the identity is left.
	Lookup(ctx context.Context, log LogID, key moment.Key) (Entry, error)
	// Tail returns the place after which the log's last n entries follow.
	Tail(ctx context.Context, log LogID, n int) (Seq, error)
	Stat(ctx context.Context, log LogID) (Stat, error)
	// Logs returns every log that has entries or cursors, in no order.
	Logs(ctx context.Context) ([]LogID, error)
	// Watch calls wake after entries may have been appended to log, from any
	// goroutine, coalesced; it is a hint, and the reader re-reads from its
	// place. wake must not block. stop ends it.
	Watch(log LogID, wake func()) (stop func())

	// SetCursor creates or moves a cursor, durable at return.
	SetCursor(ctx context.Context, session string, log LogID, at Seq) error
	// Cursor returns a session's place in log, or ErrNotFound.
	Cursor(ctx context.Context, session string, log LogID) (Seq, error)
	// Cursors returns the places of all sessions that follow log.
	Cursors(ctx context.Context, log LogID) (map[string]Seq, error)
	// Advance moves an existing cursor forward; a lower place than the
	// present one, or a cursor that is gone, is ignored. It is batched, and
	// visible to Cursor at once; a crash may lose it.
	Advance(ctx context.Context, session string, log LogID, to Seq) error
	// DropCursor removes a session's cursor from log; no error if it is gone.
	DropCursor(ctx context.Context, session string, log LogID) error

	// Trim removes what r allows. Identities stay for IdentityLife.
	Trim(ctx context.Context, log LogID, r Retention) (Trimmed, error)
	// Remove takes one moment out, payload and header, off the disk too in a
	// bounded time; its identity stays.
	// ErrNotFound when it is not there.
	Remove(ctx context.Context, log LogID, key moment.Key) error
	// Delete removes the log with its entries, identities and cursors, off the
	// disk too in a bounded time, and
	// refuses later appends with ErrDeleted. Pair ids are never used again.
	Delete(ctx context.Context, log LogID) error
}

// Append is Submit for a caller that waits: it returns when m is on disk, or
// the reason why nothing was stored. When ctx ends first the outcome is
// unknown; appending again is safe, because appends are idempotent.
func Append(ctx context.Context, l Ledger, log LogID, m moment.Moment) (seq Seq, duplicate bool, err error) {
	done := make(chan Result, 1)
	if err := l.Submit(ctx, log, m, func(r Result) { done <- r }); err != nil {
		return 0, false, err
	}
	select {
	case r := <-done:
		return r.Seq, r.Duplicate, r.Err
	case <-ctx.Done():
		return 0, false, ctx.Err()
	}
}
