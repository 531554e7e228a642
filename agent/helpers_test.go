package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"pairsync/internal/memnet"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

const (
	testUser    = "ann"
	testPartner = "bo"
	testPair    = "p1"
	testDevice  = "frame"
)

// testMember is the pair of the test device.
var testMember = membership{
	User: testUser, Device: testDevice, Pair: testPair,
	Users: []moment.PairUser{{ID: testUser, Name: "Ann"}, {ID: testPartner, Name: "Bo"}},
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func testConfig(t testing.TB) Config {
	t.Helper()
	cfg := Default()
	cfg.DataDir = t.TempDir()
	cfg.Kiosk.Listen = ""
	return cfg
}

func newTestStore(t testing.TB, edit ...func(*Config)) *store {
	t.Helper()
	cfg := testConfig(t)
	for _, fn := range edit {
		fn(&cfg)
	}
	return openTestStore(t, cfg)
}

func openTestStore(t testing.TB, cfg Config) *store {
	t.Helper()
	s, err := openStore(cfg, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

// testJPEG returns a small valid photo; n makes it different from others.
func testJPEG(t testing.TB, n int) []byte {
	t.Helper()
	m := image.NewRGBA(image.Rect(0, 0, 40, 30))
	for x := range 40 {
		for y := range 30 {
			m.Set(x, y, color.RGBA{uint8(x * n), uint8(y * 7), uint8(n), 255})
		}
	}
	var b bytes.Buffer
	if err := jpeg.Encode(&b, m, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// testToken returns an unsigned token: the agent does not verify its own.
func testToken(claims map[string]string) string {
	body, err := json.Marshal(claims)
	if err != nil {
		panic(err) // a map of strings always marshals
	}
	return "e30." + base64.RawURLEncoding.EncodeToString(body) + ".c2ln"
}

// put applies a change and fails the test if it cannot.
func put(t testing.TB, s *store, c change) {
	t.Helper()
	if err := s.update(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// putPhoto stores a photo of the partner's, with a receipt; it reports whether
// it was new.
func putPhoto(t testing.TB, s *store, id string, payload []byte) bool {
	t.Helper()
	return putPhotoOf(t, s, testMember, testPartner, id, payload)
}

func putPhotoOf(t testing.TB, s *store, m membership, sender, id string, payload []byte) (fresh bool) {
	t.Helper()
	r := record{
		Pair: m.Pair, Sender: sender, Moment: id, Type: "image/jpeg", Bytes: len(payload),
		SHA256: hashHex(payload), ReceivedAt: time.Now().UTC(),
	}
	put(t, s, s.takePhoto(r, payload, newReceipt(m, sender, id, moment.StatusStored, time.Now()), &fresh))
	return fresh
}

func moments(t testing.TB, s *store) []string {
	t.Helper()
	list, err := listPhotos(s)
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{}
	for _, p := range list {
		ids = append(ids, p.Moment)
	}
	return ids
}

func mustTotals(t testing.TB, s *store) totals {
	t.Helper()
	sums, err := s.totals()
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// fakeBroker behaves like a broker with one client: it keeps a session,
// grants what the ACL allows, answers a subscription to info, and holds every
// QoS 1 publish until it acknowledges.
type fakeBroker struct {
	mu       sync.Mutex // guards the fields below
	pair     string     // the user's pair now, empty for none
	tellPair bool       // in the CONNACK
	session  bool       // kept from an earlier connect
	away     bool       // nobody can connect
	silent   bool       // nothing is acknowledged
	refusal  error      // the answer to the next QoS 1 publishes, if set
	deaf     bool       // no SUBSCRIBE is answered
	bounces  int
	// unsubscribable is a filter that is refused, for no lasting reason.
	unsubscribable string
	creeping       bool     // bytes move though nothing is acknowledged
	connects       []string // "clean" or "resume"
	subs           map[string]string
	published      []mqttlink.Publish // each call of Publish once
	sent           int                // transmissions of QoS 1 publishes
	answered       []mqttlink.Publish // acknowledged
	moved          uint64
	links          []*fakeLink
	changed        chan struct{}

	claims   map[string]string // of the device's token
	tokenErr error             // why it cannot be read
}

func newFakeBroker() *fakeBroker {
	return &fakeBroker{pair: testPair, tellPair: true, subs: map[string]string{}, changed: make(chan struct{})}
}

// set changes the broker's behaviour and wakes everybody.
func (b *fakeBroker) set(fn func(*fakeBroker)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn(b)
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *fakeBroker) get(fn func(*fakeBroker)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn(b)
}

// link is an Agent.newLink.
func (b *fakeBroker) link(cfg mqttlink.Config, _ *slog.Logger) (link, error) {
	l := &fakeLink{cfg: cfg, b: b, calls: make(chan func(), 64), bounced: make(chan struct{}, 1)}
	b.set(func(b *fakeBroker) { b.links = append(b.links, l) })
	return l, nil
}

// current returns the newest link.
func (b *fakeBroker) current() *fakeLink {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.links[len(b.links)-1]
}

// cut breaks the connection; the client comes back at once.
func (b *fakeBroker) cut() { b.current().Bounce() }

// deliver hands a message to the client.
func (b *fakeBroker) deliver(topic string, payload []byte) {
	l := b.current()
	l.calls <- func() { l.cfg.Receive(&mqttlink.Message{Topic: topic, Payload: payload}) }
}

type fakeLink struct {
	cfg     mqttlink.Config
	b       *fakeBroker
	calls   chan func() // callbacks, run by Run
	bounced chan struct{}
}

func (l *fakeLink) Run(ctx context.Context) error {
	for first := true; ; first = false {
		if _, err := l.cfg.Token(ctx); err != nil && ctx.Err() == nil {
			pause(ctx, time.Second)
			continue
		}
		if !l.awaitBroker(ctx) {
			return nil
		}
		clean := first && l.cfg.CleanStart
		var present bool
		l.b.set(func(b *fakeBroker) {
			present = b.session && !clean
			if !present {
				b.subs = map[string]string{}
			}
			b.session = true
			b.connects = append(b.connects, map[bool]string{true: "clean", false: "resume"}[clean])
			b.sent += len(b.published) - len(b.answered)
		})
		l.cfg.Up(present)
		if !l.connected(ctx) {
			return nil
		}
		l.cfg.Down(errors.New("cut"))
	}
}

// awaitBroker waits while the broker is away; false when ctx ended.
func (l *fakeLink) awaitBroker(ctx context.Context) bool {
	for {
		l.b.mu.Lock()
		away, changed := l.b.away, l.b.changed
		l.b.mu.Unlock()
		if !away {
			return ctx.Err() == nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// connected runs the callbacks until the connection breaks; false when ctx
// ended.
func (l *fakeLink) connected(ctx context.Context) bool {
	for {
		l.b.mu.Lock()
		away, changed := l.b.away, l.b.changed
		l.b.mu.Unlock()
		if away {
			return true
		}
		select {
		case fn := <-l.calls:
			fn()
		case <-changed:
		case <-l.bounced:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

func (l *fakeLink) Props() []moment.Property {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	if !l.b.tellPair || l.b.pair == "" {
		return nil
	}
	return []moment.Property{{Key: propPair, Value: l.b.pair}}
}

func (l *fakeLink) Subscribe(ctx context.Context, subs ...mqttlink.Subscription) error {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	if l.b.deaf {
		l.b.mu.Unlock()
		<-ctx.Done()
		l.b.mu.Lock()
		return ctx.Err()
	}
	for _, s := range subs {
		mine := moment.Match(s.Filter, moment.EventsTopic(testUser)) ||
			l.b.pair != "" && len(s.Filter) > 6 && s.Filter[:6+len(l.b.pair)] == "pairs/"+l.b.pair
		if !mine {
			return fmt.Errorf("subscribe: %w", &mqttlink.ReasonError{Code: mqttlink.CodeNotAuthorized})
		}
		if s.Filter == l.b.unsubscribable {
			return fmt.Errorf("subscribe: %w", &mqttlink.ReasonError{Code: mqttlink.CodeQuotaExceeded})
		}
		l.b.subs[s.Filter] = s.Backfill
		if s.Filter == moment.InfoTopic(l.b.pair) {
			body, err := json.Marshal(moment.PairInfo{Users: testMember.Users, Created: time.Now()})
			if err != nil {
				return err
			}
			l.calls <- func() { l.cfg.Receive(&mqttlink.Message{Topic: s.Filter, Payload: body, Retained: true}) }
		}
	}
	return nil
}

func (l *fakeLink) Publish(ctx context.Context, p mqttlink.Publish) error {
	if p.QoS == 0 {
		l.b.set(func(b *fakeBroker) { b.published, b.answered = append(b.published, p), append(b.answered, p) })
		return nil
	}
	l.b.set(func(b *fakeBroker) {
		b.published = append(b.published, p)
		if !b.away {
			b.sent++
		}
	})
	for {
		l.b.mu.Lock()
		answer := !l.b.away && !l.b.silent
		refusal, changed := l.b.refusal, l.b.changed
		l.b.mu.Unlock()
		if answer {
			l.b.set(func(b *fakeBroker) {
				b.moved += 4
				b.answered = append(b.answered, p)
			})
			return refusal
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *fakeLink) Bounce() {
	l.b.set(func(b *fakeBroker) { b.bounces++ })
	select {
	case l.bounced <- struct{}{}:
	default:
	}
}

func (l *fakeLink) Moved() uint64 {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	if l.b.creeping {
		l.b.moved++
	}
	return l.b.moved
}

func noDial(context.Context) (net.Conn, error) { return nil, errors.New("the fake broker has no wire") }

// newTestAgent returns an agent of the fake broker, not yet running.
func newTestAgent(t testing.TB, b *fakeBroker, cfg Config, claims map[string]string) *Agent {
	t.Helper()
	b.claims = claims
	a, err := New(cfg, Deps{
		Dial: noDial,
		Token: func(context.Context) (string, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return testToken(b.claims), b.tokenErr
		},
		Local:   memnet.Listen("agent"), // a real socket would stop the fake clock
		Version: "test", Log: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	a.newLink = b.link
	t.Cleanup(func() { a.Close() })
	return a
}
