// Package loginlimit slows down addresses that connect too often or fail to
// log in: one rule for every door, MQTT, Socket.IO and HTTP.
//
// An address may fail a number of times; then it waits 1 s before it may try
// again, and twice as long after each further failure, up to a minute. It is
// forgiven after ten minutes without a failure. It keeps nothing on disk, knows
// no users and no tokens, and its memory is bounded.
package loginlimit

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Waits after failed logins: the first, doubling up to the last; an address is
// forgiven after a time without a failure.
const (
	FirstWait = time.Second
	LastWait  = time.Minute
	Forgiven  = 10 * time.Minute
)

const (
	// Burst is how many seconds' worth of attempts may come at once: all the
	// frames of a home come back together after a restart.
	Burst = 30
	// MaxAddresses bounds the memory.
	MaxAddresses = 65536
)

// Limiter knows the addresses that connect. It is safe for concurrent use.
type Limiter struct {
	perSecond float64
	failures  int

	mu        sync.Mutex // guards the field below
	addresses map[netip.Addr]*record
}

// record is what is known of one address.
type record struct {
	attempts *rate.Limiter
	failures int
	wait     time.Time // no attempt before
	failed   time.Time // the last failure
}

// New returns a limiter that takes so many attempts per second from one
// address, and makes it wait from so many failures on.
func New(perSecond float64, failures int) *Limiter {
	return &Limiter{perSecond: perSecond, failures: failures, addresses: map[netip.Addr]*record{}}
}

// Refusal says why an address has to wait, in words for whoever asked.
type Refusal struct {
	Wait   time.Duration
	reason string
}

// Error returns the reason.
func (r *Refusal) Error() string { return r.reason }

// Allow counts an attempt of a and returns nil if its token may be looked at.
func (l *Limiter) Allow(a netip.Addr) *Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, now := l.record(Normal(a)), time.Now()
	if wait := r.wait.Sub(now); wait > 0 {
		return &Refusal{wait, fmt.Sprintf("too many failed logins from this address, wait %v", wait.Round(time.Second))}
	}
	if !r.attempts.AllowN(now, 1) {
		return &Refusal{time.Second, "too many connects from this address"}
	}
	return nil
}

// Failed notes that what a showed was refused.
func (l *Limiter) Failed(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, now := l.record(Normal(a)), time.Now()
	if now.Sub(r.failed) > Forgiven {
		r.failures = 0
	}
	r.failures++
	r.failed = now
	if over := r.failures - l.failures; over >= 0 {
		r.wait = now.Add(min(FirstWait<<min(over, 10), LastWait))
	}
}

// Failures returns how often a has failed and was not forgiven.
func (l *Limiter) Failures(a netip.Addr) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.addresses[Normal(a)]; r != nil && time.Since(r.failed) <= Forgiven {
		return r.failures
	}
	return 0
}

// record returns what is known of a, made where needed; mu is held.
func (l *Limiter) record(a netip.Addr) *record {
	r := l.addresses[a]
	if r == nil {
		if len(l.addresses) >= MaxAddresses {
			l.forget(time.Now())
		}
		r = &record{attempts: rate.NewLimiter(rate.Limit(l.perSecond), int(l.perSecond*Burst))}
		l.addresses[a] = r
	}
	return r
}

// forget makes room: first go those that were forgiven, then, where an attack
// has filled the table, any; mu is held.
func (l *Limiter) forget(now time.Time) {
	for a, r := range l.addresses {
		if now.Sub(r.failed) > Forgiven {
			delete(l.addresses, a)
		}
	}
	for a := range l.addresses {
		if len(l.addresses) < MaxAddresses*3/4 {
			return
		}
		delete(l.addresses, a)
	}
}

// Normal returns the address that a is counted under. An IPv6 host is its /64:
// it has as many addresses as it likes.
func Normal(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// ClientOf returns the address that an HTTP request comes from: remote, or
// where that is a trusted proxy, the last address in its X-Forwarded-For that
// is not. It is false for connections inside the process.
func ClientOf(remote string, forwardedFor []string, trusted []netip.Prefix) (netip.Addr, bool) {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}, false
	}
	client := at.Addr().Unmap()
	hops := strings.Split(strings.Join(forwardedFor, ","), ",")
	for i := len(hops) - 1; i >= 0 && within(client, trusted); i-- {
		hop, err := parseHop(strings.TrimSpace(hops[i]))
		if err != nil {
			break // what is before it was not written by anybody we trust
		}
		client = hop
	}
	return client, true
}

// parseHop reads an address with or without a port.
func parseHop(s string) (netip.Addr, error) {
	if at, err := netip.ParseAddrPort(s); err == nil {
		return at.Addr().Unmap(), nil
	}
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err
}

func within(a netip.Addr, list []netip.Prefix) bool {
	for _, p := range list {
		if p.Contains(a.WithZone("")) {
			return true
		}
	}
	return false
}
