package badgerdb

import (
	"bytes"
	"errors"
	"fmt"
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
	staged     *Staged // instead of a value
}

// notEmpty marks, in badger's user metadata, a value of at least one byte:
// badger answers an unreadable value with an empty one and no error.
const notEmpty = 0x01

// inSegment marks, in badger's user metadata, a value that is the ref of one
// in a segment.
const inSegment = 0x02

// maxKey is badger's limit for a key.
const maxKey = 65000

// Get returns a copy of the value, which the caller owns: one of 4 KiB or more
// may be given to bufpool. It returns kv.ErrNotFound, or ErrDamaged for a value that was stored and cannot be read
// back.
func (tx *Tx) Get(key []byte) ([]byte, error) {
	for i := len(tx.writes) - 1; i >= 0; i-- {
		if w := &tx.writes[i]; bytes.Equal(w.key, key) {
			if w.delete {
				return nil, kv.ErrNotFound
			}
			if w.staged != nil {
				return tx.db.segments.read(w.staged.ref)
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
	return tx.value(item)
}

// value reads an item's value.
func (tx *Tx) value(item *badger.Item) ([]byte, error) {
	v, err := item.ValueCopy(nil)
	if err == nil && item.UserMeta()&inSegment != 0 {
		var r ref
		if r, err = decodeRef(v); err == nil {
			v, err = tx.db.segments.read(r)
		}
	}
	if err == nil && len(v) == 0 && item.UserMeta()&notEmpty != 0 {
		err = errors.New("empty where bytes were stored")
	}
	if err != nil {
		return nil, fmt.Errorf("value of key %q: %w: %w", item.Key(), ErrDamaged, err)
	}
	return v, nil
}

// Set stores value under key. Neither may be modified until the transaction
// is done; a value of more than MaxValue bytes is ErrTooLarge.
func (tx *Tx) Set(key, value []byte) error {
	return tx.put(write{key: key, value: value})
}

// SetTTL is Set for a small value, of less than 4 KiB, that is gone after ttl,
// to the second.
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
	case len(w.value) >= valueThreshold && w.expires > 0: // it would end unnoticed, and keep its space
		return fmt.Errorf("value of %d bytes with an end (below %d): %w", len(w.value), valueThreshold, ErrTooLarge)
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
		err := fn(item.Key(), func() ([]byte, error) { return tx.value(item) })
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
// entries and bytes in the LSM tree; and the bytes it takes in segments.
type weight struct{ entries, tree, large int64 }

func weigh(ws []write) (sum weight) {
	for i := range ws {
		w := &ws[i]
		sum.entries++
		sum.tree += int64(len(w.key)) + 12
		if w.staged != nil {
			sum.tree += refBytes
		} else if len(w.value) < valueThreshold {
			sum.tree += int64(len(w.value))
		} else {
			sum.tree += refBytes
			sum.large += int64(len(w.value))
		}
	}
	return sum
}

func (w weight) plus(o weight) weight {
	return weight{w.entries + o.entries, w.tree + o.tree, w.large + o.large}
}

func (w weight) fits(limit weight) bool {
	return w.entries <= limit.entries && w.tree <= limit.tree
}

// store puts the large values among the collected writes into segments. When
// it fails the transaction has not changed.
func (tx *Tx) store() (refs map[int]ref, err error) {
	for i := range tx.writes {
		w := &tx.writes[i]
		var r ref
		switch {
		case w.staged != nil:
			r = w.staged.ref
		case w.delete || len(w.value) < valueThreshold:
			continue
		default:
			if r, err = tx.db.segments.append(w.value); err != nil {
				return nil, fmt.Errorf("store value of key %q: %w", w.key, err)
			}
		}
		if refs == nil {
			refs = map[int]ref{}
		}
		refs[i] = r
	}
	return refs, nil
}

// apply moves the collected writes into the badger transaction, those that
// store has put into segments as refs, and returns which refs they replace.
// Sizes were checked before, so an error is a fault.
func (tx *Tx) apply(refs map[int]ref) (freed []ref, err error) {
	for i := range tx.writes {
		w := &tx.writes[i]
		old, ok, err := tx.refOf(w.key)
		if err != nil {
			return nil, err
		}
		if ok {
			freed = append(freed, old)
		}
		if w.delete {
			tx.db.deleted++
			if err := tx.txn.Delete(w.key); err != nil {
				return nil, fmt.Errorf("delete key %q: %w", w.key, err)
			}
			continue
		}
		e := badger.NewEntry(w.key, w.value)
		e.ExpiresAt = w.expires
		if r, ok := refs[i]; ok {
			e = badger.NewEntry(w.key, r.encode()).WithMeta(notEmpty | inSegment)
		} else if len(w.value) > 0 {
			e = e.WithMeta(notEmpty)
		}
		if err := tx.txn.SetEntry(e); err != nil {
			return nil, fmt.Errorf("set key %q: %w", w.key, err)
		}
	}
	return freed, nil
}

// refOf returns the ref that is stored under key, if there is one.
func (tx *Tx) refOf(key []byte) (r ref, ok bool, err error) {
	item, err := tx.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return r, false, nil
	}
	if err == nil && item.UserMeta()&inSegment != 0 {
		err = item.Value(func(v []byte) error {
			r, err = decodeRef(v)
			return err
		})
		ok = err == nil
	}
	if err != nil {
		return r, false, fmt.Errorf("what is stored under key %q: %w", key, err)
	}
	return r, ok, nil
}
