package badgerdb

import (
	"sync"

	"github.com/dgraph-io/badger/v4"
)

// view is one reader of the store at work.
type view struct {
	txn *badger.Txn
	gen *generation
}

// generation is the time between two commits that freed values. The values
// that the second of them freed may be named by the views that began in it or
// before, and are given back when those have ended.
type generation struct {
	views int
	freed []ref
}

// View runs fn with a consistent view of what is committed. It takes no lock:
// fn may be slow, but space that is freed meanwhile is not given back before
// it returns.
func (db *DB) View(fn func(*Tx) error) error { return db.view(nil, fn) }

// view is View that starts while it shares mu, where one is given.
func (db *DB) view(mu *sync.RWMutex, fn func(*Tx) error) error {
	v, err := db.beginView(mu)
	if err != nil {
		return err
	}
	defer db.endView(v)
	return fn(&Tx{db: db, txn: v.txn})
}

func (db *DB) beginView(mu *sync.RWMutex) (*view, error) {
	db.viewMu.Lock()
	if db.closed {
		db.viewMu.Unlock()
		return nil, ErrClosed
	}
	db.views.Add(1)
	gen := db.gens[len(db.gens)-1]
	gen.views++
	db.viewMu.Unlock()
	if mu != nil {
		mu.RLock()
		defer mu.RUnlock()
	}
	return &view{db.badger.NewTransaction(false), gen}, nil
}

func (db *DB) endView(v *view) {
	v.txn.Discard()
	db.viewMu.Lock()
	v.gen.views--
	db.ripen()
	db.viewMu.Unlock()
	db.views.Done()
}

// freed takes what a commit has taken out of the tree.
func (db *DB) freed(refs []ref) {
	if len(refs) == 0 {
		return
	}
	db.viewMu.Lock()
	defer db.viewMu.Unlock()
	last := db.gens[len(db.gens)-1]
	last.freed = append(last.freed, refs...)
	db.gens = append(db.gens, new(generation))
	db.ripen()
}

// ripen moves what no view can name any more to where the keeper gives it
// back; db.viewMu is held.
func (db *DB) ripen() {
	for len(db.gens) > 1 && db.gens[0].views == 0 {
		db.ripe = append(db.ripe, db.gens[0].freed...)
		db.gens = db.gens[1:]
	}
	if len(db.ripe) > 0 {
		db.keeper.poke()
	}
}

// giveBack frees the space of what is ripe.
func (db *DB) giveBack() {
	db.viewMu.Lock()
	refs := db.ripe
	db.ripe = nil
	db.viewMu.Unlock()
	db.segments.free(refs)
}
