package broker

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/memnet"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// fuzzPatience is how long a fuzz test waits before it says that something
// hangs; nothing of what it waits for takes long.
const fuzzPatience = 30 * time.Second

// FuzzStream feeds bytes to the running broker, alone and behind a good
// CONNECT; its seeds are whole sessions. Most of what it makes of them dies in
// the decoder; FuzzPackets gets further.
func FuzzStream(f *testing.F) {
	w := newFuzzWorld(f)
	for _, version := range []byte{4, 5} {
		session := bytes.Join(w.packets[version], nil)
		f.Add(byte(0), append(w.connect(f, version, 0), session...))
		f.Add(byte(0), w.connect(f, version, connectDurable|connectWill))
		f.Add(version, session)
		for _, pk := range w.packets[version] {
			f.Add(version, pk)
		}
	}
	f.Add(byte(5), []byte{0x82, 0x06, 0x12, 0x34, 0x00, 0x00, 0x01, 0x70}) // mochi's decoder panics
	f.Add(byte(0), []byte("GET / HTTP/1.1\r\n\r\n"))

	f.Fuzz(func(t *testing.T, known byte, data []byte) {
		c := &script{}
		if known == 4 || known == 5 {
			c.bytes(w.connect(t, known, connectWill))
		}
		c.bytes(data)
		w.serve(t, c)
	})
}

// FuzzPackets lets a client that was let in send changed packets of a session
// in any order: most of them reach what lies behind the decoder.
//
// What a running broker does differs a little each time, so that an input's
// coverage does too: fuzz with -fuzzminimizetime=20x, or most of the time goes
// into making inputs smaller.
func FuzzPackets(f *testing.F) {
	w := newFuzzWorld(f)
	order := make([]byte, 0, 64)
	for i := range w.packets[5] {
		order = append(order, byte(i), 0)
	}
	for how := range byte(8) {
		f.Add(how, order)
		f.Add(how, []byte{0, 0, 1, 0, 1, 0, 255, 0, 7, 0, 255, 0})       // SUBSCRIBE, a photo twice, PUBACK
		f.Add(how, []byte{0, 1, 6, 'x', 1, 2, 9, 'y', 1, 0, 0, 0})       // bytes changed behind the head
		f.Add(how, []byte{1, 0x81, 1, 200, 11, 0})                       // a length that lies
		f.Add(how, []byte{7, 0x40, 0, 0x41, 1, 4, 9, 0x4F, 3, 0, 11, 0}) // cut short
	}
	f.Fuzz(func(t *testing.T, how byte, order []byte) {
		version := byte(4 + how&1)
		c := &script{}
		c.bytes(w.connect(t, version, how>>1))
		w.compose(c, version, order)
		w.serve(t, c)
		if !c.letIn() {
			t.Fatalf("the CONNECT was answered with % x", c.answers())
		}
	})
}

// fuzzWorld is a running broker with bystanders: ben, the partner of the user
// whose token the fuzz test has, and eve of another pair.
type fuzzWorld struct {
	*standalone
	pair   string                 // ann's and ben's
	other  string                 // eve's
	token  string                 // ann's
	leaked atomic.Pointer[string] // of what reached eve from outside her pair
	// packets are those of a session behind its CONNECT, by protocol version.
	packets map[byte][][]byte
}

func newFuzzWorld(f *testing.F) *fuzzWorld {
	w := &fuzzWorld{standalone: newStandalone(f, badgerledger.Config{}), packets: map[byte][][]byte{}}
	f.Cleanup(w.stop)
	must := func(err error) {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
	}
	pair, err := w.reg.CreatePair(w.ctx, "ann", "ben")
	must(err)
	other, err := w.reg.CreatePair(w.ctx, "eve", "dan")
	must(err)
	w.pair, w.other, w.token = pair.ID, other.ID, w.tokenOf(f, "ann")
	for _, version := range []byte{4, 5} {
		w.packets[version] = w.session(f, version)
	}
	w.bystander(f, "ben", pair.ID, func(*mqttlink.Message) {})
	w.bystander(f, "eve", other.ID, func(m *mqttlink.Message) {
		// Neither she nor dan sends anything: what comes is that they were paired.
		switch m.Topic {
		case moment.InfoTopic(other.ID), moment.PresenceTopic(other.ID, "eve"), moment.PresenceTopic(other.ID, "dan"), moment.EventsTopic("eve"):
		default:
			w.leaked.Store(&m.Topic)
		}
	})
	w.serve(f, (&script{}).bytes(w.connect(f, 5, connectDurable))) // what is made once only
	return w
}

func (w *fuzzWorld) tokenOf(tb testing.TB, user string) string {
	tb.Helper()
	raw, _, err := w.signer.Sign(token.Principal{User: user, Role: token.RoleApp}, 24*time.Hour)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// bystander connects a user who takes everything of a pair.
func (w *fuzzWorld) bystander(f *testing.F, user, pair string, receive func(*mqttlink.Message)) {
	f.Helper()
	raw := w.tokenOf(f, user)
	link, err := mqttlink.New(mqttlink.Config{
		ClientID: user, SessionExpiry: time.Hour,
		Dial: func(context.Context) (net.Conn, error) {
			near, far := memnet.Pipe(memnet.Addr(user), "broker")
			go w.broker.ServeConn(context.Background(), far)
			return near, nil
		},
		Token:         func(context.Context) (string, error) { return raw, nil },
		Subscriptions: []mqttlink.Subscription{{Filter: "pairs/" + pair + "/#", QoS: 1}, {Filter: "users/" + user + "/#", QoS: 1}},
		Receive: func(m *mqttlink.Message) {
			receive(m)
			_ = m.Ack() // on a connection that is gone it comes again
		},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = link.Run(ctx) })
	f.Cleanup(func() { cancel(); running.Wait() })
	if err := link.AwaitUp(ctx); err != nil {
		f.Fatal(err)
	}
}

// serve lets the broker serve c, whatever that is. Then the connection ends, no
// goroutine of it is left, the broker serves the next client, and nobody
// outside the pair was told anything.
func (w *fuzzWorld) serve(t testing.TB, c *script) {
	t.Helper()
	goroutines := runtime.NumGoroutine()
	w.serveConn(t, c)
	ping := &script{}
	ping.bytes(w.connect(t, 5, 0)).bytes([]byte{0xC0, 0})
	w.serveConn(t, ping)
	if answers := ping.answers(); !ping.letIn() || !bytes.HasSuffix(answers, []byte{0xD0, 0}) {
		t.Fatalf("the next client's CONNECT and PINGREQ are answered with % x", answers)
	}
	if topic := w.leaked.Load(); topic != nil {
		t.Fatalf("eve was sent %s", *topic)
	}
	late := time.NewTimer(fuzzPatience)
	defer late.Stop()
	for look := time.Microsecond; runtime.NumGoroutine() > goroutines; look = min(2*look, 100*time.Millisecond) {
		again := time.NewTimer(look)
		select {
		case <-again.C:
		case <-late.C:
			all := make([]byte, 1<<20)
			t.Fatalf("%d goroutines were left, %d before:\n%s", runtime.NumGoroutine(), goroutines, all[:runtime.Stack(all, true)])
		}
	}
}

func (w *fuzzWorld) serveConn(t testing.TB, c *script) {
	t.Helper()
	open := w.broker.Connections()
	served := make(chan struct{})
	go func() {
		defer close(served)
		w.broker.ServeConn(context.Background(), c)
	}()
	late := time.NewTimer(fuzzPatience)
	defer late.Stop()
	select {
	case <-served:
	case <-late.C:
		t.Fatal("the connection did not end with its client")
	}
	if n := w.broker.Connections(); n != open {
		t.Fatalf("%d connections, %d before", n, open)
	}
}

// script is a client that sends what was written down before, whatever it is
// answered, and leaves. (One that closes a real connection at once would often
// be gone before its CONNACK was written, and nothing behind its CONNECT would
// be read.)
type script struct {
	parts [][]byte // nil is a pause
	rest  []byte

	mu     sync.Mutex // guards the fields below
	got    bytes.Buffer
	closed bool
}

func (c *script) bytes(b []byte) *script {
	if len(b) > 0 {
		c.parts = append(c.parts, b)
	}
	return c
}

// pause lets the broker's other goroutines have a turn: what it delivers may be
// written before what follows is read.
func (c *script) pause() { c.parts = append(c.parts, nil) }

// Read implements net.Conn.
func (c *script) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		c.mu.Lock()
		closed := c.closed
		c.mu.Unlock()
		if closed || len(c.parts) == 0 {
			return 0, io.EOF
		}
		if c.rest, c.parts = c.parts[0], c.parts[1:]; c.rest == nil {
			<-time.After(time.Millisecond)
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write implements net.Conn.
func (c *script) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	return c.got.Write(p)
}

// Close implements net.Conn.
func (c *script) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

// answers is what the broker has written.
func (c *script) answers() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.got.Bytes())
}

// letIn reports whether the first answer is a CONNACK with success.
func (c *script) letIn() bool {
	got := c.answers()
	return len(got) > 3 && got[0] == packets.Connack<<4 && got[3] == 0
}

// LocalAddr implements net.Conn.
func (c *script) LocalAddr() net.Addr { return memnet.Addr("broker") }

// RemoteAddr implements net.Conn.
func (c *script) RemoteAddr() net.Addr { return memnet.Addr("fuzz") }

// SetDeadline implements net.Conn: nothing here waits for long.
func (c *script) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (c *script) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (c *script) SetWriteDeadline(time.Time) error { return nil }
