package kvtest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"pairsync/internal/kv"

	"github.com/google/go-cmp/cmp"
)

// Run checks that a store keeps the promises of kv.Store. open returns an
// empty one each time, and closes it by t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) kv.Store) {
	tests := []struct {
		name string
		run  func(t *testing.T, s kv.Store)
	}{
		{"a key that is not there", testAbsent},
		{"put, replace and delete", testPut},
		{"values are copies", testCopies},
		{"scan in key order within the prefix", testScan},
		{"scan returns the callback's error as it is", testScanError},
		{"scan sees one view", testScanView},
		{"a large change is applied whole", testLarge},
		{"changes are atomic to readers", testAtomic},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

func testAbsent(t *testing.T, s kv.Store) {
	if _, err := s.Get(t.Context(), "nothing"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("Get: error %v, want %v", err, kv.ErrNotFound)
	}
	if got := dump(t, s, ""); len(got) != 0 {
		t.Errorf("an empty store has %q", got)
	}
	apply(t, s, kv.Op{Key: "nothing", Delete: true})
	apply(t, s)
}

func testPut(t *testing.T, s kv.Store) {
	apply(t, s, kv.Op{Key: "a", Value: []byte("1")}, kv.Op{Key: "b", Value: []byte("2")})
	apply(t, s, kv.Op{Key: "a", Value: []byte("3")}, kv.Op{Key: "b", Delete: true}, kv.Op{Key: "c", Value: []byte("4")})
	if diff := cmp.Diff([]string{"a=3", "c=4"}, dump(t, s, "")); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
	if _, err := s.Get(t.Context(), "b"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("Get of a deleted key: error %v, want %v", err, kv.ErrNotFound)
	}
}

func testCopies(t *testing.T, s kv.Store) {
	in := []byte("value")
	apply(t, s, kv.Op{Key: "k", Value: in})
	in[0] = 'X'
	out, err := s.Get(t.Context(), "k")
	if err != nil || string(out) != "value" {
		t.Fatalf("Get after the caller changed its slice: %q, %v, want %q", out, err, "value")
	}
	out[0] = 'Y'
	err = s.Scan(t.Context(), "k", func(_ string, v []byte) error { v[1] = 'Z'; return nil })
	if err != nil {
		t.Fatalf("Scan: %v", err)
	}
	if got, err := s.Get(t.Context(), "k"); err != nil || string(got) != "value" {
		t.Errorf("Get after its results were changed: %q, %v, want %q", got, err, "value")
	}
}

func testScan(t *testing.T, s kv.Store) {
	for _, k := range []string{"p/b", "p/a/2", "p", "q/a", "p/a", "p0", "o/z", "p/\xff"} {
		apply(t, s, kv.Op{Key: k, Value: []byte("v")})
	}
	if diff := cmp.Diff([]string{"p/a=v", "p/a/2=v", "p/b=v", "p/\xff=v"}, dump(t, s, "p/")); diff != "" {
		t.Errorf("Scan of p/ (-want +got):\n%s", diff)
	}
}

func testScanError(t *testing.T, s kv.Store) {
	apply(t, s, kv.Op{Key: "a", Value: []byte("1")}, kv.Op{Key: "b", Value: []byte("2")})
	stop, calls := errors.New("stop"), 0
	err := s.Scan(t.Context(), "", func(string, []byte) error { calls++; return stop })
	if err != stop || calls != 1 { //nolint:errorlint // the very error is promised
		t.Errorf("Scan: error %v after %d calls, want %v after 1", err, calls, stop)
	}
}

func testScanView(t *testing.T, s kv.Store) {
	apply(t, s, kv.Op{Key: "a", Value: []byte("1")}, kv.Op{Key: "b", Value: []byte("1")})
	var got []string
	err := s.Scan(t.Context(), "", func(k string, v []byte) error {
		got = append(got, k+"="+string(v))
		return s.Apply(t.Context(), kv.Op{Key: "b", Value: []byte("2")}, kv.Op{Key: "c", Value: []byte("2")})
	})
	if err != nil {
		t.Fatalf("Scan: %v", err)
	}
	if diff := cmp.Diff([]string{"a=1", "b=1"}, got); diff != "" {
		t.Errorf("Scan while the store changes (-want +got):\n%s", diff)
	}
}

func testLarge(t *testing.T, s kv.Store) {
	const n = 300
	value := strings.Repeat("v", 2<<10)
	var ops []kv.Op
	for i := range n {
		ops = append(ops, kv.Op{Key: fmt.Sprintf("k%03d", i), Value: []byte(value)})
	}
	apply(t, s, ops...)
	got := dump(t, s, "k")
	if len(got) != n {
		t.Fatalf("%d keys, want %d", len(got), n)
	}
	for i, g := range got {
		if want := fmt.Sprintf("k%03d=%s", i, value); g != want {
			t.Fatalf("key %d is %.20q…, want %.20q…", i, g, want)
		}
	}
}

func testAtomic(t *testing.T, s kv.Store) {
	const writers, rounds = 4, 10
	apply(t, s, kv.Op{Key: "a", Value: []byte("0")}, kv.Op{Key: "b", Value: []byte("0")})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range rounds {
				v := fmt.Appendf(nil, "%d-%d", w, i)
				if err := s.Apply(t.Context(), kv.Op{Key: "a", Value: v}, kv.Op{Key: "b", Value: v}); err != nil {
					t.Errorf("Apply: %v", err)
				}
			}
		})
		wg.Go(func() {
			for range rounds {
				var seen []string
				err := s.Scan(t.Context(), "", func(_ string, v []byte) error {
					seen = append(seen, string(v))
					return nil
				})
				if err != nil || len(seen) != 2 || seen[0] != seen[1] {
					t.Errorf("Scan saw half a change: %q, %v", seen, err)
				}
			}
		})
	}
	wg.Wait()
}

func apply(t *testing.T, s kv.Store, ops ...kv.Op) {
	t.Helper()
	if err := s.Apply(t.Context(), ops...); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

func dump(t *testing.T, s kv.Store, prefix string) []string {
	t.Helper()
	var out []string
	err := s.Scan(t.Context(), prefix, func(k string, v []byte) error {
		out = append(out, k+"="+string(v))
		return nil
	})
	if err != nil {
		t.Fatalf("Scan of %q: %v", prefix, err)
	}
	return out
}
