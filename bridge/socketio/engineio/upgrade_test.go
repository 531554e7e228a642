package engineio_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/bridge/socketio/engineio"
)

// calm has the default timings, so that no ping comes in between.
func calm() engineio.Config { return engineio.Config{} }

func TestMessagesDuringUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, calm())
		sid := w.Open()
		sess := (<-peers).session
		polled := w.PollLater(sid)
		ws := w.WebSocket("EIO=4&transport=websocket&sid=" + sid)
		ws.Send("2probe")
		ws.Want("3probe")
		wantAnswer(t, <-polled, "6")
		if err := sess.Send(engineio.Text([]byte("one"))); err != nil {
			t.Fatal(err)
		}
		wantAnswer(t, w.Poll(sid), "4one")
		if err := sess.Send(engineio.Text([]byte("two"))); err != nil {
			t.Fatal(err)
		}
		wantAnswer(t, w.Post(sid, "4three"), "ok")
		ws.Send("5")
		ws.Want("4two", "4three")
		if got := sess.Transport(); got != "websocket" {
			t.Errorf("transport: got %q", got)
		}
	})
}

func TestAbandonedUpgradeLeavesPolling(t *testing.T) {
	for name, abandon := range map[string]func(send func(...string), close func()){
		"closed before the probe": func(_ func(...string), close func()) { close() },
		"closed after the probe":  func(send func(...string), close func()) { send("2probe"); close() },
		"wrong probe":             func(send func(...string), _ func()) { send("2prob") },
		"other packet than 5":     func(send func(...string), _ func()) { send("2probe", "4x") },
		"silence":                 func(func(...string), func()) { time.Sleep(11 * time.Second) },
		"silence after the probe": func(send func(...string), _ func()) { send("2probe"); time.Sleep(11 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _, _ := start(t, calm())
				sid := w.Open()
				ws := w.WebSocket("EIO=4&transport=websocket&sid=" + sid)
				abandon(ws.Send, func() { _ = ws.Conn.Close() })
				synctest.Wait()
				wantAnswer(t, w.Post(sid, "4hello"), "ok")
				wantAnswer(t, w.Poll(sid), "4hello")

				again := w.WebSocket("EIO=4&transport=websocket&sid=" + sid)
				again.Send("2probe")
				again.Want("3probe")
				again.Send("5", "4up")
				again.Want("4up")
			})
		})
	}
}

func TestSecondUpgradeIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := start(t, calm())
		sid := w.Open()
		first := w.WebSocket("EIO=4&transport=websocket&sid=" + sid)
		first.Send("2probe")
		first.Want("3probe")
		w.WebSocket("EIO=4&transport=websocket&sid=" + sid).WantClose()
		first.Send("5", "4x")
		first.Want("4x")
	})
}

// A client that polls again before it switches, as the official suite does,
// gets what it would have got a moment later.
func TestPollThatMeetsTheSwitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := start(t, calm())
		sid := w.Open()
		ws := w.WebSocket("EIO=4&transport=websocket&sid=" + sid)
		polled := w.PollLater(sid)
		synctest.Wait()
		ws.Send("2probe", "5")
		wantStatus(t, <-polled, 400)
		ws.Want("3probe")
		ws.Send("4hello")
		ws.Want("4hello")
	})
}

func TestRefusedUpgradeLeavesPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := start(t, calm())
		sid := w.Open()
		query := "EIO=4&transport=websocket&sid=" + sid
		wantStatus(t, w.Do("GET", query, "", http.Header{
			"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, // and no key
		}), 400)
		wantAnswer(t, w.Post(sid, "4hello"), "ok")
		wantAnswer(t, w.Poll(sid), "4hello")
		ws := w.WebSocket(query)
		ws.Send("2probe")
		ws.Want("3probe")
	})
}

func TestSessionEndsDuringUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, _ := start(t, calm())
		sid := w.Open()
		ws := w.WebSocket("EIO=4&transport=websocket&sid=" + sid)
		ws.Send("2probe")
		ws.Want("3probe")
		began := time.Now()
		wantAnswer(t, w.Post(sid, "1"), "ok")
		if ws.WantClose(); time.Since(began) > time.Second {
			t.Errorf("the WebSocket was closed after %v", time.Since(began))
		}
		wantStatus(t, w.Poll(sid), 400)
		if s.Len() != 0 {
			t.Error("the session outlived its end")
		}
	})
}

func TestHeartbeatSurvivesUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, _ := start(t, suiteConfig())
		sid := w.Open()
		time.Sleep(350 * time.Millisecond) // the ping waits for a poll
		ws := w.WebSocket("EIO=4&transport=websocket&sid=" + sid)
		ws.Send("2probe")
		ws.Want("3probe")
		ws.Send("5")
		ws.Want("2")
		ws.Send("3")
		ws.Want("2")
		ws.WantClose()
		if s.Len() != 0 {
			t.Error("the session outlived its missing pong")
		}
	})
}
