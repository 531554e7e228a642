//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sync/errgroup"

	"pairsync/e2e/load"
)

// receiverID is the client id of whoever takes the messages; a user's on
// pairsync, everybody's with the user's name on mosquitto.
const receiverID = "frame"

// sessionExpiry of durable sessions, in seconds.
const sessionExpiry = 24 * 3600

// world is a server with its pairs and their clients.
type world struct {
	server
	pairs              []pair
	senders, receivers []*load.Client // one of each pair, once connected
}

func newWorld(ctx context.Context, s server, pairs int) (*world, error) {
	list, err := s.pairs(ctx, pairs)
	return &world{server: s, pairs: list}, err
}

// close ends all connections; sessions with an expiry stay.
func (w *world) close() {
	for _, c := range slices.Concat(w.senders, w.receivers) {
		_ = c.Close() // the server may be gone
	}
	w.senders, w.receivers = nil, nil
}

func (w *world) connect(ctx context.Context, user, id string, expiry uint32) (*load.Client, error) {
	cfg, err := w.login(user)
	if err != nil {
		return nil, err
	}
	cfg.ClientID, cfg.Expiry = id, expiry
	if cfg.User == "" { // nothing but the client id tells them apart
		cfg.ClientID = user + "-" + id
	}
	return load.Dial(ctx, cfg)
}

// connectReceivers connects a durable session of each pair's second user. One
// that is back must be known, and is not subscribed again.
func (w *world) connectReceivers(ctx context.Context, back bool) error {
	for _, p := range w.pairs {
		c, err := w.connect(ctx, p.to, receiverID, sessionExpiry)
		if err != nil {
			return err
		}
		w.receivers = append(w.receivers, c)
		if c.Resumed() != back {
			return fmt.Errorf("the session of %s: the server resumed it: %v, want %v", p.to, c.Resumed(), back)
		}
		if back {
			continue
		}
		if err := c.Subscribe(p.filter()); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) connectSenders(ctx context.Context) error {
	for _, p := range w.pairs {
		c, err := w.connect(ctx, p.from, "phone", 0)
		if err != nil {
			return err
		}
		w.senders = append(w.senders, c)
	}
	return nil
}

// receive lets each receiver take count messages.
func (w *world) receive(g *errgroup.Group, count int) {
	for _, c := range w.receivers {
		g.Go(func() error { return c.Receive(int64(count)) })
	}
}

// publish lets each sender publish count messages, numbered from first.
func (w *world) publish(g *errgroup.Group, first, count, window, bytes int) {
	payload := photo(bytes)
	for i, c := range w.senders {
		p := load.Publishing{Topic: w.pairs[i].prefix(), First: first, Count: count, Window: window, Payload: payload}
		g.Go(func() error { return c.Publish(p) })
	}
}

// fill gives each pair's second user a session, and publishes count messages
// in all while they are away.
func (w *world) fill(ctx context.Context, window, count int) (usage, error) {
	if err := w.connectReceivers(ctx, false); err != nil {
		return usage{}, err
	}
	w.close()
	if err := w.connectSenders(ctx); err != nil {
		return usage{}, err
	}
	return measure(w.pid(), func() error {
		var g errgroup.Group
		w.publish(&g, 0, count/len(w.pairs), window, photoBytes)
		return g.Wait()
	})
}

// killWhilePublishing publishes more, numbered from first, and ends the server
// with kill -9 in the middle of it. It returns how many were acknowledged.
func (w *world) killWhilePublishing(ctx context.Context, s *pairsync, first, window int) (int, error) {
	const each, before = 1_000, 200 // before: acknowledged in all when it is killed
	if err := w.connectSenders(ctx); err != nil {
		return 0, err
	}
	var g errgroup.Group
	w.publish(&g, first, each, window, photoBytes)
	acked := func() (n int) {
		for _, c := range w.senders {
			n += int(c.Acked())
		}
		return n
	}
	if err := poll(ctx, func() bool { return acked() >= before || s.ended() }); err != nil {
		return 0, err
	}
	killed := s.stop(syscall.SIGKILL)
	if g.Wait() == nil {
		return 0, errors.Join(killed, errors.New("everything was published before the server was killed"))
	}
	n := acked()
	w.close()
	return n, killed
}
