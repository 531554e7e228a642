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

	segments    *segments
	oldSegments uint32 // the newest segment of an earlier process

	// Of the writer goroutine only.
	deleted   int       // keys deleted since the tree was last compacted by force
	compacted time.Time // when that was

	keeper keeper

	lazyMu  sync.Mutex // guards lazy
	lazy    map[string][]byte
	lazyDue *time.Timer // fires when lazy has waited long enough

	cause    atomic.Pointer[error] // why the store is unhealthy, nil while it is not
	full     atomic.Bool           // said so, and not yet that there is room again
	refusals atomic.Int64          // for lack of room

	viewMu sync.Mutex // guards the fields below, and views.Add against views.Wait
	closed bool
	gens   []*generation // in order; the last is the current one
	ripe   []ref         // to give back
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
		gens:    []*generation{new(generation)},
	}
	db.lazyDue.Stop()
	if err := db.roomToOpen(); err != nil {
		return nil, fmt.Errorf("open store %q: %w", dir, err)
	}
	if db.segments, err = openSegments(dir, s.segment, log); err != nil {
		return nil, fmt.Errorf("open store %q: %w", dir, err)
	}
	db.oldSegments = db.segments.current
	if err := db.openBadger(); err != nil {
		return nil, fmt.Errorf("open store %q: %w", dir, err)
	}
	v, err := db.beginView(nil) // before anything is written
	if err != nil {
		return nil, err
	}
	go db.recount(v)
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

// Healthy returns nil while the store works, ErrClosed once it is closed, and
// else what it failed of, wrapping ErrUnhealthy. A full disk is no failure.
func (db *DB) Healthy() error {
	if cause := db.cause.Load(); cause != nil {
		return *cause
	}
	return nil
}

// MaxValue is the length of the largest value that Set takes.
func (db *DB) MaxValue() int { return db.sizes.maxValue }

// Size returns the bytes that the store's files take: the LSM tree with its
// logs, and the segments of large values. What a file was allocated for later
// counts.
func (db *DB) Size() (tree, segments int64) {
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
			tree += info.Size()
		case ".seg":
			segments += onDisk(info)
		}
	}
	return tree, segments
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
	db.giveBack()
	if err := errors.Join(db.badger.Close(), db.segments.close()); err != nil {
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
