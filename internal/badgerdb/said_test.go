package badgerdb

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestFullDiskIsSaid: the log says once that the disk is full, also where
// nobody writes, and once that it has room again.
func TestFullDiskIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said lines
		d := new(disk)
		d.free.Store(1 << 40)
		db, err := open(t.TempDir(), Device, slog.New(slog.NewTextHandler(&said, nil)), d.space)
		if err != nil {
			t.Fatal(err)
		}
		defer closeTest(t, db)
		for round := 1; round <= 2; round++ {
			d.free.Store(0)
			time.Sleep(3 * roomEvery)
			if err := db.Update(t.Context(), 10_000, set("x", nil)); !errors.Is(err, ErrFull) {
				t.Errorf("update: %v, want ErrFull", err)
			}
			d.free.Store(1 << 40)
			time.Sleep(3 * roomEvery)
			if full, room := said.count("disk nearly full"), said.count("disk has room again"); full != round || room != round {
				t.Errorf("round %d: %d and %d lines say so, want as many as rounds", round, full, room)
			}
		}
	})
}

// lines is what a log wrote.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}
