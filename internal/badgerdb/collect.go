package badgerdb

import (
	"errors"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// sacrificial is a key that is written and dropped: DropPrefix flushes the
// memtable, and only flushed and compacted deletions free value-log space.
var sacrificial = []byte{0x00, 's'}

// collectStep rewrites or deletes at most one value-log file, so that queued
// jobs run between steps, and reports whether there may be more to do.
func (db *DB) collectStep() (more bool) {
	if db.Healthy() != nil {
		return false
	}
	if db.flushIsWorthIt() {
		db.pressed, db.garbage, db.flushed = false, 0, time.Now()
		db.flush()
	}
	// A collection writes up to a file before it deletes one.
	if db.admit(job{prune: true}, 0) != nil {
		return false
	}
	err := db.badger.RunValueLogGC(db.sizes.discardRatio)
	if err == nil {
		db.keeper.due(db.sizes.touched, db.sizes.touched)
		return true
	}
	if !errors.Is(err, badger.ErrNoRewrite) && !errors.Is(err, badger.ErrRejected) {
		db.log.Warn("value log not collected", "dir", db.dir, "err", err)
	}
	db.keeper.due(db.sizes.touched, db.sizes.touched)
	return false
}

// flushIsWorthIt says whether deletions should be brought down now. Writes do
// that by and by, but a store that was emptied and is then left alone would
// keep its photos on disk. Compacting the tree costs its size, so what it
// frees must be more, unless the disk is full.
func (db *DB) flushIsWorthIt() bool {
	if time.Since(db.flushed) < flushEvery {
		return false
	}
	if db.pressed {
		return true
	}
	if db.garbage < 4*db.sizes.vlogFile {
		return false
	}
	tree, _ := db.Size()
	return db.garbage >= tree && tree <= maxFlatten
}

// flush brings deletions down to where they free space: under disk pressure
// this made 36 MB of 293.
func (db *DB) flush() {
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
