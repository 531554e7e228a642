package token

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// A key file is PEM with one PKCS #8 private key (RFC 5958, RFC 8410), named
// by its key id, so that openssl reads it: "openssl pkey -in FILE -pubout".
const (
	keyPrefix   = "eddsa-"
	keySuffix   = ".pem"
	tempPattern = ".new-key-*" // never taken for a key, whatever a crash leaves
	pemType     = "PRIVATE KEY"
	// maxKeyFileBytes is far above the 119 bytes of a key file.
	maxKeyFileBytes = 4 << 10
)

// loadKeys reads every key file in dir.
func loadKeys(dir string) ([]signingKey, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open signing keys: %w", err)
	}
	var keys []signingKey
	for _, e := range entries {
		id, ok := strings.CutPrefix(e.Name(), keyPrefix)
		if !ok {
			continue
		}
		if id, ok = strings.CutSuffix(id, keySuffix); !ok || id == "" {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if parsed, err := ulid.ParseStrict(id); err != nil || strings.ToLower(parsed.String()) != id {
			return nil, fmt.Errorf("signing key %q: the name holds no key id (a lower-case ULID, which says how old the key is)", path)
		}
		private, err := readKey(path)
		if err != nil {
			return nil, fmt.Errorf("signing key %q: %w", path, err)
		}
		keys = append(keys, signingKey{id, private})
	}
	return keys, nil
}

func readKey(path string) (ed25519.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	// Windows has no such mode bits; there the directory's access list counts.
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("other users may read it (mode %04o): chmod 600 it, and replace it if they might have", mode)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFileBytes))
	if err != nil {
		return nil, err
	}
	return parseKey(b)
}

func parseKey(b []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemType {
		return nil, errors.New("damaged: not a PEM private key; restore it from a backup, or move it away and issue all tokens again")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("damaged: %w; restore it from a backup, or move it away and issue all tokens again", err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it holds a %T, not an Ed25519 key", key)
	}
	return private, nil
}

// createKey makes a key that is newer than the one with id after, if any, and
// its file, which is complete and on disk at return, or not there.
func createKey(dir, after string) (signingKey, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return signingKey{}, fmt.Errorf("make signing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return signingKey{}, fmt.Errorf("make signing key: %w", err)
	}
	at := ulid.Timestamp(time.Now())
	if last, err := ulid.ParseStrict(after); err == nil {
		at = max(at, last.Time()+1) // two in one millisecond, or a clock set back
	}
	id, err := ulid.New(at, rand.Reader)
	if err != nil {
		return signingKey{}, fmt.Errorf("make signing key id: %w", err)
	}
	key := signingKey{strings.ToLower(id.String()), private}
	path := filepath.Join(dir, keyPrefix+key.id+keySuffix)
	if err := writeFile(path, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})); err != nil {
		return signingKey{}, fmt.Errorf("write signing key %q: %w", path, err)
	}
	return key, nil
}

// writeFile makes a 0600 file that appears whole or not at all, also after a
// power cut.
func writeFile(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPattern) // CreateTemp makes files 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a rename in dir survive a power cut. Windows cannot sync a
// directory and does not need to.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
