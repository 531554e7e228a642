package socketio

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"pairsync/bridge/socketio/engineio"
)

// DefaultMaxMessage bounds one message to a Client, in bytes.
const DefaultMaxMessage = 64 << 20

// DialOptions says how a Client connects. The zero value will do.
type DialOptions struct {
	// Auth goes into CONNECT as JSON; it must encode as an object.
	Auth any
	// Header is added to the WebSocket's request.
	Header http.Header
	// NetDial makes the connection, by default over TCP.
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)
	// TLS is used for https and wss addresses.
	TLS *tls.Config
	// Path is where the server listens, by default DefaultPath.
	Path string
	// MaxMessage bounds one incoming message, by default DefaultMaxMessage.
	MaxMessage int64
	// On holds handlers that are there before the first event arrives.
	On map[string]func(*Event)
}

// Client is one connection to one namespace over WebSocket. It does not
// reconnect. Its handlers run one after the other, in order of arrival.
type Client struct {
	link      *link
	namespace string
	id        string
	serial    serial
	tasks     sync.WaitGroup
	done      chan struct{} // closed when every goroutine has ended

	mu       sync.Mutex // guards the fields below
	handlers map[string]func(*Event)
	acks     map[int64]chan clientAck
	nextAck  int64
	err      error // why the connection ended
	ended    bool
}

type clientAck struct {
	args []json.RawMessage
	err  error
}

// Dial connects to address, for example "http://host:8080/?userId=7": the path
// names the namespace, the query goes along. It returns when the server has
// let the client in; a refusal is a *ConnectError. ctx bounds Dial alone.
func Dial(ctx context.Context, address string, o DialOptions) (*Client, error) {
	l, namespace, err := dialLink(ctx, address, o)
	if end, ok := ctx.Deadline(); err != nil && ok && !time.Now().Before(end) {
		err = fmt.Errorf("%w: %w", context.DeadlineExceeded, err) // the connection may notice first
	}
	if err != nil {
		return nil, fmt.Errorf("socketio: dial %q: %w", address, err)
	}
	c := &Client{link: l, namespace: namespace, done: make(chan struct{}), handlers: map[string]func(*Event){}, acks: map[int64]chan clientAck{}}
	for event, fn := range o.On {
		c.handlers[event] = fn
	}
	c.serial.start = c.tasks.Go
	stop := context.AfterFunc(ctx, func() { l.close() })
	err = c.connect(o.Auth)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		l.close()
		var refused *ConnectError
		if errors.As(err, &refused) {
			return nil, err
		}
		return nil, fmt.Errorf("socketio: connect to %q: %w", address, err)
	}
	c.tasks.Go(c.read)
	go func() {
		c.tasks.Wait()
		close(c.done)
	}()
	return c, nil
}

// connect joins the namespace.
func (c *Client) connect(auth any) error {
	var body []byte
	if auth != nil {
		var err error
		if body, err = json.Marshal(auth); err != nil {
			return fmt.Errorf("encode auth: %w", err)
		}
	}
	p := packet{kind: typeConnect, namespace: c.namespace, id: -1}
	if err := c.link.send(text(&p, body)); err != nil {
		return err
	}
	for {
		a, err := c.link.receive()
		if err != nil {
			return err
		}
		if a.packet.namespace != c.namespace {
			continue
		}
		switch a.packet.kind {
		case typeConnect:
			var joined struct{ SID string }
			if err := json.Unmarshal(a.packet.data, &joined); err != nil {
				return fmt.Errorf("answer to connect: %w", err)
			}
			c.id = joined.SID
			return nil
		case typeConnectError:
			var reason struct {
				Message string
				Data    json.RawMessage
			}
			if err := json.Unmarshal(a.packet.data, &reason); err != nil {
				return fmt.Errorf("connect error: %w", err)
			}
			refused := &ConnectError{Message: reason.Message}
			if reason.Data != nil {
				refused.Data = reason.Data
			}
			return refused
		}
	}
}

// ID returns the id that the server gave the socket.
func (c *Client) ID() string { return c.id }

// On sets the handler of an event; events without one are dropped.
func (c *Client) On(event string, fn func(*Event)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers[event] = fn
}

// Done returns a channel that is closed when the connection and every handler
// have ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, nil while it stands or after Close.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. It does not wait for a running handler; Done does.
func (c *Client) Close() error {
	c.end(nil)
	return nil
}

// end ends the connection for a reason, once.
func (c *Client) end(err error) {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	c.ended, c.err = true, err
	acks := c.acks
	c.acks = nil
	c.mu.Unlock()
	c.link.close()
	for _, answered := range acks {
		answered <- clientAck{err: ErrDisconnected}
	}
}

// read handles packets until the connection ends.
func (c *Client) read() {
	for {
		a, err := c.link.receive()
		if err == nil {
			err = c.packet(a)
		}
		if err != nil {
			c.end(err)
			c.serial.end(task{run: func() {}})
			return
		}
	}
}

func (c *Client) packet(a *assembly) error {
	if a.packet.namespace != c.namespace {
		return nil
	}
	switch a.packet.kind {
	case typeDisconnect:
		return errors.New(ReasonServerDisconnect)
	case typeEvent, typeBinaryEvent:
		e, err := newEvent(a.packet, a.parts)
		if err != nil {
			return err
		}
		if a.packet.id >= 0 {
			e.reply = c.reply
		}
		c.serial.push(task{size: len(e.Raw), run: func() { c.dispatch(e, a.buf) }}, true)
		return nil
	case typeAck, typeBinaryAck:
		c.mu.Lock()
		answered := c.acks[a.packet.id]
		delete(c.acks, a.packet.id)
		c.mu.Unlock()
		if answered != nil {
			args, err := ackArgs(a.packet.data, a.parts)
			answered <- clientAck{args, err}
		}
		return nil
	default:
		return fmt.Errorf("unexpected packet of type %c", a.packet.kind)
	}
}

func (c *Client) dispatch(e *Event, buf engineio.Buffer) {
	defer buf.Release()
	c.mu.Lock()
	fn := c.handlers[e.Name]
	c.mu.Unlock()
	if fn != nil {
		fn(e)
	}
}

func (c *Client) reply(id int64, args []any) error {
	p, err := encode(args)
	if err != nil {
		return err
	}
	return c.send(p.messages(typeAck, typeBinaryAck, c.namespace, id))
}

func (c *Client) send(messages []engineio.Message) error {
	if err := c.link.send(messages...); err != nil {
		return fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	return nil
}

// Emit sends an event and returns when it is written. See Prepare for the
// arguments.
func (c *Client) Emit(event string, args ...any) error {
	p, err := Prepare(event, args...)
	if err != nil {
		return err
	}
	return c.EmitPrepared(p)
}

// EmitPrepared sends a prepared event.
func (c *Client) EmitPrepared(p *Prepared) error {
	return c.send(p.messages(typeEvent, typeBinaryEvent, c.namespace, -1))
}

// EmitWithAck sends an event and waits for the server's answer, ctx or the end
// of the connection.
func (c *Client) EmitWithAck(ctx context.Context, event string, args ...any) ([]json.RawMessage, error) {
	p, err := Prepare(event, args...)
	if err != nil {
		return nil, err
	}
	return c.EmitPreparedWithAck(ctx, p)
}

// EmitPreparedWithAck is EmitWithAck for a prepared event.
func (c *Client) EmitPreparedWithAck(ctx context.Context, p *Prepared) ([]json.RawMessage, error) {
	answered := make(chan clientAck, 1)
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return nil, ErrDisconnected
	}
	id := c.nextAck
	c.nextAck++
	c.acks[id] = answered
	c.mu.Unlock()
	err := c.send(p.messages(typeEvent, typeBinaryEvent, c.namespace, id))
	if err == nil {
		select {
		case a := <-answered:
			return a.args, a.err
		case <-ctx.Done():
			err = fmt.Errorf("socketio: acknowledgement: %w", ctx.Err())
		}
	}
	c.mu.Lock()
	delete(c.acks, id)
	c.mu.Unlock()
	return nil, err
}
