package engineio

import "sync"

const (
	// pooledBytes is the size from which incoming messages use pooled buffers:
	// below it an allocation of the exact size is cheaper.
	pooledBytes = 32 << 10
	// firstBytes is what a frame's announced length is trusted for before any
	// of it has arrived; a client that announces and sends nothing costs no more.
	firstBytes = 64 << 10
	// trustedBytes is how far the first doubling goes once firstBytes arrived.
	trustedBytes = 1 << 20
)

// A Buffer is one incoming message. B belongs to the receiver; Release gives
// the memory back for the next message and may be left out.
type Buffer struct {
	B    []byte
	full []byte // the whole pooled slice, nil when not pooled
	pool *bufferPool
}

// Release ends the use of B and of every slice of it.
func (b Buffer) Release() {
	if b.pool != nil {
		b.pool.put(b.full)
	}
}

// bufferPool keeps message buffers of similar sizes; the garbage collector
// empties it.
type bufferPool struct{ pool sync.Pool }

func newBufferPool() *bufferPool { return &bufferPool{} }

// get returns a slice of length n, pooled when that pays.
func (p *bufferPool) get(n int) Buffer {
	if n < pooledBytes {
		return Buffer{B: make([]byte, n)}
	}
	if held, ok := p.pool.Get().(*[]byte); ok && cap(*held) >= n && cap(*held) <= 8*n {
		full := (*held)[:cap(*held)]
		return Buffer{B: full[:n], full: full, pool: p}
	}
	const round = 64 << 10
	full := make([]byte, (n+round-1)/round*round)
	return Buffer{B: full[:n], full: full, pool: p}
}

func (p *bufferPool) put(full []byte) { p.pool.Put(&full) }

// grow returns a buffer of length n that starts with the used bytes of b.
func (p *bufferPool) grow(b Buffer, used, n int) Buffer {
	if n <= cap(b.B) {
		b.B = b.B[:n]
		return b
	}
	bigger := p.get(n)
	copy(bigger.B, b.B[:used])
	b.Release()
	return bigger
}
