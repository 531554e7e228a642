// Package bridge lets the app take part: it turns the app's Socket.IO events
// into moments on MQTT and back (contract, section 4).
//
//	phone ── Socket.IO ──▶ phone ▶ user ▶ session ── MQTT 5 ──▶ broker
//
// A phone is one admitted socket (phone.go, events.go, send.go). A user is what
// the sockets of one user and device id share; from the first join_room to the
// last socket's end it has a session, which is one MQTT 5 session `app` or
// `app-<device>` with manual acknowledgement (session.go). A photo is
// acknowledged to the broker once a phone has said that it has it and the
// receipt is stored (photos.go); everything else once a pong proves that it
// arrived (receive.go). The bridge keeps no photo: what is not acknowledged is
// in the broker's ledger and comes again.
//
// It is not a broker and imports none: Deps.Dial reaches any MQTT 5 broker. It
// decides nothing about tokens and pairs; the verifier and the registry do.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"pairsync/bridge/socketio"
	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/loginlimit"
	"pairsync/internal/mqttlink"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// Deps is what a Bridge works with; all are required.
type Deps struct {
	// Dial connects to the broker.
	Dial func(ctx context.Context) (net.Conn, error)
	// Token returns a token of role bridge for a link that acts for user. It is
	// asked at every connect.
	Token func(ctx context.Context, user string) (string, error)
	// Sign makes the tokens that apps get in exchange for an external one; it
	// is token.Signer.Sign.
	Sign     func(p token.Principal, ttl time.Duration) (raw string, signed token.Principal, err error)
	Verifier *token.Verifier
	Registry *registry.Registry
	Ledger   ledger.Ledger // scheduled photos, in ledger.LaterLog
	KV       kv.Store      // acknowledged photos and dead letters, under "bridge/"
	Log      *slog.Logger
}

// maxResting is how many users are remembered after their last socket's end:
// what their phones acknowledged, and how often a photo was tried. On disk is
// enough of it to lose nothing but a few repeats.
const maxResting = 1024

// Bridge is the app's door. New makes one; its methods are safe for concurrent
// use.
type Bridge struct {
	cfg      Config
	deps     Deps
	log      *slog.Logger
	metrics  *counters
	logins   *loginlimit.Limiter
	pairing  pairingLimits
	schedule *scheduler
	// proxyWarning is for a proxy that is not configured.
	proxyWarning sync.Once
	parser       photoParser
	io           *socketio.Server

	photoMemory *semaphore.Weighted // bytes of photos between phones and broker
	newLink     func(cfg mqttlink.Config, receive func(inbound), log *slog.Logger) (link, error)

	// base is what every phone and session works with; it ends when Run has
	// given everything the time to finish. Run sets it before anybody comes in.
	base context.Context
	// owned counts the goroutines of users and their sends; Run waits for them.
	owned sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	running bool       // between Run's start and the end of its context
	users   map[userKey]*user
	resting map[userKey]*user // without phones and goroutines
	sockets map[string]int    // by user
	up      map[string]int    // sessions that are connected, by user

	changes chan struct{} // capacity 1: pending is not empty
	pending []registry.Change
}

// New checks cfg and deps and returns a bridge. It starts no goroutine; until
// Run, sockets are refused as retryable.
func New(cfg Config, deps Deps) (*Bridge, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	if deps.Dial == nil || deps.Token == nil || deps.Sign == nil || deps.Verifier == nil || deps.Registry == nil || deps.KV == nil || deps.Ledger == nil || deps.Log == nil {
		return nil, errors.New("bridge: every dependency is required")
	}
	b := &Bridge{
		cfg: cfg, deps: deps, log: deps.Log, metrics: newCounters(), parser: newPhotoParser(),
		logins:      loginlimit.New(cfg.AddressConnects, cfg.LoginFailures),
		pairing:     newPairingLimits(),
		photoMemory: semaphore.NewWeighted(int64(cfg.PhotoMemory)),
		newLink:     newBrokerLink,
		users:       map[userKey]*user{},
		resting:     map[userKey]*user{},
		sockets:     map[string]int{},
		up:          map[string]int{},
		changes:     make(chan struct{}, 1),
	}
	b.schedule = newScheduler(b)
	sio := cfg.SocketIO
	if sio.MaxPayload == 0 {
		sio.MaxPayload = cfg.maxPayload()
	}
	if sio.QueueBytes == 0 {
		sio.QueueBytes = cfg.queueBytes()
	}
	io, err := socketio.NewServer(sio, deps.Log)
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	b.io = io
	io.Of("/").Use(b.admit)
	io.Of("/").OnConnect(b.connected)
	return b, nil
}

// Handler serves /socket.io/, /health, /auth/ and /pairs/.
func (b *Bridge) Handler() http.Handler {
	api := http.NewServeMux()
	api.HandleFunc("GET /health", health)
	api.HandleFunc("POST /auth/exchange", b.exchange)
	api.HandleFunc("POST /auth/google", b.exchange)
	b.servePairs(api)
	mux := http.NewServeMux()
	mux.Handle(socketio.DefaultPath, b.io)
	mux.Handle("/", b.io.AllowOrigins(api))
	return mux
}

// health answers that the door is open. The app asks before each connect and
// gives up quickly, so it asks nobody else; readiness is the ops listener's.
func health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Write([]byte(`{"status":"ok"}` + "\n"))
}

// Run serves phones until ctx ends; then it lets them go in such a way that
// they come back, finishes what is on the way within DrainTimeout, and returns
// when every goroutine of the bridge has ended. It can be called once.
func (b *Bridge) Run(ctx context.Context) error {
	if err := sweepDead(ctx, b.deps.KV); err != nil {
		b.log.Warn("old dead letters not removed", "err", err)
	}
	unwatch := b.deps.Registry.Watch(b.changed)
	defer unwatch()
	base, halt := context.WithCancel(context.WithoutCancel(ctx))
	defer halt()
	b.mu.Lock()
	b.base, b.running = base, true
	b.mu.Unlock()

	b.spawn(func() { b.schedule.run(ctx, base) })
	for ctx.Err() == nil {
		select {
		case <-b.changes:
			b.applyChanges()
		case <-ctx.Done():
		}
	}
	return b.shutdown(base, halt)
}

// shutdown lets everybody go; what is not done within DrainTimeout is cut off.
func (b *Bridge) shutdown(base context.Context, halt context.CancelFunc) error {
	ctx, cancel := context.WithTimeout(base, b.cfg.DrainTimeout)
	defer cancel()
	b.mu.Lock()
	b.running = false
	b.mu.Unlock()
	defer context.AfterFunc(ctx, halt)()
	err := b.io.Close(ctx)
	b.owned.Wait()
	if err != nil {
		return fmt.Errorf("bridge: end sockets: %w", err)
	}
	return nil
}

// spawn runs fn on a goroutine that Run waits for.
func (b *Bridge) spawn(fn func()) { b.owned.Go(fn) }

// open returns what a handshake works with; false outside Run.
func (b *Bridge) open() (context.Context, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.base, b.running
}

// full reports whether user may have no further socket.
func (b *Bridge) full(user string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sockets[user] >= b.cfg.SocketsPerUser
}

// connected takes an admitted socket in.
func (b *Bridge) connected(sock *socketio.Socket) {
	a, ok := sock.Value(admissionKey).(admission)
	if !ok {
		sock.Disconnect(true)
		return
	}
	p := b.attach(sock, a)
	if p == nil {
		sock.Disconnect(true) // others came in while it was checked
		return
	}
	sock.OnDisconnect(func(string) { b.detach(p) })
	known := eventTable()
	for name, handle := range known {
		sock.On(name, func(e *socketio.Event) { handle(p, e) })
	}
	sock.OnAny(func(e *socketio.Event) {
		if known[e.Name] == nil {
			p.unknown(e)
		}
	})
	p.u.mu.Lock()
	p.arm()
	p.u.unlock()
	// It may have been revoked between the check and the list of phones.
	if b.deps.Registry.Revoked(a.who) {
		p.revoke()
		return
	}
	if a.who.External && !a.returning && b.cfg.Auth.policy(&a.who) == ExpirySession {
		p.offerToken()
	}
}

// attach enters a phone; nil where the user has too many already.
func (b *Bridge) attach(sock *socketio.Socket, a admission) *phone {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := a.key()
	if !b.running || b.sockets[key.user] >= b.cfg.SocketsPerUser {
		return nil
	}
	u := b.users[key]
	if u == nil {
		if u = b.resting[key]; u == nil {
			u = newUser(b, key)
		}
		delete(b.resting, key)
		b.users[key] = u
	}
	p := newPhone(u, sock, a)
	b.sockets[key.user]++
	b.metrics.admitted.Inc()
	b.metrics.sockets.Inc()
	u.mu.Lock()
	defer u.unlock()
	u.phones = append(u.phones, p)
	return p
}

// detach takes a phone out.
func (b *Bridge) detach(p *phone) {
	u := p.u
	b.mu.Lock()
	if b.sockets[u.key.user]--; b.sockets[u.key.user] == 0 {
		delete(b.sockets, u.key.user)
	}
	b.mu.Unlock()
	b.metrics.sockets.Dec()
	u.mu.Lock()
	u.leave(p)
	u.unlock()
	b.tidy(u)
}

// start gives u a session, if it has none and is needed.
func (b *Bridge) start(u *user) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u.mu.Lock()
	defer u.unlock()
	if !u.needed() {
		return
	}
	u.wanted = true
	if !u.running {
		u.running = true
		b.spawn(func() { u.run(b.base) })
	}
}

// again reports whether u's goroutine goes on with another session.
func (b *Bridge) again(ctx context.Context, u *user) bool {
	b.mu.Lock()
	u.mu.Lock()
	again := u.wanted && u.needed() && ctx.Err() == nil
	u.running = again
	u.unlock()
	b.mu.Unlock()
	if !again {
		b.tidy(u)
	}
	return again
}

// tidy puts a user that nobody needs to rest.
func (b *Bridge) tidy(u *user) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u.mu.Lock()
	defer u.unlock()
	if u.running || u.needed() || b.users[u.key] != u {
		return
	}
	delete(b.users, u.key)
	if len(b.resting) >= maxResting {
		for key := range b.resting { // any: the order of a map is random enough
			delete(b.resting, key)
			break
		}
	}
	b.resting[u.key] = u
}

// countUp notes that a session of user has connected or not any more.
func (b *Bridge) countUp(user string, up bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if up {
		b.up[user]++
	} else if b.up[user]--; b.up[user] <= 0 {
		delete(b.up, user)
	}
}

// isUp reports whether an app of user is connected through this bridge.
func (b *Bridge) isUp(user string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.up[user] > 0
}

// changed takes a change of the registry; Run's goroutine applies it.
func (b *Bridge) changed(c registry.Change) {
	b.mu.Lock()
	b.pending = append(b.pending, c)
	b.mu.Unlock()
	select {
	case b.changes <- struct{}{}:
	default:
	}
}

func (b *Bridge) applyChanges() {
	b.mu.Lock()
	pending := b.pending
	b.pending = nil
	users := make([]*user, 0, len(b.users))
	for _, u := range b.users {
		users = append(users, u)
	}
	b.mu.Unlock()
	for _, c := range pending {
		for _, u := range users {
			u.changed(c)
		}
	}
}

// changed applies a change of the registry that concerns u.
func (u *user) changed(c registry.Change) {
	u.mu.Lock()
	defer u.unlock()
	switch c.Kind {
	case registry.PairCreated, registry.PairRemoved:
		if _, ok := c.Pair.Partner(u.key.user); ok && u.session != nil {
			u.session.setPair()
			u.session.pairChanged()
		}
	case registry.TokenRevoked, registry.UserRevoked:
		for _, p := range u.phones {
			if u.b.deps.Registry.Revoked(*p.who.Load()) {
				u.later(p.revoke)
			}
		}
	}
}
