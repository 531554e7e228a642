package socketio_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/bridge/socketio"
	"pairsync/bridge/socketio/internal/rawtest"
)

func TestPacketsThatClose(t *testing.T) {
	const two = `452-["a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`
	for name, send := range map[string]func(*rawtest.WebSocket){
		"second connect":             func(ws *rawtest.WebSocket) { ws.Send("40") },
		"event of another namespace": func(ws *rawtest.WebSocket) { ws.Send(`42/x,["a"]`) },
		"connect with an array":      func(ws *rawtest.WebSocket) { ws.Send(`40/x,[]`) },
		"connect with a string":      func(ws *rawtest.WebSocket) { ws.Send(`40/x,"a"`) },
		"unknown type":               func(ws *rawtest.WebSocket) { ws.Send("47") },
		"connect error":              func(ws *rawtest.WebSocket) { ws.Send(`44{"message":"x"}`) },
		"eleven attachments":         func(ws *rawtest.WebSocket) { ws.Send(`4511-["a"]`) },
		"no number of attachments":   func(ws *rawtest.WebSocket) { ws.Send(`45-["a"]`) },
		"event without a name":       func(ws *rawtest.WebSocket) { ws.Send(`42[]`) },
		"event named by an object":   func(ws *rawtest.WebSocket) { ws.Send(`42[{}]`) },
		"event without JSON":         func(ws *rawtest.WebSocket) { ws.Send(`42["a"`) },
		"reserved name":              func(ws *rawtest.WebSocket) { ws.Send(`42["disconnect"]`) },
		"text between attachments":   func(ws *rawtest.WebSocket) { ws.Send(two); ws.SendBinary("x"); ws.Send(`42["a"]`) },
		"stray binary":               func(ws *rawtest.WebSocket) { ws.SendBinary("x") },
		"placeholder out of range":   func(ws *rawtest.WebSocket) { ws.Send(`451-["a",{"_placeholder":true,"num":1}]`) },
		"ack without an id":          func(ws *rawtest.WebSocket) { ws.Send(`43[]`) },
		"ack that is no array":       func(ws *rawtest.WebSocket) { ws.Send(`431{}`) },
		"client's ping":              func(ws *rawtest.WebSocket) { ws.Send("2") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, socketio.Config{})
				w.server.Of("/x")
				left := make(chan string, 1)
				w.server.Of("/").OnConnect(func(s *socketio.Socket) { s.OnDisconnect(func(reason string) { left <- reason }) })
				ws := w.join()
				send(ws)
				ws.WantClose()
				if reason := <-left; reason != "parse error" {
					t.Errorf("left with %q", reason)
				}
			})
		})
	}
}

func TestFirstPacketMustBeConnect(t *testing.T) {
	for _, first := range []string{`42["a"]`, "41", "430[]"} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, socketio.Config{})
			w.server.Of("/")
			ws := w.OpenWebSocket()
			ws.Send(first)
			ws.WantClose()
		})
	}
}

func TestPingsBetweenAttachments(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		got := make(chan [][]byte, 1)
		w.server.Of("/").OnConnect(func(s *socketio.Socket) { s.On("a", func(e *socketio.Event) { got <- e.Attachments }) })
		ws := w.join()
		ws.Send(`451-["a",{"_placeholder":true,"num":0}]`)
		ws.Want("2")
		ws.Send("3")
		ws.SendBinary("x")
		if diff := cmp.Diff([][]byte{[]byte("x")}, <-got); diff != "" {
			t.Errorf("attachments (-want +got):\n%s", diff)
		}
	})
}

func TestIDsAreSecret(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		main, other := w.sockets("/"), w.sockets("/other")
		sid := w.Open()
		for _, text := range []string{"40", "40/other,"} {
			if a := w.Post(sid, text); a.Body != "ok" {
				t.Fatalf("connect: %d %q", a.Status, a.Body)
			}
		}
		ids := map[string]bool{sid: true, (<-main).ID(): true, (<-other).ID(): true}
		if len(ids) != 3 {
			t.Errorf("ids are shared: %v", ids)
		}
		if a := w.Poll(sid); strings.Contains(a.Body, sid) {
			t.Errorf("the session's id is given away: %q", a.Body)
		}
	})
}

func TestConnectTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{ConnectTimeout: 20 * time.Second})
		w.server.Of("/").Use(func(s *socketio.Socket) error {
			if s.Handshake().Auth == nil {
				return errors.New("internal detail")
			}
			return nil
		})
		sockets := w.sockets("/")
		began := time.Now()
		refused := w.OpenWebSocket()
		refused.Send("40") // a refusal does not stop the clock
		refused.Want(`44{"message":"not authorized"}`)
		if refused.WantClose(); time.Since(began) != 20*time.Second {
			t.Errorf("closed after %v", time.Since(began))
		}
		ws := w.OpenWebSocket()
		ws.Send("40")
		ws.Want(`44{"message":"not authorized"}`)
		ws.Send(`40{"token":1}`)
		s := <-sockets
		ws.Next()
		ws.Send("41") // it has joined once: the clock stays stopped
		ws.Want("2")
		ws.Send("3")
		ws.Want("2")
		<-s.Done()
	})
}

func TestMiddlewareMayBeSlow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		w.server.Of("/").Use(func(*socketio.Socket) error { time.Sleep(time.Second); return nil })
		var order []string
		w.server.Of("/").Use(func(s *socketio.Socket) error {
			order = append(order, "second")
			if err := s.Emit("early"); !errors.Is(err, socketio.ErrDisconnected) {
				t.Errorf("emit before the join: got %v", err)
			}
			return nil
		})
		w.server.Of("/").OnConnect(func(s *socketio.Socket) {
			s.On("a", func(*socketio.Event) { order = append(order, "event") })
			time.Sleep(time.Second)
			order = append(order, "connect")
		})
		ws := w.join()
		ws.Send(`42["a"]`)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if diff := cmp.Diff([]string{"second", "connect", "event"}, order); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

func TestAckIDs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		w.server.Of("/").OnConnect(func(s *socketio.Socket) {
			s.OnAny(func(e *socketio.Event) {
				if !e.WantsAck() {
					_ = e.Ack("nobody asked")
					return
				}
				_ = e.Ack()
				_ = e.Ack("twice")
			})
		})
		ws := w.join()
		ws.Send(`42123456789012345678["a"]`, `42["a"]`, `420[5]`, `4377[1]`, `42/,00["b"]`)
		ws.Want(`43123456789012345678[]`, `430[]`, `430[]`)
	})
}

func TestPacketsStayContiguous(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{QueuePackets: 10_000})
		sockets := w.sockets("/")
		ws := w.join()
		s := <-sockets
		const writers, each = 8, 50
		for i := range writers {
			go func() {
				for range each {
					if err := s.Emit("x", []byte{byte(i)}, []byte{byte(i), 1}); err != nil {
						t.Error(err)
					}
				}
			}()
		}
		for range writers * each {
			ws.Want(`452-["x",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`)
			first, second := ws.Next(), ws.Next()
			if second != first+"\x01" {
				t.Fatalf("attachments %q and %q are of two packets", first, second)
			}
		}
	})
}

func TestVolatile(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		sockets := w.sockets("/")
		sid := w.Open()
		w.Post(sid, "40")
		s := <-sockets
		w.Poll(sid)
		if sent, err := s.EmitVolatile("now"); sent || err != nil {
			t.Errorf("volatile without a poll: sent %v, %v", sent, err)
		}
		polled := w.PollLater(sid)
		synctest.Wait()
		if sent, err := s.EmitVolatile("now"); !sent || err != nil {
			t.Errorf("volatile with a poll: sent %v, %v", sent, err)
		}
		if a := <-polled; a.Body != `42["now"]` {
			t.Errorf("got %q", a.Body)
		}
	})
}

func TestDisconnects(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		left := make(chan string, 4)
		w.server.Of("/").OnConnect(func(s *socketio.Socket) {
			s.OnDisconnect(func(reason string) { left <- reason })
			s.On("leave", func(*socketio.Event) { s.Disconnect(false) })
			s.On("end", func(*socketio.Event) { s.Disconnect(true) })
		})
		ws := w.join()
		ws.Send(`42["leave"]`)
		ws.Want("41")
		ws.Send(`42["after"]`, "40") // on its way when the server disconnected; then joins again
		if got := ws.Next(); !strings.HasPrefix(got, "40{") {
			t.Errorf("joining again: got %q", got)
		}
		ws.Send("41", "40")
		ws.Next()
		ws.Send(`42["end"]`)
		ws.Want("41")
		if code := ws.WantClose(); code != 1000 {
			t.Errorf("close code %d", code)
		}
		gone := w.join()
		_ = gone.Conn.Close()
		var reasons []string
		for range 4 {
			reasons = append(reasons, <-left)
		}
		slices.Sort(reasons)
		want := []string{
			"client namespace disconnect", "server namespace disconnect", "server namespace disconnect", "transport close",
		}
		if diff := cmp.Diff(want, reasons); diff != "" {
			t.Errorf("reasons (-want +got):\n%s", diff)
		}
	})
}

func TestPanicEndsOnlyItsConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		left := make(chan string, 1)
		w.server.Of("/").OnConnect(func(s *socketio.Socket) {
			s.OnDisconnect(func(reason string) { left <- reason })
			s.On("boom", func(*socketio.Event) { panic("boom") })
			s.On("hello", func(e *socketio.Event) { _ = e.Ack("hi") })
		})
		other := w.dial("/", socketio.DialOptions{})
		ws := w.join()
		ws.Send(`42["boom"]`)
		ws.WantClose()
		if reason := <-left; reason != "forced close" {
			t.Errorf("left with %q", reason)
		}
		if _, err := other.EmitWithAck(t.Context(), "hello"); err != nil {
			t.Errorf("the other connection: %v", err)
		}
	})
}

func TestSlowHandlersThrottle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{MaxPayload: 1 << 20})
		handled := 0
		w.server.Of("/").OnConnect(func(s *socketio.Socket) {
			s.On("a", func(e *socketio.Event) {
				time.Sleep(time.Minute)
				if want := fmt.Sprintf(`["a",%d]`, handled); string(e.Raw) != want {
					t.Errorf("got %s, want %s", e.Raw, want)
				}
				handled++
			})
			s.On("done", func(e *socketio.Event) { _ = e.Ack() })
		})
		c := w.dial("/", socketio.DialOptions{})
		for i := range 200 {
			if err := c.Emit("a", i); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.EmitWithAck(t.Context(), "done"); err != nil || handled != 200 {
			t.Errorf("handled %d of 200, %v", handled, err)
		}
	})
}

func TestAckLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{QueuePackets: 10_000})
		sockets := w.sockets("/")
		ws := w.join()
		s := <-sockets
		p, err := socketio.Prepare("a")
		if err != nil {
			t.Fatal(err)
		}
		failed := map[int]error{}
		for i := range 1030 {
			if err := s.EmitPrepared(p, func(_ []json.RawMessage, err error) { failed[i] = err }); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if len(failed) != 6 || !errors.Is(failed[0], socketio.ErrAckLimit) || !errors.Is(failed[5], socketio.ErrAckLimit) {
			t.Errorf("dropped: %v, want the six oldest", failed)
		}
		ws.Send("436[true]")
		synctest.Wait()
		if err, ok := failed[6]; !ok || err != nil {
			t.Errorf("answer to the oldest left: %v, %v", err, ok)
		}
		ws.Send("41")
		synctest.Wait()
		if len(failed) != 1030 || !errors.Is(failed[1029], socketio.ErrDisconnected) {
			t.Errorf("%d of 1030 heard of the end, the last: %v", len(failed), failed[1029])
		}
	})
}

func TestHandshakeAndValues(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, socketio.Config{})
		sockets := w.sockets("/")
		w.dial("/?userId=u1", socketio.DialOptions{Auth: map[string]int{"a": 1}, Header: map[string][]string{"X-App": {"7"}}})
		s := <-sockets
		h := s.Handshake()
		if string(h.Auth) != `{"a":1}` || h.Query.Get("userId") != "u1" || h.Header.Get("X-App") != "7" || h.RemoteAddr != "client:1" {
			t.Errorf("handshake: got %+v", h)
		}
		s.Set("user", "u1")
		if s.Value("user") != "u1" || s.Value("other") != nil || s.Transport() != "websocket" {
			t.Errorf("value %v, transport %q", s.Value("user"), s.Transport())
		}
	})
}
