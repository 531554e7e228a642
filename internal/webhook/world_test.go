package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/broker"
	"pairsync/internal/badgerdb"
	"pairsync/internal/config"
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

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// world is webhooks on a real store with a real broker, and the backend that
// they tell, in a synctest bubble.
type world struct {
	t       *testing.T
	dir     string
	cfg     Config
	maxAge  time.Duration // of moments
	backend *backend
	lost    atomic.Bool // what is written to the store is lost, as in a crash

	db     *badgerdb.DB
	ledger ledger.Ledger
	reg    *registry.Registry
	signer *token.Signer
	broker *broker.Broker
	hooks  *Webhooks
	stop   func()
	pair   registry.Pair
	sent   int
}

// inWorld runs fn in a bubble in which ann and ben are a pair, of which the
// backend has been told.
func inWorld(t *testing.T, fn func(t *testing.T, w *world)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, dir: dir, cfg: Default(), backend: newBackend(t)}
		w.cfg.URL, w.cfg.Secret = "http://backend/hooks", config.NewSecret(testSecret)
		w.start()
		defer func() { w.stop() }()
		synctest.Wait() // the pair is made while it runs
		var err error
		w.pair, err = w.reg.CreatePair(t.Context(), "ann", "ben")
		w.must(err)
		settle(time.Second)
		if got := w.backend.types(); !slices.Equal(got, []string{PairCreated}) {
			t.Fatalf("the backend was told %v, want the new pair", got)
		}
		w.backend.clear()
		fn(t, w)
	})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) start() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := simtest.Logger(w.t)
	var err error
	w.db, err = badgerdb.Open(w.dir, badgerdb.Server, log)
	w.must(err)
	w.ledger, err = badgerledger.New(w.db, badgerledger.Config{}, log)
	w.must(err)
	store := lossyKV{w.db.KV(), &w.lost}
	w.reg, err = registry.Open(ctx, w.db.KV())
	w.must(err)
	keys, err := token.OpenKeys(w.dir + "/keys")
	w.must(err)
	verifier, err := token.NewVerifier(w.reg.Revoked, keys.Issuer("pairsync", "pairsync"))
	w.must(err)
	w.signer = token.NewSigner(keys, "pairsync", "pairsync")
	brokerCfg := broker.DefaultConfig()
	if w.maxAge > 0 {
		brokerCfg.MaxAge, brokerCfg.SessionExpiry, brokerCfg.ReceiptAge = w.maxAge, w.maxAge, w.maxAge
	}
	w.broker, err = broker.New(ctx, brokerCfg, broker.Deps{
		Ledger: w.ledger, KV: w.db.KV(), Verifier: verifier, Registry: w.reg, Log: log,
		Expired: func(pair string, count int) { w.hooks.Expired(pair, count) },
	})
	w.must(err)
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return w.backend.dial(ctx)
	}}
	w.hooks, err = New(ctx, w.cfg, Deps{
		Ledger: w.ledger, Registry: w.reg, KV: store, Client: &http.Client{Transport: transport}, Log: log,
		Backlog: func(ctx context.Context, user string, after ledger.Seq) (Backlog, error) {
			b, err := w.broker.AppBacklog(ctx, user, after)
			return Backlog(b), err
		},
	})
	w.must(err)
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{w.broker.Run, w.hooks.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				w.t.Error(err)
			}
		})
	}
	w.stop = func() {
		cancel()
		running.Wait()
		w.must(w.db.Close())
		w.stop = func() {}
	}
}

// crash starts everything anew; with lost set before, what the webhooks wrote
// since is gone.
func (w *world) crash() {
	w.stop()
	w.lost.Store(false)
	w.start()
}

// lossyKV loses what is written while lost is set.
type lossyKV struct {
	kv.Store
	lost *atomic.Bool
}

func (l lossyKV) Apply(ctx context.Context, ops ...kv.Op) error {
	if l.lost.Load() {
		return nil
	}
	return l.Store.Apply(ctx, ops...)
}

// append stores a moment and returns its id.
func (w *world) append(user string, kind moment.Kind, payload string) string {
	w.t.Helper()
	w.sent++
	id := fmt.Sprintf("m%d", w.sent)
	m := moment.Moment{Pair: w.pair.ID, User: user, Kind: kind, ID: id, Caption: "secret-caption", Payload: []byte(payload)}
	_, _, err := ledger.Append(w.t.Context(), w.ledger, ledger.LogOf(&m), m)
	w.must(err)
	return id
}

func (w *world) photo(user string) string { return w.append(user, moment.Photo, "secret-photo") }

// receipt stores ben's receipt for a moment of ann's.
func (w *world) receipt(id, status, device string) {
	w.t.Helper()
	body, err := json.Marshal(moment.ReceiptBody{Moment: id, Sender: "ann", Status: status, Device: device})
	w.must(err)
	m := moment.Moment{
		Pair: w.pair.ID, User: "ben", Kind: moment.Receipt, ID: moment.ReceiptID("ann", id, device, status), Device: device, Payload: body,
	}
	_, _, err = ledger.Append(w.t.Context(), w.ledger, ledger.LogOf(&m), m)
	w.must(err)
}

// app connects user's app as the bridge does; ack says whether it acknowledges.
func (w *world) app(user string, ack bool) (leave func()) {
	w.t.Helper()
	return w.connect(mqttlink.Config{ClientID: "app", Username: user}, token.Principal{User: "bridge", Role: token.RoleBridge}, ack)
}

// widget connects a client of user's that is no app; it acknowledges all of
// the partner's photos.
func (w *world) widget(user, partner string) (leave func()) {
	w.t.Helper()
	filter := moment.KindFilter(w.pair.ID, moment.Photo, partner)
	return w.connect(mqttlink.Config{
		ClientID: "widget", Subscriptions: []mqttlink.Subscription{{Filter: filter, QoS: 1}},
	}, token.Principal{User: user, Role: token.RoleApp}, true)
}

func (w *world) connect(cfg mqttlink.Config, who token.Principal, ack bool) (leave func()) {
	w.t.Helper()
	cfg.SessionExpiry = 24 * time.Hour
	cfg.Dial = func(context.Context) (net.Conn, error) {
		near, far := memnet.Pipe("client", "broker")
		go w.broker.ServeConn(context.Background(), far)
		return near, nil
	}
	cfg.Token = func(context.Context) (string, error) {
		raw, _, err := w.signer.Sign(who, 24*time.Hour)
		return raw, err
	}
	cfg.Receive = func(m *mqttlink.Message) {
		if ack && m.QoS > 0 {
			_ = m.Ack() // on a connection that is gone it comes again
		}
	}
	link, err := mqttlink.New(cfg, simtest.Logger(w.t))
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		link.Run(ctx)
	}()
	w.must(link.AwaitUp(ctx))
	return func() {
		cancel()
		<-ended
		synctest.Wait()
	}
}

// settle lets everything happen that needs no more than d of fake time.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// backend is the app's own server: it checks every request by the words of
// Standard Webhooks, and answers what the test says.
type backend struct {
	t *testing.T

	mu     sync.Mutex // guards the fields below
	got    []request
	answer func(w http.ResponseWriter, r request) // nil: 204
	down   bool                                   // refuses connections
	l      *memnet.Listener
}

// request is one that the backend got.
type request struct {
	at   time.Time
	id   string
	Type string
	Data map[string]any
	path string
}

func newBackend(t *testing.T) *backend {
	b := &backend{t: t, l: memnet.Listen("backend")}
	srv := &http.Server{Handler: b}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		srv.Serve(b.l)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-ended
	})
	return b
}

func (b *backend) dial(ctx context.Context) (net.Conn, error) {
	b.mu.Lock()
	down := b.down
	b.mu.Unlock()
	if down {
		return nil, memnet.ErrRefused
	}
	return b.l.Dial(ctx, "pairsync")
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		b.t.Error(err)
	}
	if err := verify(testSecret, r.Header, body, time.Now()); err != nil {
		b.t.Errorf("request not genuine: %v", err)
	}
	if strings.Contains(string(body), "secret-") {
		b.t.Errorf("what nobody may see is in %s", body)
	}
	var e struct {
		Type      string
		Timestamp time.Time
		Data      map[string]any
	}
	if err := json.Unmarshal(body, &e); err != nil || e.Timestamp.IsZero() {
		b.t.Errorf("body %s: %v", body, err)
	}
	got := request{time.Now(), r.Header.Get("webhook-id"), e.Type, e.Data, r.URL.Path}
	b.mu.Lock()
	b.got = append(b.got, got)
	answer := b.answer
	b.mu.Unlock()
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	answer(w, got)
}

// verify checks a request as the specification of Standard Webhooks says: it
// shares no code with what signs.
func verify(secret string, h http.Header, body []byte, now time.Time) error {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return err
	}
	stamp, err := strconv.ParseInt(h.Get("webhook-timestamp"), 10, 64)
	if err != nil {
		return err
	}
	if age := now.Sub(time.Unix(stamp, 0)); age < -5*time.Minute || age > 5*time.Minute {
		return fmt.Errorf("timestamp is off by %v", age)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(h.Get("webhook-id") + "." + h.Get("webhook-timestamp") + "."))
	mac.Write(body)
	for _, s := range strings.Split(h.Get("webhook-signature"), " ") {
		version, signature, _ := strings.Cut(s, ",")
		raw, err := base64.StdEncoding.DecodeString(signature)
		if version == "v1" && err == nil && hmac.Equal(raw, mac.Sum(nil)) {
			return nil
		}
	}
	return fmt.Errorf("no signature of %q fits", h.Get("webhook-signature"))
}

// says sets what the backend answers.
func (b *backend) says(answer func(w http.ResponseWriter, r request)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

func (b *backend) status(code int) {
	b.says(func(w http.ResponseWriter, _ request) { w.WriteHeader(code) })
}

func (b *backend) refuse(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
}

func (b *backend) all() []request {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.got)
}

func (b *backend) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = nil
}

func (b *backend) types() []string {
	out := []string{}
	for _, r := range b.all() {
		out = append(out, r.Type)
	}
	return out
}

// expect fails unless the backend got requests of these types and no others,
// and forgets them.
func (b *backend) expect(types ...string) []request {
	b.t.Helper()
	got := b.types()
	want := slices.Clone(types)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		b.t.Errorf("the backend was told %v, want %v", got, want)
	}
	all := b.all()
	b.clear()
	for len(all) < len(types) {
		all = append(all, request{}) // so that the test goes on
	}
	return all
}
