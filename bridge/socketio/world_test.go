package socketio_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/bridge/socketio/internal/rawtest"
)

// world is a server on an in-memory network, with raw and with Go clients.
type world struct {
	*rawtest.World
	t      testing.TB
	server *socketio.Server
}

// newWorld starts a server that ends with the test; use it in a bubble.
func newWorld(t testing.TB, cfg socketio.Config) *world {
	t.Helper()
	server, err := socketio.NewServer(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return &world{rawtest.Start(t, server, socketio.DefaultPath), t, server}
}

// dial connects a Go client to a namespace.
func (w *world) dial(path string, o socketio.DialOptions) *socketio.Client {
	w.t.Helper()
	c, err := w.tryDial(path, o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close(); <-c.Done() })
	return c
}

func (w *world) tryDial(path string, o socketio.DialOptions) (*socketio.Client, error) {
	o.NetDial = w.Dial
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	return socketio.Dial(ctx, "http://server"+path, o)
}

// sockets makes the namespace hand its sockets to the test.
func (w *world) sockets(namespace string) <-chan *socketio.Socket {
	joined := make(chan *socketio.Socket, 100)
	w.server.Of(namespace).OnConnect(func(s *socketio.Socket) { joined <- s })
	return joined
}

// join opens a WebSocket and joins the default namespace on it.
func (w *world) join() *rawtest.WebSocket {
	w.t.Helper()
	ws := w.OpenWebSocket()
	ws.Send("40")
	if got := ws.Next(); len(got) < 10 || got[:9] != `40{"sid":` {
		w.t.Fatalf("answer to CONNECT: got %q", got)
	}
	return ws
}

// bubble runs fn on fake time.
func bubble(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, fn)
}

// decode unmarshals one JSON value.
func decode[T any](t testing.TB, raw json.RawMessage) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("decode %q: %v", raw, err)
	}
	return v
}
