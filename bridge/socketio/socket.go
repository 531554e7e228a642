package socketio

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"sync"

	"pairsync/bridge/socketio/engineio"
)

// Reasons of OnDisconnect beside those of package engineio.
const (
	ReasonClientDisconnect = "client namespace disconnect"
	ReasonServerDisconnect = "server namespace disconnect"
)

// Handshake is what a client said when it connected. Treat it as read-only.
type Handshake struct {
	// Auth is the payload of CONNECT, a JSON object or nil.
	Auth       json.RawMessage
	Query      url.Values
	Header     http.Header
	RemoteAddr string
}

type socketState uint8

const (
	socketJoining socketState = iota
	socketJoined
	socketLeft
)

// Socket is one client in one namespace. See the package's documentation for
// what runs where.
type Socket struct {
	conn      *conn
	namespace *Namespace
	id        string
	auth      json.RawMessage
	serial    serial
	done      chan struct{} // closed when the socket has left

	mu         sync.Mutex // guards the fields below
	state      socketState
	handlers   map[string]func(*Event)
	any        func(*Event)
	disconnect []func(reason string)
	values     map[string]any
	acks       map[int64]func([]json.RawMessage, error)
	nextAck    int64
	oldestAck  int64 // no smaller id is in acks
	confirms   map[*confirmation]struct{}
}

func newSocket(c *conn, n *Namespace, auth json.RawMessage) *Socket {
	var id [15]byte
	rand.Read(id[:]) // never fails
	return &Socket{
		conn: c, namespace: n, auth: auth, done: make(chan struct{}),
		id:     base64.URLEncoding.EncodeToString(id[:]),
		serial: serial{start: c.session.Go},
	}
}

// ID returns the socket's id: public, new for every connection and namespace.
func (s *Socket) ID() string { return s.id }

// Handshake returns what the client said when it connected.
func (s *Socket) Handshake() Handshake {
	r := s.conn.session.Request()
	return Handshake{Auth: s.auth, Query: r.Query, Header: r.Header, RemoteAddr: r.RemoteAddr}
}

// Transport returns what carries the socket now: "polling" or "websocket".
func (s *Socket) Transport() string { return s.conn.session.Transport() }

// Connected reports whether the socket has joined and not left.
func (s *Socket) Connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == socketJoined
}

func (s *Socket) left() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == socketLeft
}

// Done returns a channel that is closed when the socket has left.
func (s *Socket) Done() <-chan struct{} { return s.done }

// Set keeps a value with the socket.
func (s *Socket) Set(key string, value any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values == nil {
		s.values = map[string]any{}
	}
	s.values[key] = value
}

// Value returns what Set kept under key, or nil.
func (s *Socket) Value(key string) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[key]
}

// On sets the handler of an event, nil to remove it. Events without a handler
// are ignored.
func (s *Socket) On(event string, fn func(*Event)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handlers == nil {
		s.handlers = map[string]func(*Event){}
	}
	s.handlers[event] = fn
}

// OnAny sets a function that gets every event before its handler does.
func (s *Socket) OnAny(fn func(*Event)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.any = fn
}

// OnDisconnect adds fn, called as the socket's last callback, after the events
// that had arrived. On a socket that has left already it is never called.
func (s *Socket) OnDisconnect(fn func(reason string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disconnect = append(s.disconnect, fn)
}

// join runs the namespace's middleware and lets the client in.
func (s *Socket) join() {
	middleware, connect := s.namespace.hooks()
	for _, check := range middleware {
		if s.left() {
			return
		}
		if err := check(s); err != nil {
			s.refused(err)
			return
		}
	}
	body, err := json.Marshal(struct {
		SID string `json:"sid"`
	}{s.id})
	if err != nil {
		s.refused(err)
		return
	}
	if !s.admit(body) {
		return
	}
	s.conn.joined()
	for _, fn := range connect {
		fn(s)
	}
}

// admit answers CONNECT; false when the socket has left.
func (s *Socket) admit(body []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock() // no Emit gets ahead of the answer
	if s.state != socketJoining {
		return false
	}
	p := packet{kind: typeConnect, namespace: s.namespace.name, id: -1}
	if err := s.conn.session.Send(text(&p, body)); err != nil {
		s.later(s.conn.session.Abort)
		return false
	}
	s.state = socketJoined
	return true
}

// refused answers CONNECT with an error.
func (s *Socket) refused(err error) {
	reason := &ConnectError{Message: "not authorized"}
	if !errors.As(err, &reason) {
		s.conn.srv.log.Warn("middleware failed", "namespace", s.namespace.name, "err", err)
	}
	s.mu.Lock()
	open := s.state == socketJoining
	s.mu.Unlock()
	if !open {
		return
	}
	s.conn.remove(s)
	s.finish("")
	if s.conn.refuse(s.namespace.name, reason) != nil {
		s.conn.session.Abort()
	}
}

// guard makes fn survive a panic, at the price of the connection.
func (s *Socket) guard(fn func()) func() {
	return func() {
		defer func() {
			if p := recover(); p != nil {
				s.conn.srv.log.Error("socket callback panicked", "namespace", s.namespace.name,
					"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				s.conn.session.Abort()
			}
		}()
		fn()
	}
}

// event queues an event for its handler.
func (s *Socket) event(p packet, buf engineio.Buffer, parts [][]byte) error {
	e, err := newEvent(p, parts)
	if err != nil {
		return err
	}
	if p.id >= 0 {
		e.reply = s.reply
	}
	size := len(p.data)
	for _, part := range parts {
		size += len(part)
	}
	s.serial.push(task{size: size, run: s.guard(func() {
		defer buf.Release()
		s.dispatch(e)
	})}, true)
	return nil
}

func (s *Socket) dispatch(e *Event) {
	s.mu.Lock()
	catchAll, handler := s.any, s.handlers[e.Name]
	s.mu.Unlock()
	if catchAll != nil {
		catchAll(e)
	}
	if handler != nil {
		handler(e)
	}
}

// reply sends an acknowledgement.
func (s *Socket) reply(id int64, args []any) error {
	p, err := encode(args)
	if err != nil {
		return err
	}
	return s.send(p.messages(typeAck, typeBinaryAck, s.namespace.name, id))
}

// send queues messages on the session.
func (s *Socket) send(messages []engineio.Message) error {
	if !s.Connected() {
		return ErrDisconnected
	}
	err := s.conn.session.Send(messages...)
	if errors.Is(err, engineio.ErrClosed) {
		return ErrDisconnected
	}
	return err
}

// Emit queues an event and returns at once: ErrBacklog when the client is too
// slow, ErrDisconnected when it is gone. See Prepare for the arguments.
func (s *Socket) Emit(event string, args ...any) error {
	p, err := Prepare(event, args...)
	if err != nil {
		return err
	}
	return s.EmitPrepared(p, nil)
}

// EmitVolatile is Emit for what is worthless later: it drops the event when it
// would have to wait, and reports whether it was sent.
func (s *Socket) EmitVolatile(event string, args ...any) (sent bool, err error) {
	if !s.conn.session.Writable() {
		return false, nil
	}
	err = s.Emit(event, args...)
	return err == nil, err
}

// Disconnect makes the socket leave: with closeTransport it ends the whole
// connection once what was emitted is sent, otherwise only the namespace. The
// client is told, and does not come back by itself.
func (s *Socket) Disconnect(closeTransport bool) {
	if s.Connected() {
		p := packet{kind: typeDisconnect, namespace: s.namespace.name, id: -1}
		if s.conn.session.Send(text(&p, nil)) != nil && !closeTransport {
			s.conn.session.Abort() // it cannot even be told
		}
	}
	s.finish(ReasonServerDisconnect)
	if closeTransport {
		s.conn.session.Close()
	}
}

// Drop ends the connection once what was emitted is sent. Unlike Disconnect it
// does not tell the client to stay away: socket.io clients come back by
// themselves, through the middleware again.
func (s *Socket) Drop() { s.conn.session.Close() }

// finish makes the socket leave, once.
func (s *Socket) finish(reason string) {
	s.mu.Lock()
	if s.state == socketLeft {
		s.mu.Unlock()
		return
	}
	joined := s.state == socketJoined
	s.state = socketLeft
	acks, confirms := s.acks, s.confirms
	s.acks, s.confirms = nil, nil
	s.mu.Unlock()
	close(s.done)
	for _, fn := range acks {
		fn(nil, ErrDisconnected)
	}
	for c := range confirms {
		s.later(func() { c.fn(false) })
	}
	s.serial.end(task{run: s.guard(func() {
		s.mu.Lock()
		fns := s.disconnect
		s.mu.Unlock()
		if !joined {
			return
		}
		for _, fn := range fns {
			fn(reason)
		}
	})})
}
