package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/moment"
)

// keepNotes is how many notes are kept; the page shows the newest.
const keepNotes = 100

// note is a stored note.
type note struct {
	Arrival    uint64    `json:"-"`
	Pair       string    `json:"pair"`
	Sender     string    `json:"sender"`
	Moment     string    `json:"moment"`
	Text       string    `json:"text"`
	ReceivedAt time.Time `json:"receivedAt"`
}

// takeNote keeps a note, its receipt and the memory of it, all or nothing.
func (s *store) takeNote(n note, receipt *entry, fresh *bool) change {
	key := moment.Key{User: n.Sender, Kind: moment.Note, ID: n.Moment}
	return change{cost: len(n.Text) + 4<<10, apply: func(tx *badgerdb.Tx) error {
		*fresh = false
		var before seen
		known, err := getJSON(tx, seenKey(key), &before)
		if err != nil || known && before.Pair == n.Pair {
			return err
		}
		t, err := readTotals(tx)
		if err != nil {
			return err
		}
		old, err := oldNotes(tx, &t)
		if err != nil {
			return err
		}
		n.Arrival = t.NextArrival
		t.NextArrival++
		t.Notes++
		*fresh = true
		for _, key := range old {
			if err := tx.Delete(key); err != nil {
				return err
			}
		}
		return errors.Join(
			setJSON(tx, numberedKey(prefixNote, n.Arrival), n),
			setJSON(tx, seenKey(key), seen{Pair: n.Pair, Arrival: n.Arrival, At: n.ReceivedAt}),
			enqueueReceipt(tx, &t, receipt),
			writeTotals(tx, t),
		)
	}}
}

// oldNotes takes the notes that make room for one more out of t.
func oldNotes(tx *badgerdb.Tx, t *totals) (keys [][]byte, err error) {
	if t.Notes < keepNotes {
		return nil, nil
	}
	err = tx.Scan([]byte(prefixNote), nil, false, func(key []byte, _ func() ([]byte, error)) error {
		if t.Notes < keepNotes {
			return badgerdb.ErrStop
		}
		keys = append(keys, append([]byte(nil), key...))
		t.Notes--
		return nil
	})
	return keys, err
}

// newestNote returns the newest note of a pair.
func (s *store) newestNote(pair string) (n note, ok bool, err error) {
	err = s.db.View(func(tx *badgerdb.Tx) error {
		return tx.Scan([]byte(prefixNote), nil, true, func(key []byte, value func() ([]byte, error)) error {
			raw, err := value()
			if errors.Is(err, badgerdb.ErrDamaged) {
				return nil
			}
			if err != nil {
				return err
			}
			var found note
			if err := json.Unmarshal(raw, &found); err != nil {
				return fmt.Errorf("value of key %q: %w", key, err)
			}
			if found.Pair != pair {
				return nil
			}
			n, ok = found, true
			n.Arrival = number(key)
			return badgerdb.ErrStop
		})
	})
	return n, ok, err
}
