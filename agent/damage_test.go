package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pairsync/internal/badgerdb"
	"pairsync/internal/moment"
)

// A record with a long caption lies where a bad block can hit it alone. Nothing
// that comes in may wait for it to get better.
func TestDamagedRecordHoldsUpNothing(t *testing.T) {
	caption := strings.Repeat("c", moment.MaxCaptionBytes)
	again := testMember
	again.Pair = "p2"
	for name, next := range map[string]func(t *testing.T, s *store){
		"taken back": func(t *testing.T, s *store) {
			var gone bool
			put(t, s, s.takeBack(testPair, testPartner, "m1", &gone))
		},
		"sent in a new pair": func(t *testing.T, s *store) { putPhotoOf(t, s, again, testPartner, "m1", testJPEG(t, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s := openTestStore(t, cfg)
			body := testJPEG(t, 1)
			r := record{Pair: testPair, Sender: testPartner, Moment: "m1", Bytes: len(body), SHA256: hashHex(body), Caption: caption}
			put(t, s, s.takePhoto(r, body, nil, new(bool)))
			overwrite(t, storeDir(cfg.DataDir), caption)
			if _, _, err := s.photo(testPartner, "m1"); !errors.Is(err, badgerdb.ErrDamaged) {
				t.Fatalf("err = %v, want ErrDamaged", err)
			}
			next(t, s)
		})
	}
}

// overwrite damages text where a file of large values in dir holds it.
func overwrite(t *testing.T, dir, text string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(raw, []byte(text))
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("damaged"), int64(at)); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("no segment holds it")
}

func TestForgetBringsAPhotoBack(t *testing.T) {
	s := newTestStore(t)
	putPhoto(t, s, "m1", testJPEG(t, 1))
	if err := s.forget(t.Context(), testPartner, "m1"); err != nil {
		t.Fatal(err)
	}
	if sums := mustTotals(t, s); sums.Photos != 0 || sums.Bytes != 0 {
		t.Errorf("totals = %+v, want nothing left", sums)
	}
	if !putPhoto(t, s, "m1", testJPEG(t, 1)) {
		t.Error("the photo did not come back")
	}
}

func TestDamagedBytesAreNotServed(t *testing.T) {
	s := newTestStore(t)
	putPhoto(t, s, "m1", testJPEG(t, 1))
	put(t, s, change{apply: func(tx *badgerdb.Tx) error { return tx.Set(numberedKey(prefixBytes, 1), testJPEG(t, 2)) }})
	if _, _, err := s.photo(testPartner, "m1"); !errors.Is(err, badgerdb.ErrDamaged) {
		t.Errorf("err = %v, want ErrDamaged", err)
	}
}

func TestUnopenableStoreIsSetAside(t *testing.T) {
	cfg := testConfig(t)
	s := openTestStore(t, cfg)
	putPhoto(t, s, "m1", testJPEG(t, 1))
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	dir := storeDir(cfg.DataDir)
	if err := os.WriteFile(filepath.Join(dir, "MANIFEST"), []byte("this is not a manifest"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(cfg, quiet()); err == nil {
		t.Fatal("the damaged store opened")
	}
	s, err := openOrReplace(cfg, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if got := moments(t, s); len(got) != 0 {
		t.Errorf("list = %v, want an empty store", got)
	}
	if _, ok, err := s.subscribed(); ok || err != nil {
		t.Errorf("subscribed = %v, %v: the new store would not ask for the photos again", ok, err)
	}
	if aside, _ := filepath.Glob(dir + "?*"); len(aside) != 1 {
		t.Errorf("set aside: %v, want one directory", aside)
	}
}

// What the store can never hold is remembered as broken, not tried for ever.
func TestTooLargeForTheStoreIsBroken(t *testing.T) {
	s := newTestStore(t)
	r := &receiver{store: s, board: newBoard(), log: quiet()}
	key := moment.Key{User: testPartner, Kind: moment.Photo, ID: "m1"}
	broken := r.broken(testPair, key, "too large for the store")
	a := arrival{
		change: &change{apply: func(tx *badgerdb.Tx) error { return tx.Set([]byte("x"), make([]byte, s.db.MaxValue()+1)) }},
		broken: &broken, outcome: make(chan error, 1),
	}
	a.outcome <- s.update(t.Context(), *a.change)
	if err := r.await(t.Context(), &a); err != nil {
		t.Fatal(err)
	}
	if sums := mustTotals(t, s); sums.Broken != 1 {
		t.Errorf("totals = %+v, want 1 broken", sums)
	}
}
