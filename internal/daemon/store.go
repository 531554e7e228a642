package daemon

import (
	"errors"

	"pairsync/internal/badgerdb"
	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/metrics"
)

// storeMetrics says how the store is. Its values are asked for when they are
// read, so that they are right also while nothing is written.
func storeMetrics(db *badgerdb.DB, l *badgerledger.Ledger) *metrics.Set {
	s := metrics.New("store")
	s.GaugeFunc("full", "1 while photos are refused because the disk is nearly full; reads go on.", func() float64 {
		return number(errors.Is(db.Writable(), badgerdb.ErrFull))
	})
	s.GaugeFunc("failed", "1 after a failed write or fsync: nothing is acknowledged any more until a restart.", func() float64 {
		return number(errors.Is(db.Healthy(), badgerdb.ErrUnhealthy))
	})
	s.GaugeFunc("disk_free_bytes", "Free space on the store's disk.", func() float64 {
		free, err := db.Free()
		if err != nil {
			return -1
		}
		return float64(free)
	})
	s.GaugeFunc("tree_bytes", "Size of the store's index files.", func() float64 {
		tree, _ := db.Size()
		return float64(tree)
	})
	s.GaugeFunc("payload_bytes", "Size of the store's payload files.", func() float64 {
		_, values := db.Size()
		return float64(values)
	})
	s.CounterFunc("refused_full_total", "Changes refused because the disk was nearly full.", func() float64 { return float64(db.Refused()) })
	s.CounterFunc("damaged_total", "Damaged records met and passed over, each counted once.", func() float64 { return float64(l.Damaged()) })
	return s
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
