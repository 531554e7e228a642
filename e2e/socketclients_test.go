package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pairsync/bridge/socketio/engineio"
)

// transports are the ways to connect, by name.
var transports = map[string][]string{"websocket": websocketOnly, "upgrade": upgrading, "polling": pollingOnly}

// TestSocketIOClients holds the server against the clients that people use,
// over each transport.
func TestSocketIOClients(t *testing.T) {
	for _, kind := range []struct {
		name   string
		driver func(t *testing.T) *node
		// ordered clients handle messages in the order they came. Python's with
		// threads has one for every message, so that attachments may overtake
		// what announces them.
		ordered bool
	}{
		{"socket.io-client", func(t *testing.T) *node { return newNode(t, "sockets.mjs") }, true},
		{"python asyncio", func(t *testing.T) *node { return newPython(t, "asyncio") }, true},
		{"python threads", func(t *testing.T) *node { return newPython(t, "threads") }, false},
	} {
		t.Run(kind.name, func(t *testing.T) {
			driver := kind.driver(t)
			for name, transports := range transports {
				t.Run(name, func(t *testing.T) {
					good := map[string]any{"auth": map[string]any{"token": "good"}}
					c := open(t, driver, newHall(t, often).url, transports, good)
					checkTransport(t, c, name)
					checkEvents(t, c)
					checkBinary(t, c, kind.ordered)
					c.emit(t, "leave")
					c.await(t, "disconnect", 1)
					c.do(t, "close")

					// Seldom pings: python's clients stay away for good when
					// they learn from the answer to a pong that they are out.
					h := newHall(t, engineio.DefaultPingInterval)
					c = open(t, driver, h.url, transports, good)
					checkReturn(t, h, c, name)
					c.do(t, "close")
					c = open(t, driver, h.url, transports, map[string]any{"auth": map[string]any{"token": "bad"}})
					checkRefusal(t, c)
					c.do(t, "close")
				})
			}
		})
	}
}

func newPython(t *testing.T, kind string) *node {
	t.Helper()
	return newDriver(t, "python3-socketio, "+kind, python(), "python/sockets.py", kind)
}

// checkTransport waits until the client is where it should be.
func checkTransport(t *testing.T, c *client, name string) {
	t.Helper()
	if c.await(t, "connect", 1); name == "upgrade" {
		name = "websocket"
	}
	eventually(t, "the transport "+name, func() bool { return cmp.Equal([]any{name}, c.ask(t, "transport")) })
}

// checkEvents sends events and questions both ways.
func checkEvents(t *testing.T, c *client) {
	t.Helper()
	big := strings.Repeat("photo ☃ ", 200_000) // 2 MB in UTF-8
	for _, args := range [][]any{
		{"hello"},
		{1.5, "two ☃ \x1e \" \\ \u2028", map[string]any{"three": []any{true, nil, map[string]any{}}}, []any{}},
		{big},
	} {
		if diff := cmp.Diff(args, c.ask(t, "message", args...)); diff != "" {
			t.Errorf("answer (-want +got):\n%s", clip(diff))
		}
	}
	c.emit(t, "message", big, 7.0)
	back := c.await(t, "message-back", 1)[0]
	if len(back.Args) != 2 || decodedJSON(t, back.Args[0]) != big || string(back.Args[1]) != "7" {
		t.Errorf("message-back differs: %s", clip(back.String()))
	}
	want := []any{"why?", map[string]any{"n": 1.0}}
	if diff := cmp.Diff(want, c.ask(t, "ask", want...)); diff != "" {
		t.Errorf("answer to the server's question (-want +got):\n%s", diff)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	silent := c.event("silent", nil)
	silent["timeout"] = 50
	_, err := c.driver.do(ctx, silent)
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), "time") {
		t.Errorf("an event that nobody answers: got %v, want the client's timeout", err)
	}
}

// checkBinary sends attachments both ways, 2 MB too.
func checkBinary(t *testing.T, c *client, ordered bool) {
	t.Helper()
	small, big := []byte{0, 1, 2, 0xff}, newPhoto(2_000_000)
	want := []any{[]any{sum(small), sum(big)}}
	if diff := cmp.Diff(want, c.ask(t, "measure", attachment(small), "between", attachment(big))); diff != "" {
		t.Errorf("sums of the attachments (-want +got):\n%s", diff)
	}
	if !ordered {
		return
	}
	args := []any{attachment(big), "between", attachment(small)}
	if diff := cmp.Diff(args, c.ask(t, "message", args...)); diff != "" {
		t.Errorf("answer with attachments (-want +got):\n%s", clip(diff))
	}
	c.emit(t, "message", args...)
	back := c.await(t, "message-back", 2)[1]
	got := make([]any, len(back.Args))
	for i := range back.Args {
		got[i] = decodedJSON(t, back.Args[i])
	}
	if diff := cmp.Diff(args, got); diff != "" {
		t.Errorf("event with attachments (-want +got):\n%s", clip(diff))
	}
	// The server's own function gets a binary answer as base64.
	if diff := cmp.Diff([]any{args[2].(map[string]any)["binary"]}, c.ask(t, "ask", args[2])); diff != "" {
		t.Errorf("binary answer to the server's question (-want +got):\n%s", diff)
	}
}

// checkReturn loses the connection, then the server: the client comes back by
// itself, each time with a new id. A client that upgrades has to be through: it
// notices a loss in the middle by the missing ping only.
func checkReturn(t *testing.T, h *hall, c *client, transport string) {
	t.Helper()
	checkTransport(t, c, transport)
	h.cut()
	if transport == "polling" { // between two polls there is nothing to lose
		eventually(t, "a lost poll", func() bool {
			lost := count(c.events.all(), func(e event) bool { return e.Name == "disconnect" }) > 0
			if !lost {
				h.cut()
			}
			return lost
		})
	}
	connects := len(c.await(t, "connect", 2))
	checkTransport(t, c, transport)
	h.restart(t)
	c.await(t, "connect", connects+1)
	checkTransport(t, c, transport)
	ids := map[string]bool{}
	for _, id := range named[string](t, c.events.all(), "connect") {
		if ids[id] || id == "" {
			t.Errorf("id %q is not a new one", id)
		}
		ids[id] = true
	}
	c.await(t, "disconnect", 2)
}

// checkRefusal checks what a client learns that is not let in.
func checkRefusal(t *testing.T, c *client) {
	t.Helper()
	got := decodedJSON(t, c.await(t, "connect_error", 1)[0].Args[0])
	want := map[string]any{"message": "not authorized", "data": map[string]any{"code": "token_invalid", "retryable": false}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("connect_error (-want +got):\n%s", diff)
	}
}

// TestRetries uses socket.io-client's option to send every event again until
// it is answered, over a connection that is lost in the middle.
func TestRetries(t *testing.T) {
	driver := newNode(t, "sockets.mjs")
	for name, transports := range transports {
		t.Run(name, func(t *testing.T) {
			h := newHall(t, often)
			c := open(t, driver, h.url, transports, map[string]any{"retries": 1000, "ackTimeout": 200})
			checkTransport(t, c, name)
			var values []string
			answers := make(chan error, 5)
			for _, value := range []string{"a", "b", "cut", "d", "e"} {
				values = append(values, `["stubborn","`+value+`"]`)
				go func() {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					_, err := driver.do(ctx, map[string]any{"do": "emitWithRetries", "of": c.name, "event": "stubborn", "args": []any{value}})
					answers <- err
				}()
				// The next one is emitted after this one: the order is the test's.
				h.refused.await(t, value, func(list []string) bool { return len(list) >= len(values) })
			}
			for range values {
				if err := <-answers; err != nil {
					t.Error(err)
				}
			}
			if diff := cmp.Diff(values, h.refused.all()); diff != "" {
				t.Errorf("events in the order they first came (-want +got):\n%s", diff)
			}
			c.await(t, "connect", 2)
		})
	}
}

// TestNamespaces joins another namespace, and one that there is not.
func TestNamespaces(t *testing.T) {
	h, driver := newHall(t, often), newNode(t, "sockets.mjs")
	c := open(t, driver, h.url+"/custom", upgrading, nil)
	c.await(t, "connect", 1)
	if diff := cmp.Diff([]any{"custom"}, c.ask(t, "message", "custom")); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	nowhere := open(t, driver, h.url+"/nowhere", upgrading, nil)
	want := map[string]any{"message": "Invalid namespace", "data": nil}
	if diff := cmp.Diff(any(want), decodedJSON(t, nowhere.await(t, "connect_error", 1)[0].Args[0])); diff != "" {
		t.Errorf("connect_error (-want +got):\n%s", diff)
	}
	c.do(t, "close")
	if got := named[string](t, c.await(t, "disconnect", 1), "disconnect"); got[0] != "io client disconnect" {
		t.Errorf("left with %q", got[0])
	}
}

// TestEngineIOClient holds the lower layer against its own client.
func TestEngineIOClient(t *testing.T) {
	h, driver := newHall(t, often), newNode(t, "sockets.mjs")
	for name, transports := range transports {
		t.Run(name, func(t *testing.T) {
			c := openAs(t, driver, "openEngine", h.url, transports, nil)
			if c.await(t, "connect", 1); name == "upgrade" {
				c.await(t, "upgrade", 1)
			}
			args := []any{"hello ☃", attachment([]byte{0, 1, 0xff}), strings.Repeat("photo ☃ ", 200_000), attachment(newPhoto(2_000_000)), "last"}
			c.do(t, "send", args...)
			for i, e := range c.await(t, "message", len(args)) {
				if diff := cmp.Diff(args[i], decodedJSON(t, e.Args[0])); diff != "" {
					t.Errorf("message %d (-want +got):\n%s", i, clip(diff))
				}
			}
			c.do(t, "closeEngine")
			if got := named[string](t, c.await(t, "disconnect", 1), "disconnect"); got[0] != "forced close" {
				t.Errorf("left with %q", got[0])
			}
			for _, e := range c.events.all() {
				if e.Name == "error" {
					t.Errorf("the client complains: %v", e)
				}
			}
		})
	}
}
