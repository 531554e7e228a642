package badgerdb

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/kv"
)

// large returns n bytes that are like no others but those of the same seed.
func large(seed, n int) []byte {
	v := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(v)
	return v
}

func (db *DB) mustSet(t *testing.T, key string, value []byte) {
	t.Helper()
	if err := db.Update(t.Context(), len(value), set(key, value)); err != nil {
		t.Fatal(err)
	}
}

func (db *DB) mustDelete(t *testing.T, keys ...string) {
	t.Helper()
	err := db.Prune(t.Context(), func(tx *Tx) error {
		for _, key := range keys {
			if err := tx.Delete([]byte(key)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// settled closes and opens the store, each when the work beside it is done.
func settled(t *testing.T, db *DB) *DB {
	t.Helper()
	awaitCount(db)
	closeTest(t, db)
	db = openTest(t, db.dir, Device)
	awaitCount(db)
	return db
}

func awaitCount(db *DB) {
	for {
		db.segments.mu.Lock()
		counted := db.segments.counted
		db.segments.mu.Unlock()
		if counted {
			return
		}
		runtime.Gosched()
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestDeletedValuesLeaveTheDisk: their bytes are gone from the files and their
// blocks are given back, whether they were deleted or overwritten; a file of
// which nothing is left is removed.
func TestDeletedValuesLeaveTheDisk(t *testing.T) {
	dir := t.TempDir()
	db := openTest(t, dir, Device)
	const n, size = 40, 1 << 20
	for i := range n {
		db.mustSet(t, fmt.Sprint("x", i), large(i, size))
	}
	_, before := db.Size()
	if before < n*size {
		t.Fatalf("%d bytes on disk for %d stored", before, n*size)
	}
	for i := range n {
		switch {
		case i == 1 || i == 20: // stays
		case i%2 == 0:
			db.mustDelete(t, fmt.Sprint("x", i))
		default:
			db.mustSet(t, fmt.Sprint("x", i), []byte("small"))
		}
	}
	db = settled(t, db)
	if _, after := db.Size(); after > 2*size+64<<10 {
		t.Errorf("%d bytes on disk for 2 values of %d", after, size)
	}
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("files %v, want the two that hold something", got)
	}
	for _, name := range names(t, dir) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if got, want := bytes.Contains(b, large(i, size)[:64]), i == 1 || i == 20; got && !want {
				t.Errorf("%s still holds value %d", name, i)
			}
		}
	}
	for _, i := range []int{1, 20} {
		if got, err := db.get(fmt.Sprint("x", i)); err != nil || !bytes.Equal(got, large(i, size)) {
			t.Errorf("value %d that was kept: %d bytes, %v", i, len(got), err)
		}
	}
}

// TestViewKeepsWhatItSees: a view reads what was deleted after it began, and
// the space comes back when it ends.
func TestViewKeepsWhatItSees(t *testing.T) {
	db := openTest(t, t.TempDir(), Device)
	value := large(1, 1<<20)
	db.mustSet(t, "x", value)
	err := db.View(func(tx *Tx) error {
		db.mustDelete(t, "x")
		if _, err := db.get("x"); !errors.Is(err, kv.ErrNotFound) {
			t.Errorf("a later view: %v, want ErrNotFound", err)
		}
		db.giveBack()
		got, err := tx.Get([]byte("x"))
		if !bytes.Equal(got, value) {
			t.Errorf("the earlier view reads %d bytes, want %d", len(got), len(value))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, size := settled(t, db).Size(); size != 0 {
		t.Errorf("%d bytes on disk after the view ended", size)
	}
}

// TestReadersAndWriters: values come and go under readers for a while; what a
// view finds it can read.
func TestReadersAndWriters(t *testing.T) {
	db := openTest(t, t.TempDir(), Device)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for i := range 5 {
					v, err := db.get(fmt.Sprint("x", i))
					if errors.Is(err, kv.ErrNotFound) {
						continue
					}
					if err != nil || !bytes.Equal(v, large(i, len(v))) {
						t.Errorf("x%d: %d bytes, %v", i, len(v), err)
						return
					}
				}
			}
		})
	}
	for round := range 400 {
		key := fmt.Sprint("x", round%5)
		if round%3 == 0 {
			db.mustDelete(t, key)
		} else {
			db.mustSet(t, key, large(round%5, 100_000+round))
		}
	}
	close(stop)
	wg.Wait()
}

// TestCrashLeavesNothingBehind: values that were never committed, and those
// that were deleted but not given back, are given back at the next Open.
func TestCrashLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	db := openTest(t, dir, Device)
	const size = 1 << 20
	for i := range 6 {
		db.mustSet(t, fmt.Sprint("x", i), large(i, size))
	}
	// As a crash between write and commit leaves it.
	err := db.Update(t.Context(), 0, func(tx *Tx) error {
		_, err := db.segments.append(large(9, size))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	db.mustSet(t, "x6", large(6, size))
	release, deleted := make(chan struct{}), make(chan struct{})
	go func() { // holds the freed ones back
		_ = db.View(func(*Tx) error { <-release; return nil })
		close(deleted)
	}()
	db.mustDelete(t, "x0", "x3")
	copied := copyStore(t, dir)
	close(release)
	<-deleted

	crashed := settled(t, openTest(t, copied, Device)) // the second Open finds nothing more to do
	if _, got := crashed.Size(); got > 5*size+128<<10 {
		t.Errorf("%d bytes on disk for 5 values of %d", got, size)
	}
	for i := range 7 {
		got, err := crashed.get(fmt.Sprint("x", i))
		if gone := i == 0 || i == 3; gone != errors.Is(err, kv.ErrNotFound) || !gone && !bytes.Equal(got, large(i, size)) {
			t.Errorf("x%d: %d bytes, %v", i, len(got), err)
		}
	}
}

// TestDamagedSegment tells values that were lost from those that were not.
func TestDamagedSegment(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"bytes changed": func(t *testing.T, path string) { overwrite(t, path, 120_000, []byte("damage")) },
		"cut off":       func(t *testing.T, path string) { truncate(t, path, 120_000) },
		"file gone": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			db := openTest(t, dir, Device)
			for i := range 2 {
				db.mustSet(t, fmt.Sprint("x", i), large(i, 100_000))
			}
			closeTest(t, db)
			damage(t, names(t, dir)[0])
			db = openTest(t, dir, Device)
			if _, err := db.get("x1"); !errors.Is(err, ErrDamaged) {
				t.Errorf("damaged value: %v, want ErrDamaged", err)
			}
			if v, err := db.get("x0"); name != "file gone" && (err != nil || !bytes.Equal(v, large(0, 100_000))) {
				t.Errorf("the value beside it: %d bytes, %v", len(v), err)
			}
			db.mustSet(t, "x1", large(1, 100_000))
			if v, err := db.get("x1"); err != nil || !bytes.Equal(v, large(1, 100_000)) {
				t.Errorf("the value once it was replaced: %d bytes, %v", len(v), err)
			}
			if err := db.Healthy(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFailedSegmentSync: nothing is acknowledged when the values could not be
// synced.
func TestFailedSegmentSync(t *testing.T) {
	db := openTest(t, t.TempDir(), Device)
	db.mustSet(t, "x", large(1, 10_000))
	err := db.Update(t.Context(), 0, func(tx *Tx) error {
		gone, err := os.Create(filepath.Join(t.TempDir(), "gone"))
		if err != nil {
			return err
		}
		gone.Close()
		db.segments.dirty = append(db.segments.dirty, gone)
		return tx.Set([]byte("y"), large(2, 10_000))
	})
	if !errors.Is(err, ErrUnhealthy) {
		t.Errorf("update whose sync failed: %v, want ErrUnhealthy", err)
	}
	if _, err := db.get("y"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("what was not acknowledged is there: %v", err)
	}
	if _, err := db.get("x"); err != nil {
		t.Errorf("reads go on: %v", err)
	}
}

// TestManySegments reads from more files than are kept open.
func TestManySegments(t *testing.T) {
	db := openTest(t, t.TempDir(), Device)
	db.segments.limit = 10_000
	const n = 3 * maxOpenSegments
	for i := range n {
		db.mustSet(t, fmt.Sprint("x", i), large(i, 8_000))
	}
	for range 2 {
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := w; i < n; i += 4 {
					if v, err := db.get(fmt.Sprint("x", i)); err != nil || !bytes.Equal(v, large(i, 8_000)) {
						t.Errorf("x%d: %d bytes, %v", i, len(v), err)
					}
				}
			})
		}
		wg.Wait()
		db.segments.mu.Lock()
		open := len(db.segments.files)
		db.segments.mu.Unlock()
		if open > maxOpenSegments+1 {
			t.Errorf("%d files open", open)
		}
	}
}

// TestDeletedKeysLeaveTheDisk: what the tree held is gone from its files too,
// before long.
func TestDeletedKeysLeaveTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		db := openTest(t, dir, Device)
		const text = "a caption that nobody is to read again"
		db.mustSet(t, "kept", []byte("something that stays"))
		db.mustSet(t, "x", []byte(text))
		holds := func(text string) (found []string) {
			files, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				b, err := os.ReadFile(filepath.Join(dir, f.Name()))
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Contains(b, []byte(text)) {
					found = append(found, f.Name())
				}
			}
			return found
		}
		if len(holds(text)) == 0 {
			t.Fatal("the test does not find what is there")
		}
		db.mustDelete(t, "x")
		time.Sleep(2 * compactEvery)
		if got := holds(text); len(got) > 0 {
			t.Errorf("it is still in %v", got)
		}
		if len(holds("something that stays")) == 0 {
			t.Error("what was kept is not there")
		}
	})
}

// TestSpaceComesBackAtOnce: without a restart too, and with it the files that
// are empty, also one that was emptied while it was still written.
func TestSpaceComesBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		db := openTest(t, dir, Device)
		db.segments.limit = 300_000
		check := func(what string, bytes int64, files int) {
			t.Helper()
			synctest.Wait()
			if _, got := db.Size(); got > bytes+32<<10 {
				t.Errorf("%s: %d bytes on disk, want %d", what, got, bytes)
			}
			if got := names(t, dir); len(got) != files {
				t.Errorf("%s: files %v, want %d", what, got, files)
			}
		}
		for i := range 6 {
			db.mustSet(t, fmt.Sprint("x", i), large(i, 100_000))
		}
		check("stored", 600_000, 2)
		db.mustDelete(t, "x0", "x1")
		check("two deleted", 400_000, 2)
		db.mustSet(t, "x2", []byte("small"))
		check("the last of a file overwritten", 300_000, 1)
		db.mustDelete(t, "x3", "x4", "x5")
		check("all of the file being written deleted", 0, 1)
		db.mustSet(t, "y", large(7, 100_000))
		check("the next file begun", 100_000, 1)
	})
}

// TestStaged: values that their owners write ahead, beside each other, are
// stored by transactions, or leave nothing.
func TestStaged(t *testing.T) {
	dir := t.TempDir()
	db := openTest(t, dir, Device)
	if v, err := db.Stage(large(0, valueThreshold-1)); v != nil || err != nil {
		t.Errorf("a small value: %v, %v; want none", v, err)
	}
	db.Unstage(nil)
	if _, err := db.Stage(make([]byte, db.MaxValue()+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a value beyond MaxValue: %v, want ErrTooLarge", err)
	}
	const n, size = 40, 300_000
	refused := errors.New("refused")
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			v, err := db.Stage(large(i, size))
			if err != nil {
				t.Error(err)
				return
			}
			err = db.Update(t.Context(), size, func(tx *Tx) error {
				key := fmt.Appendf(nil, "x%d", i)
				if err := tx.SetStaged(key, v); err != nil {
					return err
				}
				if got, err := tx.Get(key); err != nil || !bytes.Equal(got, large(i, size)) {
					t.Errorf("x%d in its transaction: %d bytes, %v", i, len(got), err)
				}
				if i%2 == 1 {
					return refused
				}
				return nil
			})
			if i%2 == 1 {
				db.Unstage(v)
			}
			if i%2 == 1 != errors.Is(err, refused) {
				t.Errorf("x%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for range 2 {
		for i := range n {
			v, err := db.get(fmt.Sprint("x", i))
			if i%2 == 1 != errors.Is(err, kv.ErrNotFound) || i%2 == 0 && !bytes.Equal(v, large(i, size)) {
				t.Errorf("x%d: %d bytes, %v", i, len(v), err)
			}
		}
		db = settled(t, db)
		if _, got := db.Size(); got > n/2*(size+8<<10) {
			t.Errorf("%d bytes on disk for %d values of %d", got, n/2, size)
		}
	}
}

// TestUnstagedLeavesAtOnce: without a restart too.
func TestUnstagedLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := openTest(t, t.TempDir(), Device)
		v, err := db.Stage(large(1, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		if _, got := db.Size(); got < 1<<20 {
			t.Fatalf("%d bytes on disk", got)
		}
		db.Unstage(v)
		synctest.Wait()
		if _, got := db.Size(); got > 64<<10 {
			t.Errorf("%d bytes on disk after it was given up", got)
		}
	})
}
