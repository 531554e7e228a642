package badgerdb

import "errors"

var (
	// ErrClosed is returned after Close, and by jobs that Close found queued
	// behind a fault.
	ErrClosed = errors.New("store is closed")
	// ErrUnhealthy says that a commit or fsync failed. What was answered
	// before is safe; nothing is acknowledged any more until the store is
	// opened again.
	ErrUnhealthy = errors.New("store is unhealthy")
	// ErrFull says that the disk has too little room. Nothing was written;
	// reads and Prune go on.
	ErrFull = errors.New("storage full")
	// ErrTooLarge says that a key, a value or all writes of one transaction
	// exceed what the profile can hold. Permanent.
	ErrTooLarge = errors.New("too large for the store")
	// ErrDamaged says that a value was stored but cannot be read back.
	ErrDamaged = errors.New("damaged value")
	// ErrReadOnly is returned by the writing methods of a View's Tx.
	ErrReadOnly = errors.New("write in a read-only view")
	// ErrLocked says that another process, or another Open, has the directory.
	ErrLocked = errors.New("store is in use")
	// ErrVersion says that the directory was written by a newer pairsync, by
	// another profile, or by something else. It is left untouched.
	ErrVersion = errors.New("store has another format")
	// ErrCorrupt says that badger cannot open the directory even after
	// repair. A device calls SetAside and starts empty; a server stops.
	ErrCorrupt = errors.New("store cannot be opened")
)
