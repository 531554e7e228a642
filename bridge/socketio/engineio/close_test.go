package engineio_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/bridge/socketio/engineio"
	"pairsync/bridge/socketio/internal/rawtest"
)

// gate is a receiver that takes a message only when told to.
type gate struct {
	open   chan struct{}
	closed chan string
}

func (g gate) Message(bool, engineio.Buffer) error { <-g.open; return nil }
func (g gate) Closed(reason string)                { g.closed <- reason }

func startGated(t *testing.T) (*rawtest.World, *engineio.Server, gate) {
	t.Helper()
	g := gate{make(chan struct{}), make(chan string, 1)}
	s, err := engineio.NewServer(engineio.Config{}, func(*engineio.Session) engineio.Receiver { return g },
		slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return rawtest.Start(t, s, "/engine.io/"), s, g
}

func TestReceiverThatBlocksThrottlesClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, g := startGated(t)
		ws := w.OpenWebSocket()
		ws.Send("4one", "4two")
		time.Sleep(10 * time.Minute) // pongs cannot be read meanwhile
		select {
		case reason := <-g.closed:
			t.Fatalf("closed with %q while the receiver was busy", reason)
		default:
		}
		for range 31 { // it is pinged all the same, or it would leave
			ws.Want("2")
			ws.Send("3")
		}
		close(g.open)
		ws.Want("2")
		ws.WantClose()
		if reason := <-g.closed; reason != engineio.ReasonPingTimeout {
			t.Errorf("closed with %q, want the ping's timeout again", reason)
		}
	})
}

func TestDoublePostClosesSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, g := startGated(t)
		sid := w.Open()
		first := make(chan rawtest.Answer, 1)
		go func() { first <- w.Post(sid, "4one") }()
		synctest.Wait()
		wantStatus(t, w.Post(sid, "4two"), 400)
		if reason := <-g.closed; reason != engineio.ReasonTransportError {
			t.Errorf("closed with %q", reason)
		}
		close(g.open)
		<-first
		wantStatus(t, w.Poll(sid), 400)
	})
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, peers := start(t, calm())
		sid := w.Open()
		polled := w.PollLater(sid)
		pollPeer := <-peers
		unread := w.Open()
		unreadPeer := <-peers
		ws := w.OpenWebSocket()
		wsPeer := <-peers
		synctest.Wait()
		last := strings.Repeat("x", 400_000)
		for _, p := range []*peer{wsPeer, unreadPeer} {
			if err := p.session.Send(engineio.Text([]byte(last))); err != nil {
				t.Fatal(err)
			}
		}
		closed := make(chan error, 1)
		go func() { closed <- s.Close(t.Context()) }()
		synctest.Wait()
		wantStatus(t, w.Do("GET", "EIO=4&transport=polling", "", nil), 503)
		wantAnswer(t, <-polled, "6") // no close packet: python clients would stay away
		wantAnswer(t, w.Poll(unread), "4"+last)
		ws.Want("4" + last)
		if code := ws.WantClose(); code != 1001 {
			t.Errorf("close code: got %d, want 1001", code)
		}
		if err := <-closed; err != nil {
			t.Errorf("close: %v", err)
		}
		for _, p := range []*peer{pollPeer, wsPeer, unreadPeer} {
			if reason := <-p.closed; reason != engineio.ReasonShutdown {
				t.Errorf("closed with %q", reason)
			}
		}
		if s.Len() != 0 {
			t.Errorf("%d sessions are left", s.Len())
		}
	})
}

func TestShutdownDoesNotWaitForTheGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, _ := start(t, calm())
		w.Open()                     // and never polls
		time.Sleep(30 * time.Second) // a ping waits
		began := time.Now()
		if err := s.Close(t.Context()); err != nil || time.Since(began) > 0 {
			t.Errorf("close: %v after %v, want nothing to wait for", err, time.Since(began))
		}
	})
}

func TestShutdownDoesNotWaitForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, g := startGated(t)
		ws := w.OpenWebSocket()
		ws.Send("4x")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close with a stuck receiver: got %v, want the deadline", err)
		}
		if d := time.Since(began); d > 4*time.Second {
			t.Errorf("closed after %v", d)
		}
		close(g.open)
		ws.WantClose()
	})
}

func TestCloseFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, calm())
		ws := w.OpenWebSocket()
		sess := (<-peers).session
		last := strings.Repeat("x", 1_000_000)
		for range 3 {
			if err := sess.Send(engineio.Text([]byte(last))); err != nil {
				t.Fatal(err)
			}
		}
		sess.Close()
		ws.Want("4"+last, "4"+last, "4"+last)
		if code := ws.WantClose(); code != 1000 {
			t.Errorf("close code: got %d, want 1000", code)
		}

		sid := w.Open()
		sess = (<-peers).session
		if err := sess.Send(engineio.Text([]byte("bye"))); err != nil {
			t.Fatal(err)
		}
		sess.Close()
		wantAnswer(t, w.Poll(sid), "4bye")
		wantAnswer(t, w.Poll(sid), "1")
		wantStatus(t, w.Poll(sid), 400)
	})
}

func TestCloseOfASilentPollerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, peers := start(t, calm())
		w.Open()
		(<-peers).session.Close()
		time.Sleep(21 * time.Second)
		if s.Len() != 0 {
			t.Error("the session waits for a poll that never comes")
		}
	})
}

func TestNewServerRefusesNonsense(t *testing.T) {
	open := func(*engineio.Session) engineio.Receiver { return nil }
	log := slog.New(slog.DiscardHandler)
	for name, cfg := range map[string]engineio.Config{
		"negative interval": {PingInterval: -time.Second},
		"tiny timeout":      {PingTimeout: time.Microsecond},
		"negative payload":  {MaxPayload: -1},
		"negative queue":    {QueueBytes: -1},
	} {
		if _, err := engineio.NewServer(cfg, open, log); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, err := engineio.NewServer(engineio.Config{}, nil, log); err == nil {
		t.Error("a server without receivers was accepted")
	}
}
