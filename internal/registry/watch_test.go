package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"pairsync/internal/token"

	"github.com/google/go-cmp/cmp"
)

func TestWatch(t *testing.T) {
	r, store := newTest(t)
	told := new(changes)
	stop := r.Watch(func(c Change) {
		// What a watcher is told is on disk and visible.
		if c.Kind == PairCreated {
			if p, ok := r.Pair(c.Pair.ID); !ok || p != c.Pair || len(keysOf(t, store, keyPair+p.ID)) != 1 {
				t.Errorf("told of %+v before it is there", c.Pair)
			}
		}
		told.add(c)
	})
	ctx := t.Context()
	pair := mustPair(t, r, "ann", "bob")
	device := mustDevice(t, r, "ann", "frame")
	_, err := r.RevokeDevice(ctx, device.ID)
	must(t, err)
	_, err = r.RevokeDevice(ctx, device.ID) // nothing new
	must(t, err)
	must(t, r.RevokeToken(ctx, "j", time.Time{}))
	must(t, r.RevokeUser(ctx, "ann", time.Now()))
	must(t, r.SeeUser(ctx, "bob", "Bob", ""))
	_, err = r.RemovePair(ctx, pair.ID)
	must(t, err)
	stop()
	stop()
	mustPair(t, r, "ann", "bob")

	revoked := device
	revoked.Revoked = true
	want := []Change{
		{Kind: PairCreated, Pair: pair},
		{Kind: DeviceAdded, Device: device, User: "ann"},
		{Kind: DeviceRevoked, Device: revoked, User: "ann"},
		{Kind: TokenRevoked, TokenID: "j"},
		{Kind: UserRevoked, User: "ann"},
		{Kind: UserSeen, User: "bob"},
		{Kind: PairRemoved, Pair: pair},
	}
	if diff := cmp.Diff(want, told.all()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	names := make(map[string]bool)
	for _, c := range want {
		names[c.Kind.String()] = true
	}
	if len(names) != len(want) || names[ChangeKind(0).String()] {
		t.Errorf("kinds are called %v", names)
	}
}

func TestWatchStopFromWithin(t *testing.T) {
	r, _ := newTest(t)
	calls := 0
	var stop func()
	stop = r.Watch(func(Change) { calls++; stop() })
	mustPair(t, r, "a", "b")
	mustPair(t, r, "c", "d")
	if calls != 1 {
		t.Errorf("%d calls, want 1", calls)
	}

	var stopSecond func()
	defer r.Watch(func(Change) { stopSecond() })()
	stopSecond = r.Watch(func(c Change) { t.Errorf("told of %s after stop returned", c.Kind) })
	mustPair(t, r, "e", "f")
}

// TestConcurrent has many goroutines make and end pairs of the same few users
// while others read. What the watcher was told, memory and disk agree at the
// end, and nobody was ever in two pairs.
func TestConcurrent(t *testing.T) {
	r, store := newTest(t)
	const goroutines, rounds, users = 100, 4, 12
	inPair := make(map[string]string) // the watcher's own view; calls are serial
	ids := make(map[string]bool)
	defer r.Watch(func(c Change) {
		for _, u := range c.Pair.Users {
			switch c.Kind {
			case PairCreated:
				if other, ok := inPair[u]; ok {
					t.Errorf("user %q got into pair %q while in %q", u, c.Pair.ID, other)
				}
				inPair[u] = c.Pair.ID
			case PairRemoved:
				if inPair[u] != c.Pair.ID {
					t.Errorf("pair %q ended, but user %q was in %q", c.Pair.ID, u, inPair[u])
				}
				delete(inPair, u)
			}
		}
		if c.Kind == PairCreated {
			if ids[c.Pair.ID] {
				t.Errorf("pair id %q was used twice", c.Pair.ID)
			}
			ids[c.Pair.ID] = true
		}
	})()
	wait := readAll(r)
	var wg sync.WaitGroup
	for g := range goroutines {
		random := rand.New(rand.NewPCG(1, uint64(g)))
		wg.Go(func() {
			for range rounds {
				churn(t, r, fmt.Sprint("u", random.IntN(users)), fmt.Sprint("u", random.IntN(users)))
			}
		})
	}
	wg.Wait()
	wait()

	reopened := openTest(t, store)
	if diff := cmp.Diff(r.Pairs(), reopened.Pairs()); diff != "" {
		t.Errorf("memory and disk differ (-memory +disk):\n%s", diff)
	}
	if diff := cmp.Diff(r.RemovedPairs(), reopened.RemovedPairs()); diff != "" {
		t.Errorf("ended pairs in memory and on disk differ (-memory +disk):\n%s", diff)
	}
	got := make(map[string]string)
	for _, p := range r.Pairs() {
		got[p.Users[0]], got[p.Users[1]] = p.ID, p.ID
	}
	if diff := cmp.Diff(inPair, got); diff != "" {
		t.Errorf("watcher and memory differ (-watcher +memory):\n%s", diff)
	}
	if len(ids) < users {
		t.Errorf("only %d pairs were ever made", len(ids))
	}
}

func churn(t *testing.T, r *Registry, a, b string) {
	ctx := context.WithoutCancel(t.Context())
	p, err := r.CreatePair(ctx, a, b)
	switch {
	case err == nil:
		if partner, ok := p.Partner(a); !ok || partner != b {
			t.Errorf("pair %+v of %q and %q", p, a, b)
		}
	case errors.Is(err, ErrPaired):
		if p, ok := r.PairOf(a); ok {
			if _, err := r.RemovePair(ctx, p.ID); err != nil && !errors.Is(err, ErrNotFound) {
				t.Errorf("RemovePair: %v", err)
			}
		}
	case !errors.Is(err, ErrSameUser):
		t.Errorf("CreatePair: %v", err)
	}
	for name, err := range map[string]error{
		"SeeUser":     r.SeeUser(ctx, a, "name of "+b, b+"@example.com"),
		"RevokeToken": r.RevokeToken(ctx, p.ID+a, time.Time{}),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if d, err := r.AddDevice(ctx, a, "frame"); err != nil && !errors.Is(err, ErrTooManyDevices) {
		t.Errorf("AddDevice: %v", err)
	} else if _, err := r.RevokeDevice(ctx, d.ID); err != nil && !errors.Is(err, ErrNotFound) {
		t.Errorf("RevokeDevice: %v", err)
	}
	if p, ok := r.PairOf(a); ok {
		partner, _ := p.Partner(a)
		if _, in := p.Partner(partner); !in || partner == a {
			t.Errorf("PairOf(%q) = %+v", a, p)
		}
	}
}

// readAll calls each reading method many times, one goroutine each, so that
// the race detector sees it beside the writes; wait returns at the end.
func readAll(r *Registry) (wait func()) {
	var wg sync.WaitGroup
	for _, read := range []func(){
		func() { r.Revoked(token.Principal{User: "u1", Role: token.RoleDevice, ID: "j", Device: "d"}) },
		func() { r.Name("u1") },
		func() { r.Email("u2") },
		func() { r.PairOf("u3") },
		func() { r.Pair("p") },
		func() { r.Pairs() },
		func() { r.Device("d") },
		func() { r.Devices() },
		func() { r.Watch(func(Change) {})() },
	} {
		wg.Go(func() {
			for range 300 {
				read()
				runtime.Gosched() // let a writer in between
			}
		})
	}
	return wg.Wait
}
