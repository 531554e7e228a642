package broker

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// takeoverWait bounds how long a CONNECT waits for the end of the connection
// whose session it takes over: it gets its CONNACK within a second whatever
// the old one does.
const (
	takeoverWait = 900 * time.Millisecond
	farewellWait = 500 * time.Millisecond // for a DISCONNECT to be written
)

// client is one connection that has been let in. Its goroutines are the
// connection's reader (mochi's, on which every hook runs) and its pump.
type client struct {
	b      *Broker
	cl     *mqtt.Client
	nc     *conn
	ctx    context.Context
	token  atomic.Pointer[token.Principal] // the newest; its user, device and role never change
	serial uint64
	sess   *session      // nil for an admin
	admin  *adminSession // nil for everybody else
	window int

	can    atomic.Pointer[rights]
	expiry *time.Timer // ends the connection with its token; nil without exp; used by the reader and, after it, by detach

	wake   chan struct{} // capacity 1: there may be something to write
	closed chan struct{} // closed by detach: the pump ends
	gone   chan struct{} // closed when the pump has ended: nothing is answered any more
	done   chan struct{} // closed when detach is through
	pump   sync.WaitGroup

	room chan struct{} // one per publish that is not answered yet

	mu       sync.Mutex // guards the fields below
	replies  []*reply   // in the order of the publishes
	out      []outgoing // ephemeral and retained values to write
	outBytes int
	values   int                     // of out, those that read their payload when they are written
	watches  map[ledger.LogID]func() // stops of ledger watches; nil once detached
	refused  bool                    // a 3.1.1 publish was refused: on its way out

	// retain is what the SUBSCRIBE that is being processed asks for, refusal why
	// its filters, or some, are not granted; used on the reader's goroutine only.
	retain  []subscription
	refusal string
	// will is what is published unless the client says goodbye; used on the
	// reader's goroutine and, after it, by detach.
	will *will
	// unsubscribed are the reason codes for the UNSUBACK that is due; likewise.
	unsubscribed []byte
	// present is what CONNACK says about the session.
	present bool
}

func (c *client) v5() bool { return c.cl.Properties.ProtocolVersion >= 5 }

// who returns the identity that the client's newest token gives it.
func (c *client) who() token.Principal { return *c.token.Load() }

// app reports whether this is one of the user's app sessions, which the
// bridge holds: the ones that make a user online.
func (c *client) app() bool { return c.sess != nil && isAppName(c.sess.name) && !c.schedules() }

// schedules reports whether this is the bridge sending what its user had
// scheduled: that makes nobody online.
func (c *client) schedules() bool { return c.sess != nil && c.sess.name == moment.ScheduleClientID }

// isAppName reports whether a client id is reserved for the bridge.
func isAppName(name string) bool { return name == "app" || strings.HasPrefix(name, "app-") }

// poke wakes the pump. It never blocks.
func (c *client) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// end disconnects the client with a reason and returns at once. A 3.1.1
// client gets no DISCONNECT: that version has none from the server.
func (c *client) end(code packets.Code) {
	c.nc.endBy(time.Now().Add(farewellWait))
	if !c.v5() {
		go c.cl.Stop(code) // closing TLS may wait for a reader that is stuck
		return
	}
	go func() { // ends within farewellWait, as every write does
		defer c.cl.Stop(code)
		c.farewell(code)
	}()
}

// farewell writes DISCONNECT, where that is possible within farewellWait.
func (c *client) farewell(code packets.Code) {
	c.nc.endBy(time.Now().Add(farewellWait))
	if !c.v5() || !c.awaitWriter() {
		return
	}
	_ = c.cl.WritePacket(packets.Packet{ // the connection ends in either case
		FixedHeader: packets.FixedHeader{Type: packets.Disconnect},
		ReasonCode:  code.Code,
		Properties:  packets.Properties{ReasonString: code.Reason},
	})
}

// awaitWriter waits, within farewellWait, for what is being written; false when
// that is stuck, because nobody reads. It does not wait on the lock itself: the
// fake clock of a test world stands still while somebody does.
func (c *client) awaitWriter() bool {
	const looks = 20
	for range looks {
		if c.cl.TryLock() {
			c.cl.Unlock()
			return true
		}
		time.Sleep(farewellWait / looks)
	}
	return false
}

// attach makes c the connection of its id: an older one is ended and waited
// for, within takeoverWait. It runs on the reader's goroutine, before CONNACK.
func (b *Broker) attach(c *client) {
	b.mu.Lock()
	b.serial++
	c.serial = b.serial
	old := b.clients[c.cl.ID]
	b.clients[c.cl.ID] = c
	b.mu.Unlock()
	if old == nil {
		return
	}
	old.end(packets.ErrSessionTakenOver)
	timer := time.NewTimer(takeoverWait)
	defer timer.Stop()
	select {
	case <-old.done:
	case <-timer.C:
		go old.cl.Stop(packets.ErrSessionTakenOver)
	}
}

// established starts the pump; CONNACK has been written.
func (b *Broker) established(c *client) {
	b.metrics.connects.Inc()
	c.will = c.nc.will
	if c.sess != nil {
		c.watchLogs()
	}
	b.mu.Lock()
	if c.sess == nil {
		b.admins[c] = true
	} else {
		b.user(c.who().User).clients[c] = true
	}
	b.mu.Unlock()
	// From here on changes of the registry find the client; what changed since
	// its CONNECT was looked at is made up for.
	b.refreshRights(c)
	if b.deps.Registry.Revoked(c.who()) {
		c.end(packets.ErrAdministrativeAction)
	}
	c.pump.Go(c.run)
	c.poke()
	b.presenceChanged(c.who().User)
	if c.sess != nil && c.present {
		c.sendRetained(c.sess.filters())
	}
}

// detach ends what belongs to the connection, after its reader has returned.
func (b *Broker) detach(c *client) {
	if c.expiry != nil {
		c.expiry.Stop()
	}
	b.limits.leave(c.who().User)
	c.cl.Stop(nil) // does nothing if it is stopped, as it is but for a panic
	close(c.closed)
	c.pump.Wait()
	c.mu.Lock()
	for _, stop := range c.watches {
		stop()
	}
	c.watches = nil
	c.mu.Unlock()
	c.settleReplies()
	b.leaveWill(c)
	switch {
	case c.sess != nil:
		b.release(c)
	case c.admin != nil:
		b.releaseAdmin(c)
	}
	b.forgetClient(c)
	b.mu.Lock()
	if b.clients[c.cl.ID] == c {
		delete(b.clients, c.cl.ID)
	}
	delete(b.admins, c)
	delete(b.user(c.who().User).clients, c)
	b.dropUser(c.who().User)
	b.mu.Unlock()
	b.presenceChanged(c.who().User)
	close(c.done)
}

// forgetClient takes the connection out of mochi: an offline session is ours
// alone, so that it costs a record and nothing else.
func (b *Broker) forgetClient(c *client) {
	if cur, ok := b.mq.Clients.Get(c.cl.ID); ok && cur == c.cl {
		b.mq.UnsubscribeClient(c.cl)
		b.mq.Clients.Delete(c.cl.ID)
	}
}

// watchLogs keeps one ledger watch for each log that the session follows.
func (c *client) watchLogs() {
	c.sess.mu.Lock()
	logs := c.sess.logs()
	c.sess.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watches == nil {
		return // detached
	}
	for log, stop := range c.watches {
		if !slices.Contains(logs, log) {
			stop()
			delete(c.watches, log)
		}
	}
	for _, log := range logs {
		if _, ok := c.watches[log]; !ok {
			c.watches[log] = c.b.deps.Ledger.Watch(log, c.poke)
		}
	}
}

// user returns the record of id, made where needed; b.mu is held.
func (b *Broker) user(id string) *user {
	u := b.users[id]
	if u == nil {
		u = &user{clients: map[*client]bool{}, sessions: map[string]*session{}}
		b.users[id] = u
	}
	return u
}

// dropUser forgets a user of whom nothing is left; b.mu is held.
func (b *Broker) dropUser(id string) {
	if u := b.users[id]; u != nil && len(u.clients) == 0 && len(u.sessions) == 0 {
		delete(b.users, id)
	}
}

// refreshRights recomputes what c may do; for a change of its user's pair. Of
// two at a time the later one sees the registry as it is.
func (b *Broker) refreshRights(c *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.can.Store(rightsOf(c.who(), b.deps.Registry))
}

// outgoing is an ephemeral message or a retained value on its way out, always
// at QoS 0.
type outgoing struct {
	topic       string
	payload     []byte
	contentType string
	props       []packets.UserProperty
	expires     time.Time // zero, or when Message Expiry ends it
	retained    bool      // a stored value, told on subscribe or resume
	// load, where set, reads payload and what goes with it when it is about to
	// be written, so that a photo is not held while it waits.
	load        func(context.Context) (outgoing, error)
	photo       bool // load reads one
	asPublished bool // the publish carried RETAIN; for Retain As Published
	ids         []int
}

// The bounds of what waits to be written to one client besides moments; what
// is over them is dropped, as QoS 0 allows.
const (
	maxOut      = 64
	maxOutBytes = 1 << 20
	// maxValues bounds retained values, which hold no payload while they wait:
	// twice what a pair can have, for a filter that overlaps another.
	maxValues = 2 * (2*registry.MaxDevicesPerUser + 6)
)

// push queues o for the client if it may read it and a filter matches. A
// filter with No Local does not match what the client itself published.
func (c *client) push(o outgoing, latest bool, origin *client) {
	if !c.can.Load().read(o.topic) {
		return
	}
	match, ids, rap := c.matchLive(o.topic, latest, c == origin)
	if !match {
		return
	}
	o.ids = ids
	o.asPublished = o.asPublished && rap
	c.enqueue(o)
}

func (c *client) enqueue(o outgoing) {
	c.mu.Lock()
	var full bool
	if o.load != nil {
		if slices.ContainsFunc(c.out, o.replaces) {
			c.mu.Unlock()
			return
		}
		full = c.values >= maxValues
	} else {
		n := len(c.out) - c.values
		full = n > 0 && (n >= maxOut || c.outBytes+len(o.payload) > maxOutBytes)
	}
	if !full {
		c.out = append(c.out, o)
		c.outBytes += len(o.payload)
		if o.load != nil {
			c.values++
		}
	}
	c.mu.Unlock()
	if full {
		c.b.metrics.dropped.Inc()
		return
	}
	c.poke()
}

// replaces reports whether what waits already tells all that o would: both read
// their payload when they are written.
func (o *outgoing) replaces(waits outgoing) bool {
	return waits.load != nil && waits.topic == o.topic && waits.retained == o.retained && slices.Equal(waits.ids, o.ids)
}

func (c *client) matchLive(topic string, latest, own bool) (ok bool, ids []int, rap bool) {
	if c.sess != nil {
		return c.sess.matchLive(topic, latest, own)
	}
	if latest {
		return false, nil, false
	}
	ok, _, ids, rap = matchFilters(c.admin.filters(), topic, false, own)
	return ok, ids, rap
}

// audience returns the connected clients of users, and the admins.
func (b *Broker) audience(users ...string) []*client {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var out []*client
	for _, id := range users {
		if u := b.users[id]; u != nil {
			for c := range u.clients {
				out = append(out, c)
			}
		}
	}
	for c := range b.admins {
		out = append(out, c)
	}
	return out
}
