package badgerdb

import (
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Profile is a set of sizes for one kind of machine. A directory keeps the
// profile it was created with: a smaller memtable could not replay the log
// that a larger one wrote.
type Profile int

// The profiles: Server for the daemon, Device for frames with little memory.
const (
	Server Profile = iota
	Device
)

// String returns the name that FORMAT holds.
func (p Profile) String() string {
	switch p {
	case Server:
		return "server"
	case Device:
		return "device"
	}
	return fmt.Sprintf("Profile(%d)", int(p))
}

// valueThreshold is the length from which a value goes to a segment instead of
// badger's LSM tree. In the tree photos are rewritten at every compaction and
// held in memory (6.5 GB at 2 GB stored).
const valueThreshold = 4 << 10

// sizes are the numbers in which profiles differ; bytes unless said.
type sizes struct {
	memTable     int64
	memTables    int
	l0, l0Stall  int
	table, level int64
	segment      int64 // of one file of large values
	maxValue     int
	goroutines   int

	batch   int   // payload bytes of one group commit
	queue   int   // bytes that may wait for the writer
	minCost int   // least cost of a job, so that queue also bounds their number
	reserve int64 // disk space never used, beyond what badger may need at once
	ballast int64
}

func sizesOf(p Profile) (sizes, error) {
	switch p {
	case Server:
		return sizes{
			memTable: 2 << 20, memTables: 2, l0: 2, l0Stall: 8, table: 4 << 20, level: 16 << 20,
			segment: 64 << 20, maxValue: 15 << 20, goroutines: 2,
			batch: 8 << 20, queue: 32 << 20, minCost: 4 << 10,
			reserve: 64 << 20, ballast: 64 << 20,
		}, nil
	case Device:
		return sizes{
			memTable: 256 << 10, memTables: 1, l0: 1, l0Stall: 4, table: 1 << 20, level: 4 << 20,
			segment: 16 << 20, maxValue: 7 << 20, goroutines: 1,
			batch: 2 << 20, queue: 4 << 20, minCost: 4 << 10,
			reserve: 32 << 20, ballast: 16 << 20,
		}, nil
	}
	return sizes{}, fmt.Errorf("store profile %d: unknown", int(p))
}

// vlogFile is the size of badger's own value log, in which nothing is kept:
// the least that badger takes.
const vlogFile = 1 << 20

// putRoom is the free disk space below which nothing is put: what badger may
// allocate at once, and a reserve. Its files are mapped, so running out is a
// SIGBUS, not an error.
func (s sizes) putRoom() int64 { return 2*vlogFile + 2*s.memTable + s.reserve }

// pruneRoom is the free disk space below which nothing is deleted either:
// deletions take a memtable, its flushed table and a compaction.
func (s sizes) pruneRoom() int64 { return 2*s.memTable + 2*s.table }

func badgerOptions(dir string, s sizes, log badger.Logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(log).
		WithSyncWrites(true).
		WithNumVersionsToKeep(1).
		WithCompression(options.None).WithBlockCacheSize(0).WithIndexCacheSize(0).
		WithNumCompactors(2).
		WithDetectConflicts(false). // one writer
		WithMetricsEnabled(false).
		WithVLogPercentile(0).WithValueThreshold(2 * valueThreshold). // above every value it gets
		WithChecksumVerificationMode(options.OnTableRead).
		WithCompactL0OnClose(true).
		WithMemTableSize(s.memTable).WithNumMemtables(s.memTables).
		WithNumLevelZeroTables(s.l0).WithNumLevelZeroTablesStall(s.l0Stall).
		WithBaseTableSize(s.table).WithBaseLevelSize(s.level).
		WithValueLogFileSize(vlogFile).WithNumGoroutines(s.goroutines)
}

const (
	lazyAfter    = time.Second      // longest wait of a SetLazy for a commit to ride on
	compactEvery = time.Hour        // between forced compactions
	ballastAfter = time.Minute      // after Open; and between attempts to restore it
	roomEvery    = 10 * time.Second // between looks whether the disk is full
)

// maxFlatten is the largest tree that is compacted without need: the writer
// waits for it.
const maxFlatten = 128 << 20
