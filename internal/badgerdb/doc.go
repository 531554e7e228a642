// Package badgerdb opens a badger store the way pairsync needs it and is the
// only package that imports badger. The server's ledger, sessions and registry
// and a device's photos all go through it.
//
// It adds to badger what photos need: one writer goroutine with group commit,
// acknowledgement only after fsync and never after a failed one, refusal
// before the disk is full (badger dies of SIGBUS there), repair of what a
// crash leaves behind, segment files for large values, whose space comes back
// when they are deleted, and an error where badger silently returns an empty
// value. It is not a general
// database: one process owns a directory, and all writes are serial.
//
// # The directory
//
//	FORMAT    text, "pairsync-store <version>" and "profile <name>"; read first
//	lock      held (flock) for as long as the store is open
//	ballast   allocated for nothing; deleted when the disk is full
//	*.seg     the values of 4 KiB and more, see segments.go
//	*.mem *.sst *.vlog MANIFEST DISCARD KEYREGISTRY LOCK   badger's own
//
// # The keys
//
// The first byte of a key says whose it is. Users choose theirs among the
// letters; this package takes two:
//
//	0x00  its own bookkeeping
//	'k'   the kv.Store of DB.KV
//
// Everything is safe for concurrent use, except a Tx, which belongs to the
// function it was given to.
package badgerdb
