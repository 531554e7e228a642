package broker

import (
	"bytes"
	"fmt"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// asker is a client as the budget sees it.
func asker(user string) *client {
	c := &client{nc: newConn(nil, nil, nil)}
	c.token.Store(&token.Principal{User: user})
	return c
}

func ask(g *budget, c *client, bytes int) *hold { return g.ask(c, bytes, &c.nc.written) }

func (g *budget) state() (taken, holds, waiting int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.taken, len(g.holds), len(g.waiting)
}

func TestBudgetIsGivenInOrder(t *testing.T) {
	g := newBudget(100)
	a := ask(g, asker("a"), 25)
	b := ask(g, asker("b"), 25)
	c := ask(g, asker("c"), 25)
	large := ask(g, asker("d"), 90)
	small := ask(g, asker("e"), 5)
	if !a.given() || !b.given() || !c.given() || large.given() || small.given() {
		t.Fatalf("given: %v %v %v %v %v, want the first three: a small one does not overtake",
			a.given(), b.given(), c.given(), large.given(), small.given())
	}
	g.free(a)
	g.free(a) // more than once does nothing
	g.resize(b, 5)
	if large.given() {
		t.Fatal("90 beside 30 of 100")
	}
	g.free(c)
	if !large.given() || !small.given() {
		t.Errorf("given: %v %v, want both", large.given(), small.given())
	}
	waits := ask(g, asker("f"), 50)
	g.free(waits) // it gives up
	for _, h := range []*hold{b, large, small} {
		g.free(h)
	}
	if taken, holds, waiting := g.state(); taken != 0 || holds != 0 || waiting != 0 || len(g.users) != 0 {
		t.Errorf("left: %d bytes, %d holds, %d waiting, users %v", taken, holds, waiting, g.users)
	}
	if h := ask(g, asker("g"), 1000); !h.given() {
		t.Error("what is larger than the budget never gets room")
	}
}

// TestBudgetShare: one user's connections do not take what others need.
func TestBudgetShare(t *testing.T) {
	g := newBudget(100)
	first, second := ask(g, asker("a"), 20), ask(g, asker("a"), 20)
	other := ask(g, asker("b"), 20)
	if !first.given() || second.given() || !other.given() {
		t.Errorf("given: %v %v %v, want a's first and b's", first.given(), second.given(), other.given())
	}
	g.free(first)
	if !second.given() {
		t.Error("a's second waits though a has nothing")
	}
}

func TestBudgetCutsTheSlowest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newBudget(100)
		a, b, own := asker("a"), asker("b"), asker("own")
		for _, c := range []*client{a, b, own} {
			if !ask(g, c, 25).given() {
				t.Fatal("no room")
			}
		}
		next, later, mine := ask(g, asker("c"), 50), ask(g, asker("d"), 1), ask(g, own, 10)
		a.nc.written.Add(1 << 20)
		b.nc.written.Add(1 << 10)
		if got := g.slowest(next); got != nil {
			t.Error("one is cut that has had no time")
		}
		time.Sleep(writeWait)
		young := asker("young")
		if h := ask(g, young, 0); h.given() {
			t.Error("overtaken")
		}
		if got := g.slowest(next); got != own {
			t.Error("not the one that wrote nothing")
		}
		own.nc.written.Add(1 << 30)
		if got := g.slowest(next); got != b {
			t.Error("not the slower one")
		}
		if got := g.slowest(later); got != nil {
			t.Error("one is cut for the second in the queue")
		}
		if got := g.slowest(mine); got != own {
			t.Error("who waits for its own user's share: not that user's")
		}
	})
}

// TestSlowReadersShareTheBudget: readers that move just enough not to be cut
// for standing still use the budget up; another pair's photo waits no longer
// than it takes to find and cut the slowest, publishers are answered meanwhile,
// and nobody's session loses anything.
func TestSlowReadersShareTheBudget(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.limited(func(l *LimitsConfig) { w.cfg.PhotoBytes = 1 << 20; l.WriteMemory = userShare * (1<<20 + readBytes) })
		n := w.network()
		n.Rate("broker", "slow", 2<<10) // 32 KiB within writeWait
		var slow []*peer
		payload := make([]byte, 1<<20)
		for i := range 8 {
			pair, err := w.reg.CreatePair(t.Context(), fmt.Sprint("a", i), fmt.Sprint("b", i))
			if err != nil {
				t.Fatal(err)
			}
			slow = append(slow, w.connect(pair.Users[1], func(c *mqttlink.Config) {
				c.Dial, c.MinBackoff, c.MaxBackoff = n.Dialer("slow", "broker"), time.Second, time.Minute
				c.Subscriptions = []mqttlink.Subscription{{Filter: moment.KindFilter(pair.ID, moment.Photo, pair.Users[0]), QoS: 1}}
			}))
			for k := range 2 {
				m := moment.Moment{Pair: pair.ID, User: pair.Users[0], Kind: moment.Photo, ID: fmt.Sprint("p", k), Payload: payload}
				if _, _, err := ledger.Append(t.Context(), w.ledger, ledger.PairLog(pair.ID), m); err != nil {
					t.Fatal(err)
				}
			}
		}
		settle(10 * time.Second)
		if taken, _, waiting := w.broker.budget.state(); taken < 3<<20 || waiting == 0 {
			t.Fatalf("%d bytes taken, %d wait: the budget is not used up", taken, waiting)
		}
		ben := w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") })
		defer ben.end()
		ann := w.connect("ann", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ben") })
		defer ann.end()
		want := ann.big(t, 0, 5, 200<<10)
		var took time.Duration
		for start := time.Now(); len(ben.distinct()) < len(want) && took < time.Hour; took = time.Since(start) {
			if err := ben.send(moment.Note, fmt.Sprint("n", took), "answered"); err != nil {
				t.Fatal(err)
			}
			if answered := time.Since(start) - took; answered > 2*time.Second {
				t.Fatalf("a note was answered after %v", answered)
			}
			time.Sleep(time.Second)
		}
		if diff := cmp.Diff(want, ben.distinct()); diff != "" {
			t.Errorf("ben (-want +got):\n%s", diff)
		}
		if took > 5*time.Minute {
			t.Errorf("ben waited %v", took)
		}
		n.Heal() // the links are good again
		settle(10 * time.Minute)
		for i, p := range slow {
			if got := len(p.distinct()); got != 2 {
				t.Errorf("slow reader %d has %d photos, want 2", i, got)
			}
			p.end()
		}
		if taken, holds, waiting := w.broker.budget.state(); taken+holds+waiting != 0 {
			t.Errorf("left: %d bytes, %d holds, %d waiting", taken, holds, waiting)
		}
	})
}

// TestSlowSendersShareTheBudget: one user begins more photos than there is
// memory for and lets them trickle; no more is allocated than the user's share,
// another user's photo goes through, and all is given back.
func TestSlowSendersShareTheBudget(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.limited(func(l *LimitsConfig) {
			w.cfg.PhotoBytes = 1 << 20
			l.WriteMemory, l.ReadMemory = userShare*(1<<20+readBytes), userShare*(1<<20+readBytes)
		})
		photo := encode(t, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 5, PacketID: 1,
			TopicName: "pairs/" + w.pair.ID + "/photos/ann/slow", Payload: make([]byte, 900<<10),
		})
		const senders = 40
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var conns []net.Conn
		for i := range senders {
			c := w.raw()
			c.Write(w.connectBytes(t, "ann", fmt.Sprint("x", i), nil))
			settle(10 * time.Millisecond)
			c.Write(photo[:2000])
			conns = append(conns, c)
		}
		settle(10 * time.Millisecond)
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > senders*900<<10/2 {
			t.Errorf("%d KB were allocated for photos of which 80 KB have come", grown>>10)
		}
		if taken, holds, waiting := w.broker.incoming.state(); holds != 1 || waiting != senders-1 {
			t.Errorf("%d bytes in %d holds, %d wait; want one and the rest", taken, holds, waiting)
		}
		ben := w.connect("ben", nil)
		defer ben.end()
		start := time.Now()
		ben.big(t, 0, 3, 900<<10)
		if took := time.Since(start); took > time.Second {
			t.Errorf("another user's photos took %v", took)
		}
		for range 15 { // they trickle on
			time.Sleep(time.Second)
			for _, c := range conns {
				c.Write(photo[2000:2010])
			}
		}
		for _, c := range conns[1:] { // those that wait go, and the first comes to its end
			c.Close()
		}
		conns[0].Write(photo[2000+15*10:])
		settle(time.Minute)
		if got := readAll(conns[0]); !bytes.Contains(got, []byte{0x40, 2, 0, 1}) && !bytes.Contains(got, []byte{0x40, 4, 0, 1, 0, 0}) {
			t.Errorf("the first got % x, want its PUBACK", got[max(0, len(got)-8):])
		}
		conns[0].Close()
		settle(time.Minute)
		if taken, holds, waiting := w.broker.incoming.state(); taken+holds+waiting != 0 {
			t.Errorf("left: %d bytes, %d holds, %d waiting", taken, holds, waiting)
		}
		if n := w.broker.Connections(); n != 1 {
			t.Errorf("%d connections are left, want ben's", n)
		}
	})
}

// TestWaitersEnd: who waits for memory ends with its connection, not with the
// wait, and what it waited for comes later.
func TestWaitersEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		out := ask(w.broker.budget, asker("x"), w.cfg.Limits.WriteMemory)
		in := ask(w.broker.incoming, asker("x"), w.cfg.Limits.ReadMemory)
		ben := w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") })
		ann := w.connect("ann", func(c *mqttlink.Config) { c.MinBackoff, c.MaxBackoff = 30*time.Second, 30*time.Second })
		defer ann.end()
		want := ann.sendN(t, 0, 1)
		sent := make(chan []string)
		go func() { sent <- ann.big(t, 1, 2, 200<<10) }()
		settle(100 * time.Millisecond)
		_, _, writing := w.broker.budget.state()
		_, _, reading := w.broker.incoming.state()
		if writing != 1 || reading != 1 {
			t.Fatalf("%d wait to write and %d to read, want ben and ann", writing, reading)
		}
		ben.end()
		w.broker.Kick("ann/ann-phone")
		settle(relieveEvery + time.Second)
		if n := w.broker.Connections(); n != 0 {
			t.Errorf("%d connections wait on", n)
		}
		_, _, writing = w.broker.budget.state()
		if _, _, reading = w.broker.incoming.state(); writing+reading != 0 {
			t.Errorf("%d wait to write and %d to read, want none", writing, reading)
		}
		w.broker.budget.free(out)
		w.broker.incoming.free(in)
		want = append(want, <-sent...)
		again := w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") })
		defer again.end()
		settle(time.Second)
		if diff := cmp.Diff(want, again.topics()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestWaitCountsForNobody: how long a packet waits for memory is not held
// against the keepalive of the client that sends it.
func TestWaitCountsForNobody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		in := ask(w.broker.incoming, asker("x"), w.cfg.Limits.ReadMemory)
		ann := w.connect("ann", func(c *mqttlink.Config) { c.KeepAlive = 5 * time.Second })
		defer ann.end()
		sent := make(chan error)
		go func() { sent <- ann.send(moment.Photo, "p", string(make([]byte, 1<<20))) }()
		settle(15 * time.Second)
		w.broker.incoming.free(in)
		if err := <-sent; err != nil || ann.drops() > 0 {
			t.Errorf("%v after %d disconnects, want neither", err, ann.drops())
		}
	})
}
