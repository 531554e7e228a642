package engineio_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/bridge/socketio/engineio"
)

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := suiteConfig()
		cfg.Origins = []string{"https://good.example"}
		w, _, _ := start(t, cfg)
		sid := w.Open()
		evil := http.Header{"Origin": {"https://evil.example"}}
		for _, c := range []struct {
			name, method, query string
			header              http.Header
			status, code        int
			message             string
		}{
			{"transport before all else", "POST", "EIO=3&transport=x&sid=nope", evil, 400, 0, "Transport unknown"},
			{"no transport", "GET", "EIO=4", nil, 400, 0, "Transport unknown"},
			{"unknown sid before method", "PUT", "EIO=4&transport=polling&sid=nope", evil, 400, 1, "Session ID unknown"},
			{"method before origin", "POST", "EIO=3&transport=polling", evil, 400, 2, "Bad handshake method"},
			{"other transport than the session's", "GET", "EIO=4&transport=websocket&sid=" + sid, evil, 400, 3, "Bad request"},
			{"websocket without upgrade", "GET", "EIO=4&transport=websocket", nil, 400, 3, "Bad request"},
			{"origin before version", "GET", "EIO=3&transport=polling", evil, 403, 4, "Forbidden"},
			{"old client", "GET", "EIO=3&transport=polling", nil, 400, 5, "Unsupported protocol version"},
			{"no version", "GET", "transport=polling", nil, 400, 5, "Unsupported protocol version"},
		} {
			a := w.Do(c.method, c.query, "", c.header)
			want, err := json.Marshal(map[string]any{"code": c.code, "message": c.message})
			if err != nil {
				t.Fatal(err)
			}
			if a.Status != c.status || a.Body != string(want) {
				t.Errorf("%s: got %d %s, want %d %s", c.name, a.Status, a.Body, c.status, want)
			}
		}
		if a := w.Do("PUT", "EIO=4&transport=polling&sid="+sid, "", nil); a.Status != 500 {
			t.Errorf("PUT on a session: got %d, want 500", a.Status)
		}
		if _, refused := w.Upgrade("EIO=4&transport=websocket", evil); refused.Status != 403 {
			t.Errorf("websocket from a foreign page: got %d, want 403", refused.Status)
		}
	})
}

func TestOrigins(t *testing.T) {
	for _, c := range []struct {
		origins []string
		origin  string
		want    bool
	}{
		{nil, "", true},
		{nil, "http://server", true},
		{nil, "http://server:80", true},
		{nil, "https://server", true}, // TLS may end at a proxy
		{nil, "http://other", false},
		{nil, "null", false},
		{[]string{"https://app.example"}, "https://app.example", true},
		{[]string{"https://app.example"}, "http://app.example", false},
		{[]string{"https://app.example"}, "https://app.example.evil", false},
		{[]string{"*"}, "http://anything", true},
	} {
		synctest.Test(t, func(t *testing.T) {
			cfg := suiteConfig()
			cfg.Origins = c.origins
			w, _, _ := start(t, cfg)
			header := http.Header{}
			if c.origin != "" {
				header.Set("Origin", c.origin)
			}
			ws, _ := w.Upgrade("EIO=4&transport=websocket", header)
			polled := w.Do("GET", "EIO=4&transport=polling", "", header).Status == 200
			if (ws != nil) != c.want || polled != c.want {
				t.Errorf("origin %q with %v: got websocket %v, polling %v, want %v", c.origin, c.origins, ws != nil, polled, c.want)
			}
		})
	}
}

func TestCORS(t *testing.T) {
	allow := func(h http.Header) map[string]string {
		got := map[string]string{}
		for name := range h {
			if strings.HasPrefix(name, "Access-Control-") {
				got[name] = h.Get(name)
			}
		}
		return got
	}
	synctest.Test(t, func(t *testing.T) {
		cfg := suiteConfig()
		cfg.CORS, cfg.Origins = true, []string{"https://app.example"}
		w, _, _ := start(t, cfg)
		from := http.Header{"Origin": {"https://app.example"}, "Access-Control-Request-Headers": {"x-a"}}
		simple := map[string]string{
			"Access-Control-Allow-Origin": "https://app.example", "Access-Control-Allow-Credentials": "true",
		}
		for query, status := range map[string]int{"EIO=4&transport=polling": 200, "EIO=4&transport=x": 400} {
			a := w.Do("GET", query, "", from)
			if diff := cmp.Diff(simple, allow(a.Header)); a.Status != status || diff != "" {
				t.Errorf("GET %s: status %d, headers (-want +got):\n%s", query, a.Status, diff)
			}
		}
		a := w.Do("OPTIONS", "EIO=4&transport=polling", "", from)
		if a.Status != 204 || a.Header.Get("Access-Control-Allow-Headers") != "x-a" ||
			!strings.Contains(a.Header.Get("Access-Control-Allow-Methods"), "POST") {
			t.Errorf("OPTIONS: got %d %v", a.Status, a.Header)
		}
		a = w.Do("GET", "EIO=4&transport=polling", "", http.Header{"Origin": {"https://evil.example"}})
		if got := allow(a.Header); len(got) > 0 {
			t.Errorf("foreign page: got %v, want no permission", got)
		}
	})
	synctest.Test(t, func(t *testing.T) { // anybody, and therefore without credentials
		cfg := suiteConfig()
		cfg.CORS, cfg.Origins = true, []string{"*"}
		w, _, _ := start(t, cfg)
		for query, status := range map[string]int{"EIO=4&transport=polling": 200, "EIO=4&transport=polling&sid=x": 400} {
			a := w.Do("GET", query, "", http.Header{"Origin": {"https://any.example"}})
			if diff := cmp.Diff(map[string]string{"Access-Control-Allow-Origin": "*"}, allow(a.Header)); a.Status != status || diff != "" {
				t.Errorf("GET %s: status %d, headers (-want +got):\n%s", query, a.Status, diff)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := start(t, suiteConfig())
		from := http.Header{"Origin": {"http://server"}}
		if got := allow(w.Do("GET", "EIO=4&transport=polling", "", from).Header); len(got) > 0 {
			t.Errorf("CORS is off: got %v", got)
		}
		if a := w.Do("OPTIONS", "EIO=4&transport=polling", "", from); a.Status != 400 {
			t.Errorf("OPTIONS without CORS: got %d, want 400", a.Status)
		}
	})
}

func TestPayloadLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := suiteConfig()
		cfg.MaxPayload = 100_000
		w, _, _ := start(t, cfg)
		exact, over := "4"+strings.Repeat("é", 49_999)+"x", "4"+strings.Repeat("é", 50_000)
		sid := w.Open()
		wantStatus(t, w.Post(sid, over), 413)
		wantStatus(t, w.Do("POST", "EIO=4&transport=polling&sid="+sid, over, http.Header{"Transfer-Encoding": {"chunked"}}), 413)
		wantAnswer(t, w.Post(sid, exact), "ok")
		wantAnswer(t, w.Poll(sid), exact)

		ws := w.OpenWebSocket()
		ws.Send(exact)
		ws.Want(exact)
		ws.Send(over)
		if code := ws.WantClose(); code != 1009 {
			t.Errorf("message over the limit: closed with %d, want 1009", code)
		}
	})
}

func TestPollingHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := start(t, suiteConfig())
		a := w.Do("GET", "EIO=4&transport=polling&j=0", "", nil)
		if got := a.Header.Get("Content-Type"); got != "text/plain; charset=UTF-8" {
			t.Errorf("content type: got %q", got)
		}
		if got := a.Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("cache control: got %q", got)
		}
		if !strings.HasPrefix(a.Body, "0{") {
			t.Errorf("j=0 is not ignored: got %q", a.Body)
		}
	})
}

func TestBinaryPostClosesSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := start(t, suiteConfig())
		sid := w.Open()
		binary := http.Header{"Content-Type": {"application/octet-stream"}}
		wantStatus(t, w.Do("POST", "EIO=4&transport=polling&sid="+sid, "4x", binary), 400)
		wantStatus(t, w.Poll(sid), 400)
	})
}

func TestBadPayloads(t *testing.T) {
	for _, payload := range []string{"4a\x1e", "\x1e4a", "4a\x1e\x1e4b", "b!", "bAQI", "7", "2", "0{}", "\x1e"} {
		synctest.Test(t, func(t *testing.T) {
			w, _, peers := start(t, suiteConfig())
			sid := w.Open()
			wantStatus(t, w.Post(sid, payload), 400)
			if reason := <-(<-peers).closed; reason != engineio.ReasonParseError {
				t.Errorf("payload %q: closed with %q", payload, reason)
			}
		})
	}
}

func TestPollTakesSixteenPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, peers := start(t, suiteConfig())
		sid := w.Open()
		sess := (<-peers).session
		for range 20 {
			if err := sess.Send(engineio.Text([]byte("x"))); err != nil {
				t.Fatal(err)
			}
		}
		wantAnswer(t, w.Poll(sid), strings.Repeat("4x\x1e", 15)+"4x")
		wantAnswer(t, w.Poll(sid), "4x\x1e4x\x1e4x\x1e4x")
	})
}

func TestBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := suiteConfig()
		cfg.QueuePackets, cfg.QueueBytes = 4, 1000
		w, _, peers := start(t, cfg)
		sid := w.Open()
		sess := (<-peers).session
		big := make([]byte, 2000)
		if err := sess.Send(engineio.Text(big)); err != nil {
			t.Fatalf("a large message into an empty queue: %v", err)
		}
		if err := sess.Send(engineio.Text([]byte("x"))); err != engineio.ErrBacklog {
			t.Fatalf("over the bytes: got %v, want ErrBacklog", err)
		}
		w.Poll(sid)
		for range 4 {
			if err := sess.Send(engineio.Text([]byte("x"))); err != nil {
				t.Fatal(err)
			}
		}
		if err := sess.Send(engineio.Text([]byte("x"))); err != engineio.ErrBacklog {
			t.Fatalf("over the packets: got %v, want ErrBacklog", err)
		}
		wantAnswer(t, w.Poll(sid), "4x\x1e4x\x1e4x\x1e4x")
		sess.Abort()
		if err := sess.Send(engineio.Text([]byte("x"))); err != engineio.ErrClosed {
			t.Fatalf("after the end: got %v, want ErrClosed", err)
		}
	})
}

func TestSessionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := suiteConfig()
		cfg.MaxSessions = 2
		w, s, _ := start(t, cfg)
		w.Open()
		w.Open()
		wantStatus(t, w.Do("GET", "EIO=4&transport=polling", "", nil), 503)
		if code := w.WebSocket("EIO=4&transport=websocket").WantClose(); code != 1001 {
			t.Errorf("websocket over the limit: closed with %d, want 1001", code)
		}
		time.Sleep(time.Second)
		if s.Len() != 0 {
			t.Errorf("silent sessions: got %d, want 0", s.Len())
		}
		w.Open()
	})
}
