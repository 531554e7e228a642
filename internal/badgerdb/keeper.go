package badgerdb

import (
	"sync/atomic"
	"time"
)

// keeper is the goroutine for what must not hold up the writer: giving mapped
// pages back, keeping the ballast, measuring the value log.
type keeper struct {
	touched *atomic.Int64 // bytes of the value log read and written since the last page-out
	vlog    *atomic.Int64 // size of the value log when last measured
	wake    chan struct{} // capacity 1
	quit    chan struct{}
	ended   chan struct{}
}

func newKeeper() keeper {
	return keeper{
		touched: new(atomic.Int64),
		vlog:    new(atomic.Int64),
		wake:    make(chan struct{}, 1),
		quit:    make(chan struct{}),
		ended:   make(chan struct{}),
	}
}

func (k *keeper) stop() {
	close(k.quit)
	<-k.ended
}

// due adds n touched bytes and wakes the keeper once limit is reached.
func (k *keeper) due(n, limit int64) {
	if k.touched.Add(n) < limit {
		return
	}
	k.touched.Store(0)
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// touch counts bytes that were read from or written to mapped files.
func (db *DB) touch(n int64) {
	if n >= valueThreshold {
		db.keeper.due(n, db.sizes.touched)
	}
}

func (db *DB) keep() {
	k := &db.keeper
	defer close(k.ended)
	ballast := time.NewTicker(ballastAfter)
	defer ballast.Stop()
	db.release()
	for {
		select {
		case <-k.quit:
			return
		case <-k.wake:
			db.release()
		case <-ballast.C:
			if err := db.keepBallast(); err != nil {
				db.log.Warn("ballast not written", "dir", db.dir, "err", err)
			}
		}
	}
}

func (db *DB) release() {
	_, vlog := db.Size()
	db.keeper.vlog.Store(vlog)
	if err := pageOut(db.dir); err != nil {
		db.log.Debug("mapped pages not given back", "dir", db.dir, "err", err)
	}
}
