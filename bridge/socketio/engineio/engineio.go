// Package engineio is a server of Engine.IO protocol 4: long-lived sessions of
// text and binary messages over HTTP long-polling and WebSocket, with upgrade
// from the first to the second, heartbeat and limits. It knows nothing of
// Socket.IO, which package socketio lays on top.
//
// It is not a client, and it does not speak protocol 3 (socket.io-client 2.x),
// JSONP, WebTransport or permessage-deflate.
//
// A session belongs to the Server. Its goroutines are a reader while a
// WebSocket is open and a writer while there is something to write; an idle
// session has no writer. All of them have ended when Server.Close returns nil.
// Every method is safe for concurrent use.
package engineio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// Defaults of Config, those of the reference server except for the last three.
const (
	DefaultPingInterval   = 25 * time.Second
	DefaultPingTimeout    = 20 * time.Second
	DefaultUpgradeTimeout = 10 * time.Second
	DefaultMaxPayload     = 1_000_000
	// DefaultQueuePackets bounds what waits for one client.
	DefaultQueuePackets = 1024
	// DefaultQueueBytes holds a few photos for one client.
	DefaultQueueBytes = 16 << 20
	// DefaultMaxSessions bounds what polling clients, who hold no connection
	// open, can make the server remember.
	DefaultMaxSessions = 1 << 16
)

// Config holds the limits of a Server. A zero field takes its default.
type Config struct {
	// PingInterval is the wait from the opening, and from each pong, to the next ping.
	PingInterval time.Duration
	// PingTimeout is how long a pong may take, once the ping has left and
	// nothing else makes progress.
	PingTimeout time.Duration
	// UpgradeTimeout bounds a probed upgrade from polling to WebSocket.
	UpgradeTimeout time.Duration
	// MaxPayload is the largest WebSocket message or POST body taken, in bytes.
	MaxPayload int
	// QueuePackets and QueueBytes bound what waits to be sent to one client.
	QueuePackets, QueueBytes int
	// MaxSessions bounds the sessions of the server.
	MaxSessions int
	// Origins lists the web origins that may connect ("https://example.org"),
	// "*" for any. Requests without an Origin header and those from the
	// server's own host are always let in.
	Origins []string
	// CORS adds Access-Control headers for the allowed origins.
	CORS bool
}

// withDefaults fills the zero fields and refuses the senseless.
func (c Config) withDefaults() (Config, error) {
	setDefault(&c.PingInterval, DefaultPingInterval)
	setDefault(&c.PingTimeout, DefaultPingTimeout)
	setDefault(&c.UpgradeTimeout, DefaultUpgradeTimeout)
	setDefault(&c.MaxPayload, DefaultMaxPayload)
	setDefault(&c.QueuePackets, DefaultQueuePackets)
	setDefault(&c.QueueBytes, DefaultQueueBytes)
	setDefault(&c.MaxSessions, DefaultMaxSessions)
	for _, d := range []time.Duration{c.PingInterval, c.PingTimeout, c.UpgradeTimeout} {
		if d < time.Millisecond {
			return c, fmt.Errorf("engineio: interval %v: want at least 1ms", d)
		}
	}
	for _, n := range []int{c.MaxPayload, c.QueuePackets, c.QueueBytes, c.MaxSessions} {
		if n < 0 {
			return c, fmt.Errorf("engineio: limit %d: want a positive number", n)
		}
	}
	return c, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Reasons a session ends with, as Receiver.Closed gets them. They are the
// words of the reference implementation, which applications compare.
const (
	ReasonTransportClose = "transport close"
	ReasonTransportError = "transport error"
	ReasonPingTimeout    = "ping timeout"
	ReasonParseError     = "parse error"
	ReasonForcedClose    = "forced close"
	ReasonShutdown       = "server shutting down"
)

var (
	// ErrBacklog is returned by Send when the client is too slow: the queue is
	// full and nothing of the call was queued. The session stays open.
	ErrBacklog = errors.New("engineio: outgoing queue is full")
	// ErrClosed is returned by Send when the session has ended.
	ErrClosed = errors.New("engineio: session is closed")
)

// A Receiver is what a session's messages go to.
type Receiver interface {
	// Message takes one message. Calls of one session are serial, in order of
	// arrival. The session reads nothing more until Message returns, and its
	// heartbeat waits as well, so a Receiver throttles a client by blocking.
	// An error closes the session as a parse error.
	Message(binary bool, data Buffer) error
	// Closed is called once, when the session takes and delivers nothing
	// more; a Message call may still be running. It must not block.
	Closed(reason string)
}

// Server is an http.Handler for Engine.IO 4 requests, whatever their path.
type Server struct {
	cfg  Config
	open func(*Session) Receiver
	log  *slog.Logger
	bufs *bufferPool

	mu       sync.Mutex // guards the fields below
	sessions map[string]*Session
	closing  bool

	scratch scratch
	tasks   tasks
}

// NewServer checks cfg and returns a server that calls open for every new
// session; open must not block. It starts no goroutine.
func NewServer(cfg Config, open func(*Session) Receiver, log *slog.Logger) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if open == nil || log == nil {
		return nil, errors.New("engineio: open and log must be given")
	}
	return &Server{cfg: cfg, open: open, log: log, bufs: newBufferPool(), sessions: map[string]*Session{}}, nil
}

// Len returns the number of sessions.
func (s *Server) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Close refuses new sessions, sends what is queued on WebSockets, and ends all
// sessions so that their clients come back by themselves. It returns when
// every goroutine has ended. When ctx ends first it cuts the connections
// and gives those goroutines that are left in a Receiver one more second.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	for _, sess := range s.all() {
		sess.shut(ReasonShutdown, true)
	}
	idle := s.tasks.idle()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	for _, sess := range s.all() {
		sess.shut(ReasonShutdown, false)
	}
	last := time.NewTimer(time.Second)
	defer last.Stop()
	select {
	case <-idle:
		return nil
	case <-last.C:
		return fmt.Errorf("engineio: close: %d goroutines still at work: %w", s.tasks.count(), ctx.Err())
	}
}

func (s *Server) all() []*Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*Session, 0, len(s.sessions))
	for _, sess := range s.sessions {
		list = append(list, sess)
	}
	return list
}

func (s *Server) session(id string) *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id]
}

// add registers sess, which holds a task until drop; false when the server is
// closing or full.
func (s *Server) add(sess *Session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || len(s.sessions) >= s.cfg.MaxSessions {
		return false
	}
	s.sessions[sess.id] = sess
	s.tasks.add()
	return true
}

func (s *Server) drop(sess *Session) {
	s.mu.Lock()
	delete(s.sessions, sess.id)
	s.mu.Unlock()
	s.tasks.done()
}

// refused answers a request that finds no room.
func refused(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "5")
	http.Error(w, "server is closing or full", http.StatusServiceUnavailable)
}

// tasks counts what Close has to wait for.
type tasks struct {
	mu   sync.Mutex // guards the fields below
	n    int
	wait chan struct{} // closed by done when n is 0; nil until idle is called
}

func (t *tasks) add() {
	t.mu.Lock()
	t.n++
	t.mu.Unlock()
}

func (t *tasks) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n--
	if t.n == 0 && t.wait != nil {
		close(t.wait)
		t.wait = nil
	}
}

func (t *tasks) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// idle returns a channel that is closed when no task is left.
func (t *tasks) idle() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	if t.wait == nil {
		t.wait = make(chan struct{})
	}
	return t.wait
}
