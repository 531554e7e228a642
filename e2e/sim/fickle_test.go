package sim

import (
	"context"
	"net/http"
	"slices"
	"time"

	"pairsync/internal/admin"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// Lives that end within chaosTime.
const (
	briefToken   = admin.Duration(2 * time.Minute)
	briefSession = 30 * time.Second
)

// fickle are the widgets of a chaos that are no good: one acknowledges late,
// the tokens of one do not live long, nor does the session of one, and one
// cannot decide what it wants. The others must have shown everything in the end
// (a session that is new starts at the beginning), and this one all that was
// stored while it was subscribed.
type fickle struct {
	c                           *chaos
	slow, guest, brief, waverer *peer
	wants                       bool          // the waverer, photos
	decided                     chan struct{} // closed when the server knows what it wants
	ends                        []int         // how much it had got when each of its subscriptions had ended
}

func newFickle(c *chaos) *fickle {
	c.w.t.Helper()
	f := &fickle{c: c, wants: true, decided: make(chan struct{})}
	close(f.decided)
	follow := func(user, host string, change func(*mqttlink.Config)) *peer {
		filter := moment.KindFilter(c.pairs[user], moment.Photo, c.w.book.partner(user))
		return c.w.peer(user, host, c.w.appToken(user), []string{filter}, change).on()
	}
	f.slow = follow("ben", "slow", nil)
	f.guest = follow("ann", "guest", func(cfg *mqttlink.Config) {
		cfg.Token = func(context.Context) (string, error) {
			var t admin.Token
			err := c.w.ask(http.MethodPost, "/tokens", admin.TokenRequest{User: "ann", TTL: briefToken}, &t)
			return t.Token, err
		}
	})
	f.brief = follow("dan", "brief", func(cfg *mqttlink.Config) { cfg.SessionExpiry = briefSession })
	f.waverer = follow("cat", "waverer", func(cfg *mqttlink.Config) { cfg.Subscriptions[0].Backfill = "" })
	return f
}

func (f *fickle) peers() []*peer { return []*peer{f.slow, f.guest, f.brief, f.waverer} }

// faithful are those of them that see everything.
func (f *fickle) faithful() []*peer { return []*peer{f.slow, f.guest, f.brief} }

// step lets one of them be what it is.
func (f *fickle) step() {
	c := f.c
	switch c.random.IntN(3) {
	case 0:
		c.tell("slow acknowledges nothing")
		f.slow.hold(true)
		c.later(time.Second, 2*time.Minute, func() { f.slow.hold(false) })
	case 1:
		if f.brief.running() {
			c.tell("brief is switched off")
			f.brief.stop()
			c.later(time.Second, 3*briefSession, func() { f.brief.on() })
		}
	case 2:
		select {
		case <-f.decided:
			f.decide(!f.wants)
		default: // the link is down
		}
	}
}

// decide has the waverer subscribe, or unsubscribe: then nothing may come.
func (f *fickle) decide(want bool) {
	f.c.w.t.Helper()
	f.c.tell("waverer wants photos: %t", want)
	if n := len(f.ends); want && len(f.waverer.topics()) > f.ends[n-1] {
		f.c.w.t.Errorf("the waverer got %v without a subscription", f.waverer.topics()[f.ends[n-1]:])
	}
	f.wants, f.decided = want, make(chan struct{})
	decided, link, sub := f.decided, f.waverer.link, f.waverer.cfg.Subscriptions[0]
	go func() {
		defer close(decided)
		ctx, cancel := context.WithTimeout(context.Background(), settleTime)
		defer cancel()
		if want {
			f.c.w.must(link.Subscribe(ctx, sub))
			return
		}
		f.c.w.must(link.Unsubscribe(ctx, sub.Filter))
		time.Sleep(time.Second) // what came before the answer is being taken
		f.ends = append(f.ends, len(f.waverer.topics()))
	}()
}

// settle leaves all of them connected and subscribed.
func (f *fickle) settle() {
	<-f.decided
	if !f.wants {
		f.decide(true)
		<-f.decided
	}
}

// check compares what the waverer got in each of its subscriptions with the
// ledger's order, as the widget saw it: it must be a run of that without a gap,
// and the last one must go to the end.
func (f *fickle) check() {
	t := f.c.w.t
	t.Helper()
	var ledger []string
	for _, topic := range f.c.widget.topics() {
		if !slices.Contains(ledger, topic) {
			ledger = append(ledger, topic)
		}
	}
	topics, from := f.waverer.topics(), 0
	for i, end := range append(f.ends, len(topics)) {
		var got []string
		for _, topic := range topics[from:end] {
			if !slices.Contains(got, topic) {
				got = append(got, topic)
			}
		}
		from = end
		var want []string
		if len(got) > 0 {
			at := max(0, slices.Index(ledger, got[0]))
			want = ledger[at:min(at+len(got), len(ledger))]
		}
		last := i == len(f.ends)
		if !slices.Equal(got, want) || last && (len(got) == 0 || got[len(got)-1] != ledger[len(ledger)-1]) {
			t.Errorf("the waverer got in its subscription %d of %d\n%v\nwant\n%v", i+1, len(f.ends)+1, got, want)
		}
	}
}
