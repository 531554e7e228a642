package agent

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/kv"
	"pairsync/internal/moment"
)

// The keys of the store. Numbers are 8 bytes, big endian; ids hold no slash.
//
//	p<arrival>                   photo, as JSON
//	b<arrival>                   its bytes, as received
//	n<arrival>                   note, as JSON
//	s<kind>/<sender>/<id>        seen, as JSON: outlives the photo or note
//	o<kind>/<seq>                outgoing entry, as JSON
//	q<kind>/<seq><part: 2 B>     a part of its payload
//	m<name>                      totals, member, session: one JSON object each
const (
	prefixPhoto   = "p"
	prefixBytes   = "b"
	prefixNote    = "n"
	prefixSeen    = "s"
	prefixOut     = "o"
	prefixOutPart = "q"

	keyTotals  = "mtotals"
	keyMember  = "mmember"
	keySession = "msession"
)

func numberedKey(prefix string, n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(prefix), n)
}

// number returns the number that ends a key of numberedKey.
func number(key []byte) uint64 { return binary.BigEndian.Uint64(key[len(key)-8:]) }

func seenKey(k moment.Key) []byte { return []byte(prefixSeen + k.String()) }

// totals are the sums and counters of the store. They are read and written in
// the transactions that change them, so they are exact after any crash.
type totals struct {
	NextArrival uint64 `json:"nextArrival"`
	NextSeq     uint64 `json:"nextSeq"`
	// Oldest is at or below the lowest arrival of a photo that is left: where
	// to seek, instead of walking over everything deleted.
	Oldest uint64 `json:"oldest"`
	Photos int    `json:"photos"`
	Bytes  int64  `json:"bytes"`
	Notes  int    `json:"notes"`
	Broken int    `json:"broken"` // photos refused because they cannot be shown

	OutPhotos   int   `json:"outPhotos"`
	OutBytes    int64 `json:"outBytes"`
	OutReceipts int   `json:"outReceipts"`
	// LostReceipts counts receipts not kept because too many were waiting.
	LostReceipts int `json:"lostReceipts"`
}

// subscribed records which session on the broker has all subscriptions in
// place. Where it does not match, the agent starts a new session, because only
// a new one is given what the ledger already holds (backfill).
type subscribed struct {
	User   string `json:"user"`
	Device string `json:"device"`
	Pair   string `json:"pair"` // empty: a session of an unpaired device
	Show   Show   `json:"show"`
}

// store is everything the agent keeps on disk. It is safe for concurrent use.
type store struct {
	db         *badgerdb.DB
	keepPhotos int
	keepBytes  int64
}

// storeDir returns where in the data directory the store lives.
func storeDir(dataDir string) string { return filepath.Join(dataDir, "store") }

// openStore opens the store of a data directory, or creates it.
func openStore(cfg Config, log *slog.Logger) (*store, error) {
	dir := storeDir(cfg.DataDir)
	db, err := badgerdb.Open(dir, badgerdb.Device, log)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return &store{db: db, keepPhotos: cfg.KeepPhotos, keepBytes: int64(cfg.KeepBytes)}, nil
}

// openOrReplace is openStore for the agent: a store that cannot be opened even
// after repair is set aside, and the device starts empty. It gets the photos
// again, because an empty store has no subscribed record. It waits for a store
// that is in use.
func openOrReplace(cfg Config, log *slog.Logger) (*store, error) {
	start := time.Now()
	s, err := openStore(cfg, log)
	for lockedSince(start, err) {
		time.Sleep(lockPoll)
		s, err = openStore(cfg, log)
	}
	if !errors.Is(err, badgerdb.ErrCorrupt) {
		return s, err
	}
	aside, asideErr := badgerdb.SetAside(storeDir(cfg.DataDir))
	if asideErr != nil {
		return nil, errors.Join(err, asideErr)
	}
	log.Error("store is damaged: set aside, starting empty, photos will be fetched again", "aside", aside, "err", err)
	return openStore(cfg, log)
}

// Waits for a store that another process has: a command where no agent runs
// has it for a moment, an agent that is being stopped for somewhat longer.
const (
	lockPatience = 10 * time.Second
	lockPoll     = 50 * time.Millisecond
)

// lockedSince reports whether err says that another process has the store, and
// it is worth to try again.
func lockedSince(start time.Time, err error) bool {
	return errors.Is(err, badgerdb.ErrLocked) && time.Since(start) < lockPatience
}

func (s *store) close() error { return s.db.Close() }

// change is one transaction in the making: about how many bytes it writes, and
// what it does. apply reads everything it needs before its first write.
type change struct {
	cost  int
	apply func(tx *badgerdb.Tx) error
}

// update applies c; it is on disk when update returns nil.
func (s *store) update(ctx context.Context, c change) error {
	return s.db.Update(ctx, c.cost, c.apply)
}

// submit queues c; done is called with its outcome, see badgerdb.
func (s *store) submit(ctx context.Context, c change, done func(error)) error {
	return s.db.Submit(ctx, c.cost, c.apply, done)
}

// getJSON reads the value of key into v, false when there is none.
func getJSON(tx *badgerdb.Tx, key []byte, v any) (bool, error) {
	raw, err := tx.Get(key)
	if errors.Is(err, kv.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("value of key %q: %w", key, err)
	}
	return true, nil
}

func setJSON(tx *badgerdb.Tx, key []byte, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("value of key %q: %w", key, err)
	}
	return tx.Set(key, raw)
}

func readTotals(tx *badgerdb.Tx) (totals, error) {
	t := totals{NextArrival: 1, NextSeq: 1}
	_, err := getJSON(tx, []byte(keyTotals), &t)
	return t, err
}

func writeTotals(tx *badgerdb.Tx, t totals) error { return setJSON(tx, []byte(keyTotals), t) }

// totals returns the present sums.
func (s *store) totals() (t totals, err error) {
	err = s.db.View(func(tx *badgerdb.Tx) error {
		t, err = readTotals(tx)
		return err
	})
	return t, err
}

// member returns the pair that the device served last, false when it never
// had one.
func (s *store) member() (m membership, ok bool, err error) {
	err = s.db.View(func(tx *badgerdb.Tx) error {
		ok, err = getJSON(tx, []byte(keyMember), &m)
		return err
	})
	return m, ok, err
}

func (s *store) setMember(ctx context.Context, m membership) error {
	return s.update(ctx, change{apply: func(tx *badgerdb.Tx) error {
		return setJSON(tx, []byte(keyMember), m)
	}})
}

// subscribed returns the record of the session, false when there is none.
func (s *store) subscribed() (sub subscribed, ok bool, err error) {
	err = s.db.View(func(tx *badgerdb.Tx) error {
		ok, err = getJSON(tx, []byte(keySession), &sub)
		return err
	})
	return sub, ok, err
}

// setSubscribed writes the record of the session; nil removes it.
func (s *store) setSubscribed(ctx context.Context, sub *subscribed) error {
	return s.update(ctx, change{apply: func(tx *badgerdb.Tx) error {
		if sub == nil {
			return tx.Delete([]byte(keySession))
		}
		return setJSON(tx, []byte(keySession), *sub)
	}})
}

// seen is what is remembered of a photo or note that came.
type seen struct {
	Pair    string    `json:"pair"`
	Arrival uint64    `json:"arrival,omitempty"` // 0: not kept (broken, taken back)
	At      time.Time `json:"at"`
	Why     string    `json:"why,omitempty"` // why it was not kept
}
