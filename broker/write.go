package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// writeMoment writes one moment as a PUBLISH.
func (c *client) writeMoment(e *ledger.Entry, qos byte, id uint16, dup bool, ids []int) error {
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Publish, Qos: qos, Dup: dup && qos > 0},
		ProtocolVersion: c.cl.Properties.ProtocolVersion,
		PacketID:        id,
		TopicName:       e.Topic(),
		Properties: packets.Properties{
			ContentType: e.ContentType, User: userProperties(&e.Moment), SubscriptionIdentifier: ids,
			MessageExpiryInterval: expiryLeft(e.ExpiresAt),
		},
	}
	err := c.writePublish(&pk, e.Payload)
	if errors.Is(err, packets.ErrPacketTooLarge) && qos > 0 {
		c.b.acked(c, id)
	}
	return c.tolerate(err)
}

// expiryLeft is the Message Expiry Interval of what expires at t and has not
// yet (MQTT 5, section 3.3.2.3.3); 0, which is none, for the zero time.
func expiryLeft(t time.Time) uint32 {
	if t.IsZero() {
		return 0
	}
	return uint32(max(1, time.Until(t)/time.Second))
}

// writePublish writes a PUBLISH without copying its payload, which mochi's
// WritePacket does twice.
func (c *client) writePublish(pk *packets.Packet, payload []byte) error {
	head, err := publishHead(pk, len(payload))
	if err != nil {
		return err
	}
	size := len(head) + len(payload)
	if most := c.cl.Properties.Props.MaximumPacketSize; most > 0 && uint32(size) > most {
		return packets.ErrPacketTooLarge
	}
	if c.cl.Closed() {
		return mqtt.ErrConnectionClosed
	}
	if err := c.nc.writeTwo(head, payload); err != nil {
		return err
	}
	info := c.b.mq.Info
	atomic.AddInt64(&info.BytesSent, int64(size))
	atomic.AddInt64(&info.PacketsSent, 1)
	atomic.AddInt64(&info.MessagesSent, 1)
	return nil
}

// publishHead encodes all of a PUBLISH but its payload of n bytes (MQTT 5,
// section 3.3): mochi encodes it as if the payload were empty, and the
// remaining length is put right.
func publishHead(pk *packets.Packet, n int) ([]byte, error) {
	var b bytes.Buffer
	if err := pk.PublishEncode(&b); err != nil {
		return nil, err
	}
	// A variable byte integer has the form of a uvarint (MQTT 5, section 1.5.5).
	rest, width := binary.Uvarint(b.Bytes()[1:])
	head := binary.AppendUvarint(append(make([]byte, 0, b.Len()+binary.MaxVarintLen32), b.Bytes()[0]), rest+uint64(n))
	return append(head, b.Bytes()[1+width:]...), nil
}

func userProperties(m *moment.Moment) []packets.UserProperty {
	props := m.Properties()
	out := make([]packets.UserProperty, len(props))
	for i, p := range props {
		out[i] = packets.UserProperty{Key: p.Key, Val: p.Value}
	}
	return out
}
