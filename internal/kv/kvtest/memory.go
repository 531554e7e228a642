// Package kvtest helps to test users and implementations of kv.Store: Memory
// is a store that behaves, and can be told to fail; Run is the suite that
// every implementation passes.
package kvtest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"pairsync/internal/kv"
)

// Memory is a kv.Store in memory. The zero value is empty and ready; it is
// safe for concurrent use. What was applied "survives" as long as the value.
type Memory struct {
	mu     sync.RWMutex // guards the fields below
	values map[string][]byte
	broken error
}

var _ kv.Store = (*Memory)(nil)

// Break makes every later call fail with err and change nothing, until
// Break(nil).
func (m *Memory) Break(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
}

// Get implements kv.Store.
func (m *Memory) Get(ctx context.Context, key string) ([]byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.broken != nil {
		return nil, m.broken
	}
	v, ok := m.values[key]
	if !ok {
		return nil, kv.ErrNotFound
	}
	return slices.Clone(v), ctx.Err()
}

// Scan implements kv.Store. fn may use the store.
func (m *Memory) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	m.mu.RLock()
	view, broken := maps.Clone(m.values), m.broken // values are never changed in place
	m.mu.RUnlock()
	if broken != nil {
		return broken
	}
	for _, key := range slices.Sorted(maps.Keys(view)) {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(key, slices.Clone(view[key])); err != nil {
			return err
		}
	}
	return nil
}

// Apply implements kv.Store.
func (m *Memory) Apply(ctx context.Context, ops ...kv.Op) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return m.broken
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.values == nil {
		m.values = make(map[string][]byte)
	}
	for _, op := range ops {
		if op.Delete {
			delete(m.values, op.Key)
			continue
		}
		m.values[op.Key] = append([]byte{}, op.Value...)
	}
	return nil
}
