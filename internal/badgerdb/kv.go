package badgerdb

import (
	"bytes"
	"context"
	"fmt"
	"slices"

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
	err = s.db.View(func(tx *Tx) error {
		value, err = tx.Get(kvKey(key))
		return err
	})
	return value, err
}

func (s kvStore) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	return s.db.View(func(tx *Tx) error {
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

func (s kvStore) Apply(ctx context.Context, ops ...kv.Op) error {
	ops = slices.Clone(ops)
	cost, deletes := 0, true
	for _, op := range ops {
		cost += len(op.Key) + len(op.Value) + 16
		deletes = deletes && op.Delete
	}
	for i := range ops { // the caller may reuse a value once ctx has ended the wait
		ops[i].Value = bytes.Clone(ops[i].Value)
	}
	fn := func(tx *Tx) error {
		for _, op := range ops {
			var err error
			if op.Delete {
				err = tx.Delete(kvKey(op.Key))
			} else {
				err = tx.Set(kvKey(op.Key), op.Value)
			}
			if err != nil {
				return fmt.Errorf("key %q: %w", op.Key, err)
			}
		}
		return nil
	}
	if deletes {
		return s.db.Prune(ctx, fn)
	}
	return s.db.Update(ctx, cost, fn)
}
