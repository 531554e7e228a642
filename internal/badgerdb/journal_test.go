package badgerdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"pairsync/internal/kv"
)

// TestJournalIsFinished leaves a journal and a part of its change, as a crash
// does.
func TestJournalIsFinished(t *testing.T) {
	dir := t.TempDir()
	db := openTest(t, dir, Device)
	var writes []write
	for i := range 1000 {
		writes = append(writes, write{key: kvKey(fmt.Sprintf("x%04d", i)), value: []byte("new")})
	}
	writes = append(writes, write{key: kvKey("old"), delete: true})
	if err := db.KV().Apply(t.Context(), kv.Op{Key: "old", Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	err := db.Update(t.Context(), 0, func(tx *Tx) error { return tx.Set(journalKey, encodeJournal(writes)) })
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(t.Context(), 0, putAll(writes[:200])); err != nil {
		t.Fatal(err)
	}
	closeTest(t, db)
	db = openTest(t, dir, Device)
	if got := db.keys(t, "kx"); len(got) != 1000 {
		t.Errorf("%d keys after the journal was replayed, want 1000", len(got))
	}
	if _, err := db.KV().Get(t.Context(), "old"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("deleted key: %v, want ErrNotFound", err)
	}
	if _, err := db.get(string(journalKey)); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("journal after replay: %v, want ErrNotFound", err)
	}
}

func TestJournalTooLarge(t *testing.T) {
	db := openTest(t, t.TempDir(), Device)
	value := make([]byte, valueThreshold-1) // in the tree, where a transaction takes few
	var ops []kv.Op
	for i := range 9 << 20 / len(value) {
		ops = append(ops, kv.Op{Key: fmt.Sprint(i), Value: value})
	}
	if err := db.KV().Apply(context.Background(), ops...); !errors.Is(err, ErrTooLarge) {
		t.Errorf("change of 9 MB on a device: %v, want ErrTooLarge", err)
	}
	if got := db.keys(t, "k"); len(got) != 0 {
		t.Errorf("it left %q", got)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add(encodeJournal(nil))
	f.Add(encodeJournal([]write{{key: []byte("k"), value: []byte("v")}, {key: []byte("d"), delete: true}}))
	f.Add([]byte{1, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		writes, err := decodeJournal(b)
		if err != nil {
			return
		}
		again, err := decodeJournal(encodeJournal(writes))
		if err != nil || len(again) != len(writes) {
			t.Fatalf("round trip: %d writes, %v; want %d", len(again), err, len(writes))
		}
		for i, w := range writes {
			if a := again[i]; !bytes.Equal(a.key, w.key) || !bytes.Equal(a.value, w.value) || a.delete != w.delete {
				t.Errorf("write %d: %v, want %v", i, a, w)
			}
		}
	})
}
