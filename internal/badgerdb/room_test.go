package badgerdb

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// disk is a file system of a size that the test sets.
type disk struct{ free atomic.Int64 }

func (d *disk) space(string) (int64, error) { return d.free.Load(), nil }

func openOn(t *testing.T, dir string, d *disk) *DB {
	t.Helper()
	db, err := open(dir, Device, quiet, d.space)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeTest(t, db) })
	return db
}

func TestFullDisk(t *testing.T) {
	s, _ := sizesOf(Device)
	d := new(disk)
	d.free.Store(1 << 40)
	db := openOn(t, t.TempDir(), d)
	value := make([]byte, 10_000)
	if err := db.Update(t.Context(), len(value), set("x", value)); err != nil {
		t.Fatal(err)
	}
	d.free.Store(s.putRoom() - 1)
	if err := db.Update(t.Context(), len(value), set("y", value)); !errors.Is(err, ErrFull) {
		t.Errorf("update on a full disk: %v, want ErrFull", err)
	}
	if v, err := db.get("x"); err != nil || len(v) != len(value) {
		t.Errorf("read on a full disk: %d bytes, %v", len(v), err)
	}
	if err := db.Prune(t.Context(), func(tx *Tx) error { return tx.Delete([]byte("x")) }); err != nil {
		t.Errorf("prune on a full disk: %v", err)
	}
	d.free.Store(s.pruneRoom() - 1)
	if err := db.Prune(t.Context(), func(tx *Tx) error { return tx.Delete([]byte("x")) }); !errors.Is(err, ErrFull) {
		t.Errorf("prune on a brimful disk: %v, want ErrFull", err)
	}
	d.free.Store(1 << 40)
	if err := db.Update(t.Context(), len(value), set("y", value)); err != nil {
		t.Errorf("update once there is room again: %v", err)
	}
	if err := db.Healthy(); err != nil {
		t.Errorf("being full is no fault: %v", err)
	}
}

func TestOpenOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	d := new(disk)
	if _, err := open(dir, Device, quiet, d.space); !errors.Is(err, ErrFull) {
		t.Fatalf("open: %v, want ErrFull", err)
	}
	// The ballast makes the room to open, and to delete.
	if err := os.WriteFile(filepath.Join(dir, "ballast"), []byte("b"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := sizesOf(Device)
	db, err := open(dir, Device, quiet, func(string) (int64, error) {
		if _, err := os.Stat(filepath.Join(dir, "ballast")); err == nil {
			return 0, nil
		}
		return s.putRoom() - s.reserve, nil
	})
	if err != nil {
		t.Fatalf("open with ballast: %v", err)
	}
	defer closeTest(t, db)
	if err := db.Prune(t.Context(), func(tx *Tx) error { return tx.Delete([]byte("x")) }); err != nil {
		t.Errorf("prune: %v", err)
	}
	if err := db.Update(t.Context(), 0, set("x", nil)); !errors.Is(err, ErrFull) {
		t.Errorf("update: %v, want ErrFull", err)
	}
}

func TestBallast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := new(disk)
		s, _ := sizesOf(Device)
		d.free.Store(s.putRoom() + s.ballast)
		db := openOn(t, t.TempDir(), d)
		size := func() int64 {
			info, err := os.Stat(db.ballastPath())
			if err != nil {
				return 0
			}
			return info.Size()
		}
		time.Sleep(2 * ballastAfter)
		if got := size(); got != 0 {
			t.Errorf("ballast of %d bytes on a disk that is nearly full", got)
		}
		d.free.Store(1 << 40)
		time.Sleep(2 * ballastAfter)
		if got := size(); got != s.ballast {
			t.Errorf("ballast of %d bytes, want %d", got, s.ballast)
		}
		d.free.Store(0)
		_ = db.Prune(t.Context(), func(tx *Tx) error { return tx.Delete([]byte("x")) })
		if got := size(); got != 0 {
			t.Errorf("ballast of %d bytes on a full disk", got)
		}
	})
}

func TestFill(t *testing.T) {
	var b bytes.Buffer
	if err := fill(&b, 300_000); err != nil || b.Len() != 300_000 {
		t.Errorf("%d bytes, %v; want 300,000", b.Len(), err)
	}
	var small bytes.Buffer
	w := gzip.NewWriter(&small)
	_, _ = w.Write(b.Bytes())
	if err := w.Close(); err != nil || small.Len() < b.Len() {
		t.Errorf("compresses to %d bytes (%v)", small.Len(), err)
	}
}
