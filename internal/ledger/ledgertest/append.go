package ledgertest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

func testIdempotent(t *testing.T, s *suite) {
	first := photo("ann", "1", 100_000)
	seq := s.append(t, first)
	again := first
	again.Payload = []byte("other bytes")
	again.Caption = "other caption"
	got, duplicate, err := ledger.Append(t.Context(), s.l, pairLog, again)
	if got != seq || !duplicate || err != nil {
		t.Errorf("repeat: seq %d, duplicate %v, error %v; want seq %d, a duplicate", got, duplicate, err, seq)
	}
	// The same id of another sender or of another kind is another moment.
	s.append(t, photo("ben", "1", 10))
	s.append(t, note("ann", "1", "hello"))
	entries := s.read(t, pairLog, 0)
	if len(entries) != 3 {
		t.Fatalf("log holds %v, want three entries", keys(entries))
	}
	if diff := cmp.Diff(first, strip(entries[0])); diff != "" {
		t.Errorf("the first bytes did not win (-want +got):\n%s", diff)
	}
}

func testMessageID(t *testing.T, s *suite) {
	first := photo("ann", "1", 1000)
	first.MessageID = "msg 1/ä"
	seq := s.append(t, first)
	other := photo("ann", "2", 1000)
	other.MessageID = first.MessageID
	got, duplicate, err := ledger.Append(t.Context(), s.l, pairLog, other)
	if got != seq || !duplicate || err != nil {
		t.Errorf("same message id: seq %d, duplicate %v, error %v; want seq %d, a duplicate", got, duplicate, err, seq)
	}
	ben := photo("ben", "3", 10)
	ben.MessageID = first.MessageID
	s.append(t, ben)
	n := note("ann", "4", "x")
	n.MessageID = first.MessageID
	s.append(t, n)
	s.append(t, photo("ann", "5", 10)) // no message id is no key
	s.append(t, photo("ann", "6", 10))
	s.wantKeys(t, pairLog, "ann/1", "ben/3", "ann/4", "ann/5", "ann/6")
}

func testFields(t *testing.T, s *suite) {
	full := moment.Moment{
		Pair: "p1", User: "ann", Kind: moment.Photo, ID: "1",
		ContentType: "image/webp", Caption: "on the lake ☀", SenderName: "Ann", Device: "d1", MessageID: "m1", Origin: "phone",
		TakenAt:   time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600)),
		ExpiresAt: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC),
		Extra:     []moment.Property{{Key: "b", Value: "2"}, {Key: "a", Value: ""}, {Key: "b", Value: "3"}},
		Payload:   payload("p", 50_000),
	}
	empty := moment.Moment{Pair: "p1", User: "ann", Kind: moment.Delete, ID: "2"}
	before := time.Now().Add(-time.Second)
	s.append(t, full)
	s.append(t, empty)
	s.reopen()
	got := s.read(t, pairLog, 0)
	if len(got) != 2 {
		t.Fatalf("%d entries, want 2", len(got))
	}
	for i, want := range []moment.Moment{full, empty} {
		if diff := cmp.Diff(want, strip(got[i])); diff != "" {
			t.Errorf("entry %d (-want +got):\n%s", i, diff)
		}
		if got[i].Size != len(want.Payload) {
			t.Errorf("entry %d: size %d, want %d", i, got[i].Size, len(want.Payload))
		}
		if at := got[i].StoredAt; at.Before(before) || at.After(time.Now().Add(time.Second)) {
			t.Errorf("entry %d: stored at %v, want about now", i, at)
		}
	}
	if _, offset := got[0].TakenAt.Zone(); offset != 3600 {
		t.Errorf("taken at %v: the zone is lost", got[0].TakenAt)
	}
}

func testOwnership(t *testing.T, s *suite) {
	for _, n := range []int{10, 100_000} {
		m := photo("ann", fmt.Sprint(n), n)
		want := bytes.Clone(m.Payload)
		seq := s.append(t, m)
		clear(m.Payload) // ours again once the append is done
		for range 2 {
			b, err := s.l.Read(t.Context(), pairLog, seq-1, ledger.Limit{})
			if err != nil || len(b.Entries) != 1 || !bytes.Equal(b.Entries[0].Payload, want) {
				t.Fatalf("payload of %d bytes did not come back whole (error %v)", n, err)
			}
			clear(b.Entries[0].Payload) // the receiver owns it
		}
	}
}

func testInvalid(t *testing.T, s *suite) {
	bad := func(change func(m *moment.Moment)) moment.Moment {
		m := photo("ann", "1", 10)
		change(&m)
		return m
	}
	for name, tt := range map[string]struct {
		log ledger.LogID
		m   moment.Moment
	}{
		"other pair's log":   {"pair:p2", bad(func(*moment.Moment) {})},
		"user's log":         {"user:ann", bad(func(*moment.Moment) {})},
		"event in pair":      {pairLog, bad(func(m *moment.Moment) { m.Kind = moment.Event })},
		"no id":              {pairLog, bad(func(m *moment.Moment) { m.ID = "" })},
		"id with slash":      {pairLog, bad(func(m *moment.Moment) { m.ID = "a/b" })},
		"id with zero byte":  {pairLog, bad(func(m *moment.Moment) { m.User = "a\x00b" })},
		"unknown kind":       {pairLog, bad(func(m *moment.Moment) { m.Kind = "videos" })},
		"log without a kind": {"p1", bad(func(*moment.Moment) {})},
	} {
		if _, _, err := ledger.Append(t.Context(), s.l, tt.log, tt.m); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	s.wantKeys(t, pairLog)
}

func testDoneOrder(t *testing.T, s *suite) {
	const n = 100
	got := make(chan int, n)
	var seqs [n]ledger.Seq
	for i := range n {
		m := note("ann", fmt.Sprint(i%60), "text") // the last 40 are duplicates
		if i%10 == 3 {
			m = photo("ann", fmt.Sprint("p", i), 60_000)
		}
		err := s.l.Submit(t.Context(), pairLog, m, func(r ledger.Result) {
			if r.Err != nil {
				t.Errorf("append %d: %v", i, r.Err)
			}
			seqs[i] = r.Seq
			got <- i
		})
		if err != nil {
			t.Fatalf("submit %d: %v", i, err)
		}
	}
	for want := range n {
		if i := <-got; i != want {
			t.Fatalf("done of %d came when %d was due", i, want)
		}
	}
	if seqs[60] != seqs[0] {
		t.Errorf("duplicate got seq %d, the first %d", seqs[60], seqs[0])
	}
}

// testConcurrent: seqs are unique and increase in commit order, and each
// submitter's moments keep their order.
func testConcurrent(t *testing.T, s *suite) {
	const users, each = 6, 25
	var wg sync.WaitGroup
	for u := range users {
		wg.Go(func() {
			var last ledger.Seq
			for i := range each {
				m := photo(fmt.Sprint("u", u), fmt.Sprint(i), 5000+u*i)
				seq, duplicate, err := ledger.Append(t.Context(), s.l, pairLog, m)
				if err != nil || duplicate || seq <= last {
					t.Errorf("append %s: seq %d after %d, duplicate %v, error %v", m.Key(), seq, last, duplicate, err)
					return
				}
				last = seq
			}
		})
	}
	wg.Wait()
	entries := s.read(t, pairLog, 0)
	if len(entries) != users*each {
		t.Fatalf("%d entries, want %d", len(entries), users*each)
	}
	if !slices.IsSortedFunc(entries, func(a, b ledger.Entry) int { return int(a.Seq) - int(b.Seq) }) {
		t.Error("entries are not in the order of their seqs")
	}
	next := make(map[string]int)
	for _, e := range entries {
		if e.ID != fmt.Sprint(next[e.User]) {
			t.Fatalf("entry %s came when %d was due", e.Key(), next[e.User])
		}
		next[e.User]++
	}
	if head := entries[len(entries)-1].Seq; true {
		var bytes int64
		for _, e := range entries {
			bytes += int64(len(e.Payload))
		}
		s.wantStat(t, pairLog, ledger.Stat{Entries: users * each, Bytes: bytes, Head: head})
	}
}

// testReadNeverSkips reads on from Through while others append: each entry is
// seen once, in order.
func testReadNeverSkips(t *testing.T, s *suite) {
	const users, each = 4, 40
	wake := make(chan struct{}, 1)
	stop := s.l.Watch(pairLog, func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	defer stop()
	var wg sync.WaitGroup
	for u := range users {
		wg.Go(func() {
			for i := range each {
				if _, _, err := ledger.Append(t.Context(), s.l, pairLog, note(fmt.Sprint("u", u), fmt.Sprint(i), "text")); err != nil {
					t.Errorf("append: %v", err)
					return
				}
			}
		})
	}
	seen := make(map[string]int)
	var after ledger.Seq
	for n := 0; n < users*each; {
		b, err := s.l.Read(t.Context(), pairLog, after, ledger.Limit{Entries: 7})
		if err != nil {
			t.Fatalf("read after %d: %v", after, err)
		}
		for _, e := range b.Entries {
			if e.Seq <= after || e.ID != fmt.Sprint(seen[e.User]) {
				t.Fatalf("after %d and %v came entry %d, %s", after, seen, e.Seq, e.Key())
			}
			after = e.Seq
			seen[e.User]++
			n++
		}
		after = max(after, b.Through)
		if len(b.Entries) == 0 && !t.Failed() {
			<-wake
		}
	}
	wg.Wait()
}

func testQuotaEntries(t *testing.T, s *suite) {
	for i := range QuotaEntries {
		if err := s.l.Submit(t.Context(), pairLog, note("ann", fmt.Sprint(i), "x"), func(r ledger.Result) {
			if r.Err != nil {
				t.Errorf("append %d: %v", i, r.Err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := ledger.Append(t.Context(), s.l, pairLog, note("ann", "over", "x")); !errors.Is(err, ledger.ErrQuota) {
		t.Errorf("append beyond the quota: %v, want ErrQuota", err)
	}
	if _, duplicate, err := ledger.Append(t.Context(), s.l, pairLog, note("ann", "0", "x")); !duplicate || err != nil {
		t.Errorf("repeat in a full log: duplicate %v, error %v", duplicate, err)
	}
	s.append(t, receipt("ben", "r1"))
	s.append(t, moment.Moment{Pair: "p1", User: "ann", Kind: moment.Delete, ID: "0"}) // taking back always works
	if err := s.l.Remove(t.Context(), pairLog, moment.Key{User: "ann", Kind: moment.Note, ID: "0"}); err != nil {
		t.Fatal(err)
	}
	s.append(t, note("ann", "over", "x")) // the refused one may come again
	s.reopen()
	if _, _, err := ledger.Append(t.Context(), s.l, pairLog, note("ann", "more", "x")); !errors.Is(err, ledger.ErrQuota) {
		t.Errorf("append beyond the quota after reopen: %v, want ErrQuota", err)
	}
}

func testQuotaBytes(t *testing.T, s *suite) {
	s.append(t, photo("ann", "1", QuotaBytes-1000))
	s.append(t, photo("ann", "2", 1000))
	if _, _, err := ledger.Append(t.Context(), s.l, pairLog, photo("ann", "3", 1)); !errors.Is(err, ledger.ErrQuota) {
		t.Errorf("append beyond the quota: %v, want ErrQuota", err)
	}
	s.append(t, receipt("ben", "r1"))
	if err := s.l.Remove(t.Context(), pairLog, moment.Key{User: "ann", Kind: moment.Photo, ID: "2"}); err != nil {
		t.Fatal(err)
	}
	s.append(t, photo("ann", "3", 1000))
	if _, _, err := ledger.Append(t.Context(), s.l, "pair:p2", moment.Moment{Pair: "p2", User: "ann", Kind: moment.Photo, ID: "1", Payload: []byte("x")}); err != nil {
		t.Errorf("quotas are each log's own: %v", err)
	}
}
