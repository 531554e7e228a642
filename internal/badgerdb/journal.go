package badgerdb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"pairsync/internal/kv"
)

// A kv.Store's change is made whole, however large. badger bounds the tree
// entries of a transaction, but not a value in a segment: a change that
// is too large is first stored as one such value, the journal, then made in
// pieces, the last of which deletes the journal. Open makes what is left.
var journalKey = []byte{0x00, 'j'}

// The journal: 1 byte version 1, then for each write 1 byte (1 deletes, 0
// puts), and key and value as uvarint length and bytes.
const journalVersion = 1

// applyJournaled makes all of writes, or none. Once the journal is on disk
// they are made whatever becomes of ctx.
func (db *DB) applyJournaled(ctx context.Context, writes []write) error {
	journal := encodeJournal(writes)
	if len(journal) > db.MaxValue() {
		return fmt.Errorf("change of %d keys and %d bytes: %w", len(writes), len(journal), ErrTooLarge)
	}
	db.kvMu.Lock()
	defer db.kvMu.Unlock()
	// Not to be left alone half way: nobody else would finish it.
	ctx = context.WithoutCancel(ctx)
	err := db.Update(ctx, len(journal), func(tx *Tx) error { return tx.Set(journalKey, journal) })
	if err != nil {
		return err
	}
	if err := db.applyPieces(ctx, writes); err != nil {
		db.fault(fmt.Errorf("change of %d keys stopped half way: %w", len(writes), err))
		return db.Healthy()
	}
	return nil
}

// applyPieces makes writes in as many transactions as they need. They are let
// through like deletions: the journal has had room for all of it.
func (db *DB) applyPieces(ctx context.Context, writes []write) error {
	writes = append(writes, write{key: journalKey, delete: true})
	for len(writes) > 0 {
		n := 1
		for sum := weigh(writes[:1]); n < len(writes); n++ {
			if sum = sum.plus(weigh(writes[n : n+1])); !sum.fits(db.limit) {
				break
			}
		}
		if err := db.Prune(ctx, putAll(writes[:n])); err != nil {
			return err
		}
		writes = writes[n:]
	}
	return nil
}

// replayJournal finishes what a crash interrupted.
func (db *DB) replayJournal() error {
	var journal []byte
	err := db.View(func(tx *Tx) (err error) {
		journal, err = tx.Get(journalKey)
		return err
	})
	if errors.Is(err, kv.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	writes, err := decodeJournal(journal)
	if err != nil {
		return err
	}
	return db.applyPieces(context.Background(), writes) // Open cannot be cancelled
}

func encodeJournal(writes []write) []byte {
	b := []byte{journalVersion}
	for _, w := range writes {
		if w.delete {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
		b = append(binary.AppendUvarint(b, uint64(len(w.key))), w.key...)
		b = append(binary.AppendUvarint(b, uint64(len(w.value))), w.value...)
	}
	return b
}

var errJournal = errors.New("malformed journal")

func decodeJournal(b []byte) (writes []write, err error) {
	if len(b) == 0 || b[0] != journalVersion {
		return nil, errJournal
	}
	b = b[1:]
	field := func() []byte {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			err = errJournal
			return nil
		}
		v := b[size : size+int(n)]
		b = b[size+int(n):]
		return v
	}
	for len(b) > 0 {
		w := write{delete: b[0] == 1}
		if b[0] > 1 {
			return nil, errJournal
		}
		b = b[1:]
		w.key = field()
		w.value = field()
		if err != nil {
			return nil, err
		}
		writes = append(writes, w)
	}
	return writes, nil
}
