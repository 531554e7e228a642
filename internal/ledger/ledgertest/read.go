package ledgertest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

func testLimits(t *testing.T, s *suite) {
	for _, id := range ids("", 1, 70) {
		s.append(t, photo("ann", id, 5000))
	}
	for _, tt := range []struct {
		name  string
		limit ledger.Limit
		want  int
	}{
		{"default", ledger.Limit{}, 64},
		{"entries", ledger.Limit{Entries: 3}, 3},
		{"all", ledger.Limit{Entries: 1000}, 70},
		{"bytes stop after the payload that reaches them", ledger.Limit{Bytes: 10_001}, 3},
		{"bytes exactly", ledger.Limit{Bytes: 10_000}, 2},
		{"at least one", ledger.Limit{Bytes: 1}, 1},
		{"both", ledger.Limit{Entries: 2, Bytes: 1 << 30}, 2},
	} {
		b, err := s.l.Read(t.Context(), pairLog, 0, tt.limit)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		got := keys(b.Entries)
		if want := prefixed("ann/", ids("", 1, tt.want)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", tt.name, got, want)
		}
		if tt.want < 70 && b.Through != b.Entries[len(b.Entries)-1].Seq {
			t.Errorf("%s: through %d, want the last entry's seq", tt.name, b.Through)
		}
	}
	all := s.read(t, pairLog, 0)
	if got := keys(s.read(t, pairLog, all[66].Seq)); !slices.Equal(got, prefixed("ann/", ids("", 68, 70))) {
		t.Errorf("after the 67th: %v", got)
	}
}

func prefixed(p string, in []string) (out []string) {
	for _, s := range in {
		out = append(out, p+s)
	}
	return out
}

func testWant(t *testing.T, s *suite) {
	for _, id := range ids("", 1, 100) {
		s.append(t, photo("ann", id, 100))
	}
	last := s.append(t, photo("ben", "1", 100))
	tail := s.append(t, photo("ann", "101", 100))
	saw := 0
	ben := func(e *ledger.Entry) bool {
		saw++
		if e.Payload != nil || e.Size != 100 || e.ContentType != "image/jpeg" || e.Seq == 0 {
			t.Errorf("want saw %+v, want a header without payload", e)
		}
		return e.User == "ben"
	}
	b, err := s.l.Read(t.Context(), pairLog, 0, ledger.Limit{Entries: 1, Want: ben})
	if err != nil || !slices.Equal(keys(b.Entries), []string{"ben/1"}) || b.Through != last {
		t.Errorf("read: %v through %d, error %v; want ben/1 through %d", keys(b.Entries), b.Through, err, last)
	}
	if saw != 101 || len(b.Entries) == 1 && len(b.Entries[0].Payload) != 100 {
		t.Errorf("want was asked %d times, want 101; the wanted entry must have its payload", saw)
	}
	// What is declined is looked through: the next read need not see it again.
	none := func(*ledger.Entry) bool { return false }
	b, err = s.l.Read(t.Context(), pairLog, 0, ledger.Limit{Entries: 1, Want: none})
	if err != nil || len(b.Entries) != 0 || b.Through < tail {
		t.Errorf("read of nothing: %v through %d, error %v; want none through %d", keys(b.Entries), b.Through, err, tail)
	}
	next := s.append(t, photo("ben", "2", 100))
	b, err = s.l.Read(t.Context(), pairLog, b.Through, ledger.Limit{})
	if err != nil || len(b.Entries) != 1 || b.Entries[0].Seq != next {
		t.Errorf("read on from through: %v, error %v; want ben/2", keys(b.Entries), err)
	}
}

func testHeadersOnly(t *testing.T, s *suite) {
	m := photo("ann", "1", 9000)
	m.Caption = "c"
	s.append(t, m)
	s.append(t, note("ann", "2", "text"))
	b, err := s.l.Read(t.Context(), pairLog, 0, ledger.Limit{HeadersOnly: true, Bytes: 1})
	if err != nil || len(b.Entries) != 2 {
		t.Fatalf("read: %v, error %v; want two entries", keys(b.Entries), err)
	}
	for i, size := range []int{9000, 4} {
		if e := b.Entries[i]; e.Payload != nil || e.Size != size || e.Damaged {
			t.Errorf("entry %d: payload of %d bytes, size %d, damaged %v; want no payload and size %d", i, len(e.Payload), e.Size, e.Damaged, size)
		}
	}
	m.Payload = nil
	if diff := cmp.Diff(m, strip(b.Entries[0])); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
}

func testUnknownLog(t *testing.T, s *suite) {
	b, err := s.l.Read(t.Context(), "pair:nobody", 7, ledger.Limit{})
	if err != nil || len(b.Entries) != 0 || b.Through != 7 {
		t.Errorf("read: %v through %d, error %v; want nothing through 7", keys(b.Entries), b.Through, err)
	}
	s.wantStat(t, "pair:nobody", ledger.Stat{})
	if at, err := s.l.Tail(t.Context(), "pair:nobody", 5); at != 0 || err != nil {
		t.Errorf("tail: %d, %v; want 0", at, err)
	}
	if tr, err := s.l.Trim(t.Context(), "pair:nobody", ledger.Retention{UpTo: 100}); err != nil || tr != (ledger.Trimmed{}) {
		t.Errorf("trim: %+v, %v; want nothing", tr, err)
	}
}

func testLatest(t *testing.T, s *suite) {
	want := func(user, id string) {
		t.Helper()
		e, err := s.l.Latest(t.Context(), pairLog, user)
		switch {
		case id == "":
			if !errors.Is(err, ledger.ErrNotFound) {
				t.Errorf("latest of %s: %v, want ErrNotFound", user, err)
			}
		case err != nil || e.ID != id || len(e.Payload) != 5000:
			t.Errorf("latest of %s: %s with %d bytes, error %v; want %s", user, e.ID, len(e.Payload), err, id)
		}
	}
	want("ann", "")
	s.append(t, note("ann", "n", "a note is not a photo"))
	want("ann", "")
	s.append(t, photo("ann", "1", 5000))
	s.append(t, photo("ben", "2", 5000))
	s.append(t, photo("ann", "3", 5000))
	s.append(t, note("ann", "n2", "x"))
	want("ann", "3")
	want("ben", "2")
	s.reopen()
	want("ann", "3")
	want("ben", "2")
	want("eve", "")
}

func testLookup(t *testing.T, s *suite) {
	m := photo("ann", "1", 5000)
	m.MessageID = "m1"
	seq := s.append(t, m)
	e, err := s.l.Lookup(t.Context(), pairLog, m.Key())
	if err != nil || e.Seq != seq {
		t.Fatalf("lookup: seq %d, error %v; want %d", e.Seq, err, seq)
	}
	if diff := cmp.Diff(m, strip(e)); diff != "" {
		t.Errorf("lookup (-want +got):\n%s", diff)
	}
	for _, k := range []moment.Key{
		{User: "ann", Kind: moment.Photo, ID: "2"},
		{User: "ann", Kind: moment.Note, ID: "1"},
		{User: "ben", Kind: moment.Photo, ID: "1"},
		{User: "ann", Kind: moment.Photo, ID: "m1"},
	} {
		if _, err := s.l.Lookup(t.Context(), pairLog, k); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("lookup %s: %v, want ErrNotFound", k, err)
		}
	}
	if _, err := s.l.Lookup(t.Context(), "pair:p2", m.Key()); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("lookup in another log: %v, want ErrNotFound", err)
	}
}

func testTail(t *testing.T, s *suite) {
	for _, id := range ids("", 1, 10) {
		s.append(t, photo("ann", id, 10))
	}
	if err := s.l.Remove(t.Context(), pairLog, moment.Key{User: "ann", Kind: moment.Photo, ID: "9"}); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int][]string{
		0:  nil,
		1:  {"ann/10"},
		3:  {"ann/7", "ann/8", "ann/10"},
		9:  prefixed("ann/", append(ids("", 1, 8), "10")),
		50: prefixed("ann/", append(ids("", 1, 8), "10")),
	} {
		at, err := s.l.Tail(t.Context(), pairLog, n)
		if err != nil {
			t.Fatal(err)
		}
		if got := keys(s.read(t, pairLog, at)); !slices.Equal(got, want) {
			t.Errorf("after tail(%d) = %d: %v, want %v", n, at, got, want)
		}
	}
}

func testLogs(t *testing.T, s *suite) {
	want := func(want ...ledger.LogID) {
		t.Helper()
		got, err := s.l.Logs(t.Context())
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("logs: %v, %v; want %v", got, err, want)
		}
	}
	want()
	s.append(t, photo("ann", "1", 10))
	if err := s.l.SetCursor(t.Context(), "ann/app", ledger.UserLog("ann"), 0); err != nil {
		t.Fatal(err)
	}
	want("pair:p1", "user:ann")
	s.reopen()
	want("pair:p1", "user:ann")
	if err := s.l.Delete(t.Context(), "pair:p1"); err != nil {
		t.Fatal(err)
	}
	want("user:ann")
}

func testUserLog(t *testing.T, s *suite) {
	event := func(user, id string) moment.Moment {
		return moment.Moment{User: user, Kind: moment.Event, ID: id, Payload: []byte(`{"type":"x"}`)}
	}
	s.append(t, event("ann", "1"))
	s.append(t, event("ben", "1"))
	s.append(t, event("ann", "2"))
	s.append(t, photo("ann", "1", 10))
	s.wantKeys(t, "user:ann", "ann/1", "ann/2")
	s.wantKeys(t, "user:ben", "ben/1")
	if diff := cmp.Diff(event("ben", "1"), strip(s.read(t, "user:ben", 0)[0])); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	if err := s.l.Delete(t.Context(), pairLog); err != nil {
		t.Fatal(err)
	}
	s.wantKeys(t, "user:ann", "ann/1", "ann/2") // events survive the pair
}

func testWatch(t *testing.T, s *suite) {
	wake := make(chan struct{}, 16)
	ring := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	var stop func()
	stop = s.l.Watch(pairLog, ring)
	other := make(chan struct{}, 16)
	defer s.l.Watch("pair:p2", func() { other <- struct{}{} })()
	s.append(t, photo("ann", "1", 10))
	<-wake // a wake-up comes; that it comes after the commit:
	s.wantKeys(t, pairLog, "ann/1")
	stop()
	for len(wake) > 0 {
		<-wake
	}
	second := make(chan struct{}, 16)
	defer s.l.Watch(pairLog, func() { second <- struct{}{} })()
	s.append(t, photo("ann", "2", 10))
	<-second
	if len(wake) > 0 {
		t.Error("woken after stop")
	}
	if len(other) > 0 {
		t.Error("woken for another log")
	}
	stop() // harmless
}

func testCancelled(t *testing.T, s *suite) {
	s.append(t, photo("ann", "1", 10))
	ctx := cancelled(t)
	for name, call := range map[string]func() error{
		"read": func() error { _, err := s.l.Read(ctx, pairLog, 0, ledger.Limit{}); return err },
		"lookup": func() error {
			_, err := s.l.Lookup(ctx, pairLog, moment.Key{User: "ann", Kind: moment.Photo, ID: "1"})
			return err
		},
		"latest":  func() error { _, err := s.l.Latest(ctx, pairLog, "ann"); return err },
		"trim":    func() error { _, err := s.l.Trim(ctx, pairLog, ledger.Retention{Before: time.Now()}); return err },
		"stat":    func() error { _, err := s.l.Stat(ctx, pairLog); return err },
		"logs":    func() error { _, err := s.l.Logs(ctx); return err },
		"advance": func() error { return s.l.Advance(ctx, "s", pairLog, 1) },
		"cursors": func() error { _, err := s.l.Cursors(ctx, pairLog); return err },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
	s.wantKeys(t, pairLog, "ann/1")
}
