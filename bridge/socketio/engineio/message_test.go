package engineio

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEncodePayload(t *testing.T) {
	for _, c := range []struct {
		packets []Message
		want    string
	}{
		{[]Message{control(packetNoop)}, "6"},
		{[]Message{{Head: []byte("4"), Body: []byte("hello")}}, "4hello"},
		{[]Message{Binary([]byte{1, 2, 3, 4})}, "bAQIDBA=="},
		{[]Message{{Binary: true, Head: []byte{1}, Body: []byte{2, 3, 4}}}, "bAQIDBA=="},
		{[]Message{Binary(nil)}, "b"},
		{[]Message{control(packetPing), {Head: []byte("4é")}, Binary([]byte{0})}, "2\x1e4é\x1ebAA=="},
	} {
		got := encodePayload(c.packets)
		if string(got) != c.want {
			t.Errorf("encode %v: got %q, want %q", c.packets, got, c.want)
		}
		if cap(got) != len(got) && cap(got) > len(got)+16 {
			t.Errorf("encode %v: %d bytes in a buffer of %d", c.packets, len(got), cap(got))
		}
	}
}

// payload is what the packets of a polling payload decode to.
func payload(text []byte) (packets []incoming, err error) {
	for rest := text; rest != nil || packets == nil; {
		var p incoming
		if p, rest, err = nextPacket(rest); err != nil {
			return nil, err
		}
		packets = append(packets, p)
	}
	return packets, nil
}

func TestDecodePayload(t *testing.T) {
	for _, c := range []struct {
		payload string
		want    []incoming // nil when it must be refused
	}{
		{"4", []incoming{{packetMessage, false, []byte{}}}},
		{"4hello", []incoming{{packetMessage, false, []byte("hello")}}},
		{"3\x1e4b\x1ebAQI=", []incoming{
			{packetPong, false, []byte{}}, {packetMessage, false, []byte("b")}, {packetMessage, true, []byte{1, 2}},
		}},
		{"b", []incoming{{packetMessage, true, []byte{}}}},
		{"", nil}, {"\x1e", nil}, {"4a\x1e", nil}, {"\x1e4a", nil}, {"4a\x1e\x1e4b", nil},
		{"7", nil}, {"a", nil}, {"bA", nil}, {"b====", nil}, {"bAQI", nil}, {"B", nil},
	} {
		got, err := payload([]byte(c.payload))
		if (err != nil) != (c.want == nil) {
			t.Errorf("decode %q: error %v", c.payload, err)
		}
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(incoming{})); c.want != nil && diff != "" {
			t.Errorf("decode %q (-want +got):\n%s", c.payload, diff)
		}
	}
}

// FuzzPayload holds payloads to a round trip: what decodes encodes to packets
// that decode to the same.
func FuzzPayload(f *testing.F) {
	for _, seed := range []string{"4hello", "2\x1e4é\x1ebAQIDBA==", "b", "bAA\n==", "1", "4\x1e4"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		packets, err := payload(input)
		if err != nil {
			return
		}
		out := make([]Message, len(packets))
		for i, p := range packets {
			if out[i] = (Message{Head: []byte{p.kind}, Body: p.data}); p.binary {
				out[i] = Binary(p.data)
			}
		}
		again, err := payload(encodePayload(out))
		if err != nil {
			t.Fatalf("%q decodes to %v, which does not decode: %v", input, packets, err)
		}
		if len(again) != len(packets) {
			t.Fatalf("%q: %d packets became %d", input, len(packets), len(again))
		}
		for i := range again {
			if again[i].kind != packets[i].kind || again[i].binary != packets[i].binary || !bytes.Equal(again[i].data, packets[i].data) {
				t.Fatalf("%q: packet %d became %v, want %v", input, i, again[i], packets[i])
			}
		}
	})
}
