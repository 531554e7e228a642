// Package ledgertest is the suite that every implementation of ledger.Ledger
// passes. Each test holds one promise of the interface's comments; the suite
// looks at nothing but the interface.
package ledgertest

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// The quotas that open must give each log, low enough to be reached.
const (
	QuotaEntries = 200
	QuotaBytes   = 4 << 20
)

// OpenFunc opens an empty ledger with the quotas above, which ends with t.
// reopen closes the ledger it returned last and opens the same data again.
type OpenFunc func(t *testing.T) (l ledger.Ledger, reopen func() ledger.Ledger)

// Run runs the suite.
func Run(t *testing.T, open func(t *testing.T) (l ledger.Ledger, reopen func() ledger.Ledger)) {
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, s *suite)
	}{
		{"append is idempotent", testIdempotent},
		{"message id is a second key", testMessageID},
		{"every field comes back", testFields},
		{"payloads are owned", testOwnership},
		{"invalid moments are refused", testInvalid},
		{"done is called in order", testDoneOrder},
		{"concurrent submitters", testConcurrent},
		{"a reader skips nothing", testReadNeverSkips},
		{"read limits", testLimits},
		{"read with want", testWant},
		{"headers only", testHeadersOnly},
		{"unknown log is empty", testUnknownLog},
		{"latest", testLatest},
		{"lookup", testLookup},
		{"tail", testTail},
		{"logs", testLogs},
		{"user logs", testUserLog},
		{"watch", testWatch},
		{"cancelled context", testCancelled},
		{"cursors", testCursors},
		{"cursors move forward only", testAdvance},
		{"cursors after reopen", testCursorsReopen},
		{"reopen", testReopen},
		{"seqs are never reused", testSeqsNotReused},
		{"trim", testTrim},
		{"trim by age", testTrimAge},
		{"trim of receipts by age", testTrimReceipts},
		{"identities outlive trim and remove", testIdentities},
		{"remove", testRemove},
		{"delete", testDelete},
		{"delete while appending", testDeleteRace},
		{"quota of entries", testQuotaEntries},
		{"quota of bytes", testQuotaBytes},
		{"quota of what comes later", testLater},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, reopen := open(t)
			s := &suite{l: l}
			s.reopen = func() { s.l = reopen() }
			tt.run(t, s)
		})
	}
}

// suite is one test's ledger.
type suite struct {
	l      ledger.Ledger
	reopen func()
}

const pairLog = ledger.LogID("pair:p1")

// photo returns a photo of n bytes that differ from any other id's.
func photo(user, id string, n int) moment.Moment {
	return moment.Moment{
		Pair: "p1", User: user, Kind: moment.Photo, ID: id,
		ContentType: "image/jpeg", Payload: payload(user+"/"+id, n),
	}
}

func note(user, id, text string) moment.Moment {
	return moment.Moment{Pair: "p1", User: user, Kind: moment.Note, ID: id, Payload: []byte(text)}
}

func receipt(user, id string) moment.Moment {
	return moment.Moment{Pair: "p1", User: user, Kind: moment.Receipt, ID: id, Payload: []byte("{}")}
}

func payload(seed string, n int) []byte {
	return bytes.Repeat([]byte(seed+"|"), n/(len(seed)+1)+1)[:n]
}

// append appends m to the pair's log and fails the test when that fails.
func (s *suite) append(t *testing.T, m moment.Moment) ledger.Seq {
	t.Helper()
	seq, duplicate, err := ledger.Append(t.Context(), s.l, ledger.LogOf(&m), m)
	if err != nil || duplicate {
		t.Fatalf("append %s: seq %d, duplicate %v, error %v", m.Key(), seq, duplicate, err)
	}
	return seq
}

// read returns everything after a place, in reads of default size.
func (s *suite) read(t *testing.T, log ledger.LogID, after ledger.Seq) []ledger.Entry {
	t.Helper()
	var all []ledger.Entry
	for {
		b, err := s.l.Read(t.Context(), log, after, ledger.Limit{})
		if err != nil {
			t.Fatalf("read %q after %d: %v", log, after, err)
		}
		if len(b.Entries) == 0 {
			return all
		}
		if b.Through < b.Entries[len(b.Entries)-1].Seq {
			t.Fatalf("read %q after %d: through %d is before the last entry", log, after, b.Through)
		}
		all = append(all, b.Entries...)
		after = b.Through
	}
}

// keys returns "user/id" of entries, in order.
func keys(entries []ledger.Entry) []string {
	out := []string{}
	for _, e := range entries {
		out = append(out, e.User+"/"+e.ID)
	}
	return out
}

func (s *suite) wantKeys(t *testing.T, log ledger.LogID, want ...string) {
	t.Helper()
	if want == nil {
		want = []string{}
	}
	if diff := cmp.Diff(want, keys(s.read(t, log, 0))); diff != "" {
		t.Errorf("log %q (-want +got):\n%s", log, diff)
	}
}

func (s *suite) wantStat(t *testing.T, log ledger.LogID, want ledger.Stat) {
	t.Helper()
	got, err := s.l.Stat(t.Context(), log)
	if err != nil || got != want {
		t.Errorf("stat of %q: %+v, %v; want %+v", log, got, err, want)
	}
}

// strip returns e's moment without what the ledger added.
func strip(e ledger.Entry) moment.Moment {
	m := e.Moment
	m.StoredAt = time.Time{}
	return m
}

func ids(prefix string, from, to int) (out []string) {
	for i := from; i <= to; i++ {
		out = append(out, fmt.Sprintf("%s%d", prefix, i))
	}
	return out
}

func cancelled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
