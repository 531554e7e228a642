package socketio_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"

	"pairsync/bridge/socketio"
	"pairsync/internal/memnet"
)

func TestClientNamespaceAndBinary(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{MaxPayload: 4 << 20})
		photo := bytes.Repeat([]byte{1, 2, 3}, 700_000)
		w.server.Of("/custom").OnConnect(func(s *socketio.Socket) {
			s.On("photo", func(e *socketio.Event) {
				args, _ := e.Args()
				if data, ok := e.Attachment(args[0]); !ok || !bytes.Equal(data, photo) {
					t.Errorf("photo up: %v, %d bytes", ok, len(data))
				}
				_ = s.Emit("photo", map[string]any{"data": socketio.Binary(photo)})
			})
		})
		c := w.dial("/custom", socketio.DialOptions{})
		got := make(chan []byte, 1)
		c.On("photo", func(e *socketio.Event) {
			if string(e.Raw) != `["photo",{"data":{"_placeholder":true,"num":0}}]` {
				t.Errorf("event: got %s", e.Raw)
			}
			got <- e.Attachments[0]
		})
		if err := c.Emit("photo", photo); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(<-got, photo) {
			t.Error("photo down differs")
		}
	})
}

func TestClientLearnsOfTheEnd(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*world, *socketio.Socket)
		want string
	}{
		"server leaves the namespace": {func(_ *world, s *socketio.Socket) { s.Disconnect(false) }, "server namespace disconnect"},
		"server closes":               {func(_ *world, s *socketio.Socket) { s.Disconnect(true) }, "server namespace disconnect"},
		"server drops":                {func(_ *world, s *socketio.Socket) { s.Drop() }, "websocket: close 1000 (normal)"},
		"server shuts down":           {func(w *world, _ *socketio.Socket) { _ = w.server.Close(w.t.Context()) }, "websocket: close 1001 (going away)"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, socketio.Config{})
				sockets := w.sockets("/")
				client := w.dial("/", socketio.DialOptions{})
				c.end(w, <-sockets)
				<-client.Done()
				if err := client.Err(); err == nil || err.Error() != c.want {
					t.Errorf("got %v, want %q", err, c.want)
				}
				if err := client.Emit("late"); !errors.Is(err, socketio.ErrDisconnected) {
					t.Errorf("emit after the end: got %v", err)
				}
				if _, err := client.EmitWithAck(t.Context(), "late"); !errors.Is(err, socketio.ErrDisconnected) {
					t.Errorf("emit with ack after the end: got %v", err)
				}
			})
		})
	}
}

func TestSocketsHearOfShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		left := make(chan string, 1)
		w.server.Of("/").OnConnect(func(s *socketio.Socket) {
			s.OnDisconnect(func(reason string) { left <- reason })
			s.On("slow", func(*socketio.Event) { <-s.Done(); time.Sleep(time.Second) })
		})
		c := w.dial("/", socketio.DialOptions{})
		if err := c.Emit("slow"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		began := time.Now()
		if err := w.server.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d < time.Second || d > 2*time.Second {
			t.Errorf("closed after %v, want to wait for the handler", d)
		}
		if reason := <-left; reason != "server shutting down" {
			t.Errorf("left with %q", reason)
		}
	})
}

func TestClientGivesUpOnASilentServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		listener := memnet.Listen("silent")
		served := make(chan struct{})
		front := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer close(served)
			ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			_ = ws.WriteMessage(websocket.TextMessage, []byte(`0{"pingInterval":25000,"pingTimeout":20000}`))
			_ = ws.WriteMessage(websocket.TextMessage, []byte(`40{"sid":"x"}`))
			for err == nil {
				_, _, err = ws.ReadMessage()
			}
		})}
		go front.Serve(listener) // ends with front.Close
		defer front.Close()
		c, err := socketio.Dial(t.Context(), "http://silent/", socketio.DialOptions{
			NetDial: func(ctx context.Context, _, _ string) (net.Conn, error) { return listener.Dial(ctx, "client") },
		})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := c.EmitWithAck(t.Context(), "unheard"); !errors.Is(err, socketio.ErrDisconnected) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(began); d != 45*time.Second {
			t.Errorf("gave up after %v, want 45s", d)
		}
		<-c.Done()
		<-served
	})
}

func TestDialFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		w.server.Of("/")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		silent := memnet.Listen("silent")
		go func() {
			c, err := silent.Accept()
			if err == nil {
				<-ctx.Done()
				_ = c.Close()
			}
		}()
		toSilent := func(ctx context.Context, _, _ string) (net.Conn, error) { return silent.Dial(ctx, "client") }
		for _, c := range []struct {
			address string
			o       socketio.DialOptions
			want    error
		}{
			{"ftp://server/", socketio.DialOptions{NetDial: w.Dial}, nil},
			{"://", socketio.DialOptions{NetDial: w.Dial}, nil},
			{"http://server/", socketio.DialOptions{NetDial: w.Dial, Path: "/elsewhere/"}, nil},
			{"http://server/", socketio.DialOptions{NetDial: w.Dial, Auth: func() {}}, nil},
			{"http://server/", socketio.DialOptions{NetDial: toSilent}, context.DeadlineExceeded},
		} {
			client, err := socketio.Dial(ctx, c.address, c.o)
			if client != nil || err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("dial %s: got %v", c.address, err)
			}
		}
	})
}

func TestMiddlewareMayDisconnect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		w.server.Of("/").Use(func(s *socketio.Socket) error { s.Disconnect(true); return nil })
		joined := w.sockets("/")
		ws := w.OpenWebSocket()
		ws.Send("40")
		ws.WantClose()
		if len(joined) > 0 {
			t.Error("the socket joined")
		}
	})
}

func TestAttachmentsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{MaxPayload: 1000})
		sizes := make(chan int, 1)
		w.server.Of("/").OnConnect(func(s *socketio.Socket) {
			s.On("a", func(e *socketio.Event) { sizes <- len(e.Attachments) })
		})
		ws := w.join()
		data := string(make([]byte, 900))
		ws.Send(`452-["a"]`)
		ws.SendBinary(data)
		ws.SendBinary(data)
		if diff := cmp.Diff(2, <-sizes); diff != "" {
			t.Error(diff)
		}
		ws.Send(`453-["a"]`)
		for range 3 {
			ws.SendBinary(data)
		}
		ws.WantClose()
	})
}
