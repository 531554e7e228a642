package badgerdb

import "time"

// keeper is the goroutine for what must not hold up the writer: giving back
// the space of deleted values, and keeping the ballast.
type keeper struct {
	wake  chan struct{} // capacity 1
	quit  chan struct{}
	ended chan struct{}
}

func newKeeper() keeper {
	return keeper{wake: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{})}
}

func (k *keeper) stop() {
	close(k.quit)
	<-k.ended
}

func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (db *DB) keep() {
	k := &db.keeper
	defer close(k.ended)
	ballast := time.NewTicker(ballastAfter)
	defer ballast.Stop()
	room := time.NewTicker(roomEvery)
	defer room.Stop()
	db.watchRoom()
	for {
		select {
		case <-k.quit:
			return
		case <-k.wake:
			db.giveBack()
		case <-room.C:
			db.watchRoom()
		case <-ballast.C:
			if err := db.keepBallast(); err != nil {
				db.log.Warn("ballast not written", "dir", db.dir, "err", err)
			}
		}
	}
}
