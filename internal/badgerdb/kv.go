package badgerdb

import (
	"bytes"
	"context"
	"fmt"

	"pairsync/internal/kv"
)

const kvPrefix = 'k'

// KV returns the store's small key-value part. It keeps its keys apart from
// those of Tx users.
func (db *DB) KV() kv.Store { return kvStore{db} }

type kvStore struct{ db *DB }

func kvKey(key string) []byte {
	b := make([]byte, 0, 1+len(key))
	return append(append(b, kvPrefix), key...)
}

func (s kvStore) Get(ctx context.Context, key string) (value []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = s.db.view(&s.db.kvMu, func(tx *Tx) error {
		value, err = tx.Get(kvKey(key))
		return err
	})
	return value, err
}

func (s kvStore) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	return s.db.view(&s.db.kvMu, func(tx *Tx) error {
		return tx.Scan(kvKey(prefix), nil, false, func(key []byte, value func() ([]byte, error)) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			v, err := value()
			if err != nil {
				return err
			}
			return fn(string(key[1:]), v)
		})
	})
}

// Apply makes the changes in one transaction. What does not fit one goes
// through the journal.
func (s kvStore) Apply(ctx context.Context, ops ...kv.Op) error {
	writes, prune := make([]write, 0, len(ops)), true
	for _, op := range ops {
		w := write{key: kvKey(op.Key), delete: op.Delete}
		if !op.Delete {
			w.value = bytes.Clone(op.Value) // the caller may reuse it once ctx has ended the wait
			prune = false
		}
		if len(w.key) > maxKey || len(w.value) > s.db.MaxValue() {
			return fmt.Errorf("key %.64q with a value of %d bytes: %w", op.Key, len(op.Value), ErrTooLarge)
		}
		writes = append(writes, w)
	}
	sum := weigh(writes)
	if !sum.fits(s.db.limit) {
		return s.db.applyJournaled(ctx, writes)
	}
	s.db.kvMu.RLock()
	defer s.db.kvMu.RUnlock()
	return s.db.wait(ctx, job{cost: int(sum.tree + sum.large), prune: prune, fn: putAll(writes)})
}

func putAll(writes []write) func(*Tx) error {
	return func(tx *Tx) error {
		for _, w := range writes {
			if err := tx.put(w); err != nil {
				return err
			}
		}
		return nil
	}
}
