package agent

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/badgerdb"
	"pairsync/internal/moment"
)

func TestTakePhoto(t *testing.T) {
	cfg := testConfig(t)
	s := openTestStore(t, cfg)
	body := testJPEG(t, 1)
	if !putPhoto(t, s, "m1", body) {
		t.Fatal("first copy: not fresh")
	}
	if putPhoto(t, s, "m1", testJPEG(t, 2)) {
		t.Error("second copy: fresh")
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}

	s = openTestStore(t, cfg)
	r, got, err := s.photo(testPartner, "m1")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(body) {
		t.Error("bytes differ from the first copy")
	}
	want := record{
		Arrival: 1, Pair: testPair, Sender: testPartner, Moment: "m1", Type: "image/jpeg",
		Bytes: len(body), SHA256: hashHex(body), ReceivedAt: r.ReceivedAt,
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	receipts, err := s.entries(moment.Receipt, func(entry) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	if len(receipts) != 1 || receipts[0].ID != moment.ReceiptID(testPartner, "m1", testDevice, moment.StatusStored) {
		t.Errorf("receipts = %+v, want one for m1", receipts)
	}
	sums := mustTotals(t, s)
	if sums.Photos != 1 || sums.Bytes != int64(len(body)) || sums.OutReceipts != 1 {
		t.Errorf("totals = %+v", sums)
	}
}

func TestNewestFirstByArrival(t *testing.T) {
	s := newTestStore(t)
	for i := range 300 { // more than one byte of arrival
		putPhoto(t, s, fmt.Sprintf("m%d", i), testJPEG(t, 1))
	}
	got := moments(t, s)
	if len(got) != 300 || got[0] != "m299" || got[1] != "m298" || got[299] != "m0" {
		t.Errorf("list has %d photos, from %q to %q", len(got), got[0], got[len(got)-1])
	}
}

func TestEvictOldestFirst(t *testing.T) {
	s := newTestStore(t, func(c *Config) { c.KeepPhotos = 3 })
	for i := range 10 {
		putPhoto(t, s, fmt.Sprintf("m%d", i), testJPEG(t, i))
	}
	if diff := cmp.Diff([]string{"m9", "m8", "m7"}, moments(t, s)); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if sums := mustTotals(t, s); sums.Photos != 3 {
		t.Errorf("totals = %+v, want 3 photos", sums)
	}
	if putPhoto(t, s, "m0", testJPEG(t, 0)) {
		t.Error("an evicted photo came in again")
	}
	if _, _, err := s.photo(testPartner, "m0"); !errors.Is(err, errNoPhoto) {
		t.Errorf("evicted photo: err = %v, want errNoPhoto", err)
	}
}

func TestEvictByBytesAndAfterSmallerBounds(t *testing.T) {
	s := newTestStore(t)
	big := make([]byte, 100<<10)
	for i := range 40 {
		putPhoto(t, s, fmt.Sprintf("m%d", i), big)
	}
	s.keepBytes = 5 * int64(len(big))
	if err := s.evict(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"m39", "m38", "m37", "m36", "m35"}, moments(t, s)); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if sums := mustTotals(t, s); sums.Bytes != 5*int64(len(big)) {
		t.Errorf("totals = %+v", sums)
	}
	s.keepBytes = 1
	putPhoto(t, s, "last", big)
	if diff := cmp.Diff([]string{"last"}, moments(t, s)); diff != "" {
		t.Errorf("the newest must stay (-want +got):\n%s", diff)
	}
}

func TestMakeRoomLeavesTheNewest(t *testing.T) {
	s := newTestStore(t)
	for i := range keepWhenFull + 20 {
		putPhoto(t, s, fmt.Sprintf("m%d", i), testJPEG(t, 1))
	}
	for _, want := range []int{evictPerChange, 20 - evictPerChange, 0} {
		if n, err := s.makeRoom(t.Context()); n != want || err != nil {
			t.Errorf("removed %d, %v, want %d", n, err, want)
		}
	}
	got := moments(t, s)
	if len(got) != keepWhenFull || got[keepWhenFull-1] != "m20" {
		t.Errorf("%d photos left down to %q", len(got), got[len(got)-1])
	}
}

func TestTakeBack(t *testing.T) {
	s := newTestStore(t)
	putPhoto(t, s, "m1", testJPEG(t, 1))
	putPhoto(t, s, "m2", testJPEG(t, 2))
	var gone bool
	put(t, s, s.takeBack(testPair, testPartner, "m1", &gone))
	if !gone {
		t.Error("gone = false, want true")
	}
	put(t, s, s.takeBack(testPair, testPartner, "m3", &gone))
	if gone {
		t.Error("m3 was never here: gone = true")
	}
	if putPhoto(t, s, "m1", testJPEG(t, 1)) || putPhoto(t, s, "m3", testJPEG(t, 3)) {
		t.Error("a photo that was taken back came in")
	}
	if diff := cmp.Diff([]string{"m2"}, moments(t, s)); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if sums := mustTotals(t, s); sums.Photos != 1 {
		t.Errorf("totals = %+v, want 1 photo", sums)
	}
}

func TestBrokenIsRememberedAndCounted(t *testing.T) {
	s := newTestStore(t)
	key := moment.Key{User: testPartner, Kind: moment.Photo, ID: "m1"}
	var fresh bool
	put(t, s, s.takeBroken(testPair, key, "noise", &fresh))
	put(t, s, s.takeBroken(testPair, key, "noise", &fresh))
	if fresh {
		t.Error("counted twice")
	}
	if sums := mustTotals(t, s); sums.Broken != 1 || sums.Photos != 0 || sums.OutReceipts != 0 {
		t.Errorf("totals = %+v, want 1 broken, no photo, no receipt", sums)
	}
}

func TestSamePhotoInANewPairIsNotShownTwice(t *testing.T) {
	s := newTestStore(t)
	putPhoto(t, s, "m1", testJPEG(t, 1))
	again := testMember
	again.Pair = "p2"
	if putPhotoOf(t, s, again, testPartner, "m1", testJPEG(t, 1)) {
		t.Error("fresh = true, want the photo to be adopted")
	}
	r, _, err := s.photo(testPartner, "m1")
	if err != nil || r.Pair != "p2" {
		t.Errorf("pair = %q, %v, want p2", r.Pair, err)
	}
	if sums := mustTotals(t, s); sums.Photos != 1 || sums.OutReceipts != 2 {
		t.Errorf("totals = %+v, want 1 photo and a receipt for each pair", sums)
	}
}

// An id is unique only within a pair: widgets count from 1 again.
func TestAnotherPhotoWithTheIDOfAFormerPairs(t *testing.T) {
	first, second := testJPEG(t, 1), testJPEG(t, 2)
	for name, test := range map[string]struct {
		keepBytes int
		want      []string
	}{
		"room for all": {1 << 20, []string{"1", "2"}},
		"room for one": {len(second), []string{"1"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t)
			putPhoto(t, s, "1", first)
			putPhoto(t, s, "2", first)
			s.keepBytes = int64(test.keepBytes)
			again := testMember
			again.Pair = "p2"
			if !putPhotoOf(t, s, again, testPartner, "1", second) {
				t.Error("fresh = false for a photo that nobody has seen")
			}
			r, got, err := s.photo(testPartner, "1")
			if err != nil || r.Pair != "p2" || !bytes.Equal(got, second) {
				t.Errorf("pair %q, %d bytes, %v, want the new photo", r.Pair, len(got), err)
			}
			if diff := cmp.Diff(test.want, moments(t, s)); diff != "" {
				t.Errorf("kept (-want +got):\n%s", diff)
			}
			sums, bytes := mustTotals(t, s), len(second)+(len(test.want)-1)*len(first)
			if sums.Photos != len(test.want) || sums.Bytes != int64(bytes) || sums.OutReceipts != 3 {
				t.Errorf("totals = %+v, want %d photos of %d bytes", sums, len(test.want), bytes)
			}
		})
	}
}

// What is remembered of a photo may outlast the photo itself.
func TestAPhotoOfAFormerPairThatIsGone(t *testing.T) {
	s := newTestStore(t)
	putPhoto(t, s, "m1", testJPEG(t, 1))
	put(t, s, change{apply: func(tx *badgerdb.Tx) error { return tx.Delete(numberedKey(prefixPhoto, 1)) }})
	again := testMember
	again.Pair = "p2"
	if !putPhotoOf(t, s, again, testPartner, "m1", testJPEG(t, 1)) {
		t.Error("acknowledged and not stored")
	}
	if _, _, err := s.photo(testPartner, "m1"); err != nil {
		t.Error(err)
	}
}

func TestMarkShownOnce(t *testing.T) {
	s := newTestStore(t)
	putPhoto(t, s, "m1", testJPEG(t, 1))
	receipt := newReceipt(testMember, testPartner, "m1", moment.StatusShown, time.Now())
	for i, want := range []bool{true, false} {
		first, err := s.markShown(t.Context(), testPartner, "m1", time.Now(), receipt)
		if err != nil || first != want {
			t.Errorf("call %d: first = %v, %v, want %v", i, first, err, want)
		}
	}
	if sums := mustTotals(t, s); sums.OutReceipts != 2 {
		t.Errorf("receipts = %d, want stored and shown", sums.OutReceipts)
	}
	if _, err := s.markShown(t.Context(), testPartner, "nope", time.Now(), receipt); !errors.Is(err, errNoPhoto) {
		t.Errorf("unknown photo: err = %v, want errNoPhoto", err)
	}
}

func TestReceiptsOnlyForThePartner(t *testing.T) {
	if e := newReceipt(testMember, testUser, "m1", moment.StatusStored, time.Now()); e != nil {
		t.Errorf("receipt for one's own photo: %+v", e)
	}
	if e := newReceipt(membership{User: testUser}, testPartner, "m1", moment.StatusStored, time.Now()); e != nil {
		t.Errorf("receipt without a pair: %+v", e)
	}
}

func TestNotesAreBounded(t *testing.T) {
	s := newTestStore(t)
	for i := range keepNotes + 5 {
		var fresh bool
		n := note{Pair: testPair, Sender: testPartner, Moment: fmt.Sprintf("n%d", i), Text: fmt.Sprint(i), ReceivedAt: time.Now()}
		put(t, s, s.takeNote(n, nil, &fresh))
	}
	if sums := mustTotals(t, s); sums.Notes != keepNotes {
		t.Errorf("notes = %d, want %d", sums.Notes, keepNotes)
	}
	n, ok, err := s.newestNote(testPair)
	if err != nil || !ok || n.Text != fmt.Sprint(keepNotes+4) {
		t.Errorf("newest note = %+v, %v, %v", n, ok, err)
	}
}

func TestOutgoingPhotoSurvivesAndIsCut(t *testing.T) {
	cfg := testConfig(t)
	s := openTestStore(t, cfg)
	payload := make([]byte, 2*partBytes+100)
	for i := range payload {
		payload[i] = byte(i / 1000)
	}
	e, err := s.savePhoto(t.Context(), entry{Kind: moment.Photo, Pair: testPair, User: testUser, ID: "o1"}, payload)
	if err != nil {
		t.Fatal(err)
	}
	// A crash between the parts and the entry leaves parts behind.
	put(t, s, change{apply: func(tx *badgerdb.Tx) error { return tx.Set(partKey(moment.Photo, 99, 0), []byte("orphan")) }})
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = openTestStore(t, cfg)
	if err := s.dropOrphans(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, ok, err := s.nextEntry(moment.Photo, 0, testPair)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if diff := cmp.Diff(e, got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("entry (-want +got):\n%s", diff)
	}
	if b, err := s.payload(got); err != nil || string(b) != string(payload) {
		t.Errorf("payload of %d bytes, %v, want %d as saved", len(b), err, len(payload))
	}
	got, err = s.setPrepared(t.Context(), got, []byte("small"), "image/jpeg")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := s.payload(got); err != nil || string(b) != "small" {
		t.Errorf("prepared payload = %q, %v", b, err)
	}
	if err := s.drop(t.Context(), got); err != nil {
		t.Fatal(err)
	}
	left := 0
	err = s.db.View(func(tx *badgerdb.Tx) error {
		return tx.Scan([]byte(prefixOutPart), nil, false, func([]byte, func() ([]byte, error)) error { left++; return nil })
	})
	if sums := mustTotals(t, s); err != nil || left != 0 || sums.OutPhotos != 0 || sums.OutBytes != 0 {
		t.Errorf("left: %d parts, totals %+v, %v", left, sums, err)
	}
}

func TestOutboxIsBounded(t *testing.T) {
	s := newTestStore(t)
	put(t, s, change{apply: func(tx *badgerdb.Tx) error {
		return writeTotals(tx, totals{NextSeq: 1, NextArrival: 1, OutPhotos: maxOutPhotos, OutReceipts: maxOutReceipts})
	}})
	if _, err := s.savePhoto(t.Context(), entry{Kind: moment.Photo, Pair: testPair, ID: "o1"}, []byte("x")); !errors.Is(err, errOutboxFull) {
		t.Errorf("err = %v, want errOutboxFull", err)
	}
	putPhoto(t, s, "m1", testJPEG(t, 1)) // a photo is taken all the same
	if sums := mustTotals(t, s); sums.Photos != 1 || sums.LostReceipts != 1 || sums.OutReceipts != maxOutReceipts {
		t.Errorf("totals = %+v, want the photo without its receipt", sums)
	}
}

func TestFailedPhotosAreBounded(t *testing.T) {
	s := newTestStore(t)
	for i := range keepFailed + 3 {
		e, err := s.savePhoto(t.Context(), entry{Kind: moment.Photo, Pair: testPair, ID: fmt.Sprintf("o%d", i)}, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.fail(t.Context(), e, "no"); err != nil {
			t.Fatal(err)
		}
	}
	failed, err := s.entries(moment.Photo, func(e entry) bool { return e.Failed == "no" })
	if err != nil || len(failed) != keepFailed || failed[0].ID != "o3" {
		t.Errorf("%d failed from %q, %v, want %d from o3", len(failed), failed[0].ID, err, keepFailed)
	}
	if sums := mustTotals(t, s); sums.OutPhotos != keepFailed {
		t.Errorf("totals = %+v", sums)
	}
}
