package broker

import (
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/moment"
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
		mqtt.OnUnsubscribed, mqtt.OnPublish, mqtt.OnAuthPacket, mqtt.OnWill, mqtt.OnClientExpired:
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

// OnPacketRead takes an empty user name or password of a CONNECT for none,
// which it may be (MQTT 5, section 3.1.3.6); mochi calls it a violation. A
// large PUBLISH gets its payload back.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if c := clientOf(cl); c != nil {
			if body := c.nc.in.claim(); body != nil {
				pk.Payload = body
				atomic.AddInt64(&h.b.mq.Info.BytesReceived, int64(len(body)))
			}
		}
	case packets.Connect:
		pk.Connect.UsernameFlag = len(pk.Connect.Username) > 0
		pk.Connect.PasswordFlag = len(pk.Connect.Password) > 0
	}
	return pk, nil
}

// OnPacketEncode completes CONNACK and SUBACK with what mochi leaves out.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type == packets.Suback {
		if c := clientOf(cl); c != nil && c.refusal != "" {
			pk.Properties.ReasonString, c.refusal = c.refusal, ""
		}
		return pk
	}
	if pk.FixedHeader.Type != packets.Connack {
		return pk
	}
	if pk.ReasonCode >= packets.ErrUnspecifiedError.Code && cl.Properties.ProtocolVersion < 5 {
		pk.ReasonCode = v3Connack(pk.ReasonCode) // one that mochi has no translation for
	}
	if pk.ReasonCode != packets.CodeSuccess.Code {
		return pk
	}
	c := clientOf(cl)
	if c == nil {
		return pk
	}
	p := &pk.Properties
	p.MaximumPacketSize = h.b.maxPacket()
	p.AuthenticationMethod = cl.Properties.Props.AuthenticationMethod // the same as asked for (MQTT 5, 4.12)
	if c.who().Role != token.RoleAdmin {
		pk.SessionPresent = c.present
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
// and the end of every SUBSCRIBE.
func (h *hook) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, err error) {
	c := clientOf(cl)
	if c == nil || c.sess == nil || err != nil {
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

// OnSubscribe grants QoS 2 as QoS 1 to all but admins.
func (h *hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := clientOf(cl)
	if c == nil || c.sess == nil {
		return pk
	}
	for i := range pk.Filters {
		pk.Filters[i].Qos = min(pk.Filters[i].Qos, 1)
	}
	return pk
}

// OnSubscribed keeps the granted filters, before SUBACK; a filter that cannot
// be kept is refused in reasonCodes.
func (h *hook) OnSubscribed(cl *mqtt.Client, pk packets.Packet, reasonCodes []byte) {
	if c := clientOf(cl); c != nil && c.sess != nil {
		h.b.subscribed(c, pk, reasonCodes)
	}
}

// OnUnsubscribed drops the filters of an UNSUBSCRIBE. mochi also calls it when
// it clears a client out, which says nothing about our session: that call
// carries no packet id.
func (h *hook) OnUnsubscribed(cl *mqtt.Client, pk packets.Packet) {
	if c := clientOf(cl); c != nil && c.sess != nil && pk.PacketID != 0 {
		h.b.unsubscribed(c, pk)
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

// OnWill makes a will on a pair's tree what every live message is: QoS 0 and
// not retained. At QoS 1 mochi's packet ids would clash with the pump's.
func (h *hook) OnWill(_ *mqtt.Client, will mqtt.Will) (mqtt.Will, error) {
	if t, err := moment.ParseTopic(will.TopicName); err != nil || t.Class != moment.ClassOther {
		will.Qos, will.Retain = 0, false
	}
	return will, nil
}

// OnClientExpired clears an expired admin session, whose subscriptions mochi
// would leave behind.
func (h *hook) OnClientExpired(cl *mqtt.Client) { h.b.mq.UnsubscribeClient(cl) }
