package badgerdb

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// admit says whether there is room to run j, when the jobs of its batch up to
// it cost cost bytes.
func (db *DB) admit(j job, cost int64) error {
	free, err := db.free(db.dir)
	if err != nil {
		return fmt.Errorf("free space of %q: %w", db.dir, err)
	}
	if j.prune {
		need := db.sizes.pruneRoom()
		if free < need && db.dropBallast() {
			free, _ = db.free(db.dir)
		}
		return enough(free, need)
	}
	if err = db.roomToPut(free, j.cost, cost); err != nil {
		db.refusals.Add(1)
		db.noteFull(err)
	}
	return err
}

// roomToPut says whether free is enough to put a job of some cost, in a batch
// that has cost total up to it.
func (db *DB) roomToPut(free int64, cost int, total int64) error {
	need := db.sizes.putRoom() + total
	if cost <= db.sizes.minCost {
		need -= db.sizes.reserve / 2
	}
	return enough(free, need)
}

// Writable is Healthy, and ErrFull while the disk has too little room for
// anything large. Small changes are let through longer, and deletions longer
// still: that is how room is made.
func (db *DB) Writable() error {
	if err := db.Healthy(); err != nil {
		return err
	}
	free, err := db.Free()
	if err != nil {
		return err
	}
	// A batch more than is needed: this says full before anything is refused.
	return enough(free, db.sizes.putRoom()+int64(db.sizes.batch))
}

// Free returns the bytes that are free on the store's disk.
func (db *DB) Free() (int64, error) {
	free, err := db.free(db.dir)
	if err != nil {
		return 0, fmt.Errorf("free space of %q: %w", db.dir, err)
	}
	return free, nil
}

// Refused returns how many changes were refused with ErrFull since Open.
func (db *DB) Refused() int64 { return db.refusals.Load() }

// noteFull says that the disk is full, once until it has room again.
func (db *DB) noteFull(err error) {
	if db.full.CompareAndSwap(false, true) {
		db.log.Error("disk nearly full, refusing to store more until there is room; reads go on", "dir", db.dir, "err", err)
	}
}

// watchRoom looks whether the disk has become full, also where nobody tries to
// write, or has room again.
func (db *DB) watchRoom() {
	err := db.Writable()
	switch {
	case errors.Is(err, ErrFull):
		db.noteFull(err)
	case err == nil && db.full.CompareAndSwap(true, false):
		db.log.Info("disk has room again, storing", "dir", db.dir)
	}
}

func enough(free, need int64) error {
	if free < need {
		return fmt.Errorf("%d MB free, %d MB needed: %w", free>>20, need>>20, ErrFull)
	}
	return nil
}

// roomToOpen makes sure that opening, which allocates, does not run into a
// full disk. It gives up the ballast for that.
func (db *DB) roomToOpen() error {
	need := db.sizes.putRoom() - db.sizes.reserve
	free, err := db.free(db.dir)
	if err != nil {
		return fmt.Errorf("free space of %q: %w", db.dir, err)
	}
	if free < need && db.dropBallast() {
		if free, err = db.free(db.dir); err != nil {
			return fmt.Errorf("free space of %q: %w", db.dir, err)
		}
	}
	return enough(free, need)
}

func (db *DB) ballastPath() string { return filepath.Join(db.dir, "ballast") }

// dropBallast deletes the ballast and reports whether there was one.
func (db *DB) dropBallast() bool {
	if err := os.Remove(db.ballastPath()); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			db.log.Warn("ballast not deleted", "dir", db.dir, "err", err)
		}
		return false
	}
	db.log.Warn("disk full, ballast deleted", "dir", db.dir)
	return true
}

// keepBallast makes the ballast if there is none and plenty of room. Its
// blocks are really allocated.
func (db *DB) keepBallast() error {
	if info, err := os.Stat(db.ballastPath()); err == nil && info.Size() == db.sizes.ballast {
		return nil
	}
	free, err := db.free(db.dir)
	if err != nil || free < db.sizes.putRoom()+4*db.sizes.ballast {
		return err
	}
	f, err := os.OpenFile(db.ballastPath(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if !allocate(f, db.sizes.ballast) {
		err = fill(f, db.sizes.ballast)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(db.ballastPath()))
	}
	return nil
}

// fill writes n bytes that no file system can compress or store as a hole.
func fill(w io.Writer, n int64) error {
	block := make([]byte, 256<<10)
	x := uint64(88172645463325252) // xorshift64; no secret
	for ; n > 0; n -= int64(len(block)) {
		for i := range block {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			block[i] = byte(x)
		}
		if _, err := w.Write(block[:min(n, int64(len(block)))]); err != nil {
			return err
		}
	}
	return nil
}
