package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/moment"
)

// maxPhotoBytes is the largest photo that is kept: what fits one transaction
// of the store's device profile, beside its records.
const maxPhotoBytes = 6 << 20

// errNoPhoto says that the store has no such photo (any more).
var errNoPhoto = errors.New("no such photo")

// record is a stored photo without its bytes.
type record struct {
	Arrival    uint64    `json:"-"`
	Pair       string    `json:"pair"`
	Sender     string    `json:"sender"`
	Moment     string    `json:"moment"`
	Type       string    `json:"type"` // as verified, not as claimed
	Bytes      int       `json:"bytes"`
	SHA256     string    `json:"sha256"`
	Caption    string    `json:"caption,omitempty"`
	TakenAt    time.Time `json:"takenAt,omitzero"`
	ReceivedAt time.Time `json:"receivedAt"`
	ShownAt    time.Time `json:"shownAt,omitzero"` // zero: not shown yet
	Broken     bool      `json:"broken,omitempty"` // the page could not decode it
}

func (r record) key() moment.Key { return moment.Key{User: r.Sender, Kind: moment.Photo, ID: r.Moment} }

func hashHex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// takePhoto keeps a photo, remembers it as seen and queues the receipt (where
// one is due), all or nothing. *fresh is whether it was new. A photo that was
// already seen in the same pair changes nothing; one that is still here from a
// former pair moves to the new one, so that nobody sees it twice.
func (s *store) takePhoto(r record, payload []byte, receipt *entry, fresh *bool) change {
	return change{cost: len(payload) + 8<<10, apply: func(tx *badgerdb.Tx) error {
		*fresh = false
		var before seen
		known, err := getJSON(tx, seenKey(r.key()), &before)
		if err != nil {
			return err
		}
		if known && before.Pair == r.Pair {
			return nil
		}
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		if known && before.Arrival != 0 {
			if same, err := adopt(tx, &t, before.Arrival, r, receipt); same || err != nil {
				return err
			}
		}
		r.Arrival = t.NextArrival
		t.NextArrival++
		t.Photos++
		t.Bytes += int64(r.Bytes)
		evicted, err := s.overdue(tx, &t, before.Arrival)
		if err != nil {
			return err
		}
		*fresh = true
		if err := errors.Join(
			setJSON(tx, numberedKey(prefixPhoto, r.Arrival), r),
			tx.Set(numberedKey(prefixBytes, r.Arrival), payload),
			setJSON(tx, seenKey(r.key()), seen{Pair: r.Pair, Arrival: r.Arrival, At: r.ReceivedAt}),
			removePhotos(tx, evicted),
			enqueueReceipt(tx, &t, receipt),
		); err != nil {
			return err
		}
		return writeTotals(tx, t)
	}}
}

// adopt moves a photo of a former pair to r's, and reports true, where it is
// the same photo. Another one that had r's id makes way for it: an id is unique
// only within a pair.
func adopt(tx *badgerdb.Tx, t *totals, arrival uint64, r record, receipt *entry) (same bool, err error) {
	var old record
	ok, err := getJSON(tx, numberedKey(prefixPhoto, arrival), &old)
	if errors.Is(err, badgerdb.ErrDamaged) {
		return false, nil
	}
	if !ok || err != nil {
		return false, err
	}
	if old.SHA256 != r.SHA256 {
		t.Photos--
		t.Bytes -= int64(old.Bytes)
		return false, errors.Join(tx.Delete(numberedKey(prefixPhoto, arrival)), tx.Delete(numberedKey(prefixBytes, arrival)))
	}
	old.Pair = r.Pair
	return true, errors.Join(
		setJSON(tx, numberedKey(prefixPhoto, arrival), old),
		setJSON(tx, seenKey(r.key()), seen{Pair: r.Pair, Arrival: arrival, At: r.ReceivedAt}),
		enqueueReceipt(tx, t, receipt),
		writeTotals(tx, *t),
	)
}

// takeBroken remembers a photo that will never be shown, and counts it.
// *fresh is whether it was new.
func (s *store) takeBroken(pair string, key moment.Key, why string, fresh *bool) change {
	return change{apply: func(tx *badgerdb.Tx) error {
		*fresh = false
		var before seen
		known, err := getJSON(tx, seenKey(key), &before)
		if err != nil || known && before.Pair == pair {
			return err
		}
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		t.Broken++
		*fresh = true
		return errors.Join(
			setJSON(tx, seenKey(key), seen{Pair: pair, Arrival: before.Arrival, At: time.Now(), Why: why}),
			writeTotals(tx, t),
		)
	}}
}

// takeBack removes a photo and a note that their sender took back, and
// remembers both ids, so that a late copy does not come in. *gone is whether
// one of them was here.
func (s *store) takeBack(pair, sender, id string, gone *bool) change {
	photo := moment.Key{User: sender, Kind: moment.Photo, ID: id}
	text := moment.Key{User: sender, Kind: moment.Note, ID: id}
	return change{apply: func(tx *badgerdb.Tx) error {
		*gone = false
		var p, n seen
		_, errPhoto := getJSON(tx, seenKey(photo), &p)
		_, errNote := getJSON(tx, seenKey(text), &n)
		t, err := readTotals(tx)
		if err := errors.Join(errPhoto, errNote, err); err != nil {
			return err
		}
		var r record
		if p.Arrival != 0 {
			*gone, err = getJSON(tx, numberedKey(prefixPhoto, p.Arrival), &r)
			if errors.Is(err, badgerdb.ErrDamaged) {
				*gone, err = true, nil // all the more
			}
			if err != nil {
				return err
			}
			if *gone {
				t.Photos--
				t.Bytes -= int64(r.Bytes)
			}
			err = errors.Join(tx.Delete(numberedKey(prefixPhoto, p.Arrival)), tx.Delete(numberedKey(prefixBytes, p.Arrival)))
		}
		if n.Arrival != 0 && err == nil {
			if _, absent := tx.Get(numberedKey(prefixNote, n.Arrival)); absent == nil {
				*gone = true
				t.Notes--
			}
			err = tx.Delete(numberedKey(prefixNote, n.Arrival))
		}
		back := seen{Pair: pair, At: time.Now(), Why: "taken back"}
		return errors.Join(err, setJSON(tx, seenKey(photo), back), setJSON(tx, seenKey(text), back), writeTotals(tx, t))
	}}
}

func parseRecord(key []byte, value func() ([]byte, error)) (record, error) {
	raw, err := value()
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return record{}, fmt.Errorf("value of key %q: %w", key, err)
	}
	r.Arrival = number(key)
	return r, nil
}

// eachPhoto calls fn for every photo, newest first, until it returns an error;
// badgerdb.ErrStop ends the walk without one. A record that cannot be read is
// left out.
func (s *store) eachPhoto(fn func(record) error) error {
	return s.db.View(func(tx *badgerdb.Tx) error {
		return tx.Scan([]byte(prefixPhoto), nil, true, func(key []byte, value func() ([]byte, error)) error {
			r, err := parseRecord(key, value)
			if errors.Is(err, badgerdb.ErrDamaged) {
				return nil
			}
			if err != nil {
				return err
			}
			return fn(r)
		})
	})
}

// photo returns one stored photo with its bytes, or errNoPhoto. Bytes that do
// not have the hash they came with are badgerdb.ErrDamaged.
func (s *store) photo(sender, id string) (r record, payload []byte, err error) {
	err = s.db.View(func(tx *badgerdb.Tx) error {
		if r, err = findPhoto(tx, sender, id); err != nil {
			return err
		}
		if payload, err = tx.Get(numberedKey(prefixBytes, r.Arrival)); err != nil {
			return err
		}
		if len(payload) != r.Bytes || hashHex(payload) != r.SHA256 {
			return fmt.Errorf("photo %s: %w", r.key(), badgerdb.ErrDamaged)
		}
		return nil
	})
	return r, payload, err
}

func findPhoto(tx *badgerdb.Tx, sender, id string) (record, error) {
	key := moment.Key{User: sender, Kind: moment.Photo, ID: id}
	var at seen
	if _, err := getJSON(tx, seenKey(key), &at); err != nil {
		return record{}, err
	}
	var r record
	ok, err := getJSON(tx, numberedKey(prefixPhoto, at.Arrival), &r)
	if err != nil {
		return record{}, err
	}
	if !ok {
		return record{}, fmt.Errorf("photo %s: %w", key, errNoPhoto)
	}
	r.Arrival = at.Arrival
	return r, nil
}

// markShown records that a photo has been shown, and queues the receipt unless
// the photo is a former pair's. It reports false, and changes nothing, when
// the photo was shown before.
func (s *store) markShown(ctx context.Context, sender, id string, at time.Time, receipt *entry) (bool, error) {
	first := false
	err := s.update(ctx, change{apply: func(tx *badgerdb.Tx) error {
		first = false
		r, err := findPhoto(tx, sender, id)
		if err != nil || !r.ShownAt.IsZero() {
			return err
		}
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		r.ShownAt = at
		first = true
		told := receipt
		if told != nil && told.Pair != r.Pair {
			told = nil
		}
		return errors.Join(
			setJSON(tx, numberedKey(prefixPhoto, r.Arrival), r),
			enqueueReceipt(tx, &t, told),
			writeTotals(tx, t),
		)
	}})
	return err == nil && first, err // not first alone: fn may still run
}

// markBroken keeps a photo that the page could not decode out of the show, and
// counts it. It reports false, and changes nothing, when that was done before.
func (s *store) markBroken(ctx context.Context, sender, id string) (bool, error) {
	first := false
	err := s.update(ctx, change{apply: func(tx *badgerdb.Tx) error {
		first = false
		r, err := findPhoto(tx, sender, id)
		if err != nil || r.Broken {
			return err
		}
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		r.Broken, first = true, true
		t.Broken++
		return errors.Join(setJSON(tx, numberedKey(prefixPhoto, r.Arrival), r), writeTotals(tx, t))
	}})
	return err == nil && first, err // not first alone: fn may still run
}

// forget removes a photo whose bytes are damaged, and that it was ever seen: a
// new session brings it back.
func (s *store) forget(ctx context.Context, sender, id string) error {
	return s.db.Prune(ctx, func(tx *badgerdb.Tx) error {
		r, err := findPhoto(tx, sender, id)
		if err != nil {
			return err
		}
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		t.Photos--
		t.Bytes -= int64(r.Bytes)
		return errors.Join(
			tx.Delete(numberedKey(prefixPhoto, r.Arrival)),
			tx.Delete(numberedKey(prefixBytes, r.Arrival)),
			tx.Delete(seenKey(r.key())),
			writeTotals(tx, t),
		)
	})
}
