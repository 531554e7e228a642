package badgerdb

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pageOut takes the pages of dir's value-log files out of this process. Every
// mapped page that was touched counts as resident, so that without it a
// program that moved 2 GB shows 2 GB.
//
// MADV_PAGEOUT, not MADV_DONTNEED: a file may be unmapped and its addresses
// reused for the heap while we walk the list; paging out anything is harmless.
func pageOut(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasSuffix(line, ".vlog") || !strings.Contains(line, dir) {
			continue
		}
		from, to, ok := mapping(line)
		if !ok {
			return fmt.Errorf("line of /proc/self/maps %q: unknown form", line)
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_PAGEOUT); errno == unix.EINVAL {
			return fmt.Errorf("MADV_PAGEOUT: %w (it needs Linux 5.4)", errno)
		}
	}
	return lines.Err()
}

// mapping reads the addresses at the start of a line of /proc/self/maps.
func mapping(line string) (from, to uintptr, ok bool) {
	addresses, _, _ := strings.Cut(line, " ")
	a, b, _ := strings.Cut(addresses, "-")
	f, err1 := strconv.ParseUint(a, 16, strconv.IntSize)
	t, err2 := strconv.ParseUint(b, 16, strconv.IntSize)
	return uintptr(f), uintptr(t), err1 == nil && err2 == nil && t > f
}
