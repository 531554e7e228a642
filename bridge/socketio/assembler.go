package socketio

import (
	"errors"
	"fmt"

	"pairsync/bridge/socketio/engineio"
)

// assembly is a packet with its attachments.
type assembly struct {
	packet packet
	buf    engineio.Buffer // holds packet.data
	parts  [][]byte
	bytes  int // of all of it
}

// assembler makes packets of Engine.IO messages: a text message and, where it
// announces some, the binary messages right after it.
type assembler struct {
	limit   int       // bytes of a packet with its attachments
	pending *assembly // lacks attachments; nil when none does
}

// take takes the next message and returns a packet when it is complete.
func (a *assembler) take(binary bool, buf engineio.Buffer) (*assembly, error) {
	if binary {
		return a.attach(buf)
	}
	if a.pending != nil {
		return nil, errors.New("text between the attachments of a packet")
	}
	p, err := parsePacket(buf.B)
	if err != nil {
		return nil, err
	}
	whole := &assembly{packet: p, buf: buf, bytes: len(buf.B)}
	if !p.binary() {
		return whole, nil
	}
	if err := checkPlaceholders(&p); err != nil {
		return nil, err
	}
	if p.attachments > 0 {
		a.pending, whole = whole, nil
	}
	return whole, nil
}

// attach takes a binary message.
func (a *assembler) attach(buf engineio.Buffer) (*assembly, error) {
	whole := a.pending
	if whole == nil {
		return nil, errors.New("binary message without a packet that announced it")
	}
	if whole.bytes += len(buf.B); whole.bytes > a.limit {
		return nil, fmt.Errorf("packet with attachments of over %d bytes: want at most %d", whole.bytes, a.limit)
	}
	whole.parts = append(whole.parts, buf.B)
	if len(whole.parts) < whole.packet.attachments {
		return nil, nil
	}
	a.pending = nil
	return whole, nil
}

// checkPlaceholders refuses a packet that refers to attachments it has not.
func checkPlaceholders(p *packet) error {
	_, err := scanArray(p.data, func(object []byte) error {
		if num, ok := placeholder(object); ok && (num < 0 || num >= p.attachments) {
			return fmt.Errorf("placeholder of attachment %d of %d", num, p.attachments)
		}
		return nil
	})
	return err
}
