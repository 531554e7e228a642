package engineio_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"pairsync/bridge/socketio/engineio"
	"pairsync/bridge/socketio/internal/rawtest"
)

// slowConn moves bytesPerTick every tenth of a second in either direction.
type slowConn struct {
	net.Conn
	bytesPerTick int
}

func (c slowConn) Read(p []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return c.Conn.Read(p[:min(len(p), c.bytesPerTick)])
}

func (c slowConn) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		time.Sleep(100 * time.Millisecond)
		var k int
		k, err = c.Conn.Write(p[n:min(len(p), n+c.bytesPerTick)])
		n += k
	}
	return n, err
}

// slowWebSocket opens a session over a link of 20 KB/s.
func slowWebSocket(t *testing.T, w *rawtest.World) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{
		WriteBufferSize: 4 << 20, // one frame per message
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := w.Dial(ctx, network, addr)
			return slowConn{c, 2 << 10}, err
		},
	}
	c, _, err := d.DialContext(t.Context(), "ws://server/engine.io/?EIO=4&transport=websocket", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, open, err := c.ReadMessage(); err != nil || !strings.HasPrefix(string(open), "0{") {
		t.Fatalf("open packet: got %q, %v", open, err)
	}
	return c
}

// answerPings reads messages until one is not a ping.
func answerPings(t *testing.T, c *websocket.Conn) string {
	t.Helper()
	for {
		_, text, err := c.ReadMessage()
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		if string(text) != "2" {
			return string(text)
		}
		if err := c.WriteMessage(websocket.TextMessage, []byte("3")); err != nil {
			t.Fatalf("pong: %v", err)
		}
	}
}

func TestPhotoOnSlowLinkOutlivesPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, engineio.Config{MaxPayload: 4 << 20})
		c := slowWebSocket(t, w)
		sess := (<-peers).session
		photo := strings.Repeat("x", 2_700_000) // 132 s down, then 132 s up
		began := time.Now()
		if err := sess.Send(engineio.Text([]byte(photo))); err != nil {
			t.Fatal(err)
		}
		if got := answerPings(t, c); got != "4"+photo {
			t.Fatalf("got %d bytes, want the photo", len(got))
		}
		if d := time.Since(began); d < 2*time.Minute {
			t.Fatalf("the link was too fast for this test: %v", d)
		}
		if err := c.WriteMessage(websocket.TextMessage, []byte("4"+photo)); err != nil {
			t.Fatal(err)
		}
		if got := answerPings(t, c); got != "4"+photo {
			t.Fatalf("got %d bytes back, want the photo", len(got))
		}
	})
}

func TestClientThatStopsReadingIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, engineio.Config{})
		w.OpenWebSocket()
		p := <-peers
		began := time.Now()
		if err := p.session.Send(engineio.Text(make([]byte, 2<<20))); err != nil {
			t.Fatal(err)
		}
		if reason := <-p.closed; reason != engineio.ReasonPingTimeout {
			t.Errorf("closed with %q", reason)
		}
		if d := time.Since(began); d > 45*time.Second {
			t.Errorf("dropped after %v, want the ping's timeout", d)
		}
	})
}

func TestSmallTalkDoesNotKeepTheDeadAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, engineio.Config{})
		w.OpenWebSocket()
		p := <-peers
		began := time.Now()
		for p.session.Send(engineio.Text([]byte("are you there?"))) == nil {
			time.Sleep(time.Second)
		}
		if d := time.Since(began); d > 46*time.Second {
			t.Errorf("dropped after %v, want 45s", d)
		}
	})
}

func TestReaderWithoutPongIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, engineio.Config{})
		c := slowWebSocket(t, w)
		p := <-peers
		gone := make(chan struct{})
		go func() { // takes everything and says nothing
			defer close(gone)
			for {
				if _, _, err := c.ReadMessage(); err != nil {
					return
				}
			}
		}()
		began := time.Now()
		err := p.session.Send(engineio.Text(make([]byte, 1_000_000))) // the first ping waits behind it, 49 s
		for err == nil {
			time.Sleep(5 * time.Second)
			if err = p.session.Send(engineio.Text(make([]byte, 50_000))); time.Since(began) > 10*time.Minute {
				t.Fatal("kept alive by what its host takes")
			}
		}
		if d := time.Since(began); d < time.Minute || d > 3*time.Minute {
			t.Errorf("dropped after %v", d)
		}
		<-gone
	})
}

func TestTrickleDoesNotKeepASessionAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, engineio.Config{MaxPayload: 4 << 20})
		ws := w.OpenWebSocket()
		p := <-peers
		conn := ws.Conn.NetConn()
		// A frame of 1 MiB, a byte a second.
		if _, err := conn.Write([]byte{0x81, 0x80 | 127, 0, 0, 0, 0, 0, 0x10, 0, 0, 1, 2, 3, 4}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for {
			if _, err := conn.Write([]byte{'x'}); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		<-p.closed
		if d := time.Since(began); d > time.Minute {
			t.Errorf("dropped after %v", d)
		}
	})
}

func TestConfirmOverPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, engineio.Config{})
		sid := w.Open()
		sess := (<-peers).session
		if err := sess.Send(engineio.Text([]byte("one"))); err != nil {
			t.Fatal(err)
		}
		var log []string
		sess.Confirm(func(ok bool) { log = append(log, "first") })
		sess.Confirm(func(ok bool) { log = append(log, "second") })
		wantAnswer(t, w.Poll(sid), "4one\x1e2") // one ping for both at most
		if len(log) > 0 {
			t.Errorf("confirmed %v before the pong", log)
		}
		wantAnswer(t, w.Post(sid, "3"), "ok")
		// The second came while a ping was outstanding: it needs its own.
		if strings.Join(log, " ") != "first" {
			t.Errorf("confirmed %v by the first pong", log)
		}
		wantAnswer(t, w.Poll(sid), "2")
		wantAnswer(t, w.Post(sid, "3"), "ok")
		if strings.Join(log, " ") != "first second" {
			t.Errorf("confirmed %v by the second pong", log)
		}
		wantAnswer(t, w.Post(sid, "3"), "ok") // nobody asked for this one

		ended := make(chan bool, 1)
		sess.Confirm(func(ok bool) { ended <- ok })
		sess.Abort()
		if <-ended {
			t.Error("confirmed by the end")
		}
	})
}

func TestConfirmsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, calm())
		w.Open()
		sess := (<-peers).session
		refused := 0
		for range 1030 {
			sess.Confirm(func(ok bool) {
				if !ok {
					refused++
				}
			})
		}
		if refused != 6 {
			t.Errorf("%d of 1030 functions were refused, want 6", refused)
		}
		sess.Abort()
		if refused != 1030 {
			t.Errorf("%d of 1030 functions heard of the end", refused)
		}
	})
}
