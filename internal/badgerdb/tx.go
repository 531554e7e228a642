package badgerdb

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/dgraph-io/badger/v4"

	"pairsync/internal/kv"
)

// Tx is a consistent view of the store, and for a function of Submit, Update
// or Prune also the changes it makes. It is valid until that function returns
// and belongs to its goroutine.
type Tx struct {
	db       *DB
	txn      *badger.Txn
	writable bool
	// writes are kept here until the function has succeeded, so that one that
	// fails half way leaves nothing behind in a shared transaction.
	writes []write
}

type write struct {
	key, value []byte
	expires    uint64 // unix seconds, 0 is never
	delete     bool
}

// notEmpty marks, in badger's user metadata, a value of at least one byte:
// badger answers an unreadable value with an empty one and no error.
const notEmpty = 0x01

// maxKey is badger's limit for a key.
const maxKey = 65000

// Get returns a copy of the value, which the caller owns: one allocation for
// a value in the value log. It returns kv.ErrNotFound, or ErrDamaged for a
// value that was stored and cannot be read back.
func (tx *Tx) Get(key []byte) ([]byte, error) {
	for i := len(tx.writes) - 1; i >= 0; i-- {
		if w := &tx.writes[i]; bytes.Equal(w.key, key) {
			if w.delete {
				return nil, kv.ErrNotFound
			}
			return bytes.Clone(w.value), nil
		}
	}
	item, err := tx.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, kv.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("get key %q: %w", key, err)
	}
	return tx.value(item, true)
}

// value reads an item's value. The file that holds it may have been collected
// since the item was found; its entries have moved, so it is looked up again
// once before it counts as damaged.
func (tx *Tx) value(item *badger.Item, again bool) ([]byte, error) {
	v, err := item.ValueCopy(nil)
	if err == nil && (len(v) > 0 || item.UserMeta()&notEmpty == 0) {
		tx.db.touch(int64(len(v)))
		return v, nil
	}
	if again {
		if item, err := tx.txn.Get(item.KeyCopy(nil)); err == nil {
			return tx.value(item, false)
		}
	}
	if err == nil {
		err = errors.New("empty where bytes were stored")
	}
	return nil, fmt.Errorf("value of key %q: %w: %w", item.Key(), ErrDamaged, err)
}

// Set stores value under key. Neither may be modified until the transaction
// is done; a value of more than MaxValue bytes is ErrTooLarge.
func (tx *Tx) Set(key, value []byte) error {
	return tx.put(write{key: key, value: value})
}

// SetTTL is Set for a value that is gone after ttl, to the second.
func (tx *Tx) SetTTL(key, value []byte, ttl time.Duration) error {
	at := time.Now().Add(ttl).Unix()
	return tx.put(write{key: key, value: value, expires: uint64(max(at, 1))})
}

// Delete removes key; it is no error if it is not there.
func (tx *Tx) Delete(key []byte) error {
	return tx.put(write{key: key, delete: true})
}

func (tx *Tx) put(w write) error {
	switch {
	case !tx.writable:
		return ErrReadOnly
	case len(w.key) == 0 || len(w.key) > maxKey:
		return fmt.Errorf("key of %d bytes: %w", len(w.key), ErrTooLarge)
	case len(w.value) > tx.db.MaxValue():
		return fmt.Errorf("value of %d bytes (at most %d): %w", len(w.value), tx.db.MaxValue(), ErrTooLarge)
	}
	tx.writes = append(tx.writes, w)
	tx.db.DropLazy(string(w.key))
	return nil
}

// Scan calls fn for the keys with prefix, from the key from on (nil: from the
// first, or with reverse from the last), until fn returns an error, which Scan
// returns as it is; ErrStop ends it without one. key is valid until fn
// returns, and so is value, which returns a copy as Get does. Scan does not
// see the writes of its own function.
func (tx *Tx) Scan(prefix, from []byte, reverse bool, fn func(key []byte, value func() ([]byte, error)) error) error {
	opts := badger.DefaultIteratorOptions
	opts.PrefetchValues = false
	opts.Prefix = prefix
	opts.Reverse = reverse
	it := tx.txn.NewIterator(opts)
	defer it.Close()
	switch {
	case from == nil && reverse:
		from = append(bytes.Clone(prefix), 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF)
	case from == nil:
		from = prefix
	}
	for it.Seek(from); it.ValidForPrefix(prefix); it.Next() {
		item := it.Item()
		err := fn(item.Key(), func() ([]byte, error) { return tx.value(item, true) })
		if errors.Is(err, ErrStop) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ErrStop ends a Scan early without an error.
var ErrStop = errors.New("stop scanning")

// weight is what a set of writes takes of badger's limits for a transaction:
// entries and bytes in the LSM tree, and bytes in the value log.
type weight struct{ entries, tree, vlog int64 }

func weigh(ws []write) (sum weight) {
	for i := range ws {
		w := &ws[i]
		sum.entries++
		sum.tree += int64(len(w.key)) + 12
		if len(w.value) < valueThreshold {
			sum.tree += int64(len(w.value))
		} else {
			sum.tree += 14
			sum.vlog += int64(len(w.key)+len(w.value)) + 32
		}
	}
	return sum
}

func (w weight) plus(o weight) weight {
	return weight{w.entries + o.entries, w.tree + o.tree, w.vlog + o.vlog}
}

func (w weight) fits(limit weight) bool {
	return w.entries <= limit.entries && w.tree <= limit.tree && w.vlog <= limit.vlog
}

// apply moves the collected writes into the badger transaction. Sizes were
// checked before, so an error is a fault.
func (tx *Tx) apply() error {
	for i := range tx.writes {
		w := &tx.writes[i]
		if w.delete {
			tx.noteFreed(w.key)
			if err := tx.txn.Delete(w.key); err != nil {
				return fmt.Errorf("delete key %q: %w", w.key, err)
			}
			continue
		}
		e := badger.NewEntry(w.key, w.value)
		e.ExpiresAt = w.expires
		if len(w.value) > 0 {
			e = e.WithMeta(notEmpty)
		}
		if err := tx.txn.SetEntry(e); err != nil {
			return fmt.Errorf("set key %q: %w", w.key, err)
		}
	}
	return nil
}

// noteFreed counts what deleting key makes garbage in the value log.
func (tx *Tx) noteFreed(key []byte) {
	item, err := tx.txn.Get(key)
	if err != nil {
		return
	}
	if n := item.EstimatedSize(); n >= valueThreshold && n < math.MaxInt32 {
		tx.db.freed += n
		tx.db.garbage += n
	}
}
