package mqttlink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"pairsync/internal/memnet"
	"pairsync/internal/wsconn"
)

// Every scheme reaches a real broker, and a photo travels there and back.
func TestSchemes(t *testing.T) {
	broker := newBroker(t, memnet.Listen("unused"), new(rules))
	upgrader := websocket.Upgrader{Subprotocols: []string{wsconn.Subprotocol}}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/mqtt" {
			http.NotFound(w, r)
			return
		}
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		broker.EstablishConnection("ws", wsconn.New(ws))
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	t.Cleanup(func() { plain.Close(); secure.Close() })
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: secure.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	newBroker(t, ln, new(rules))
	trust := x509.NewCertPool()
	trust.AddCert(secure.Certificate())

	for _, u := range []*url.URL{
		{Scheme: "ws", Host: plain.Listener.Addr().String()},
		{Scheme: "wss", Host: secure.Listener.Addr().String(), Path: "/mqtt"},
		{Scheme: "mqtts", Host: ln.Addr().String()},
	} {
		t.Run(u.Scheme, func(t *testing.T) {
			arrived := make(chan *Message, 1)
			l := newLink(t, Config{
				Broker: u, TLS: &tls.Config{RootCAs: trust}, ClientID: u.Scheme,
				Subscriptions: []Subscription{{Filter: u.Scheme, QoS: 1}},
				Receive:       func(m *Message) { m.Ack(); arrived <- m },
			})
			awaitUp(t, l)
			if err := l.Publish(t.Context(), Publish{Topic: u.Scheme, Payload: make([]byte, 300_000), QoS: 1}); err != nil {
				t.Fatal(err)
			}
			if m := <-arrived; len(m.Payload) != 300_000 {
				t.Errorf("%d bytes arrived", len(m.Payload))
			}
		})
	}
}

func TestWebSocketThatIsNoBroker(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"404": http.NotFound,
		"subprotocol": func(w http.ResponseWriter, r *http.Request) {
			if ws, err := new(websocket.Upgrader).Upgrade(w, r, nil); err == nil {
				ws.Close()
			}
		},
	} {
		srv := httptest.NewServer(handler)
		dial, err := dialer(&url.URL{Scheme: "ws", Host: srv.Listener.Addr().String()}, nil, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dial(t.Context()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want it to name %q", err, name)
		}
		srv.Close()
	}
}

func TestBadBrokerURLs(t *testing.T) {
	for raw, want := range map[string]string{
		"http://host": "scheme", "mqtt:///path": "no host", "mqtt://user:hunter2@host": "credentials",
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = New(Config{Broker: u}, quiet()); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want %q", raw, err, want)
		}
	}
}

// What sits in this machine's send queue has not moved.
func TestMovedDoesNotCountTheSendQueue(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := new(net.Dialer).DialContext(context.Background(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept() // reads nothing
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(Config{Dial: func(context.Context) (net.Conn, error) { return near, nil }}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(near, &l.moved)
	l.live = &connection{l: l, wire: w}
	stuck := make(chan error, 1)
	go func() { stuck <- w.send(nil, make([]byte, 64<<20)) }()
	// The far end's window fills first, then our queue: wait until both are full.
	for last := uint64(0); ; last = l.moved.Load() {
		if now := l.moved.Load(); now > 0 && now == last && w.unsent() > 0 {
			break
		}
		far.SetReadDeadline(time.Time{}) // a system call, to let the sender run
	}
	if moved, total := l.Moved(), l.moved.Load(); moved >= total {
		t.Errorf("Moved() = %d of %d written, want less: the queue is full", moved, total)
	}
	w.cut()
	far.Close()
	if err := <-stuck; err == nil {
		t.Error("64 MiB were sent to somebody who does not read")
	}
}
