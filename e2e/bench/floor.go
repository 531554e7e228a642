//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// floorWrites is how many photos are written to find the disk's floor.
const floorWrites = 1_000

// diskFloor returns how many photos per second can be written to a file in
// dir, one after the other, each on disk before the next.
func diskFloor(dir string) (perSecond float64, err error) {
	path := filepath.Join(dir, "floor")
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	b := photo(photoBytes)
	syscall.Sync()
	start := time.Now()
	for range floorWrites {
		if _, err := f.Write(b); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, fmt.Errorf("fdatasync: %w", err)
		}
	}
	return floorWrites / time.Since(start).Seconds(), nil
}

// onDisk refuses a directory that is kept in memory: nothing synced there is
// on a disk.
func onDisk(dir string) error {
	const tmpfs, ramfs = 0x01021994, 0x858458f6
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if t := uint32(fs.Type); t == tmpfs || t == ramfs {
		return fmt.Errorf("%s is in memory (tmpfs): give a directory on a disk with -out", dir)
	}
	return nil
}
