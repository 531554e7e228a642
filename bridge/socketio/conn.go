package socketio

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"pairsync/bridge/socketio/engineio"
)

// conn is one Engine.IO session and the sockets on it, one per namespace.
type conn struct {
	srv     *Server
	session *engineio.Session

	parts assembler // only Message uses it

	mu      sync.Mutex // guards the fields below
	sockets map[string]*Socket
	timer   *time.Timer // the connect timeout, nil once a socket has joined
	closed  bool
}

// open is called by the engine for every new session.
func (s *Server) open(session *engineio.Session) engineio.Receiver {
	c := &conn{srv: s, session: session, sockets: map[string]*Socket{}, parts: assembler{limit: 2 * s.cfg.MaxPayload}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timer = time.AfterFunc(s.cfg.ConnectTimeout, c.connectTimeout)
	return c
}

func (c *conn) connectTimeout() {
	c.mu.Lock()
	late := c.timer != nil
	c.mu.Unlock()
	if late {
		c.session.Close()
	}
}

// Message takes one Engine.IO message.
func (c *conn) Message(binary bool, buf engineio.Buffer) error {
	whole, err := c.parts.take(binary, buf)
	if err != nil || whole == nil {
		return err
	}
	return c.packet(whole.packet, whole.buf, whole.parts)
}

// packet handles a complete packet.
func (c *conn) packet(p packet, buf engineio.Buffer, parts [][]byte) error {
	if p.kind == typeConnect {
		return c.connect(p)
	}
	c.mu.Lock()
	s := c.sockets[p.namespace]
	c.mu.Unlock()
	if s == nil || !s.Connected() {
		if s != nil && s.left() {
			return nil // sent before the client heard that it was disconnected
		}
		return fmt.Errorf("packet of type %c for a namespace that was not joined", p.kind)
	}
	switch p.kind {
	case typeDisconnect:
		s.finish(ReasonClientDisconnect)
		return nil
	case typeEvent, typeBinaryEvent:
		return s.event(p, buf, parts)
	case typeAck, typeBinaryAck:
		s.acknowledged(p, parts)
		buf.Release()
		return nil
	default:
		return fmt.Errorf("packet of type %c is the server's to send", p.kind)
	}
}

// connect starts the join of a namespace.
func (c *conn) connect(p packet) error {
	n := c.srv.namespace(p.namespace)
	if n == nil {
		return c.refuse(p.namespace, &ConnectError{Message: "Invalid namespace"})
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	if old := c.sockets[p.namespace]; old != nil && !old.left() {
		c.mu.Unlock()
		return fmt.Errorf("namespace %q was joined already", p.namespace)
	}
	s := newSocket(c, n, p.data)
	c.sockets[p.namespace] = s
	c.mu.Unlock()
	s.serial.push(task{run: s.guard(s.join)}, false)
	return nil
}

// refuse answers a CONNECT with a CONNECT_ERROR. The session stays.
func (c *conn) refuse(namespace string, reason *ConnectError) error {
	body, err := json.Marshal(reason)
	if err != nil {
		return fmt.Errorf("encode connect error: %w", err)
	}
	p := packet{kind: typeConnectError, namespace: namespace, id: -1}
	return c.session.Send(text(&p, body))
}

// joined stops the connect timeout.
func (c *conn) joined() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}

// remove forgets a socket that never joined.
func (c *conn) remove(s *Socket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sockets[s.namespace.name] == s {
		delete(c.sockets, s.namespace.name)
	}
}

// Closed ends all sockets of the session.
func (c *conn) Closed(reason string) {
	c.mu.Lock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	sockets := make([]*Socket, 0, len(c.sockets))
	for _, s := range c.sockets {
		sockets = append(sockets, s)
	}
	c.mu.Unlock()
	for _, s := range sockets {
		s.finish(reason)
	}
}

// text is the message for a packet without attachments.
func text(p *packet, body []byte) engineio.Message {
	return engineio.Message{Head: p.appendHead([]byte(engineio.TextHead)), Body: body}
}
