package socketio

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

var errNotArray = errors.New("payload is not a well-formed JSON array")

// maxDepth is how deep the JSON of an event may nest.
const maxDepth = 64

// validJSON is for small texts: it checks everything, UTF-8 included.
func validJSON(b []byte) bool { return json.Valid(b) && utf8.Valid(b) }

// A scanner walks over the structure of a JSON text. Strings are skipped with
// bytes.IndexByte, 200 KB of base64 in microseconds; what is inside them is
// for whoever unmarshals the value to check.
type scanner struct {
	b   []byte
	pos int
	// object, when set, is called with the text of every short object: those
	// that may be placeholders.
	object func([]byte) error
}

// maxPlaceholderBytes bounds what is looked at as {"_placeholder":true,"num":n}.
const maxPlaceholderBytes = 64

// scanArray returns the values in the array raw, which must be nothing else.
// The values are slices of raw; object may be nil.
func scanArray(raw []byte, object func([]byte) error) ([]json.RawMessage, error) {
	s := scanner{b: raw, object: object}
	s.space()
	if s.next() != '[' {
		return nil, errNotArray
	}
	s.pos++
	values := make([]json.RawMessage, 0, 2)
	s.space()
	if s.next() == ']' {
		s.pos++
		return values, s.end()
	}
	for {
		s.space()
		start := s.pos
		if err := s.value(1); err != nil {
			return nil, err
		}
		values = append(values, raw[start:s.pos:s.pos])
		s.space()
		c := s.next()
		s.pos++
		switch c {
		case ',':
		case ']':
			return values, s.end()
		default:
			return nil, errNotArray
		}
	}
}

// next returns the byte at the position, 0 at the end.
func (s *scanner) next() byte {
	if s.pos < len(s.b) {
		return s.b[s.pos]
	}
	return 0
}

func (s *scanner) space() {
	for s.pos < len(s.b) {
		switch s.b[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// end checks that nothing follows.
func (s *scanner) end() error {
	s.space()
	if s.pos != len(s.b) {
		return errNotArray
	}
	return nil
}

func (s *scanner) value(depth int) error {
	switch c := s.next(); {
	case c == '"':
		return s.str()
	case c == '[' || c == '{':
		if depth >= maxDepth {
			return errors.New("payload nests too deep")
		}
		return s.container(depth + 1)
	default:
		return s.scalar()
	}
}

// str skips a string.
func (s *scanner) str() error {
	s.pos++ // the opening quote
	for {
		i := bytes.IndexByte(s.b[s.pos:], '"')
		if i < 0 {
			return errNotArray
		}
		escapes := 0
		for k := s.pos + i - 1; k >= s.pos && s.b[k] == '\\'; k-- {
			escapes++
		}
		s.pos += i + 1
		if escapes%2 == 0 {
			return nil
		}
	}
}

// container skips an array or object.
func (s *scanner) container(depth int) error {
	start := s.pos
	isObject := s.b[start] == '{'
	closing := s.b[start] + 2 // ']' and '}' follow their openings by two
	s.pos++
	s.space()
	if s.next() == closing {
		s.pos++
		return nil
	}
	for {
		s.space()
		if isObject {
			if err := s.key(); err != nil {
				return err
			}
		}
		if err := s.value(depth); err != nil {
			return err
		}
		s.space()
		c := s.next()
		s.pos++
		if c == closing {
			break
		}
		if c != ',' {
			return errNotArray
		}
	}
	if isObject && s.object != nil && s.pos-start <= maxPlaceholderBytes {
		return s.object(s.b[start:s.pos])
	}
	return nil
}

// key skips a name and its colon.
func (s *scanner) key() error {
	if s.next() != '"' {
		return errNotArray
	}
	if err := s.str(); err != nil {
		return err
	}
	s.space()
	if s.next() != ':' {
		return errNotArray
	}
	s.pos++
	s.space()
	return nil
}

// maxScalarBytes bounds a number.
const maxScalarBytes = 512

// scalar skips a number, true, false or null.
func (s *scanner) scalar() error {
	start := s.pos
	for s.pos < len(s.b) && s.pos-start <= maxScalarBytes {
		switch c := s.b[s.pos]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c == 'E', c == '-', c == '+', c == '.':
			s.pos++
			continue
		}
		break
	}
	if !json.Valid(s.b[start:s.pos]) {
		return errNotArray
	}
	return nil
}

// placeholder returns the attachment number in raw when it is
// {"_placeholder":true,"num":n}.
func placeholder(raw []byte) (num int, ok bool) {
	if len(raw) > maxPlaceholderBytes || !bytes.Contains(raw, []byte(`_placeholder`)) {
		return 0, false
	}
	var p struct {
		Placeholder bool     `json:"_placeholder"`
		Num         *float64 `json:"num"`
	}
	if json.Unmarshal(raw, &p) != nil || !p.Placeholder {
		return 0, false
	}
	if p.Num == nil || *p.Num != float64(int(*p.Num)) {
		return -1, true
	}
	return int(*p.Num), true
}
