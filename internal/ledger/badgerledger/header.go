package badgerledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/cespare/xxhash/v2"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// header is an entry without its payload, and what the payload must be.
type header struct {
	m    moment.Moment // Payload nil
	size int
	hash uint64 // xxhash64 of the payload
}

// A header's value:
//
//	1 byte   version 2; version 1 had no origin
//	8 bytes  stored at, unix nanoseconds
//	8 bytes  expires at, unix nanoseconds, 0 is never
//	8 bytes  xxhash64 of the payload
//	uvarint  payload length
//	text     taken at (time.Time.MarshalBinary, keeps the zone), empty is unknown
//	text     user, kind, id, content type, caption, sender name, device, message id, origin
//	uvarint  number of extra properties, then key and value of each as text
//	4 bytes  CRC32-C of the key and all of the above
//
// where text is a uvarint length and its bytes. The pair is in the key.
const headerVersion = 2

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func newHeader(m *moment.Moment) header {
	h := header{m: *m, size: len(m.Payload), hash: xxhash.Sum64(m.Payload)}
	h.m.Payload = nil
	return h
}

// encode returns the value to store under key.
func (h *header) encode(key []byte) ([]byte, error) {
	var taken []byte
	if !h.m.TakenAt.IsZero() {
		var err error
		if taken, err = h.m.TakenAt.MarshalBinary(); err != nil {
			return nil, fmt.Errorf("taken at %v: %w", h.m.TakenAt, err)
		}
	}
	b := make([]byte, 0, 192+len(h.m.Caption))
	b = append(b, headerVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(nanos(h.m.StoredAt)))
	b = binary.BigEndian.AppendUint64(b, uint64(nanos(h.m.ExpiresAt)))
	b = binary.BigEndian.AppendUint64(b, h.hash)
	b = binary.AppendUvarint(b, uint64(h.size))
	b = appendText(b, string(taken))
	for _, s := range h.texts() {
		b = appendText(b, *s)
	}
	b = binary.AppendUvarint(b, uint64(len(h.m.Extra)))
	for _, p := range h.m.Extra {
		b = appendText(appendText(b, p.Key), p.Value)
	}
	return binary.BigEndian.AppendUint32(b, checksum(key, b)), nil
}

// texts returns the moment's text fields in the order they are stored.
func (h *header) texts() [9]*string {
	m := &h.m
	return [...]*string{&m.User, (*string)(&m.Kind), &m.ID, &m.ContentType, &m.Caption, &m.SenderName, &m.Device, &m.MessageID, &m.Origin}
}

func checksum(key, b []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, b)
}

var errHeader = errors.New("malformed header")

// decodeHeader reads what encode wrote under key in log.
func decodeHeader(log ledger.LogID, key, b []byte) (header, error) {
	if len(b) < 4 {
		return header{}, errHeader
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if checksum(key, body) != sum {
		return header{}, fmt.Errorf("%w: wrong checksum", errHeader)
	}
	return parseHeader(log, body)
}

// parseHeader is decodeHeader without the checksum.
func parseHeader(log ledger.LogID, b []byte) (h header, err error) {
	r := reader{b: b}
	texts := h.texts()
	stored := texts[:]
	if v := r.take(1); len(v) == 1 && v[0] == 1 {
		stored = texts[:8]
	} else if len(v) == 1 && v[0] != headerVersion {
		return header{}, fmt.Errorf("%w: version %d", errHeader, v[0])
	}
	h.m.StoredAt = atNanos(int64(r.uint64()))
	h.m.ExpiresAt = atNanos(int64(r.uint64()))
	h.hash = r.uint64()
	h.size = int(min(r.uvarint(), 1<<31-1))
	if taken := r.text(); taken != "" {
		if err := h.m.TakenAt.UnmarshalBinary([]byte(taken)); err != nil {
			return header{}, fmt.Errorf("%w: %w", errHeader, err)
		}
	}
	for _, s := range stored {
		*s = r.text()
	}
	if n := r.uvarint(); n > 0 && n <= uint64(len(r.b)) {
		h.m.Extra = make([]moment.Property, n)
		for i := range h.m.Extra {
			h.m.Extra[i] = moment.Property{Key: r.text(), Value: r.text()}
		}
	} else if n > 0 {
		return header{}, errHeader
	}
	if r.bad || len(r.b) > 0 {
		return header{}, errHeader
	}
	if pair, ok := log.Pair(); ok {
		h.m.Pair = pair
	} else if pair, ok := log.Later(); ok {
		h.m.Pair = pair
	}
	return h, nil
}

// nanos maps the zero time to 0 and back; the store has no use for 1970.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func atNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// reader takes fields from the front of b; bad is set, and stays, when one is
// not there.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.b, r.bad = nil, true
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) uint64() uint64 {
	if v := r.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) text() string { return string(r.take(r.uvarint())) }
