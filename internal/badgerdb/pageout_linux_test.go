package badgerdb

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMapping(t *testing.T) {
	for line, want := range map[string][2]uintptr{
		"1000-3000 rw-s 00000000 fe:00 1 /x/000001.vlog": {0x1000, 0x3000},
		"3000-1000 rw-s 00000000 fe:00 1 /x/000001.vlog": {},
		"nonsense": {},
		"":         {},
	} {
		from, to, ok := mapping(line)
		if ok != (want[1] > 0) || ok && (from != want[0] || to != want[1]) {
			t.Errorf("%q: %#x to %#x, %v; want %#x", line, from, to, ok, want)
		}
	}
}

// TestPageOut maps a file as badger does; its pages leave, its bytes stay.
func TestPageOut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "000001.vlog")
	const size = 4 << 20
	if err := os.WriteFile(path, []byte(strings.Repeat("x", size)), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	sum := func() (n int) {
		for i := range mem {
			n += int(mem[i])
		}
		return n
	}
	before := sum()
	if err := pageOut(dir); err != nil {
		t.Fatal(err)
	}
	if after := sum(); after != before {
		t.Errorf("sum of the mapped bytes %d, was %d", after, before)
	}
}
