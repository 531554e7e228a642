// Package load is the client that `make bench` loads brokers with: MQTT 5 over
// TCP, its packets written by hand, at QoS 1. It costs so little that the
// broker is what is measured, and it treats every broker alike.
//
// It is no MQTT client for anything else: nothing reconnects, payloads that
// arrive are counted and thrown away, and what it does not expect ends it with
// an error.
//
//	c, err := load.Dial(ctx, load.Config{Addr: addr, ClientID: "frame", Expiry: 3600})
//	err = c.Subscribe("pairs/p/photos/ann/#")
//	err = c.Receive(1000)                        // on one connection
//	err = c.Publish(load.Publishing{…})          // on another
//
// A Client has one owner: only Received and Acked may be called beside another
// of its methods.
package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
)

// Buffers. A client that only waits has the small one: thousands of them are
// open at a time.
const (
	idleBuffer    = 512
	receiveBuffer = 64 << 10
)

// keepAlive is the Keep Alive in seconds. No run lasts as long, so that nothing
// has to send PINGREQ.
const keepAlive = 3600

// Config says who connects where.
type Config struct {
	Addr     string // host:port
	ClientID string
	User     string // empty, with Password: anonymous
	Password string
	Expiry   uint32 // session expiry in seconds; 0: a clean session that ends with the connection
}

// Client is one connection.
type Client struct {
	nc       net.Conn
	in       *bufio.Reader
	acks     []byte // PUBACKs that wait to be written
	resumed  bool
	received atomic.Int64
	acked    atomic.Int64
	release  func() bool
}

// Dial connects and waits for CONNACK. When ctx ends, the connection does.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, err
	}
	c := &Client{nc: nc}
	c.in = bufio.NewReaderSize(flusher{c}, idleBuffer)
	c.release = context.AfterFunc(ctx, func() { nc.Close() })
	if err := c.connect(cfg); err != nil {
		c.drop()
		return nil, fmt.Errorf("connect %q: %w", cfg.ClientID, err)
	}
	return c, nil
}

func (c *Client) connect(cfg Config) error {
	if _, err := c.nc.Write(appendConnect(nil, cfg)); err != nil {
		return err
	}
	p, err := c.next()
	if err != nil {
		return err
	}
	body, err := c.whole(p, typeConnack, 2)
	if err != nil {
		return err
	}
	if body[1] >= 0x80 {
		return fmt.Errorf("CONNACK says 0x%02X", body[1])
	}
	c.resumed = body[0]&1 != 0
	return nil
}

// Resumed reports whether the server had a session of this client id.
func (c *Client) Resumed() bool { return c.resumed }

// Received is how many messages have arrived so far.
func (c *Client) Received() int64 { return c.received.Load() }

// Acked is how many of its own messages were acknowledged so far.
func (c *Client) Acked() int64 { return c.acked.Load() }

// Subscribe asks for filter at QoS 1 and waits for SUBACK. Call it before
// Receive, on a session that nothing waits for.
func (c *Client) Subscribe(filter string) error {
	if _, err := c.nc.Write(appendSubscribe(nil, filter)); err != nil {
		return err
	}
	p, err := c.next()
	if err != nil {
		return err
	}
	body, err := c.whole(p, typeSuback, 4)
	if err != nil {
		return err
	}
	if code := body[len(body)-1]; code != 1 {
		return fmt.Errorf("subscribe %q: SUBACK says 0x%02X, want 0x01", filter, code)
	}
	return nil
}

// Receive takes messages until n have arrived since Dial and acknowledges each;
// all acknowledgements are written when it returns.
func (c *Client) Receive(n int64) error {
	// What the small buffer holds is read first.
	c.in = bufio.NewReaderSize(c.in, receiveBuffer)
	for c.received.Load() < n {
		p, err := c.next()
		if err == nil {
			err = c.take(p)
		}
		if err != nil {
			return fmt.Errorf("receive, after %d of %d messages: %w", c.received.Load(), n, err)
		}
	}
	return c.flush()
}

// take reads one PUBLISH.
func (c *Client) take(p packet) error {
	if p.kind != typePublish {
		return c.unexpected(p)
	}
	if qos := p.flags >> 1 & 3; qos != 1 {
		return fmt.Errorf("a message came at QoS %d, want 1", qos)
	}
	b, err := c.in.Peek(2)
	if err != nil {
		return err
	}
	topic := int(b[0])<<8 | int(b[1])
	if p.length < 2+topic+2 {
		return errMalformed
	}
	if _, err := c.in.Discard(2 + topic); err != nil {
		return err
	}
	if b, err = c.in.Peek(2); err != nil {
		return err
	}
	c.acks = append(c.acks, typePuback<<4, 2, b[0], b[1])
	if _, err := c.in.Discard(p.length - 2 - topic); err != nil {
		return err
	}
	c.received.Add(1)
	return nil
}

// Close says goodbye; a session with an expiry stays.
func (c *Client) Close() error {
	_, err := c.nc.Write(goodbye)
	return errors.Join(err, c.drop())
}

// drop ends the connection without a word.
func (c *Client) drop() error {
	c.release()
	return c.nc.Close()
}

// flusher reads from the connection, and writes the acknowledgements before it
// waits for more: they go out together, and never late.
type flusher struct{ c *Client }

func (f flusher) Read(b []byte) (int, error) {
	if err := f.c.flush(); err != nil {
		return 0, err
	}
	return f.c.nc.Read(b)
}

func (c *Client) flush() error {
	if len(c.acks) == 0 {
		return nil
	}
	_, err := c.nc.Write(c.acks)
	c.acks = c.acks[:0]
	return err
}

// next reads a packet's fixed header.
func (c *Client) next() (packet, error) {
	first, err := c.in.ReadByte()
	if err != nil {
		return packet{}, err
	}
	p := packet{kind: first >> 4, flags: first & 0x0F}
	for shift := 0; ; shift += 7 {
		b, err := c.in.ReadByte()
		if err != nil {
			return packet{}, err
		}
		p.length |= int(b&0x7F) << shift
		if b&0x80 == 0 {
			return p, nil
		}
		if shift == 21 {
			return packet{}, errMalformed
		}
	}
}

// whole reads the rest of a small packet of the kind that is expected.
func (c *Client) whole(p packet, kind byte, atLeast int) ([]byte, error) {
	if p.kind != kind {
		return nil, c.unexpected(p)
	}
	if p.length < atLeast || p.length > maxSmallPacket {
		return nil, errMalformed
	}
	body := make([]byte, p.length)
	_, err := io.ReadFull(c.in, body)
	return body, err
}

// unexpected is the error for a packet that should not have come; the server's
// goodbye tells why.
func (c *Client) unexpected(p packet) error {
	if p.kind == typeDisconnect && p.length > 0 {
		code, err := c.in.ReadByte()
		return errors.Join(fmt.Errorf("the server disconnects with 0x%02X", code), err)
	}
	return fmt.Errorf("packet of type %d was not expected", p.kind)
}
