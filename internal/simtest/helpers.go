package simtest

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// keptLines is how much of a test's log Logger keeps: the newest, which tell
// why it failed.
const keptLines = 2000

// Logger returns a logger, at level debug, whose lines are printed when t
// fails and at no other time. It may be used by goroutines that outlive t.
func Logger(t testing.TB) *slog.Logger {
	log := &testLog{}
	t.Cleanup(func() {
		lines := log.end()
		if t.Failed() && lines != "" {
			t.Log("log of the failed test:\n" + lines)
		}
	})
	return slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// testLog keeps the newest lines written to it.
type testLog struct {
	mu    sync.Mutex // guards the fields below
	lines []string
	next  int // the oldest line, once lines is full
	ended bool
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended:
	case len(l.lines) < keptLines:
		l.lines = append(l.lines, string(p))
	default:
		l.lines[l.next] = string(p)
		l.next = (l.next + 1) % keptLines
	}
	return len(p), nil
}

// end returns the lines, oldest first, and drops what is written later.
func (l *testLog) end() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	return strings.Join(l.lines[l.next:], "") + strings.Join(l.lines[:l.next], "")
}

// Await returns as soon as cond is true, and fails t when it is not within
// timeout. It sleeps between its looks (a millisecond, or a ten-thousandth of
// timeout if that is longer), so inside a synctest bubble it costs fake time
// only. cond is called on the test's goroutine.
func Await(t testing.TB, timeout time.Duration, cond func() bool) {
	t.Helper()
	end := time.Now().Add(timeout)
	for !cond() {
		if !time.Now().Before(end) {
			t.Fatalf("condition not met within %v", timeout)
		}
		time.Sleep(max(time.Millisecond, timeout/10_000))
	}
}
