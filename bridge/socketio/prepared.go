package socketio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/segmentio/asm/base64"

	"pairsync/bridge/socketio/engineio"
)

// A Prepared is an event encoded once, to be emitted to several sockets. It is
// immutable, and the sockets share its memory.
type Prepared struct {
	body        []byte // the JSON array
	attachments [][]byte
}

// Size returns the bytes the event takes in a socket's queue, but for a short
// head.
func (p *Prepared) Size() int {
	n := len(p.body)
	for _, a := range p.attachments {
		n += len(a)
	}
	return n
}

// messages returns what to send for a packet with p's arguments.
func (p *Prepared) messages(kind, binaryKind packetType, namespace string, id int64) []engineio.Message {
	head := packet{kind: kind, namespace: namespace, id: id, attachments: len(p.attachments)}
	if len(p.attachments) > 0 {
		head.kind = binaryKind
	}
	list := make([]engineio.Message, 1, 1+len(p.attachments))
	list[0] = text(&head, p.body)
	for _, a := range p.attachments {
		list = append(list, engineio.Binary(a))
	}
	return list
}

// Prepare encodes an event. Arguments are encoded with encoding/json; a []byte
// argument, and a Binary anywhere inside one, travels as an attachment and is
// not copied: do not change it afterwards. A json.RawMessage is taken as it is
// after a check.
func Prepare(event string, args ...any) (*Prepared, error) {
	if reserved(event) {
		return nil, fmt.Errorf("socketio: event name %q is reserved", event)
	}
	return encode(append([]any{event}, args...))
}

// PrepareJSON encodes the event with one argument, the JSON text
// head + base64(raw) + tail, in one pass and one allocation: the fast way for
// an object with one large field. head ends within a string and tail begins
// there, for example {"id":"7","data":" and "}.
func PrepareJSON(event string, head, raw, tail []byte) (*Prepared, error) {
	if reserved(event) {
		return nil, fmt.Errorf("socketio: event name %q is reserved", event)
	}
	if !validJSON(slices.Concat(head, tail)) || !validJSON(slices.Concat(head, []byte("+A/="), tail)) {
		return nil, fmt.Errorf("socketio: event %q: head and tail do not make up JSON around a string", event)
	}
	name, err := json.Marshal(event)
	if err != nil {
		return nil, fmt.Errorf("socketio: encode event name %q: %w", event, err)
	}
	n := base64.StdEncoding.EncodedLen(len(raw))
	body := make([]byte, 0, 3+len(name)+len(head)+n+len(tail))
	body = append(append(append(body, '['), name...), ',')
	body = append(body, head...)
	at := len(body)
	body = body[:at+n]
	base64.StdEncoding.Encode(body[at:], raw)
	body = append(append(body, tail...), ']')
	return &Prepared{body: body}, nil
}

// encode makes the JSON array of args and collects the attachments.
func encode(args []any) (*Prepared, error) {
	var e encoder
	e.buf.WriteByte('[')
	for i, arg := range args {
		if i > 0 {
			e.buf.WriteByte(',')
		}
		if err := e.value(arg); err != nil {
			return nil, fmt.Errorf("socketio: encode argument %d: %w", i, err)
		}
	}
	e.buf.WriteByte(']')
	if len(e.attachments) > maxAttachments {
		return nil, fmt.Errorf("socketio: %d attachments: want at most %d", len(e.attachments), maxAttachments)
	}
	return &Prepared{body: e.buf.Bytes(), attachments: e.attachments}, nil
}

// encoder builds the JSON array of a packet.
type encoder struct {
	buf         bytes.Buffer
	attachments [][]byte
}

// value appends one argument.
func (e *encoder) value(arg any) error {
	switch v := arg.(type) {
	case []byte:
		return e.attach(v)
	case Binary:
		return e.attach(v)
	case json.RawMessage:
		if !validJSON(v) {
			return errors.New("raw message is not valid JSON")
		}
		e.buf.Write(v)
		return nil
	}
	found := collectBinaries(arg)
	enc := json.NewEncoder(&e.buf)
	enc.SetEscapeHTML(false)
	start := e.buf.Len()
	if err := enc.Encode(arg); err != nil {
		return err
	}
	e.buf.Truncate(e.buf.Len() - 1) // Encode's newline
	if len(found) == 0 {
		return nil
	}
	return e.number(start, found)
}

// attach appends the placeholder of a new attachment.
func (e *encoder) attach(data []byte) error {
	if data == nil {
		e.buf.WriteString("null")
		return nil
	}
	fmt.Fprintf(&e.buf, `{"_placeholder":true,"num":%d}`, len(e.attachments))
	e.attachments = append(e.attachments, data)
	return nil
}
