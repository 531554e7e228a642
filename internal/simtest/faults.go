package simtest

import "time"

// Cut resets every open connection between the two hosts, whoever dialed, as
// a TCP RST does: bytes under way are lost; both ends may read what has
// arrived and then, like every write, get syscall.ECONNRESET. It returns how
// many connections it cut.
func (n *Network) Cut(a, b string) int {
	is := func(pattern, host string) bool { return pattern == Any || pattern == host }
	var cut []*link
	n.mu.Lock()
	for _, l := range n.links {
		if is(a, l.from) && is(b, l.to) || is(a, l.to) && is(b, l.from) {
			cut = append(cut, l)
		}
	}
	n.mu.Unlock()
	for _, l := range cut {
		l.reset()
	}
	return len(cut)
}

// CutAfter plans to cut the next connection between the two hosts, whoever
// dials it, when exactly offset bytes have travelled on it from one to the
// other: the receiver reads them all and then syscall.ECONNRESET. Offset 0
// cuts it as soon as it is open. A second call for the same route replaces
// the plan.
func (n *Network) CutAfter(from, to string, offset int64) { n.plan(n.cuts, from, to, offset, false) }

// CutEachAfter is CutAfter for every following connection, until Heal.
func (n *Network) CutEachAfter(from, to string, offset int64) { n.plan(n.cuts, from, to, offset, true) }

// Corrupt plans to flip one bit of the byte at offset (0 is the first) of
// what travels from one host to the other on their next connection.
func (n *Network) Corrupt(from, to string, offset int64) { n.plan(n.flips, from, to, offset, false) }

// Stall stops the bytes from one host to the other, in open and in new
// connections, until Resume: a half-open connection. Nothing fails and nobody
// is told; writes succeed until the link's buffers (some 512 KiB) are full,
// then wait. Not even the end of a connection passes.
func (n *Network) Stall(from, to string) {
	n.change(from, to, func(r *rules) { r.stalled = true })
}

// Resume ends what Stall of the same two names began.
func (n *Network) Resume(from, to string) {
	n.change(from, to, func(r *rules) { r.stalled = false })
}

// Isolate takes host out of everybody's reach, as when its Wi-Fi goes away:
// Stall in both directions, with everyone.
func (n *Network) Isolate(host string) {
	n.Stall(host, Any)
	n.Stall(Any, host)
}

// Rejoin ends Isolate.
func (n *Network) Rejoin(host string) {
	n.Resume(host, Any)
	n.Resume(Any, host)
}

// Refuse makes every Dial from one host to the other fail at once (on true),
// or lets them connect again. Open connections stay.
func (n *Network) Refuse(from, to string, on bool) {
	n.change(from, to, func(r *rules) { r.refused = on })
}

// Delay makes bytes from one host to the other arrive d later, plus up to
// jitter. Their order stays. Zeros end it.
func (n *Network) Delay(from, to string, d, jitter time.Duration) {
	n.change(from, to, func(r *rules) { r.delay, r.jitter = d, jitter })
}

// Rate lets each connection move at most bytesPerSecond from one host to the
// other. Zero ends it.
func (n *Network) Rate(from, to string, bytesPerSecond int) {
	n.change(from, to, func(r *rules) { r.rate = bytesPerSecond })
}

// Heal removes every fault and plan of the network. What was cut stays cut.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.rules)
	clear(n.cuts)
	clear(n.flips)
	n.wake()
}

// Moved returns how many bytes have arrived from one host at the other, over
// all connections: where a flow's steps are, for CutAfter.
func (n *Network) Moved(from, to string) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.moved[route{from, to}]
}

// Connections returns how many connections are open between the two hosts,
// half-open ones included.
func (n *Network) Connections(a, b string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, l := range n.links {
		if l.from == a && l.to == b || l.from == b && l.to == a {
			count++
		}
	}
	return count
}

func (n *Network) plan(plans map[route]plan, from, to string, offset int64, each bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	plans[route{from, to}] = plan{offset, each}
}

func (n *Network) change(from, to string, set func(*rules)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.rules[route{from, to}]
	set(&r)
	n.rules[route{from, to}] = r
	n.wake()
}

// wake lets everybody who waits for a rule look again. The caller holds n.mu.
func (n *Network) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
}
