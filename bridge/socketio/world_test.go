package socketio_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/memnet"
)

// world is a server on an in-memory network.
type world struct {
	t        testing.TB
	server   *socketio.Server
	listener *memnet.Listener
	http     *http.Server
}

// newWorld starts a server that ends with the test; use it in a bubble.
func newWorld(t testing.TB, cfg socketio.Config) *world {
	t.Helper()
	server, err := socketio.NewServer(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(socketio.DefaultPath, server)
	w := &world{t: t, server: server, listener: memnet.Listen("server:80"), http: &http.Server{Handler: mux}}
	served := make(chan error, 1)
	go func() { served <- w.http.Serve(w.listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := server.Close(ctx); err != nil {
			t.Errorf("close server: %v", err)
		}
		if err := w.http.Shutdown(ctx); err != nil {
			t.Errorf("shut down http: %v", err)
		}
		<-served
	})
	return w
}

// netDial is for clients of w.
func (w *world) netDial(ctx context.Context, _, _ string) (net.Conn, error) {
	return w.listener.Dial(ctx, "client:1")
}

// dial connects a Go client to a namespace path.
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
	o.NetDial = w.netDial
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	return socketio.Dial(ctx, "http://server"+path, o)
}

// bubble runs fn as a subtest's whole body on fake time.
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
