package broker

import (
	"bytes"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
)

// TestPublishHead: head and payload together are what mochi encodes.
func TestPublishHead(t *testing.T) {
	for _, version := range []byte{4, 5} {
		for _, size := range []int{0, 1, 80, 100, 127, 128, 300, 16_200, 16_383, 16_384, 200 << 10, 3 << 20} {
			pk := packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Dup: true}, ProtocolVersion: version, PacketID: 7,
				TopicName: "pairs/p/photos/ann/m1",
				Properties: packets.Properties{
					ContentType: "image/jpeg", User: []packets.UserProperty{{Key: "caption", Val: "grüß dich"}},
					SubscriptionIdentifier: []int{1, 300}, MessageExpiryInterval: 5,
				},
			}
			payload := bytes.Repeat([]byte{0xAB}, size)
			head, err := publishHead(&pk, size)
			if err != nil {
				t.Fatal(err)
			}
			pk.Payload = payload
			var want bytes.Buffer
			if err := pk.PublishEncode(&want); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(append(head, payload...), want.Bytes()) {
				t.Errorf("version %d, %d bytes: differs from mochi's encoding", version, size)
			}
		}
	}
	if _, err := publishHead(&packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}}, 0); err == nil {
		t.Error("a PUBLISH at QoS 1 without a packet id was encoded")
	}
}
