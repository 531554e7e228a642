package socketio

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"unsafe"
)

// Binary is a field, element or map value that travels as a binary attachment
// when it is emitted. nil travels as null. On the receiving side an attachment
// is found with Event.Attachment.
type Binary []byte

// markHead and markTail enclose the identity of a Binary in JSON until it gets
// its number. A JSON string cannot contain them: its quotes are escaped.
const (
	markHead = `{"_placeholder":true,"num":"`
	markTail = `"}`
)

// mark identifies a Binary by its memory.
func (b Binary) mark() string {
	return strconv.FormatUint(uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), 16) + ":" + strconv.Itoa(len(b))
}

// MarshalJSON writes a mark that Emit replaces; elsewhere it has no meaning.
func (b Binary) MarshalJSON() ([]byte, error) {
	if b == nil {
		return []byte("null"), nil
	}
	return []byte(markHead + b.mark() + markTail), nil
}

// collectBinaries returns the Binary values within v by their marks.
func collectBinaries(v any) map[string]Binary {
	found := map[string]Binary{}
	if v != nil {
		walk(reflect.ValueOf(v), found, maxDepth)
	}
	return found
}

// walk looks for Binary values wherever encoding/json would look.
func walk(v reflect.Value, found map[string]Binary, depth int) {
	if depth == 0 || !v.IsValid() {
		return
	}
	if v.Type() == reflect.TypeFor[Binary]() {
		b := Binary(v.Bytes())
		if b != nil {
			found[b.mark()] = b
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		walk(v.Elem(), found, depth-1)
	case reflect.Struct:
		for i := range v.NumField() {
			walk(v.Field(i), found, depth-1)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			walk(it.Value(), found, depth-1)
		}
	case reflect.Slice, reflect.Array:
		if !scalar(v.Type().Elem().Kind()) {
			for i := range v.Len() {
				walk(v.Index(i), found, depth-1)
			}
		}
	}
}

// scalar reports whether values of kind hold no others.
func scalar(kind reflect.Kind) bool { return kind <= reflect.Complex128 || kind == reflect.String }

// number replaces the marks in the JSON from start on by attachment numbers.
func (e *encoder) number(start int, found map[string]Binary) error {
	text := bytes.Clone(e.buf.Bytes()[start:])
	e.buf.Truncate(start)
	for {
		before, rest, ok := bytes.Cut(text, []byte(markHead))
		e.buf.Write(before)
		if !ok {
			return nil
		}
		mark, after, ok := bytes.Cut(rest, []byte(markTail))
		if !ok {
			return errors.New("unfinished binary placeholder")
		}
		b, ok := found[string(mark)]
		if !ok {
			return fmt.Errorf("binary value %q is hidden behind a custom encoder", mark)
		}
		if err := e.attach(b); err != nil {
			return err
		}
		text = after
	}
}
