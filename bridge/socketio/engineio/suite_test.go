package engineio_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/bridge/socketio/internal/rawtest"
)

// The cases of the official test suite of Engine.IO protocol 4, on fake time.

func wantStatus(t *testing.T, got rawtest.Answer, status int) {
	t.Helper()
	if got.Status != status {
		t.Errorf("got %d %q, want status %d", got.Status, got.Body, status)
	}
}

func wantAnswer(t *testing.T, got rawtest.Answer, body string) {
	t.Helper()
	if got.Status != 200 || got.Body != body {
		t.Errorf("got %d %q, want 200 %q", got.Status, got.Body, body)
	}
}

func wantOpen(t *testing.T, packet string, upgrades []any) {
	t.Helper()
	var got map[string]any
	if !strings.HasPrefix(packet, "0") || json.Unmarshal([]byte(packet[1:]), &got) != nil {
		t.Fatalf("open packet: got %q", packet)
	}
	if sid, _ := got["sid"].(string); len(sid) < 20 {
		t.Errorf("sid: got %q, want something unguessable", sid)
	}
	delete(got, "sid")
	want := map[string]any{"upgrades": upgrades, "pingInterval": 300.0, "pingTimeout": 200.0, "maxPayload": 1e6}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("open packet (-want +got):\n%s", diff)
	}
}

func TestSuiteHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := start(t, suiteConfig())
		wantOpen(t, w.Do("GET", "EIO=4&transport=polling", "", nil).Body, []any{"websocket"})
		wantOpen(t, w.WebSocket("EIO=4&transport=websocket").Next(), []any{})
		for _, query := range []string{"transport=polling", "EIO=abc&transport=polling", "EIO=4", "EIO=4&transport=abc"} {
			wantStatus(t, w.Do("GET", query, "", nil), 400)
		}
		for _, method := range []string{"POST", "PUT"} {
			wantStatus(t, w.Do(method, "EIO=4&transport=polling", "", nil), 400)
		}
		for _, query := range []string{"transport=websocket", "EIO=abc&transport=websocket", "EIO=4", "EIO=4&transport=abc"} {
			ws, refused := w.Upgrade(query, nil)
			if ws != nil {
				t.Errorf("websocket with %q was accepted", query)
			}
			wantStatus(t, refused, 400)
		}
	})
}

func TestSuitePollingMessages(t *testing.T) {
	for _, payload := range []string{"4hello", "4test1\x1e4test2\x1e4test3", "4hello\x1ebAQIDBA=="} {
		synctest.Test(t, func(t *testing.T) {
			w, _, _ := start(t, suiteConfig())
			sid := w.Open()
			wantAnswer(t, w.Post(sid, payload), "ok")
			wantAnswer(t, w.Poll(sid), payload)
		})
	}
}

func TestSuitePollingBreaches(t *testing.T) {
	t.Run("invalid packet", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, _ := start(t, suiteConfig())
			sid := w.Open()
			wantStatus(t, w.Post(sid, "abc"), 400)
			wantStatus(t, w.Poll(sid), 400)
		})
	})
	t.Run("duplicate poll", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, _ := start(t, suiteConfig())
			sid := w.Open()
			first := w.PollLater(sid)
			synctest.Wait()
			wantStatus(t, w.Poll(sid), 400)
			wantAnswer(t, <-first, "1")
			wantStatus(t, w.Poll(sid), 400)
		})
	})
	t.Run("cancelled poll", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, peers := start(t, suiteConfig())
			sid := w.Open()
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(5*time.Millisecond, cancel)
			if _, err := w.Try(ctx, "GET", "EIO=4&transport=polling&sid="+sid, "", nil); err == nil {
				t.Fatal("the cancelled poll was answered")
			}
			if reason := <-(<-peers).closed; reason != "transport close" {
				t.Errorf("session closed with %q", reason)
			}
			wantStatus(t, w.Poll(sid), 400)
		})
	})
}

func TestSuiteWebSocketMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := start(t, suiteConfig())
		ws := w.OpenWebSocket()
		ws.Send("4hello")
		ws.Want("4hello")
		ws.SendBinary("\x01\x02\x03\x04")
		ws.Want("binary:\x01\x02\x03\x04")
		ws.Send("abc")
		ws.WantClose()
	})
}

func TestSuiteHeartbeat(t *testing.T) {
	t.Run("polling", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, peers := start(t, suiteConfig())
			sid := w.Open()
			for range 3 {
				wantAnswer(t, w.Poll(sid), "2")
				wantAnswer(t, w.Post(sid, "3"), "ok")
			}
			time.Sleep(500 * time.Millisecond)
			wantStatus(t, w.Poll(sid), 400)
			if reason := <-(<-peers).closed; reason != "ping timeout" {
				t.Errorf("session closed with %q", reason)
			}
		})
	})
	t.Run("websocket", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, peers := start(t, suiteConfig())
			began := time.Now()
			ws := w.OpenWebSocket()
			for range 3 {
				ws.Want("2")
				ws.Send("3")
			}
			ws.WantClose()
			if d := time.Since(began); d != 4*300*time.Millisecond+200*time.Millisecond {
				t.Errorf("closed after %v", d)
			}
			if reason := <-(<-peers).closed; reason != "ping timeout" {
				t.Errorf("session closed with %q", reason)
			}
		})
	})
}

func TestSuiteClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, suiteConfig())
		sid := w.Open()
		polled := w.PollLater(sid)
		wantAnswer(t, w.Post(sid, "1"), "ok")
		wantAnswer(t, <-polled, "6")
		wantStatus(t, w.Poll(sid), 400)
		if reason := <-(<-peers).closed; reason != "transport close" {
			t.Errorf("session closed with %q", reason)
		}
		ws := w.OpenWebSocket()
		ws.Send("1")
		ws.WantClose()
	})
}

func TestSuiteUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := start(t, suiteConfig())
		sid := w.Open()
		ws := w.WebSocket("EIO=4&transport=websocket&sid=" + sid)
		ws.Send("2probe")
		ws.Want("3probe")
		wantAnswer(t, w.Poll(sid), "6")
		ws.Send("5", "4hello")
		ws.Want("4hello")

		wantStatus(t, w.Poll(sid), 400)
		wantStatus(t, w.Post(sid, "4x"), 400)
		second := w.WebSocket("EIO=4&transport=websocket&sid=" + sid)
		second.WantClose()
		ws.Send("4still")
		ws.Want("4still")
	})
}
