package socketio_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/bridge/socketio"
)

// echo makes sockets of the default namespace answer "message".
func echo(s *socketio.Server) {
	s.Of("/").OnConnect(func(sock *socketio.Socket) {
		sock.On("message", func(e *socketio.Event) {
			args, err := e.Args()
			if err != nil {
				panic(err)
			}
			values := make([]any, len(args))
			for i, arg := range args {
				if data, ok := e.Attachment(arg); ok {
					values[i] = data
				} else {
					values[i] = arg
				}
			}
			if e.WantsAck() {
				_ = e.Ack(values...)
				return
			}
			_ = sock.Emit("message-back", values...)
		})
	})
}

func TestEchoWithAcknowledgement(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		echo(w.server)
		c := w.dial("/", socketio.DialOptions{})
		args, err := c.EmitWithAck(t.Context(), "message", 1, "two", map[string]any{"three": []int{3}}, []byte{4, 5})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]string, len(args))
		for i := range args {
			got[i] = string(args[i])
		}
		want := []string{`1`, `"two"`, `{"three":[3]}`, `"` + base64.StdEncoding.EncodeToString([]byte{4, 5}) + `"`}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
	})
}

func TestMiddlewareRefusesWithData(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		w.server.Of("/").Use(func(s *socketio.Socket) error {
			if string(s.Handshake().Auth) == `{"token":"good"}` {
				return nil
			}
			return &socketio.ConnectError{Message: "no", Data: map[string]any{"code": "token_invalid"}}
		})
		_, err := w.tryDial("/", socketio.DialOptions{Auth: map[string]string{"token": "bad"}})
		var refused *socketio.ConnectError
		if !errors.As(err, &refused) {
			t.Fatalf("dial with a bad token: got %v, want a ConnectError", err)
		}
		if diff := cmp.Diff(&socketio.ConnectError{Message: "no", Data: json.RawMessage(`{"code":"token_invalid"}`)}, refused); diff != "" {
			t.Errorf("refusal (-want +got):\n%s", diff)
		}
		w.dial("/", socketio.DialOptions{Auth: map[string]string{"token": "good"}})
		if _, err := w.tryDial("/nowhere", socketio.DialOptions{}); err == nil || err.Error() != "socketio: connection refused: Invalid namespace" {
			t.Errorf("dial an unknown namespace: got %v", err)
		}
	})
}

func TestPreparedReachesSeveralSockets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		photo := bytes.Repeat([]byte{0xff, 0xd8, 7}, 100_001)
		p, err := socketio.PrepareJSON("photo", []byte(`{"id":"1","data":"`), photo, []byte(`","n":2}`))
		if err != nil {
			t.Fatal(err)
		}
		w.server.Of("/").OnConnect(func(s *socketio.Socket) {
			if err := s.EmitPrepared(p, nil); err != nil {
				t.Error(err)
			}
		})
		type arrived struct {
			ID   string
			Data []byte
			N    int
		}
		for range 3 {
			got := make(chan arrived, 1)
			w.dial("/", socketio.DialOptions{On: map[string]func(*socketio.Event){"photo": func(e *socketio.Event) {
				args, _ := e.Args()
				got <- decode[arrived](t, args[0])
			}}})
			if a := <-got; a.ID != "1" || a.N != 2 || !bytes.Equal(a.Data, photo) {
				t.Fatalf("photo: got %q, %d, %d bytes", a.ID, a.N, len(a.Data))
			}
		}
	})
}

func TestConfirm(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		sockets := make(chan *socketio.Socket, 1)
		w.server.Of("/").OnConnect(func(s *socketio.Socket) { sockets <- s })
		c := w.dial("/", socketio.DialOptions{})
		s := <-sockets
		confirmed := make(chan bool, 10)
		start := time.Now()
		for range 3 {
			s.Confirm(func(ok bool) { confirmed <- ok })
		}
		for range 3 {
			if !<-confirmed {
				t.Error("not confirmed on a live connection")
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("confirmed after %v: the ping did not leave at once", d)
		}
		time.Sleep(3 * time.Minute) // the ordinary heartbeat goes on
		if !s.Connected() {
			t.Fatal("socket left after its confirmations")
		}
		_ = c.Close()
		<-s.Done()
		s.Confirm(func(ok bool) { confirmed <- ok })
		if <-confirmed {
			t.Error("confirmed on a dead connection")
		}
		synctest.Wait()
	})
}

func TestAcksOfTheClient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		sockets := make(chan *socketio.Socket, 1)
		w.server.Of("/").OnConnect(func(s *socketio.Socket) { sockets <- s })
		c := w.dial("/", socketio.DialOptions{On: map[string]func(*socketio.Event){
			"add": func(e *socketio.Event) {
				args, _ := e.Args()
				_ = e.Ack(decode[int](t, args[0]) + decode[int](t, args[1]))
				_ = e.Ack("a second answer is not sent")
			},
		}})
		s := <-sockets
		args, err := s.EmitWithAck(t.Context(), "add", 2, 3)
		if err != nil || len(args) != 1 || string(args[0]) != "5" {
			t.Fatalf("acknowledgement: got %s, %v", args, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.EmitWithAck(ctx, "unheard"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("unanswered: got %v, want the deadline", err)
		}
		failed := make(chan error, 1)
		p, err := socketio.Prepare("unheard")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.EmitPrepared(p, func(_ []json.RawMessage, err error) { failed <- err }); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if err := <-failed; !errors.Is(err, socketio.ErrDisconnected) {
			t.Errorf("answer after the end: got %v, want ErrDisconnected", err)
		}
	})
}

func TestSlowClientCausesBacklog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{QueuePackets: 3, QueueBytes: 1000})
		sockets := w.sockets("/")
		sid := w.Open()
		w.Post(sid, "40")
		s := <-sockets
		w.Poll(sid)
		big, err := socketio.Prepare("big", string(make([]byte, 2000)))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.EmitPrepared(big, nil); err != nil {
			t.Fatalf("a large event into an empty queue: %v", err)
		}
		called := false
		err = s.EmitPrepared(big, func([]json.RawMessage, error) { called = true })
		if _, wait := s.EmitWithAck(t.Context(), "big"); !errors.Is(err, socketio.ErrBacklog) || !errors.Is(wait, socketio.ErrBacklog) {
			t.Errorf("events with acknowledgement into a full queue: got %v and %v, want ErrBacklog", err, wait)
		}
		if err := s.Emit("small"); !errors.Is(err, socketio.ErrBacklog) {
			t.Errorf("an event into a full queue: got %v, want ErrBacklog", err)
		}
		w.Poll(sid)
		if err := s.Emit("small"); err != nil || !s.Connected() {
			t.Errorf("after the client has polled: %v, connected %v", err, s.Connected())
		}
		if a := w.Poll(sid); a.Body != `42["small"]` {
			t.Errorf("got %q", a.Body)
		}
		if w.Post(sid, "41"); called {
			t.Error("the function of a refused event was called")
		}
	})
}
