package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/bufpool"
	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/memnet"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/registry"
	"pairsync/internal/simtest"
	"pairsync/internal/token"
)

// world is a broker on a real badger store inside a synctest bubble, with
// clients over in-memory links. It can be stopped and started again on the
// same directory.
type world struct {
	t   *testing.T
	dir string
	cfg Config

	// What a test puts between the broker and its store, or changes in it.
	quotas   badgerledger.Config
	faults   sync.Mutex              // guards the fields below
	onApply  func(ops []kv.Op) error // before each KV write of the broker; errLost: the write is lost
	onRemove func() error            // before each Remove of the ledger
	ends     []func()                // of every peer
	onStored func()                  // after an append is on disk, before the broker hears of it
	onRead   func(ledger.Batch)      // after each Read of the ledger

	db     *badgerdb.DB
	ledger ledger.Ledger
	store  *badgerledger.Ledger // the same
	reg    *registry.Registry
	signer *token.Signer
	broker *Broker
	stop   func()
	pair   registry.Pair
	hold   bool // peers do not acknowledge, from the start
}

// inWorld runs fn in a bubble with a started world in which ann and ben are a
// pair, and ends everything.
func inWorld(t *testing.T, fn func(t *testing.T, w *world)) {
	bufpool.Poison()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, dir: dir, cfg: DefaultConfig()}
		w.start()
		pair, err := w.reg.CreatePair(t.Context(), "ann", "ben")
		if err != nil {
			t.Fatal(err)
		}
		w.pair = pair
		defer func() {
			for _, end := range w.ends { // those of a test that failed in the middle
				end()
			}
			w.stop()
		}()
		fn(t, w)
	})
}

func (w *world) start() {
	w.t.Helper()
	log := simtest.Logger(w.t)
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	db, err := badgerdb.Open(w.dir, badgerdb.Server, log)
	must(err)
	led, err := badgerledger.New(db, w.quotas, log)
	must(err)
	reg, err := registry.Open(ctx, db.KV())
	must(err)
	keys, err := token.OpenKeys(w.dir + "/keys")
	must(err)
	verifier, err := token.NewVerifier(reg.Revoked, keys.Issuer("pairsync", "pairsync"))
	must(err)
	b, err := New(ctx, w.cfg, Deps{Ledger: faultyLedger{led, w}, KV: faultyKV{db.KV(), w}, Verifier: verifier, Registry: reg, Log: log})
	must(err)
	w.db, w.ledger, w.store, w.reg, w.broker = db, led, led, reg, b
	w.signer = token.NewSigner(keys, "pairsync", "pairsync")
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	w.stop = func() {
		cancel()
		wg.Wait()
		if err := db.Close(); err != nil {
			w.t.Error(err)
		}
		w.stop = func() {}
	}
}

// errLost is what onApply returns for a write that a crash swallows.
var errLost = errors.New("lost")

type faultyKV struct {
	kv.Store
	w *world
}

func (f faultyKV) Apply(ctx context.Context, ops ...kv.Op) error {
	f.w.faults.Lock()
	fn := f.w.onApply
	f.w.faults.Unlock()
	if fn != nil {
		if err := fn(ops); errors.Is(err, errLost) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return f.Store.Apply(ctx, ops...)
}

type faultyLedger struct {
	ledger.Ledger
	w *world
}

func (f faultyLedger) Remove(ctx context.Context, log ledger.LogID, key moment.Key) error {
	f.w.faults.Lock()
	fn := f.w.onRemove
	f.w.faults.Unlock()
	if fn != nil {
		if err := fn(); err != nil {
			return err
		}
	}
	return f.Ledger.Remove(ctx, log, key)
}

func (f faultyLedger) Read(ctx context.Context, log ledger.LogID, after ledger.Seq, limit ledger.Limit) (ledger.Batch, error) {
	f.w.faults.Lock()
	fn := f.w.onRead
	f.w.faults.Unlock()
	got, err := f.Ledger.Read(ctx, log, after, limit)
	if fn != nil {
		fn(got)
	}
	return got, err
}

func (f faultyLedger) Submit(ctx context.Context, log ledger.LogID, m moment.Moment, done func(ledger.Result)) error {
	f.w.faults.Lock()
	fn := f.w.onStored
	f.w.faults.Unlock()
	if fn == nil {
		return f.Ledger.Submit(ctx, log, m, done)
	}
	return f.Ledger.Submit(ctx, log, m, func(r ledger.Result) {
		go func() {
			fn()
			done(r)
		}()
	})
}

// set changes what happens between the broker and its store.
func (w *world) set(change func()) {
	w.faults.Lock()
	defer w.faults.Unlock()
	change()
}

// apply sets onApply.
func (w *world) apply(fn func(ops []kv.Op) error) { w.set(func() { w.onApply = fn }) }

// slow makes each write of key take d.
func (w *world) slow(key string, d time.Duration) {
	w.apply(func(ops []kv.Op) error {
		if slices.ContainsFunc(ops, func(op kv.Op) bool { return op.Key == key }) {
			time.Sleep(d)
		}
		return nil
	})
}

// crash ends the broker as kill -9 does: what it would still write is
// lost. clients are ended with it.
func (w *world) crash(clients ...func()) {
	w.apply(func([]kv.Op) error { return errLost })
	for _, end := range clients {
		end()
	}
	w.stop()
	w.apply(nil)
	w.start()
}

func (w *world) restart() {
	w.stop()
	w.start()
}

func (w *world) dial(context.Context) (net.Conn, error) {
	near, far := memnet.Pipe("client", "broker")
	b := w.broker
	go b.ServeConn(context.Background(), far)
	return near, nil
}

func (w *world) token(p token.Principal) string {
	w.t.Helper()
	raw, _, err := w.signer.Sign(p, 24*time.Hour*365)
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

// peer is a client of the world: an mqttlink that keeps what it receives.
type peer struct {
	*mqttlink.Link
	w    *world
	user string
	end  func()

	mu   sync.Mutex
	got  []*mqttlink.Message
	hold bool // do not acknowledge
	down []error
}

func (w *world) connect(user string, change func(*mqttlink.Config)) *peer {
	w.t.Helper()
	p := &peer{w: w, user: user, hold: w.hold}
	cfg := mqttlink.Config{
		Dial: w.dial, ClientID: user + "-phone", SessionExpiry: time.Hour * 24,
		Token: func(context.Context) (string, error) {
			return w.token(token.Principal{User: user, Role: token.RoleApp}), nil
		},
		Receive: p.receive,
		Down: func(err error) {
			p.mu.Lock()
			p.down = append(p.down, err)
			p.mu.Unlock()
		},
	}
	if change != nil {
		change(&cfg)
	}
	link, err := mqttlink.New(cfg, simtest.Logger(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	p.Link = link
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		link.Run(ctx)
	}()
	p.end = sync.OnceFunc(func() {
		cancel()
		<-ended
		synctest.Wait()
	})
	w.set(func() { w.ends = append(w.ends, p.end) })
	up, cancelUp := context.WithTimeout(ctx, 10*time.Second)
	defer cancelUp()
	if err := link.AwaitUp(up); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatal(err)
	}
	return p
}

func (p *peer) receive(m *mqttlink.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, m)
	if !p.hold && m.QoS > 0 {
		m.Ack()
	}
}

func (p *peer) topics() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := []string{}
	for _, m := range p.got {
		out = append(out, m.Topic)
	}
	return out
}

func (p *peer) send(kind moment.Kind, id, payload string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m := moment.Moment{Pair: p.w.pair.ID, User: p.user, Kind: kind, ID: id}
	return p.Publish(ctx, mqttlink.Publish{Topic: m.Topic(), Payload: []byte(payload), QoS: 1, ContentType: "image/jpeg"})
}

func (p *peer) sendN(t *testing.T, from, to int) (topics []string) {
	t.Helper()
	for i := from; i < to; i++ {
		id := fmt.Sprintf("p%03d", i)
		if err := p.send(moment.Photo, id, "photo "+id); err != nil {
			t.Fatal(err)
		}
		topics = append(topics, "pairs/"+p.w.pair.ID+"/photos/"+p.user+"/"+id)
	}
	return topics
}

// photosOf subscribes a pair's photos of user.
func (w *world) photosOf(user string) []mqttlink.Subscription {
	return []mqttlink.Subscription{{Filter: moment.KindFilter(w.pair.ID, moment.Photo, user), QoS: 1}}
}

// settle lets everything happen that needs no more than d of fake time.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
