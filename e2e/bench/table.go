//go:build linux

package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// line is one line of the table: a figure of a row and its goal.
type line struct {
	row, key, title string
	unit            unit
	goal            goal
}

// unit says how a figure is written.
type unit struct {
	name   string
	format string
	scale  float64 // divides the figure
}

var (
	perSecond = unit{"/s", "%.0f", 1}
	megabytes = unit{" MB", "%.1f", 1e6}
	kilobytes = unit{" KB", "%.1f", 1e3}
	seconds   = unit{" s", "%.2f", 1}
)

func (u unit) text(v float64) string { return fmt.Sprintf(u.format, v/u.scale) + u.name }

// goal is what a figure of pairsync must reach: a share of somebody else's, or
// a bound of its own in the figure's unit.
type goal struct {
	share  float64 // of what of reaches
	of     string  // mosquitto or floor
	most   float64
	atMost bool
}

func (g goal) text(u unit) string {
	switch {
	case g.share > 0:
		return fmt.Sprintf("≥ %g × %s", g.share, g.of)
	case g.atMost:
		return fmt.Sprintf("≤ %g%s", g.most/u.scale, u.name)
	}
	return fmt.Sprintf("≥ %g%s", g.most/u.scale, u.name)
}

// met judges v, and other, which is the peer's or the floor's figure, 0 where
// it was not measured.
func (g goal) met(v, other float64) bool {
	switch {
	case g.share > 0:
		return other > 0 && v >= g.share*other
	case g.atMost:
		return v <= g.most
	}
	return v >= g.most
}

func ofMosquitto(share float64) goal { return goal{share: share, of: "mosquitto"} }
func ofFloor(share float64) goal     { return goal{share: share, of: "floor"} }
func atMost(v float64) goal          { return goal{most: v, atMost: true} }
func atLeast(v float64) goal         { return goal{most: v} }

var lines = []line{
	{"live-200k", "rate", "live 200 KB, 8 pairs, window 10, messages", perSecond, ofMosquitto(0.5)},
	{"live-200k", "rate", "the same against the disk", perSecond, ofFloor(0.6)},
	{"live-1k", "rate", "live 1 KB, 50 pairs, window 20, messages", perSecond, ofMosquitto(0.3)},
	{"fill", "rate", "2,000 × 200 KB to users who are away, messages", perSecond, ofMosquitto(0.4)},
	{"fill", "rss", "– VmRSS then", megabytes, atMost(80e6)},
	{"fill", "peak", "– VmHWM (peak) then", megabytes, atMost(80e6)},
	{"fill", "drain", "– they come back and take it, messages", perSecond, ofMosquitto(0.4)},
	{"queue", "rss", "10,000 × 200 KB queued: VmRSS", megabytes, atMost(100e6)},
	{"queue", "peak", "– VmHWM (peak) of the filling", megabytes, atMost(100e6)},
	{"queue", "restart-peak", "– VmHWM (peak) of the restarts below", megabytes, atMost(100e6)},
	{"queue", "term", "– SIGTERM, then start until a CONNECT is answered", seconds, atMost(1)},
	{"queue", "kill", "– kill -9 while publishing, then the same", seconds, atMost(1)},
	{"idle", "growth", "2,000 idle durable connections: VmRSS of each", kilobytes, atMost(24e3)},
	{"storm", "rate", "CONNECT with an EdDSA token, CONNACK, close", perSecond, atLeast(4000)},
}

// servers are the columns of the table; the disk's floor is one of them.
var servers = []string{"pairsync", "mosquitto", "floor"}

// unitOf is the unit of the figures with a key.
func unitOf(key string) unit {
	for _, l := range lines {
		if l.key == key {
			return l.unit
		}
	}
	return megabytes // memory that has no goal of its own
}

// results are all figures: of a row, of a server, one for each round.
type results map[string]map[string][]figures

func (r results) add(row, server string, f figures) {
	if r[row] == nil {
		r[row] = map[string][]figures{}
	}
	r[row][server] = append(r[row][server], f)
}

// of returns the figures of a line on one server, a figure a round.
func (r results) of(row, key, server string) (out []figure) {
	for _, f := range r[row][server] {
		if v, ok := f[key]; ok {
			out = append(out, v)
		}
	}
	return out
}

// median of what get returns of each; false where there is nothing.
func median(list []figure, get func(figure) float64) (float64, bool) {
	if len(list) == 0 {
		return 0, false
	}
	var v []float64
	for _, f := range list {
		v = append(v, get(f))
	}
	slices.Sort(v)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2, true
}

func value(f figure) float64 { return f.value }

// report is the table, how it came about, and every single figure.
func (b *bench) report(list []row, took time.Duration) string {
	var out strings.Builder
	fmt.Fprintf(&out, "# pairsync beside mosquitto\n\nMedians of %d of %d rounds, %s, in %s.\n\n", b.done, b.rounds, time.Now().UTC().Format(time.DateOnly), took.Round(time.Second))
	out.WriteString("| row | pairsync | mosquitto | disk floor | ratio | goal | met? | server CPU each: pairsync / mosquitto | client CPU share: pairsync / mosquitto |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range lines {
		if slices.ContainsFunc(list, func(r row) bool { return r.key == l.row }) {
			out.WriteString(b.results.line(l) + "\n")
		}
	}
	out.WriteString("\nServer CPU each is the server's processor time for a message or a connection; client CPU share is the load client's part of\nwhat both have used. MB and KB are 10^6 and 10^3 bytes. The disk floor is one writer that writes 200 KB and calls fdatasync, again and again.\n")
	fmt.Fprintf(&out, "\n%s\n\npairsync runs as shipped, but for limits that are per user or per address, since all load comes from one address:\n", machine(b.program))
	for _, v := range raised {
		fmt.Fprintf(&out, "    %s\n", v)
	}
	fmt.Fprintf(&out, "\nmosquitto's configuration:\n\n    %s\n\nEvery round (other: what the rest of the machine used meanwhile, in cores; the kernel's work for the disk is in it):\n\n", strings.ReplaceAll(strings.TrimSpace(mosquittoConfig), "\n", "\n    "))
	for _, r := range list {
		for _, server := range servers {
			for n, f := range b.results[r.key][server] {
				for _, key := range slices.Sorted(maps.Keys(f)) {
					fmt.Fprintf(&out, "    %-10s%-10s round %d  %-12s %s%s\n", r.key, server, n+1, key, unitOf(key).text(f[key].value), f[key].cost())
				}
			}
		}
	}
	return out.String()
}

func (r results) line(l line) string {
	cells := []string{l.title}
	ours, measured := median(r.of(l.row, l.key, "pairsync"), value)
	var other float64
	for _, server := range servers {
		v, ok := median(r.of(l.row, l.key, server), value)
		if !ok {
			cells = append(cells, "–")
			continue
		}
		if l.goal.of == server {
			other = v
		}
		cells = append(cells, l.unit.text(v))
	}
	ratio, met := "–", "no"
	if other > 0 {
		ratio = fmt.Sprintf("%.2f", ours/other)
	}
	if measured && l.goal.met(ours, other) {
		met = "yes"
	}
	cells = append(cells, ratio, l.goal.text(l.unit), met, r.pairOf(l, "%.0f µs", figure.serverMicros), r.pairOf(l, "%.0f %%", figure.clientShare))
	return "| " + strings.Join(cells, " | ") + " |"
}

// pairOf is what both servers' figures have cost.
func (r results) pairOf(l line, format string, get func(figure) float64) string {
	var out []string
	for _, server := range []string{"pairsync", "mosquitto"} {
		list := r.of(l.row, l.key, server)
		if v, ok := median(list, get); ok && list[0].count > 0 {
			out = append(out, fmt.Sprintf(format, v))
		} else {
			out = append(out, "–")
		}
	}
	return strings.Join(out, " / ")
}

// serverMicros is the server's processor time for each message.
func (f figure) serverMicros() float64 {
	return float64(f.used.server.Microseconds()) / float64(max(1, f.count))
}

// clientShare is the client's percentage of what it and the server have used.
func (f figure) clientShare() float64 {
	return 100 * float64(f.used.client) / float64(max(1, f.used.client+f.used.server))
}

// cost is what a stretch has used, in cores.
func (f figure) cost() string {
	if f.count == 0 {
		return ""
	}
	cores := func(d time.Duration) float64 { return float64(d) / float64(f.used.took) }
	return fmt.Sprintf("   cores: server %.2f client %.2f other %.2f", cores(f.used.server), cores(f.used.client), cores(f.used.other))
}

// machine says what this was measured on.
func machine(pairsync []string) string {
	var uts syscall.Utsname
	kernel := "unknown kernel"
	if syscall.Uname(&uts) == nil {
		kernel = "Linux " + utsText(uts.Release[:])
	}
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "model name"); ok {
			rest, _, _ = strings.Cut(rest, "\n")
			model = strings.Trim(rest, "\t :")
		}
	}
	ours := "pairsync under a profile"
	if len(pairsync) == 1 {
		ours = firstLine(pairsync[0], "version")
	}
	return fmt.Sprintf("%d × %s, %s, %s; %s; %s.", runtime.NumCPU(), model, kernel, runtime.Version(), ours, firstLine(mosquittoProgram(), "-h"))
}

func utsText[T int8 | uint8](field []T) string {
	var b strings.Builder
	for _, c := range field {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}

// firstLine is what a program says first; its exit code does not matter.
func firstLine(program string, args ...string) string {
	out, _ := exec.Command(program, args...).CombinedOutput()
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
