// Package loginlimit slows down addresses that connect too often or fail to
// log in: one rule for every door, MQTT, Socket.IO and HTTP.
//
// An address may fail a number of times; then it waits 1 s before it may try
// again, and twice as long after each further failure, up to a minute. It is
// forgiven after ten minutes without a failure. It keeps nothing on disk, knows
// no tokens, and its memory is bounded.
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
type Limiter struct{ of *Of[netip.Addr] }

// Of is the same rule for whatever tries: addresses, or users who guess at
// something. It is safe for concurrent use.
type Of[K comparable] struct {
	perSecond        float64
	failures         int
	tooMany, tooFast string // for whoever asked

	mu    sync.Mutex // guards the field below
	known map[K]*record
}

// record is what is known of one of them.
type record struct {
	attempts *rate.Limiter
	failures int
	wait     time.Time // no attempt before
	failed   time.Time // the last failure
}

// New returns a limiter that takes so many attempts per second from one
// address, and makes it wait from so many failures on.
func New(perSecond float64, failures int) *Limiter {
	return &Limiter{NewOf[netip.Addr](perSecond, failures, "too many failed logins from this address", "too many connects from this address")}
}

// NewOf is New for others than addresses. The texts say why one that failed too
// often, and one that tries too fast, has to wait.
func NewOf[K comparable](perSecond float64, failures int, tooMany, tooFast string) *Of[K] {
	return &Of[K]{perSecond: perSecond, failures: failures, tooMany: tooMany, tooFast: tooFast, known: map[K]*record{}}
}

// Refusal says why an address has to wait, in words for whoever asked.
type Refusal struct {
	Wait   time.Duration
	reason string
}

// Error returns the reason.
func (r *Refusal) Error() string { return r.reason }

// Allow counts an attempt of a and returns nil if its token may be looked at.
func (l *Limiter) Allow(a netip.Addr) *Refusal { return l.of.Allow(Normal(a)) }

// Failed notes that what a showed was refused.
func (l *Limiter) Failed(a netip.Addr) { l.of.Failed(Normal(a)) }

// Failures returns how often a has failed and was not forgiven.
func (l *Limiter) Failures(a netip.Addr) int { return l.of.Failures(Normal(a)) }

// Allow counts an attempt of k and returns nil if it may go on.
func (l *Of[K]) Allow(k K) *Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, now := l.record(k), time.Now()
	if wait := r.wait.Sub(now); wait > 0 {
		return &Refusal{wait, fmt.Sprintf("%s, wait %v", l.tooMany, wait.Round(time.Second))}
	}
	if !r.attempts.AllowN(now, 1) {
		return &Refusal{time.Second, l.tooFast}
	}
	return nil
}

// Failed notes that what k tried was refused.
func (l *Of[K]) Failed(k K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, now := l.record(k), time.Now()
	if now.Sub(r.failed) > Forgiven {
		r.failures = 0
	}
	r.failures++
	r.failed = now
	if over := r.failures - l.failures; over >= 0 {
		r.wait = now.Add(min(FirstWait<<min(over, 10), LastWait))
	}
}

// Failures returns how often k has failed and was not forgiven.
func (l *Of[K]) Failures(k K) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.known[k]; r != nil && time.Since(r.failed) <= Forgiven {
		return r.failures
	}
	return 0
}

// record returns what is known of k, made where needed; mu is held.
func (l *Of[K]) record(k K) *record {
	r := l.known[k]
	if r == nil {
		if len(l.known) >= MaxAddresses {
			l.forget(time.Now())
		}
		r = &record{attempts: rate.NewLimiter(rate.Limit(l.perSecond), int(l.perSecond*Burst))}
		l.known[k] = r
	}
	return r
}

// forget makes room: first go those that were forgiven, then, where an attack
// has filled the table, any; mu is held.
func (l *Of[K]) forget(now time.Time) {
	for k, r := range l.known {
		if now.Sub(r.failed) > Forgiven {
			delete(l.known, k)
		}
	}
	for k := range l.known {
		if len(l.known) < MaxAddresses*3/4 {
			return
		}
		delete(l.known, k)
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
