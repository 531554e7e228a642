package badgerledger

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"

	"pairsync/internal/badgerdb"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

func benchPhoto(id string, n int) moment.Moment {
	return moment.Moment{
		Pair: "p1", User: "u", Kind: moment.Photo, ID: id, ContentType: "image/jpeg",
		SenderName: "Somebody", Caption: "a caption", Payload: bytes.Repeat([]byte("0123456789abcdef"), n/16),
	}
}

func benchAppend(b *testing.B, size int) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			l := newLedger(b, openDB(b, b.TempDir(), badgerdb.Server), Config{MaxEntries: 1 << 30, MaxBytes: 1 << 50})
			m := benchPhoto("", size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var n atomic.Int64
			b.SetParallelism((writers + 1) / 2) // times GOMAXPROCS of 2
			if writers == 1 {
				for b.Loop() {
					m.ID = fmt.Sprint(n.Add(1))
					if _, _, err := ledger.Append(b.Context(), l, pairLog, m); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				m := m
				for pb.Next() {
					m.ID = fmt.Sprint(n.Add(1))
					if _, _, err := ledger.Append(b.Context(), l, pairLog, m); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkAppend1K(b *testing.B)   { benchAppend(b, 1<<10) }
func BenchmarkAppend200K(b *testing.B) { benchAppend(b, 200<<10) }

func BenchmarkRead200K(b *testing.B) {
	const entries, size = 500, 200 << 10
	l := newLedger(b, openDB(b, b.TempDir(), badgerdb.Server), Config{})
	for i := range entries {
		if err := l.Submit(b.Context(), pairLog, benchPhoto(fmt.Sprint(i), size), func(r ledger.Result) {
			if r.Err != nil {
				b.Error(r.Err)
			}
		}); err != nil {
			b.Fatal(err)
		}
	}
	if _, _, err := ledger.Append(b.Context(), l, pairLog, benchPhoto("last", size)); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	var after ledger.Seq
	for b.Loop() {
		batch, err := l.Read(b.Context(), pairLog, after, ledger.Limit{Entries: 1})
		if err != nil || len(batch.Entries) != 1 {
			b.Fatalf("read after %d: %d entries, %v", after, len(batch.Entries), err)
		}
		if after = batch.Through; after > entries {
			after = 0
		}
	}
}

func BenchmarkHeaders(b *testing.B) {
	const entries = 10_000
	l := newLedger(b, openDB(b, b.TempDir(), badgerdb.Server), Config{})
	for i := range entries {
		if err := l.Submit(b.Context(), pairLog, benchPhoto(fmt.Sprint(i), 1<<10), func(ledger.Result) {}); err != nil {
			b.Fatal(err)
		}
	}
	none := func(*ledger.Entry) bool { return false }
	for b.Loop() {
		if _, err := l.Read(b.Context(), pairLog, 0, ledger.Limit{Want: none}); err != nil {
			b.Fatal(err)
		}
	}
}
