package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for anything. On an idle machine all of it
// takes milliseconds; on a busy one nothing may fail for being slow.
const patience = 60 * time.Second

// record is everything of one kind that has happened so far. Tests wait on it
// and judge the whole of it, so that nothing that came early, late or twice
// goes unseen. It is safe for concurrent use.
type record[T any] struct {
	mu    sync.Mutex // guards the fields below
	items []T
	grown chan struct{} // closed at the next add or end
	ended bool
}

func newRecord[T any]() *record[T] { return &record[T]{grown: make(chan struct{})} }

func (r *record[T]) add(v T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.items = append(r.items, v)
	close(r.grown)
	r.grown = make(chan struct{})
}

// end says that nothing more will come.
func (r *record[T]) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.ended = true
		close(r.grown)
	}
}

// all returns what there is; it must not be changed.
func (r *record[T]) all() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.items[:len(r.items):len(r.items)]
}

var errEnded = errors.New("nothing more will come")

// until waits until ok is true of the whole record.
func (r *record[T]) until(ctx context.Context, ok func([]T) bool) ([]T, error) {
	for {
		r.mu.Lock()
		items, grown, ended := r.items[:len(r.items):len(r.items)], r.grown, r.ended
		r.mu.Unlock()
		if ok(items) {
			return items, nil
		}
		if ended {
			return items, errEnded
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return items, ctx.Err()
		}
	}
}

// await is until for a test's goroutine; what is waited for goes into the
// failure.
func (r *record[T]) await(t testing.TB, what string, ok func([]T) bool) []T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	items, err := r.until(ctx, ok)
	if err != nil {
		var lines []string
		for _, v := range items {
			lines = append(lines, fmt.Sprintf("%+v", v))
		}
		t.Fatalf("waiting for %s: %v; so far:\n%s", what, err, last(lines, 40))
	}
	return items
}

// process is a child process. Its output, both streams, is kept by lines.
type process struct {
	name  string
	cmd   *exec.Cmd
	out   *record[string]
	stdin io.WriteCloser
	done  chan struct{} // closed when it has ended
}

// environment is ours without any settings of the programs under test.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PAIRSYNC_") })
}

// start starts a program; it is killed when the test ends, and what it said is
// shown when the test has failed.
func start(t testing.TB, name string, env []string, argv ...string) *process {
	t.Helper()
	p := &process{name: name, cmd: exec.Command(argv[0], argv[1:]...), out: newRecord[string](), done: make(chan struct{})}
	lines := &lineWriter{line: p.out.add}
	p.cmd.Stdout, p.cmd.Stderr = lines, lines
	p.cmd.Env = append(environment(), env...)
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit code is what tests look at
		lines.flush()
		p.out.end()
	}()
	t.Cleanup(func() {
		p.signal(t, syscall.SIGKILL)
		<-p.done
		if t.Failed() {
			t.Logf("%s said at last:\n%s", name, last(p.out.all(), 15))
		}
	})
	return p
}

// signal sends sig; a process that has ended is left alone.
func (p *process) signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("signal %s: %v", p.name, err)
	}
}

// kill is kill -9.
func (p *process) kill(t testing.TB) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	<-p.done
}

// wait waits for the end and returns the exit code, -1 after a signal.
func (p *process) wait(t testing.TB) int {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		t.Fatalf("%s has not ended", p.name)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// text is everything the process has said.
func (p *process) text() string { return strings.Join(p.out.all(), "\n") }

// runs runs a program to its end, in time; its output is both streams.
func runs(t testing.TB, program string, args ...string) (code int, out string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = environment()
	b, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %s: %v %v\n%s", program, strings.Join(args, " "), err, ctx.Err(), b)
	}
	return cmd.ProcessState.ExitCode(), string(b)
}

// lineWriter hands on what is written to it by lines.
type lineWriter struct {
	line func(string)
	rest bytes.Buffer
}

func (w *lineWriter) Write(b []byte) (int, error) {
	n := len(b)
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			w.rest.Write(b)
			return n, nil
		}
		w.rest.Write(b[:i])
		w.line(w.rest.String())
		w.rest.Reset()
		b = b[i+1:]
	}
}

// flush hands on a last line without an end.
func (w *lineWriter) flush() {
	if w.rest.Len() > 0 {
		w.line(w.rest.String())
		w.rest.Reset()
	}
}

// last returns the last n lines, long ones shortened: photos are long.
func last(lines []string, n int) string {
	var b strings.Builder
	for _, line := range lines[max(0, len(lines)-n):] {
		b.WriteString(clip(line) + "\n")
	}
	return b.String()
}

// clip shortens what goes into a failure.
func clip(s string) string {
	const longest = 400
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}

// eventually asks again and again: commands have nothing to wait on.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-late.C:
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// newID is an id that nobody else has.
func newID(prefix string) string { return prefix + strings.ToLower(rand.Text()) }
