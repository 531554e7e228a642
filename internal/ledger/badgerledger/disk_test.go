package badgerledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/badgerdb"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

func testPhoto(id string, n int) moment.Moment {
	return moment.Moment{Pair: "p1", User: "ann", Kind: moment.Photo, ID: id, MessageID: "m" + id, Payload: []byte(strings.Repeat("x", n))}
}

func appendAll(t *testing.T, l *Ledger, ms ...moment.Moment) (seqs []ledger.Seq) {
	t.Helper()
	for _, m := range ms {
		seq, duplicate, err := ledger.Append(t.Context(), l, pairLog, m)
		if err != nil || duplicate {
			t.Fatalf("append %s: duplicate %v, %v", m.Key(), duplicate, err)
		}
		seqs = append(seqs, seq)
	}
	return seqs
}

func update(t *testing.T, db *badgerdb.DB, fn func(tx *badgerdb.Tx) error) {
	t.Helper()
	if err := db.Update(t.Context(), 0, fn); err != nil {
		t.Fatal(err)
	}
}

// ledgerKeys returns the ledger's keys but for the layout version, with a
// printable form of what is binary.
func ledgerKeys(t *testing.T, db *badgerdb.DB) (keys []string) {
	t.Helper()
	err := db.View(func(tx *badgerdb.Tx) error {
		return tx.Scan([]byte{'l'}, nil, false, func(key []byte, _ func() ([]byte, error)) error {
			if string(key) != string(versionKey) {
				keys = append(keys, strings.ReplaceAll(fmt.Sprintf("%q", key), `\x00\x00\x00\x00\x00\x00\x00\x00\x0`, " #"))
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestLayout holds the keys that keys.go documents.
func TestLayout(t *testing.T) {
	db := openDB(t, t.TempDir(), badgerdb.Server)
	l := newLedger(t, db, Config{})
	appendAll(t, l, testPhoto("1", 10), moment.Moment{Pair: "p1", User: "ann", Kind: moment.Delete, ID: "1"})
	if err := l.SetCursor(t.Context(), "ann/app", pairLog, 1); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`"lcpair:p1\x00ann/app"`,
		`"lgpair:p1"`,
		`"lhpair:p1 #1"`,
		`"lhpair:p1 #2"`,
		`"lipair:p1\x00ann\x00deletes\x001"`,
		`"lipair:p1\x00ann\x00photos\x001"`,
		`"lmpair:p1\x00ann\x00photos\x00m1"`,
		`"lppair:p1 #1"`,
	}
	if diff := cmp.Diff(want, ledgerKeys(t, db)); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if err := l.Delete(t.Context(), pairLog); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`"lgpair:p1"`}, ledgerKeys(t, db)); diff != "" {
		t.Errorf("keys of a deleted log (-want +got):\n%s", diff)
	}
}

func TestNewerLayout(t *testing.T) {
	db := openDB(t, t.TempDir(), badgerdb.Server)
	update(t, db, func(tx *badgerdb.Tx) error {
		return tx.Set(versionKey, binary.BigEndian.AppendUint32(nil, layoutVersion+1))
	})
	if _, err := New(db, Config{}, quiet); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("open of a newer layout: %v, want advice to use a newer pairsync", err)
	}
}

// TestDeleteIsFinished leaves a log as a crash in the middle of a Delete does.
func TestDeleteIsFinished(t *testing.T) {
	db := openDB(t, t.TempDir(), badgerdb.Device)
	l := newLedger(t, db, Config{})
	for i := range 500 {
		appendAll(t, l, testPhoto(fmt.Sprint(i), 10))
	}
	update(t, db, func(tx *badgerdb.Tx) error {
		return errors.Join(
			tx.Set(logKey(recPurge, pairLog), nil),
			tx.Set(logKey(recLog, pairLog), (&state{deleted: true, head: 500}).encode()))
	})
	newLedger(t, db, Config{})
	if diff := cmp.Diff([]string{`"lgpair:p1"`}, ledgerKeys(t, db)); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

// TestDamaged spoils records of four of six entries. Each is reported once and
// given as damaged; the log goes on, and Trim takes them all.
func TestDamaged(t *testing.T) {
	db := openDB(t, t.TempDir(), badgerdb.Server)
	var said strings.Builder
	l, err := New(db, Config{}, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	var seqs []ledger.Seq
	for i := range 6 {
		seqs = append(seqs, appendAll(t, l, testPhoto(fmt.Sprint(i), 10_000))...)
	}
	var header []byte
	update(t, db, func(tx *badgerdb.Tx) (err error) {
		if header, err = tx.Get(seqKey(recHeader, pairLog, seqs[0])); err != nil {
			return err
		}
		return errors.Join(
			tx.Set(seqKey(recHeader, pairLog, seqs[1]), []byte("spoilt")),
			tx.Set(seqKey(recHeader, pairLog, seqs[2]), header), // another's
			tx.Set(seqKey(recPayload, pairLog, seqs[3]), []byte(strings.Repeat("y", 10_000))),
			tx.Delete(seqKey(recPayload, pairLog, seqs[4])))
	})
	for range 2 {
		b, err := l.Read(t.Context(), pairLog, 0, ledger.Limit{})
		if err != nil {
			t.Fatal(err)
		}
		var got []bool
		for i, e := range b.Entries {
			got = append(got, e.Damaged)
			if e.Seq != seqs[i] || e.Damaged == (e.Payload != nil) {
				t.Errorf("entry %d: seq %d, damaged %v, %d bytes", i, e.Seq, e.Damaged, len(e.Payload))
			}
		}
		if diff := cmp.Diff([]bool{false, true, true, true, true, false}, got); diff != "" {
			t.Errorf("damaged (-want +got):\n%s", diff)
		}
		if b.Entries[3].ID != "3" || b.Entries[3].Size != 10_000 {
			t.Errorf("header beside a damaged payload: %+v", b.Entries[3])
		}
	}
	if got := l.Damaged(); got != 4 {
		t.Errorf("%d damaged entries counted, want 4", got)
	}
	for _, seq := range seqs[1:5] {
		place := fmt.Sprintf("level=ERROR msg=\"damaged entry\" log=%s seq=%d ", pairLog, seq)
		if n := strings.Count(said.String(), place); n != 1 {
			t.Errorf("%q was logged %d times, want once", place, n)
		}
	}
	tr, err := l.Trim(t.Context(), pairLog, ledger.Retention{UpTo: seqs[5]})
	if err != nil || tr.Entries != 5 {
		t.Errorf("trim: %+v, %v; want all but the newest", tr, err)
	}
	if st, err := l.Stat(t.Context(), pairLog); err != nil || st.Entries != 1 {
		t.Errorf("stat %+v, %v; want one entry", st, err)
	}
}

// TestIdentityLife is when a repeat stops being known for one.
func TestIdentityLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		// The store is closed while time passes: badger's tickers are many.
		in := func(d time.Duration, fn func(l *Ledger)) {
			time.Sleep(d)
			db := openDB(t, dir, badgerdb.Server)
			fn(newLedger(t, db, Config{}))
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
		m := testPhoto("1", 10)
		in(0, func(l *Ledger) { appendAll(t, l, m) })
		in(100*24*time.Hour, func(l *Ledger) {
			if _, duplicate, err := ledger.Append(t.Context(), l, pairLog, m); !duplicate || err != nil {
				t.Errorf("repeat of what is still stored: duplicate %v, %v", duplicate, err)
			}
			if err := l.Remove(t.Context(), pairLog, m.Key()); err != nil {
				t.Error(err)
			}
		})
		in(ledger.IdentityLife-time.Minute, func(l *Ledger) {
			if seq, duplicate, err := ledger.Append(t.Context(), l, pairLog, m); seq != 1 || !duplicate || err != nil {
				t.Errorf("repeat within the identity's life: seq %d, duplicate %v, %v", seq, duplicate, err)
			}
		})
		in(2*time.Minute, func(l *Ledger) {
			if seq := appendAll(t, l, m); seq[0] != 2 {
				t.Errorf("after the identity's life: seq %d, want 2", seq[0])
			}
		})
	})
}

// TestAdvanceIsFlushed: an advance is on disk a second later without any
// other write, and nothing is left waiting in the bubble.
func TestAdvanceIsFlushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := openDB(t, t.TempDir(), badgerdb.Server)
		l := newLedger(t, db, Config{})
		if err := l.SetCursor(t.Context(), "s", pairLog, 1); err != nil {
			t.Fatal(err)
		}
		if err := l.Advance(t.Context(), "s", pairLog, 5); err != nil {
			t.Fatal(err)
		}
		stored := func() ledger.Seq {
			at, err := newLedger(t, db, Config{}).Cursor(t.Context(), "s", pairLog)
			if err != nil {
				t.Error(err)
			}
			return at
		}
		if got := stored(); got != 1 {
			t.Errorf("at once: %d on disk, want 1 still", got)
		}
		time.Sleep(1500 * time.Millisecond)
		if got := stored(); got != 5 {
			t.Errorf("a second later: %d on disk, want 5", got)
		}
	})
}

// TestClosed: every method says that the store is gone.
func TestClosed(t *testing.T) {
	db := openDB(t, t.TempDir(), badgerdb.Server)
	l := newLedger(t, db, Config{})
	appendAll(t, l, testPhoto("1", 10))
	if err := l.SetCursor(t.Context(), "s", pairLog, 0); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	key := moment.Key{User: "ann", Kind: moment.Photo, ID: "1"}
	for name, err := range map[string]error{
		"append":  second(ledgerAppend(ctx, l)),
		"read":    second(l.Read(ctx, pairLog, 0, ledger.Limit{})),
		"latest":  second(l.Latest(ctx, pairLog, "ann")),
		"lookup":  second(l.Lookup(ctx, pairLog, key)),
		"tail":    second(l.Tail(ctx, pairLog, 1)),
		"stat":    second(l.Stat(ctx, pairLog)),
		"logs":    second(l.Logs(ctx)),
		"cursor":  second(l.Cursor(ctx, "s", pairLog)),
		"cursors": second(l.Cursors(ctx, pairLog)),
		"trim":    second(l.Trim(ctx, pairLog, ledger.Retention{})),
		"set":     l.SetCursor(ctx, "s", pairLog, 1),
		"advance": l.Advance(ctx, "s", pairLog, 1),
		"drop":    l.DropCursor(ctx, "s", pairLog),
		"remove":  l.Remove(ctx, pairLog, key),
		"delete":  l.Delete(ctx, pairLog),
	} {
		if !errors.Is(err, ledger.ErrUnhealthy) {
			t.Errorf("%s: %v, want ErrUnhealthy", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func ledgerAppend(ctx context.Context, l *Ledger) (ledger.Seq, error) {
	seq, _, err := ledger.Append(ctx, l, pairLog, testPhoto("2", 10))
	return seq, err
}

func TestTooLarge(t *testing.T) {
	db := openDB(t, t.TempDir(), badgerdb.Device)
	l := newLedger(t, db, Config{})
	if _, _, err := ledger.Append(t.Context(), l, pairLog, testPhoto("1", db.MaxValue()+1)); !errors.Is(err, ledger.ErrTooLarge) {
		t.Errorf("payload beyond the store's largest: %v, want ErrTooLarge", err)
	}
	appendAll(t, l, testPhoto("2", db.MaxValue()))
	long := testPhoto("3", 10)
	long.MessageID = strings.Repeat("m", maxTextBytes+1)
	if _, _, err := ledger.Append(t.Context(), l, pairLog, long); !errors.Is(err, ledger.ErrTooLarge) {
		t.Errorf("message id of %d bytes: %v, want ErrTooLarge", len(long.MessageID), err)
	}
	if _, err := New(db, Config{MaxEntries: -1}, quiet); err == nil {
		t.Error("negative quota: no error")
	}
}

// TestHeaderLimits stores the largest header that moment's limits allow, on a
// device.
func TestHeaderLimits(t *testing.T) {
	l := newLedger(t, openDB(t, t.TempDir(), badgerdb.Device), Config{})
	m := testPhoto(strings.Repeat("i", moment.MaxIDBytes), 10)
	m.User = strings.Repeat("u", moment.MaxIDBytes)
	m.Caption = strings.Repeat("c", moment.MaxCaptionBytes)
	m.MessageID = strings.Repeat("m", moment.MaxPropertyBytes)
	m.SenderName = strings.Repeat("s", moment.MaxPropertyBytes)
	m.Device = strings.Repeat("d", moment.MaxPropertyBytes)
	m.Extra = []moment.Property{{Key: "k", Value: strings.Repeat("e", moment.MaxExtraBytes-1)}}
	appendAll(t, l, m)
	e, err := l.Lookup(t.Context(), pairLog, m.Key())
	if err != nil || e.Damaged || e.Caption != m.Caption {
		t.Errorf("lookup: damaged %v, %v", e.Damaged, err)
	}
}

// TestLostIsStoredAgain: the repeat of a moment whose payload is damaged is no
// duplicate.
func TestLostIsStoredAgain(t *testing.T) {
	db := openDB(t, t.TempDir(), badgerdb.Server)
	l := newLedger(t, db, Config{})
	seqs := appendAll(t, l, testPhoto("1", 10_000), testPhoto("2", 10_000))
	update(t, db, func(tx *badgerdb.Tx) error { return tx.Delete(seqKey(recPayload, pairLog, seqs[0])) })
	again := appendAll(t, l, testPhoto("1", 10_000)) // it fails on a duplicate
	b, err := l.Read(t.Context(), pairLog, 0, ledger.Limit{})
	if err != nil {
		t.Fatal(err)
	}
	var got []ledger.Seq
	for _, e := range b.Entries {
		got = append(got, e.Seq)
		if e.Damaged || len(e.Payload) != 10_000 {
			t.Errorf("entry %d: damaged %v, %d bytes", e.Seq, e.Damaged, len(e.Payload))
		}
	}
	if diff := cmp.Diff([]ledger.Seq{seqs[1], again[0]}, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if seq, duplicate, err := ledger.Append(t.Context(), l, pairLog, testPhoto("1", 10_000)); seq != again[0] || !duplicate || err != nil {
		t.Errorf("a repeat of the repeat: seq %d, duplicate %v, %v", seq, duplicate, err)
	}
	if st, err := l.Stat(t.Context(), pairLog); err != nil || st.Entries != 2 || st.Bytes != 20_000 {
		t.Errorf("stat %+v, %v; want 2 entries of 20,000 bytes", st, err)
	}
}
