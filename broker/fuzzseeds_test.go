package broker

import (
	"bytes"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/moment"
)

// What is special about a CONNECT of the fuzz tests.
const (
	connectDurable = 1 << iota // and, in MQTT 5, every property
	connectWill
)

var someProperties = []packets.UserProperty{{Key: "caption", Val: "hello"}, {Key: "backfill", Val: "all"}}

// connect is a CONNECT of ann's.
func (w *fuzzWorld) connect(tb testing.TB, version, how byte) []byte {
	tb.Helper()
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: version,
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), ClientIdentifier: "fuzz", Keepalive: 60, Clean: how&connectDurable == 0,
			UsernameFlag: true, Username: []byte("ann"), PasswordFlag: true, Password: []byte(w.token),
		},
	}
	if how&connectDurable != 0 {
		pk.Properties = packets.Properties{
			SessionExpiryInterval: 60, SessionExpiryIntervalFlag: true, ReceiveMaximum: 4, MaximumPacketSize: 1 << 20,
			TopicAliasMaximum: 10, RequestProblemInfo: 1, RequestProblemInfoFlag: true, RequestResponseInfo: 1,
			AuthenticationMethod: authMethod, AuthenticationData: []byte(w.token), User: someProperties,
		}
	}
	if how&connectWill != 0 {
		pk.Connect.WillFlag, pk.Connect.WillQos = true, 1
		pk.Connect.WillTopic, pk.Connect.WillPayload = moment.LiveTopic(w.pair, "ann", "gone"), []byte("bye")
		pk.Connect.WillProperties = packets.Properties{
			WillDelayInterval: 1, PayloadFormat: 1, PayloadFormatFlag: true, MessageExpiryInterval: 60, ContentType: "text/plain",
			ResponseTopic: "r", CorrelationData: []byte("c"), User: someProperties,
		}
	}
	return encode(tb, pk)
}

// session is what follows a CONNECT: every packet that a client may send, with
// every property that it may have.
func (w *fuzzWorld) session(tb testing.TB, version byte) (all [][]byte) {
	tb.Helper()
	add := func(kind byte, pk packets.Packet) {
		pk.FixedHeader.Type, pk.ProtocolVersion = kind, version
		switch kind {
		case packets.Subscribe, packets.Unsubscribe, packets.Pubrel:
			pk.FixedHeader.Qos = 1 // section 2.1.3: reserved bits
		}
		all = append(all, encode(tb, pk))
	}
	publish := func(topic string, qos byte, id uint16, payload string) {
		add(packets.Publish, packets.Packet{
			FixedHeader: packets.FixedHeader{Qos: qos}, PacketID: id, TopicName: topic, Payload: []byte(payload),
			Properties: packets.Properties{
				PayloadFormat: 1, PayloadFormatFlag: true, MessageExpiryInterval: 60, ContentType: "image/jpeg",
				ResponseTopic: "r", CorrelationData: []byte("c"), User: someProperties,
			},
		})
	}
	of := func(kind moment.Kind, id string) string {
		m := moment.Moment{Pair: w.pair, User: "ann", Kind: kind, ID: id}
		return m.Topic()
	}
	add(packets.Subscribe, packets.Packet{
		PacketID: 2, Properties: packets.Properties{SubscriptionIdentifier: []int{3}, User: someProperties},
		Filters: packets.Subscriptions{
			{Filter: "pairs/" + w.pair + "/#", Qos: 1, Identifier: 3},
			{Filter: "users/ann/events", Qos: 2, RetainHandling: 1, NoLocal: true},
			{Filter: "pairs/" + w.pair + "/+/+", RetainAsPublished: true, RetainHandling: 2},
		},
	})
	publish(of(moment.Photo, "m"), 1, 1, "photo")
	publish(of(moment.Note, "o"), 1, 3, "a note")
	publish(of(moment.Reaction, "r"), 1, 4, `{"moment":"m","sender":"ann","reaction":"x"}`)
	publish(of(moment.Delete, "m"), 1, 5, "")
	publish(moment.LiveTopic(w.pair, "ann", "typing"), 0, 0, "live")
	publish(moment.LiveTopic(w.other, "eve", "typing"), 0, 0, "live") // refused
	add(packets.Puback, packets.Packet{PacketID: 1})
	add(packets.Pubrec, packets.Packet{PacketID: 2})
	add(packets.Pubcomp, packets.Packet{PacketID: 2})
	add(packets.Unsubscribe, packets.Packet{
		PacketID: 7, Filters: packets.Subscriptions{{Filter: "pairs/" + w.pair + "/#"}, {Filter: "x"}},
		Properties: packets.Properties{User: someProperties},
	})
	add(packets.Pingreq, packets.Packet{})
	if version == 5 {
		add(packets.Auth, packets.Packet{ReasonCode: packets.CodeReAuthenticate.Code, Properties: packets.Properties{
			AuthenticationMethod: authMethod, AuthenticationData: []byte(w.token), ReasonString: "new", User: someProperties,
		}})
	}
	// What ends the connection comes last: in MQTT 5 that is QoS 2 too.
	publish(moment.CommandTopic(w.pair, "kitchen"), 1, 6, `{"cmd":"next"}`)
	publish(of(moment.Photo, "n"), 2, 2, "photo")
	add(packets.Pubrel, packets.Packet{PacketID: 2})
	add(packets.Disconnect, packets.Packet{
		ReasonCode: packets.CodeDisconnectWillMessage.Code,
		Properties: packets.Properties{SessionExpiryInterval: 30, SessionExpiryIntervalFlag: true, ReasonString: "bye", User: someProperties},
	})
	return all
}

// compose reads order as a list of steps: which packet of the session, how it
// is changed, and the changes. A packet keeps its fixed header, so that what
// follows it is read as packets again, unless the step says otherwise.
func (w *fuzzWorld) compose(c *script, version byte, order []byte) {
	const (
		changes  = 0x0F // how many bytes are changed
		cutShort = 0x40
		anywhere = 0x80 // in the fixed header too
		pause    = 0xFF // instead of a packet
	)
	all := w.packets[version]
	for len(order) >= 2 {
		which, how := order[0], order[1]
		order = order[2:]
		if which == pause {
			c.pause()
			continue
		}
		pk := bytes.Clone(all[int(which)%len(all)])
		if head := headBytes(pk); how&cutShort != 0 && len(pk) < head+0x80 {
			pk = append([]byte{pk[0], byte((len(pk) - head) / 2)}, pk[head:head+(len(pk)-head)/2]...)
		}
		first := headBytes(pk)
		if how&anywhere != 0 {
			first = 0
		}
		for n := how & changes; n > 0 && len(order) >= 2; n-- {
			if at := first + int(order[0]); at < len(pk) {
				pk[at] = order[1]
			}
			order = order[2:]
		}
		c.bytes(pk)
	}
}

// headBytes is the length of a packet's fixed header (section 2.1.4).
func headBytes(pk []byte) int {
	n := 1
	for n < len(pk) && pk[n]&0x80 != 0 {
		n++
	}
	return n + 1
}
