// Package socketio is a server, and a small client, of Socket.IO protocol 5
// over Engine.IO 4 (package engineio): namespaces, middleware, events with
// acknowledgements and binary attachments, over HTTP long-polling and
// WebSocket. It knows nothing of photos, but it moves them fast: the JSON of an
// event is handed over unparsed, and what goes to several sockets is encoded
// once (Prepare, PrepareJSON).
//
// It is not a broadcaster: there are no rooms and no adapters. Connection
// state recovery is off, since it would skip the check of the token.
//
// The callbacks of one Socket (middleware, OnConnect, event handlers,
// acknowledgement functions, Confirm functions, OnDisconnect) run one after
// the other on the socket's own goroutine, which exists only while there is
// something to run. A callback that blocks holds up its own socket alone; when
// 64 events wait the client is made to wait. A callback that panics ends its
// socket's connection and is logged. All other methods may be called from
// anywhere.
package socketio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"pairsync/bridge/socketio/engineio"
)

// DefaultConnectTimeout is how long a connection may take to join its first
// namespace.
const DefaultConnectTimeout = 45 * time.Second

// DefaultPath is where clients look for the server. It is matched as a prefix.
const DefaultPath = "/socket.io/"

// Config holds the limits of a Server. A zero field takes its default, which
// are those of package engineio.
type Config struct {
	PingInterval, PingTimeout, UpgradeTimeout time.Duration
	// ConnectTimeout bounds the time to the first successful join.
	ConnectTimeout time.Duration
	// MaxPayload is the largest message taken, in bytes; base64 and JSON
	// included. A packet with all its attachments may have twice as much.
	MaxPayload int
	// QueuePackets and QueueBytes bound what waits to be sent to one client;
	// beyond them Emit returns ErrBacklog.
	QueuePackets, QueueBytes int
	// MaxSessions bounds the connections.
	MaxSessions int
	// Origins lists the web origins that may connect, "*" for any. Nil lets in
	// only requests without an Origin and those from the server's own host.
	Origins []string
	// CORS adds Access-Control headers for the allowed origins.
	CORS bool
}

// Errors that callers of Emit tell apart.
var (
	// ErrBacklog says that the client is too slow and nothing was queued. The
	// socket stays connected; the caller decides.
	ErrBacklog = engineio.ErrBacklog
	// ErrDisconnected says that the socket is not, or no longer, connected.
	ErrDisconnected = errors.New("socketio: socket is not connected")
	// ErrAckLimit is what an acknowledgement function gets when more than
	// 1,024 events of its socket wait for an answer and it was the oldest.
	ErrAckLimit = errors.New("socketio: too many events wait for an acknowledgement")
)

// A ConnectError refuses a connection to a namespace. A middleware returns
// one; Dial returns the one it was refused with.
type ConnectError struct {
	Message string `json:"message"`
	// Data goes to the client as JSON; in a client it is a json.RawMessage.
	Data any `json:"data,omitempty"`
}

func (e *ConnectError) Error() string { return "socketio: connection refused: " + e.Message }

// Server is an http.Handler for Socket.IO requests; the caller's mux matches
// the path. It takes WebSockets over by hijacking, so a ResponseWriter that
// wraps another must be an http.Hijacker too.
type Server struct {
	cfg    Config
	engine *engineio.Server
	log    *slog.Logger

	mu         sync.Mutex // guards namespaces
	namespaces map[string]*Namespace
}

// NewServer checks cfg and returns a server. It starts no goroutine.
func NewServer(cfg Config, log *slog.Logger) (*Server, error) {
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = DefaultConnectTimeout
	}
	if cfg.MaxPayload == 0 {
		cfg.MaxPayload = engineio.DefaultMaxPayload
	}
	if cfg.ConnectTimeout < 0 || log == nil {
		return nil, fmt.Errorf("socketio: connect timeout %v, log %v: want a positive time and a logger", cfg.ConnectTimeout, log)
	}
	s := &Server{cfg: cfg, log: log, namespaces: map[string]*Namespace{}}
	engine, err := engineio.NewServer(engineio.Config{
		PingInterval: cfg.PingInterval, PingTimeout: cfg.PingTimeout, UpgradeTimeout: cfg.UpgradeTimeout,
		MaxPayload: cfg.MaxPayload, QueuePackets: cfg.QueuePackets, QueueBytes: cfg.QueueBytes,
		MaxSessions: cfg.MaxSessions, Origins: cfg.Origins, CORS: cfg.CORS,
	}, s.open, log)
	if err != nil {
		return nil, err
	}
	s.engine = engine
	return s, nil
}

// ServeHTTP answers a request of the protocol.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.engine.ServeHTTP(w, r) }

// AllowOrigins wraps next so that web pages may use it as they may use s.
func (s *Server) AllowOrigins(next http.Handler) http.Handler { return s.engine.AllowOrigins(next) }

// Len returns the number of connections.
func (s *Server) Len() int { return s.engine.Len() }

// Close refuses new connections, sends what is queued and ends the others in
// such a way that their clients reconnect by themselves. It returns when every
// goroutine of the server has ended. When ctx ends before, the connections
// are cut, and callbacks that still do not return are reported as an error.
func (s *Server) Close(ctx context.Context) error { return s.engine.Close(ctx) }

// Of returns the namespace name ("/" is the default one), made at first use.
// Clients are refused ("Invalid namespace") where there is none.
func (s *Server) Of(name string) *Namespace {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.namespaces[name]
	if !ok {
		n = &Namespace{name: name}
		s.namespaces[name] = n
	}
	return n
}

func (s *Server) namespace(name string) *Namespace {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namespaces[name]
}

// Namespace is one of the server's namespaces.
type Namespace struct {
	name string

	mu         sync.Mutex // guards the fields below
	middleware []func(*Socket) error
	connect    []func(*Socket)
}

// Use adds a check that every new socket has to pass, in the order added. An
// error refuses the socket: a *ConnectError as it is, any other with the
// message "not authorized" so that nothing internal leaks. The socket can not
// emit yet. A check may block; the connect timeout runs.
func (n *Namespace) Use(check func(*Socket) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.middleware = append(n.middleware, check)
}

// OnConnect adds fn, called for every socket that has passed; handlers are
// registered there. No event of the socket is handled before it returns.
func (n *Namespace) OnConnect(fn func(*Socket)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.connect = append(n.connect, fn)
}

// hooks returns the functions as they are now.
func (n *Namespace) hooks() (middleware []func(*Socket) error, connect []func(*Socket)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.middleware, n.connect
}
