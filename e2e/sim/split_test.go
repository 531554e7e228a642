package sim

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pairsync/bridge"
	"pairsync/broker"
	"pairsync/internal/admin"
	"pairsync/internal/badgerdb"
	"pairsync/internal/ledger"
	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/moment"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// bridgeHost is where user's own bridge runs in a split world; phones dial
// "http://" and this name.
func bridgeHost(user string) string { return "bridge-of-" + user }

// split is the server in parts: a broker, and for each of two users a bridge
// of their own that reaches it over the network, as it would a broker
// elsewhere. In the daemon that link is inside the process, out of reach.
type split struct {
	w        *world
	db       *badgerdb.DB
	registry *registry.Registry
	verifier *token.Verifier
	signer   *token.Signer
	broker   *broker.Broker
	ledger   *heldLedger
	wires    map[string]*wires // of the bridges' links, by user
}

// heldLedger is a ledger whose appends a test can hold up, or refuse.
type heldLedger struct {
	ledger.Ledger
	mu      sync.Mutex // guards the fields below
	held    bool
	refusal error
	waiting []func() // appends, in order
}

// Submit implements ledger.Ledger.
func (l *heldLedger) Submit(ctx context.Context, log ledger.LogID, m moment.Moment, done func(ledger.Result)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	submit := func() {
		if err := l.Ledger.Submit(ctx, log, m, done); err != nil {
			done(ledger.Result{Err: err})
		}
	}
	switch {
	case l.held:
		l.waiting = append(l.waiting, submit)
	case l.refusal != nil:
		err := l.refusal
		go done(ledger.Result{Err: err})
	default:
		return l.Ledger.Submit(ctx, log, m, done)
	}
	return nil
}

// hold makes appends wait until release.
func (l *heldLedger) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = true
}

func (l *heldLedger) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = false
	for _, submit := range l.waiting {
		submit()
	}
	l.waiting = nil
}

// refuse makes appends fail with err, or with nil lets them through again.
func (l *heldLedger) refuse(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refusal = err
}

// startSplit runs a split server for users until the end of the test.
func (w *world) startSplit(users ...string) *split {
	w.t.Helper()
	dir := w.newDir("split")
	db, err := badgerdb.Open(dir, badgerdb.Server, w.log)
	w.must(err)
	real, err := badgerledger.New(db, badgerledger.Config{}, w.log)
	w.must(err)
	led := &heldLedger{Ledger: real}
	reg, err := registry.Open(w.t.Context(), db.KV())
	w.must(err)
	keys, err := token.OpenKeys(filepath.Join(dir, "keys"))
	w.must(err)
	verifier, err := token.NewVerifier(reg.Revoked, keys.Issuer("pairsync", "pairsync"))
	w.must(err)
	cfg := broker.DefaultConfig()
	cfg.KeepLast = 100_000
	b, err := broker.New(w.t.Context(), cfg, broker.Deps{
		Ledger: led, KV: db.KV(), Verifier: verifier, Registry: reg, Log: w.log.With("who", "broker"),
	})
	w.must(err)
	s := &split{
		w: w, db: db, registry: reg, verifier: verifier, broker: b, ledger: led,
		signer: token.NewSigner(keys, "pairsync", "pairsync"), wires: map[string]*wires{},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return b.Run(ctx) })
	g.Go(func() error { return b.Serve(ctx, w.net.Listen(hostMQTT)) })
	serve(ctx, &g, w.net.Listen(hostAdmin), admin.New(admin.Deps{Registry: reg, Sign: s.signer.Sign, Log: w.log}).Handler())
	for _, user := range users {
		s.runBridge(ctx, &g, user)
	}
	w.t.Cleanup(func() {
		cancel()
		w.must(errors.Join(g.Wait(), db.Close()))
	})
	return s
}

// runBridge adds user's bridge to g.
func (s *split) runBridge(ctx context.Context, g *errgroup.Group, user string) {
	s.w.t.Helper()
	ws := &wires{}
	s.wires[user] = ws
	b, err := bridge.New(bridge.Default(), bridge.Deps{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return ws.dial(ctx, s.w.net, bridgeHost(user), hostMQTT)
		},
		Token: func(context.Context, string) (string, error) {
			raw, _, err := s.signer.Sign(token.Principal{User: "bridge", Role: token.RoleBridge}, time.Duration(tokenLife))
			return raw, err
		},
		Sign: s.signer.Sign, Verifier: s.verifier, Registry: s.registry, KV: s.db.KV(), Ledger: s.ledger, Log: s.w.log.With("who", bridgeHost(user)),
	})
	s.w.must(err)
	g.Go(func() error { return b.Run(ctx) })
	serve(ctx, g, s.w.net.Listen(bridgeHost(user)+":80"), b.Handler())
}

// serve adds an HTTP server to g.
func serve(ctx context.Context, g *errgroup.Group, l net.Listener, h http.Handler) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	context.AfterFunc(ctx, func() { srv.Close() })
}
