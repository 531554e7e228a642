// Package webhook tells the app's own backend what happens to pairs, so that it
// can send a push notification to a phone that is away: see the types of
// events in event.go.
//
// Requests follow Standard Webhooks (https://www.standardwebhooks.com): a POST
// of JSON with the headers webhook-id, webhook-timestamp and webhook-signature.
// They hold ids and counts, never a photo, caption, note or token. Any answer
// of 2xx ends an event. 410 Gone ends all sending until the next start; with
// anything else, redirects too, the event is tried again, later and later, for
// Config.GiveUp. Events may arrive twice, with the same webhook-id, and in
// another order than they happened.
//
// What waits to be sent is on disk (outbox.go) and survives kill -9. Events are
// found by reading (watch.go): the registry and each pair's log from a durable
// place on. What a crash cuts off before it is in the outbox is found at the
// next start. Nothing is written for a moment as such: whether somebody is to
// be told that moments wait is looked up when it is time to tell.
package webhook

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/metrics"
	"pairsync/internal/registry"
)

// Deps is what Webhooks work with; all are required.
type Deps struct {
	Ledger   ledger.Ledger
	Registry *registry.Registry
	KV       kv.Store // under keys of its own
	// Backlog counts what waits for user's app behind a place in the log of
	// their pair.
	Backlog func(ctx context.Context, user string, after ledger.Seq) (Backlog, error)
	Client  *http.Client
	Log     *slog.Logger
}

// Backlog is what waits for a user's app.
type Backlog struct {
	Online                   bool
	Since                    time.Time // since when the app is, or is not, online
	Photos, Notes, Reactions int
	After, Through           ledger.Seq // behind After was counted, up to Through
}

func (b Backlog) count() int { return b.Photos + b.Notes + b.Reactions }

// Webhooks tells one backend. New makes one; it is safe for concurrent use.
type Webhooks struct {
	cfg  Config
	deps Deps
	keys [][]byte
	log  *slog.Logger

	metrics *counters
	client  *http.Client
	out     *outbox
	unwatch func()

	wake chan struct{} // capacity 1: there may be something to tell

	mu      sync.Mutex // guards the fields below
	changes []registry.Change
	dirty   map[string]bool // pairs whose log has grown
	expired map[string]int  // moments, by pair

	// Used by the watching goroutine alone.
	state state
	pairs map[string]*pair
	due   map[string]time.Time // by recipient: when to look what waits

	failing atomic.Bool // the last try failed
}

// New loads what is on disk and begins to watch the registry; it sends nothing
// before Run. Without Config.URL it forgets what is on disk, so that switching
// on again does not tell of what happened meanwhile.
func New(ctx context.Context, cfg Config, deps Deps) (*Webhooks, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	w := &Webhooks{
		cfg: cfg, deps: deps, log: deps.Log, metrics: newCounters(), wake: make(chan struct{}, 1),
		dirty: map[string]bool{}, expired: map[string]int{}, pairs: map[string]*pair{}, due: map[string]time.Time{},
		unwatch: func() {},
	}
	w.out = newOutbox(deps.KV, cfg.MaxEvents, w.metrics)
	if cfg.URL == "" {
		return w, w.forget(ctx)
	}
	w.keys, _ = parseSecret(cfg.Secret.Reveal()) // Validate has read it
	client := *deps.Client
	client.Timeout = cfg.Timeout
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	w.client = &client
	if err := w.out.load(ctx); err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	if err := w.load(ctx); err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	w.unwatch = deps.Registry.Watch(w.changed)
	return w, nil
}

// forget removes everything of ours from the disk.
func (w *Webhooks) forget(ctx context.Context) error {
	var ops []kv.Op
	err := w.deps.KV.Scan(ctx, keyPrefix, func(key string, _ []byte) error {
		ops = append(ops, kv.Op{Key: key, Delete: true})
		return nil
	})
	if err == nil && len(ops) > 0 {
		err = w.deps.KV.Apply(ctx, ops...)
	}
	if err != nil {
		return fmt.Errorf("webhook: %w", err)
	}
	return nil
}

// Run watches and sends until ctx ends. A backend that does not answer is no
// reason to return.
func (w *Webhooks) Run(ctx context.Context) error {
	defer w.unwatch()
	if w.cfg.URL == "" {
		<-ctx.Done()
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { w.watch(ctx); return nil })
	g.Go(func() error { w.send(ctx); return nil })
	return g.Wait()
}

// counters counts what an operator asks about.
type counters struct {
	set                                  *metrics.Set
	events, sent, failed, dropped, stale prometheus.Counter
	waiting                              prometheus.Gauge
}

func newCounters() *counters {
	s := metrics.New("webhook")
	return &counters{
		set:     s,
		events:  s.Counter("events_total", "Events that were put into the outbox."),
		sent:    s.Counter("sent_total", "Events that the backend took."),
		failed:  s.Counter("failures_total", "Tries that the backend did not take."),
		dropped: s.Counter("dropped_total", "Events that were given up: too old, too many, or the backend is gone."),
		stale:   s.Counter("stale_total", "moment.queued events not sent because everything had arrived meanwhile."),
		waiting: s.Gauge("waiting", "Events in the outbox."),
	}
}

// Register adds the metrics to reg.
func (w *Webhooks) Register(reg prometheus.Registerer) error { return w.metrics.set.Register(reg) }
