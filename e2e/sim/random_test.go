package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"pairsync/internal/moment"
)

// How many seeds are tried, and from which on; see doc.go.
const (
	envSeed      = "PAIRSYNC_SIM_SEED"
	envSeeds     = "PAIRSYNC_SIM_SEEDS"
	defaultSeeds = 3
)

const (
	// chaosTime is how long faults are made; each world then gets settleTime
	// to come to rest. An app that drops repeats in silence costs ten minutes
	// for each photo whose photo_received was lost.
	chaosTime  = 10 * time.Minute
	settleTime = 12 * time.Hour
)

// TestRandomSchedule lets pairs send while links are cut, stalled and slowed
// down, the server and the frames are restarted and lose their power, widgets
// are no good (fickle_test.go), a pair ends and others begin, and a frame loses
// its rights (swaps_test.go). A seed fixes the schedule;
// what the goroutines make of it differs a little from run to run.
func TestRandomSchedule(t *testing.T) {
	t.Parallel()
	first, count := uint64(1), defaultSeeds
	if s := os.Getenv(envSeed); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", envSeed, err)
		}
		first, count = n, 1
	}
	if s := os.Getenv(envSeeds); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s: %v", envSeeds, err)
		}
		count = n
	}
	for seed := first; seed < first+uint64(count); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			t.Logf("replay with %s=%d", envSeed, seed)
			inWorld(t, seed, func(w *world) {
				c := newChaos(w, seed)
				defer c.tellAll()
				c.run()
				c.settle()
				c.check()
			})
		})
	}
}

// chaos is a world of two pairs and what is being done to it.
type chaos struct {
	w      *world
	random *rand.Rand
	pairs  map[string]string // user to pair
	phones []*phone
	frames []*frame
	widget *peer
	fickle *fickle
	swaps  *swaps
	due    []repair // faults that end by themselves
	story  []string // what was done, for the log of a failure
}

// repair is the end of a fault.
type repair struct {
	at time.Time
	do func()
}

func newChaos(w *world, seed uint64) *chaos {
	w.t.Helper()
	c := &chaos{w: w, random: rand.New(rand.NewPCG(seed, 2)), pairs: map[string]string{}}
	for _, users := range [][2]string{{"ann", "ben"}, {"cat", "dan"}} {
		pair := w.createPair(users[0], users[1])
		for _, user := range users {
			c.pairs[user] = pair
			c.phones = append(c.phones, w.phone(user, "http://server").on())
		}
	}
	c.frames = []*frame{w.frame("ben", "kitchen").on(), w.frame("ann", "hall").on(), w.frame("dan", "study").on()}
	c.widget = w.peer("cat", "widget", w.appToken("cat"), []string{moment.KindFilter(c.pairs["cat"], moment.Photo, "dan")}, nil).on()
	c.fickle = newFickle(c)
	c.swaps = newSwaps(c)
	w.await(time.Minute, func() string { return "not everybody is connected" }, func() bool {
		for _, f := range c.frames {
			if !f.status().Connected {
				return false
			}
		}
		return !slices.ContainsFunc(c.phones, func(p *phone) bool { return !p.isJoined() }) && c.widget.link.Connected()
	})
	return c
}

func (c *chaos) run() {
	end := time.Now().Add(chaosTime)
	for time.Now().Before(end) {
		c.repair(time.Now())
		c.step()
		time.Sleep(c.between(50*time.Millisecond, 5*time.Second))
	}
	c.repair(end.Add(time.Hour))
	c.w.net.Heal()
	c.fickle.settle()
	c.swaps.settle()
}

// repair ends the faults that are due at now.
func (c *chaos) repair(now time.Time) {
	var left []repair
	for _, r := range c.due {
		if r.at.After(now) {
			left = append(left, r)
			continue
		}
		r.do()
	}
	c.due = left
}

func (c *chaos) later(least, most time.Duration, do func()) {
	c.due = append(c.due, repair{time.Now().Add(c.between(least, most)), do})
}

func (c *chaos) between(least, most time.Duration) time.Duration {
	return least + time.Duration(c.random.Int64N(int64(most-least)))
}

// tellAll tells what was done in a world that has failed.
func (c *chaos) tellAll() {
	if c.w.t.Failed() {
		for _, line := range c.story {
			c.w.t.Log(line)
		}
	}
}

func (c *chaos) tell(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	c.story = append(c.story, time.Now().Format("15:04:05.000 ")+line)
	c.w.log.Info("chaos: " + line)
}

// step does one thing: it sends, or makes a fault.
func (c *chaos) step() {
	switch n := c.random.IntN(100); {
	case n < 25:
		p := c.phones[c.random.IntN(len(c.phones))]
		ph := p.send(500 + c.random.IntN(60_000))
		c.tell("%s sends %s", p.host, ph.id)
	case n < 31:
		if f := c.frames[c.random.IntN(len(c.frames))]; f.running() {
			c.tell("%s sends %s", f.host, f.send(500+c.random.IntN(30_000)).id)
		}
	case n < 76:
		c.hurtLink()
	case n < 82:
		c.fickle.step()
	case n < 86:
		c.swaps.step()
	case n < 89:
		c.tell("server restarts")
		c.w.restart()
	case n < 92:
		c.tell("server loses its power")
		c.w.crash()
	case n < 94:
		if p := c.phones[c.random.IntN(len(c.phones))]; p.running() {
			c.tell("%s is switched off", p.host)
			p.stop()
			c.later(time.Second, time.Minute, func() { p.on() })
		}
	case n < 98:
		c.hurtFrame()
	default:
		c.takeOver()
	}
}

// hurtLink makes a fault on a link.
func (c *chaos) hurtLink() {
	host, server := c.link()
	from, to := host, server
	if c.random.IntN(2) == 0 {
		from, to = to, from
	}
	n := c.w.net
	switch c.random.IntN(6) {
	case 0:
		c.tell("cut %s", host)
		n.Cut(host, server)
	case 1:
		at := c.random.Int64N(20_000)
		c.tell("cut %s after %d bytes from %s", host, at, from)
		n.CutAfter(from, to, at)
		n.Cut(host, server)
	case 2:
		c.tell("stall from %s to %s", from, to)
		n.Stall(from, to)
		c.later(time.Second, 90*time.Second, func() { n.Resume(from, to) })
	case 3:
		d := c.between(10*time.Millisecond, 3*time.Second)
		c.tell("delay from %s to %s by %v", from, to, d)
		n.Delay(from, to, d, d)
		c.later(time.Second, time.Minute, func() { n.Delay(from, to, 0, 0) })
	case 4:
		rate := 1000 + c.random.IntN(50_000)
		c.tell("%d bytes a second from %s to %s", rate, from, to)
		n.Rate(from, to, rate)
		c.later(time.Second, time.Minute, func() { n.Rate(from, to, 0) })
	case 5:
		c.tell("%s cannot connect", host)
		n.Refuse(host, server, true)
		n.Cut(host, server)
		c.later(time.Second, time.Minute, func() { n.Refuse(host, server, false) })
	}
}

// link returns the two hosts of a random link.
func (c *chaos) link() (host, server string) {
	var links [][2]string
	for _, p := range append(c.swaps.phones(), c.phones...) {
		links = append(links, [2]string{p.host, hostHTTP})
	}
	for _, f := range append(c.swaps.frames(), c.frames...) {
		links = append(links, [2]string{f.host, hostMQTT})
	}
	for _, p := range c.peers() {
		links = append(links, [2]string{p.host, hostMQTT})
	}
	l := links[c.random.IntN(len(links))]
	return l[0], l[1]
}

func (c *chaos) peers() []*peer { return append(c.fickle.peers(), c.widget) }

// faithful are those of them who must have everything in the end.
func (c *chaos) faithful() []*peer { return append(c.fickle.faithful(), c.widget) }

func (c *chaos) hurtFrame() {
	f := c.frames[c.random.IntN(len(c.frames))]
	switch {
	case !f.running():
	case c.random.IntN(2) == 0:
		c.tell("%s loses its power", f.host)
		f.crash()
	default:
		c.tell("%s is switched off", f.host)
		f.stop()
		c.later(time.Second, time.Minute, func() { f.on() })
	}
}

// takeOver connects a second program under the widget's client id for a few
// seconds. What either of them gets is what their user sees.
func (c *chaos) takeOver() {
	c.tell("somebody takes the widget's session over")
	twin := &peer{w: c.w, user: c.widget.user, host: c.widget.host, cfg: c.widget.cfg}
	twin.on()
	c.later(time.Second, 10*time.Second, twin.stop)
}

// settle waits until everything is where it belongs.
func (c *chaos) settle() {
	c.w.t.Helper()
	c.w.await(settleTime, c.missing, func() bool { return c.missing() == "" })
	time.Sleep(time.Minute)
}

// missing says what has not come to rest, empty for nothing.
func (c *chaos) missing() string {
	for _, p := range c.phones {
		if !p.idle() {
			return p.host + " has not sent all its photos"
		}
		if n := c.behind(p.view()); n != 0 {
			return fmt.Sprintf("%s misses %d photos", p.host, n)
		}
	}
	for _, f := range c.frames {
		if !f.idle() {
			return f.host + " has not sent all it has to"
		}
		if n := c.behind(f.view()); n != 0 {
			return fmt.Sprintf("%s misses %d photos", f.host, n)
		}
	}
	for _, p := range c.faithful() {
		if n := c.behind(p.view()); n != 0 {
			return fmt.Sprintf("%s misses %d photos", p.host, n)
		}
	}
	return c.swaps.missing()
}

// behind is how many photos v does not show yet.
func (c *chaos) behind(v viewer) int {
	want := 0
	for _, ids := range c.w.book.of(v.partner) {
		want += len(ids)
	}
	return max(0, want-len(v.seen))
}

func (c *chaos) check() {
	t := c.w.t
	t.Helper()
	var views []viewer
	for _, p := range c.faithful() {
		views = append(views, p.view())
	}
	for _, p := range c.phones {
		views = append(views, p.view())
		for id, code := range p.final() {
			t.Errorf("%s was refused: %s", id, code)
		}
	}
	for _, f := range c.frames {
		views = append(views, f.view())
		f.checkScreen()
		if s := f.status(); s.Refused+s.Broken > 0 {
			t.Errorf("%s refused %d and could not show %d moments", f.host, s.Refused, s.Broken)
		}
	}
	for _, v := range views {
		c.w.book.check(t, v)
	}
	c.fickle.check()
	c.swaps.check()
	c.w.checkStoredOnce(c.pairs["ann"], "ann")
	c.w.checkStoredOnce(c.pairs["cat"], "cat")
	c.checkPresence(true)
	ben := c.phones[1]
	ben.stop()
	time.Sleep(time.Minute)
	if online, _ := c.phones[0].partnerOnline(); online {
		t.Errorf("ann's phone shows ben online a minute after his phone was switched off")
	}
	ben.on()
	time.Sleep(time.Minute)
	c.checkPresence(true)
}

// checkPresence checks what every phone shows of its partner.
func (c *chaos) checkPresence(want bool) {
	c.w.t.Helper()
	for _, p := range c.phones {
		if online, known := p.partnerOnline(); !known || online != want {
			c.w.t.Errorf("%s shows its partner online %t (known %t), want %t", p.host, online, known, want)
		}
	}
}
