package registry

import (
	"slices"
	"sync"
	"testing"

	"pairsync/internal/kv"
	"pairsync/internal/kv/kvtest"
)

func openTest(t *testing.T, store kv.Store) *Registry {
	t.Helper()
	r, err := Open(t.Context(), store)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return r
}

func newTest(t *testing.T) (*Registry, *kvtest.Memory) {
	t.Helper()
	store := new(kvtest.Memory)
	return openTest(t, store), store
}

func mustPair(t *testing.T, r *Registry, a, b string) Pair {
	t.Helper()
	p, err := r.CreatePair(t.Context(), a, b)
	if err != nil {
		t.Fatalf("CreatePair(%q, %q): %v", a, b, err)
	}
	return p
}

func mustDevice(t *testing.T, r *Registry, user, name string) Device {
	t.Helper()
	d, err := r.AddDevice(t.Context(), user, name)
	if err != nil {
		t.Fatalf("AddDevice(%q, %q): %v", user, name, err)
	}
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// changes collects what a watcher is told.
type changes struct {
	mu   sync.Mutex // guards list
	list []Change
}

func (c *changes) add(change Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, change)
}

func (c *changes) all() []Change {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.list)
}

func keysOf(t *testing.T, store kv.Store, prefix string) []string {
	t.Helper()
	var keys []string
	must(t, store.Scan(t.Context(), prefix, func(k string, _ []byte) error {
		keys = append(keys, k)
		return nil
	}))
	return keys
}
