package engineio

import (
	"bytes"
	"fmt"

	"github.com/segmentio/asm/base64"
)

// Packet types of Engine.IO 4, as the first character of a text packet.
const (
	packetOpen    = '0'
	packetClose   = '1'
	packetPing    = '2'
	packetPong    = '3'
	packetMessage = '4'
	packetUpgrade = '5'
	packetNoop    = '6'
)

const (
	// separator joins the packets of a polling payload.
	separator = 0x1e
	// maxPollPackets is the most packets in one polling answer: python-engineio
	// refuses more than 16.
	maxPollPackets = 16
	// maxPollBytes is where a polling answer is cut, after at least one packet.
	maxPollBytes = 1 << 20
)

// A Message is an outgoing message, Head followed by Body. The two parts let
// one large Body be shared by many sessions. Neither is copied: do not change
// them after Send. The zero Head of a text message gets the packet type; a
// Head that is given must begin with it (see TextHead).
type Message struct {
	Binary     bool
	Head, Body []byte
}

// TextHead is what the Head of a text message begins with.
const TextHead = "4"

// Text returns a text message.
func Text(text []byte) Message { return Message{Head: []byte(TextHead), Body: text} }

// Binary returns a binary message.
func Binary(data []byte) Message { return Message{Binary: true, Body: data} }

func (m *Message) size() int { return len(m.Head) + len(m.Body) }

// control returns the packet of one character.
func control(kind byte) Message { return Message{Head: []byte{kind}} }

func (m *Message) isControl(kind byte) bool {
	return !m.Binary && len(m.Body) == 0 && len(m.Head) == 1 && m.Head[0] == kind
}

// pollSize is the number of bytes m takes in a polling payload.
func (m *Message) pollSize() int {
	if m.Binary {
		return 1 + base64.StdEncoding.EncodedLen(m.size())
	}
	return m.size()
}

// appendPoll appends m as it stands in a polling payload.
func appendPoll(dst []byte, m *Message) []byte {
	if !m.Binary {
		return append(append(dst, m.Head...), m.Body...)
	}
	data := m.Body
	if len(m.Head) > 0 {
		data = append(bytes.Clone(m.Head), m.Body...)
	}
	dst = append(dst, 'b')
	at := len(dst)
	dst = append(dst, make([]byte, base64.StdEncoding.EncodedLen(len(data)))...)
	base64.StdEncoding.Encode(dst[at:], data)
	return dst
}

// encodePayload joins the packets for a polling answer.
func encodePayload(packets []Message) []byte {
	size := len(packets)
	for i := range packets {
		size += packets[i].pollSize()
	}
	out := make([]byte, 0, size)
	for i := range packets {
		if i > 0 {
			out = append(out, separator)
		}
		out = appendPoll(out, &packets[i])
	}
	return out
}

// incoming is one packet from a client: a type and its data. Binary messages
// have the type packetMessage.
type incoming struct {
	kind   byte
	binary bool
	data   []byte
}

// nextPacket cuts the first packet off a polling payload.
func nextPacket(payload []byte) (packet incoming, rest []byte, err error) {
	one := payload
	if i := bytes.IndexByte(payload, separator); i >= 0 {
		one, rest = payload[:i], payload[i+1:]
		if len(rest) == 0 {
			return incoming{}, nil, fmt.Errorf("payload ends in a separator")
		}
	}
	if len(one) == 0 {
		return incoming{}, nil, fmt.Errorf("empty packet")
	}
	if one[0] != 'b' {
		packet, err = parsePacket(one)
		return packet, rest, err
	}
	data := make([]byte, base64.StdEncoding.DecodedLen(len(one)-1))
	n, err := base64.StdEncoding.Decode(data, one[1:])
	if err != nil {
		return incoming{}, nil, fmt.Errorf("binary packet: %w", err)
	}
	return incoming{kind: packetMessage, binary: true, data: data[:n]}, rest, nil
}

// parsePacket reads a text packet.
func parsePacket(text []byte) (incoming, error) {
	if len(text) == 0 {
		return incoming{}, fmt.Errorf("empty packet")
	}
	if text[0] < packetOpen || text[0] > packetNoop {
		return incoming{}, fmt.Errorf("packet type %q: want 0 to 6", text[0])
	}
	return incoming{kind: text[0], data: text[1:]}, nil
}
