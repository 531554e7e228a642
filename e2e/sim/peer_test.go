package sim

import (
	"context"
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// peer is a plain MQTT client: a widget that keeps all it is given.
type peer struct {
	w    *world
	user string
	host string
	cfg  mqttlink.Config
	link *mqttlink.Link // since on
	runner

	mu      sync.Mutex // guards the fields below
	got     []*mqttlink.Message
	held    bool                // it takes its time to acknowledge
	unacked []*mqttlink.Message // while held
	refused []string            // filters that were not granted
}

// peer makes a client of user's with a durable session and the given QoS 1
// filters, backfilled; change, where not nil, has the last word on its
// configuration. on starts it.
func (w *world) peer(user, host, token string, filters []string, change func(*mqttlink.Config)) *peer {
	w.t.Helper()
	p := &peer{w: w, user: user, host: host}
	cfg := mqttlink.Config{
		Dial: w.net.Dialer(host, hostMQTT), ClientID: host, SessionExpiry: 30 * 24 * time.Hour,
		Token:   func(context.Context) (string, error) { return token, nil },
		Receive: p.receive,
		Refused: func(filter string, _ *mqttlink.ReasonError) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.refused = append(p.refused, filter)
		},
	}
	for _, f := range filters {
		cfg.Subscriptions = append(cfg.Subscriptions, mqttlink.Subscription{Filter: f, QoS: 1, Backfill: "all"})
	}
	if change != nil {
		change(&cfg)
	}
	p.cfg = cfg
	return p
}

// on starts the client; stop ends it, and its session stays for as long as it
// may. It can be started again.
func (p *peer) on() *peer {
	p.w.t.Helper()
	link, err := mqttlink.New(p.cfg, p.w.log.With("who", p.host))
	p.w.must(err)
	p.link = link
	p.start(p.w.t, func(ctx context.Context) {
		if err := link.Run(ctx); err != nil {
			p.w.t.Errorf("%s: %v", p.host, err)
		}
	})
	return p
}

func (p *peer) receive(m *mqttlink.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, m)
	if p.held {
		p.unacked = append(p.unacked, m)
		return
	}
	_ = m.Ack() // of a connection that is gone: it comes again
}

// hold makes p keep its acknowledgements back, or give them.
func (p *peer) hold(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = on
	if on {
		return
	}
	for _, m := range p.unacked {
		_ = m.Ack() // see receive
	}
	p.unacked = nil
}

// topics returns the topics of what arrived, repeats included.
func (p *peer) topics() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := []string{}
	for _, m := range p.got {
		out = append(out, m.Topic)
	}
	return out
}

// view is what a widget that drops repeats by sender and moment shows.
func (p *peer) view() viewer {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := viewer{name: p.host, partner: p.w.book.partner(p.user)}
	for _, m := range p.got {
		t, err := moment.ParseTopic(m.Topic)
		if err != nil || t.Kind != moment.Photo || t.User != v.partner {
			continue
		}
		if !slices.ContainsFunc(v.seen, func(s sighting) bool { return s.id == t.ID && s.sender == t.User }) {
			v.seen = append(v.seen, sighting{t.ID, t.User, sha256.Sum256(m.Payload)})
		}
	}
	return v
}

// checkStoredOnce reads the whole ledger of a pair with a session of its own,
// and checks that every photo is in it once. It needs links without faults.
func (w *world) checkStoredOnce(pair, user string) {
	w.t.Helper()
	// One filter: a second one would set a new session back to its beginning.
	filters := []string{"pairs/" + pair + "/photos/#"}
	auditor := w.peer(user, "auditor-of-"+user, w.appToken(user), filters, nil).on()
	defer auditor.stop()
	want := 0
	for _, sender := range []string{user, w.book.partner(user)} {
		for _, ids := range w.book.of(sender) {
			want += len(ids)
		}
	}
	time.Sleep(time.Minute)
	times := map[string]int{}
	for _, topic := range auditor.topics() {
		if times[topic]++; times[topic] == 2 {
			w.t.Errorf("%s is in the ledger twice", topic)
		}
	}
	if len(times) != want {
		w.t.Errorf("the ledger of %s holds %d photos, %d were sent", pair, len(times), want)
	}
}
