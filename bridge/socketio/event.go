package socketio

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"unicode/utf8"
)

// An Event is one event from the other side. It is valid until its handler
// returns, but for Attachments.
type Event struct {
	Name string
	// Raw is the JSON of the argument array, the name included. Its structure
	// is checked; what is inside strings (escapes, control characters, UTF-8)
	// is for whoever decodes them. It is overwritten after the handler returns.
	Raw []byte
	// Attachments are the binary parts, in order. They belong to the receiver.
	Attachments [][]byte

	values []json.RawMessage // of Raw, the name included
	id     int64             // -1 without
	reply  func(id int64, args []any) error
	acked  atomic.Bool
}

// newEvent checks an EVENT packet.
func newEvent(p packet, parts [][]byte) (*Event, error) {
	values, err := scanArray(p.data, nil)
	if err != nil {
		return nil, err
	}
	name, err := eventName(values)
	if err != nil {
		return nil, err
	}
	if reserved(name) {
		return nil, fmt.Errorf("event name %q is reserved", name)
	}
	return &Event{Name: name, Raw: p.data, Attachments: parts, values: values, id: p.id}, nil
}

// eventName returns the first value of an event, a string or a number.
func eventName(values []json.RawMessage) (string, error) {
	if len(values) == 0 {
		return "", errors.New("event without a name")
	}
	first := values[0]
	switch c := first[0]; {
	case c == '"' && !validJSON(first):
		return "", errors.New("event name is not a well-formed string")
	case c == '"' && bytes.IndexByte(first, '\\') < 0:
		return string(first[1 : len(first)-1]), nil
	case c == '"':
		var name string
		if err := json.Unmarshal(first, &name); err != nil {
			return "", fmt.Errorf("event name: %w", err)
		}
		return name, nil
	case c == '-' || c >= '0' && c <= '9':
		return string(first), nil
	}
	return "", errors.New("event name is neither a string nor a number")
}

// Args returns the arguments after the name, as slices of Raw; an error when
// Raw is not UTF-8.
func (e *Event) Args() ([]json.RawMessage, error) {
	if !utf8.Valid(e.Raw) {
		return nil, fmt.Errorf("event %q is not valid UTF-8", e.Name)
	}
	return e.values[1:], nil
}

// Attachment returns the attachment that the JSON value raw stands for; false
// when raw is no placeholder.
func (e *Event) Attachment(raw json.RawMessage) ([]byte, bool) {
	num, ok := placeholder(raw)
	if !ok || num < 0 || num >= len(e.Attachments) {
		return nil, false
	}
	return e.Attachments[num], true
}

// WantsAck reports whether the sender waits for an acknowledgement.
func (e *Event) WantsAck() bool { return e.id >= 0 }

// Ack answers the event, also after the handler has returned. Only the first
// call counts, and without a wish for an answer it does nothing. Errors are
// those of Emit.
func (e *Event) Ack(args ...any) error {
	if e.reply == nil || e.id < 0 || !e.acked.CompareAndSwap(false, true) {
		return nil
	}
	return e.reply(e.id, args)
}

// ackArgs copies the arguments of an acknowledgement out of the packet, with
// attachments as base64 strings in the place of their placeholders.
func ackArgs(raw []byte, parts [][]byte) ([]json.RawMessage, error) {
	raw = bytes.Clone(raw)
	if len(parts) > 0 {
		for num, part := range parts {
			text := strconv.Quote(base64.StdEncoding.EncodeToString(part))
			for _, form := range placeholderForms(raw, num) {
				raw = bytes.ReplaceAll(raw, form, []byte(text))
			}
		}
	}
	return scanArray(raw, nil)
}

// placeholderForms returns the ways in which raw writes the placeholder num.
func placeholderForms(raw []byte, num int) (forms [][]byte) {
	_, _ = scanArray(raw, func(object []byte) error { // raw is checked already
		if n, ok := placeholder(object); ok && n == num {
			forms = append(forms, bytes.Clone(object))
		}
		return nil
	})
	return forms
}
