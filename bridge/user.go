package bridge

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"pairsync/internal/registry"
)

// userKey names one MQTT session: a user, and the device id their phone gave
// in the handshake, empty where it gave none.
type userKey struct{ user, device string }

// clientID is the session's MQTT client id (architecture, "Data's way", 3).
func (k userKey) clientID() string {
	if k.device == "" {
		return "app"
	}
	return "app-" + k.device
}

// user is what the bridge holds for one userKey while a socket is connected:
// its phones, and the session between the first join and the last socket's end.
//
// Lock order: Bridge.mu before user.mu. Whatever calls into a socket while
// user.mu is held is queued with later and runs, in order, without it.
type user struct {
	b   *Bridge
	key userKey
	log *slog.Logger

	running bool // guarded by Bridge.mu: the goroutine run exists

	mu       sync.Mutex // guards the fields below
	phones   []*phone   // connected, in order of arrival
	wanted   bool       // a phone joined or sent something
	session  *session   // nil while there is none
	ready    chan struct{}
	acked    ackMemory
	sending  int                 // sends of phones, also of those that have gone
	loaded   bool                // acked holds what is on disk
	attempts map[string]attempts // by photo: those that nobody had answered when the last session ended
	calls    []func()            // what later queued
	calling  bool                // somebody runs calls
	receipts []receiptNews       // newest last; what the partner's receipts said
}

func newUser(b *Bridge, key userKey) *user {
	return &user{
		b: b, key: key, ready: make(chan struct{}), attempts: map[string]attempts{},
		log: b.log.With("user", key.user, "device", key.device),
	}
}

// later queues a call into a socket; u.mu is held. The queue is bounded by
// what queues into it: a window of messages, for each socket.
func (u *user) later(call func()) { u.calls = append(u.calls, call) }

// unlock releases u.mu after running what was queued. One goroutine at a time
// runs calls, so that their order is the order in which they were queued.
func (u *user) unlock() {
	if u.calling {
		u.mu.Unlock()
		return
	}
	u.calling = true
	for len(u.calls) > 0 {
		call := u.calls[0]
		u.calls = u.calls[1:]
		u.mu.Unlock()
		call()
		u.mu.Lock()
	}
	u.calls, u.calling = nil, false
	u.mu.Unlock()
}

// run is the user's goroutine: one session after the other, as long as
// somebody wants one.
func (u *user) run(ctx context.Context) {
	for {
		u.loadAcks(ctx)
		u.serve()
		if !u.b.again(ctx, u) {
			return
		}
	}
}

// loadAcks reads what was acknowledged before the bridge was started. Without
// it a photo may be emitted once more than needed, so a failure is no reason
// to refuse the user.
func (u *user) loadAcks(ctx context.Context) {
	u.mu.Lock()
	loaded := u.loaded
	u.mu.Unlock()
	if loaded {
		return
	}
	stored, err := loadAcks(ctx, u.b.deps.KV, u.key)
	if err != nil {
		u.log.Warn("acknowledged photos unknown", "err", err)
	}
	u.mu.Lock()
	defer u.unlock()
	early := u.acked.entries
	u.acked, u.loaded = stored, err == nil
	for _, e := range early {
		u.acked.add(e.key, e.at)
	}
}

// serve runs one session: from now until nobody needs it, or the bridge stops.
func (u *user) serve() {
	s, err := newSession(u)
	if err != nil {
		u.log.Error("session cannot be made", "err", err)
		u.mu.Lock()
		defer u.unlock()
		u.wanted = false
		return
	}
	u.mu.Lock()
	if !u.needed() {
		s.end()
		s.cut()
		u.unlock()
		return
	}
	u.session = s
	close(u.ready)
	u.unlock()
	u.b.metrics.sessions.Inc()

	s.run()

	u.b.metrics.sessions.Dec()
	u.mu.Lock()
	defer u.unlock()
	u.session, u.ready = nil, make(chan struct{})
	close(s.over)
	s.stopPhotos()
}

// await returns the user's session, starting one where there is none yet. It
// needs a phone or a send that keeps the user needed.
func (u *user) await(ctx context.Context) (*session, error) {
	u.b.start(u)
	for {
		u.mu.Lock()
		s, ready := u.session, u.ready
		u.unlock()
		if s != nil {
			return s, nil
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// join makes p receive from now on; a repeat changes nothing.
func (u *user) join(p *phone) {
	u.mu.Lock()
	defer u.unlock()
	if p.joined || p.gone {
		return
	}
	p.joined = true
	if u.session != nil {
		u.session.joined(p)
	}
}

// lagWait is the time after which a phone that read too slowly gets what it
// missed.
const lagWait = time.Second

// lag notes that p missed an event.
func (u *user) lag(p *phone) {
	u.mu.Lock()
	defer u.unlock()
	if p.lags || p.gone {
		return
	}
	p.lags = true
	time.AfterFunc(lagWait, func() { u.catchUp(p) })
}

func (u *user) catchUp(p *phone) {
	u.mu.Lock()
	defer u.unlock()
	p.lags, p.unproven = false, nil
	if p.joined && u.session != nil {
		u.session.joined(p)
	}
}

// leave takes p out; u.mu is held.
func (u *user) leave(p *phone) {
	u.phones = slices.DeleteFunc(u.phones, func(other *phone) bool { return other == p })
	p.gone, p.joined = true, false
	p.disarm()
	if u.session != nil {
		u.session.left()
	}
	u.endUnneeded()
}

// needed reports whether somebody is connected, or has left something that is
// still to be sent; u.mu is held.
func (u *user) needed() bool { return len(u.phones) > 0 || u.sending > 0 }

// endUnneeded ends the session that nobody needs; u.mu is held.
func (u *user) endUnneeded() {
	if u.needed() {
		return
	}
	u.wanted = false
	if u.session != nil {
		u.session.end()
	}
}

// sendBegins and sendEnds bracket what a phone has sent: the session outlives
// the phone until it is stored.
func (u *user) sendBegins() {
	u.mu.Lock()
	defer u.unlock()
	u.sending++
}

func (u *user) sendEnds() {
	u.mu.Lock()
	u.sending--
	u.endUnneeded()
	u.unlock()
	u.b.tidy(u)
}

// audience returns the phones that may receive from pair; u.mu is held.
func (u *user) audience(pair string) []*phone {
	var out []*phone
	for _, p := range u.phones {
		if p.joined && p.entitled(pair) {
			out = append(out, p)
		}
	}
	return out
}

// partner returns the user's present pair and the other one in it.
func (u *user) partner() (pair registry.Pair, partner string, ok bool) {
	if pair, ok = u.b.deps.Registry.PairOf(u.key.user); !ok {
		return registry.Pair{}, "", false
	}
	partner, ok = pair.Partner(u.key.user)
	return pair, partner, ok
}

// photoAcked takes p's word that it has the photo, received at.
func (u *user) photoAcked(p *phone, id string, at time.Time) {
	u.mu.Lock()
	defer u.unlock()
	p.takes = true
	if u.session != nil && u.session.photoAcked(id, at) {
		return
	}
	u.acked.add(photoKey(id), at)
}

// receiptNews is what was last told to the sender about one of their moments.
type receiptNews struct {
	photo string
	body  map[string]any
}

// maxReceiptNews bounds them; only a sender who repeats an old photo asks.
const maxReceiptNews = 64

// remember keeps a receipt for senders that repeat its photo; u.mu is held.
func (u *user) remember(photo string, body map[string]any) {
	if len(u.receipts) == maxReceiptNews {
		u.receipts = slices.Delete(u.receipts, 0, 1)
	}
	u.receipts = append(u.receipts, receiptNews{photo, body})
}
