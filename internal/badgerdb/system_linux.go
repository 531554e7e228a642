package badgerdb

import (
	"errors"
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
	return allocated(f) >= n
}

// allocated returns the bytes that a file takes on disk, or 0 where that
// cannot be told.
func allocated(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return onDisk(info)
}

// onDisk returns the bytes that a file takes on disk.
func onDisk(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// punchHole gives the blocks of a range of f back and fills what shares a
// block with others with zeros. It fails with errors.ErrUnsupported where the
// file system cannot do that.
func punchHole(f *os.File, offset, length int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errors.ErrUnsupported
	}
	return err
}

// syncData makes the bytes of f durable, and as much of its inode as it takes
// to read them.
func syncData(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
