package badgerledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"pairsync/internal/badgerdb"
	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// defaultReadEntries is what a Limit without Entries means.
const defaultReadEntries = 64

// Read implements ledger.Ledger.
func (l *Ledger) Read(ctx context.Context, log ledger.LogID, after ledger.Seq, limit ledger.Limit) (ledger.Batch, error) {
	batch := ledger.Batch{Through: after}
	if err := l.usable(ctx, log); err != nil {
		return batch, err
	}
	if limit.Entries <= 0 {
		limit.Entries = defaultReadEntries
	}
	err := l.db.View(func(tx *badgerdb.Tx) error {
		s, err := readState(tx, log)
		if err != nil || s.deleted || after >= s.head {
			return err
		}
		r := reading{l: l, ctx: ctx, tx: tx, log: log, limit: limit, batch: &batch}
		from := seqKey(recHeader, log, max(after+1, s.low))
		if err := tx.Scan(logPrefix(recHeader, log), from, false, r.entry); err != nil {
			return err
		}
		if !r.full {
			batch.Through = s.head // nothing else will ever appear below
		}
		return nil
	})
	if err != nil {
		return ledger.Batch{Through: after}, fmt.Errorf("read log %q after %d: %w", string(log), after, failure(err))
	}
	return batch, nil
}

// reading is one Read while it goes through the headers.
type reading struct {
	l     *Ledger
	ctx   context.Context
	tx    *badgerdb.Tx
	log   ledger.LogID
	limit ledger.Limit
	batch *ledger.Batch
	bytes int
	full  bool
}

// entry takes one header, and its payload if it is wanted.
func (r *reading) entry(key []byte, value func() ([]byte, error)) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	e, hash := r.l.header(r.log, key, value)
	if !e.Damaged {
		if r.limit.Want != nil && !r.limit.Want(&e) {
			return nil
		}
		if !r.limit.HeadersOnly {
			r.l.payload(r.tx, r.log, &e, hash)
			r.bytes += len(e.Payload)
		}
	}
	r.batch.Entries = append(r.batch.Entries, e)
	r.batch.Through = e.Seq
	if len(r.batch.Entries) >= r.limit.Entries || r.limit.Bytes > 0 && r.bytes >= r.limit.Bytes {
		r.full = true
		return badgerdb.ErrStop
	}
	return nil
}

// header returns the entry of a header record without its payload, and the
// payload's hash.
func (l *Ledger) header(log ledger.LogID, key []byte, value func() ([]byte, error)) (ledger.Entry, uint64) {
	e := ledger.Entry{Seq: seqOf(key)}
	v, err := value()
	var h header
	if err == nil {
		h, err = decodeHeader(log, key, v)
	}
	if err != nil {
		e.Damaged = true
		l.report(log, e.Seq, err)
		return e, 0
	}
	e.Moment, e.Size = h.m, h.size
	return e, h.hash
}

// payload fills in e's payload, or marks e as damaged.
func (l *Ledger) payload(tx *badgerdb.Tx, log ledger.LogID, e *ledger.Entry, hash uint64) {
	if e.Size == 0 {
		return
	}
	p, err := tx.Get(seqKey(recPayload, log, e.Seq))
	if err == nil && (len(p) != e.Size || xxhash.Sum64(p) != hash) {
		err = fmt.Errorf("payload of %d bytes does not match its header (%d bytes)", len(p), e.Size)
	}
	if err != nil {
		e.Damaged = true
		l.report(log, e.Seq, err)
		return
	}
	e.Payload = p
}

// maxReported bounds what is remembered of damage; beyond it, entries are
// counted and logged again each time.
const maxReported = 10_000

// report counts and logs a damaged entry, once.
func (l *Ledger) report(log ledger.LogID, seq ledger.Seq, err error) {
	l.reportMu.Lock()
	defer l.reportMu.Unlock()
	p := place{log, seq}
	if _, ok := l.reported[p]; ok {
		return
	}
	if len(l.reported) < maxReported {
		l.reported[p] = struct{}{}
	}
	l.damaged.Add(1)
	l.log.Error("damaged entry", "log", string(log), "seq", uint64(seq), "err", err)
}

// one returns the entry at seq with its payload, or ErrNotFound.
func (l *Ledger) one(tx *badgerdb.Tx, log ledger.LogID, seq ledger.Seq) (ledger.Entry, error) {
	key := seqKey(recHeader, log, seq)
	v, err := tx.Get(key)
	if errors.Is(err, kv.ErrNotFound) {
		return ledger.Entry{}, ledger.ErrNotFound
	}
	e, hash := l.header(log, key, func() ([]byte, error) { return v, err })
	if !e.Damaged {
		l.payload(tx, log, &e, hash)
	}
	return e, nil
}

// Latest implements ledger.Ledger. A damaged newest photo is returned as such.
func (l *Ledger) Latest(ctx context.Context, log ledger.LogID, user string) (e ledger.Entry, err error) {
	if err := l.usable(ctx, log); err != nil {
		return ledger.Entry{}, err
	}
	err = l.db.View(func(tx *badgerdb.Tx) error {
		s, err := readState(tx, log)
		if err != nil {
			return err
		}
		seq, ok := s.newest[user]
		if !ok || s.deleted {
			return ledger.ErrNotFound
		}
		e, err = l.one(tx, log, seq)
		return err
	})
	if err != nil {
		return ledger.Entry{}, fmt.Errorf("newest photo of %q in log %q: %w", user, string(log), failure(err))
	}
	return e, nil
}

// Lookup implements ledger.Ledger.
func (l *Ledger) Lookup(ctx context.Context, log ledger.LogID, key moment.Key) (e ledger.Entry, err error) {
	if err := l.usable(ctx, log); err != nil {
		return ledger.Entry{}, err
	}
	err = l.db.View(func(tx *badgerdb.Tx) error {
		seq, err := lookup(tx, log, key)
		if err == nil {
			e, err = l.one(tx, log, seq)
		}
		return err
	})
	if err != nil {
		return ledger.Entry{}, fmt.Errorf("moment %s in log %q: %w", key, string(log), failure(err))
	}
	return e, nil
}

// lookup returns the seq of an identity in a log that is not deleted, or
// ErrNotFound.
func lookup(tx *badgerdb.Tx, log ledger.LogID, key moment.Key) (ledger.Seq, error) {
	s, err := readState(tx, log)
	if err != nil {
		return 0, err
	}
	seq, err := getSeq(tx, identityKey(recIdentity, log, key.User, key.Kind, key.ID))
	if err == nil && (seq == 0 || s.deleted) {
		err = ledger.ErrNotFound
	}
	return seq, err
}

// Tail implements ledger.Ledger.
func (l *Ledger) Tail(ctx context.Context, log ledger.LogID, n int) (at ledger.Seq, err error) {
	if err := l.usable(ctx, log); err != nil {
		return 0, err
	}
	err = l.db.View(func(tx *badgerdb.Tx) error {
		s, err := readState(tx, log)
		if err != nil || s.deleted {
			return err
		}
		at = s.head
		if n <= 0 {
			return nil
		}
		at = 0
		return tx.Scan(logPrefix(recHeader, log), nil, true, func(key []byte, _ func() ([]byte, error)) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			at = seqOf(key) - 1
			if n--; n == 0 {
				return badgerdb.ErrStop
			}
			return nil
		})
	})
	return at, failure(err)
}

// Stat implements ledger.Ledger.
func (l *Ledger) Stat(ctx context.Context, log ledger.LogID) (st ledger.Stat, err error) {
	if err := l.usable(ctx, log); err != nil {
		return st, err
	}
	err = l.db.View(func(tx *badgerdb.Tx) error {
		s, err := readState(tx, log)
		if err == nil {
			st = ledger.Stat{Entries: s.entries, Bytes: s.bytes, Head: s.head}
		}
		return err
	})
	return st, failure(err)
}

// Logs implements ledger.Ledger.
func (l *Ledger) Logs(ctx context.Context) ([]ledger.LogID, error) {
	if err := errors.Join(ctx.Err(), failure(l.db.Healthy())); err != nil {
		return nil, err
	}
	found := make(map[ledger.LogID]struct{})
	err := l.db.View(func(tx *badgerdb.Tx) error {
		err := tx.Scan([]byte{'l', recLog}, nil, false, func(key []byte, value func() ([]byte, error)) error {
			v, err := value()
			if err != nil {
				return err
			}
			s, err := decodeState(v)
			if err == nil && !s.deleted && s.all() > 0 {
				found[ledger.LogID(key[2:])] = struct{}{}
			}
			return err
		})
		if err != nil {
			return err
		}
		return tx.Scan([]byte{'l', recCursor}, nil, false, func(key []byte, _ func() ([]byte, error)) error {
			if log, _, ok := cutZero(key[2:]); ok {
				found[ledger.LogID(log)] = struct{}{}
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", failure(err))
	}
	logs := make([]ledger.LogID, 0, len(found))
	for log := range found {
		logs = append(logs, log)
	}
	return logs, nil
}

// firstHeader returns the seq of the first header at or after from, or 0.
func firstHeader(tx *badgerdb.Tx, log ledger.LogID, from ledger.Seq) (first ledger.Seq, err error) {
	key := binary.BigEndian.AppendUint64(logPrefix(recHeader, log), uint64(from))
	err = tx.Scan(logPrefix(recHeader, log), key, false, func(key []byte, _ func() ([]byte, error)) error {
		first = seqOf(key)
		return badgerdb.ErrStop
	})
	return first, err
}
