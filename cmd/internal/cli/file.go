package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile writes to path what produce returns, whole or not at all: a file
// that was there stays as it is when anything fails. That the directory can be
// written is known before produce is called.
func WriteFile(path string, mode fs.FileMode, produce func() ([]byte, error)) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return UsageError(fmt.Errorf("write %s: it is not a file", path))
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close() // a second Close does no harm
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	b, err := produce()
	if err != nil {
		return err
	}
	if err := errors.Join(write(f, b, mode), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func write(f *os.File, b []byte, mode fs.FileMode) error {
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}
