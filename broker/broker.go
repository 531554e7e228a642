// Package broker is pairsync's embedded MQTT broker: MQTT 5 and 3.1.1 for two
// people who share photos.
//
// It runs mochi-mqtt for the wire (codec, CONNECT and SUBSCRIBE handling,
// keepalive) and replaces what mochi does with messages. A publish to a
// durable topic goes into the ledger and is acknowledged when it is on disk
// (durable.go); one pump per connection carries moments from the ledger to the
// client and moves the session's cursor on its PUBACKs (pump.go). What all
// connections hold in memory is bounded (limits.go, budget.go). Sessions,
// their subscriptions and cursors survive a restart (session.go, store.go).
// Who somebody is comes from the token (auth.go); what they may do from the
// registry's pairs (acl.go). Presence and the other retained values of a pair
// are made by the broker and computed when they are asked for (retained.go).
//
// It is not a general broker: topics outside pairs/ and users/ are for the
// admin role alone: plain MQTT up to QoS 2, in memory (admin.go,
// general.go). Wills are the broker's own, not mochi's (will.go).
//
// A Broker is safe for concurrent use. Its goroutines are those of the
// connections that ServeConn and Serve were given, and Run's.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// Deps is what a Broker works with; all but Expired are required.
type Deps struct {
	Ledger   ledger.Ledger
	KV       kv.Store // sessions and device states, under keys of its own
	Verifier *token.Verifier
	Registry *registry.Registry
	Log      *slog.Logger
	// Expired, where set, is told how many moments of a pair were removed by
	// age before everybody had them.
	Expired func(pair string, count int)
}

// Broker is the MQTT broker. New makes one.
type Broker struct {
	cfg  Config
	deps Deps
	log  *slog.Logger
	mq   *mqtt.Server

	metrics  *counters
	limits   *limiter
	budget   *budget // of what is being written
	incoming *budget // of what is being received
	started  time.Time

	kept kept // retained messages outside pairs/
	// routing is held for reading by publishes outside pairs/, and by a
	// SUBSCRIBE, which gets each message once: retained, or live after it.
	routing sync.RWMutex

	conns sync.WaitGroup // every connection that is being served

	mu       sync.RWMutex       // guards the fields below
	open     map[net.Conn]bool  // every connection that is being served
	clients  map[string]*client // those that were let in, by session id
	sessions map[string]*session
	users    map[string]*user
	admins   map[*client]bool
	// adminSessions are kept apart from sessions: they end with the process.
	adminSessions map[string]*adminSession
	wills         map[string]*pendingWill // by session id
	serial        uint64
	closing       bool
	dirty         map[ledger.LogID]bool // logs that a trim may find something in
	unsaved       map[*session]bool     // sessions whose offline time is not on disk

	unwatch func()
	// changes wakes Run for registry changes that need disk work.
	changes chan struct{}
	pending []registry.Change // guarded by mu
	settled chan struct{}     // guarded by mu; closed when pending has become empty
}

// user is what the broker knows of one user while something of theirs is
// connected or kept.
type user struct {
	clients  map[*client]bool
	sessions map[string]*session
	online   bool // an app session is connected
	since    time.Time
}

// New makes a broker and loads its sessions; it starts nothing. The caller
// keeps ownership of the deps and closes them after Run has returned.
func New(ctx context.Context, cfg Config, deps Deps) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	b := &Broker{
		cfg: cfg, deps: deps, log: deps.Log,
		metrics:       newCounters(),
		limits:        newLimiter(cfg.Limits),
		budget:        newBudget(cfg.Limits.WriteMemory),
		incoming:      newBudget(cfg.Limits.ReadMemory),
		kept:          kept{messages: map[string]*message{}, most: cfg.Limits.RetainedTopics},
		open:          map[net.Conn]bool{},
		clients:       map[string]*client{},
		sessions:      map[string]*session{},
		users:         map[string]*user{},
		admins:        map[*client]bool{},
		adminSessions: map[string]*adminSession{},
		wills:         map[string]*pendingWill{},
		started:       time.Now().UTC(),
		dirty:         map[ledger.LogID]bool{},
		unsaved:       map[*session]bool{},
		changes:       make(chan struct{}, 1),
		settled:       make(chan struct{}),
	}
	b.mq = mqtt.New(&mqtt.Options{
		Logger:                   slog.New(quiet{deps.Log.Handler()}),
		Capabilities:             b.capabilities(),
		ClientNetWriteBufferSize: 2 << 10,
		ClientNetReadBufferSize:  256, // we have a buffer of our own
		SysTopicResendInterval:   600, // each one stops the world for ReadMemStats
		InlineClient:             true,
	})
	if err := b.mq.AddHook(&hook{b: b}, nil); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	if err := b.loadSessions(ctx); err != nil {
		return nil, fmt.Errorf("broker: load sessions: %w", err)
	}
	b.unwatch = deps.Registry.Watch(b.registryChanged)
	return b, nil
}

func (b *Broker) capabilities() *mqtt.Capabilities {
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumMessageExpiryInterval = 0 // we have an age limit of our own
	c.MaximumClientWritesPending = 64
	c.MaximumSessionExpiryInterval = uint32(b.cfg.SessionExpiry / time.Second)
	// Twice what we advertise, so that a packet that is somewhat too large is
	// read and answered with a reason instead of a closed connection.
	c.MaximumPacketSize = 2 * b.maxPacket()
	c.ReceiveMaximum = receiveMaximum
	c.TopicAliasMaximum = 0 // an alias would pin its whole packet
	c.Compatibilities.NoInheritedPropertiesOnAck = true
	return c
}

// maxPacket is the largest packet we say we take: a photo and its properties.
func (b *Broker) maxPacket() uint32 { return uint32(b.cfg.PhotoBytes) + 64<<10 }

// maxIncoming is the largest packet of a type that is read. The first packet
// is a CONNECT: before anybody is authenticated little is allocated. Without a
// bound of their own, packets without a payload could be a million filters.
func (b *Broker) maxIncoming(kind byte) int {
	l := &b.cfg.Limits
	switch kind {
	case packets.Publish:
		return int(b.mq.Options.Capabilities.MaximumPacketSize) - 1
	case packets.Subscribe, packets.Unsubscribe:
		return l.ConnectBytes + l.SessionFilters*l.TopicBytes
	}
	return l.ConnectBytes
}

// Run does the broker's housekeeping until ctx ends; then it disconnects every
// client (0x8B Server shutting down), waits for their connections to end
// within Config.StopWait, and writes what is not on disk yet.
func (b *Broker) Run(ctx context.Context) error {
	if err := b.mq.Serve(); err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	err := b.housekeep(ctx)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.cfg.StopWait)
	defer cancel()
	return errors.Join(err, b.shutdown(stop))
}

// closeAll closes every connection, without a word.
func (b *Broker) closeAll() {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for nc := range b.open {
		nc.Close()
	}
}

func (b *Broker) shutdown(ctx context.Context) error {
	b.unwatch()
	defer b.dropWills()
	b.mu.Lock()
	b.closing = true
	var open []*client
	for _, c := range b.clients {
		open = append(open, c)
	}
	b.mu.Unlock()
	for _, c := range open {
		c.end(packets.ErrServerShuttingDown)
	}
	ended := make(chan struct{})
	go func() {
		b.conns.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(2 * farewellWait): // some were not let in yet, or do not read
		b.closeAll()
		select {
		case <-ended:
		case <-ctx.Done():
			// mochi's Close would wait for them too.
			return errors.Join(errors.New("connections did not end in time"), b.saveUnsaved(context.WithoutCancel(ctx)))
		}
	}
	return errors.Join(b.saveUnsaved(ctx), b.mq.Close())
}

// Serve accepts connections from l until ctx ends or l fails, and closes l.
// It returns nil when ctx ended. The connections go on until Run ends.
func (b *Broker) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			go b.ServeConn(ctx, nc)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		default:
			// Out of file descriptors, or a connection that was gone before
			// it was accepted: the listener itself is well.
			b.log.Warn("accept", "listener", l.Addr().String(), "error", err)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

// ServeConn serves one client on nc and returns when its connection has ended.
// It takes nc over. A malformed packet that makes mochi panic ends this
// connection alone.
func (b *Broker) ServeConn(ctx context.Context, nc net.Conn) {
	if !b.limits.accept(nc) {
		b.metrics.overLimit.Inc()
		nc.Close()
		return
	}
	defer b.limits.release(nc)
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		nc.Close()
		return
	}
	b.conns.Add(1)
	b.open[nc] = true
	b.mu.Unlock()
	c := newConn(context.WithoutCancel(ctx), b, nc)
	defer func() {
		nc.Close()
		b.incoming.free(c.room)
		b.mu.Lock()
		delete(b.open, nc)
		b.mu.Unlock()
		b.conns.Done()
	}()

	c.SetDeadline(time.Now().Add(connectWait))
	err := b.establish(c)
	if c.client != nil {
		b.detach(c.client)
	}
	b.log.Debug("connection ended", "remote", remote(nc), "error", err)
}

func (b *Broker) establish(c *conn) (err error) {
	defer func() {
		if r := recover(); r != nil {
			b.metrics.panics.Inc()
			err = fmt.Errorf("malformed packet: %v", r)
			b.log.Warn("client made the decoder panic", "remote", remote(c.Conn), "panic", r, "stack", string(debug.Stack()))
		}
	}()
	return b.mq.EstablishConnection("pairsync", c)
}

func remote(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}
