package badgerledger

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

func FuzzHeader(f *testing.F) {
	key := seqKey(recHeader, pairLog, 7)
	for _, m := range []moment.Moment{
		{User: "u", Kind: moment.Delete, ID: "1"},
		{User: "u", Kind: moment.Photo, ID: "1", TakenAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", -5400)),
			StoredAt: time.Unix(5, 6), ExpiresAt: time.Unix(7, 0), Caption: "c", Extra: []moment.Property{{Key: "k", Value: "v"}}, Payload: []byte("p")},
	} {
		h := newHeader(&m)
		b, err := h.encode(key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:len(b)-4])
	}
	f.Add([]byte{headerVersion})
	f.Add(bytes.Repeat([]byte{0xFF}, 60))
	f.Fuzz(func(t *testing.T, body []byte) {
		h, err := parseHeader(pairLog, body)
		if err != nil {
			return
		}
		b, err := h.encode(key)
		if err != nil {
			return // a zone that time.Time reads but does not write
		}
		again, err := decodeHeader(pairLog, key, b)
		if diff := cmp.Diff(h, again, cmp.AllowUnexported(header{})); err != nil || diff != "" {
			t.Errorf("round trip: %v (-want +got):\n%s", err, diff)
		}
		if _, err := decodeHeader(pairLog, seqKey(recHeader, pairLog, 8), b); err == nil {
			t.Error("a header is good under another's key")
		}
	})
}

// TestHeaderBeforeOrigin: what version 1 wrote is read.
func TestHeaderBeforeOrigin(t *testing.T) {
	h := newHeader(&moment.Moment{Pair: "p", User: "u", Kind: moment.Photo, ID: "1", MessageID: "m", Payload: []byte("p")})
	b, err := h.encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	old := append([]byte{1}, b[1:len(b)-5]...) // ends with the count of extra properties: 0, as the origin's length was
	got, err := parseHeader("pair:p", old)
	if diff := cmp.Diff(h, got, cmp.AllowUnexported(header{})); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func FuzzState(f *testing.F) {
	f.Add((&state{}).encode())
	f.Add((&state{deleted: true, head: 9}).encode())
	f.Add((&state{head: 1 << 40, low: 3, entries: 4, receipts: 5, deletes: 7, bytes: 6, newest: map[string]ledger.Seq{"a": 1, "b": 2}}).encode())
	f.Add([]byte{1, 0, 9, 3, 4, 5, 6, 0}) // version 1
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err != nil {
			return
		}
		again, err := decodeState(s.encode())
		if diff := cmp.Diff(s, again, cmp.AllowUnexported(state{})); err != nil || diff != "" {
			t.Errorf("round trip: %v (-want +got):\n%s", err, diff)
		}
	})
}
