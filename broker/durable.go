package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/bufpool"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/token"
)

// refusalWait is how long a 3.1.1 publisher stays connected after a refused
// publish: that version has no reason codes, a false PUBACK would be a lie,
// and an immediate close would make it reconnect and retry at full speed.
const refusalWait = 2 * time.Second

// reply is the answer to one publish, written by the pump in the order of the
// publishes (MQTT 5, section 4.6).
type reply struct {
	id     uint16
	qos    byte
	code   packets.Code
	dup    bool // it was stored before
	ready  bool
	closes bool         // a refusal that 3.1.1 can only be told by closing
	after  func() error // storage work to do before the answer, on the pump
}

// publish takes a publish that mochi has decoded. It runs on the publisher's
// reader goroutine; blocking there is back-pressure. ErrRejectPacket tells
// mochi that everything is done.
func (b *Broker) publish(c *client, pk packets.Packet) (packets.Packet, error) {
	if !b.slowDown(c, len(pk.Payload)) {
		return pk, packets.ErrRejectPacket
	}
	can := c.can.Load()
	t, err := moment.ParseTopic(pk.TopicName)
	if err == nil {
		if err = b.mayPublish(can, t); err != nil {
			err = fmt.Errorf("topic %q: %w", pk.TopicName, err)
		}
	}
	again := false
	if pk.FixedHeader.Qos == 2 && c.admin != nil {
		var over bool
		if again, over = c.admin.repeated(pk.PacketID); over && c.v5() {
			c.end(packets.ErrReceiveMaximum)
			return pk, packets.ErrRejectPacket
		}
	} else if pk.FixedHeader.Qos == 2 && c.v5() {
		c.end(packets.ErrQosNotSupported) // CONNACK said Maximum QoS 1
		return pk, packets.ErrRejectPacket
	}
	r := c.expect(pk)
	if r == nil {
		return pk, packets.ErrRejectPacket // the connection is ending
	}
	switch {
	case err != nil:
		c.refuse(r, refusal(packets.ErrNotAuthorized, err))
	case again: // it was taken, and is not passed on twice [MQTT-4.3.3-10]
		c.answer(r, packets.CodeSuccess, false, nil)
	case t.Class == moment.ClassMoment:
		b.append(c, r, t, pk)
	case t.Class == moment.ClassOther:
		b.publishGeneral(c, r, pk)
	default:
		b.publishSmall(c, r, t, pk)
	}
	return pk, packets.ErrRejectPacket
}

// refuseName answers a publish on a topic that only the server has, $SYS, or
// that is none: mochi drops it without a word.
func (b *Broker) refuseName(c *client, pk packets.Packet) {
	if r := c.expect(pk); r != nil {
		c.refuse(r, refusal(packets.ErrTopicNameInvalid, fmt.Errorf("nothing may be published to topic %q", pk.TopicName)))
	}
}

// slowDown makes a publisher over its user's rate wait, which holds back its
// connection alone; one that is far over it is disconnected. The bridge acts
// for phones that it limits itself.
func (b *Broker) slowDown(c *client, bytes int) bool {
	if c.who().Role == token.RoleBridge {
		return true
	}
	wait, ok := b.limits.publish(c.who().User, bytes)
	if !ok {
		b.metrics.overLimit.Inc()
		c.end(packets.ErrMessageRateTooHigh)
		return false
	}
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.gone:
		return false
	}
}

// refusal gives a reason code the reason in words.
func refusal(code packets.Code, why error) packets.Code {
	return packets.Code{Code: code.Code, Reason: why.Error()}
}

// expect makes the place for the answer to pk, in order; it waits while too
// many publishes are unanswered. It returns nil when the connection ends.
func (c *client) expect(pk packets.Packet) *reply {
	select {
	case c.room <- struct{}{}:
	case <-c.gone:
		return nil
	}
	r := &reply{id: pk.PacketID, qos: pk.FixedHeader.Qos}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused {
		return nil
	}
	c.replies = append(c.replies, r)
	return r
}

// answer completes r and lets the pump write it. It never blocks.
func (c *client) answer(r *reply, code packets.Code, dup bool, after func() error) {
	if r.qos == 2 && c.admin != nil && code.Code < packets.ErrUnspecifiedError.Code {
		c.admin.receive(r.id)
	}
	c.mu.Lock()
	r.code, r.dup, r.after, r.ready = code, dup, after, true
	c.mu.Unlock()
	c.poke()
}

// refuse answers r with an error: nothing was stored.
func (c *client) refuse(r *reply, code packets.Code) {
	c.b.metrics.refused.Inc()
	c.mu.Lock()
	if r.qos > 0 && !c.v5() && !c.refused {
		c.refused = true
		// Owned by the connection: after it has ended, Stop does nothing.
		time.AfterFunc(refusalWait, func() { c.cl.Stop(code) })
	}
	r.closes = r.qos > 0 && !c.v5()
	c.mu.Unlock()
	c.b.log.Info("publish refused", "client", c.cl.ID, "code", fmt.Sprintf("0x%02X", code.Code), "reason", code.Reason)
	c.answer(r, code, false, nil)
}

// append gives a moment to the ledger; the answer follows when it is on disk.
func (b *Broker) append(c *client, r *reply, t moment.Topic, pk packets.Packet) {
	m, err := b.momentOf(c, t, pk)
	if err == nil {
		err = b.checkPayload(&m)
	}
	if err != nil {
		code := packets.ErrImplementationSpecificError
		if errors.Is(err, errNotUTF8) {
			code = packets.ErrPayloadFormatInvalid
		}
		if errors.Is(err, errNotAllowed) {
			code = packets.ErrNotAuthorized
		}
		c.refuse(r, refusal(code, err))
		return
	}
	log, lent := ledger.LogOf(&m), c.nc.in.keep()
	err = b.deps.Ledger.Submit(c.ctx, log, m, func(res ledger.Result) {
		if !b.appended(c, r, &m, res) {
			bufpool.Put(lent)
		}
	})
	if err != nil {
		c.refuse(r, storageCode(err))
	}
}

// appended runs when the ledger has stored or refused m, on the ledger's
// goroutine: it must not block. It reports whether the payload is still used.
func (b *Broker) appended(c *client, r *reply, m *moment.Moment, res ledger.Result) (used bool) {
	if res.Err != nil {
		c.refuse(r, storageCode(res.Err))
		return false
	}
	log := ledger.LogOf(m)
	var after func() error
	if m.Kind == moment.Delete {
		after = func() error { return b.takeBack(c, m) }
	}
	if res.Duplicate {
		b.metrics.duplicates.Inc()
	} else {
		b.metrics.stored.Inc()
		b.markDirty(log)
		if m.Kind == moment.Photo {
			b.tellNewest(m)
		}
		used = b.tellAdmins(m)
	}
	c.answer(r, packets.CodeSuccess, res.Duplicate, after)
	return used
}

// tellAdmins gives a moment to the admins that subscribed it, at QoS 0, and
// reports whether there are any.
func (b *Broker) tellAdmins(m *moment.Moment) bool {
	admins := b.audience()
	for _, c := range admins {
		c.push(outgoing{topic: m.Topic(), payload: m.Payload, contentType: m.ContentType, props: userProperties(m)}, false, nil)
	}
	return len(admins) > 0
}

// takeBack removes what a delete moment names. It is done also for a repeated
// delete, so that one that a crash interrupted is completed by the retry.
func (b *Broker) takeBack(c *client, m *moment.Moment) error {
	log := ledger.LogOf(m)
	for _, kind := range []moment.Kind{moment.Photo, moment.Note} {
		err := b.deps.Ledger.Remove(c.ctx, log, moment.Key{User: m.User, Kind: kind, ID: m.ID})
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return fmt.Errorf("delete %s: %w", m.Key(), err)
		}
	}
	return nil
}

// storageCode is what a publisher is told of a ledger's error.
func storageCode(err error) packets.Code {
	switch {
	case errors.Is(err, ledger.ErrDeleted):
		return refusal(packets.ErrNotAuthorized, errors.New("the pair has ended"))
	case errors.Is(err, ledger.ErrQuota):
		return refusal(packets.ErrQuotaExceeded, errors.New("the pair's quota is reached"))
	case errors.Is(err, ledger.ErrFull):
		return refusal(packets.ErrQuotaExceeded, errors.New("storage full"))
	case errors.Is(err, ledger.ErrTooLarge): // PUBACK has no 0x95 (MQTT 5, section 3.4.2.1)
		return refusal(packets.ErrImplementationSpecificError, errors.New("too large to store"))
	}
	return refusal(packets.ErrImplementationSpecificError, errors.New(publicReason(err)))
}

var (
	errNotUTF8    = errors.New("not UTF-8")
	errNotAllowed = errors.New("not allowed")
)

// momentOf builds the moment of a publish. Strings of a mochi packet alias its
// whole buffer, so what is kept is cloned.
func (b *Broker) momentOf(c *client, t moment.Topic, pk packets.Packet) (moment.Moment, error) {
	m := moment.Moment{
		Pair: strings.Clone(t.Pair), User: strings.Clone(t.User), Kind: t.Kind, ID: strings.Clone(t.ID),
		ContentType: strings.Clone(pk.Properties.ContentType), Payload: pk.Payload,
	}
	if len(m.ContentType) > moment.MaxPropertyBytes {
		return m, fmt.Errorf("content type of %d bytes is too long (at most %d)", len(m.ContentType), moment.MaxPropertyBytes)
	}
	props := make([]moment.Property, 0, len(pk.Properties.User))
	for _, p := range pk.Properties.User {
		props = append(props, moment.Property{Key: strings.Clone(p.Key), Value: strings.Clone(p.Val)})
	}
	if err := m.SetProperties(props); err != nil {
		return m, err
	}
	if c.who().Device != "" {
		m.Device = c.who().Device
	}
	if c.sess != nil { // an admin's sessions are in no user's namespace
		m.Origin = c.sess.name
	}
	if e := pk.Properties.MessageExpiryInterval; e > 0 {
		m.ExpiresAt = time.Now().Add(time.Duration(e) * time.Second)
	}
	return m, nil
}

// checkPayload refuses what the contract does not allow for the kind. Images
// are not decoded here: whoever shows one validates it.
func (b *Broker) checkPayload(m *moment.Moment) error {
	limit := maxJSONBytes
	switch m.Kind {
	case moment.Photo:
		limit = b.cfg.PhotoBytes
	case moment.Note:
		limit = maxNoteBytes
	case moment.Delete:
		limit = 0
	}
	if len(m.Payload) > limit {
		return fmt.Errorf("%s payload of %d bytes is too large (at most %d)", m.Kind, len(m.Payload), limit)
	}
	switch m.Kind {
	case moment.Photo:
		if len(m.Payload) == 0 {
			return errors.New("photo payload is empty")
		}
	case moment.Note:
		if !utf8.Valid(m.Payload) {
			return fmt.Errorf("note payload: %w", errNotUTF8)
		}
	case moment.Reaction:
		return checkReaction(m.Payload)
	case moment.Receipt:
		return b.checkReceipt(m)
	}
	return nil
}

func checkReaction(payload []byte) error {
	var r moment.ReactionBody
	if err := json.Unmarshal(payload, &r); err != nil {
		return fmt.Errorf("reaction payload: %w", err)
	}
	if err := moment.CheckID("sender", r.Sender); err != nil {
		return fmt.Errorf("reaction payload: %w", err)
	}
	return moment.CheckID("moment", r.Moment)
}

// checkReceipt allows receipts for the partner's photos and notes only.
func (b *Broker) checkReceipt(m *moment.Moment) error {
	var r moment.ReceiptBody
	if err := json.Unmarshal(m.Payload, &r); err != nil {
		return fmt.Errorf("receipt payload: %w", err)
	}
	if err := moment.CheckID("moment", r.Moment); err != nil {
		return fmt.Errorf("receipt payload: %w", err)
	}
	if r.Status != moment.StatusStored && r.Status != moment.StatusShown {
		return fmt.Errorf("receipt payload: status %q is neither %q nor %q", r.Status, moment.StatusStored, moment.StatusShown)
	}
	pair, ok := b.deps.Registry.Pair(m.Pair)
	if partner, in := pair.Partner(m.User); !ok || !in || r.Sender != partner {
		return fmt.Errorf("receipt for %q: only the partner's photos and notes get receipts: %w", r.Sender, errNotAllowed)
	}
	return nil
}

// publishSmall takes what is not durable: live messages, device state and
// device commands. It is answered at once and delivered at QoS 0.
func (b *Broker) publishSmall(c *client, r *reply, t moment.Topic, pk packets.Packet) {
	if len(pk.Payload) > maxSmallBytes {
		c.refuse(r, refusal(packets.ErrImplementationSpecificError,
			fmt.Errorf("payload of %d bytes is too large (at most %d)", len(pk.Payload), maxSmallBytes)))
		return
	}
	if t.Class == moment.ClassState {
		if err := b.keepState(c, t, pk.Payload); err != nil {
			c.refuse(r, storageCode(err))
			return
		}
	}
	o := outgoing{
		topic: strings.Clone(pk.TopicName), payload: pk.Payload,
		contentType: strings.Clone(pk.Properties.ContentType), asPublished: t.Class == moment.ClassState,
	}
	for _, p := range pk.Properties.User {
		o.props = append(o.props, packets.UserProperty{Key: strings.Clone(p.Key), Val: strings.Clone(p.Val)})
	}
	if r.qos < 2 || c.sess == nil || c.sess.received(r.id) {
		b.fanOut(t.Pair, o, c)
	}
	c.answer(r, packets.CodeSuccess, false, nil)
}
