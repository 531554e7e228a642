package agent

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/kv"
	"pairsync/internal/moment"
)

// Bounds of what waits to be sent.
const (
	maxOutPhotos = 500
	maxOutBytes  = 256 << 20
	// maxOutReceipts is a photo's receipt for each moment that fits a pair's
	// quota on the server; more are counted and not kept.
	maxOutReceipts = 10_000
	// keepFailed is how many refused photos are kept, newest first.
	keepFailed = 50
	// maxSendBytes is the largest file that can be sent: a camera's photo. It
	// is compressed before it goes out.
	maxSendBytes = 16 << 20
	// partBytes is how a payload is cut in the store: a transaction of the
	// device profile holds few MB.
	partBytes = 1 << 20
	// dropPerChange bounds how many entries one transaction removes.
	dropPerChange = 64
)

var (
	errOutboxFull = errors.New("outbox is full")
	errUnpaired   = errors.New("this device is not paired yet: there is nobody to send to")
)

// entry is one thing waiting to be sent. Its pair is fixed when it is saved:
// it is sent to that pair or to nobody.
type entry struct {
	Seq         uint64      `json:"-"`
	Kind        moment.Kind `json:"kind"`
	Pair        string      `json:"pair"`
	User        string      `json:"user"`
	ID          string      `json:"id"`
	Device      string      `json:"device"`
	ContentType string      `json:"contentType"`
	Caption     string      `json:"caption,omitempty"`
	Quality     Quality     `json:"quality,omitempty"`
	SavedAt     time.Time   `json:"savedAt"`
	Bytes       int         `json:"bytes"`
	// Prepared is set once the payload is what goes out.
	Prepared bool   `json:"prepared"`
	Failed   string `json:"failed,omitempty"` // why it was refused for good

	// body is the payload of a new receipt; other payloads are in the store.
	body []byte
}

// topic returns where e is published.
func (e *entry) topic() string {
	m := moment.Moment{Pair: e.Pair, User: e.User, Kind: e.Kind, ID: e.ID}
	return m.Topic()
}

func (e *entry) parts() int { return (e.Bytes + partBytes - 1) / partBytes }

func outPrefix(kind moment.Kind) []byte { return []byte(prefixOut + string(kind) + "/") }

func outKey(kind moment.Kind, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(outPrefix(kind), seq)
}

func partKey(kind moment.Kind, seq uint64, part int) []byte {
	key := binary.BigEndian.AppendUint64([]byte(prefixOutPart+string(kind)+"/"), seq)
	return binary.BigEndian.AppendUint16(key, uint16(part))
}

// newReceipt returns the entry that tells sender what became of a photo or
// note, or nil where nobody is to be told: receipts are for the partner's.
func newReceipt(m membership, sender, id, status string, at time.Time) *entry {
	partner, ok := m.partner()
	if !ok || sender != partner.ID {
		return nil
	}
	body, err := json.Marshal(moment.ReceiptBody{Moment: id, Sender: sender, Status: status, Device: m.Device, At: at.UTC()})
	if err != nil {
		return nil // a struct of strings and a time always marshals
	}
	return &entry{
		Kind: moment.Receipt, Pair: m.Pair, User: m.User, ID: moment.ReceiptID(sender, id, m.Device, status),
		Device: m.Device, ContentType: "application/json", SavedAt: at, Bytes: len(body), Prepared: true, body: body,
	}
}

// enqueueReceipt adds e (nil: nothing) to the outbox as part of tx.
func enqueueReceipt(tx *badgerdb.Tx, t *totals, e *entry) error {
	if e == nil {
		return nil
	}
	if t.OutReceipts >= maxOutReceipts {
		t.LostReceipts++
		return nil
	}
	seq := t.NextSeq
	t.NextSeq++
	t.OutReceipts++
	return errors.Join(
		setJSON(tx, outKey(e.Kind, seq), e),
		tx.Set(partKey(e.Kind, seq, 0), e.body),
	)
}

// savePhoto puts a photo into the outbox; it is on disk when it returns nil.
// It fails with errOutboxFull, and then nothing was saved.
func (s *store) savePhoto(ctx context.Context, e entry, payload []byte) (entry, error) {
	e.Bytes = len(payload)
	if err := s.update(ctx, change{apply: func(tx *badgerdb.Tx) error {
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		if t.OutPhotos >= maxOutPhotos || t.OutBytes+int64(e.Bytes) > maxOutBytes {
			return fmt.Errorf("%w: %d photos of %d bytes are waiting", errOutboxFull, t.OutPhotos, t.OutBytes)
		}
		e.Seq = t.NextSeq
		t.NextSeq++
		return writeTotals(tx, t)
	}}); err != nil {
		return entry{}, err
	}
	// The parts first: what a crash leaves without its entry, dropOrphans
	// removes at the next start.
	for i := range e.parts() {
		part := payload[i*partBytes : min(len(payload), (i+1)*partBytes)]
		if err := s.update(ctx, change{cost: len(part), apply: func(tx *badgerdb.Tx) error {
			return tx.Set(partKey(e.Kind, e.Seq, i), part)
		}}); err != nil {
			return entry{}, err
		}
	}
	return e, s.update(ctx, change{apply: func(tx *badgerdb.Tx) error {
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		t.OutPhotos++
		t.OutBytes += int64(e.Bytes)
		return errors.Join(setJSON(tx, outKey(e.Kind, e.Seq), e), writeTotals(tx, t))
	}})
}

// dropOrphans removes parts that have no entry.
func (s *store) dropOrphans(ctx context.Context) error {
	var orphans [][]byte
	err := s.db.View(func(tx *badgerdb.Tx) error {
		return tx.Scan([]byte(prefixOutPart), nil, false, func(key []byte, _ func() ([]byte, error)) error {
			out := append([]byte(prefixOut), key[len(prefixOutPart):len(key)-2]...)
			_, err := tx.Get(out)
			if errors.Is(err, kv.ErrNotFound) {
				orphans = append(orphans, append([]byte(nil), key...))
				return nil
			}
			return err
		})
	})
	if err != nil || len(orphans) == 0 {
		return err
	}
	return s.db.Prune(ctx, func(tx *badgerdb.Tx) error {
		for _, key := range orphans[:min(len(orphans), dropPerChange)] { // the rest at later starts
			if err := tx.Delete(key); err != nil {
				return err
			}
		}
		return nil
	})
}

// payload returns what e carries.
func (s *store) payload(e entry) (out []byte, err error) {
	out = make([]byte, 0, e.Bytes)
	err = s.db.View(func(tx *badgerdb.Tx) error {
		for i := range e.parts() {
			part, err := tx.Get(partKey(e.Kind, e.Seq, i))
			if errors.Is(err, kv.ErrNotFound) {
				return nil // too short, see below
			}
			if err != nil {
				return err
			}
			out = append(out, part...)
		}
		return nil
	})
	if err == nil && len(out) != e.Bytes {
		err = fmt.Errorf("outgoing %s %s: %w", e.Kind, e.ID, badgerdb.ErrDamaged)
	}
	return out, err
}

// setPrepared replaces e's payload by what goes out.
func (s *store) setPrepared(ctx context.Context, e entry, payload []byte, contentType string) (entry, error) {
	before := e
	e.Bytes, e.ContentType, e.Prepared = len(payload), contentType, true
	err := s.update(ctx, change{cost: len(payload), apply: func(tx *badgerdb.Tx) error {
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		t.OutBytes += int64(e.Bytes - before.Bytes)
		for i := range max(e.parts(), before.parts()) {
			key := partKey(e.Kind, e.Seq, i)
			if i < e.parts() {
				err = tx.Set(key, payload[i*partBytes:min(len(payload), (i+1)*partBytes)])
			} else {
				err = tx.Delete(key)
			}
			if err != nil {
				return err
			}
		}
		return errors.Join(setJSON(tx, outKey(e.Kind, e.Seq), e), writeTotals(tx, t))
	}})
	return e, err
}

// drop removes entries of one kind, a few at a time.
func (s *store) drop(ctx context.Context, sent ...entry) error {
	for chunk := range slices.Chunk(sent, dropPerChange) {
		if err := s.db.Prune(ctx, func(tx *badgerdb.Tx) error {
			t, err := readTotals(tx)
			if err != nil {
				return err
			}
			for _, e := range chunk {
				if err := dropEntry(tx, &t, e); err != nil {
					return err
				}
			}
			return writeTotals(tx, t)
		}); err != nil {
			return err
		}
	}
	return nil
}

// dropEntry removes e, if it is still there: a receipt of a pair that is over
// may have gone while it was being sent.
func dropEntry(tx *badgerdb.Tx, t *totals, e entry) error {
	if _, err := tx.Get(outKey(e.Kind, e.Seq)); errors.Is(err, kv.ErrNotFound) {
		return nil
	}
	if e.Kind == moment.Receipt {
		t.OutReceipts--
	} else {
		t.OutPhotos--
		t.OutBytes -= int64(e.Bytes)
	}
	err := tx.Delete(outKey(e.Kind, e.Seq))
	for i := range e.parts() {
		err = errors.Join(err, tx.Delete(partKey(e.Kind, e.Seq, i)))
	}
	return err
}

// fail keeps a refused photo with the reason, and lets the oldest of more than
// keepFailed go.
func (s *store) fail(ctx context.Context, e entry, why string) error {
	failed, err := s.entries(e.Kind, func(o entry) bool { return o.Failed != "" })
	if err != nil {
		return err
	}
	e.Failed = cleanText(why, maxErrorBytes)
	return s.update(ctx, change{apply: func(tx *badgerdb.Tx) error {
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		for len(failed) >= keepFailed {
			if err := dropEntry(tx, &t, failed[0]); err != nil {
				return err
			}
			failed = failed[1:]
		}
		return errors.Join(setJSON(tx, outKey(e.Kind, e.Seq), e), writeTotals(tx, t))
	}})
}

// dropForeignReceipts removes receipts for pairs other than the present one:
// nobody can ever read them. Photos for such a pair are held.
func (s *store) dropForeignReceipts(ctx context.Context, pair string) error {
	if pair == "" {
		return nil // it may come back
	}
	foreign, err := s.entries(moment.Receipt, func(e entry) bool { return e.Pair != pair })
	if err != nil {
		return err
	}
	return s.drop(ctx, foreign...)
}

// nextEntry returns the first entry of a kind above after that waits to be
// sent to pair: not refused, and not of another pair.
func (s *store) nextEntry(kind moment.Kind, after uint64, pair string) (e entry, ok bool, err error) {
	err = s.scanEntries(kind, after, func(found entry) error {
		if found.Failed != "" || found.Pair != pair {
			return nil
		}
		e, ok = found, true
		return badgerdb.ErrStop
	})
	return e, ok, err
}

// entries returns the entries of a kind that want accepts, oldest first.
func (s *store) entries(kind moment.Kind, want func(entry) bool) (out []entry, err error) {
	err = s.scanEntries(kind, 0, func(e entry) error {
		if want(e) {
			out = append(out, e)
		}
		return nil
	})
	return out, err
}

func (s *store) scanEntries(kind moment.Kind, after uint64, fn func(entry) error) error {
	return s.db.View(func(tx *badgerdb.Tx) error {
		return tx.Scan(outPrefix(kind), outKey(kind, after+1), false, func(key []byte, value func() ([]byte, error)) error {
			raw, err := value()
			if errors.Is(err, badgerdb.ErrDamaged) {
				return nil // nobody can tell any more what it was
			}
			if err != nil {
				return err
			}
			var e entry
			if err := json.Unmarshal(raw, &e); err != nil {
				return fmt.Errorf("value of key %q: %w", key, err)
			}
			e.Seq = number(key)
			return fn(e)
		})
	})
}
