package badgerledger

import (
	"encoding/binary"
	"errors"
	"fmt"

	"pairsync/internal/badgerdb"
	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// state is what a log's record holds: read from it, changed and written back in
// one transaction of the writer.
type state struct {
	deleted  bool
	head     ledger.Seq // the newest ever committed
	low      ledger.Seq // no entry is below; where scans start, past the tombstones
	entries  int        // without receipts
	receipts int
	bytes    int64                 // without receipts
	newest   map[string]ledger.Seq // each user's newest photo
}

// A log record's value: 1 byte version 1, 1 byte flags (bit 0 deleted), then
// uvarints head, low, entries, receipts, bytes, number of users, and for each
// user text name and uvarint seq.
const stateVersion = 1

func (s *state) encode() []byte {
	b := []byte{stateVersion, 0}
	if s.deleted {
		b[1] = 1
	}
	for _, n := range []uint64{uint64(s.head), uint64(s.low), uint64(s.entries), uint64(s.receipts), uint64(s.bytes), uint64(len(s.newest))} {
		b = binary.AppendUvarint(b, n)
	}
	for user, seq := range s.newest {
		b = binary.AppendUvarint(appendText(b, user), uint64(seq))
	}
	return b
}

var errState = errors.New("malformed log record")

func decodeState(b []byte) (*state, error) {
	r := reader{b: b}
	lead := r.take(2)
	if len(lead) != 2 || lead[0] != stateVersion || lead[1] > 1 {
		return nil, errState
	}
	s := &state{deleted: lead[1] == 1, newest: make(map[string]ledger.Seq)}
	s.head = ledger.Seq(r.uvarint())
	s.low = ledger.Seq(r.uvarint())
	s.entries = int(r.uvarint())
	s.receipts = int(r.uvarint())
	s.bytes = int64(r.uvarint())
	for n := r.uvarint(); n > 0 && !r.bad; n-- {
		user := r.text()
		s.newest[user] = ledger.Seq(r.uvarint())
	}
	if r.bad || len(r.b) > 0 || s.entries < 0 || s.receipts < 0 || s.bytes < 0 {
		return nil, errState
	}
	return s, nil
}

// add counts an entry that becomes the newest.
func (s *state) add(seq ledger.Seq, h *header) {
	s.head = seq
	if s.entries+s.receipts == 0 {
		s.low = seq
	}
	if h.m.Kind == moment.Receipt {
		s.receipts++
		return
	}
	s.entries++
	s.bytes += int64(h.size)
	if h.m.Kind == moment.Photo {
		s.newest[h.m.User] = seq
	}
}

// remove is the opposite of add, but leaves newest and low to its caller.
func (s *state) remove(h *header) {
	if h.m.Kind == moment.Receipt {
		s.receipts--
		return
	}
	s.entries--
	s.bytes -= int64(h.size)
}

// readState returns a log's record as tx sees it, or an empty one.
func readState(tx *badgerdb.Tx, log ledger.LogID) (*state, error) {
	v, err := tx.Get(logKey(recLog, log))
	if errors.Is(err, kv.ErrNotFound) {
		return &state{newest: make(map[string]ledger.Seq)}, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := decodeState(v)
	if err != nil {
		return nil, fmt.Errorf("log %q: %w", string(log), err)
	}
	return s, nil
}
