package broker

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pairsync/internal/ledger"
)

const (
	// relieveEvery is how long a pump waits for room before a reader that is
	// too slow is cut for it, and then the next.
	relieveEvery = 5 * time.Second
	// userShare is the part of the budget that the connections of one user may
	// take, so that one account cannot keep all others waiting.
	userShare = 4
)

// budget is memory that all connections share: that of the payloads which pumps
// have loaded and are writing, or that of the packets which are being received.
// Many slow clients cannot grow it. Who finds it full waits in a queue; the
// slowest are cut when that takes long. Their sessions lose nothing. It is safe
// for concurrent use.
type budget struct {
	size int

	mu      sync.Mutex // guards the fields below
	taken   int
	users   map[string]int
	holds   map[*hold]bool
	waiting []*hold // in the order of asking
}

// hold is room in the budget, or the wish for it.
type hold struct {
	c     *client
	user  string
	bytes int
	ready chan struct{} // closed when it is given
	// What the connection moves, what it had when the room was given, and when.
	moved *atomic.Int64
	begin int64
	since time.Time
}

func newBudget(size int) *budget {
	return &budget{size: size, users: map[string]int{}, holds: map[*hold]bool{}}
}

// ask queues for room and gives it at once where it can.
func (g *budget) ask(c *client, bytes int, moved *atomic.Int64) *hold {
	h := &hold{c: c, user: c.who().User, bytes: bytes, ready: make(chan struct{}), moved: moved}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, h)
	g.grant()
	return h
}

func (h *hold) given() bool {
	select {
	case <-h.ready:
		return true
	default:
		return false
	}
}

// grant gives room to those who wait, first come first served but for users
// that have their share; mu is held. What is larger than all of the budget, or
// a user's share, is let in when nothing else is.
func (g *budget) grant() {
	g.waiting = slices.DeleteFunc(g.waiting, func() func(*hold) bool {
		full := false
		return func(h *hold) bool {
			if full || g.shareTaken(h) {
				return false
			}
			if full = g.taken > 0 && g.taken+h.bytes > g.size; full {
				return false
			}
			g.taken += h.bytes
			g.users[h.user] += h.bytes
			g.holds[h] = true
			h.since, h.begin = time.Now(), h.moved.Load()
			close(h.ready)
			return true
		}
	}())
}

// shareTaken reports whether h has to wait for other connections of its user;
// mu is held.
func (g *budget) shareTaken(h *hold) bool {
	used := g.users[h.user]
	return used > 0 && used+h.bytes > g.size/userShare
}

// resize makes h's room as large as what was loaded, or what of it is left.
func (g *budget) resize(h *hold, bytes int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.holds[h] {
		return
	}
	g.taken += bytes - h.bytes
	g.users[h.user] += bytes - h.bytes
	h.bytes = bytes
	g.grant()
}

// free gives h's room back, or takes its wish back. More than once does nothing.
func (g *budget) free(h *hold) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.waiting, h); i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	if g.holds[h] {
		delete(g.holds, h)
		g.taken -= h.bytes
		if g.users[h.user] -= h.bytes; g.users[h.user] == 0 {
			delete(g.users, h.user)
		}
	}
	g.grant()
}

// slowest returns who is to be cut so that h gets room: of those that it waits
// for the one that has moved least, per second, since it was given its room;
// nil when h is not next, or nobody has had the time to show how slow it is.
func (g *budget) slowest(h *hold) *client {
	g.mu.Lock()
	defer g.mu.Unlock()
	own := g.shareTaken(h)
	first := slices.IndexFunc(g.waiting, func(w *hold) bool { return own && w.user == h.user || !own && !g.shareTaken(w) })
	if first < 0 || g.waiting[first] != h {
		return nil
	}
	var out *client
	var least float64
	for o := range g.holds {
		age := time.Since(o.since)
		if age < writeWait || own && o.user != h.user {
			continue
		}
		if rate := float64(o.moved.Load()-o.begin) / age.Seconds(); out == nil || rate < least {
			out, least = o.c, rate
		}
	}
	return out
}

// relieve ends the connection of the slowest, so that h gets room.
func (g *budget) relieve(h *hold) {
	if slow := g.slowest(h); slow != nil {
		slow.b.metrics.slowCut.Inc()
		slow.end(tooSlow)
	}
}

// receive waits for room for a packet of bytes that has begun to come in. It
// runs on the reader, which nothing wakes when the connection is ended.
func (c *client) receive(bytes int) (*hold, error) {
	g := c.b.incoming
	h := g.ask(c, bytes, &c.nc.received)
	if h.given() {
		return h, nil
	}
	c.b.metrics.memoryWaits.Inc()
	relieve := time.NewTicker(relieveEvery)
	defer relieve.Stop()
	for !c.cl.Closed() {
		select {
		case <-h.ready:
			return h, nil
		case <-relieve.C:
			g.relieve(h)
		}
	}
	g.free(h)
	return nil, errStopped
}

// take waits for room for bytes and answers the client's publishes meanwhile.
// It fails when the connection ends.
func (c *client) take(bytes int) (*hold, error) {
	g := c.b.budget
	h := g.ask(c, bytes, &c.nc.written)
	if h.given() {
		return h, nil
	}
	c.b.metrics.memoryWaits.Inc()
	defer c.poke() // what woke the pump meanwhile may be more than an answer
	relieve := time.NewTicker(relieveEvery)
	defer relieve.Stop()
	for {
		select {
		case <-h.ready:
			return h, nil
		case <-c.closed:
			g.free(h)
			return nil, errStopped
		case <-c.wake:
			if err := c.flush(true); err != nil {
				g.free(h)
				return nil, err
			}
		case <-relieve.C:
			g.relieve(h)
		}
	}
}

// maxLoaded is what one read may load: a photo and, before it, almost readBytes
// of smaller moments.
func (b *Broker) maxLoaded() int { return b.cfg.PhotoBytes + readBytes }

// load reads what is to be written to the client, within the budget. The
// caller frees the room, which is nil where nothing was read.
func (c *client) load(log ledger.LogID, after ledger.Seq, limit ledger.Limit) (ledger.Batch, *hold, error) {
	g := c.b.budget
	h := g.ask(c, c.b.maxLoaded(), &c.nc.written)
	if !h.given() {
		// Memory is short: ask for no more than what is next, if there is any.
		g.free(h)
		limit.Entries, limit.HeadersOnly = 1, true
		got, err := c.b.deps.Ledger.Read(c.ctx, log, after, limit)
		if err != nil || len(got.Entries) == 0 {
			return got, nil, err
		}
		if h, err = c.take(got.Entries[0].Size); err != nil {
			return ledger.Batch{}, nil, err
		}
		limit.HeadersOnly = false
	}
	got, err := c.b.deps.Ledger.Read(c.ctx, log, after, limit)
	if err != nil {
		g.free(h)
		return got, nil, err
	}
	g.resize(h, payloadBytes(got.Entries))
	return got, h, nil
}

func payloadBytes(entries []ledger.Entry) (n int) {
	for i := range entries {
		n += len(entries[i].Payload)
	}
	return n
}
