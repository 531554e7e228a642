//go:build !linux

package badgerdb

import (
	"errors"
	"os"
)

func allocate(*os.File, int64) bool { return false }

func allocated(*os.File) int64 { return 0 }

func onDisk(info os.FileInfo) int64 { return info.Size() }

func punchHole(*os.File, int64, int64) error { return errors.ErrUnsupported }

func syncData(f *os.File) error { return f.Sync() }
