// Package simtest is the network of a simulated world: named hosts in one
// process, joined by in-memory links that a test can cut, stall, slow down and
// corrupt. It also holds the few helpers that tests of several packages share
// (Logger, Await).
//
// It is made for testing/synctest: every wait is durably blocked, time is the
// bubble's fake clock, and Network.Close ends every goroutine, so a whole
// world of broker, phones and frames runs for simulated days in moments. Make
// the Network inside the bubble. It works outside of one too, on real time.
//
// It is for tests only; nothing that ships imports it.
//
//	n := simtest.NewNetwork(t, 1)
//	ln := n.Listen("server")
//	conn, err := n.Dial(ctx, "phone", "server")
//	n.CutAfter("phone", "server", 100) // the next connection ends after 100 bytes
//	n.Isolate("phone")                 // out of reach: nothing moves, nothing fails
//
// Faults belong to a route, from one host to another, and count for bytes that
// travel that way, whoever dialed. Any stands for every host. Where several
// rules match a route the worst counts: the longest delay, the lowest rate.
package simtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"pairsync/internal/memnet"
)

// Any stands for every host, in the faults of a Network.
const Any = "*"

// route is one direction between two hosts; either may be Any.
type route struct{ from, to string }

// rules are the faults of a route that stay until they are changed.
type rules struct {
	stalled, refused bool
	delay, jitter    time.Duration
	rate             int // bytes per second; 0 is no limit
}

// plan is a fault at one offset of a connection.
type plan struct {
	offset int64
	each   bool // for every connection, not only for the next
}

// Network is a network of named hosts inside the process. Its methods may be
// called from any goroutine. A given seed always draws the same jitter and
// the same corrupted bits for the same connections.
type Network struct {
	seed    uint64
	running sync.WaitGroup // the lanes of the links

	mu        sync.Mutex // guards the fields below
	closed    bool
	ports     int
	listeners map[string]*listener
	links     map[memnet.Addr]*link // by the dialing side's address
	accepting map[memnet.Addr]*link // those that Accept has not returned yet
	rules     map[route]rules
	cuts      map[route]plan
	flips     map[route]plan
	moved     map[route]int64
	changed   chan struct{} // closed and replaced when rules change
}

// NewNetwork returns a network without hosts or faults. It is closed when t
// ends.
func NewNetwork(t testing.TB, seed uint64) *Network {
	n := &Network{
		seed:      seed,
		listeners: make(map[string]*listener),
		links:     make(map[memnet.Addr]*link),
		accepting: make(map[memnet.Addr]*link),
		rules:     make(map[route]rules),
		cuts:      make(map[route]plan),
		flips:     make(map[route]plan),
		moved:     make(map[route]int64),
		changed:   make(chan struct{}),
	}
	t.Cleanup(n.Close)
	return n
}

// Close resets every connection, closes every listener and returns when all
// goroutines of the network have ended. Every Dial that waits or comes later
// is refused.
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	n.wake()
	listeners := make([]*listener, 0, len(n.listeners))
	for _, l := range n.listeners {
		listeners = append(listeners, l)
	}
	n.mu.Unlock()
	for _, l := range listeners {
		l.Close()
	}
	n.Cut(Any, Any)
	n.running.Wait()
}

// Listen returns a listener for host. The name is free text without spaces:
// "server", or "server:8080" to be dialed by an HTTP client. Closing the
// listener frees the name; connections stay. It panics when host is taken,
// which is a mistake in the test.
func (n *Network) Listen(host string) net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[host] != nil {
		panic(fmt.Sprintf("simtest: %q is listening already", host))
	}
	l := &listener{Listener: memnet.Listen(memnet.Addr(host)), network: n, host: host}
	if n.closed {
		l.Listener.Close()
		return l
	}
	n.listeners[host] = l
	return l
}

// listener gives accepted connections the errors of the simulated link.
type listener struct {
	*memnet.Listener
	network *Network
	host    string
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	addr := c.RemoteAddr().(memnet.Addr)
	l.network.mu.Lock()
	defer l.network.mu.Unlock()
	accepted := l.network.accepting[addr]
	delete(l.network.accepting, addr)
	return &end{Conn: c, link: accepted}, nil
}

func (l *listener) Close() error {
	l.network.mu.Lock()
	if l.network.listeners[l.host] == l {
		delete(l.network.listeners, l.host)
	}
	l.network.mu.Unlock()
	return l.Listener.Close()
}

// Dial connects host from to the listener of host to. It takes one round trip
// of the route's delay, waits while the route is stalled either way, and then
// until the listener accepts; it fails with syscall.ECONNREFUSED when nobody
// listens or Refuse says so, and with ctx's error when ctx ends first.
func (n *Network) Dial(ctx context.Context, from, to string) (net.Conn, error) {
	c, err := n.dial(ctx, from, to)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "mem", Source: memnet.Addr(from), Addr: memnet.Addr(to), Err: err}
	}
	return c, nil
}

func (n *Network) dial(ctx context.Context, from, to string) (net.Conn, error) {
	there, back := n.rulesOf(from, to), n.rulesOf(to, from)
	if !sleep(ctx.Done(), there.delay+back.delay) {
		return nil, ctx.Err()
	}
	if !n.awaitMoving(ctx.Done(), from, to) || !n.awaitMoving(ctx.Done(), to, from) {
		return nil, ctx.Err()
	}
	n.mu.Lock()
	ln := n.listeners[to]
	if ln == nil || n.closed || n.match(from, to).refused {
		n.mu.Unlock()
		return nil, syscall.ECONNREFUSED
	}
	n.ports++
	addr := memnet.Addr(fmt.Sprintf("%s:%d", from, n.ports))
	near, relay := memnet.Pipe(addr, memnet.Addr(to))
	l := &link{network: n, addr: addr, port: n.ports, from: from, to: to, near: relay, dead: make(chan struct{})}
	n.links[addr], n.accepting[addr] = l, l
	n.mu.Unlock()

	far, err := ln.Dial(ctx, addr)
	if err != nil {
		n.forget(l)
		n.mu.Lock()
		delete(n.accepting, addr)
		n.mu.Unlock()
		if errors.Is(err, memnet.ErrRefused) {
			err = syscall.ECONNREFUSED
		}
		return nil, err
	}
	l.start(far)
	return &end{Conn: near, link: l}, nil
}

// Dialer returns a function that dials to as from: the shape that a client's
// configuration takes.
func (n *Network) Dialer(from, to string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, from, to) }
}

// DialContext returns a function for http.Transport and websocket.Dialer; the
// address it is given ("server:8080") is the name of the host.
func (n *Network) DialContext(from string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) { return n.Dial(ctx, from, address) }
}

// lane returns one direction of l, with the faults planned for it.
func (n *Network) lane(l *link, from, to string, source, target net.Conn) *lane {
	h := uint64(14695981039346656037) // FNV-1a, so that a seed means the same in every process
	for _, b := range []byte(from + "\x00" + to) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return &lane{
		link: l, route: route{from, to}, source: source, target: target,
		random: rand.New(rand.NewPCG(n.seed, h+uint64(l.port))),
		queue:  make(chan chunk, queuedChunks),
		cut:    take(n.cuts, from, to),
		flip:   take(n.flips, from, to),
	}
}

// take returns the offset planned for a new connection from one host to
// another, or -1, and removes the plan if it was for one connection only.
func take(plans map[route]plan, from, to string) int64 {
	for _, r := range matching(from, to) {
		p, ok := plans[r]
		if !ok {
			continue
		}
		if !p.each {
			delete(plans, r)
		}
		return p.offset
	}
	return -1
}

// matching returns the routes whose rules count from one host to another, the
// most special first.
func matching(from, to string) [4]route {
	return [4]route{{from, to}, {from, Any}, {Any, to}, {Any, Any}}
}

// match returns the worst of the rules that count. The caller holds n.mu.
func (n *Network) match(from, to string) rules {
	var out rules
	for _, key := range matching(from, to) {
		r := n.rules[key]
		out.stalled = out.stalled || r.stalled
		out.refused = out.refused || r.refused
		out.delay = max(out.delay, r.delay)
		out.jitter = max(out.jitter, r.jitter)
		if r.rate > 0 && (out.rate == 0 || r.rate < out.rate) {
			out.rate = r.rate
		}
	}
	return out
}

func (n *Network) rulesOf(from, to string) rules {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.match(from, to)
}

// awaitMoving returns true as soon as the route is not stalled or the network
// is closed, or false when done is closed first.
func (n *Network) awaitMoving(done <-chan struct{}, from, to string) bool {
	for {
		n.mu.Lock()
		stalled, changed := n.match(from, to).stalled && !n.closed, n.changed
		n.mu.Unlock()
		if !stalled {
			return true
		}
		select {
		case <-changed:
		case <-done:
			return false
		}
	}
}

func (n *Network) forget(l *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.links, l.addr)
}

// sleep waits d and returns true, or false when done is closed first.
func sleep(done <-chan struct{}, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-done:
		return false
	}
}
