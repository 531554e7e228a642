package mqttlink

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/memnet"
)

// mochiDisconnect is what a mochi broker notes as the cause of an orderly end.
var mochiDisconnect = packets.CodeDisconnect

// rules is the broker's one hook: it lets everybody in, but for what a test
// forbids. (mochi's own allow-all hook pulls in a YAML library.)
type rules struct {
	mochi.HookBase
	connect   func(cl *mochi.Client, pk packets.Packet) bool
	mayUse    func(topic string, write bool) bool
	onPublish func(pk packets.Packet) (packets.Packet, error)
}

func (r *rules) ID() string { return "rules" }

func (r *rules) Provides(b byte) bool {
	return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck || b == mochi.OnPublish
}

func (r *rules) OnConnectAuthenticate(cl *mochi.Client, pk packets.Packet) bool {
	return r.connect == nil || r.connect(cl, pk)
}

func (r *rules) OnACLCheck(_ *mochi.Client, topic string, write bool) bool {
	return r.mayUse == nil || r.mayUse(topic, write)
}

func (r *rules) OnPublish(_ *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if r.onPublish == nil {
		return pk, nil
	}
	return r.onPublish(pk)
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// newBroker runs a real broker on ln until the test ends.
func newBroker(t testing.TB, ln net.Listener, r *rules) *mochi.Server {
	t.Helper()
	s := mochi.New(&mochi.Options{Logger: quiet(), InlineClient: true, Capabilities: capabilities()})
	if err := s.AddHook(r, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.AddListener(listeners.NewNet("test", ln)); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func capabilities() *mochi.Capabilities {
	c := mochi.NewDefaultServerCapabilities()
	c.MaximumClientWritesPending = 64
	return c
}

// network dials a memnet listener and remembers the connections, to cut them.
type network struct {
	ln *memnet.Listener

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

func (n *network) dial(ctx context.Context) (net.Conn, error) {
	c, err := n.ln.Dial(ctx, "client")
	if err == nil {
		n.mu.Lock()
		n.conns = append(n.conns, c)
		n.mu.Unlock()
	}
	return c, err
}

func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.Close()
	}
	n.conns = nil
}

// seen records what a Link told its owner.
type seen struct {
	mu       sync.Mutex // guards the fields below
	ups      []bool
	downs    []error
	messages []*Message
}

func (s *seen) config(c Config) Config {
	c.Receive = func(m *Message) { s.mu.Lock(); s.messages = append(s.messages, m); s.mu.Unlock() }
	c.Up = func(present bool) { s.mu.Lock(); s.ups = append(s.ups, present); s.mu.Unlock() }
	c.Down = func(err error) { s.mu.Lock(); s.downs = append(s.downs, err); s.mu.Unlock() }
	return c
}

func (s *seen) payloads() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.messages {
		out = append(out, string(m.Payload))
	}
	return out
}

func (s *seen) get() (ups []bool, downs []error, messages []*Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ups, s.downs, s.messages
}

// newLink runs a Link until the test ends.
func newLink(t testing.TB, c Config) *Link {
	t.Helper()
	l, err := New(c, quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return l
}

func awaitUp(t testing.TB, l *Link) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.AwaitUp(ctx); err != nil {
		t.Fatalf("AwaitUp: %v", err)
	}
}

// world is a broker on a memory network, inside a synctest bubble.
func world(t *testing.T) (*network, *mochi.Server) {
	n := &network{ln: memnet.Listen("broker")}
	return n, newBroker(t, n.ln, new(rules))
}
