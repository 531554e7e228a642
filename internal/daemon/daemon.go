// Package daemon wires the server together: store, registry, tokens, broker,
// bridge, the shared HTTP server and the admin socket, into one Run.
//
// It is what `pairsync serve`, the demo and the end-to-end tests start; it
// decides nothing about messages. The bridge reaches the broker as an MQTT
// client over an in-memory link, as it would over TCP to a broker elsewhere.
package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"pairsync/bridge"
	"pairsync/broker"
	"pairsync/internal/admin"
	"pairsync/internal/badgerdb"
	"pairsync/internal/ledger"
	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/memnet"
	"pairsync/internal/registry"
	"pairsync/internal/token"
	"pairsync/internal/webhook"
)

// stopWait bounds the HTTP servers' part of a shutdown; broker and bridge have
// bounds of their own.
const stopWait = 3 * time.Second

// Listeners are where the daemon serves. New binds what is nil and configured;
// tests bring in-memory ones. The daemon owns and closes them.
type Listeners struct {
	MQTT, MQTTS, HTTP, Ops, Admin net.Listener
}

// Daemon is the server. New makes one.
type Daemon struct {
	cfg   Config
	log   *slog.Logger
	l     Listeners
	ready chan struct{} // closed once everything serves

	db       *badgerdb.DB
	ledger   *badgerledger.Ledger
	registry *registry.Registry
	keys     *token.Keys
	signer   *token.Signer
	verifier *token.Verifier
	external []issuerKeys
	broker   *broker.Broker
	bridge   *bridge.Bridge
	webhooks *webhook.Webhooks
	metrics  *prometheus.Registry
	tokens   bridgeToken
	started  time.Time

	mqttsCert *certificate  // nil without TLS
	rendering chan struct{} // capacity 1: held while a rendition is made
}

// New validates cfg, opens the store and binds the listeners; it serves
// nothing yet. After an error nothing is left open. The caller runs Run, which
// also closes what New opened.
func New(ctx context.Context, cfg Config, listeners Listeners, log *slog.Logger) (d *Daemon, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d = &Daemon{cfg: cfg, log: log, l: listeners, ready: make(chan struct{}), metrics: prometheus.NewRegistry(), started: time.Now(), rendering: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
			d = nil
		}
	}()
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return d, fmt.Errorf("data directory: %w", err)
	}
	if err := d.openStore(ctx); err != nil {
		return d, err
	}
	if err := d.openAuth(); err != nil {
		return d, err
	}
	if err := d.bind(); err != nil {
		return d, err
	}
	if d.cfg.HTTP.PublicURL == "" && d.l.HTTP != nil {
		d.cfg.HTTP.PublicURL = guessURL(d.l.HTTP.Addr())
	}
	d.broker, err = broker.New(ctx, d.cfg.broker(), broker.Deps{
		Ledger: d.ledger, KV: d.db.KV(), Verifier: d.verifier, Registry: d.registry, Log: log.With("part", "broker"),
		Expired: func(pair string, count int) { d.webhooks.Expired(pair, count) },
	})
	if err != nil {
		return d, err
	}
	d.bridge, err = bridge.New(d.cfg.bridge(), bridge.Deps{
		Dial: d.dialBroker, Token: d.bridgeToken, Sign: d.signer.Sign,
		Verifier: d.verifier, Registry: d.registry, Ledger: d.ledger, KV: d.db.KV(), Log: log.With("part", "bridge"),
	})
	if err != nil {
		return d, err
	}
	d.webhooks, err = webhook.New(ctx, cfg.Webhook, webhook.Deps{
		Ledger: d.ledger, Registry: d.registry, KV: d.db.KV(), Backlog: d.appBacklog,
		Client: &http.Client{Transport: http.DefaultTransport}, Log: log.With("part", "webhook"),
	})
	if err != nil {
		return d, err
	}
	return d, d.register()
}

func (d *Daemon) openStore(ctx context.Context) (err error) {
	if d.db, err = badgerdb.Open(filepath.Join(d.cfg.DataDir, "store"), badgerdb.Server, d.log.With("part", "store")); err != nil {
		return err
	}
	d.ledger, err = badgerledger.New(d.db, badgerledger.Config{
		MaxEntries: d.cfg.Limits.PairMoments, MaxBytes: int64(d.cfg.Limits.PairBytes),
	}, d.log.With("part", "ledger"))
	if err != nil {
		return err
	}
	d.registry, err = registry.Open(ctx, d.db.KV())
	return err
}

// bind opens the listeners that are configured and were not brought along.
func (d *Daemon) bind() error {
	for _, b := range []struct {
		key, addr string
		l         *net.Listener
	}{
		{"mqtt.listen", d.cfg.MQTT.Listen, &d.l.MQTT},
		{"http.listen", d.cfg.HTTP.Listen, &d.l.HTTP},
		{"ops.listen", d.cfg.Ops.Listen, &d.l.Ops},
	} {
		if *b.l != nil || b.addr == "" {
			continue
		}
		l, err := net.Listen("tcp", b.addr)
		if err != nil {
			return fmt.Errorf("%s: %w", b.key, err)
		}
		*b.l = l
	}
	if d.cfg.TLS.CertFile != "" && d.l.MQTTS == nil && d.cfg.MQTTS.Listen != "" {
		var err error
		if d.mqttsCert, err = newCertificate(d.cfg.TLS, d.log); err != nil {
			return err
		}
		if d.l.MQTTS, err = tls.Listen("tcp", d.cfg.MQTTS.Listen, d.mqttsCert.config()); err != nil {
			return fmt.Errorf("mqtts.listen: %w", err)
		}
	}
	if d.l.Admin == nil {
		l, err := admin.Listen(d.cfg.DataDir)
		if err != nil {
			return err
		}
		d.l.Admin = l
	}
	return nil
}

func (d *Daemon) register() error {
	return errors.Join(
		d.metrics.Register(collectors.NewGoCollector()),
		d.metrics.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
		d.broker.Register(d.metrics),
		d.bridge.Register(d.metrics),
		d.webhooks.Register(d.metrics),
		d.registerKeys(),
		storeMetrics(d.db, d.ledger).Register(d.metrics),
	)
}

// Run serves until ctx ends or a part fails, and then closes everything that
// New opened, the store last. It returns nil when ctx ended.
func (d *Daemon) Run(ctx context.Context) error {
	// The broker outlives the bridge, which says goodbye to it.
	brokerCtx, stopBroker := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBroker()
	brokerEnded := make(chan error, 1)
	go func() { brokerEnded <- d.broker.Run(brokerCtx) }()

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case err := <-brokerEnded: // it ends by itself only when it cannot start
			brokerEnded <- nil
			return err
		case <-gctx.Done():
			return nil
		}
	})
	for _, l := range []net.Listener{d.l.MQTT, d.l.MQTTS} {
		if l != nil {
			g.Go(func() error { return d.broker.Serve(gctx, l) })
		}
	}
	d.runKeys(gctx, g)
	g.Go(func() error { return d.bridge.Run(gctx) })
	g.Go(func() error { return d.webhooks.Run(gctx) })
	d.serveHTTP(gctx, g, d.l.HTTP, d.appHandler())
	d.serveHTTP(gctx, g, d.l.Ops, d.opsHandler())
	d.serveHTTP(gctx, g, d.l.Admin, d.adminHandler())
	d.log.Info("ready", d.addresses()...)
	close(d.ready)

	err := g.Wait()
	stopBroker()
	err = errors.Join(err, <-brokerEnded, d.close())
	if ctx.Err() != nil {
		d.log.Info("stopped")
	}
	return err
}

// serveHTTP adds an HTTP server on l to g, where there is an l.
func (d *Daemon) serveHTTP(ctx context.Context, g *errgroup.Group, l net.Listener, h http.Handler) {
	if l == nil {
		return
	}
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("http on %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWait)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			return srv.Close() // somebody is still downloading
		}
		return nil
	})
}

// close ends what New opened, in the reverse order.
func (d *Daemon) close() error {
	var errs []error
	for _, l := range []net.Listener{d.l.Admin, d.l.Ops, d.l.HTTP, d.l.MQTTS, d.l.MQTT} {
		if l != nil {
			if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	if d.db != nil {
		errs = append(errs, d.db.Close())
	}
	return errors.Join(errs...)
}

// Ready is closed once everything serves.
func (d *Daemon) Ready() <-chan struct{} { return d.ready }

// MQTTAddr and HTTPAddr return the bound addresses, nil where off.
func (d *Daemon) MQTTAddr() net.Addr { return addr(d.l.MQTT) }

// HTTPAddr returns the address of the app's listener, nil where it is off.
func (d *Daemon) HTTPAddr() net.Addr { return addr(d.l.HTTP) }

// OpsAddr returns the address of the ops listener, nil where it is off.
func (d *Daemon) OpsAddr() net.Addr { return addr(d.l.Ops) }

// WatchPair calls wake after something was stored for a pair, coalesced; see
// ledger.Ledger.Watch.
func (d *Daemon) WatchPair(pair string, wake func()) (stop func()) {
	return d.ledger.Watch(ledger.PairLog(pair), wake)
}

func addr(l net.Listener) net.Addr {
	if l == nil {
		return nil
	}
	return l.Addr()
}

// bound returns the addresses that are served, by name.
func (d *Daemon) bound() map[string]string {
	out := map[string]string{}
	for name, l := range map[string]net.Listener{"mqtt": d.l.MQTT, "mqtts": d.l.MQTTS, "http": d.l.HTTP, "ops": d.l.Ops} {
		if l != nil {
			out[name] = l.Addr().String()
		}
	}
	return out
}

// addresses returns what bound does as log attributes, in a fixed order.
func (d *Daemon) addresses() []any {
	bound := d.bound()
	var out []any
	for _, name := range slices.Sorted(maps.Keys(bound)) {
		out = append(out, slog.String(name, bound[name]))
	}
	return append(out, slog.String("data_dir", d.cfg.DataDir))
}

// dialBroker joins the bridge to the broker inside the process.
func (d *Daemon) dialBroker(ctx context.Context) (net.Conn, error) {
	near, far := memnet.Pipe("bridge", "broker")
	go d.broker.ServeConn(context.WithoutCancel(ctx), far)
	return near, nil
}

// appBacklog tells the webhooks what waits for a user's app.
func (d *Daemon) appBacklog(ctx context.Context, user string, after ledger.Seq) (webhook.Backlog, error) {
	b, err := d.broker.AppBacklog(ctx, user, after)
	return webhook.Backlog(b), err
}
