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
	entries  int        // without receipts and deletes
	receipts int
	deletes  int
	bytes    int64                 // of entries
	newest   map[string]ledger.Seq // each user's newest photo
}

// A log record's value: 1 byte version 2, 1 byte flags (bit 0 deleted), then
// uvarints head, low, entries, receipts, bytes, number of users, and for each
// user text name and uvarint seq, then uvarint deletes. Version 1 ends before
// that and counts deletes as entries.
const stateVersion = 2

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
	return binary.AppendUvarint(b, uint64(s.deletes))
}

var errState = errors.New("malformed log record")

func decodeState(b []byte) (*state, error) {
	r := reader{b: b}
	lead := r.take(2)
	if len(lead) != 2 || lead[0] < 1 || lead[0] > stateVersion || lead[1] > 1 {
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
	if lead[0] > 1 {
		s.deletes = int(r.uvarint())
	}
	if r.bad || len(r.b) > 0 || s.entries < 0 || s.receipts < 0 || s.deletes < 0 || s.bytes < 0 {
		return nil, errState
	}
	return s, nil
}

// all is how many entries of any kind the log holds.
func (s *state) all() int { return s.entries + s.receipts + s.deletes }

// add counts an entry that becomes the newest.
func (s *state) add(seq ledger.Seq, h *header) {
	s.head = seq
	if s.all() == 0 {
		s.low = seq
	}
	switch h.m.Kind {
	case moment.Receipt:
		s.receipts++
		return
	case moment.Delete:
		s.deletes++
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
	switch {
	case h.m.Kind == moment.Receipt:
		s.receipts--
		return
	case h.m.Kind == moment.Delete && s.deletes > 0: // else version 1 has counted it
		s.deletes--
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
