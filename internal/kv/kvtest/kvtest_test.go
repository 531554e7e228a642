package kvtest_test

import (
	"errors"
	"testing"

	"pairsync/internal/kv"
	"pairsync/internal/kv/kvtest"
)

func TestMemory(t *testing.T) {
	kvtest.Run(t, func(*testing.T) kv.Store { return new(kvtest.Memory) })
}

func TestMemoryBreak(t *testing.T) {
	m, broken := new(kvtest.Memory), errors.New("disk on fire")
	m.Break(broken)
	if err := m.Apply(t.Context(), kv.Op{Key: "k"}); !errors.Is(err, broken) {
		t.Errorf("Apply: %v, want %v", err, broken)
	}
	if _, err := m.Get(t.Context(), "k"); !errors.Is(err, broken) {
		t.Errorf("Get: %v, want %v", err, broken)
	}
	if err := m.Scan(t.Context(), "", nil); !errors.Is(err, broken) {
		t.Errorf("Scan: %v, want %v", err, broken)
	}
	m.Break(nil)
	if _, err := m.Get(t.Context(), "k"); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("Get once whole: %v, want %v: the failed Apply must leave nothing", err, kv.ErrNotFound)
	}
}
