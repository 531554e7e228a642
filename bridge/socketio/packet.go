package socketio

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// packetType is the first digit of a Socket.IO packet.
type packetType byte

const (
	typeConnect      packetType = '0'
	typeDisconnect   packetType = '1'
	typeEvent        packetType = '2'
	typeAck          packetType = '3'
	typeConnectError packetType = '4'
	typeBinaryEvent  packetType = '5'
	typeBinaryAck    packetType = '6'
)

const (
	// maxAttachments is the most binary attachments of one packet.
	maxAttachments = 10
	// maxNamespaceBytes bounds a namespace's name.
	maxNamespaceBytes = 256
	// maxConnectBytes bounds what CONNECT carries: the server keeps it.
	maxConnectBytes = 64 << 10
	// maxIDDigits keeps an acknowledgement id within 63 bits.
	maxIDDigits = 18
)

// A packet is the text of a Socket.IO packet, taken apart:
// <type>[<attachments>-][<namespace>,][<id>]<json>.
type packet struct {
	kind        packetType
	attachments int
	namespace   string // "/" when the packet names none
	id          int64  // acknowledgement id, -1 without
	data        []byte // the JSON, unchecked; nil without
}

// binary reports whether attachments follow.
func (p *packet) binary() bool { return p.kind == typeBinaryEvent || p.kind == typeBinaryAck }

// parsePacket takes text apart. data is a slice of text.
func parsePacket(text []byte) (packet, error) {
	p := packet{namespace: "/", id: -1}
	if len(text) == 0 {
		return p, errors.New("empty packet")
	}
	p.kind = packetType(text[0])
	if p.kind < typeConnect || p.kind > typeBinaryAck {
		return p, fmt.Errorf("packet type %q: want 0 to 6", text[0])
	}
	rest := text[1:]
	if p.binary() {
		n := digits(rest)
		if n == 0 || n > 2 || n == len(rest) || rest[n] != '-' {
			return p, errors.New("binary packet without a number of attachments")
		}
		p.attachments = int(number(rest[:n]))
		if p.attachments > maxAttachments {
			return p, fmt.Errorf("%d attachments: want at most %d", p.attachments, maxAttachments)
		}
		rest = rest[n+1:]
	}
	if len(rest) > 0 && rest[0] == '/' {
		name, after, _ := bytes.Cut(rest, []byte(","))
		if len(name) > maxNamespaceBytes {
			return p, fmt.Errorf("namespace of %d bytes: want at most %d", len(name), maxNamespaceBytes)
		}
		p.namespace, rest = string(name), after
	}
	if n := digits(rest); n > 0 && p.kind != typeConnect && p.kind != typeConnectError {
		if n > maxIDDigits {
			return p, fmt.Errorf("acknowledgement id of %d digits: want at most %d", n, maxIDDigits)
		}
		p.id, rest = number(rest[:n]), rest[n:]
	}
	if len(rest) > 0 {
		p.data = rest
	}
	return p, p.check()
}

// check holds the packet against what its type may carry.
func (p *packet) check() error {
	switch p.kind {
	case typeConnect:
		if p.data != nil && (p.data[0] != '{' || !validJSON(p.data)) {
			return errors.New("connect payload is not an object")
		}
		if len(p.data) > maxConnectBytes {
			return fmt.Errorf("connect payload of %d bytes: want at most %d", len(p.data), maxConnectBytes)
		}
	case typeDisconnect:
		if p.data != nil {
			return errors.New("disconnect packet with a payload")
		}
	case typeConnectError:
		if p.data == nil || !validJSON(p.data) {
			return errors.New("connect error without a JSON payload")
		}
	case typeEvent, typeBinaryEvent:
		if p.data == nil || p.data[0] != '[' {
			return errNotArray
		}
	case typeAck, typeBinaryAck:
		if p.id < 0 {
			return errors.New("acknowledgement without an id")
		}
		if _, err := scanArray(p.data, nil); err != nil {
			return err
		}
	}
	return nil
}

// digits returns how many digits b starts with.
func digits(b []byte) int {
	n := 0
	for n < len(b) && b[n] >= '0' && b[n] <= '9' {
		n++
	}
	return n
}

// number returns the value of a few digits.
func number(b []byte) (n int64) {
	for _, c := range b {
		n = n*10 + int64(c-'0')
	}
	return n
}

// appendHead appends a packet's text up to its JSON.
func (p *packet) appendHead(dst []byte) []byte {
	dst = append(dst, byte(p.kind))
	if p.binary() {
		dst = append(strconv.AppendInt(dst, int64(p.attachments), 10), '-')
	}
	if p.namespace != "/" {
		dst = append(append(dst, p.namespace...), ',')
	}
	if p.id >= 0 {
		dst = strconv.AppendInt(dst, p.id, 10)
	}
	return dst
}

// reserved are the event names that the protocol keeps for itself.
func reserved(event string) bool {
	switch event {
	case "connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener":
		return true
	}
	return false
}
