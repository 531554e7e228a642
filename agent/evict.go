package agent

import (
	"context"
	"errors"

	"pairsync/internal/badgerdb"
)

// evictPerChange bounds how many photos one transaction removes.
const evictPerChange = 16

// keepWhenFull is how many photos stay even when the disk is full.
const keepWhenFull = 50

// overdue takes the oldest photos that are over keep_photos or keep_bytes out
// of t, at most evictPerChange, and returns them. The newest always stays. gone
// is the arrival of one that tx has removed already.
func (s *store) overdue(tx *badgerdb.Tx, t *totals, gone uint64) ([]record, error) {
	over := func() bool { return t.Photos > 1 && (t.Photos > s.keepPhotos || t.Bytes > s.keepBytes) }
	var out []record
	if !over() {
		return nil, nil
	}
	err := tx.Scan([]byte(prefixPhoto), numberedKey(prefixPhoto, t.Oldest), false, func(key []byte, value func() ([]byte, error)) error {
		r, err := parseRecord(key, value)
		if errors.Is(err, badgerdb.ErrDamaged) {
			r, err = record{Arrival: number(key)}, nil // goes without a name
		}
		if err != nil {
			return err
		}
		if r.Arrival == gone {
			return nil
		}
		t.Oldest = r.Arrival
		if !over() || len(out) == evictPerChange {
			return badgerdb.ErrStop
		}
		out = append(out, r)
		t.Photos--
		t.Bytes -= int64(r.Bytes)
		return nil
	})
	return out, err
}

// removePhotos deletes photos, but not what is remembered of them: their seen
// records say that they are gone.
func removePhotos(tx *badgerdb.Tx, rs []record) error {
	for _, r := range rs {
		err := errors.Join(
			tx.Delete(numberedKey(prefixPhoto, r.Arrival)),
			tx.Delete(numberedKey(prefixBytes, r.Arrival)),
		)
		if r.Moment != "" {
			err = errors.Join(err, setJSON(tx, seenKey(r.key()), seen{Pair: r.Pair, At: r.ReceivedAt, Why: "made room"}))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// evict removes what is over the bounds: after a smaller keep_photos or
// keep_bytes was configured, or when one photo pushed out many.
func (s *store) evict(ctx context.Context) error {
	for {
		n := 0
		err := s.db.Prune(ctx, func(tx *badgerdb.Tx) error {
			t, err := readTotals(tx)
			if err != nil {
				return err
			}
			evicted, err := s.overdue(tx, &t, 0)
			if n = len(evicted); n == 0 || err != nil {
				return err
			}
			return errors.Join(removePhotos(tx, evicted), writeTotals(tx, t))
		})
		if err != nil || n < evictPerChange {
			return err
		}
	}
}

// makeRoom removes some of the oldest photos although they are within the
// bounds, because the disk is full; never the newest keepWhenFull.
func (s *store) makeRoom(ctx context.Context) (removed int, err error) {
	tight := store{db: s.db, keepBytes: s.keepBytes}
	err = s.db.Prune(ctx, func(tx *badgerdb.Tx) error {
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		tight.keepPhotos = max(t.Photos-evictPerChange, keepWhenFull)
		evicted, err := tight.overdue(tx, &t, 0)
		if removed = len(evicted); removed == 0 || err != nil {
			return err
		}
		return errors.Join(removePhotos(tx, evicted), writeTotals(tx, t))
	})
	return removed, err
}
