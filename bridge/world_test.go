package bridge

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/badgerdb"
	"pairsync/internal/kv/kvtest"
	"pairsync/internal/ledger"
	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/memnet"
	"pairsync/internal/moment"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// world is a bridge with real sockets over memory, a registry with ana and ben
// as a pair, and a fake broker. It lives in a synctest bubble.
type world struct {
	t      *testing.T
	bridge *Bridge
	broker *fakeBroker
	reg    *registry.Registry
	store  *kvtest.Memory
	db     *badgerdb.DB // of the ledger
	signer *token.Signer
	clerk  *token.Signer // of the external issuer "clerk"
	cfg    Config
	deps   Deps
	pair   registry.Pair
	stop   func()
	listen *memnet.Listener
	from   string        // the address of the phones that connect from now on; empty: none
	line   chan struct{} // of the phones that connect from now on; see slowConn
}

// slowConn is a connection over a line that can be held: nothing is read while
// somebody has taken the token out of line. A nil line cannot be held.
type slowConn struct {
	net.Conn
	line chan struct{}
}

// Read reads once the line is free.
func (c slowConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.line != nil {
		<-c.line
		c.line <- struct{}{}
	}
	return n, err
}

// inWorld runs fn in a bubble with a running bridge that has no ledger: the
// real one's timers are too busy for worlds of months.
func inWorld(t *testing.T, fn func(w *world)) {
	t.Helper()
	inBubble(t, fn, false)
}

// inStoredWorld is inWorld with a ledger, for what is scheduled.
func inStoredWorld(t *testing.T, fn func(w *world)) {
	t.Helper()
	inBubble(t, fn, true)
}

// noLedger is a ledger in which nothing is.
type noLedger struct{ ledger.Ledger }

func (noLedger) Logs(context.Context) ([]ledger.LogID, error) { return nil, nil }
func (noLedger) Remove(context.Context, ledger.LogID, moment.Key) error {
	return ledger.ErrNotFound
}

func inBubble(t *testing.T, fn func(w *world), stored bool) {
	t.Helper()
	keys, err := token.OpenKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	clerk, err := token.OpenKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, keys, clerk, stored)
		defer w.end()
		fn(w)
	})
}

func newWorld(t *testing.T, keys, clerk *token.Keys, stored bool) *world {
	t.Helper()
	w := &world{t: t, broker: newFakeBroker(), store: &kvtest.Memory{}, cfg: Default()}
	var err error
	if w.reg, err = registry.Open(t.Context(), w.store); err != nil {
		t.Fatal(err)
	}
	if w.pair, err = w.reg.CreatePair(t.Context(), "ana", "ben"); err != nil {
		t.Fatal(err)
	}
	external := clerk.Issuer("clerk", "app")
	external.External = true
	verifier, err := token.NewVerifier(func(p token.Principal) bool { return w.reg.Revoked(p) }, keys.Issuer("pairsync", "pairsync"), external)
	if err != nil {
		t.Fatal(err)
	}
	w.signer, w.clerk = token.NewSigner(keys, "pairsync", "pairsync"), token.NewSigner(clerk, "clerk", "app")
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	var led ledger.Ledger = noLedger{}
	if stored {
		if w.db, err = badgerdb.Open(t.TempDir(), badgerdb.Device, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		if led, err = badgerledger.New(w.db, badgerledger.Config{MaxEntries: testQuota}, log); err != nil {
			t.Fatal(err)
		}
	}
	w.deps = Deps{
		Dial:     func(context.Context) (net.Conn, error) { return nil, memnet.ErrRefused },
		Token:    func(context.Context, string) (string, error) { return "", nil },
		Sign:     w.signer.Sign,
		Verifier: verifier, Registry: w.reg, KV: w.store, Ledger: led,
		Log: log,
	}
	w.begin()
	return w
}

// begin starts the bridge (again) on what is kept.
func (w *world) begin() {
	w.t.Helper()
	b, err := New(w.cfg, w.deps)
	if err != nil {
		w.t.Fatal(err)
	}
	b.newLink = w.broker.newLink
	w.bridge, w.listen = b, memnet.Listen("bridge")
	server := &http.Server{Handler: b.Handler()}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(located{w.listen, w}) })
	wg.Go(func() {
		if err := b.Run(ctx); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	w.stop = func() {
		cancel()
		synctest.Wait()
		server.Close()
		wg.Wait()
	}
}

func (w *world) end() {
	w.stop()
	if w.db == nil {
		return
	}
	if err := w.db.Close(); err != nil {
		w.t.Error(err)
	}
}

// testQuota is how many moments the ledger takes for a pair.
const testQuota = 10

// located gives the phones' connections the address that the world says.
type located struct {
	net.Listener
	w *world
}

// Accept waits for a phone.
func (l located) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil || l.w.from == "" {
		return c, err
	}
	return locatedConn{c, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(l.w.from))}, nil
}

type locatedConn struct {
	net.Conn
	addr net.Addr
}

// RemoteAddr returns the address given.
func (c locatedConn) RemoteAddr() net.Addr { return c.addr }

func (w *world) token(p token.Principal, ttl time.Duration) string {
	w.t.Helper()
	raw, _, err := w.signer.Sign(p, ttl)
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

// app is a phone under test: it keeps what it was told.
type app struct {
	w    *world
	user string
	sock *socketio.Client
	// answers makes it send photo_received for every photo.
	answers bool
	ignores string // a photo that it never answers

	mu     sync.Mutex // guards the fields below
	events []told
}

type told struct {
	name string
	body map[string]any
	at   time.Time
}

var toldEvents = []string{
	"room_joined", "receive_photo", "photo_deleted", "photo_delivered", "moment_received_ack", "partner_presence",
	"partner_heartbeat", "receive_note", "photo_reaction", "photo_sent", "send_photo_error", "note_sent",
	"send_note_error", "auth:revoked", "pairing_success", "code_used", "partner_connected", "partner_disconnected", "auth:token", "auth:expiring",
}

// connect lets a phone of user in, without joining.
func (w *world) connect(user string, auth map[string]any) *app {
	w.t.Helper()
	a := &app{w: w, user: user, answers: true}
	full := map[string]any{"token": w.token(token.Principal{User: user, Role: token.RoleApp}, time.Hour), "userId": user}
	for k, v := range auth {
		full[k] = v
	}
	on := map[string]func(*socketio.Event){}
	for _, name := range toldEvents {
		on[name] = a.told
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var err error
	a.sock, err = socketio.Dial(ctx, "http://bridge/", socketio.DialOptions{
		Auth: full, On: on,
		NetDial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := w.listen.Dial(ctx, "phone")
			return slowConn{c, w.line}, err
		},
	})
	if err != nil {
		w.t.Fatalf("connect as %q: %v", user, err)
	}
	synctest.Wait()
	w.t.Cleanup(a.leave)
	return a
}

// join lets a phone of user in and joins its room.
func (w *world) join(user string) *app {
	w.t.Helper()
	a := w.connect(user, nil)
	a.room()
	return a
}

func (a *app) room() {
	a.w.t.Helper()
	if got := a.ask("join_room", map[string]any{"userId": a.user}); got["success"] != true {
		a.w.t.Fatalf("join_room: %v", got)
	}
	synctest.Wait()
}

func (a *app) leave() {
	a.sock.Close()
	<-a.sock.Done()
	synctest.Wait()
}

func (a *app) told(e *socketio.Event) {
	var body map[string]any
	args, err := e.Args()
	if err == nil && len(args) > 0 {
		err = json.Unmarshal(args[0], &body)
	}
	if err != nil {
		a.w.t.Errorf("%s: %v", e.Name, err)
	}
	a.mu.Lock()
	a.events = append(a.events, told{e.Name, body, time.Now()})
	answers := a.answers && body["photoId"] != a.ignores
	a.mu.Unlock()
	if e.Name == "receive_photo" && answers {
		a.sock.Emit("photo_received", map[string]any{"photoId": body["photoId"], "receivedAt": time.Now().UnixMilli()})
	}
}

// heard returns the events of one name so far.
func (a *app) heard(name string) []told {
	a.w.t.Helper()
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []told
	for _, e := range a.events {
		if e.name == name {
			out = append(out, e)
		}
	}
	return out
}

// photos returns the ids of the photos it was sent, in order.
func (a *app) photos() []string {
	a.w.t.Helper()
	out := []string{}
	for _, e := range a.heard("receive_photo") {
		out = append(out, e.body["photoId"].(string))
	}
	return out
}

// ask emits with an ack and returns the answer.
func (a *app) ask(name string, body any) map[string]any {
	a.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args, err := a.sock.EmitWithAck(ctx, name, body)
	if err != nil {
		a.w.t.Fatalf("%s: %v", name, err)
	}
	var out map[string]any
	if len(args) != 1 || json.Unmarshal(args[0], &out) != nil {
		a.w.t.Fatalf("%s answered %s", name, args)
	}
	return out
}

func (a *app) emit(name string, body any) {
	a.w.t.Helper()
	if err := a.sock.Emit(name, body); err != nil {
		a.w.t.Fatalf("%s: %v", name, err)
	}
	synctest.Wait()
}

// jpeg is something that passes for a photo, different for each n.
func jpeg(n int) []byte {
	return slices.Concat([]byte("\xff\xd8\xff\xe0"), fmt.Appendf(nil, "photo %d", n), make([]byte, 300))
}

func photoOf(partner string, n int) map[string]any {
	return map[string]any{
		"photoId": fmt.Sprintf("photo-%d", n), "partnerId": partner, "caption": "hello", "messageId": fmt.Sprintf("msg-%d", n),
		"timestamp": 1_700_000_000_000 + n, "photoData": base64.StdEncoding.EncodeToString(jpeg(n)),
	}
}

// fromPartner puts a photo of user into the log.
func (w *world) fromPartner(user string, n int) {
	w.broker.append(moment.Moment{
		Pair: w.pair.ID, User: user, Kind: moment.Photo, ID: fmt.Sprintf("photo-%d", n), ContentType: "image/jpeg", Payload: jpeg(n),
	})
	synctest.Wait()
}

// refusal connects with auth and returns the connect_error it must get.
func (w *world) refusal(auth map[string]any) *socketio.ConnectError {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := socketio.Dial(ctx, "http://bridge/", socketio.DialOptions{
		Auth:    auth,
		NetDial: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.listen.Dial(ctx, "phone") },
	})
	var refused *socketio.ConnectError
	if !errors.As(err, &refused) {
		if c != nil {
			c.Close()
		}
		w.t.Fatalf("auth %v: %v, want a connect_error", auth, err)
	}
	return refused
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
