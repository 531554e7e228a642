package badgerledger

import (
	"context"
	"errors"
	"fmt"

	"pairsync/internal/badgerdb"
	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// stepEntries is how many entries one transaction removes, at four writes
// each: what a device's memtable can take (409), and a short hold-up for
// appends that wait behind.
const stepEntries = 64

// Trim implements ledger.Ledger.
func (l *Ledger) Trim(ctx context.Context, log ledger.LogID, r ledger.Retention) (ledger.Trimmed, error) {
	var sum ledger.Trimmed
	if err := l.usable(ctx, log); err != nil {
		return sum, err
	}
	var victims []ledger.Seq
	err := l.db.View(func(tx *badgerdb.Tx) (err error) {
		victims, err = l.victims(ctx, tx, log, r)
		return err
	})
	for len(victims) > 0 && err == nil {
		step := victims[:min(stepEntries, len(victims))]
		victims = victims[len(step):]
		var t ledger.Trimmed
		t, err = l.removeStep(ctx, log, step, r.UpTo)
		sum.Entries += t.Entries
		sum.Undelivered += t.Undelivered
		sum.Bytes += t.Bytes
	}
	if sum.Entries > 0 && err == nil {
		err = l.raiseLow(ctx, log)
	}
	if err != nil {
		return sum, fmt.Errorf("trim log %q: %w", string(log), failure(err))
	}
	return sum, nil
}

// victims returns the seqs of what r lets go. It stops at the first entry that
// is above UpTo and too young for r's ages: what follows was stored later.
func (l *Ledger) victims(ctx context.Context, tx *badgerdb.Tx, log ledger.LogID, r ledger.Retention) ([]ledger.Seq, error) {
	s, err := readState(tx, log)
	if err != nil || s.deleted {
		return nil, err
	}
	kept, err := l.kept(ctx, tx, log, s, r)
	if err != nil {
		return nil, err
	}
	var victims []ledger.Seq
	err = tx.Scan(logPrefix(recHeader, log), seqKey(recHeader, log, s.low), false, func(key []byte, value func() ([]byte, error)) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, _ := l.header(log, key, value)
		old := !e.Damaged && e.StoredAt.Before(r.Before)
		oldReceipt := e.Kind == moment.Receipt && e.StoredAt.Before(r.ReceiptsBefore)
		switch {
		case e.Seq <= r.UpTo && !kept[e.Seq], old, oldReceipt:
			victims = append(victims, e.Seq)
		case e.Seq > r.UpTo && !e.Damaged && !e.StoredAt.Before(r.ReceiptsBefore):
			return badgerdb.ErrStop
		}
		return nil
	})
	return victims, err
}

// kept returns the photos at or below UpTo that r keeps.
func (l *Ledger) kept(ctx context.Context, tx *badgerdb.Tx, log ledger.LogID, s *state, r ledger.Retention) (map[ledger.Seq]bool, error) {
	kept := make(map[ledger.Seq]bool)
	for _, seq := range s.newest {
		kept[seq] = true
	}
	n := r.KeepPhotos
	if n <= 0 {
		return kept, nil
	}
	err := tx.Scan(logPrefix(recHeader, log), nil, true, func(key []byte, value func() ([]byte, error)) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, _ := l.header(log, key, value)
		if e.Damaged || e.Kind != moment.Photo {
			return nil
		}
		kept[e.Seq] = true
		if n--; n == 0 {
			return badgerdb.ErrStop
		}
		return nil
	})
	return kept, err
}

// removeStep removes the entries at seqs, as far as they are still there.
func (l *Ledger) removeStep(ctx context.Context, log ledger.LogID, seqs []ledger.Seq, upTo ledger.Seq) (t ledger.Trimmed, err error) {
	err = l.db.Prune(ctx, func(tx *badgerdb.Tx) error {
		t = ledger.Trimmed{}
		s, err := readState(tx, log)
		if err != nil || s.deleted {
			return err
		}
		for _, seq := range seqs {
			h, err := l.removeOne(tx, log, s, seq)
			if errors.Is(err, ledger.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			t.Entries++
			t.Bytes += int64(h.size)
			if seq > upTo {
				t.Undelivered++
			}
		}
		if err := l.fixNewest(tx, log, s, seqs); err != nil {
			return err
		}
		return tx.Set(logKey(recLog, log), s.encode())
	})
	return t, err
}

// removeOne takes header and payload at seq out of the log and of s, and lets
// its identities end after ledger.IdentityLife.
func (l *Ledger) removeOne(tx *badgerdb.Tx, log ledger.LogID, s *state, seq ledger.Seq) (header, error) {
	key := seqKey(recHeader, log, seq)
	v, err := tx.Get(key)
	if errors.Is(err, kv.ErrNotFound) {
		return header{}, ledger.ErrNotFound
	}
	var h header
	if err == nil {
		h, err = decodeHeader(log, key, v)
	}
	if err != nil {
		// Whose it was and how large is lost; it goes all the same. Its
		// identity stays, and the sums may stay too high by one entry.
		l.report(log, seq, err)
		s.entries = max(s.entries-1, 0)
		return header{}, errors.Join(tx.Delete(key), tx.Delete(seqKey(recPayload, log, seq)))
	}
	s.remove(&h)
	err = errors.Join(
		tx.Delete(key),
		tx.SetTTL(identityKey(recIdentity, log, h.m.User, h.m.Kind, h.m.ID), seqValue(seq), ledger.IdentityLife))
	if h.size > 0 {
		err = errors.Join(err, tx.Delete(seqKey(recPayload, log, seq)))
	}
	if h.m.MessageID != "" {
		err = errors.Join(err, tx.SetTTL(identityKey(recMessage, log, h.m.User, h.m.Kind, h.m.MessageID), seqValue(seq), ledger.IdentityLife))
	}
	return h, err
}

// fixNewest finds the newest photo again of users whose newest is among gone.
func (l *Ledger) fixNewest(tx *badgerdb.Tx, log ledger.LogID, s *state, gone []ledger.Seq) error {
	removed := make(map[ledger.Seq]bool, len(gone))
	for _, seq := range gone {
		removed[seq] = true
	}
	lost := make(map[string]bool)
	for user, seq := range s.newest {
		if removed[seq] {
			delete(s.newest, user)
			lost[user] = true
		}
	}
	if len(lost) == 0 {
		return nil
	}
	return tx.Scan(logPrefix(recHeader, log), nil, true, func(key []byte, value func() ([]byte, error)) error {
		e, _ := l.header(log, key, value)
		if e.Damaged || e.Kind != moment.Photo || removed[e.Seq] || !lost[e.User] {
			return nil
		}
		s.newest[e.User] = e.Seq
		if delete(lost, e.User); len(lost) == 0 {
			return badgerdb.ErrStop
		}
		return nil
	})
}

// raiseLow moves the mark where scans start to the first entry that is left,
// so that they need not pass the tombstones of what was removed.
func (l *Ledger) raiseLow(ctx context.Context, log ledger.LogID) error {
	return l.db.Prune(ctx, func(tx *badgerdb.Tx) error {
		s, err := readState(tx, log)
		if err != nil || s.deleted {
			return err
		}
		first, err := firstHeader(tx, log, s.low)
		if err != nil {
			return err
		}
		if first == 0 {
			first = s.head + 1
		}
		if first <= s.low {
			return nil
		}
		s.low = first
		return tx.Set(logKey(recLog, log), s.encode())
	})
}

// Remove implements ledger.Ledger.
func (l *Ledger) Remove(ctx context.Context, log ledger.LogID, key moment.Key) error {
	if err := l.usable(ctx, log); err != nil {
		return err
	}
	err := l.db.Prune(ctx, func(tx *badgerdb.Tx) error {
		seq, err := lookup(tx, log, key)
		if err != nil {
			return err
		}
		s, err := readState(tx, log)
		if err != nil {
			return err
		}
		if _, err := l.removeOne(tx, log, s, seq); err != nil {
			return err
		}
		if err := l.fixNewest(tx, log, s, []ledger.Seq{seq}); err != nil {
			return err
		}
		return tx.Set(logKey(recLog, log), s.encode())
	})
	if err != nil {
		return fmt.Errorf("remove moment %s from log %q: %w", key, string(log), failure(err))
	}
	return nil
}
