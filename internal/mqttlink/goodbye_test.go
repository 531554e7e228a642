package mqttlink

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// A server that never reads and never closes cannot hold Run.
func TestGoodbyeIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		l, err := New(Config{Dial: s.dial}, quiet())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		s.accept(accepted)
		done := publishing(t.Context(), l, string(make([]byte, 1<<20))) // stuck in the full link
		start := time.Now()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if waited := time.Since(start); waited > goodbyeTimeout {
			t.Errorf("Run took %v to end", waited)
		}
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("Publish: %v, want ErrClosed", err)
		}
	})
}

// Nor can one that reads and stays.
func TestGoodbyeToAServerThatStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		l, err := New(Config{Dial: s.dial}, quiet())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		p, _ := s.accept(accepted)
		synctest.Wait()
		start := time.Now()
		cancel()
		if d, ok := p.read().(*packets.Disconnect); !ok || d.ReasonCode != 0 {
			t.Errorf("the last packet is %v", d)
		}
		if err := <-ended; err != nil || time.Since(start) > goodbyeTimeout {
			t.Errorf("Run took %v to end: %v", time.Since(start), err)
		}
	})
}
