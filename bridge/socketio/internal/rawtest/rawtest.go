// Package rawtest speaks Engine.IO by hand, over an in-memory network: the
// tests of engineio and socketio say with it what goes over the wire, byte by
// byte. It works on the fake time of testing/synctest.
package rawtest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"pairsync/internal/memnet"
)

// A Server is what is tested.
type Server interface {
	http.Handler
	Close(ctx context.Context) error
}

// World is a server behind an HTTP listener, and its clients.
type World struct {
	tb       testing.TB
	listener *memnet.Listener
	client   *http.Client
	path     string
}

// Start serves s under path until the test ends.
func Start(tb testing.TB, s Server, path string) *World {
	tb.Helper()
	mux := http.NewServeMux()
	mux.Handle(path, s)
	w := &World{tb: tb, listener: memnet.Listen("server:80"), path: path}
	transport := &http.Transport{DialContext: w.Dial}
	w.client = &http.Client{Transport: transport}
	front := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- front.Serve(w.listener) }()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			tb.Errorf("close server: %v", err)
		}
		transport.CloseIdleConnections()
		if err := front.Shutdown(ctx); err != nil {
			tb.Errorf("shut down http: %v", err)
		}
		<-served
	})
	return w
}

// Dial makes a connection to the server, for any network and address.
func (w *World) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return w.listener.Dial(ctx, "client:1")
}

// Answer is an HTTP answer.
type Answer struct {
	Status int
	Body   string
	Header http.Header
}

// Do makes a request with the query and, where given, a body and headers.
func (w *World) Do(method, query, body string, header http.Header) Answer {
	w.tb.Helper()
	a, err := w.Try(w.tb.Context(), method, query, body, header)
	if err != nil {
		w.tb.Fatal(err)
	}
	return a
}

// Try is Do with a context, and with failures returned.
func (w *World) Try(ctx context.Context, method, query, body string, header http.Header) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://server"+w.path+"?"+query, strings.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	if body == "" {
		req.Body = nil
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if header.Get("Transfer-Encoding") == "chunked" {
		req.ContentLength = -1
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, string(text), resp.Header}, err
}

// Open starts a polling session and returns its id.
func (w *World) Open() string {
	w.tb.Helper()
	a := w.Do("GET", "EIO=4&transport=polling", "", nil)
	var open struct{ SID string }
	if a.Status != 200 || a.Body == "" || json.Unmarshal([]byte(a.Body[1:]), &open) != nil {
		w.tb.Fatalf("open a session: got %d %q", a.Status, a.Body)
	}
	return open.SID
}

// Poll polls a session.
func (w *World) Poll(sid string) Answer {
	w.tb.Helper()
	return w.Do("GET", "EIO=4&transport=polling&sid="+sid, "", nil)
}

// PollLater starts a poll and returns where its answer will come.
func (w *World) PollLater(sid string) <-chan Answer {
	answers := make(chan Answer, 1)
	go func() {
		a, err := w.Try(context.WithoutCancel(w.tb.Context()), "GET", "EIO=4&transport=polling&sid="+sid, "", nil)
		if err != nil {
			a.Body = err.Error()
		}
		answers <- a
	}()
	return answers
}

// Post sends a payload.
func (w *World) Post(sid, payload string) Answer {
	w.tb.Helper()
	return w.Do("POST", "EIO=4&transport=polling&sid="+sid, payload, nil)
}

// WebSocket is a client's end, on which the test plays the protocol.
type WebSocket struct {
	tb   testing.TB
	Conn *websocket.Conn
}

// Upgrade opens a WebSocket, or returns the answer that refused it.
func (w *World) Upgrade(query string, header http.Header) (*WebSocket, Answer) {
	w.tb.Helper()
	d := websocket.Dialer{NetDialContext: w.Dial}
	conn, resp, err := d.DialContext(w.tb.Context(), "ws://server"+w.path+"?"+query, header)
	if err != nil {
		if resp == nil {
			w.tb.Fatalf("open a websocket: %v", err)
		}
		text, _ := io.ReadAll(resp.Body) // gorilla keeps the first kilobyte
		return nil, Answer{resp.StatusCode, string(text), resp.Header}
	}
	w.tb.Cleanup(func() { _ = conn.Close() })
	return &WebSocket{w.tb, conn}, Answer{Status: resp.StatusCode}
}

// WebSocket opens a WebSocket.
func (w *World) WebSocket(query string) *WebSocket {
	w.tb.Helper()
	ws, refused := w.Upgrade(query, nil)
	if ws == nil {
		w.tb.Fatalf("open a websocket with %q: refused with %d %q", query, refused.Status, refused.Body)
	}
	return ws
}

// OpenWebSocket opens a session on a WebSocket and takes the open packet.
func (w *World) OpenWebSocket() *WebSocket {
	w.tb.Helper()
	ws := w.WebSocket("EIO=4&transport=websocket")
	if open := ws.Next(); !strings.HasPrefix(open, "0{") {
		w.tb.Fatalf("first packet: got %q, want an open packet", open)
	}
	return ws
}

// Send sends text messages.
func (s *WebSocket) Send(texts ...string) {
	s.tb.Helper()
	for _, text := range texts {
		if err := s.Conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
			s.tb.Fatalf("send %.100q: %v", text, err)
		}
	}
}

// SendBinary sends a binary message.
func (s *WebSocket) SendBinary(data string) {
	s.tb.Helper()
	if err := s.Conn.WriteMessage(websocket.BinaryMessage, []byte(data)); err != nil {
		s.tb.Fatalf("send binary %.100q: %v", data, err)
	}
}

// Next returns the next message; a binary one begins with "binary:".
func (s *WebSocket) Next() string {
	s.tb.Helper()
	text, err := s.next()
	if err != nil {
		s.tb.Fatalf("next message: %v", err)
	}
	return text
}

func (s *WebSocket) next() (string, error) {
	kind, data, err := s.Conn.ReadMessage()
	if err == nil && kind == websocket.BinaryMessage {
		return "binary:" + string(data), nil
	}
	return string(data), err
}

// Want checks the next messages.
func (s *WebSocket) Want(want ...string) {
	s.tb.Helper()
	for _, w := range want {
		if got := s.Next(); got != w {
			s.tb.Fatalf("next message: got %.200q, want %.200q", got, w)
		}
	}
}

// WantClose reads until the server closes, ignoring pings, fails the test on
// any other message, and returns the close code, 1006 without one.
func (s *WebSocket) WantClose() int {
	s.tb.Helper()
	for {
		text, err := s.next()
		var closed *websocket.CloseError
		switch {
		case errors.As(err, &closed):
			return closed.Code
		case err != nil:
			return websocket.CloseAbnormalClosure
		case text != "2":
			s.tb.Fatalf("next message: got %.200q, want the end", text)
		}
	}
}
