package broker

import (
	"fmt"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/moment"
)

// Wills are not left to mochi: it loses their properties, refuses an empty
// payload, and keeps a delayed one when its session has ended.

// maxWillDelay is the longest Will Delay Interval that is kept to.
const maxWillDelay = 5 * time.Minute

// will is what a CONNECT leaves to be published when its connection ends.
type will struct {
	topic      string
	payload    []byte
	properties packets.Properties
	qos        byte
	retain     bool
	delay      time.Duration
}

// pendingWill is a will that waits for its delay.
type pendingWill struct {
	c     *client
	w     *will
	timer *time.Timer
}

// takeWill takes the will out of a CONNECT; nil when there is none.
func takeWill(pk *packets.Packet) *will {
	p := &pk.Connect
	if !p.WillFlag {
		return nil
	}
	w := &will{
		topic: p.WillTopic, payload: p.WillPayload, properties: p.WillProperties, qos: p.WillQos, retain: p.WillRetain,
		delay: min(time.Duration(p.WillProperties.WillDelayInterval)*time.Second, maxWillDelay),
	}
	p.WillFlag, p.WillTopic, p.WillPayload, p.WillQos, p.WillRetain = false, "", nil, 0, false
	return w
}

// checkWill refuses a will that is malformed or that the client could not
// publish itself. Wills on a pair's tree are limited to live topics; anything
// durable must be acknowledged to somebody.
func (b *Broker) checkWill(c *client, w *will) (packets.Code, bool) {
	if w == nil {
		return packets.Code{}, true
	}
	invalid := func(code packets.Code, format string, args ...any) (packets.Code, bool) {
		return packets.Code{Code: code.Code, Reason: "will: " + fmt.Sprintf(format, args...)}, false
	}
	if w.qos > 2 { // [MQTT-3.1.2-12]
		return invalid(packets.ErrMalformedPacket, "QoS %d", w.qos)
	}
	if w.topic == "" || strings.ContainsAny(w.topic, "+#") || strings.HasPrefix(w.topic, "$") {
		return invalid(packets.ErrTopicNameInvalid, "%q is no topic to publish on", w.topic)
	}
	t, err := moment.ParseTopic(w.topic)
	if err != nil {
		return invalid(packets.ErrNotAuthorized, "%v", err)
	}
	if err := b.mayPublish(c.can.Load(), t); err != nil {
		return invalid(packets.ErrNotAuthorized, "topic %q: %v", w.topic, err)
	}
	switch t.Class {
	case moment.ClassOther:
		return packets.Code{}, true
	case moment.ClassLive:
	default:
		return invalid(packets.ErrNotAuthorized, "topic %q: a will may only be a live topic", w.topic)
	}
	if len(w.payload) > maxSmallBytes {
		return invalid(packets.ErrNotAuthorized, "payload of %d bytes is too large (at most %d)", len(w.payload), maxSmallBytes)
	}
	return packets.Code{}, true
}

// leaveWill publishes the will of a connection that has ended without a normal
// DISCONNECT, or lets it wait for its delay or the session's end, whichever
// comes first (MQTT 5, section 3.1.3.2.2).
func (b *Broker) leaveWill(c *client) {
	if c.will == nil {
		return
	}
	delay := min(c.will.delay, b.grantedExpiry(c.cl))
	if delay <= 0 {
		b.publishWill(c, c.will)
		return
	}
	id := c.cl.ID
	p := &pendingWill{c: c, w: c.will}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return
	}
	b.wills[id] = p
	p.timer = time.AfterFunc(delay, func() {
		b.mu.Lock()
		due := b.wills[id] == p
		if due {
			delete(b.wills, id)
		}
		back := b.clients[id] != nil
		b.mu.Unlock()
		if due && !back {
			b.publishWill(c, p.w)
		}
	})
}

// recallWill is for a client that is back before its will's delay is over: the
// will is not published [MQTT-3.1.3-9], unless its session has ended.
func (b *Broker) recallWill(c *client) {
	b.mu.Lock()
	p := b.wills[c.cl.ID]
	delete(b.wills, c.cl.ID)
	b.mu.Unlock()
	if p == nil {
		return
	}
	p.timer.Stop()
	if !c.present {
		b.publishWill(p.c, p.w)
	}
}

// dropWills forgets the wills that wait, at the end of the broker.
func (b *Broker) dropWills() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, p := range b.wills {
		p.timer.Stop()
		delete(b.wills, id)
	}
}

// publishWill publishes c's will: on a pair's tree what every live message is,
// QoS 0 and not retained.
func (b *Broker) publishWill(c *client, w *will) {
	t, err := moment.ParseTopic(w.topic)
	if err == nil {
		err = b.mayPublish(c.can.Load(), t) // the pair may have ended since CONNECT
	}
	if err == nil && t.Class == moment.ClassOther {
		err = b.route(messageOf(w.topic, w.payload, &w.properties, w.qos, w.retain, c.cl.ID))
	} else if err == nil {
		b.fanOut(t.Pair, outgoing{topic: w.topic, payload: w.payload, contentType: w.properties.ContentType, props: w.properties.User}, c)
	}
	if err != nil {
		b.log.Info("will not published", "client", c.cl.ID, "reason", err)
	}
}
