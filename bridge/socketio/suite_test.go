package socketio_test

import (
	"strings"
	"testing"
	"time"

	"pairsync/bridge/socketio"
)

// The cases of the official test suite of Socket.IO protocol 5, on fake time.
// Those it repeats from Engine.IO are in package engineio.

// suiteWorld has the handlers that the suite expects.
func suiteWorld(t *testing.T) *world {
	w := newWorld(t, socketio.Config{
		PingInterval: 300 * time.Millisecond, PingTimeout: 200 * time.Millisecond,
		MaxPayload: 1_000_000, ConnectTimeout: time.Second,
	})
	for _, name := range []string{"/", "/custom"} {
		w.server.Of(name).OnConnect(func(s *socketio.Socket) {
			auth := s.Handshake().Auth
			if auth == nil {
				auth = []byte("{}")
			}
			if err := s.Emit("auth", auth); err != nil {
				t.Error(err)
			}
			s.On("message", func(e *socketio.Event) { _ = s.Emit("message-back", echoed(t, e)...) })
			s.On("message-with-ack", func(e *socketio.Event) { _ = e.Ack(echoed(t, e)...) })
		})
	}
	return w
}

// echoed returns e's arguments as they can be sent back; attachments only at
// the top.
func echoed(t *testing.T, e *socketio.Event) []any {
	args, err := e.Args()
	if err != nil {
		t.Error(err)
	}
	values := make([]any, len(args))
	for i, arg := range args {
		if values[i] = arg; len(e.Attachments) > 0 {
			data, ok := e.Attachment(arg)
			if !ok {
				t.Errorf("argument %s is no attachment", arg)
			}
			values[i] = data
		}
	}
	return values
}

func TestSuiteConnect(t *testing.T) {
	for _, c := range []struct{ connect, prefix, auth string }{
		{`40`, `40{"sid":"`, `42["auth",{}]`},
		{`40{"token":"123"}`, `40{"sid":"`, `42["auth",{"token":"123"}]`},
		{`40/custom,`, `40/custom,{"sid":"`, `42/custom,["auth",{}]`},
		{`40/custom,{"token":"abc"}`, `40/custom,{"sid":"`, `42/custom,["auth",{"token":"abc"}]`},
	} {
		bubble(t, func(t *testing.T) {
			w := suiteWorld(t)
			ws := w.OpenWebSocket()
			ws.Send(c.connect)
			if got := ws.Next(); !strings.HasPrefix(got, c.prefix) || !strings.HasSuffix(got, `"}`) {
				t.Errorf("%s: got %q", c.connect, got)
			}
			ws.Want(c.auth)
		})
	}
	bubble(t, func(t *testing.T) {
		w := suiteWorld(t)
		ws := w.OpenWebSocket()
		ws.Send("40/random")
		ws.Want(`44/random,{"message":"Invalid namespace"}`)
		invalid := w.OpenWebSocket()
		invalid.Send("4abc")
		invalid.WantClose()
	})
	bubble(t, func(t *testing.T) {
		w := suiteWorld(t)
		began := time.Now()
		ws := w.OpenWebSocket()
		for range 3 { // it answers pings, but joins nothing
			ws.Want("2")
			ws.Send("3")
		}
		ws.WantClose()
		if d := time.Since(began); d != time.Second {
			t.Errorf("closed after %v, want the connect timeout", d)
		}
	})
}

func TestSuiteDisconnect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := suiteWorld(t)
		ws := w.join()
		ws.Want(`42["auth",{}]`)
		ws.Send("41")
		ws.Want("2")
	})
	bubble(t, func(t *testing.T) {
		w := suiteWorld(t)
		ws := w.join()
		ws.Want(`42["auth",{}]`, "2")
		ws.Send("40/custom")
		if got := ws.Next(); !strings.HasPrefix(got, `40/custom,{"sid":`) {
			t.Errorf("got %q", got)
		}
		ws.Want(`42/custom,["auth",{}]`)
		ws.Send("41/custom", `42["message","message to main namespace"]`)
		ws.Want(`42["message-back","message to main namespace"]`)
	})
}

func TestSuiteMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := suiteWorld(t)
		ws := w.join()
		ws.Want(`42["auth",{}]`)
		ws.Send(`42["message",1,"2",{"3":[true]}]`)
		ws.Want(`42["message-back",1,"2",{"3":[true]}]`)
		ws.Send(`42456["message-with-ack",1,"2",{"3":[false]}]`)
		ws.Want(`43456[1,"2",{"3":[false]}]`)

		ws.Send(`452-["message",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`)
		ws.SendBinary("\x01\x02\x03")
		ws.SendBinary("\x04\x05\x06")
		ws.Want(`452-["message-back",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`,
			"binary:\x01\x02\x03", "binary:\x04\x05\x06")
		ws.Send(`452-789["message-with-ack",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`)
		ws.SendBinary("\x01\x02\x03")
		ws.SendBinary("\x04\x05\x06")
		ws.Want(`462-789[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`,
			"binary:\x01\x02\x03", "binary:\x04\x05\x06")
	})
	for _, text := range []string{"4abc", "42{}", `42abc["message-with-ack",1,"2",{"3":[false]}]`} {
		bubble(t, func(t *testing.T) {
			w := suiteWorld(t)
			ws := w.join()
			ws.Want(`42["auth",{}]`)
			ws.Send(text)
			ws.WantClose()
		})
	}
}
