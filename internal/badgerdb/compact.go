package badgerdb

import (
	"time"

	"github.com/dgraph-io/badger/v4"
)

// sacrificial is a key that is written and dropped: DropPrefix flushes the
// memtable, and only flushed and compacted deletions leave the disk.
var sacrificial = []byte{0x00, 's'}

// compactIsWorthIt says whether what was deleted should be taken out of the
// tree's files now. Writes do that by and by, but a store that was emptied and
// is then left alone would keep captions and names on disk.
func (db *DB) compactIsWorthIt() bool {
	if db.deleted == 0 || db.Healthy() != nil || time.Since(db.compacted) < compactEvery {
		return false
	}
	tree, _ := db.Size()
	return tree <= maxFlatten
}

// compact brings deletions down to where they leave the disk.
func (db *DB) compact() {
	db.deleted, db.compacted = 0, time.Now()
	if db.admit(job{prune: true}, 0) != nil {
		return
	}
	err := db.badger.Update(func(txn *badger.Txn) error { return txn.Set(sacrificial, nil) })
	if err == nil {
		err = db.badger.DropPrefix(sacrificial)
	}
	if err == nil {
		err = db.badger.Flatten(2)
	}
	if err != nil {
		db.log.Warn("store not compacted", "dir", db.dir, "err", err)
	}
}
