package badgerledger

import (
	"bytes"
	"context"
	"fmt"

	"pairsync/internal/badgerdb"
	"pairsync/internal/ledger"
)

// Delete implements ledger.Ledger. The log is gone, for good, with the first
// transaction; emptying it takes more, and New finishes that after a crash.
func (l *Ledger) Delete(ctx context.Context, log ledger.LogID) error {
	if err := l.usable(ctx, log); err != nil {
		return err
	}
	gone := state{deleted: true}
	err := l.db.Prune(ctx, func(tx *badgerdb.Tx) error {
		s, err := readState(tx, log)
		if err != nil {
			return err
		}
		gone.head = s.head
		l.cursors.forget(log)
		if err := tx.Set(logKey(recPurge, log), nil); err != nil {
			return err
		}
		return tx.Set(logKey(recLog, log), gone.encode())
	})
	if err == nil {
		err = l.purge(ctx, log)
	}
	if err != nil {
		return fmt.Errorf("delete log %q: %w", string(log), failure(err))
	}
	return nil
}

// finishDeletes empties the logs whose deletion a crash interrupted.
func (l *Ledger) finishDeletes() error {
	var logs []ledger.LogID
	err := l.db.View(func(tx *badgerdb.Tx) error {
		return tx.Scan([]byte{'l', recPurge}, nil, false, func(key []byte, _ func() ([]byte, error)) error {
			logs = append(logs, ledger.LogID(key[2:]))
			return nil
		})
	})
	for _, log := range logs {
		if err == nil {
			err = l.purge(context.Background(), log)
		}
	}
	return err
}

// purge deletes, in bounded steps, every key of a deleted log but its record.
// Cursors go first: a session must not come back to a log that is half empty.
func (l *Ledger) purge(ctx context.Context, log ledger.LogID) error {
	for _, rec := range []byte{recCursor, recHeader, recPayload, recIdentity, recMessage} {
		prefix := logPrefix(rec, log)
		from := prefix
		for from != nil {
			if err := ctx.Err(); err != nil {
				return err
			}
			keys, next, err := l.someKeys(prefix, from)
			if err != nil {
				return err
			}
			err = l.db.Prune(ctx, func(tx *badgerdb.Tx) error {
				for _, key := range keys {
					if err := tx.Delete(key); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			from = next
		}
	}
	return l.db.Prune(ctx, func(tx *badgerdb.Tx) error { return tx.Delete(logKey(recPurge, log)) })
}

// someKeys returns the first keys with prefix at or after from, and where to
// go on, nil at the end.
func (l *Ledger) someKeys(prefix, from []byte) (keys [][]byte, next []byte, err error) {
	size := 0
	err = l.db.View(func(tx *badgerdb.Tx) error {
		return tx.Scan(prefix, from, false, func(key []byte, _ func() ([]byte, error)) error {
			if size += len(key) + 32; len(keys) == 4*stepEntries || size > stepBytes && len(keys) > 0 {
				next = bytes.Clone(key)
				return badgerdb.ErrStop
			}
			keys = append(keys, bytes.Clone(key))
			return nil
		})
	})
	return keys, next, err
}

// stepBytes bounds the keys of one purging transaction; a device's memtable
// takes 39 KB in one.
const stepBytes = 24 << 10

// cutZero splits what follows the record byte of a key at its first zero byte.
func cutZero(key []byte) (log, rest []byte, ok bool) { return bytes.Cut(key, []byte{0}) }
