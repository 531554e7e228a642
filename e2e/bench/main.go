//go:build linux

// Command bench measures `pairsync serve` beside Debian's mosquitto: real
// processes, each on a fresh directory of the same disk, one at a time, in
// turns, under the same load (e2e/load). It prints a table of medians beside
// the goals, and writes it to a file with every single number.
//
//	make build && go run ./e2e/bench -rounds 5
//	go run ./e2e/bench -rounds 1 -only live-200k,live-1k
//	go run ./e2e/bench -rounds 1 -only live-200k -profile bench-out/profile
//
// mosquitto is what people would otherwise run: persistence on, but nothing on
// disk when it acknowledges, and no tokens to verify. pairsync acknowledges
// after fsync and verifies an EdDSA token at each connect.
//
// It reads /proc and so runs on Linux only. The machine should do nothing else
// meanwhile; the file says how much it did.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// runWait bounds one run of one row.
const runWait = 5 * time.Minute

// profileVar tells a child, this program again, to be the server under a
// profile that goes into the directory it names.
const profileVar = "BENCH_PROFILE_DIR"

type options struct {
	rounds   int
	only     string
	pairsync string
	out      string
	profile  string
	within   time.Duration
}

func main() {
	if dir := os.Getenv(profileVar); dir != "" {
		fail(serveProfiled(dir))
		return
	}
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "how often each row is measured; the table has the medians")
	flag.StringVar(&o.only, "only", "", "rows to measure, separated by commas: "+strings.Join(rowKeys(), ","))
	flag.StringVar(&o.pairsync, "pairsync", "bin/pairsync", "the server to measure, as make build makes it")
	flag.StringVar(&o.out, "out", "bench-out", "directory, on a disk, for the data and the table (speed.md)")
	flag.DurationVar(&o.within, "within", 10*time.Minute, "no round begins that would not end within this, but for the first")
	flag.StringVar(&o.profile, "profile", "", "directory for processor and heap profiles of pairsync; slower, not for the table")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fail(run(ctx, o))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func rowKeys() (keys []string) {
	for _, r := range rows {
		keys = append(keys, r.key)
	}
	return keys
}

// chosen returns the rows to run.
func chosen(only string) ([]row, error) {
	if only == "" {
		return rows, nil
	}
	var out []row
	for _, key := range strings.Split(only, ",") {
		i := slices.IndexFunc(rows, func(r row) bool { return r.key == key })
		if i < 0 {
			return nil, fmt.Errorf("-only: there is no row %q, only %s", key, strings.Join(rowKeys(), ", "))
		}
		out = append(out, rows[i])
	}
	return out, nil
}

func run(ctx context.Context, o options) error {
	list, err := chosen(o.only)
	if err != nil {
		return err
	}
	if o.rounds < 1 {
		return errors.New("-rounds: must be at least 1")
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	if err := onDisk(o.out); err != nil {
		return err
	}
	data, err := os.MkdirTemp(o.out, "data-")
	if err != nil {
		return err
	}
	b := &bench{options: o, data: data, results: results{}}
	if err := b.prepare(); err != nil {
		return errors.Join(err, os.RemoveAll(data))
	}
	start := time.Now()
	for n := range o.rounds {
		// A loaded machine gives fewer rounds rather than no table; the report says so.
		if spent := time.Since(start); n > 0 && spent+spent/time.Duration(n) > o.within {
			break
		}
		for _, r := range list {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", n+1, o.rounds, r.key)
			if err := b.round(ctx, r, n); err != nil {
				return fmt.Errorf("%s: %w (what the servers said is in %s)", r.key, err, data)
			}
		}
		b.done++
	}
	text := b.report(list, time.Since(start))
	fmt.Print(text)
	return errors.Join(os.WriteFile(filepath.Join(o.out, "speed.md"), []byte(text), 0o644), os.RemoveAll(data))
}

// bench is one run of the program.
type bench struct {
	options
	data    string
	program []string // pairsync
	results results
	done    int // rounds
}

// prepare finds the programs.
func (b *bench) prepare() error {
	b.program = []string{b.pairsync}
	if b.profile != "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		if err := os.MkdirAll(b.profile, 0o755); err != nil {
			return err
		}
		b.program = []string{"env", profileVar + "=" + b.profile, self}
	} else if _, err := os.Stat(b.pairsync); err != nil {
		return fmt.Errorf("%w: run `make build`", err)
	}
	if _, err := os.Stat(mosquittoProgram()); err != nil {
		return errors.New("mosquitto is missing: run `.ci/deps bench`")
	}
	return nil
}

// round measures one row once on each server, in turns that begin with the
// other one each time, and the disk between them.
func (b *bench) round(ctx context.Context, r row, n int) error {
	ours := func() error { return b.pairsyncRound(ctx, r) }
	theirs := func() error {
		if r.own != nil {
			return nil
		}
		return b.once(ctx, r, "mosquitto", func(ctx context.Context, dir string) (server, error) { return startMosquitto(ctx, dir) })
	}
	floor := func() error {
		v, err := diskFloor(b.data)
		b.results.add(r.key, "floor", figures{"rate": {value: v}})
		return err
	}
	turns := []func() error{ours, theirs}
	if r.floor {
		turns = slices.Insert(turns, 1, floor)
	}
	if n%2 == 1 {
		slices.Reverse(turns)
	}
	for _, do := range turns {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) pairsyncRound(ctx context.Context, r row) error {
	if r.own == nil {
		return b.once(ctx, r, "pairsync", func(ctx context.Context, dir string) (server, error) { return startPairsync(ctx, b.program, dir) })
	}
	ctx, cancel := context.WithTimeout(ctx, runWait)
	defer cancel()
	dir := b.dir(r, "pairsync")
	defer os.RemoveAll(dir)
	f, err := r.own(ctx, func() (*pairsync, error) { return startPairsync(ctx, b.program, dir) })
	if err != nil {
		return fmt.Errorf("pairsync: %w", err)
	}
	b.results.add(r.key, "pairsync", f)
	return nil
}

// dir is a server's data directory; what the server says goes into a file
// beside it, which stays when something fails.
func (b *bench) dir(r row, server string) string { return filepath.Join(b.data, r.key+"-"+server) }

// once runs a row on a server of its own.
func (b *bench) once(ctx context.Context, r row, name string, start func(context.Context, string) (server, error)) error {
	ctx, cancel := context.WithTimeout(ctx, runWait)
	defer cancel() // the clients go after the server, which is to be seen under load
	dir := b.dir(r, name)
	defer os.RemoveAll(dir)
	s, err := start(ctx, dir)
	if err != nil {
		return err
	}
	f, err := r.run(ctx, s)
	end := syscall.SIGKILL // mosquitto would write all that is queued
	if b.profile != "" && name == "pairsync" {
		end = syscall.SIGTERM
	}
	if err := errors.Join(err, s.stop(end)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	b.results.add(r.key, name, f)
	return nil
}

// poll asks again and again: nothing else tells.
func poll(ctx context.Context, ok func() bool) error {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
