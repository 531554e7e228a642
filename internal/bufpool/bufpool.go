// Package bufpool lends byte slices of a photo's size, so that one that comes
// in or goes out costs neither an allocation, which the runtime fills with
// zeros first, nor a collection.
//
// Giving a slice back is never necessary: what is not given back is garbage
// like any other. It is not for small values. Everything is safe for
// concurrent use.
package bufpool

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// The lengths that are pooled, as powers of two: 4 KiB to 16 MiB.
const (
	least = 12
	most  = 24
)

var (
	pools  [most - least + 1]sync.Pool
	poison atomic.Bool
)

// Get returns a slice of n bytes with any contents, which the caller owns.
func Get(n int) []byte {
	class := max(bits.Len(uint(max(n, 1)-1)), least)
	if class > most {
		return make([]byte, n)
	}
	if b, ok := pools[class-least].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, 1<<class)
}

// Put gives a slice of Get back; nobody may use it any more, nor another slice
// of the same memory. One that is not of Get, or was cut at its beginning, is
// left to the garbage collector.
func Put(b []byte) {
	n := cap(b)
	if n&(n-1) != 0 || n < 1<<least || n > 1<<most {
		return
	}
	b = b[:n]
	if poison.Load() {
		for i := range b {
			b[i] = 0xDB
		}
	}
	pools[bits.Len(uint(n))-1-least].Put(&b)
}

// Poison makes Put overwrite what it is given, so that a test sees who still
// uses it.
func Poison() { poison.Store(true) }
