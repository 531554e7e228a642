//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRows: every row still runs against the real server, in small, and the
// table has a figure of it in every line. What the figures are is for a
// machine that does nothing else.
func TestRows(t *testing.T) {
	dir, err := os.MkdirTemp("", "bench-") // a short path: a unix socket goes in there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "pairsync")
	if out, err := exec.Command("go", "build", "-o", program, "pairsync/cmd/pairsync").CombinedOutput(); err != nil {
		t.Fatalf("build the server: %v\n%s", err, out)
	}
	small := []row{
		{key: "live-200k", run: live(2, 4, 40, photoBytes)},
		{key: "live-1k", run: live(3, 20, 600, 1_000)},
		{key: "fill", run: fillAndDrain(2, 10, 60)},
		{key: "queue", own: queue(2, 10, 100)},
		{key: "idle", run: idle(20, 0)},
		{key: "storm", run: storm(4, 3, 40)},
	}
	b := &bench{options: options{rounds: 1}, data: dir, program: []string{program}, results: results{}}
	for i, r := range small {
		if r.key != rows[i].key {
			t.Errorf("row %d is %q here and %q in the benchmark", i, r.key, rows[i].key)
		}
		if err := b.pairsyncRound(t.Context(), r); err != nil {
			t.Fatalf("%s: %v", r.key, err)
		}
	}
	for _, l := range lines {
		got := b.results.of(l.row, l.key, "pairsync")
		// So few connections may cost no page that was not there.
		if len(got) != 1 || got[0].value <= 0 && l.row != "idle" {
			t.Errorf("%s has the figures %v of %s, want one above 0", l.title, got, l.key)
		}
	}
	text := b.report(small, time.Second)
	for _, l := range lines {
		if !strings.Contains(text, "\n| "+l.title+" | ") {
			t.Errorf("the table has no line %q:\n%s", l.title, text)
		}
	}
}

// TestLine: the table shows medians, judges by them, and never calls a goal
// met whose other side was not measured.
func TestLine(t *testing.T) {
	r := results{}
	for _, v := range []float64{900, 100, 500, 400, 600} {
		r.add("live-200k", "pairsync", figures{"rate": {value: v, used: usage{server: time.Second, client: time.Second}, count: 1000}})
	}
	rate := func(g goal) line { return line{"live-200k", "rate", "x", perSecond, g} }
	for name, tc := range map[string]struct {
		other float64
		line  line
		want  string
	}{
		"met":          {1000, rate(ofMosquitto(0.5)), "| x | 500/s | 1000/s | – | 0.50 | ≥ 0.5 × mosquitto | yes | 1000 µs / – | 50 % / – |"},
		"not met":      {1001, rate(ofMosquitto(0.5)), "| x | 500/s | 1001/s | – | 0.50 | ≥ 0.5 × mosquitto | no | 1000 µs / – | 50 % / – |"},
		"not measured": {0, rate(ofMosquitto(0.5)), "| x | 500/s | – | – | – | ≥ 0.5 × mosquitto | no | 1000 µs / – | 50 % / – |"},
		"at least":     {0, rate(atLeast(500)), "| x | 500/s | – | – | – | ≥ 500/s | yes | 1000 µs / – | 50 % / – |"},
		"at most":      {0, rate(atMost(499)), "| x | 500/s | – | – | – | ≤ 499/s | no | 1000 µs / – | 50 % / – |"},
	} {
		t.Run(name, func(t *testing.T) {
			r["live-200k"]["mosquitto"] = nil
			if tc.other > 0 {
				r.add("live-200k", "mosquitto", figures{"rate": {value: tc.other}})
			}
			if got := r.line(tc.line); got != tc.want {
				t.Errorf("got\n%s\nwant\n%s", got, tc.want)
			}
		})
	}
}

// TestProc: what is read from /proc is ours.
func TestProc(t *testing.T) {
	ballast := make([]byte, 64<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	m, err := memoryOf(os.Getpid())
	if err != nil || m.anon < int64(len(ballast)) || m.rss < m.anon || m.peak < m.rss {
		t.Errorf("memory is %+v (%v), want 64 MB or more, and rss between anon and peak", m, err)
	}
	var n byte
	u, err := measure(os.Getpid(), func() error {
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
			n += slices.Max(ballast[:1<<20])
		}
		return nil
	})
	if err != nil || u.server <= 0 || u.client <= 0 || u.took < 200*time.Millisecond {
		t.Errorf("a busy stretch cost %+v (%v, %d), want some of each", u, err, n)
	}
}
