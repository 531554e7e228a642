package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// fakeBroker behaves like pairsync's broker as far as a link can see: one
// ordered log, sessions with cursors and a window, idempotent appends,
// redelivery after a cut, retained presence.
type fakeBroker struct {
	mu       sync.Mutex // guards the fields below
	log      []entry
	sessions map[string]*fakeSession
	wake     chan struct{} // closed and replaced at every change
	// refuse, when set, judges every publish.
	refuse func(mqttlink.Publish) error
	// mute makes publishes wait for nothing that ever comes.
	mute bool
	// deaf makes subscribing wait likewise.
	deaf bool
	// delay is how long a publish takes.
	delay time.Duration
	// loseAcks makes PUBACKs vanish.
	loseAcks bool
	// onAck hears of every PUBACK.
	onAck func(topic string)
}

type entry struct {
	topic string
	pub   mqttlink.Publish
	at    time.Time
}

type fakeSession struct {
	subs  map[string]int // filter to the log's length when it was subscribed
	acked map[int]bool
	link  *fakeLink // while connected
}

func newFakeBroker() *fakeBroker {
	return &fakeBroker{sessions: map[string]*fakeSession{}, wake: make(chan struct{})}
}

const window = 16

// changed wakes every link; b.mu is held.
func (b *fakeBroker) changed() {
	close(b.wake)
	b.wake = make(chan struct{})
}

func (b *fakeBroker) newLink(cfg mqttlink.Config, receive func(inbound), _ *slog.Logger) (link, error) {
	return &fakeLink{
		b: b, cfg: cfg, receive: receive, name: cfg.Username + "/" + cfg.ClientID,
		up: make(chan struct{}), done: make(chan struct{}),
	}, nil
}

// append stores a moment as if a device had published it.
func (b *fakeBroker) append(m moment.Moment) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.store(mqttlink.Publish{Topic: m.Topic(), Payload: m.Payload, ContentType: m.ContentType, Properties: m.Properties(), QoS: 1})
}

func (b *fakeBroker) store(p mqttlink.Publish) (duplicate bool) {
	for _, e := range b.log {
		if e.topic == p.Topic && !strings.HasPrefix(p.Topic, "users/") {
			return true
		}
	}
	b.log = append(b.log, entry{p.Topic, p, time.Now()})
	b.changed()
	return false
}

// topics returns the topics in the log that hold part.
func (b *fakeBroker) topics(part string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, e := range b.log {
		if strings.Contains(e.topic, part) {
			out = append(out, e.topic)
		}
	}
	return out
}

// cut drops the connection of a session; it comes back after a second.
func (b *fakeBroker) cut(session string) {
	b.mu.Lock()
	s := b.sessions[session]
	l := s.link
	b.mu.Unlock()
	if l != nil {
		close(l.cutNow)
	}
}

// waiting returns how many entries a session has not acknowledged.
func (b *fakeBroker) waiting(session string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	s := b.sessions[session]
	for i, e := range b.log {
		if s != nil && s.wants(i, e.topic) && !s.acked[i] {
			n++
		}
	}
	return n
}

// filters returns what a session has subscribed.
func (b *fakeBroker) filters(session string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for f := range b.sessions[session].subs {
		out = append(out, f)
	}
	return strings.Join(out, " ")
}

func (s *fakeSession) wants(i int, topic string) bool {
	for f, from := range s.subs {
		if i >= from && moment.Match(f, topic) {
			return true
		}
	}
	return false
}

// fakeLink is one session's connection.
type fakeLink struct {
	b       *fakeBroker
	cfg     mqttlink.Config
	receive func(inbound)
	name    string

	up     chan struct{} // closed while connected; guarded by b.mu
	cutNow chan struct{} // closed by cut
	epoch  int           // guarded by b.mu
	live   []inbound     // QoS 0, waiting; guarded by b.mu
	done   chan struct{}
}

func (l *fakeLink) Run(ctx context.Context) error {
	defer close(l.done)
	for ctx.Err() == nil {
		l.connect()
		l.cfg.Up(true)
		l.deliver(ctx)
		l.disconnect()
		if ctx.Err() == nil {
			l.cfg.Down(fmt.Errorf("cut"))
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

func (l *fakeLink) connect() {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	s := l.b.sessions[l.name]
	if s == nil {
		s = &fakeSession{subs: map[string]int{}, acked: map[int]bool{}}
		l.b.sessions[l.name] = s
	}
	s.link, l.cutNow = l, make(chan struct{})
	l.epoch++
	l.subscribe(s, l.cfg.Subscriptions)
	l.b.presence(l.cfg.Username)
	close(l.up)
}

func (l *fakeLink) subscribe(s *fakeSession, subs []mqttlink.Subscription) {
	for _, sub := range subs {
		if _, had := s.subs[sub.Filter]; !had {
			s.subs[sub.Filter] = 0 // backfill: all
		}
		if strings.Contains(sub.Filter, "/presence/") {
			l.b.presence(sub.Filter[strings.LastIndex(sub.Filter, "/")+1:])
		}
	}
}

func (l *fakeLink) disconnect() {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.b.sessions[l.name].link = nil
	l.up = make(chan struct{})
	l.epoch++
	l.b.presence(l.cfg.Username)
	l.b.changed()
}

// presence tells everybody who may know whether user is online; b.mu is held.
func (b *fakeBroker) presence(user string) {
	online := false
	for name, s := range b.sessions {
		if strings.HasPrefix(name, user+"/") && !strings.HasSuffix(name, moment.ScheduleClientID) && s.link != nil {
			online = true
		}
	}
	body, _ := json.Marshal(moment.Presence{Online: online, Since: time.Now(), Clients: nil})
	for _, s := range b.sessions {
		for f := range s.subs {
			if s.link != nil && strings.HasSuffix(f, "/presence/"+user) {
				s.link.live = append(s.link.live, inbound{&mqttlink.Message{Topic: f, Payload: body, Retained: true}, func() error { return nil }})
			}
		}
	}
	b.changed()
}

// deliver hands on what the session has not acknowledged, once per connection.
func (l *fakeLink) deliver(ctx context.Context) {
	sent := map[int]bool{}
	for {
		l.b.mu.Lock()
		wake := l.b.wake
		batch := l.live
		l.live = nil
		s := l.b.sessions[l.name]
		unacked := 0
		for i := range sent {
			if !s.acked[i] {
				unacked++
			}
		}
		for i, e := range l.b.log {
			if unacked == window || sent[i] || s.acked[i] || !s.wants(i, e.topic) {
				continue
			}
			sent[i] = true
			unacked++
			batch = append(batch, l.message(s, i, e))
		}
		l.b.mu.Unlock()
		for _, in := range batch {
			l.receive(in)
		}
		select {
		case <-wake:
		case <-l.cutNow:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (l *fakeLink) message(s *fakeSession, i int, e entry) inbound {
	props := append(e.pub.Properties[:len(e.pub.Properties):len(e.pub.Properties)],
		moment.Property{Key: moment.PropStoredAt, Value: e.at.UTC().Format(time.RFC3339Nano)})
	m := &mqttlink.Message{Topic: e.topic, Payload: e.pub.Payload, ContentType: e.pub.ContentType, Properties: props, QoS: 1}
	epoch := l.epoch
	return inbound{m, func() error {
		l.b.mu.Lock()
		defer l.b.mu.Unlock()
		if l.epoch != epoch {
			return mqttlink.ErrStale
		}
		if l.b.loseAcks {
			return nil
		}
		s.acked[i] = true
		l.b.changed()
		if l.b.onAck != nil {
			l.b.onAck(e.topic)
		}
		return nil
	}}
}

func (l *fakeLink) AwaitUp(ctx context.Context) error {
	l.b.mu.Lock()
	up := l.up
	l.b.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-l.done:
		return mqttlink.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *fakeLink) Publish(ctx context.Context, p mqttlink.Publish) (bool, error) {
	l.b.mu.Lock()
	mute, refuse, delay := l.b.mute, l.b.refuse, l.b.delay
	l.b.mu.Unlock()
	time.Sleep(delay)
	if mute {
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("publish: %w", ctx.Err())
		case <-l.done:
			return false, mqttlink.ErrClosed
		}
	}
	if refuse != nil {
		if err := refuse(p); err != nil {
			return false, err
		}
	}
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	if p.QoS > 0 {
		return l.b.store(p), nil
	}
	for _, s := range l.b.sessions {
		if s.link != nil && s.wants(len(l.b.log), p.Topic) {
			s.link.live = append(s.link.live, inbound{&mqttlink.Message{Topic: p.Topic, Payload: p.Payload}, func() error { return nil }})
		}
	}
	l.b.changed()
	return false, nil
}

func (l *fakeLink) Subscribe(_ context.Context, subs ...mqttlink.Subscription) error {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.subscribe(l.b.sessions[l.name], subs)
	l.b.changed()
	return nil
}

func (l *fakeLink) Unsubscribe(ctx context.Context, filters ...string) error {
	l.b.mu.Lock()
	if l.b.deaf {
		l.b.mu.Unlock()
		<-ctx.Done()
		return ctx.Err()
	}
	defer l.b.mu.Unlock()
	for _, f := range filters {
		delete(l.b.sessions[l.name].subs, f)
	}
	return nil
}
