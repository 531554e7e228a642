// Package badgerledger is the embedded ledger.Ledger, over badgerdb. keys.go
// holds the layout on disk.
//
// All changes go through badgerdb's one writer goroutine, which also assigns
// the seqs; reads take consistent views beside it. In memory are only the
// cursors of logs that were used, never entries: memory does not grow with
// the backlog.
package badgerledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// Config holds each log's quotas. Zero values take the defaults; receipts and
// deletes never count (contract, section 2).
type Config struct {
	MaxEntries int
	MaxBytes   int64
}

// The quotas of a log that Config does not set.
const (
	DefaultMaxEntries = 10_000
	DefaultMaxBytes   = 5 << 30
)

// Ledger implements ledger.Ledger. It has no goroutine and needs no Close:
// closing the store writes the cursors that are still in memory.
type Ledger struct {
	db  *badgerdb.DB
	cfg Config
	log *slog.Logger

	cursors  cursors
	watchers watchers

	damaged  atomic.Int64
	reportMu sync.Mutex
	reported map[place]struct{} // damaged entries that were logged, at most maxReported
}

var _ ledger.Ledger = (*Ledger)(nil)

type place struct {
	log ledger.LogID
	seq ledger.Seq
}

// New returns the ledger in db, which must outlive it. It finishes deletions
// that a crash interrupted, and fails when the layout is from a newer version.
func New(db *badgerdb.DB, cfg Config, log *slog.Logger) (*Ledger, error) {
	if cfg.MaxEntries < 0 || cfg.MaxBytes < 0 {
		return nil, fmt.Errorf("ledger quotas of %d entries and %d bytes: must not be negative", cfg.MaxEntries, cfg.MaxBytes)
	}
	if cfg.MaxEntries == 0 {
		cfg.MaxEntries = DefaultMaxEntries
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	l := &Ledger{db: db, cfg: cfg, log: log, reported: make(map[place]struct{})}
	l.cursors.init(db)
	l.watchers.init()
	if err := l.checkLayout(); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	if err := l.finishDeletes(); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return l, nil
}

func (l *Ledger) checkLayout() error {
	var version uint32
	err := l.db.View(func(tx *badgerdb.Tx) error {
		v, err := tx.Get(versionKey)
		if err != nil {
			return err
		}
		if len(v) != 4 {
			return fmt.Errorf("layout version of %d bytes, want 4", len(v))
		}
		version = binary.BigEndian.Uint32(v)
		return nil
	})
	if errors.Is(err, kv.ErrNotFound) {
		v := binary.BigEndian.AppendUint32(nil, layoutVersion)
		return l.db.Update(context.Background(), len(v), func(tx *badgerdb.Tx) error { return tx.Set(versionKey, v) })
	}
	if err != nil {
		return err
	}
	if version > layoutVersion {
		return fmt.Errorf("layout version %d, this program knows %d; use a newer pairsync", version, layoutVersion)
	}
	return nil
}

// Submit implements ledger.Ledger.
func (l *Ledger) Submit(ctx context.Context, log ledger.LogID, m moment.Moment, done func(ledger.Result)) error {
	if err := l.checkMoment(log, &m); err != nil {
		return err
	}
	a := &appending{l: l, log: log, m: m, h: newHeader(&m)}
	// What goes wrong with the payload is told in its turn.
	a.staged, a.stageErr = l.db.Stage(m.Payload)
	err := l.db.Submit(ctx, a.cost(), a.run, func(err error) {
		if err != nil {
			a.result = ledger.Result{Err: failure(err)}
		} else if !a.result.Duplicate {
			l.watchers.wake(log)
		}
		if !a.kept {
			l.db.Unstage(a.staged)
		}
		done(a.result)
	})
	if err != nil {
		l.db.Unstage(a.staged)
	}
	return failure(err)
}

func (l *Ledger) checkMoment(log ledger.LogID, m *moment.Moment) error {
	if err := checkLog(log); err != nil {
		return err
	}
	if err := m.Validate(); err != nil {
		return err
	}
	if own := ledger.LogOf(m); own != log && log != ledger.LaterLog(m.Pair) {
		return fmt.Errorf("moment %s of log %q: cannot go to log %q", m.Key(), string(own), string(log))
	}
	if len(m.MessageID) > maxTextBytes {
		return fmt.Errorf("message id of %d bytes (at most %d): %w", len(m.MessageID), maxTextBytes, ledger.ErrTooLarge)
	}
	if len(m.Payload) > l.db.MaxValue() {
		return fmt.Errorf("payload of %d bytes (at most %d): %w", len(m.Payload), l.db.MaxValue(), ledger.ErrTooLarge)
	}
	return nil
}

// appending is one Submit on its way through the writer.
type appending struct {
	l      *Ledger
	log    ledger.LogID
	m      moment.Moment
	h      header
	result ledger.Result

	staged   *badgerdb.Staged // the payload, if it is large
	stageErr error
	kept     bool // the transaction has it
}

func (a *appending) cost() int { return len(a.m.Payload) + len(a.m.Caption) + 512 }

// run appends, on the writer goroutine.
func (a *appending) run(tx *badgerdb.Tx) error {
	if a.stageErr != nil {
		return a.stageErr
	}
	s, err := readState(tx, a.log)
	if err != nil {
		return err
	}
	if s.deleted {
		return ledger.ErrDeleted
	}
	seq, err := a.known(tx)
	if err != nil {
		return err
	}
	if seq != 0 && !a.l.lost(tx, a.log, seq) {
		a.result = ledger.Result{Seq: seq, Duplicate: true}
		return nil
	}
	if seq != 0 { // it takes the place of what was lost
		if _, err := a.l.removeOne(tx, a.log, s, seq); err != nil {
			return err
		}
	}
	if err := a.checkQuota(tx, s); err != nil {
		return fmt.Errorf("log %q: %w", string(a.log), err)
	}
	seq = s.head + 1
	s.add(seq, &a.h)
	a.h.m.StoredAt = time.Now()
	key := seqKey(recHeader, a.log, seq)
	value, err := a.h.encode(key)
	if err != nil {
		return err
	}
	a.result = ledger.Result{Seq: seq}
	place := seqValue(seq)
	err = errors.Join(
		tx.Set(key, value),
		tx.Set(identityKey(recIdentity, a.log, a.m.User, a.m.Kind, a.m.ID), place),
		tx.Set(logKey(recLog, a.log), s.encode()))
	switch payload := seqKey(recPayload, a.log, seq); {
	case a.staged != nil:
		err = errors.Join(err, tx.SetStaged(payload, a.staged))
	case len(a.m.Payload) > 0:
		err = errors.Join(err, tx.Set(payload, a.m.Payload))
	}
	if a.m.MessageID != "" {
		err = errors.Join(err, tx.Set(identityKey(recMessage, a.log, a.m.User, a.m.Kind, a.m.MessageID), place))
	}
	a.kept = err == nil
	return err
}

// known returns the seq of the moment with the same identity or message id, or
// 0.
func (a *appending) known(tx *badgerdb.Tx) (ledger.Seq, error) {
	seq, err := getSeq(tx, identityKey(recIdentity, a.log, a.m.User, a.m.Kind, a.m.ID))
	if err != nil || seq != 0 || a.m.MessageID == "" {
		return seq, err
	}
	return getSeq(tx, identityKey(recMessage, a.log, a.m.User, a.m.Kind, a.m.MessageID))
}

// lost reports whether the entry at seq is there but cannot be read: after a
// failed fsync its header may be on disk and its payload not. To call a repeat
// of it a duplicate would acknowledge what is lost.
func (l *Ledger) lost(tx *badgerdb.Tx, log ledger.LogID, seq ledger.Seq) bool {
	e, err := l.one(tx, log, seq)
	return err == nil && e.Damaged
}

// getSeq returns the seq stored under key, or 0.
func getSeq(tx *badgerdb.Tx, key []byte) (ledger.Seq, error) {
	v, err := tx.Get(key)
	if errors.Is(err, kv.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return seqOfValue(v)
}

// checkQuota refuses what would exceed the quota, which a pair's log and what
// is to go there later share. Taking something back must work in a full log, and
// make room in it at once: deletes have a quota of their own, of as many.
func (a *appending) checkQuota(tx *badgerdb.Tx, s *state) error {
	switch a.m.Kind {
	case moment.Receipt:
		return nil
	case moment.Delete:
		if s.deletes >= a.l.cfg.MaxEntries {
			return fmt.Errorf("%d deletes: %w", s.deletes, ledger.ErrQuota)
		}
		return nil
	}
	used, bytes, err := a.reserved(tx)
	if err != nil || used < 0 {
		return err
	}
	used, bytes = used+s.entries, bytes+s.bytes
	if used >= a.l.cfg.MaxEntries || bytes+int64(a.h.size) > a.l.cfg.MaxBytes && a.h.size > 0 {
		return fmt.Errorf("%d entries of %d bytes: %w", used, bytes, ledger.ErrQuota)
	}
	return nil
}

// reserved returns what the log that shares the quota has; -1 entries say that
// the moment waited there and so has its room already.
func (a *appending) reserved(tx *badgerdb.Tx) (entries int, bytes int64, err error) {
	other := ledger.LaterLog(a.m.Pair)
	switch a.log {
	case ledger.UserLog(a.m.User):
		return 0, 0, nil
	case other:
		other = ledger.PairLog(a.m.Pair)
	}
	s, err := readState(tx, other)
	if err != nil {
		return 0, 0, err
	}
	if _, waits := other.Later(); waits && s.entries > 0 {
		seq, err := getSeq(tx, identityKey(recIdentity, other, a.m.User, a.m.Kind, a.m.ID))
		if err != nil {
			return 0, 0, err
		}
		if seq != 0 {
			_, err := tx.Get(seqKey(recHeader, other, seq)) // identities outlive their moments
			if err == nil {
				return -1, 0, nil
			}
			if !errors.Is(err, kv.ErrNotFound) {
				return 0, 0, err
			}
		}
	}
	return s.entries, s.bytes, nil
}

// Watch implements ledger.Ledger.
func (l *Ledger) Watch(log ledger.LogID, wake func()) (stop func()) {
	return l.watchers.add(log, wake)
}

// Damaged returns how many damaged entries were met since New, each counted
// once.
func (l *Ledger) Damaged() int64 { return l.damaged.Load() }

// failure translates the store's errors into the ledger's.
func failure(err error) error {
	for _, t := range []struct{ from, to error }{
		{badgerdb.ErrFull, ledger.ErrFull},
		{badgerdb.ErrTooLarge, ledger.ErrTooLarge},
		{badgerdb.ErrUnhealthy, ledger.ErrUnhealthy},
		{badgerdb.ErrClosed, ledger.ErrUnhealthy},
	} {
		if errors.Is(err, t.from) {
			return fmt.Errorf("%w: %w", t.to, err)
		}
	}
	return err
}
