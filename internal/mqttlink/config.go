package mqttlink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"strings"
	"time"

	"pairsync/internal/moment"
)

// The defaults of Config.
const (
	DefaultKeepAlive = 60 * time.Second
	// DefaultConnectTimeout bounds dial, TLS handshake, token and CONNACK together.
	DefaultConnectTimeout = 15 * time.Second
	// DefaultReceiveMaximum is how many unacknowledged QoS 1 messages the
	// server may have on the way to us: the window of architecture.md.
	DefaultReceiveMaximum = 16
	// DefaultMaxPacketBytes is announced to the server as the Maximum Packet
	// Size: well above limits.photo_bytes, because a broker silently skips
	// what does not fit.
	DefaultMaxPacketBytes = 16 << 20
	// DefaultMinBackoff and DefaultMaxBackoff bound the wait before a reconnect.
	DefaultMinBackoff = 250 * time.Millisecond
	DefaultMaxBackoff = 30 * time.Second
)

// Config says where a Link connects, as whom, and who hears of what arrives.
//
// The callbacks Receive, Up, Down and Refused are called one at a time, never
// concurrently, on a goroutine of the Link. They must not block for long and
// must not wait for Publish, Subscribe or Unsubscribe of the same Link.
type Config struct {
	// Dial opens the transport. Where it is nil, Broker says where to connect:
	// mqtt://host[:1883], mqtts://host[:8883], ws://host[:80]/path or
	// wss://host[:443]/path (path /mqtt where none is given).
	Dial   func(ctx context.Context) (net.Conn, error)
	Broker *url.URL
	TLS    *tls.Config // for mqtts and wss; nil is the system's trust; cloned

	ClientID string // empty: the server names the session, and the name is kept
	Username string
	// Token returns the MQTT password. It is asked at every connect; nil sends none.
	Token func(ctx context.Context) (string, error)

	SessionExpiry time.Duration // how long the server keeps the session after a disconnect; whole seconds
	CleanStart    bool          // drop the server's session at the first connect only
	KeepAlive     time.Duration // whole seconds; the server may set another

	// Subscriptions are sent at every connect, also where the session is present.
	Subscriptions []Subscription

	Receive func(*Message)            // a message arrived; nil acknowledges and drops everything
	Up      func(sessionPresent bool) // connected and subscribed
	Down    func(err error)           // a connection was lost or an attempt failed; not called when Run's context ends
	// Refused hears of each filter the server did not grant at a connect. The
	// link stays up, and asks for it again at the next connect.
	Refused func(filter string, err *ReasonError)

	MinBackoff, MaxBackoff time.Duration
	ConnectTimeout         time.Duration
	ReceiveMaximum         uint16
	MaxPacketBytes         int
}

// Subscription is one topic filter of a session.
type Subscription struct {
	Filter  string
	QoS     byte // 0 or 1
	NoLocal bool
	// Backfill asks a pairsync server to start a new session's cursor that far
	// back: "all" or a number; empty starts now (contract, section 2).
	Backfill string
}

// Publish is one outgoing message. Payload must not change once Link.Publish
// was called, also after it returned because its context ended.
type Publish struct {
	Topic       string
	Payload     []byte
	ContentType string
	Properties  []moment.Property
	QoS         byte // 0 or 1
	Retain      bool
}

// withDefaults returns a checked copy of c, or every problem at once.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }

	setDefault(&c.KeepAlive, DefaultKeepAlive)
	setDefault(&c.ConnectTimeout, DefaultConnectTimeout)
	setDefault(&c.ReceiveMaximum, DefaultReceiveMaximum)
	setDefault(&c.MaxPacketBytes, DefaultMaxPacketBytes)
	setDefault(&c.MinBackoff, DefaultMinBackoff)
	setDefault(&c.MaxBackoff, DefaultMaxBackoff)

	if c.Dial == nil {
		dial, err := dialer(c.Broker, c.TLS, c.MaxPacketBytes)
		if err != nil {
			errs = append(errs, err)
		}
		c.Dial = dial
	}
	if c.KeepAlive < time.Second || c.KeepAlive > math.MaxUint16*time.Second {
		fail("keepalive %v is not between 1s and %v", c.KeepAlive, math.MaxUint16*time.Second)
	}
	if c.SessionExpiry < 0 {
		fail("session expiry %v is negative", c.SessionExpiry)
	}
	if c.MinBackoff < 0 || c.MaxBackoff < c.MinBackoff {
		fail("back-off from %v to %v is not a range", c.MinBackoff, c.MaxBackoff)
	}
	if c.ConnectTimeout < 0 {
		fail("connect timeout %v is negative", c.ConnectTimeout)
	}
	if c.MaxPacketBytes < 1<<10 || c.MaxPacketBytes > maxRemaining {
		fail("maximum packet size %d is not between %d and %d", c.MaxPacketBytes, 1<<10, maxRemaining)
	}
	if err := checkUTF8("client id", c.ClientID); err != nil {
		errs = append(errs, err)
	}
	for _, s := range c.Subscriptions {
		if err := s.check(); err != nil {
			errs = append(errs, err)
		}
	}
	return c, errors.Join(errs...)
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

func (s Subscription) check() error {
	if s.Filter == "" {
		return errors.New("a subscription needs a topic filter")
	}
	if s.QoS > 1 {
		return fmt.Errorf("subscription %q asks for QoS %d; only 0 and 1 are used here", s.Filter, s.QoS)
	}
	return checkUTF8("topic filter", s.Filter)
}

func (p *Publish) check() error {
	if p.Topic == "" || strings.ContainsAny(p.Topic, "+#") {
		return fmt.Errorf("%q is not a topic to publish to", p.Topic)
	}
	if p.QoS > 1 {
		return fmt.Errorf("publish %q asks for QoS %d; only 0 and 1 are used here", p.Topic, p.QoS)
	}
	if err := checkUTF8("topic", p.Topic); err != nil {
		return err
	}
	if err := checkUTF8("content type", p.ContentType); err != nil {
		return err
	}
	for _, kv := range p.Properties {
		if err := errors.Join(checkUTF8("property name", kv.Key), checkUTF8("property value", kv.Value)); err != nil {
			return fmt.Errorf("publish %q: %w", p.Topic, err)
		}
	}
	return nil
}
