package ledgertest

import (
	"errors"
	"fmt"
	"testing"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// testLater: what is to go to a pair's log later shares its quota, and has its
// room there until then.
func testLater(t *testing.T, s *suite) {
	later := ledger.LaterLog("p1")
	appendTo := func(log ledger.LogID, id string) error {
		_, _, err := ledger.Append(t.Context(), s.l, log, photo("ann", id, 10))
		return err
	}
	for i := range QuotaEntries {
		log := pairLog
		if i%2 == 0 {
			log = later
		}
		if err := appendTo(log, fmt.Sprint(i)); err != nil {
			t.Fatalf("photo %d: %v", i, err)
		}
	}
	s.reopen()
	for _, log := range []ledger.LogID{pairLog, later} {
		if err := appendTo(log, "more"); !errors.Is(err, ledger.ErrQuota) {
			t.Errorf("one more in %s: %v, want ErrQuota", log, err)
		}
	}
	if err := appendTo(pairLog, "0"); err != nil { // its time has come
		t.Errorf("one that waited: %v", err)
	}
	key := moment.Key{User: "ann", Kind: moment.Photo, ID: "0"}
	e, err := s.l.Lookup(t.Context(), later, key)
	if err != nil || e.Pair != "p1" {
		t.Errorf("one that waits: pair %q, %v", e.Pair, err)
	}
	if err := s.l.Remove(t.Context(), later, key); err != nil {
		t.Fatal(err)
	}
	if err := appendTo(later, "more"); !errors.Is(err, ledger.ErrQuota) {
		t.Errorf("its room was given twice: %v", err)
	}
	if err := s.l.Remove(t.Context(), pairLog, key); err != nil {
		t.Fatal(err)
	}
	if err := appendTo(pairLog, "more"); err != nil {
		t.Errorf("after one was removed: %v", err)
	}
	if err := appendTo(later, "0"); err != nil { // a duplicate: nothing new
		t.Errorf("one that has gone, again: %v", err)
	}
	if err := s.l.Delete(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	if err := appendTo(later, "x"); !errors.Is(err, ledger.ErrDeleted) {
		t.Errorf("after the log was deleted: %v, want ErrDeleted", err)
	}
	if err := appendTo(pairLog, "x"); err != nil {
		t.Errorf("the room of a deleted log: %v", err)
	}
}
