package load

import (
	"encoding/binary"
	"errors"
)

// Packet types (MQTT 5, section 2.1.2).
const (
	typeConnect    = 1
	typeConnack    = 2
	typePublish    = 3
	typePuback     = 4
	typeSubscribe  = 8
	typeSuback     = 9
	typeDisconnect = 14
)

// maxSmallPacket bounds the answers that are read whole.
const maxSmallPacket = 16 << 10

var errMalformed = errors.New("malformed packet")

// goodbye is a DISCONNECT (section 3.14): all is well, no properties.
var goodbye = []byte{typeDisconnect << 4, 2, 0, 0}

// packet is a fixed header.
type packet struct {
	kind, flags byte
	length      int // of what follows
}

// appendConnect appends a CONNECT (section 3.1).
func appendConnect(b []byte, cfg Config) []byte {
	const propExpiry = 0x11
	var flags byte
	var props []byte
	if cfg.Expiry == 0 {
		flags |= 0x02 // clean start
	} else {
		props = binary.BigEndian.AppendUint32([]byte{propExpiry}, cfg.Expiry)
	}
	var login []byte
	if cfg.User != "" || cfg.Password != "" {
		flags |= 0x80 | 0x40
		login = appendString(appendString(nil, cfg.User), cfg.Password)
	}
	body := append(appendString(nil, "MQTT"), 5, flags)
	body = binary.BigEndian.AppendUint16(body, keepAlive)
	body = append(append(body, byte(len(props))), props...)
	body = append(appendString(body, cfg.ClientID), login...)
	return append(appendHeader(b, typeConnect<<4, len(body)), body...)
}

// appendSubscribe appends a SUBSCRIBE (section 3.8) with packet id 1.
func appendSubscribe(b []byte, filter string) []byte {
	b = appendHeader(b, typeSubscribe<<4|2, 2+1+2+len(filter)+1)
	return append(appendString(append(b, 0, 1, 0), filter), 1)
}

// appendPublish appends a PUBLISH (section 3.3) at QoS 1 up to its payload.
// The topic is given in two parts.
func appendPublish(b []byte, prefix string, suffix []byte, id uint16, payload int) []byte {
	topic := len(prefix) + len(suffix)
	b = appendHeader(b, typePublish<<4|1<<1, 2+topic+2+1+payload)
	b = binary.BigEndian.AppendUint16(b, uint16(topic))
	b = append(append(b, prefix...), suffix...)
	b = binary.BigEndian.AppendUint16(b, id)
	return append(b, 0) // no properties
}

// appendHeader appends a fixed header.
func appendHeader(b []byte, first byte, length int) []byte {
	b = append(b, first)
	for length >= 0x80 {
		b = append(b, byte(length)|0x80)
		length >>= 7
	}
	return append(b, byte(length))
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}
