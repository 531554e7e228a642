package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/bridge/socketio/engineio"
)

// hall is a Socket.IO server, and an Engine.IO server, of this process: what
// the clients are held against that knows nothing of photos.
type hall struct {
	url     string
	config  socketio.Config
	sockets atomic.Pointer[socketio.Server]
	log     *slog.Logger
	refused *record[string] // what the event "stubborn" left without an answer

	mu    sync.Mutex // guards the fields below
	conns map[net.Conn]bool
}

// grace is how long a hall says goodbye: polling clients that have gone leave
// something unsent behind.
const grace = 5 * time.Second

// often is a ping interval that puts pings between everything else.
const often = 300 * time.Millisecond

// newHall starts a server that ends with the test.
func newHall(t *testing.T, ping time.Duration) *hall {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hall{
		url:     "http://" + listener.Addr().String(),
		config:  socketio.Config{PingInterval: ping, PingTimeout: patience, MaxPayload: 8 << 20},
		log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
		refused: newRecord[string](), conns: map[net.Conn]bool{},
	}
	h.open(t)
	raw, err := engineio.NewServer(engineio.Config{PingInterval: ping, PingTimeout: patience, MaxPayload: 8 << 20},
		func(s *engineio.Session) engineio.Receiver { return mirror{s} }, h.log)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc(socketio.DefaultPath, func(w http.ResponseWriter, r *http.Request) { h.sockets.Load().ServeHTTP(w, r) })
	mux.Handle("/engine.io/", raw)
	front := &http.Server{Handler: mux}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = front.Serve(tracked{listener, h}) // always an error: ErrServerClosed
	}()
	t.Cleanup(func() {
		_ = front.Close()
		<-served
		h.cut()
		for _, s := range []interface{ Close(context.Context) error }{h.sockets.Load(), raw} {
			ctx, cancel := context.WithTimeout(context.Background(), grace)
			if err := s.Close(ctx); err != nil {
				t.Error(err)
			}
			cancel()
		}
	})
	return h
}

// open makes the Socket.IO server and puts it in the place of the one before,
// which it returns.
func (h *hall) open(t *testing.T) (old *socketio.Server) {
	t.Helper()
	s, err := socketio.NewServer(h.config, h.log)
	if err != nil {
		t.Fatal(err)
	}
	s.Of("/").Use(func(s *socketio.Socket) error {
		if string(s.Handshake().Auth) == `{"token":"bad"}` {
			return &socketio.ConnectError{Message: "not authorized", Data: map[string]any{"code": "token_invalid", "retryable": false}}
		}
		return nil
	})
	s.Of("/").OnConnect(h.serve)
	s.Of("/custom").OnConnect(h.serve)
	return h.sockets.Swap(s)
}

// restart is what clients see of a server that is stopped and started.
func (h *hall) restart(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), grace)
	defer cancel()
	if err := h.open(t).Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// cut ends every TCP connection as a lost link does, without a goodbye.
func (h *hall) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		_ = c.(*net.TCPConn).SetLinger(0) // a reset
		_ = c.Close()
	}
	clear(h.conns)
}

// tracked tells the hall of its connections.
type tracked struct {
	net.Listener
	hall *hall
}

func (l tracked) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.hall.mu.Lock()
		l.hall.conns[c] = true
		l.hall.mu.Unlock()
	}
	return c, err
}

// serve gives a socket the events of these tests.
func (h *hall) serve(s *socketio.Socket) {
	// message comes back, as an answer where one is wanted.
	s.On("message", func(e *socketio.Event) {
		values := echoed(e)
		if e.WantsAck() {
			_ = e.Ack(values...)
			return
		}
		_ = s.Emit("message-back", values...)
	})
	// measure is answered with the sums of the attachments.
	s.On("measure", func(e *socketio.Event) {
		sums := make([]string, len(e.Attachments))
		for i, a := range e.Attachments {
			b := sha256.Sum256(a)
			sums[i] = hex.EncodeToString(b[:])
		}
		_ = e.Ack(sums)
	})
	// ask asks the client and answers with what it answered.
	s.On("ask", func(e *socketio.Event) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		answer, err := s.EmitWithAck(ctx, "question", echoed(e)...)
		if err != nil {
			h.log.Error("question", "err", err)
			return
		}
		values := make([]any, len(answer))
		for i := range answer {
			values[i] = answer[i]
		}
		_ = e.Ack(values...)
	})
	// stubborn is answered when its argument comes for the second time.
	s.On("stubborn", func(e *socketio.Event) {
		if again := count(h.refused.all(), func(raw string) bool { return raw == string(e.Raw) }) > 0; again {
			_ = e.Ack(true)
			return
		}
		h.refused.add(string(e.Raw))
		if string(e.Raw) == `["stubborn","cut"]` {
			h.cut()
		}
	})
	s.On("silent", func(*socketio.Event) {})
	s.On("transport", func(e *socketio.Event) { _ = e.Ack(s.Transport()) })
	s.On("leave", func(*socketio.Event) { s.Disconnect(false) })
}

// echoed returns e's arguments as they can be sent back.
func echoed(e *socketio.Event) []any {
	args, err := e.Args()
	if err != nil {
		return nil
	}
	values := make([]any, len(args))
	for i, arg := range args {
		if data, ok := e.Attachment(arg); ok {
			values[i] = data
		} else {
			values[i] = arg
		}
	}
	return values
}

// mirror sends every Engine.IO message back.
type mirror struct{ session *engineio.Session }

func (m mirror) Message(binary bool, data engineio.Buffer) error {
	if binary {
		return m.session.Send(engineio.Binary(data.B))
	}
	return m.session.Send(engineio.Text(data.B))
}

func (mirror) Closed(string) {}

// client is a client of a hall in a driver.
type client struct {
	driver *node
	name   string
	events *record[event]
}

// open opens a client with transports and does not wait for it.
func open(t testing.TB, driver *node, url string, transports []string, more map[string]any) *client {
	t.Helper()
	return openAs(t, driver, "open", url, transports, more)
}

func openAs(t testing.TB, driver *node, what, url string, transports []string, more map[string]any) *client {
	t.Helper()
	c := &client{driver: driver, name: newID("client")}
	c.events = driver.client(c.name)
	options := map[string]any{"transports": transports}
	for key, value := range more {
		options[key] = value
	}
	driver.must(t, map[string]any{"do": what, "of": c.name, "url": url, "options": options})
	return c
}

// await waits for n events with one name and returns all of them.
func (c *client) await(t testing.TB, name string, n int) []event {
	t.Helper()
	var found []event
	c.events.await(t, fmt.Sprintf("%d × %s", n, name), func(list []event) bool {
		found = nil
		for _, e := range list {
			if e.Name == name {
				found = append(found, e)
			}
		}
		return len(found) >= n
	})
	return found
}

// do asks the driver to do something with the client.
func (c *client) do(t testing.TB, what string, args ...any) {
	t.Helper()
	c.driver.must(t, map[string]any{"do": what, "of": c.name, "args": args})
}

// event is the request to emit an event.
func (c *client) event(name string, args []any) map[string]any {
	return map[string]any{"do": "emit", "of": c.name, "event": name, "args": append([]any{}, args...)}
}

// emit sends an event and does not wait for an answer.
func (c *client) emit(t testing.TB, name string, args ...any) {
	t.Helper()
	c.driver.must(t, c.event(name, args))
}

// ask sends an event and returns the answer, a list.
func (c *client) ask(t testing.TB, name string, args ...any) any {
	t.Helper()
	request := c.event(name, args)
	request["timeout"] = patience.Milliseconds()
	return decodedJSON(t, c.driver.must(t, request))
}

func decodedJSON(t testing.TB, raw json.RawMessage) (v any) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%v: %.100s", err, raw)
	}
	return v
}

// attachment is data as the drivers write it.
func attachment(data []byte) map[string]any {
	return map[string]any{"binary": base64.StdEncoding.EncodeToString(data)}
}
