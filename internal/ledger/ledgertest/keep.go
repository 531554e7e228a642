package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

func (s *suite) setCursor(t *testing.T, session string, log ledger.LogID, at ledger.Seq) {
	t.Helper()
	if err := s.l.SetCursor(t.Context(), session, log, at); err != nil {
		t.Fatalf("set cursor of %q: %v", session, err)
	}
}

func (s *suite) advance(t *testing.T, session string, log ledger.LogID, to ledger.Seq) {
	t.Helper()
	if err := s.l.Advance(t.Context(), session, log, to); err != nil {
		t.Fatalf("advance %q: %v", session, err)
	}
}

// wantCursor expects session to be at a place of the pair's log, or to have no
// cursor when at is -1.
func (s *suite) wantCursor(t *testing.T, session string, at int) {
	t.Helper()
	got, err := s.l.Cursor(t.Context(), session, pairLog)
	if at < 0 {
		if !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("cursor of %q: %d, %v; want ErrNotFound", session, got, err)
		}
		return
	}
	if err != nil || got != ledger.Seq(at) {
		t.Errorf("cursor of %q: %d, %v; want %d", session, got, err, at)
	}
}

func testCursors(t *testing.T, s *suite) {
	s.wantCursor(t, "ann/app", -1)
	s.setCursor(t, "ann/app", pairLog, 5)
	s.setCursor(t, "ben/frame 1", pairLog, 0)
	s.setCursor(t, "ann/app", "user:ann", 9)
	s.wantCursor(t, "ann/app", 5)
	s.wantCursor(t, "ben/frame 1", 0)
	s.setCursor(t, "ann/app", pairLog, 3) // set moves back, too
	s.wantCursor(t, "ann/app", 3)
	got, err := s.l.Cursors(t.Context(), pairLog)
	if want := map[string]ledger.Seq{"ann/app": 3, "ben/frame 1": 0}; err != nil || !maps.Equal(got, want) {
		t.Errorf("cursors: %v, %v; want %v", got, err, want)
	}
	got["ann/app"] = 99 // a copy
	s.wantCursor(t, "ann/app", 3)
	for range 2 {
		if err := s.l.DropCursor(t.Context(), "ann/app", pairLog); err != nil {
			t.Fatalf("drop cursor: %v", err)
		}
	}
	s.wantCursor(t, "ann/app", -1)
	s.advance(t, "ann/app", pairLog, 7) // gone, so ignored
	s.wantCursor(t, "ann/app", -1)
	if at, err := s.l.Cursor(t.Context(), "ann/app", "user:ann"); at != 9 || err != nil {
		t.Errorf("cursor in the other log: %d, %v; want 9", at, err)
	}
}

func testAdvance(t *testing.T, s *suite) {
	s.setCursor(t, "a", pairLog, 2)
	s.advance(t, "a", pairLog, 6)
	s.wantCursor(t, "a", 6)
	s.advance(t, "a", pairLog, 4)
	s.wantCursor(t, "a", 6)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			if err := s.l.Advance(t.Context(), "a", pairLog, ledger.Seq(10+i)); err != nil {
				t.Errorf("advance: %v", err)
			}
		})
	}
	wg.Wait()
	s.wantCursor(t, "a", 49)
	s.setCursor(t, "a", pairLog, 1) // drops what Advance has not flushed
	s.reopen()
	s.wantCursor(t, "a", 1)
}

func testCursorsReopen(t *testing.T, s *suite) {
	s.setCursor(t, "a", pairLog, 1)
	s.setCursor(t, "b", pairLog, 2)
	s.setCursor(t, "c", pairLog, 3)
	s.advance(t, "a", pairLog, 10)
	s.advance(t, "b", pairLog, 20)
	if err := s.l.DropCursor(t.Context(), "b", pairLog); err != nil {
		t.Fatal(err)
	}
	s.reopen()
	s.wantCursor(t, "a", 10) // an orderly close loses no advance
	s.wantCursor(t, "b", -1)
	s.wantCursor(t, "c", 3)
}

func testReopen(t *testing.T, s *suite) {
	for _, id := range ids("", 1, 5) {
		s.append(t, photo("ann", id, 20_000))
	}
	s.append(t, receipt("ben", "r"))
	before := s.read(t, pairLog, 0)
	stat, _ := s.l.Stat(t.Context(), pairLog)
	s.reopen()
	after := s.read(t, pairLog, 0)
	if len(after) != 6 || len(before) != 6 {
		t.Fatalf("%d entries before and %d after, want 6", len(before), len(after))
	}
	for i := range after {
		if a, b := after[i], before[i]; a.Seq != b.Seq || !a.StoredAt.Equal(b.StoredAt) || string(a.Payload) != string(b.Payload) {
			t.Errorf("entry %d changed: seq %d and %d", i, b.Seq, a.Seq)
		}
	}
	s.wantStat(t, pairLog, stat)
	if _, duplicate, err := ledger.Append(t.Context(), s.l, pairLog, photo("ann", "3", 10)); !duplicate || err != nil {
		t.Errorf("repeat after reopen: duplicate %v, error %v", duplicate, err)
	}
	if seq := s.append(t, photo("ann", "6", 10)); seq <= after[5].Seq {
		t.Errorf("seq %d after %d", seq, after[5].Seq)
	}
}

func testSeqsNotReused(t *testing.T, s *suite) {
	var last ledger.Seq
	for _, id := range ids("", 1, 5) {
		last = s.append(t, photo("ann", id, 10))
	}
	if _, err := s.l.Trim(t.Context(), pairLog, ledger.Retention{Before: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	s.wantKeys(t, pairLog)
	s.wantStat(t, pairLog, ledger.Stat{Head: last})
	s.reopen()
	s.wantStat(t, pairLog, ledger.Stat{Head: last})
	if seq := s.append(t, photo("ann", "6", 10)); seq <= last {
		t.Errorf("seq %d after %d was used", seq, last)
	}
	s.wantKeys(t, pairLog, "ann/6")
}

// trimLog fills the pair's log with what trim's rules tell apart, and returns
// the seqs: 1..4 photos of ann, 5 photo of ben, 6 a note, 7 a receipt, 8 and 9
// photos of ann.
func (s *suite) trimLog(t *testing.T) []ledger.Seq {
	t.Helper()
	seqs := []ledger.Seq{0}
	for _, m := range []moment.Moment{
		photo("ann", "1", 1000), photo("ann", "2", 1000), photo("ann", "3", 1000), photo("ann", "4", 1000),
		photo("ben", "5", 1000), note("ann", "6", "text"), receipt("ben", "7"),
		photo("ann", "8", 1000), photo("ann", "9", 1000),
	} {
		seqs = append(seqs, s.append(t, m))
	}
	return seqs
}

func (s *suite) trim(t *testing.T, r ledger.Retention) ledger.Trimmed {
	t.Helper()
	got, err := s.l.Trim(t.Context(), pairLog, r)
	if err != nil {
		t.Fatalf("trim: %v", err)
	}
	return got
}

func testTrim(t *testing.T, s *suite) {
	seqs := s.trimLog(t)
	for _, tt := range []struct {
		name string
		r    ledger.Retention
		want ledger.Trimmed
		left []string
	}{
		{"nothing passed", ledger.Retention{KeepPhotos: 2}, ledger.Trimmed{}, []string{"ann/1", "ann/2", "ann/3", "ann/4", "ben/5", "ann/6", "ben/7", "ann/8", "ann/9"}},
		{"up to, all within keep", ledger.Retention{UpTo: seqs[4], KeepPhotos: 50}, ledger.Trimmed{}, []string{"ann/1", "ann/2", "ann/3", "ann/4", "ben/5", "ann/6", "ben/7", "ann/8", "ann/9"}},
		{"up to, keep the newest", ledger.Retention{UpTo: seqs[4], KeepPhotos: 4}, ledger.Trimmed{Entries: 3, Bytes: 3000}, []string{"ann/4", "ben/5", "ann/6", "ben/7", "ann/8", "ann/9"}},
		{"only photos are kept", ledger.Retention{UpTo: seqs[7], KeepPhotos: 4}, ledger.Trimmed{Entries: 2, Bytes: 6}, []string{"ann/4", "ben/5", "ann/8", "ann/9"}},
		{"everybody's newest stays", ledger.Retention{UpTo: seqs[9]}, ledger.Trimmed{Entries: 2, Bytes: 2000}, []string{"ben/5", "ann/9"}},
		{"again", ledger.Retention{UpTo: seqs[9]}, ledger.Trimmed{}, []string{"ben/5", "ann/9"}},
	} {
		if got := s.trim(t, tt.r); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
		s.wantKeys(t, pairLog, tt.left...)
	}
	s.wantStat(t, pairLog, ledger.Stat{Entries: 2, Bytes: 2000, Head: seqs[9]})
	s.reopen()
	s.wantStat(t, pairLog, ledger.Stat{Entries: 2, Bytes: 2000, Head: seqs[9]})
	s.wantKeys(t, pairLog, "ben/5", "ann/9")
}

func testTrimAge(t *testing.T, s *suite) {
	seqs := s.trimLog(t)
	// Age takes even what would be kept, and tells what nobody had got.
	got := s.trim(t, ledger.Retention{UpTo: seqs[3], KeepPhotos: 50, Before: time.Now().Add(time.Hour)})
	if want := (ledger.Trimmed{Entries: 9, Undelivered: 6, Bytes: 7006}); got != want {
		t.Errorf("trim by age: %+v, want %+v", got, want)
	}
	s.wantKeys(t, pairLog)
	s.wantStat(t, pairLog, ledger.Stat{Head: seqs[9]})
	if _, err := s.l.Latest(t.Context(), pairLog, "ann"); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("latest of an empty log: %v, want ErrNotFound", err)
	}
	s.append(t, photo("ann", "10", 10))
	if got := s.trim(t, ledger.Retention{Before: time.Now().Add(-time.Hour)}); got != (ledger.Trimmed{}) {
		t.Errorf("trim of what is young: %+v", got)
	}
}

func testTrimReceipts(t *testing.T, s *suite) {
	s.trimLog(t)
	got := s.trim(t, ledger.Retention{ReceiptsBefore: time.Now().Add(time.Hour)})
	if want := (ledger.Trimmed{Entries: 1, Undelivered: 1, Bytes: 2}); got != want {
		t.Errorf("trim of receipts: %+v, want %+v", got, want)
	}
	s.wantKeys(t, pairLog, "ann/1", "ann/2", "ann/3", "ann/4", "ben/5", "ann/6", "ann/8", "ann/9")
}

func testIdentities(t *testing.T, s *suite) {
	m := photo("ann", "1", 10_000)
	m.MessageID = "m1"
	first := s.append(t, m)
	removed := photo("ann", "2", 10_000)
	second := s.append(t, removed)
	s.append(t, photo("ann", "3", 10))
	if got := s.trim(t, ledger.Retention{UpTo: first}); got.Entries != 1 {
		t.Fatalf("trimmed %+v, want one entry", got)
	}
	if err := s.l.Remove(t.Context(), pairLog, removed.Key()); err != nil {
		t.Fatal(err)
	}
	byMessage := m
	byMessage.ID = "other"
	for range 2 {
		for _, tt := range []struct {
			m    moment.Moment
			want ledger.Seq
		}{{m, first}, {byMessage, first}, {removed, second}} {
			seq, duplicate, err := ledger.Append(t.Context(), s.l, pairLog, tt.m)
			if seq != tt.want || !duplicate || err != nil {
				t.Errorf("repeat of %s: seq %d, duplicate %v, error %v; want seq %d, a duplicate", tt.m.Key(), seq, duplicate, err, tt.want)
			}
		}
		if _, err := s.l.Lookup(t.Context(), pairLog, m.Key()); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("lookup of an identity alone: %v, want ErrNotFound", err)
		}
		s.wantKeys(t, pairLog, "ann/3")
		s.reopen()
	}
}

func testRemove(t *testing.T, s *suite) {
	for _, id := range ids("", 1, 4) {
		s.append(t, photo("ann", id, 1000))
	}
	key := func(id string) moment.Key { return moment.Key{User: "ann", Kind: moment.Photo, ID: id} }
	for _, id := range []string{"4", "2"} {
		if err := s.l.Remove(t.Context(), pairLog, key(id)); err != nil {
			t.Fatalf("remove %s: %v", id, err)
		}
		if err := s.l.Remove(t.Context(), pairLog, key(id)); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("remove %s again: %v, want ErrNotFound", id, err)
		}
	}
	if err := s.l.Remove(t.Context(), pairLog, key("9")); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("remove of what never was: %v, want ErrNotFound", err)
	}
	s.wantKeys(t, pairLog, "ann/1", "ann/3")
	e, err := s.l.Latest(t.Context(), pairLog, "ann")
	if err != nil || e.ID != "3" {
		t.Errorf("latest after its removal: %s, %v; want 3", e.ID, err)
	}
	stat, _ := s.l.Stat(t.Context(), pairLog)
	if stat.Entries != 2 || stat.Bytes != 2000 {
		t.Errorf("stat %+v, want 2 entries of 2000 bytes", stat)
	}
}

func testDelete(t *testing.T, s *suite) {
	for _, id := range ids("", 1, 150) {
		s.append(t, photo("ann", id, 5000))
	}
	s.setCursor(t, "ann/app", pairLog, 3)
	s.setCursor(t, "ben/app", pairLog, 3)
	s.advance(t, "ben/app", pairLog, 5)
	for range 2 {
		if err := s.l.Delete(t.Context(), pairLog); err != nil {
			t.Fatalf("delete: %v", err)
		}
	}
	for range 2 {
		s.wantKeys(t, pairLog)
		for _, m := range []moment.Moment{photo("ann", "1", 10), photo("ann", "new", 10)} {
			if _, _, err := ledger.Append(t.Context(), s.l, pairLog, m); !errors.Is(err, ledger.ErrDeleted) {
				t.Errorf("append %s to a deleted log: %v, want ErrDeleted", m.Key(), err)
			}
		}
		s.wantCursor(t, "ann/app", -1)
		s.advance(t, "ben/app", pairLog, 9)
		s.wantCursor(t, "ben/app", -1)
		if _, err := s.l.Latest(t.Context(), pairLog, "ann"); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("latest in a deleted log: %v, want ErrNotFound", err)
		}
		if _, err := s.l.Lookup(t.Context(), pairLog, moment.Key{User: "ann", Kind: moment.Photo, ID: "1"}); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("lookup in a deleted log: %v, want ErrNotFound", err)
		}
		if st, err := s.l.Stat(t.Context(), pairLog); st.Entries != 0 || st.Bytes != 0 || err != nil {
			t.Errorf("stat of a deleted log: %+v, %v", st, err)
		}
		s.reopen()
	}
	s.append(t, moment.Moment{Pair: "p2", User: "ann", Kind: moment.Photo, ID: "1", Payload: []byte("x")})
}

// testDeleteRace: an append that was acknowledged came before the Delete, and
// none is acknowledged after it.
func testDeleteRace(t *testing.T, s *suite) {
	var wg sync.WaitGroup
	deleted := make(chan struct{})
	for u := range 4 {
		wg.Go(func() {
			for i := range 30 {
				after := false
				select {
				case <-deleted:
					after = true
				default:
				}
				_, _, err := ledger.Append(context.WithoutCancel(t.Context()), s.l, pairLog, note(fmt.Sprint("u", u), fmt.Sprint(i), "x"))
				switch {
				case errors.Is(err, ledger.ErrDeleted):
				case err != nil:
					t.Errorf("append: %v", err)
				case after:
					t.Error("append acknowledged after the log was deleted")
				}
			}
		})
	}
	if err := s.l.Delete(t.Context(), pairLog); err != nil {
		t.Errorf("delete: %v", err)
	}
	close(deleted)
	wg.Wait()
	s.wantKeys(t, pairLog)
	logs, err := s.l.Logs(t.Context())
	if err != nil || slices.Contains(logs, pairLog) {
		t.Errorf("logs after delete: %v, %v", logs, err)
	}
}
