package badgerdb

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// depth says which logs a repair reads: those that a crash can have left
// half written, or all of them.
type depth int

const (
	lastLogs depth = iota
	allLogs
)

// The layout of a .mem or .vlog file (badger, memtable.go and structs.go):
//
//	file    header, entry…, then zeros up to the allocated length
//	header  8 bytes key id, 12 bytes IV
//	entry   meta, user meta, uvarint key length, uvarint value length,
//	        uvarint expiry, key, value, CRC32-C of all that, big endian
const (
	logHeader    = 20
	maxLoggedKey = 1 << 16
)

// repair removes log files that hold nothing and cuts off what follows the
// last good entry of those that end in garbage. badger does not open the
// former, and on the latter it fails, panics, or allocates what a garbage
// length says. What is cut was never acknowledged, because an entry is synced
// before it is answered; unless the disk itself has lost bytes, and there
// badger would cut the last logs at the same place.
func repair(dir string, d depth, log *slog.Logger) error {
	mems, vlogs, err := logs(dir)
	if err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	for i, path := range append(mems, vlogs...) {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("repair: %w", err)
		}
		if info.Size() < logHeader {
			log.Warn("empty log removed", "file", path, "bytes", info.Size())
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("repair: %w", err)
			}
			continue
		}
		// A value log before the last was complete when the last was created.
		if last := i == len(mems)+len(vlogs)-1; d == lastLogs && !last && strings.HasSuffix(path, ".vlog") {
			continue
		}
		if err := repairTail(path, log); err != nil {
			return fmt.Errorf("repair %q: %w", path, err)
		}
	}
	return nil
}

// logs returns the paths of the logs in dir, oldest first.
func logs(dir string) (mems, vlogs []string, err error) {
	entries, err := os.ReadDir(dir) // sorted, and names have leading zeros
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".mem":
			mems = append(mems, filepath.Join(dir, e.Name()))
		case ".vlog":
			vlogs = append(vlogs, filepath.Join(dir, e.Name()))
		}
	}
	return mems, vlogs, err
}

func repairTail(path string, log *slog.Logger) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	good, clean, err := scanLog(f, info.Size())
	if err != nil || clean {
		return err
	}
	log.Warn("torn tail of a log cut off", "file", path, "at", good, "of", info.Size())
	return errors.Join(f.Truncate(good), f.Sync())
}

// scanLog returns where the last good entry ends, and whether the log is clean
// there: it ends, or zeros follow.
func scanLog(r io.ReaderAt, size int64) (good int64, clean bool, err error) {
	good = logHeader
	in := bufio.NewReaderSize(io.NewSectionReader(r, good, size-good), 64<<10)
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	for {
		sum.Reset()
		n, err := scanEntry(&hashing{r: in, h: sum}, size-good)
		switch {
		case errors.Is(err, errEnd):
			return good, true, nil
		case errors.Is(err, errTorn):
			return good, false, nil
		case err != nil:
			return 0, false, err
		}
		good += n
	}
}

var (
	errEnd  = errors.New("end of log")
	errTorn = errors.New("torn entry")
)

// scanEntry checks the entry that in stands at, of at most rest bytes, and
// returns its length. It never holds an entry in memory.
func scanEntry(in *hashing, rest int64) (int64, error) {
	if rest <= 0 {
		return 0, errEnd
	}
	var meta [2]byte
	meta[0], _ = in.ReadByte()
	meta[1], _ = in.ReadByte()
	key, err1 := binary.ReadUvarint(in)
	value, err2 := binary.ReadUvarint(in)
	_, err3 := binary.ReadUvarint(in)
	if err := errors.Join(err1, err2, err3); err != nil {
		return 0, torn(err)
	}
	if key == 0 {
		return 0, errEnd // badger zeroes the header that follows the last entry
	}
	left := uint64(max(rest-in.n, 0))
	if key > maxLoggedKey || value > left || key+value+crc32.Size > left {
		return 0, errTorn
	}
	if _, err := io.CopyN(in.h, in.r, int64(key+value)); err != nil {
		return 0, torn(err)
	}
	var sum [crc32.Size]byte
	if _, err := io.ReadFull(in.r, sum[:]); err != nil {
		return 0, torn(err)
	}
	if binary.BigEndian.Uint32(sum[:]) != in.h.Sum32() {
		return 0, errTorn
	}
	return in.n + int64(key+value) + crc32.Size, nil
}

// torn tells the end of the file and a malformed number, which are damage,
// from a disk that cannot be read, which is not for us to repair.
func torn(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return err
	}
	return errTorn
}

// hashing reads bytes into a hash and counts them.
type hashing struct {
	r *bufio.Reader
	h hash.Hash32
	n int64
}

func (b *hashing) ReadByte() (byte, error) {
	c, err := b.r.ReadByte()
	if err != nil {
		return 0, err
	}
	b.n++
	_, err = b.h.Write([]byte{c})
	return c, err
}
