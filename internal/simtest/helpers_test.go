package simtest

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeTB is a test that ends when the real one says so.
type fakeTB struct {
	testing.TB
	failed   bool
	logged   string
	cleanups []func()
}

func (f *fakeTB) Helper()           {}
func (f *fakeTB) Failed() bool      { return f.failed }
func (f *fakeTB) Cleanup(fn func()) { f.cleanups = append(f.cleanups, fn) }
func (f *fakeTB) Log(args ...any)   { f.logged += fmt.Sprint(args...) }
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.failed = true
	f.logged += fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestLogger(t *testing.T) {
	for _, failed := range []bool{false, true} {
		tb := &fakeTB{failed: failed}
		log := Logger(tb)
		for i := range keptLines + 10 {
			log.Debug("line", "i", i)
		}
		tb.cleanups[0]()
		log.Info("late")
		if !failed {
			if tb.logged != "" {
				t.Errorf("a passing test printed %.80q", tb.logged)
			}
			continue
		}
		if got := strings.Count(tb.logged, "msg=line"); got != keptLines {
			t.Errorf("got %d lines, want %d", got, keptLines)
		}
		first, last := strings.Index(tb.logged, "i=10\n"), strings.Index(tb.logged, fmt.Sprintf("i=%d\n", keptLines+9))
		if first < 0 || last < first || strings.Contains(tb.logged, "i=9\n") || strings.Contains(tb.logged, "late") {
			t.Errorf("lines are not the newest in order: first at %d, last at %d", first, last)
		}
	}
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		Await(t, time.Hour, func() bool { return time.Since(start) >= 42*time.Minute })
		if got := time.Since(start); got > 43*time.Minute {
			t.Errorf("awaited %v, want 42m", got)
		}
		tb := &fakeTB{}
		ended := make(chan struct{})
		start = time.Now()
		go func() {
			defer close(ended)
			Await(tb, time.Second, func() bool { return false })
		}()
		<-ended
		if got := time.Since(start); got != time.Second || !tb.failed {
			t.Errorf("gave up after %v (failed: %v), want 1s", got, tb.failed)
		}
	})
}
