package badgerdb

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// DB is an open store. It owns its goroutines from Open to Close.
type DB struct {
	dir    string
	sizes  sizes
	limit  weight // of one badger transaction
	log    *slog.Logger
	badger *badger.DB
	lock   *dirLock
	free   func(dir string) (int64, error) // free disk space; replaced in tests

	queue   *queue
	written chan struct{} // closed when the writer has ended

	// Of the writer goroutine only.
	collecting bool      // a look for garbage is under way
	freed      int64     // value-log bytes deleted since the last one
	garbage    int64     // the same since compaction was last forced
	flushed    time.Time // when that was
	pressed    bool      // a put was refused for lack of room

	keeper keeper

	lazyMu  sync.Mutex // guards lazy
	lazy    map[string][]byte
	lazyDue *time.Timer // fires when lazy has waited long enough

	cause atomic.Pointer[error] // why the store is unhealthy, nil while it is not

	viewMu sync.Mutex // guards closed, and views.Add against views.Wait
	closed bool
	views  sync.WaitGroup
	once   sync.Once

	// kvMu is locked while a change of the kv.Store takes several
	// transactions; its readers share it while they start, its other changes
	// until they are made.
	kvMu sync.RWMutex
}

// Open opens the store in dir, and creates it where there is none. It repairs
// what a crash left behind first. It fails with ErrLocked, ErrVersion, ErrFull
// or ErrCorrupt (each wrapped), and leaves the data as they are.
func Open(dir string, p Profile, log *slog.Logger) (*DB, error) {
	return open(dir, p, log, freeSpace)
}

func open(dir string, p Profile, log *slog.Logger, free func(string) (int64, error)) (_ *DB, err error) {
	s, err := sizesOf(p)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create store %q: %w", dir, err)
	}
	lock, err := lockDir(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("lock store %q: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.release())
		}
	}()
	if err := checkFormat(dir, p); err != nil {
		return nil, fmt.Errorf("open store %q: %w", dir, err)
	}
	db := &DB{
		dir: dir, sizes: s, log: log, lock: lock, free: free,
		queue:   newQueue(s.queue, s.minCost),
		written: make(chan struct{}),
		lazy:    make(map[string][]byte),
		lazyDue: time.NewTimer(time.Hour),
		keeper:  newKeeper(),
	}
	db.lazyDue.Stop()
	if err := db.roomToOpen(); err != nil {
		return nil, fmt.Errorf("open store %q: %w", dir, err)
	}
	if err := db.openBadger(); err != nil {
		return nil, fmt.Errorf("open store %q: %w", dir, err)
	}
	go db.write()
	go db.keep()
	if err := db.replayJournal(); err != nil {
		err = errors.Join(fmt.Errorf("open store %q: %w", dir, err), db.shut())
		return nil, err
	}
	return db, nil
}

// openBadger repairs and opens, and once more after a deeper repair: badger
// returns an error or panics on what a crash can leave in its logs.
func (db *DB) openBadger() error {
	var err error
	for _, depth := range []depth{lastLogs, allLogs} {
		if err = repair(db.dir, depth, db.log); err != nil {
			return err
		}
		if db.badger, err = db.tryOpen(); err == nil {
			db.limit = weight{
				entries: db.badger.MaxBatchCount() - 2,
				tree:    db.badger.MaxBatchSize() - 1<<10, // badger adds an end mark
				vlog:    int64(db.sizes.maxJob()),
			}
			return nil
		}
		db.log.Warn("store did not open, repairing", "dir", db.dir, "err", err)
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

func (db *DB) tryOpen() (b *badger.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			b, err = nil, fmt.Errorf("badger panicked: %v", r)
		}
	}()
	return badger.Open(badgerOptions(db.dir, db.sizes, &badgerLog{log: db.log, fault: db.fault}))
}

// View runs fn with a consistent view of what is committed. It takes no lock:
// fn may be slow, but holds back collection of the value log meanwhile.
func (db *DB) View(fn func(*Tx) error) error { return db.view(nil, fn) }

// view is View that starts while it shares mu, where one is given.
func (db *DB) view(mu *sync.RWMutex, fn func(*Tx) error) error {
	db.viewMu.Lock()
	if db.closed {
		db.viewMu.Unlock()
		return ErrClosed
	}
	db.views.Add(1)
	db.viewMu.Unlock()
	defer db.views.Done()
	if mu != nil {
		mu.RLock()
	}
	txn := db.badger.NewTransaction(false)
	if mu != nil {
		mu.RUnlock()
	}
	defer txn.Discard()
	return fn(&Tx{db: db, txn: txn})
}

// Healthy returns nil while the store works, ErrClosed once it is closed, and
// else what it failed of, wrapping ErrUnhealthy. A full disk is no failure.
func (db *DB) Healthy() error {
	if cause := db.cause.Load(); cause != nil {
		return *cause
	}
	return nil
}

// MaxValue is the length of the largest value that Set takes.
func (db *DB) MaxValue() int { return db.sizes.maxJob() - 1<<10 }

// Size returns the bytes that the store's files hold: the LSM tree with its
// logs, and the value log. The files being written count in full.
func (db *DB) Size() (lsm, vlog int64) {
	entries, err := os.ReadDir(db.dir)
	if err != nil {
		return 0, 0
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue // deleted meanwhile
		}
		switch filepath.Ext(e.Name()) {
		case ".sst", ".mem":
			lsm += info.Size()
		case ".vlog":
			vlog += info.Size()
		}
	}
	return lsm, vlog
}

// Close refuses new work, finishes what is queued, waits for views and ends
// every goroutine. A second call returns nil at once.
func (db *DB) Close() error {
	var err error
	db.once.Do(func() {
		err = errors.Join(db.shut(), db.lock.release())
	})
	return err
}

// shut is Close but for the lock.
func (db *DB) shut() error {
	db.queue.close()
	<-db.written
	db.cause.CompareAndSwap(nil, &ErrClosed)
	db.keeper.stop()
	db.viewMu.Lock()
	db.closed = true
	db.viewMu.Unlock()
	db.views.Wait()
	if err := db.badger.Close(); err != nil {
		return fmt.Errorf("close store %q: %w", db.dir, err)
	}
	return nil
}

// SetAside renames a store that cannot be opened, so that an empty one can
// take its place, and returns its new name. Nothing is deleted.
func SetAside(dir string) (string, error) {
	aside := dir + ".damaged-" + time.Now().UTC().Format("20060102T150405.000")
	if err := os.Rename(dir, aside); err != nil {
		return "", fmt.Errorf("set store aside: %w", err)
	}
	return aside, nil
}
