package badgerdb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Submit queues fn and returns; it blocks while the queue is full, and fails
// only when ctx ends or the store is closed or unhealthy first. fn runs on the
// writer goroutine, in the order of Submit calls, sees every earlier write and
// must not block. What it writes is committed, with what others wrote, only if
// it returns nil. cost is about the bytes it will write.
//
// done is called exactly once for each nil return, in the same order: after
// the fsync with nil, or with fn's error, ErrFull, ErrTooLarge, ErrUnhealthy
// or ErrClosed when nothing was written. It runs on the writer goroutine, must
// not block and must not call Submit.
func (db *DB) Submit(ctx context.Context, cost int, fn func(*Tx) error, done func(error)) error {
	if err := db.Healthy(); err != nil {
		return err
	}
	return db.queue.push(ctx, job{cost: cost, fn: fn, done: done})
}

// Update is Submit for a caller that waits: what fn wrote is on disk when it
// returns nil. When ctx ends first the outcome is unknown.
func (db *DB) Update(ctx context.Context, cost int, fn func(*Tx) error) error {
	return db.wait(ctx, job{cost: cost, fn: fn})
}

// Prune is Update for an fn that deletes, and writes only little beside: it is
// let through while the disk is too full for Update.
func (db *DB) Prune(ctx context.Context, fn func(*Tx) error) error {
	return db.wait(ctx, job{prune: true, fn: fn})
}

func (db *DB) wait(ctx context.Context, j job) error {
	if err := db.Healthy(); err != nil {
		return err
	}
	done := make(chan error, 1)
	j.done = func(err error) { done <- err }
	if err := db.queue.push(ctx, j); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// SetLazy stores a value that may be lost in a crash: it rides on the next
// commit, or is committed alone after a second and by Close. The last value of
// a key wins; a Set or Delete of the key drops the lazy value that was waiting
// at that moment. Tx does not see it before it is committed. The store keeps
// value, and one value for each key: their number is the caller's to bound.
func (db *DB) SetLazy(key string, value []byte) {
	db.lazyMu.Lock()
	defer db.lazyMu.Unlock()
	if len(db.lazy) == 0 {
		db.lazyDue.Reset(lazyAfter)
	}
	db.lazy[key] = value
}

// write is the writer goroutine: it alone commits, deletes and compacts. It
// takes what queued up while the last commit ran; a timer that waits for more
// would only make a lone writer slower.
func (db *DB) write() {
	defer close(db.written)
	compact := time.NewTicker(compactEvery)
	defer compact.Stop()
	defer db.lazyDue.Stop()
	db.deleted = 1 // what was deleted before Open may not have left the disk
	for {
		batch, closed := db.queue.take(db.sizes.batch)
		switch {
		case len(batch) > 0:
			db.run(batch)
		case closed:
			db.commitLazy()
			return
		default:
			select {
			case <-db.queue.ready:
			case <-db.lazyDue.C:
				db.commitLazy()
			case <-compact.C:
				if db.compactIsWorthIt() {
					db.compact()
				}
			}
		}
	}
}

// group is one badger transaction in the making and the jobs that wait for it.
type group struct {
	txn   *badger.Txn
	used  weight
	freed []ref // what the transaction takes out of the tree
	jobs  []job
	errs  []error
}

// run runs the jobs of a batch and commits them, in more than one transaction
// where badger's limits demand it.
func (db *DB) run(batch []job) {
	g := db.newGroup()
	var cost int64
	for _, j := range batch {
		cost += int64(j.cost)
		tx := &Tx{db: db, txn: g.txn, writable: true}
		err := db.admit(j, cost)
		if err == nil {
			err = j.fn(tx)
		}
		if err == nil {
			w := weigh(tx.writes)
			switch {
			case !w.fits(db.limit):
				err = fmt.Errorf("transaction of %d entries and %d bytes: %w", w.entries, w.tree+w.large, ErrTooLarge)
			case !g.used.plus(w).fits(db.limit):
				db.commit(g)
				g = db.newGroup()
				tx.txn = g.txn
			}
			if err == nil {
				err = db.put(g, tx, w)
			}
		}
		g.jobs = append(g.jobs, j)
		g.errs = append(g.errs, err)
	}
	db.commit(g)
}

// put makes the writes of tx, which weigh w, part of the group.
func (db *DB) put(g *group, tx *Tx, w weight) error {
	refs, err := tx.store()
	if err != nil {
		if errors.Is(err, ErrFull) {
			return err
		}
		db.fault(err)
		return db.Healthy()
	}
	g.used = g.used.plus(w)
	freed, err := tx.apply(refs)
	if err != nil {
		db.fault(err) // part of it is in the transaction
		return db.Healthy()
	}
	g.freed = append(g.freed, freed...)
	return nil
}

func (db *DB) newGroup() *group {
	return &group{txn: db.badger.NewTransaction(true)}
}

// commit makes a group durable and answers its jobs.
func (db *DB) commit(g *group) {
	defer g.txn.Discard()
	err := db.Healthy()
	if err == nil && g.used.entries > 0 {
		db.addLazy(g)
		// The values first: what is in the tree can be read.
		if serr := db.segments.sync(); serr != nil {
			db.fault(serr)
		} else if cerr := g.txn.Commit(); cerr != nil {
			db.fault(fmt.Errorf("commit: %w", cerr))
		}
		// badger only logs a failed fsync; the logger has latched it by now.
		if err = db.Healthy(); err == nil {
			db.freed(g.freed)
		}
	}
	for i, j := range g.jobs {
		if g.errs[i] == nil {
			g.errs[i] = err
		}
		j.done(g.errs[i])
		db.queue.answered(j)
	}
}

// addLazy puts the waiting lazy values into g as far as they fit.
func (db *DB) addLazy(g *group) {
	db.lazyMu.Lock()
	defer db.lazyMu.Unlock()
	for key, value := range db.lazy {
		tx := Tx{db: db, txn: g.txn, writes: []write{{key: []byte(key), value: value}}}
		used := g.used.plus(weigh(tx.writes))
		if !used.fits(db.limit) {
			if g.used.entries > 0 {
				db.lazyDue.Reset(0)
				return
			}
			db.log.Error("lazy value dropped, it does not fit a transaction", "key", key, "bytes", len(value))
			delete(db.lazy, key)
			continue
		}
		if err := db.put(g, &tx, weigh(tx.writes)); err != nil {
			db.log.Error("lazy value not written", "key", key, "err", err)
			return
		}
		delete(db.lazy, key)
	}
}

// DropLazy forgets the lazy value of key, if one is waiting.
func (db *DB) DropLazy(key string) {
	db.lazyMu.Lock()
	defer db.lazyMu.Unlock()
	delete(db.lazy, key)
}

// commitLazy commits the waiting lazy values by themselves, unless the disk
// is too full even for that: losing them is allowed, crashing is not.
func (db *DB) commitLazy() {
	for {
		db.lazyMu.Lock()
		n := len(db.lazy)
		db.lazyMu.Unlock()
		if n == 0 || db.Healthy() != nil || db.admit(job{prune: true}, 0) != nil {
			return
		}
		g := db.newGroup()
		db.addLazy(g)
		db.commit(g)
	}
}

// fault latches the store unhealthy. The first cause is kept.
func (db *DB) fault(err error) {
	err = fmt.Errorf("%w: %w", ErrUnhealthy, err)
	if db.cause.CompareAndSwap(nil, &err) {
		db.log.Error("store failed, acknowledging nothing until it is reopened", "dir", db.dir, "err", err)
	}
}
