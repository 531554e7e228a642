// Package mqttlink is the MQTT 5 client of pairsync: one session that keeps
// itself connected. The bridge has one per user, the agent one, towards our
// broker or any other.
//
// It speaks QoS 0 and 1, acknowledges when the caller says so (Message.Ack),
// resends what was not acknowledged and subscribes again after every
// reconnect. It keeps nothing on disk: what must survive a restart is the
// caller's outbox. It knows topics and payloads only as strings and bytes.
//
// The codec of everything but PUBLISH and PUBACK is paho.golang/packets. Its
// client is not used, because on the path of a photo it costs five copies, it
// polls to send acknowledgements, and a publish in flight is lost to its
// caller when the server has forgotten the session.
//
// A Link's methods are safe for concurrent use. While connected it has three
// goroutines: Run's own (the callbacks), a reader and a sender. An idle Link
// wakes once per keepalive.
package mqttlink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"pairsync/internal/moment"
)

// settleTime is how long a connection must have been up for the next back-off
// to start again from the minimum.
const settleTime = 10 * time.Second

// Back-off where the server refused who we are (ReasonError.slow).
const (
	slowMinBackoff = 5 * time.Second
	slowMaxBackoff = 2 * time.Minute
)

// errBounced is what Down hears after Bounce.
var errBounced = errors.New("reconnecting on request")

// Link keeps one MQTT session connected. Make it with New, drive it with Run.
type Link struct {
	cfg   Config
	log   *slog.Logger
	moved atomic.Uint64

	done chan struct{} // closed when Run has ended

	mu       sync.Mutex // guards the fields below
	started  bool
	clientID string
	cancel   context.CancelCauseFunc // ends the current dial, or the wait after the connection
	live     *connection             // nil while down
	up       chan struct{}           // closed while connected and subscribed, else open
	isUp     bool
	props    []moment.Property // of the newest CONNACK
	session
}

// New checks cfg, names every problem at once, and starts nothing.
func New(cfg Config, log *slog.Logger) (*Link, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("mqtt link: %w", err)
	}
	l := &Link{cfg: cfg, log: log, clientID: cfg.ClientID, done: make(chan struct{}), up: make(chan struct{})}
	for _, s := range cfg.Subscriptions {
		l.addSubscription(s)
	}
	return l, nil
}

// Run connects and keeps the session connected until ctx ends; then it sends
// DISCONNECT (within 2 s) and returns nil when all its goroutines have ended.
// Waiting calls of Publish, Subscribe and Unsubscribe return ErrClosed. It can
// be called once.
func (l *Link) Run(ctx context.Context) error {
	l.mu.Lock()
	started := l.started
	l.started = true
	l.mu.Unlock()
	if started {
		return errors.New("mqtt link: Run called twice")
	}
	defer close(l.done)

	failures, first := 0, true
	for {
		since := time.Now()
		attempt, cancel := l.startAttempt(ctx)
		c, present, err := l.connect(attempt, first)
		if err == nil {
			first = false
			since = time.Now()
			err = l.serve(ctx, c, present)
			if time.Since(since) >= settleTime {
				failures = 0
			}
		}
		if ctx.Err() != nil {
			cancel(nil)
			return nil
		}
		if cause := context.Cause(attempt); errors.Is(cause, errBounced) {
			err = errBounced
		}
		l.log.Debug("mqtt connection ended", "err", err)
		if l.cfg.Down != nil {
			l.cfg.Down(err)
		}
		l.wait(attempt, l.backoff(failures, err))
		cancel(nil)
		failures++
	}
}

// startAttempt returns the context of one round of dial, connection and wait.
func (l *Link) startAttempt(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	attempt, cancel := context.WithCancelCause(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cancel = cancel
	return attempt, cancel
}

// wait sleeps for d, unless ctx ends or Bounce was called.
func (l *Link) wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// backoff returns the wait after the given number of earlier failures: it
// doubles, and a random half of it keeps a thousand frames from coming back
// in the same instant.
func (l *Link) backoff(failures int, err error) time.Duration {
	least, most := l.cfg.MinBackoff, l.cfg.MaxBackoff
	if re := (*ReasonError)(nil); errors.As(err, &re) && re.slow() {
		least, most = max(least, slowMinBackoff), max(most, slowMaxBackoff)
	}
	d := min(most, least<<min(failures, 16))
	return d/2 + rand.N(d/2+1)
}

// Bounce drops the connection now, without waiting for anything, and
// reconnects at once; in a dial or a back-off it starts the next attempt at
// once. What is in flight is sent again. It does nothing before Run.
func (l *Link) Bounce() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live != nil {
		l.live.fail(errBounced)
	}
	if l.cancel != nil {
		l.cancel(errBounced)
	}
}

// Moved returns how many bytes have moved in either direction over all
// connections so far. It grows while there is progress: bytes that only sit in
// this machine's send queue do not count, where the system can tell (Linux).
func (l *Link) Moved() uint64 {
	l.mu.Lock()
	live := l.live
	l.mu.Unlock()
	if live == nil {
		return l.moved.Load()
	}
	total := l.moved.Load() // before the queue is asked, so that the difference never overstates
	return total - min(total, live.wire.unsent())
}

// Connected reports whether the link is connected and subscribed now.
func (l *Link) Connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isUp
}

// AwaitUp waits until the link is connected and subscribed. It returns ctx's
// error, or ErrClosed when Run has ended.
func (l *Link) AwaitUp(ctx context.Context) error {
	l.mu.Lock()
	up := l.up
	l.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-l.done:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Props returns the user properties of the newest CONNACK: what a pairsync
// server tells of the client, such as its pair. It is never modified.
func (l *Link) Props() []moment.Property {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.props
}

// setUp records whether the link is up; going down opens a new wait.
func (l *Link) setUp(up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if up == l.isUp {
		return
	}
	if l.isUp = up; up {
		close(l.up)
	} else {
		l.up = make(chan struct{})
	}
}
