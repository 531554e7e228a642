package broker

import (
	"slices"
	"strings"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/token"
)

// hook joins the broker to mochi. It is the only hook: mochi takes the OR of
// what several hooks say about authentication and ACL.
type hook struct {
	mqtt.HookBase
	b *Broker
}

// ID names the hook in mochi's logs.
func (h *hook) ID() string { return "pairsync" }

// Provides lists the calls that the hook answers.
func (h *hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablished,
		mqtt.OnPacketRead, mqtt.OnPacketEncode, mqtt.OnPacketProcessed, mqtt.OnSubscribe, mqtt.OnSubscribed,
		mqtt.OnUnsubscribe, mqtt.OnUnsubscribed, mqtt.OnPublish, mqtt.OnAuthPacket:
		return true
	}
	return false
}

// clientOf returns our side of a mochi client, or nil before OnConnect.
func clientOf(cl *mqtt.Client) *client {
	if nc, ok := cl.Net.Conn.(*conn); ok {
		return nc.client
	}
	return nil
}

// OnConnect decides about the CONNECT and begins the session.
func (h *hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error { return h.b.connect(cl, pk) }

// OnConnectAuthenticate lets in whom OnConnect has let in.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, _ packets.Packet) bool {
	return clientOf(cl) != nil
}

// OnACLCheck answers for filters at SUBSCRIBE and for topics at delivery.
// Publishing is decided in OnPublish, which can say why not.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	if write {
		return true
	}
	c := clientOf(cl)
	return c != nil && c.can.Load().read(topic)
}

// OnSessionEstablished runs after CONNACK.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	h.b.established(clientOf(cl))
}

// OnPacketRead sees every packet before mochi acts on it. It takes an empty
// user name or password of a CONNECT for none, which it may be (MQTT 5, section
// 3.1.3.6); mochi calls it a violation. It takes wills and admins' handshakes
// away from mochi, ends connections whose packets mochi would let pass, and
// gives a large PUBLISH its payload.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := clientOf(cl)
	if c == nil {
		if nc, ok := cl.Net.Conn.(*conn); ok && pk.FixedHeader.Type == packets.Connect {
			pk.Connect.UsernameFlag = len(pk.Connect.Username) > 0
			pk.Connect.PasswordFlag = len(pk.Connect.Password) > 0
			nc.will = takeWill(&pk)
		}
		return pk, nil
	}
	if code, bad := violation(&pk); bad {
		if c.v5() {
			_ = h.b.mq.DisconnectClient(cl, code) // it ends in any case
		}
		return pk, packets.ErrRejectPacket
	}
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if body := c.nc.in.claim(); body != nil {
			pk.Payload = body
			atomic.AddInt64(&h.b.mq.Info.BytesReceived, int64(len(body)))
		}
	case packets.Disconnect:
		if c.v5() && pk.FixedHeader.Remaining == 1 {
			// A reason code alone (section 3.14.2.2.1), which mochi reads past;
			// nothing follows it [MQTT-3.14.4-1].
			pk.ReasonCode = c.nc.last
		}
	case packets.Puback, packets.Pubrec, packets.Pubrel, packets.Pubcomp:
		if c.admin != nil {
			if err := c.handshake(pk); err != nil {
				return pk, packets.ErrRejectPacket
			}
			// mochi has nothing to do for a PUBACK that it knows nothing of.
			return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}}, nil
		}
	}
	return pk, nil
}

// violation returns the reason code of a protocol error that mochi overlooks.
func violation(pk *packets.Packet) (packets.Code, bool) {
	bad := false
	switch pk.FixedHeader.Type {
	case packets.Auth:
		bad = pk.ProtocolVersion < 5 // no packet of 3.1.1
	case packets.Publish:
		bad = pk.Properties.PayloadFormat > 1 || strings.ContainsAny(pk.Properties.ResponseTopic, "+#") // [MQTT-3.3.2-14]
	case packets.Subscribe:
		ids := pk.Properties.SubscriptionIdentifier
		bad = len(ids) > 1 || len(ids) == 1 && ids[0] == 0 // section 3.8.2.1.2
		for _, f := range pk.Filters {
			// [MQTT-3.8.3-4], and section 3.8.3.1 for the reserved value.
			bad = bad || f.NoLocal && mqtt.IsSharedFilter(f.Filter) || f.RetainHandling > 2
		}
	}
	return packets.ErrProtocolViolation, bad
}

// OnPacketEncode completes CONNACK, SUBACK and UNSUBACK with what mochi leaves
// out.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := clientOf(cl)
	switch pk.FixedHeader.Type {
	case packets.Suback:
		if c != nil && c.refusal != "" {
			pk.Properties.ReasonString, c.refusal = c.refusal, ""
		}
	case packets.Publish, packets.Disconnect:
		pk.Mods.DisallowProblemInfo = false // it is about other packets [MQTT-3.1.2-29]
	case packets.Unsuback:
		if c != nil && len(c.unsubscribed) == len(pk.ReasonCodes) {
			pk.ReasonCodes = c.unsubscribed
		}
	}
	if pk.FixedHeader.Type != packets.Connack {
		return pk
	}
	pk.Mods.DisallowProblemInfo = false
	switch {
	case pk.ReasonCode < packets.ErrUnspecifiedError.Code:
	case cl.Properties.ProtocolVersion < 3 || cl.Properties.ProtocolVersion > 5:
		// Said in 3.1.1's way, which every client knows (its section 3.1.2.2).
		pk.ReasonCode = v3Connack(packets.ErrUnsupportedProtocolVersion.Code)
	case cl.Properties.ProtocolVersion < 5:
		pk.ReasonCode = v3Connack(pk.ReasonCode) // one that mochi has no translation for
	}
	if pk.ReasonCode != packets.CodeSuccess.Code {
		return pk
	}
	if c == nil {
		return pk
	}
	p := &pk.Properties
	pk.SessionPresent = c.present
	p.MaximumPacketSize = h.b.maxPacket()
	p.AuthenticationMethod = cl.Properties.Props.AuthenticationMethod // the same as asked for (MQTT 5, 4.12)
	if c.who().Role != token.RoleAdmin {
		p.MaximumQos, p.MaximumQosFlag = 1, true
		p.SharedSubAvailable, p.SharedSubAvailableFlag = 0, true
	}
	if pair := c.can.Load().pair; pair != "" {
		// How a device learns which pair its user is in.
		p.User = append(p.User, packets.UserProperty{Key: "pair", Val: pair})
	}
	return pk
}

// OnPacketProcessed sees every PUBACK, also for ids that mochi does not know,
// the end of every SUBSCRIBE, the goodbyes, and the publishes that mochi drops
// without an answer.
func (h *hook) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, err error) {
	c := clientOf(cl)
	if c == nil || err != nil {
		return
	}
	switch pk.FixedHeader.Type {
	case packets.Disconnect:
		if pk.ReasonCode == packets.CodeSuccess.Code {
			c.will = nil // [MQTT-3.14.4-3]
		}
	case packets.Publish:
		if !mqtt.IsValidFilter(pk.TopicName, true) {
			h.b.refuseName(c, pk)
		}
	case packets.Subscribe:
		if c.admin != nil {
			c.admin.hold(false)
			c.poke()
		}
	}
	if c.sess == nil {
		return
	}
	switch pk.FixedHeader.Type {
	case packets.Puback:
		h.b.acked(c, pk.PacketID)
	case packets.Pubrel:
		c.sess.released(pk.PacketID)
	case packets.Subscribe:
		c.watchLogs()
		c.sendRetained(c.retain)
		c.retain = nil
		c.poke()
	case packets.Unsubscribe:
		c.watchLogs()
	}
}

// OnSubscribe grants QoS 2 as QoS 1 to all but admins. An invalid filter is
// emptied: that is the one that mochi always refuses (0x8F).
func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := clientOf(cl)
	if c != nil && c.admin != nil {
		c.admin.hold(true)
	}
	for i := range pk.Filters {
		f := &pk.Filters[i]
		if c != nil && c.sess != nil {
			f.Qos = min(f.Qos, 1)
		}
		if !validFilter(f.Filter) {
			f.Filter = ""
		}
	}
	return pk
}

// OnSubscribed keeps the granted filters, before SUBACK; a filter that cannot
// be kept is refused in reasonCodes.
func (h *hook) OnSubscribed(cl *mqtt.Client, pk packets.Packet, reasonCodes []byte) {
	switch c := clientOf(cl); {
	case c == nil:
	case c.sess != nil:
		h.b.subscribed(c, pk, reasonCodes)
	default:
		h.b.subscribedAdmin(c, pk, reasonCodes)
	}
}

// OnUnsubscribe finds out which of the filters there are: mochi takes another
// client's for this one's.
func (h *hook) OnUnsubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := clientOf(cl)
	if c == nil {
		return pk
	}
	have := c.filters()
	c.unsubscribed = make([]byte, len(pk.Filters))
	for i, f := range pk.Filters {
		if !slices.ContainsFunc(have, func(s subscription) bool { return s.Filter == f.Filter }) {
			c.unsubscribed[i] = packets.CodeNoSubscriptionExisted.Code
		}
	}
	return pk
}

// OnUnsubscribed drops the filters of an UNSUBSCRIBE. mochi also calls it when
// it clears a client out, which says nothing about our session: that call
// carries no packet id.
func (h *hook) OnUnsubscribed(cl *mqtt.Client, pk packets.Packet) {
	switch c := clientOf(cl); {
	case c == nil || pk.PacketID == 0:
	case c.sess != nil:
		h.b.unsubscribed(c, pk)
	default:
		c.admin.remove(pk)
	}
}

// OnPublish decides about a publish; see durable.go.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil
	}
	return h.b.publish(clientOf(cl), pk)
}

// OnAuthPacket takes a new token for a live connection.
func (h *hook) OnAuthPacket(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	return pk, h.b.reauthenticate(clientOf(cl), pk)
}
