package mqttlink

import (
	"bufio"
	"bytes"
	"io"
	"testing"

	"github.com/eclipse/paho.golang/packets"
	"github.com/google/go-cmp/cmp"

	"pairsync/internal/moment"
)

// The fuzz target holds that no bytes from a server panic, allocate beyond the
// limit, or decode to a PUBLISH that encodes to another one.
func FuzzReadPacket(f *testing.F) {
	p := &Publish{Topic: "pairs/p/photos/a/1", Payload: []byte("x"), ContentType: "image/jpeg", QoS: 1,
		Properties: []moment.Property{{Key: "caption", Value: "hi"}}}
	f.Add(append(publishHead(p, 7, true), p.Payload...))
	empty := &packets.Properties{}
	for _, packet := range []io.WriterTo{
		&packets.Connack{Properties: empty}, &packets.Puback{PacketID: 1, ReasonCode: 0x97, Properties: &packets.Properties{ReasonString: "no"}},
		&packets.Suback{PacketID: 2, Reasons: []byte{1}, Properties: empty}, &packets.Unsuback{PacketID: 3, Reasons: []byte{0}, Properties: empty},
		&packets.Disconnect{ReasonCode: 0x8B, Properties: empty},
	} {
		f.Add(encode(packet))
	}
	f.Add([]byte{0xD0, 0})
	f.Add([]byte{0xE0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readPacket(bufio.NewReader(bytes.NewReader(b)), 1<<16)
		pub, ok := got.(*published)
		if err != nil || !ok {
			return
		}
		m := pub.msg
		out := &Publish{Topic: m.Topic, Payload: m.Payload, ContentType: m.ContentType, Properties: m.Properties, QoS: m.QoS, Retain: m.Retained}
		again, err := readPacket(bufio.NewReader(bytes.NewReader(append(publishHead(out, pub.packetID, m.Duplicate), m.Payload...))), 1<<20)
		if err != nil {
			t.Fatalf("%+v does not decode again: %v", m, err)
		}
		if diff := cmp.Diff(m, again.(*published).msg, cmp.AllowUnexported(Message{})); diff != "" {
			t.Fatal(diff)
		}
	})
}
