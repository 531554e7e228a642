package badgerdb

import (
	"cmp"
	"errors"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// recount finds out what the tree still names of the files that were there at
// Open, removes those of which nothing is left, and punches out what a crash
// left behind: values whose transaction was never committed, and freed ones
// that were not given back yet. It goes through every key, beside the work of
// the store. What is freed meanwhile waits, because it is a view.
func (db *DB) recount(v *view) {
	defer db.endView(v)
	ids, err := db.segments.list()
	ids = slices.DeleteFunc(ids, func(id uint32) bool { return id > db.oldSegments })
	if err == nil && len(ids) > 0 {
		err = db.recountFiles(v.txn, ids)
	}
	switch {
	case errors.Is(err, ErrClosed):
	case err != nil:
		db.log.Warn("space of deleted values not looked for", "dir", db.dir, "err", err)
	default:
		db.segments.mu.Lock()
		defer db.segments.mu.Unlock()
		db.segments.counted = true
		for _, id := range ids {
			db.segments.removeEmpty(id)
		}
	}
}

func (db *DB) recountFiles(txn *badger.Txn, ids []uint32) error {
	live, named := map[uint32]int64{}, map[uint32]int64{}
	err := db.eachRef(txn, func(r ref) {
		live[r.segment] += int64(r.length)
		named[r.segment]++
	})
	if err != nil {
		return err
	}
	const block = 4096 // of the usual file systems; a wrong guess costs a second look or a little space
	gaps := map[uint32][]ref{}
	for _, id := range ids {
		db.segments.mu.Lock()
		db.segments.live[id] += live[id]
		db.segments.mu.Unlock()
		if f, err := db.segments.file(id); err == nil && live[id] > 0 && allocated(f) > live[id]+2*block*(named[id]+1) {
			gaps[id] = nil
		}
	}
	if len(gaps) == 0 {
		return nil
	}
	err = db.eachRef(txn, func(r ref) {
		if refs, ok := gaps[r.segment]; ok {
			gaps[r.segment] = append(refs, r)
		}
	})
	if err != nil {
		return err
	}
	for id, refs := range gaps {
		db.punchGaps(id, refs)
	}
	return nil
}

// punchGaps gives back what lies between refs, which are all that is named of
// the file.
func (db *DB) punchGaps(id uint32, refs []ref) {
	slices.SortFunc(refs, func(a, b ref) int { return cmp.Compare(a.offset, b.offset) })
	var at int64
	for _, r := range refs {
		if gap := int64(r.offset) - at; gap > 0 {
			db.segments.punch(id, at, gap)
		}
		at = int64(r.offset) + int64(r.length)
	}
	if f, err := db.segments.file(id); err == nil {
		if info, err := f.Stat(); err == nil && info.Size() > at {
			db.segments.punch(id, at, info.Size()-at)
		}
	}
}

// eachRef calls fn for every ref in the tree; ErrClosed when the store closes.
func (db *DB) eachRef(txn *badger.Txn, fn func(ref)) error {
	opts := badger.DefaultIteratorOptions
	opts.PrefetchValues = false
	it := txn.NewIterator(opts)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		select {
		case <-db.keeper.quit:
			return ErrClosed
		default:
		}
		item := it.Item()
		if item.UserMeta()&inSegment == 0 {
			continue
		}
		err := item.Value(func(v []byte) error {
			r, err := decodeRef(v)
			if err == nil {
				fn(r)
			}
			return err
		})
		if err != nil {
			return err // rather leave space lost than give back what is named
		}
	}
	return nil
}
