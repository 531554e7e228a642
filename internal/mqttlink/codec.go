package mqttlink

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"unicode/utf8"

	"github.com/eclipse/paho.golang/packets"

	"pairsync/internal/moment"
)

// maxRemaining is the largest Remaining Length MQTT can express (section 1.5.5).
const maxRemaining = 268_435_455

// maxControlBytes bounds every packet from the server but PUBLISH, and the
// properties of that: reason strings and user properties are at most 64 KiB
// each. A photo's size in empty properties would take ten times its memory.
const maxControlBytes = 256 << 10

// errPacket is wrapped by every error about bytes that are not MQTT 5; the
// others of readPacket come from the connection.
var errPacket = errors.New("malformed packet")

// published is a PUBLISH as it was read.
type published struct {
	packetID uint16 // 0 at QoS 0
	msg      Message
}

// readPacket reads one packet of at most max bytes. It returns a *published,
// or the packet's content type of the paho codec, or nil for PINGRESP.
//
// PUBLISH is decoded here and not by paho: one allocation of the exact size,
// and the payload is a part of it (paho copies a photo five times).
func readPacket(r *bufio.Reader, max int) (any, error) {
	first, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	n, err := readLength(r)
	if err != nil {
		return nil, err
	}
	kind := first >> 4
	if kind != packets.PUBLISH {
		max = min(max, maxControlBytes)
	}
	if n > max {
		return nil, fmt.Errorf("%w: packet type %d of %d bytes (at most %d)", errPacket, kind, n, max)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, noEOF(err)
	}
	if kind == packets.PUBLISH {
		return decodePublish(first&0x0F, body)
	}
	return decodeControl(kind, body)
}

// readLength reads a Variable Byte Integer (section 1.5.5).
func readLength(r io.ByteReader) (int, error) {
	n := 0
	for shift := 0; shift < 28; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, noEOF(err)
		}
		n |= int(b&0x7F) << shift
		if b < 0x80 {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: length of more than four bytes", errPacket)
}

// noEOF tells a connection cut inside a packet from one that ended between two.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// decodePublish decodes the body of a PUBLISH (section 3.3); the result keeps body.
func decodePublish(flags byte, body []byte) (*published, error) {
	p := &published{msg: Message{QoS: flags >> 1 & 3, Retained: flags&1 != 0, Duplicate: flags&8 != 0}}
	if p.msg.QoS > 1 {
		return nil, fmt.Errorf("%w: PUBLISH with QoS %d, which was never asked for", errPacket, p.msg.QoS)
	}
	if len(body) < 2 {
		return nil, fmt.Errorf("%w: PUBLISH without a topic", errPacket)
	}
	end := 2 + int(binary.BigEndian.Uint16(body))
	if end > len(body) {
		return nil, fmt.Errorf("%w: PUBLISH ends inside its topic", errPacket)
	}
	p.msg.Topic, body = string(body[2:end]), body[end:]
	if p.msg.Topic == "" || !utf8.ValidString(p.msg.Topic) {
		return nil, fmt.Errorf("%w: PUBLISH topic is empty or not UTF-8", errPacket)
	}
	if p.msg.QoS > 0 {
		if len(body) < 2 {
			return nil, fmt.Errorf("%w: PUBLISH without a packet id", errPacket)
		}
		if p.packetID, body = binary.BigEndian.Uint16(body), body[2:]; p.packetID == 0 {
			return nil, fmt.Errorf("%w: PUBLISH with packet id 0", errPacket)
		}
	}
	props, rest, err := cutProperties(body)
	if err != nil {
		return nil, err
	}
	p.msg.Payload = rest
	return p, p.msg.setProperties(props)
}

// cutProperties splits b behind its property block, length included.
func cutProperties(b []byte) (props, rest []byte, err error) {
	r := bytes.NewReader(b)
	n, err := readLength(r)
	if err != nil || n > r.Len() {
		return nil, nil, fmt.Errorf("%w: packet ends inside its properties", errPacket)
	}
	if n > maxControlBytes {
		return nil, nil, fmt.Errorf("%w: properties of %d bytes (at most %d)", errPacket, n, maxControlBytes)
	}
	end := len(b) - r.Len() + n
	return b[:end], b[end:], nil
}

// setProperties fills m from a property block (section 3.3.2.3).
func (m *Message) setProperties(block []byte) error {
	if len(block) == 1 {
		return nil
	}
	var p packets.Properties
	if err := p.Unpack(bytes.NewBuffer(block), packets.PUBLISH); err != nil {
		return fmt.Errorf("%w: PUBLISH properties: %w", errPacket, noEOF(err))
	}
	m.ContentType = p.ContentType
	for _, u := range p.User {
		m.Properties = append(m.Properties, moment.Property{Key: u.Key, Value: u.Value})
	}
	return nil
}

// decodeControl decodes every other packet that a server may send.
func decodeControl(kind byte, body []byte) (any, error) {
	switch kind {
	case packets.PINGRESP:
		return nil, nil
	case packets.DISCONNECT:
		if len(body) == 0 { // section 3.14.2.1: the code may be left out
			return &packets.Disconnect{Properties: &packets.Properties{}}, nil
		}
	case packets.CONNACK, packets.PUBACK, packets.SUBACK, packets.UNSUBACK:
	default:
		return nil, fmt.Errorf("%w: unexpected packet type %d", errPacket, kind)
	}
	content := packets.NewControlPacket(kind).Content
	if err := content.Unpack(bytes.NewBuffer(body)); err != nil {
		return nil, fmt.Errorf("%w: packet type %d: %w", errPacket, kind, noEOF(err))
	}
	return content, nil
}

// publishHead returns a PUBLISH without its payload.
func publishHead(p *Publish, packetID uint16, duplicate bool) []byte {
	props := packets.Properties{ContentType: p.ContentType, User: make([]packets.User, len(p.Properties))}
	for i, kv := range p.Properties {
		props.User[i] = packets.User{Key: kv.Key, Value: kv.Value}
	}
	block := props.Pack(packets.PUBLISH)

	flags := byte(packets.PUBLISH<<4) | p.QoS<<1
	if p.Retain {
		flags |= 1
	}
	if duplicate {
		flags |= 8
	}
	n := 2 + len(p.Topic) + lengthBytes(len(block)) + len(block) + len(p.Payload)
	if p.QoS > 0 {
		n += 2
	}
	b := make([]byte, 0, 1+lengthBytes(n)+n-len(p.Payload))
	b = appendLength(append(b, flags), n)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(p.Topic))), p.Topic...)
	if p.QoS > 0 {
		b = binary.BigEndian.AppendUint16(b, packetID)
	}
	return append(appendLength(b, len(block)), block...)
}

func appendLength(b []byte, n int) []byte {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func lengthBytes(n int) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

// appendPuback appends a PUBACK with success (section 3.4.2.1: four bytes).
func appendPuback(b []byte, packetID uint16) []byte {
	return binary.BigEndian.AppendUint16(append(b, packets.PUBACK<<4, 2), packetID)
}

// encode returns the bytes of one of paho's packets.
func encode(p io.WriterTo) []byte {
	var b bytes.Buffer
	p.WriteTo(&b) // a bytes.Buffer takes everything
	return b.Bytes()
}

// checkUTF8 reports whether s can be an MQTT string (section 1.5.4).
func checkUTF8(what, s string) error {
	if len(s) > math.MaxUint16 {
		return fmt.Errorf("%s of %d bytes is too long for MQTT (at most %d)", what, len(s), math.MaxUint16)
	}
	if !utf8.ValidString(s) || bytes.IndexByte([]byte(s), 0) >= 0 {
		return fmt.Errorf("%s %q is not text", what, s)
	}
	return nil
}
