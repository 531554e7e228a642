package badgerdb

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/kv"
	"pairsync/internal/kv/kvtest"
)

var quiet = slog.New(slog.DiscardHandler)

func openTest(t testing.TB, dir string, p Profile) *DB {
	t.Helper()
	db, err := Open(dir, p, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeTest(t, db) })
	return db
}

func closeTest(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func set(key string, value []byte) func(*Tx) error {
	return func(tx *Tx) error { return tx.Set([]byte(key), value) }
}

func (db *DB) get(key string) (v []byte, err error) {
	err = db.View(func(tx *Tx) error {
		v, err = tx.Get([]byte(key))
		return err
	})
	return v, err
}

func (db *DB) keys(t *testing.T, prefix string) (keys []string) {
	t.Helper()
	err := db.View(func(tx *Tx) error {
		return tx.Scan([]byte(prefix), nil, false, func(key []byte, _ func() ([]byte, error)) error {
			keys = append(keys, string(key))
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestKV(t *testing.T) {
	for _, p := range []Profile{Server, Device} {
		t.Run(p.String(), func(t *testing.T) {
			kvtest.Run(t, func(t *testing.T) kv.Store { return openTest(t, t.TempDir(), p).KV() })
		})
	}
}

func TestKVKeepsApart(t *testing.T) {
	db := openTest(t, t.TempDir(), Server)
	if err := db.Update(t.Context(), 0, set("x", []byte("1"))); err != nil {
		t.Fatal(err)
	}
	err := db.KV().Scan(t.Context(), "", func(key string, _ []byte) error {
		return fmt.Errorf("found %q", key)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestValuesSurviveReopen(t *testing.T) {
	dir := t.TempDir()
	values := map[string][]byte{
		"empty": {}, "small": []byte("x"), "at": bytes.Repeat([]byte("a"), valueThreshold),
		"below": bytes.Repeat([]byte("b"), valueThreshold-1), "large": bytes.Repeat([]byte("c"), 1<<20),
	}
	db := openTest(t, dir, Device)
	for key, value := range values {
		if err := db.Update(t.Context(), len(value), set(key, value)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		for key, want := range values {
			if got, err := db.get(key); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, %v; want %d", key, len(got), err, len(want))
			}
		}
		closeTest(t, db)
		db = openTest(t, dir, Device)
	}
}

func TestFailedFunctionWritesNothing(t *testing.T) {
	db := openTest(t, t.TempDir(), Server)
	refused := errors.New("refused")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			err := db.Update(t.Context(), 0, func(tx *Tx) error {
				if err := tx.Set(fmt.Appendf(nil, "x%02d", i), []byte("v")); err != nil {
					return err
				}
				if i%2 == 1 {
					return refused
				}
				return nil
			})
			if i%2 == 1 != errors.Is(err, refused) {
				t.Errorf("update %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if got := db.keys(t, "x"); len(got) != 25 || got[1] != "x02" {
		t.Errorf("keys %v, want the 25 even ones", got)
	}
}

func TestTxSeesItsWritesAndEarlierOnes(t *testing.T) {
	db := openTest(t, t.TempDir(), Server)
	const n = 200
	done := make(chan error, n)
	for i := range n {
		err := db.Submit(t.Context(), 0, func(tx *Tx) error {
			v, err := tx.Get([]byte("counter"))
			if err != nil && !errors.Is(err, kv.ErrNotFound) {
				return err
			}
			if len(v) != i {
				return fmt.Errorf("job %d sees %d", i, len(v))
			}
			if err := tx.Set([]byte("counter"), append(v, 'x')); err != nil {
				return err
			}
			if v, err = tx.Get([]byte("counter")); len(v) != i+1 {
				return fmt.Errorf("job %d sees %d after its own write, %v", i, len(v), err)
			}
			if err := tx.Delete([]byte("counter")); err != nil {
				return err
			}
			if _, err := tx.Get([]byte("counter")); !errors.Is(err, kv.ErrNotFound) {
				return fmt.Errorf("get after delete: %v", err)
			}
			return tx.Set([]byte("counter"), v)
		}, func(err error) { done <- err })
		if err != nil {
			t.Fatal(err)
		}
	}
	for range n {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestBatchesAreSplit queues far more behind a blocked writer than one badger
// transaction takes.
func TestBatchesAreSplit(t *testing.T) {
	for _, size := range []int{10, valueThreshold - 1, 100_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			db := openTest(t, t.TempDir(), Device)
			n := min(2000, 8_000_000/size)
			release := make(chan struct{})
			if err := db.Submit(t.Context(), 0, func(*Tx) error { <-release; return nil }, func(error) {}); err != nil {
				t.Fatal(err)
			}
			go func() { close(release) }()
			value := bytes.Repeat([]byte("v"), size)
			var order []int
			done := make(chan struct{})
			for i := range n {
				err := db.Submit(t.Context(), size, set(fmt.Sprintf("x%05d", i), value), func(err error) {
					if err != nil {
						t.Errorf("job %d: %v", i, err)
					}
					if order = append(order, i); len(order) == n {
						close(done)
					}
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			<-done
			for i, got := range order {
				if got != i {
					t.Fatalf("done %d came as number %d", got, i)
				}
			}
			if got := db.keys(t, "x"); len(got) != n {
				t.Errorf("%d keys, want %d", len(got), n)
			}
		})
	}
}

func TestTooLarge(t *testing.T) {
	db := openTest(t, t.TempDir(), Device)
	if err := db.Update(t.Context(), 0, set("x", make([]byte, db.MaxValue()+1))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("value beyond MaxValue: %v, want ErrTooLarge", err)
	}
	if err := db.Update(t.Context(), 0, set("x", make([]byte, db.MaxValue()))); err != nil {
		t.Errorf("value of MaxValue: %v", err)
	}
	if err := db.Update(t.Context(), 0, set(strings.Repeat("k", maxKey+1), nil)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("key beyond the limit: %v, want ErrTooLarge", err)
	}
	err := db.Update(t.Context(), 0, func(tx *Tx) error {
		for i := range 1000 {
			if err := tx.Set(fmt.Appendf(nil, "y%d", i), nil); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("1000 entries in one transaction of a device: %v, want ErrTooLarge", err)
	}
	if got := db.keys(t, "y"); len(got) != 0 {
		t.Errorf("a refused transaction left %d keys", len(got))
	}
	if err := db.Healthy(); err != nil {
		t.Error(err)
	}
}

func TestScan(t *testing.T) {
	db := openTest(t, t.TempDir(), Server)
	for _, key := range []string{"a1", "b1", "b2", "b2x", "b\xff\xff", "c1"} {
		if err := db.Update(t.Context(), 0, set(key, []byte(key))); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		prefix, from string
		reverse      bool
		want         string
	}{
		{"b", "", false, "b1 b2 b2x b\xff\xff"},
		{"b", "", true, "b\xff\xff b2x b2 b1"},
		{"b", "b2", false, "b2 b2x b\xff\xff"},
		{"b", "b2", true, "b2 b1"},
		{"b", "b1x", true, "b1"},
		{"b2", "", false, "b2 b2x"},
		{"d", "", false, ""},
		{"d", "", true, ""},
	} {
		var from []byte
		if tt.from != "" {
			from = []byte(tt.from)
		}
		var got []string
		err := db.View(func(tx *Tx) error {
			return tx.Scan([]byte(tt.prefix), from, tt.reverse, func(key []byte, value func() ([]byte, error)) error {
				v, err := value()
				if string(v) != string(key) {
					t.Errorf("value of %q is %q", key, v)
				}
				got = append(got, string(key))
				return err
			})
		})
		if s := strings.Join(got, " "); err != nil || s != tt.want {
			t.Errorf("scan %q from %q reverse %v: %q, %v; want %q", tt.prefix, tt.from, tt.reverse, s, err, tt.want)
		}
	}
}

func TestViewCannotWrite(t *testing.T) {
	db := openTest(t, t.TempDir(), Server)
	if err := db.View(set("x", nil)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("set in a view: %v, want ErrReadOnly", err)
	}
}

func TestClose(t *testing.T) {
	db := openTest(t, t.TempDir(), Server)
	const n = 100
	var answered atomic.Int32
	for i := range n {
		if err := db.Submit(t.Context(), 0, set(fmt.Sprint("x", i), nil), func(err error) {
			if err != nil {
				t.Errorf("job %d: %v", i, err)
			}
			answered.Add(1)
		}); err != nil {
			t.Fatal(err)
		}
	}
	closeTest(t, db)
	if got := answered.Load(); got != n {
		t.Errorf("%d of %d queued jobs were answered", got, n)
	}
	if err := db.Update(t.Context(), 0, set("x", nil)); !errors.Is(err, ErrClosed) {
		t.Errorf("update after close: %v, want ErrClosed", err)
	}
	if err := db.View(func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("view after close: %v, want ErrClosed", err)
	}
	closeTest(t, db) // a second close is harmless
}

// TestCloseWaitsForViews: badger unmaps its files, and a reader would crash.
func TestCloseWaitsForViews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := openTest(t, t.TempDir(), Server)
		release, closed := make(chan struct{}), make(chan struct{})
		go func() {
			_ = db.View(func(tx *Tx) error {
				<-release
				if _, err := tx.Get([]byte("x")); !errors.Is(err, kv.ErrNotFound) {
					t.Errorf("get while the store waits to close: %v", err)
				}
				return nil
			})
		}()
		synctest.Wait()
		go func() {
			closeTest(t, db)
			close(closed)
		}()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("closed under a view")
		default:
		}
		close(release)
		<-closed
	})
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	db := openTest(t, dir, Server)
	if _, err := Open(dir, Server, quiet); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v, want ErrLocked", err)
	}
	closeTest(t, db)
	openTest(t, dir, Server)
}

func TestFormat(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		ok   bool
	}{
		"same":          {"pairsync-store 2\nprofile server\n", true},
		"older":         {"pairsync-store 1\nprofile server\n", false},
		"newer":         {"pairsync-store 3\nprofile server\n", false},
		"other profile": {"pairsync-store 2\nprofile device\n", false},
		"something":     {"hello\n", false},
		"empty":         {"", false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "FORMAT"), []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(dir, Server, quiet)
		if tt.ok != (err == nil) || err != nil && !errors.Is(err, ErrVersion) {
			t.Errorf("%s: %v, want ok %v or ErrVersion", name, err, tt.ok)
		}
		if err == nil {
			closeTest(t, db)
		}
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "MANIFEST"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(foreign, Server, quiet); !errors.Is(err, ErrVersion) {
		t.Errorf("foreign badger: %v, want ErrVersion", err)
	}
}

// TestFaultStopsAcknowledging logs what badger logs when an fsync fails.
func TestFaultStopsAcknowledging(t *testing.T) {
	db := openTest(t, t.TempDir(), Server)
	if err := db.Update(t.Context(), 0, set("x", []byte("1"))); err != nil {
		t.Fatal(err)
	}
	log := &badgerLog{log: quiet, fault: db.fault}
	log.Errorf("Unable to read: Key: %v", "x")
	if err := db.Healthy(); err != nil {
		t.Fatalf("a failed read made the store unhealthy: %v", err)
	}
	done := make(chan error, 1)
	err := db.Submit(t.Context(), 0, func(tx *Tx) error {
		log.Errorf("Error while curlf sync: %v\n", errors.New("input/output error"))
		return tx.Set([]byte("y"), nil)
	}, func(err error) { done <- err })
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrUnhealthy) || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("job whose fsync failed: %v, want ErrUnhealthy with its cause", err)
	}
	if err := db.Update(t.Context(), 0, set("z", nil)); !errors.Is(err, ErrUnhealthy) {
		t.Errorf("update afterwards: %v, want ErrUnhealthy", err)
	}
	if _, err := db.get("x"); err != nil {
		t.Errorf("reads go on: %v", err)
	}
}

// TestCommitFaultIsLatched commits to a store whose badger was closed.
func TestCommitFaultIsLatched(t *testing.T) {
	db := openTest(t, t.TempDir(), Server)
	err := db.Update(t.Context(), 0, func(tx *Tx) error {
		if err := db.badger.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		return tx.Set([]byte("x"), nil)
	})
	if !errors.Is(err, ErrUnhealthy) {
		t.Errorf("commit to a closed store: %v, want ErrUnhealthy", err)
	}
}

func TestLazy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		db := openTest(t, dir, Server)
		want := func(key, value string) {
			t.Helper()
			got, err := db.get(key)
			if string(got) != value || value == "" != errors.Is(err, kv.ErrNotFound) {
				t.Errorf("%s: %q, %v; want %q", key, got, err, value)
			}
		}
		db.SetLazy("a", []byte("1"))
		db.SetLazy("a", []byte("2"))
		time.Sleep(lazyAfter / 2)
		want("a", "")
		time.Sleep(lazyAfter)
		want("a", "2")
		// It rides on another's commit.
		db.SetLazy("b", []byte("1"))
		if err := db.Update(t.Context(), 0, set("other", nil)); err != nil {
			t.Fatal(err)
		}
		want("b", "1")
		// A real write overtakes it.
		db.SetLazy("b", []byte("2"))
		if err := db.Update(t.Context(), 0, set("b", []byte("3"))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * lazyAfter)
		want("b", "3")
		db.SetLazy("c", []byte("1"))
		closeTest(t, db)
		db = openTest(t, dir, Server)
		want("c", "1")
	})
}

func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := openTest(t, t.TempDir(), Server)
		err := db.Update(t.Context(), 0, func(tx *Tx) error { return tx.SetTTL([]byte("x"), []byte("v"), time.Hour) })
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Minute)
		if _, err := db.get("x"); err != nil {
			t.Errorf("before its end: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if _, err := db.get("x"); !errors.Is(err, kv.ErrNotFound) {
			t.Errorf("after its end: %v, want ErrNotFound", err)
		}
	})
}

// TestBubble opens, uses and closes a store inside a synctest bubble for
// hours; synctest fails if a goroutine is left.
func TestBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		for range 2 {
			db := openTest(t, dir, Device)
			for i := range 20 {
				if err := db.Update(t.Context(), 0, set(fmt.Sprint("x", i), make([]byte, 100_000))); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Hour)
			closeTest(t, db)
		}
	})
}

// TestNoGoroutinesLeft is TestBubble on a real clock.
func TestNoGoroutinesLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	db := openTest(t, t.TempDir(), Server)
	if err := db.Update(t.Context(), 0, set("x", nil)); err != nil {
		t.Fatal(err)
	}
	closeTest(t, db)
	if _, err := Open(t.TempDir(), Profile(7), quiet); err == nil {
		t.Error("unknown profile: no error")
	}
	for runtime.NumGoroutine() > before { // the last of badger's end on their own
		runtime.Gosched()
	}
}
