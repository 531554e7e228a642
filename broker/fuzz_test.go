package broker

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/memnet"
	"pairsync/internal/moment"
	"pairsync/internal/token"
)

// FuzzStream feeds bytes to the running broker, alone and behind a good
// CONNECT. Whatever they are, the connection ends when the client is gone, the
// broker serves the next one, and nobody outside the pair is told anything.
func FuzzStream(f *testing.F) {
	s := newStandalone(f, badgerledger.Config{})
	f.Cleanup(s.stop)
	b := s.broker
	must := func(err error) {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
	}
	pair, err := s.reg.CreatePair(s.ctx, "ann", "ben")
	must(err)
	raw, _, err := s.signer.Sign(token.Principal{User: "ann", Role: token.RoleApp}, 24*time.Hour)
	must(err)

	encode := func(pk packets.Packet, with func(*packets.Packet, *bytes.Buffer) error) []byte {
		var buf bytes.Buffer
		pk.ProtocolVersion = 5
		must(with(&pk, &buf))
		return buf.Bytes()
	}
	connect := encode(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect},
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), ClientIdentifier: "fuzz", Keepalive: 60, Clean: true, PasswordFlag: true, Password: []byte(raw),
		},
	}, (*packets.Packet).ConnectEncode)
	publish := func(topic string, qos byte) []byte {
		return encode(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, PacketID: uint16(qos), TopicName: topic, Payload: []byte("x"),
		}, (*packets.Packet).PublishEncode)
	}
	subscribe := encode(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 2,
		Filters: packets.Subscriptions{{Filter: "pairs/" + pair.ID + "/#", Qos: 1, Identifier: 3}},
	}, (*packets.Packet).SubscribeEncode)
	f.Add(true, append(bytes.Clone(subscribe), publish((&moment.Moment{Pair: pair.ID, User: "ann", Kind: moment.Photo, ID: "m"}).Topic(), 1)...))
	f.Add(true, append(publish(moment.LiveTopic(pair.ID, "ann", "x"), 0), 0xC0, 0, 0xE0, 0))
	f.Add(true, []byte{0x82, 0x06, 0x12, 0x34, 0x00, 0x00, 0x01, 0x70})
	f.Add(true, []byte{0x40, 2, 0, 1, 0x50, 2, 0, 1, 0x62, 2, 0, 1, 0x70, 2, 0, 1})
	f.Add(true, encode(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Auth}, ReasonCode: 0x19}, (*packets.Packet).AuthEncode))
	f.Add(true, append(bytes.Clone(connect), 0xA2, 5, 0, 1, 0, 0, 1, 'x'))
	f.Add(false, connect)
	f.Add(false, []byte("GET / HTTP/1.1\r\n\r\n"))

	f.Fuzz(func(t *testing.T, known bool, data []byte) {
		near, far := memnet.Pipe("fuzz", "broker")
		served := make(chan struct{})
		go func() {
			b.ServeConn(context.Background(), far)
			close(served)
		}()
		go io.Copy(io.Discard, near) // ends with the connection
		if known {
			near.Write(connect)
		}
		near.Write(data) // what does not fit any more is not read
		near.Close()
		select {
		case <-served:
		case <-time.After(30 * time.Second):
			t.Fatal("the connection did not end with its client")
		}
		if n := b.Connections(); n != 0 {
			t.Fatalf("%d connections are left", n)
		}
	})
}
