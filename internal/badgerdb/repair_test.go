package badgerdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// crashed returns a copy of a store as kill -9 leaves it: taken while it was
// open and idle, with n values acknowledged.
func crashed(t *testing.T, n int) string {
	t.Helper()
	from := t.TempDir()
	db := openTest(t, from, Device)
	for i := range n {
		key, value := crashEntry(i)
		if err := db.Update(t.Context(), len(value), set(key, value)); err != nil {
			t.Fatal(err)
		}
	}
	to := copyStore(t, from)
	closeTest(t, db)
	return to
}

// copyStore returns a copy of a store's files as they are.
func copyStore(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	files, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Name() == "lock" || f.Name() == "LOCK" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(from, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, f.Name()), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// crashEntry alternates small values with large ones.
func crashEntry(i int) (string, []byte) {
	n := 100
	if i%2 == 0 {
		n = 50_000
	}
	return fmt.Sprintf("x%03d", i), bytes.Repeat([]byte{byte(i + 1)}, n)
}

func checkCrashed(t *testing.T, dir string, n int) {
	t.Helper()
	db, err := Open(dir, Device, quiet)
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	defer closeTest(t, db)
	for i := range n {
		key, want := crashEntry(i)
		if got, err := db.get(key); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want %d", key, len(got), err, len(want))
		}
	}
	if err := db.Update(t.Context(), 0, set("after", make([]byte, 60_000))); err != nil {
		t.Errorf("update after repair: %v", err)
	}
}

func last(t *testing.T, dir, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no %s in %s (%v)", pattern, dir, err)
	}
	return files[len(files)-1]
}

// TestOpenAfterCrash damages what follows the last entry of each log in the
// ways a crash can; everything acknowledged must still be there.
func TestOpenAfterCrash(t *testing.T) {
	const n = 20
	huge := binary.AppendUvarint([]byte{0x40, 0}, 20)
	huge = binary.AppendUvarint(huge, 1<<32-30)
	huge = append(huge, 0, 'k')
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		for _, tt := range []struct {
			name   string
			damage func(t *testing.T, path string, end int64)
		}{
			{"no damage", func(*testing.T, string, int64) {}},
			{"0xFF up to the end", func(t *testing.T, path string, end int64) {
				overwrite(t, path, end, bytes.Repeat([]byte{0xFF}, 10_000))
			}},
			{"a header with a huge length", func(t *testing.T, path string, end int64) { overwrite(t, path, end, huge) }},
			{"half an entry", func(t *testing.T, path string, end int64) {
				whole := logEntry("torn", bytes.Repeat([]byte("t"), 5000))
				overwrite(t, path, end, whole[:3000])
				truncate(t, path, end+3000)
			}},
			{"an entry with a wrong checksum", func(t *testing.T, path string, end int64) {
				whole := logEntry("torn", []byte("value"))
				whole[len(whole)-1] ^= 1
				overwrite(t, path, end, whole)
			}},
			{"cut off", truncate},
			{"cut off inside a header", func(t *testing.T, path string, end int64) {
				overwrite(t, path, end, []byte{0x40})
				truncate(t, path, end+1)
			}},
		} {
			t.Run(pattern+" "+tt.name, func(t *testing.T) {
				dir := crashed(t, n)
				path := last(t, dir, pattern)
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				info, _ := f.Stat()
				end, clean, err := scanLog(f, info.Size())
				if err != nil || !clean || end <= logHeader && pattern == "*.mem" {
					t.Fatalf("scan of %s: end %d, clean %v, %v", path, end, clean, err)
				}
				f.Close()
				tt.damage(t, path, end)
				checkCrashed(t, dir, n)
			})
		}
	}
}

// TestEmptyLogs leaves the zero-byte files of a kill during collection.
func TestEmptyLogs(t *testing.T) {
	dir := crashed(t, 4)
	for _, name := range []string{"00099.mem", "000001.vlog.tmp", "000099.vlog"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "00100.mem"), make([]byte, 7), 0o600); err != nil {
		t.Fatal(err)
	}
	checkCrashed(t, dir, 4)
}

func TestSetAside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	closeTest(t, openTest(t, dir, Device))
	if err := os.WriteFile(filepath.Join(dir, "MANIFEST"), []byte("not a manifest"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Device, quiet); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("open: %v, want ErrCorrupt", err)
	}
	aside, err := SetAside(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(aside, "MANIFEST")); err != nil {
		t.Errorf("the old store is gone: %v", err)
	}
	openTest(t, dir, Device)
}

// logEntry returns an entry as badger writes it.
func logEntry(key string, value []byte) []byte {
	b := []byte{0, 0}
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = binary.AppendUvarint(b, uint64(len(value)))
	b = append(b, 0)
	b = append(append(b, key...), value...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func overwrite(t *testing.T, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// FuzzScanLog: a log of good entries followed by anything is good exactly as
// far as its entries go, or further where what follows happens to be entries.
func FuzzScanLog(f *testing.F) {
	f.Add(uint8(0), []byte{})
	f.Add(uint8(2), []byte{0, 0, 0})
	f.Add(uint8(3), bytes.Repeat([]byte{0xFF}, 40))
	f.Add(uint8(1), logEntry("k", []byte("v")))
	f.Add(uint8(1), []byte{0x40, 0, 5, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0})
	f.Fuzz(func(t *testing.T, n uint8, tail []byte) {
		b := make([]byte, logHeader)
		for i := range n % 8 {
			b = append(b, logEntry(fmt.Sprint("key", i), bytes.Repeat([]byte("v"), int(i)*100))...)
		}
		entries := int64(len(b))
		b = append(b, tail...)
		good, clean, err := scanLog(bytes.NewReader(b), int64(len(b)))
		if err != nil || good < entries || good > int64(len(b)) {
			t.Fatalf("good up to %d (error %v), entries end at %d of %d", good, err, entries, len(b))
		}
		again, cleanAgain, err := scanLog(bytes.NewReader(b[:good]), good)
		if diff := cmp.Diff([]any{good, true, error(nil)}, []any{again, cleanAgain, err}); diff != "" {
			t.Errorf("after the cut (-want +got):\n%s", diff)
		}
		if good == int64(len(b)) && !clean {
			t.Error("a whole log is not clean")
		}
	})
}
