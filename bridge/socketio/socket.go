package socketio

import (
	"context"
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

// maxAcks bounds the events of one socket that wait for an answer.
const maxAcks = 1024

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
	s.mu.Lock()
	if s.state != socketJoining {
		s.mu.Unlock()
		return
	}
	// Joined before the client knows: its first event may come at once.
	s.state = socketJoined
	s.mu.Unlock()
	s.conn.joined()
	p := packet{kind: typeConnect, namespace: s.namespace.name, id: -1}
	if err := s.conn.session.Send(text(&p, body)); err != nil {
		s.conn.session.Abort()
		return
	}
	for _, fn := range connect {
		fn(s)
	}
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

// EmitPrepared queues a prepared event. ack, when not nil, is called once on
// the socket's goroutine: with the client's answer, with ErrDisconnected when
// the socket leaves before, or with ErrAckLimit. It is not called when
// EmitPrepared returns an error. A binary attachment of the answer stands in
// its JSON as a base64 string.
func (s *Socket) EmitPrepared(p *Prepared, ack func(args []json.RawMessage, err error)) error {
	if ack == nil {
		return s.send(p.messages(typeEvent, typeBinaryEvent, s.namespace.name, -1))
	}
	return s.emitAck(p, func(args []json.RawMessage, err error) {
		s.later(func() { ack(args, err) })
	})
}

// EmitWithAck queues an event and waits for the client's answer, ctx or the
// socket's end. It may be called from the socket's own callbacks; no event is
// handled meanwhile, and the answer must not be behind more than 64 of them.
func (s *Socket) EmitWithAck(ctx context.Context, event string, args ...any) ([]json.RawMessage, error) {
	p, err := Prepare(event, args...)
	if err != nil {
		return nil, err
	}
	type answer struct {
		args []json.RawMessage
		err  error
	}
	answered := make(chan answer, 1)
	id, err := s.emitAckID(p, func(args []json.RawMessage, err error) { answered <- answer{args, err} })
	if err != nil {
		return nil, err
	}
	select {
	case a := <-answered:
		return a.args, a.err
	case <-ctx.Done():
		s.takeAck(id)
		return nil, fmt.Errorf("socketio: acknowledgement of %q: %w", event, ctx.Err())
	}
}

func (s *Socket) emitAck(p *Prepared, fn func([]json.RawMessage, error)) error {
	_, err := s.emitAckID(p, fn)
	return err
}

// emitAckID queues p with an acknowledgement id. fn is called once, from
// wherever the answer is read, unless an error is returned.
func (s *Socket) emitAckID(p *Prepared, fn func([]json.RawMessage, error)) (int64, error) {
	s.mu.Lock()
	if s.state != socketJoined {
		s.mu.Unlock()
		return 0, ErrDisconnected
	}
	if s.acks == nil {
		s.acks = map[int64]func([]json.RawMessage, error){}
	}
	id := s.nextAck
	s.nextAck++
	s.acks[id] = fn
	dropped := s.dropOldestAck()
	s.mu.Unlock()
	if dropped != nil {
		dropped(nil, ErrAckLimit)
	}
	if err := s.send(p.messages(typeEvent, typeBinaryEvent, s.namespace.name, id)); err != nil {
		if s.takeAck(id) == nil {
			return 0, nil // the socket left meanwhile and has told fn
		}
		return 0, err
	}
	return id, nil
}

// dropOldestAck takes the oldest function out when there are too many. The
// caller holds s.mu.
func (s *Socket) dropOldestAck() func([]json.RawMessage, error) {
	if len(s.acks) <= maxAcks {
		return nil
	}
	for ; ; s.oldestAck++ {
		if fn, ok := s.acks[s.oldestAck]; ok {
			delete(s.acks, s.oldestAck)
			return fn
		}
	}
}

// takeAck takes the function of an acknowledgement out, nil if there is none.
func (s *Socket) takeAck(id int64) func([]json.RawMessage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn := s.acks[id]
	delete(s.acks, id)
	return fn
}

// acknowledged handles the client's answer; an id nobody waits for is ignored.
func (s *Socket) acknowledged(p packet, parts [][]byte) {
	fn := s.takeAck(p.id)
	if fn == nil {
		return
	}
	args, err := ackArgs(p.data, parts)
	fn(args, err)
}

// A confirmation is a function that waits for a pong, or for the socket's end.
type confirmation struct{ fn func(ok bool) }

// Confirm calls fn(true) on the socket's goroutine once everything emitted so
// far has provably reached the client, over whichever transport, and fn(false)
// when the socket has left before; at once, on the caller's goroutine, when it
// has left already. It costs a ping; one serves all Confirms that were called
// before it left.
func (s *Socket) Confirm(fn func(ok bool)) {
	c := &confirmation{fn}
	s.mu.Lock()
	if s.state == socketLeft {
		s.mu.Unlock()
		fn(false)
		return
	}
	if s.confirms == nil {
		s.confirms = map[*confirmation]struct{}{}
	}
	s.confirms[c] = struct{}{}
	s.mu.Unlock()
	s.conn.session.Confirm(func(ok bool) {
		s.mu.Lock()
		_, waits := s.confirms[c]
		delete(s.confirms, c)
		s.mu.Unlock()
		if waits {
			s.later(func() { fn(ok) })
		}
	})
}

// later runs fn on the socket's goroutine. The socket must not have left.
func (s *Socket) later(fn func()) { s.serial.push(task{run: s.guard(fn)}, false) }

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
