package daemon

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	calmAfter = 3 * time.Second
	calmBytes = 1 << 20 // allocated meanwhile
)

// ReleaseMemory gives memory back to the system when work has calmed down. Go
// does that by and by; after a rush, such as everybody coming back at once, a
// small machine should have it sooner. It is about the whole process, so a
// program calls it, once, and it returns when ctx ends.
func ReleaseMemory(ctx context.Context) { releaseMemory(ctx, debug.FreeOSMemory) }

func releaseMemory(ctx context.Context, release func()) {
	tick := time.NewTicker(calmAfter)
	defer tick.Stop()
	last, busy := allocated(), false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := allocated()
		calm := now-last < calmBytes
		if busy && calm {
			release()
		}
		last, busy = now, !calm
	}
}

// allocated returns the bytes that were allocated since the start.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
