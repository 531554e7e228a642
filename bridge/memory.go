package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pairsync/internal/kv"
)

// Where the bridge keeps what must outlive it, in Deps.KV.
//
//	bridge/acked/{user}/{device}/{slot}            ackRecord, a ring of ackSlots
//	bridge/dead/{user}/{device}/{sender}/{photo}   DeadLetter
//
// {device} is empty for the phone without a device id.
const (
	keyAcked = "bridge/acked/"
	keyDead  = "bridge/dead/"
)

const (
	// ackSlots is how many acknowledged photos of a session are kept on disk:
	// twice the window, because at most a window of them can come again.
	ackSlots = 32
	// ackMemoryEntries is how many ids a session remembers in memory, those of
	// notes and early acknowledgements included.
	ackMemoryEntries = 128
)

// ackMemory knows what the phones of one session have acknowledged, so that
// what the broker delivers again is not shown again. The app would drop the
// repeat in silence and never acknowledge it (facts-app.md). It is guarded by
// its user's mutex.
type ackMemory struct {
	entries []ackEntry // oldest first
	slot    int        // the next slot on disk
}

type ackEntry struct {
	key string
	at  time.Time // when the phone says it received it
	// settled: its receipt is with the broker, so only PUBACK is left to do.
	settled bool
}

// photoKey names a photo in an ackMemory. A user has one partner at a time, so
// the id alone is unique; an acknowledgement does not say more.
func photoKey(id string) string { return "photo:" + id }

// find returns the entry of key, or nil. It is valid until the next add.
func (m *ackMemory) find(key string) *ackEntry {
	for i := range m.entries {
		if m.entries[i].key == key {
			return &m.entries[i]
		}
	}
	return nil
}

// add remembers key; an entry that exists stays as it is.
func (m *ackMemory) add(key string, at time.Time) {
	if m.find(key) != nil {
		return
	}
	if len(m.entries) == ackMemoryEntries {
		m.entries = slices.Delete(m.entries, 0, 1)
	}
	m.entries = append(m.entries, ackEntry{key: key, at: at})
}

// settle remembers that key needs nothing but PUBACK from now on.
func (m *ackMemory) settle(key string, at time.Time) {
	m.add(key, at)
	m.find(key).settled = true
}

// nextSlot returns the place on disk for one more acknowledged photo.
func (m *ackMemory) nextSlot() int {
	slot := m.slot
	m.slot = (m.slot + 1) % ackSlots
	return slot
}

// ackRecord is one acknowledged photo on disk. It says that the phone has it,
// not that its receipt was sent.
type ackRecord struct {
	Photo string    `json:"photo"`
	At    time.Time `json:"at"`    // when the phone says it received it
	Saved time.Time `json:"saved"` // orders the slots
}

func (k userKey) path() string { return k.user + "/" + k.device + "/" }

// saveAck writes one acknowledged photo to its slot.
func saveAck(ctx context.Context, store kv.Store, k userKey, slot int, photo string, at time.Time) error {
	value, err := json.Marshal(ackRecord{Photo: photo, At: at, Saved: time.Now()})
	if err != nil {
		return fmt.Errorf("keep acknowledgement of photo %q: %w", photo, err)
	}
	key := fmt.Sprintf("%s%s%02d", keyAcked, k.path(), slot)
	if err := store.Apply(ctx, kv.Op{Key: key, Value: value}); err != nil {
		return fmt.Errorf("keep acknowledgement of photo %q: %w", photo, err)
	}
	return nil
}

// loadAcks returns what a session acknowledged before the bridge was started.
// A record that cannot be read is left out: at worst a photo is emitted again.
func loadAcks(ctx context.Context, store kv.Store, k userKey) (ackMemory, error) {
	type slotted struct {
		ackRecord
		slot int
	}
	var found []slotted
	prefix := keyAcked + k.path()
	err := store.Scan(ctx, prefix, func(key string, value []byte) error {
		var r slotted
		if _, err := fmt.Sscanf(key[len(prefix):], "%d", &r.slot); err != nil || json.Unmarshal(value, &r.ackRecord) != nil {
			return nil
		}
		found = append(found, r)
		return nil
	})
	var m ackMemory
	if err != nil {
		return m, fmt.Errorf("load acknowledgements of %q: %w", k.user, err)
	}
	slices.SortFunc(found, func(a, b slotted) int { return a.Saved.Compare(b.Saved) })
	for _, r := range found {
		m.add(photoKey(r.Photo), r.At)
		m.slot = (r.slot + 1) % ackSlots
	}
	return m, nil
}

// DeadLetter names a photo that a phone was sent again and again without ever
// acknowledging it. The photo itself stays in the broker's ledger for as long
// as that keeps it.
type DeadLetter struct {
	Pair    string    `json:"pair"`
	User    string    `json:"user"`   // who should have got it
	Device  string    `json:"device"` // auth.deviceId of the phone, or empty
	Sender  string    `json:"sender"`
	Photo   string    `json:"photo"`
	Tries   int       `json:"tries"`
	Sockets int       `json:"sockets"`
	At      time.Time `json:"at"` // when it was given up
}

func (d *DeadLetter) key() string {
	return keyDead + userKey{d.User, d.Device}.path() + d.Sender + "/" + d.Photo
}

func saveDead(ctx context.Context, store kv.Store, d DeadLetter) error {
	value, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("keep dead letter %q: %w", d.Photo, err)
	}
	if err := store.Apply(ctx, kv.Op{Key: d.key(), Value: value}); err != nil {
		return fmt.Errorf("keep dead letter %q: %w", d.Photo, err)
	}
	return nil
}

// DeadLetters returns the dead letters in store, those of one user or, where
// user is empty, of all, in key order.
func DeadLetters(ctx context.Context, store kv.Store, user string) ([]DeadLetter, error) {
	prefix := keyDead
	if user != "" {
		prefix += user + "/"
	}
	var out []DeadLetter
	err := store.Scan(ctx, prefix, func(key string, value []byte) error {
		var d DeadLetter
		if err := json.Unmarshal(value, &d); err != nil {
			return fmt.Errorf("dead letter %q: %w", strings.TrimPrefix(key, keyDead), err)
		}
		out = append(out, d)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return out, nil
}

// maxDeadAge is how long a dead letter is kept: the ledger's max_age, after
// which the photo itself is gone.
const maxDeadAge = 90 * 24 * time.Hour

// sweepDead removes the dead letters whose photo the ledger no longer has.
func sweepDead(ctx context.Context, store kv.Store) error {
	letters, err := DeadLetters(ctx, store, "")
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range letters {
		if time.Since(d.At) > maxDeadAge {
			errs = append(errs, store.Apply(ctx, kv.Op{Key: d.key(), Delete: true}))
		}
	}
	return errors.Join(errs...)
}
