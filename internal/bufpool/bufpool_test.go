package bufpool

import "testing"

func TestGet(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 200 << 10, 1 << 24, 1<<24 + 1} {
		b := Get(n)
		if len(b) != n {
			t.Errorf("Get(%d) has %d bytes", n, len(b))
		}
		Put(b)
		if b := Get(n); len(b) != n {
			t.Errorf("Get(%d) after Put has %d bytes", n, len(b))
		}
	}
}

// TestPutForeign: what is not from here must not come back shorter than asked
// for.
func TestPutForeign(t *testing.T) {
	for _, n := range []int{0, 1, 100, 5000, 6000, 1 << 25} {
		Put(make([]byte, n))
		Put(Get(n)[n/2:])
	}
	for range 100 {
		if b := Get(5000); cap(b) < 5000 {
			t.Fatalf("Get(5000) has room for %d", cap(b))
		}
	}
}

func TestPoison(t *testing.T) {
	Poison()
	defer poison.Store(false)
	b := Get(5000)
	Put(b)
	if b[0] != 0xDB || b[4999] != 0xDB {
		t.Error("what was given back is as it was")
	}
}

func TestNoAllocation(t *testing.T) {
	Put(Get(200 << 10))
	if bytes := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			Put(Get(200 << 10))
		}
	}).AllocedBytesPerOp(); bytes > 1<<10 {
		t.Errorf("%d bytes allocated for each Get", bytes)
	}
}
