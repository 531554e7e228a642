//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"pairsync/e2e/load"
)

// photoBytes is the payload of a photo in every row, and of the disk's floor.
const photoBytes = 200_000

// figure is one measured number, with what it cost where that is known.
type figure struct {
	value float64
	used  usage
	count int // messages or connections that used was for
}

// rate is a figure per second.
func rate(count int, u usage) figure {
	return figure{float64(count) / u.took.Seconds(), u, count}
}

// figures are what one run of a row has measured, by the lines' keys.
type figures map[string]figure

// row is one thing to do to a fresh server.
type row struct {
	key string
	run func(ctx context.Context, s server) (figures, error)
	// floor says that the row's messages are the size of the disk's floor.
	floor bool
	// own, where set, is for pairsync alone, which it starts itself.
	own func(ctx context.Context, start func() (*pairsync, error)) (figures, error)
}

var rows = []row{
	{key: "live-200k", floor: true, run: live(8, 10, 4_000, photoBytes)},
	{key: "live-1k", run: live(50, 20, 40_000, 1_000)},
	{key: "fill", floor: true, run: fillAndDrain(8, 10, 2_000)},
	{key: "queue", own: queue(8, 10, 10_000)},
	{key: "idle", run: idle(2_000, 5*time.Second)},
	{key: "storm", run: storm(1_000, 8, 8_000)},
}

// live is messages from one user of each pair to the other, who is there.
func live(pairs, window, count, bytes int) func(context.Context, server) (figures, error) {
	return func(ctx context.Context, s server) (figures, error) {
		w, err := newWorld(ctx, s, pairs)
		if err != nil {
			return nil, err
		}
		if err := w.connectReceivers(ctx, false); err != nil {
			return nil, err
		}
		if err := w.connectSenders(ctx); err != nil {
			return nil, err
		}
		u, err := measure(s.pid(), func() error {
			var g errgroup.Group
			w.receive(&g, count/pairs)
			w.publish(&g, 0, count/pairs, window, bytes)
			return g.Wait()
		})
		return figures{"rate": rate(count, u)}, err
	}
}

// fillAndDrain is messages to users who are away, and their return.
func fillAndDrain(pairs, window, count int) func(context.Context, server) (figures, error) {
	return func(ctx context.Context, s server) (figures, error) {
		w, err := newWorld(ctx, s, pairs)
		if err != nil {
			return nil, err
		}
		fill, err := w.fill(ctx, window, count)
		if err != nil {
			return nil, err
		}
		m, err := memoryOf(s.pid())
		if err != nil {
			return nil, err
		}
		drain, err := measure(s.pid(), func() error {
			if err := w.connectReceivers(ctx, true); err != nil {
				return err
			}
			var g errgroup.Group
			w.receive(&g, count/pairs)
			return g.Wait()
		})
		return figures{
			"rate": rate(count, fill), "drain": rate(count, drain),
			"rss": {value: float64(m.rss)}, "peak": {value: float64(m.peak)}, "anon": {value: float64(m.anon)},
		}, err
	}
}

// queue is a long queue, and how soon the server is back after a stop in order
// and after kill -9 while more arrives.
func queue(pairs, window, count int) func(context.Context, func() (*pairsync, error)) (figures, error) {
	return func(ctx context.Context, start func() (*pairsync, error)) (figures, error) {
		s, err := start()
		if err != nil {
			return nil, err
		}
		defer func() { s.stop(syscall.SIGKILL) }()
		w, err := newWorld(ctx, s, pairs)
		if err != nil {
			return nil, err
		}
		fill, err := w.fill(ctx, window, count)
		if err != nil {
			return nil, err
		}
		m, err := memoryOf(s.pid())
		if err != nil {
			return nil, err
		}
		w.close()
		out := figures{"rate": rate(count, fill), "rss": {value: float64(m.rss)}, "peak": {value: float64(m.peak)}, "anon": {value: float64(m.anon)}}
		var peak int64
		again := func(key string) error {
			begin := time.Now()
			next, err := start()
			if err != nil {
				return err
			}
			out[key] = figure{value: time.Since(begin).Seconds()}
			s, w.server = next, next
			m, err := memoryOf(s.pid())
			peak = max(peak, m.peak)
			return err
		}
		if err := s.stop(syscall.SIGTERM); err != nil {
			return nil, err
		}
		if err := again("term"); err != nil {
			return nil, err
		}
		acked, err := w.killWhilePublishing(ctx, s, count/pairs, window)
		if err != nil {
			return nil, err
		}
		if err := again("kill"); err != nil {
			return nil, err
		}
		out["restart-peak"] = figure{value: float64(peak)}
		return out, s.checkBacklog(ctx, count+acked)
	}
}

// checkBacklog makes sure that what was measured is what was asked for.
func (s *pairsync) checkBacklog(ctx context.Context, atLeast int) error {
	list, err := s.admin.Sessions(ctx)
	waiting := 0
	for _, x := range list {
		if x.ID == x.User+"/"+receiverID {
			waiting += x.Backlog
		}
	}
	if err == nil && waiting < atLeast {
		err = fmt.Errorf("%d messages are queued after the restarts, and %d were acknowledged", waiting, atLeast)
	}
	return err
}

// idle is durable connections, each with a subscription, that only wait.
// Before its memory is looked at, the server may settle.
func idle(count int, settle time.Duration) func(context.Context, server) (figures, error) {
	return func(ctx context.Context, s server) (figures, error) {
		w, err := newWorld(ctx, s, count)
		if err != nil {
			return nil, err
		}
		time.Sleep(settle)
		before, err := memoryOf(s.pid())
		if err != nil {
			return nil, err
		}
		if err := w.connectReceivers(ctx, false); err != nil {
			return nil, err
		}
		time.Sleep(settle)
		after, err := memoryOf(s.pid())
		return figures{"growth": {value: float64(after.rss-before.rss) / float64(count)}}, err
	}
}

// storm is clients that connect, are let in and go, some at a time.
func storm(pairs, parallel, count int) func(context.Context, server) (figures, error) {
	return func(ctx context.Context, s server) (figures, error) {
		w, err := newWorld(ctx, s, pairs)
		if err != nil {
			return nil, err
		}
		logins := make([]load.Config, count)
		for i := range logins {
			p := w.pairs[i%pairs]
			if logins[i], err = s.login([]string{p.from, p.to}[i/pairs%2]); err != nil {
				return nil, err
			}
			logins[i].ClientID = fmt.Sprintf("storm-%d", i)
		}
		u, err := measure(s.pid(), func() error {
			g, ctx := errgroup.WithContext(ctx)
			for from := range parallel {
				g.Go(func() error {
					for i := from; i < count; i += parallel {
						c, err := load.Dial(ctx, logins[i])
						if err != nil {
							return err
						}
						if err := c.Close(); err != nil {
							return err
						}
					}
					return nil
				})
			}
			return g.Wait()
		})
		return figures{"rate": rate(count, u)}, err
	}
}

// photo is a payload that does not compress.
func photo(bytes int) []byte {
	b := make([]byte, bytes)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // it never fails
	return b
}
