package bridge

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/kv"
	"pairsync/internal/kv/kvtest"
)

func TestAckMemoryIsBounded(t *testing.T) {
	var m ackMemory
	for i := range 3 * ackMemoryEntries {
		m.settle(fmt.Sprint(i), time.Now())
	}
	if len(m.entries) != ackMemoryEntries {
		t.Fatalf("%d entries, want %d", len(m.entries), ackMemoryEntries)
	}
	if m.find("0") != nil || m.find(fmt.Sprint(3*ackMemoryEntries-1)) == nil {
		t.Error("the oldest is kept, or the newest is not")
	}
	before := m.find("300").at
	m.add("300", time.Time{})
	if e := m.find("300"); !e.settled || !e.at.Equal(before) {
		t.Error("a repeat changed what was known")
	}
}

// What is on disk is the newest ackSlots photos of one session, also when the
// ring has been filled over several starts.
func TestAcksOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &kvtest.Memory{}
		ben := userKey{"ben", "phone"}
		other := userKey{"ben", ""}
		if err := saveAck(t.Context(), store, other, 0, "other", time.Now()); err != nil {
			t.Fatal(err)
		}
		for start := range 3 {
			m, err := loadAcks(t.Context(), store, ben)
			if err != nil {
				t.Fatal(err)
			}
			for i := range ackSlots - 5 {
				time.Sleep(time.Millisecond)
				if err := saveAck(t.Context(), store, ben, m.nextSlot(), fmt.Sprintf("%d-%d", start, i), time.Now()); err != nil {
					t.Fatal(err)
				}
			}
		}
		m, err := loadAcks(t.Context(), store, ben)
		if err != nil || len(m.entries) != ackSlots {
			t.Fatalf("%d entries, %v; want %d", len(m.entries), err, ackSlots)
		}
		for i := range ackSlots - 5 {
			if m.find(photoKey(fmt.Sprintf("2-%d", i))) == nil {
				t.Errorf("photo %d of the last start is forgotten", i)
			}
		}
		if m.find(photoKey("other")) != nil {
			t.Error("another session's photo is known")
		}
	})
}

func TestDeadLettersAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &kvtest.Memory{}
		for _, d := range []DeadLetter{
			{User: "ben", Sender: "ana", Photo: "old", At: time.Now()},
			{User: "benjamin", Sender: "ana", Photo: "of another", At: time.Now().Add(maxDeadAge)},
			{User: "ben", Device: "d", Sender: "ana", Photo: "new", At: time.Now().Add(maxDeadAge)},
		} {
			if err := saveDead(t.Context(), store, d); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(maxDeadAge + time.Second)
		if err := sweepDead(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		got, err := DeadLetters(t.Context(), store, "ben")
		if err != nil || len(got) != 1 || got[0].Photo != "new" {
			t.Errorf("dead letters of ben: %v, %v; want the new one", got, err)
		}
		all, err := DeadLetters(t.Context(), store, "")
		if err != nil || len(all) != 2 {
			t.Errorf("all dead letters: %v, %v; want 2", all, err)
		}
	})
}

func TestDamagedRecords(t *testing.T) {
	store := &kvtest.Memory{}
	err := store.Apply(t.Context(),
		kv.Op{Key: keyAcked + "ben//00", Value: []byte("{")},
		kv.Op{Key: keyAcked + "ben//xx", Value: []byte("{}")},
		kv.Op{Key: keyDead + "ben//ana/p", Value: []byte("{")})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := loadAcks(t.Context(), store, userKey{"ben", ""}); err != nil || len(m.entries) != 0 {
		t.Errorf("damaged acknowledgements: %v, %v; want none", m, err)
	}
	if _, err := DeadLetters(t.Context(), store, ""); err == nil {
		t.Error("a damaged dead letter is passed over in silence")
	}
	store.Break(errors.New("disk gone"))
	if _, err := loadAcks(t.Context(), store, userKey{"ben", ""}); err == nil {
		t.Error("a failing store is taken for an empty one")
	}
}
