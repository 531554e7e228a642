package badgerledger

import (
	"sync"

	"pairsync/internal/ledger"
)

// watchers are the functions to call after appends, by log.
type watchers struct {
	mu    sync.RWMutex // guards byLog
	byLog map[ledger.LogID]map[*watcher]struct{}
}

type watcher struct{ wake func() }

func (w *watchers) init() { w.byLog = make(map[ledger.LogID]map[*watcher]struct{}) }

func (w *watchers) add(log ledger.LogID, wake func()) (stop func()) {
	one := &watcher{wake}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byLog[log] == nil {
		w.byLog[log] = make(map[*watcher]struct{})
	}
	w.byLog[log][one] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.byLog[log], one)
		if len(w.byLog[log]) == 0 {
			delete(w.byLog, log)
		}
	}
}

// wake calls the watchers of log, none of them under the lock: a watcher may
// stop itself.
func (w *watchers) wake(log ledger.LogID) {
	w.mu.RLock()
	all := make([]*watcher, 0, len(w.byLog[log]))
	for one := range w.byLog[log] {
		all = append(all, one)
	}
	w.mu.RUnlock()
	for _, one := range all {
		one.wake()
	}
}
