package daemon

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

var sink []byte

func TestReleaseMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		released := 0
		done := make(chan struct{})
		go func() {
			releaseMemory(ctx, func() { released++ })
			close(done)
		}()
		time.Sleep(time.Minute)
		if released > 1 { // what ran before counts as work
			t.Errorf("released %d times though nothing happened", released)
		}
		released = 0
		for range 20 {
			sink = make([]byte, 16<<20)
			time.Sleep(lookEvery / 2)
		}
		if released != 0 {
			t.Errorf("released %d times in the middle of work", released)
		}
		time.Sleep(time.Minute)
		if released != 1 {
			t.Errorf("released %d times after the work, want once", released)
		}
		cancel()
		<-done
	})
}
