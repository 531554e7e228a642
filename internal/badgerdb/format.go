package badgerdb

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// formatVersion is the version of the directory's layout. It changes when an
// older program could misread or damage what a newer one wrote.
const formatVersion = 2

// checkFormat reads FORMAT, before badger touches anything, and writes it in
// an empty directory.
func checkFormat(dir string, p Profile) error {
	path := filepath.Join(dir, "FORMAT")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, "MANIFEST")); err == nil {
			return fmt.Errorf("%w: there is a MANIFEST but no FORMAT; it was not made by pairsync", ErrVersion)
		}
		return writeSynced(path, fmt.Sprintf("pairsync-store %d\nprofile %s\n", formatVersion, p))
	}
	if err != nil {
		return err
	}
	var version int
	var profile string
	if _, err := fmt.Sscanf(string(text), "pairsync-store %d\nprofile %s\n", &version, &profile); err != nil {
		return fmt.Errorf("%w: FORMAT holds %q", ErrVersion, clip(strings.TrimSpace(string(text))))
	}
	if version > formatVersion {
		return fmt.Errorf("%w: it has version %d and this program knows %d; use a newer pairsync", ErrVersion, version, formatVersion)
	}
	if version < formatVersion {
		return fmt.Errorf("%w: it has version %d, of a pairsync that was never released; move %q away to start empty", ErrVersion, version, dir)
	}
	if profile != p.String() {
		return fmt.Errorf("%w: it was made with the profile %q, not %q", ErrVersion, profile, p)
	}
	return nil
}

// writeSynced writes a small file so that a crash leaves it whole or absent.
func writeSynced(path, text string) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write %q: %w", tmp, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
