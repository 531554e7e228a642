//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// memory is what /proc/PID/status says, in bytes.
type memory struct {
	rss, peak, anon int64 // VmRSS, VmHWM, RssAnon
}

func memoryOf(pid int) (m memory, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	for key, to := range map[string]*int64{"VmRSS:": &m.rss, "VmHWM:": &m.peak, "RssAnon:": &m.anon} {
		_, rest, ok := bytes.Cut(b, []byte(key))
		fields := strings.Fields(string(rest[:min(len(rest), 40)]))
		if !ok || len(fields) == 0 {
			return m, fmt.Errorf("/proc/%d/status has no %s", pid, key)
		}
		kb, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return m, fmt.Errorf("/proc/%d/status: %s %w", pid, key, err)
		}
		*to = kb << 10
	}
	return m, nil
}

// tick is the unit of CPU times in /proc: USER_HZ, which Linux fixes at 100 for
// every architecture Go runs on.
const tick = time.Second / 100

// cpuOf is the processor time that a process has used.
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command's name, in brackets, may hold anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// ownCPU is the processor time that this process, the load, has used.
func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// machineCPU is the processor time that the whole machine has used.
func machineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	var busy int
	// cpu user nice system idle iowait irq softirq steal
	for i, f := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue
		}
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		busy += n
	}
	return time.Duration(busy) * tick, nil
}

// usage is what one measured stretch has cost.
type usage struct {
	took                  time.Duration
	server, client, other time.Duration // processor time
}

// measure runs do and returns what it cost; pid is the server's.
func measure(pid int, do func() error) (u usage, err error) {
	read := func() (at [3]time.Duration, err error) {
		var errs [3]error
		at[0], errs[0] = cpuOf(pid)
		at[1], errs[1] = ownCPU()
		at[2], errs[2] = machineCPU()
		return at, errors.Join(errs[:]...)
	}
	syscall.Sync() // what was written before is not to be paid for now
	before, err := read()
	if err != nil {
		return u, err
	}
	start := time.Now()
	if err := do(); err != nil {
		return u, err
	}
	u.took = time.Since(start)
	after, err := read()
	u.server, u.client = after[0]-before[0], after[1]-before[1]
	u.other = max(0, after[2]-before[2]-u.server-u.client)
	return u, err
}
