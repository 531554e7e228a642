package mqttlink

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"pairsync/internal/moment"
)

const (
	// readBufferBytes serves heads and small packets; a payload larger than
	// it is read straight into its own memory.
	readBufferBytes = 4 << 10
	// eventQueue is how many messages wait for a callback that is running.
	eventQueue = 4
	// subscribeTimeout bounds the wait for SUBACK after a connect: behind a
	// 2 MB photo on a 32 KB/s link it takes a minute.
	subscribeTimeout = 150 * time.Second
	// pingTimeout is how long after a ping nothing at all may move.
	pingTimeout = 30 * time.Second
)

// connection is one established MQTT connection. Fields under "l.mu" are
// guarded by the Link's mutex.
type connection struct {
	l      *Link
	wire   *wire
	r      *bufio.Reader
	events chan event    // written by the reader, closed by it
	wake   chan struct{} // capacity 1: the sender has something to look at

	gone chan struct{} // closed by fail
	once sync.Once
	err  error // why; read it after gone

	// What the server allows, fixed by its CONNACK.
	keepAlive   time.Duration
	maxPacket   int
	noRetain    bool
	maxQoS      byte
	subDeadline *time.Timer

	sessionPresent bool // set by attach

	// l.mu:
	quota   int      // how many more QoS 1 messages may be in flight
	initial int      // SUBSCRIBEs of the connect that have no SUBACK yet
	window  []unsure // received QoS 1 messages without PUBACK, in order of arrival
	base    uint64   // serial of window[0]
	acks    []uint16 // PUBACKs ready to be written
}

// unsure is one entry of the receive window.
type unsure struct {
	packetID uint16
	acked    bool
}

// event is what the reader hands to Run's goroutine: exactly one field counts.
type event struct {
	msg     *Message
	refused *refusal
	up      bool
}

type refusal struct {
	filter string
	err    *ReasonError
}

// connect dials and exchanges CONNECT and CONNACK.
func (l *Link) connect(ctx context.Context, first bool) (c *connection, sessionPresent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.ConnectTimeout)
	defer cancel()
	cp, err := l.connectPacket(ctx, first)
	if err != nil {
		return nil, false, err
	}
	raw, err := l.cfg.Dial(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("dial: %w", err)
	}
	w := newWire(raw, &l.moved)
	r := bufio.NewReaderSize(w, readBufferBytes)
	stop := context.AfterFunc(ctx, w.cut)
	ack, err := handshake(w, r, cp)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		w.cut()
		return nil, false, fmt.Errorf("connect: %w", err)
	}
	return l.newConnection(w, r, cp, ack), ack.SessionPresent, nil
}

func (l *Link) connectPacket(ctx context.Context, first bool) (*packets.Connect, error) {
	l.mu.Lock()
	clientID := l.clientID
	l.mu.Unlock()
	maxPacket, expiry := uint32(l.cfg.MaxPacketBytes), uint32(min(l.cfg.SessionExpiry/time.Second, math.MaxUint32))
	cp := &packets.Connect{
		ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: clientID,
		CleanStart: l.cfg.CleanStart && first,
		KeepAlive:  uint16(l.cfg.KeepAlive / time.Second),
		Username:   l.cfg.Username, UsernameFlag: l.cfg.Username != "",
		Properties: &packets.Properties{
			ReceiveMaximum: &l.cfg.ReceiveMaximum, MaximumPacketSize: &maxPacket, SessionExpiryInterval: &expiry,
		},
	}
	if l.cfg.Token == nil {
		return cp, nil
	}
	token, err := l.cfg.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	if len(token) > math.MaxUint16 {
		return nil, fmt.Errorf("token of %d bytes is too long for MQTT", len(token))
	}
	cp.Password, cp.PasswordFlag = []byte(token), true
	return cp, nil
}

// handshake sends CONNECT and reads CONNACK.
func handshake(w *wire, r *bufio.Reader, cp *packets.Connect) (*packets.Connack, error) {
	if err := w.send(encode(cp), nil); err != nil {
		return nil, err
	}
	got, err := readPacket(r, maxControlBytes)
	if err != nil {
		return nil, noEOF(err)
	}
	switch p := got.(type) {
	case *packets.Connack:
		if p.ReasonCode >= 0x80 {
			return nil, &ReasonError{Code: p.ReasonCode, Reason: p.Properties.ReasonString}
		}
		return p, nil
	case *packets.Disconnect:
		return nil, disconnected(p)
	}
	return nil, fmt.Errorf("%w: the server's first packet is not CONNACK", errPacket)
}

func (l *Link) newConnection(w *wire, r *bufio.Reader, cp *packets.Connect, ack *packets.Connack) *connection {
	c := &connection{
		l: l, wire: w, r: r,
		events: make(chan event, eventQueue), wake: make(chan struct{}, 1), gone: make(chan struct{}),
		keepAlive: time.Duration(cp.KeepAlive) * time.Second, maxPacket: maxRemaining, maxQoS: 2, quota: math.MaxUint16,
	}
	p := ack.Properties
	if p.ServerKeepAlive != nil { // section 3.2.2.3.14: it must be used; 0 turns pings off
		c.keepAlive = time.Duration(*p.ServerKeepAlive) * time.Second
	}
	if p.MaximumPacketSize != nil {
		c.maxPacket = int(min(*p.MaximumPacketSize, maxRemaining)) // fits an int of 32 bits
	}
	if p.ReceiveMaximum != nil {
		c.quota = max(1, int(*p.ReceiveMaximum)) // 0 is not allowed
	}
	if p.MaximumQOS != nil {
		c.maxQoS = *p.MaximumQOS
	}
	c.noRetain = p.RetainAvailable != nil && *p.RetainAvailable == 0
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.AssignedClientID != "" {
		l.clientID = p.AssignedClientID
	}
	l.props = userProps(p)
	return c
}

// userProps returns the user properties of a packet, nil for none.
func userProps(p *packets.Properties) (out []moment.Property) {
	if p == nil {
		return nil
	}
	for _, u := range p.User {
		out = append(out, moment.Property{Key: u.Key, Value: u.Value})
	}
	return out
}

// serve runs an established connection until it ends, and says why it did.
func (l *Link) serve(ctx context.Context, c *connection, sessionPresent bool) error {
	l.attach(c, sessionPresent)
	stopGoodbye := context.AfterFunc(ctx, c.goodbye)
	var wg sync.WaitGroup
	wg.Go(c.readLoop)
	wg.Go(c.sendLoop)
	for e := range c.events {
		if ctx.Err() == nil {
			l.dispatch(c, e)
		}
	}
	if !stopGoodbye() {
		<-c.gone // goodbye is running; its last act is fail
	}
	wg.Wait()
	c.subDeadline.Stop()
	l.setUp(false)
	l.detach(c)
	return c.err
}

// dispatch calls the callback for e.
func (l *Link) dispatch(c *connection, e event) {
	switch {
	case e.up:
		c.subDeadline.Stop()
		l.setUp(true)
		if l.cfg.Up != nil {
			l.cfg.Up(c.sessionPresent)
		}
	case e.refused != nil:
		if l.cfg.Refused != nil {
			l.cfg.Refused(e.refused.filter, e.refused.err)
		}
	case l.cfg.Receive != nil:
		l.cfg.Receive(e.msg)
	default:
		e.msg.Ack()
	}
}

// fail ends the connection; the first cause counts.
func (c *connection) fail(err error) {
	c.once.Do(func() {
		c.err = err
		close(c.gone)
		c.wire.cut()
	})
}

// goodbye ends the connection in order: DISCONNECT, then the server closes.
// It takes at most goodbyeTimeout, whatever the other side does.
func (c *connection) goodbye() {
	ended := errors.New("link closed")
	last := time.AfterFunc(goodbyeTimeout, func() { c.fail(ended) })
	defer last.Stop()
	if c.wire.send(encode(&packets.Disconnect{Properties: &packets.Properties{}}), nil) == nil {
		t := time.NewTimer(goodbyeTimeout / 4)
		defer t.Stop()
		select {
		case <-c.gone: // the reader saw the end
		case <-t.C:
		}
	}
	c.fail(ended)
}

// readLoop reads until the connection ends.
func (c *connection) readLoop() {
	defer close(c.events)
	if c.initial == 0 && !c.emit(event{up: true}) {
		return
	}
	for {
		p, err := readPacket(c.r, c.l.cfg.MaxPacketBytes)
		if err != nil {
			c.fail(noEOF(err))
			return
		}
		if err := c.handle(p); err != nil {
			c.fail(err)
			return
		}
	}
}

// emit hands e to Run's goroutine; false when the connection has ended.
func (c *connection) emit(e event) bool {
	select {
	case c.events <- e:
		return true
	case <-c.gone:
		return false
	}
}

// handle acts on one packet from the server.
func (c *connection) handle(packet any) error {
	switch p := packet.(type) {
	case nil: // PINGRESP: that bytes arrived was the answer
	case *published:
		return c.received(p)
	case *packets.Puback:
		c.l.settle(c, p.PacketID, userProps(p.Properties), reasonError(p.ReasonCode, p.Properties))
	case *packets.Suback:
		return c.answered(p.PacketID, p.Reasons, p.Properties)
	case *packets.Unsuback:
		return c.answered(p.PacketID, p.Reasons, p.Properties)
	case *packets.Disconnect:
		return disconnected(p)
	default:
		return fmt.Errorf("%w: unexpected %T", errPacket, packet)
	}
	return nil
}

// disconnected is the error of a DISCONNECT from the server.
func disconnected(p *packets.Disconnect) error {
	if err := reasonError(p.ReasonCode, p.Properties); err != nil {
		return fmt.Errorf("server disconnected: %w", err)
	}
	return errors.New("server disconnected")
}

// reasonError returns the error of a reason code, nil for the good ones.
func reasonError(code byte, p *packets.Properties) error {
	if code < 0x80 {
		return nil
	}
	return &ReasonError{Code: code, Reason: p.ReasonString}
}
