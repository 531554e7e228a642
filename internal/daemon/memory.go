package daemon

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Work that is worth cleaning up after allocates busyBytes in a lookEvery; it
// has calmed down when less than calmBytes are.
const (
	lookEvery = time.Second
	busyBytes = 8 << 20
	calmBytes = 256 << 10
)

// ReleaseMemory gives memory back to the system when work has calmed down. Go
// does that by and by; after a rush, such as everybody coming back at once, a
// small machine should have it sooner. It is about the whole process, so a
// program calls it, once, and it returns when ctx ends.
func ReleaseMemory(ctx context.Context) {
	releaseMemory(ctx, func() {
		runtime.GC() // each collection halves a stack that is too large
		runtime.GC()
		debug.FreeOSMemory()
	})
}

func releaseMemory(ctx context.Context, release func()) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	last, busy := allocated(), false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := allocated()
		switch {
		case now-last >= busyBytes:
			busy = true
		case busy && now-last < calmBytes:
			busy = false
			release()
		}
		last = now
	}
}

// allocated returns the bytes that were allocated since the start.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
