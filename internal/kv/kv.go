// Package kv is the one small key-value interface that sessions, the registry
// and revocations are kept behind, beside the ledger. It is not a general
// database: values are small (KiB), and one process owns the keys, so a caller
// that reads, decides and applies serialises that itself.
//
// The embedded implementation is internal/badgerdb.
package kv

import (
	"context"
	"errors"
)

// ErrNotFound is returned by Get for a key that is not there.
var ErrNotFound = errors.New("key not found")

// Op is one change: a put, or a delete when Delete is set. The store does not
// keep Value.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Store keeps small values by key. It is safe for concurrent use.
type Store interface {
	// Get returns a copy of the value; the caller owns it.
	Get(ctx context.Context, key string) ([]byte, error)
	// Scan calls fn for every key with the prefix, in key order, over one
	// consistent view; fn owns value. An error from fn ends the scan and is
	// returned as it is.
	Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error
	// Apply makes all changes or none; they are on disk when it returns nil.
	Apply(ctx context.Context, ops ...Op) error
}
