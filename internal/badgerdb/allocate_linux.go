package badgerdb

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// allocate reserves n bytes for an empty file without writing them, and
// reports whether the file system really did.
func allocate(f *os.File, n int64) bool {
	if err := unix.Fallocate(int(f.Fd()), 0, 0, n); err != nil {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Blocks*512 >= n
}
