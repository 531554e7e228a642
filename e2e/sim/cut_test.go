package sim

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// cutsPerDirection is how many offsets of one direction of one link are tried.
const cutsPerDirection = 25

// roundLimit is longer than the bridge waits for an app that dropped a repeat
// in silence: ten minutes for each of a round's photos.
const roundLimit = time.Hour

// couple is a pair with everything: ann's phone sends, ben's phone and frame
// receive.
type couple struct {
	w        *world
	ann, ben *phone
	frame    *frame
}

func newCouple(w *world, urlOf func(user string) string) *couple {
	w.t.Helper()
	c := &couple{
		w: w, ann: w.phone("ann", urlOf("ann")).on(), ben: w.phone("ben", urlOf("ben")).on(),
		frame: w.frame("ben", "kitchen").on(),
	}
	w.await(time.Minute, func() string { return "not everybody is connected" }, func() bool {
		return c.ann.isJoined() && c.ben.isJoined() && c.frame.status().Connected
	})
	time.Sleep(time.Minute) // the frame connects once more when it hears of its pairing
	return c
}

// round sends two photos and waits until the promise is kept for both, and all
// receipts that can come are back.
func (c *couple) round() {
	c.w.t.Helper()
	ids := []string{c.ann.send(3000).id, c.ann.send(2500).id}
	c.await(ids)
}

func (c *couple) await(ids []string) {
	c.w.t.Helper()
	say := func() string { return c.missing(ids) }
	c.w.await(roundLimit, say, func() bool { return c.missing(ids) == "" })
}

// missing says what is not yet as promised, empty for nothing.
func (c *couple) missing(ids []string) string {
	if !c.ann.idle() {
		return "ann's phone has no acknowledgement"
	}
	for _, id := range ids {
		switch {
		case !c.ben.has([]string{id}):
			return "ben's phone does not show " + id
		case !c.ann.receiptFrom(id, c.frame.id):
			return "ann's phone has no receipt of the frame for " + id
		case !c.ann.receiptFrom(id, "") && !c.ben.unsure(id):
			return "ann's phone has no receipt of ben's phone for " + id
		}
	}
	return ""
}

// check holds everybody to the promise.
func (c *couple) check() {
	c.w.t.Helper()
	for _, v := range []viewer{c.ann.view(), c.ben.view(), c.frame.view()} {
		c.w.book.check(c.w.t, v)
	}
	c.frame.checkScreen()
	for id, code := range c.ann.final() {
		c.w.t.Errorf("%s was refused: %s", id, code)
	}
}

// TestCutAtEveryStep cuts each link of the flow at every step of it, in both
// directions: the promise is the same.
func TestCutAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		name, host, server string
		wires              func(*couple) *wires
		two                bool // the receiver's app has its connection socket too
	}{
		{"sender's phone", "ann-phone", hostHTTP, func(c *couple) *wires { return &c.ann.wires }, false},
		{"receiver's phone", "ben-phone", hostHTTP, func(c *couple) *wires { return &c.ben.wires }, false},
		{"one of two sockets", "ben-phone", hostHTTP, func(c *couple) *wires { return &c.ben.wires }, true},
		{"frame", "kitchen", hostMQTT, func(c *couple) *wires { return &c.frame.wires }, false},
	} {
		eachDirection(t, v.name, v.host, v.server, func(t *testing.T, from, to string, up bool) {
			inWorld(t, 1, func(w *world) {
				pair := w.createPair("ann", "ben")
				c := newCouple(w, func(string) string { return "http://server" })
				if v.two {
					w.connectionSocket(c.ben).on()
				}
				c.sweep(from, to, up, v.wires(c))
				c.check()
				w.checkStoredOnce(pair, "ben")
			})
		})
	}
}

// TestCutBetweenBridgeAndBroker is TestCutAtEveryStep for the link that is
// inside the daemon.
func TestCutBetweenBridgeAndBroker(t *testing.T) {
	t.Parallel()
	for name, user := range map[string]string{"sender's bridge": "ann", "receiver's bridge": "ben"} {
		eachDirection(t, name, bridgeHost(user), hostMQTT, func(t *testing.T, from, to string, up bool) {
			inBubble(t, 1, func(w *world) {
				s := w.startSplit("ann", "ben")
				pair := w.createPair("ann", "ben")
				c := newCouple(w, func(user string) string { return "http://" + bridgeHost(user) })
				c.sweep(from, to, up, s.wires[user])
				c.check()
				// What a phone has acknowledged is never sent to it again.
				if v := c.ben.view(); c.ben.wireCount() != len(v.seen) {
					w.t.Errorf("ben's phone was sent %d photos, want the %d it shows", c.ben.wireCount(), len(v.seen))
				}
				w.checkStoredOnce(pair, "ben")
			})
		})
	}
}

// eachDirection runs test for what host sends to server and for the other way,
// side by side.
func eachDirection(t *testing.T, name, host, server string, test func(t *testing.T, from, to string, up bool)) {
	t.Run(name+" sends", func(t *testing.T) {
		t.Parallel()
		test(t, host, server, true)
	})
	t.Run(name+" receives", func(t *testing.T) {
		t.Parallel()
		test(t, server, host, false)
	})
}

// sweep measures an undisturbed round, and then cuts a new connection from one
// host to the other at each of the offsets that it found.
func (c *couple) sweep(from, to string, up bool, ws *wires) {
	c.w.t.Helper()
	c.round() // whatever is done once only
	c.w.net.Cut(from, to)
	c.round()
	sent, received := ws.newest()
	bounds := received
	if up {
		bounds = sent
	}
	offsets := chooseOffsets(bounds, cutsPerDirection)
	for i, at := range offsets {
		c.w.doing = fmt.Sprintf("cut after %d bytes from %s to %s", at, from, to)
		c.w.net.CutAfter(from, to, at)
		c.w.net.Cut(from, to)
		if i%2 == 1 {
			time.Sleep(5 * time.Second) // these photos do not wait for the connection
		}
		c.round()
		c.w.net.Heal()
	}
	c.w.doing = ""
	c.w.t.Logf("%s to %s: %d bytes in %d steps, cut at %v", from, to, bounds[len(bounds)-1], len(bounds), offsets)
}

// chooseOffsets returns at most n offsets: around every boundary, and between
// two of them; where that is too many, evenly chosen ones.
func chooseOffsets(bounds []int64, n int) []int64 {
	all := []int64{0}
	last := int64(0)
	for _, b := range bounds {
		all = append(all, (last+b)/2, b-1, b, b+1)
		last = b
	}
	slices.Sort(all)
	all = slices.Compact(all)
	all = slices.DeleteFunc(all, func(o int64) bool { return o < 0 || o > last })
	if len(all) <= n {
		return all
	}
	out := make([]int64, 0, n)
	for i := range n {
		out = append(out, all[i*(len(all)-1)/(n-1)])
	}
	return out
}
