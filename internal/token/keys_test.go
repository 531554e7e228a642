package token

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/MicahParks/keyfunc/v3"
)

func keyFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, keyPrefix+"*"+keySuffix))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestOpenKeysMakesOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "keys")
	first, err := OpenKeys(dir)
	if err != nil {
		t.Fatalf("OpenKeys of a new directory: %v", err)
	}
	files := keyFiles(t, dir)
	if len(files) != 1 {
		t.Fatalf("key files %q, want one", files)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
		t.Errorf("the directory has %v (%v), want the key alone", all, err)
	}
	for path, want := range map[string]os.FileMode{files[0]: 0o600, dir: 0o700} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want && runtime.GOOS != "windows" {
			t.Errorf("%s has mode %04o, want %04o", path, got, want)
		}
	}
	again, err := OpenKeys(dir)
	if err != nil {
		t.Fatalf("OpenKeys again: %v", err)
	}
	raw := mustSign(t, NewSigner(first, testIssuer, testAudience), Principal{User: "ann"})
	if _, err := newTestVerifier(t, nil, again.Issuer(testIssuer, testAudience)).Verify(t.Context(), raw); err != nil {
		t.Errorf("a token from before the restart: %v", err)
	}
}

func TestOpenKeysIgnoresOtherFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".new-key-123", "README", "eddsa-.pem", "eddsa-x.pem.bak", "x-eddsa-1.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("torn"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenKeys(dir); err != nil {
		t.Errorf("OpenKeys beside other files: %v", err)
	}
}

func TestOpenKeysRefuses(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(b []byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	mode := func(m os.FileMode) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.Chmod(path, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name   string
		change func(t *testing.T, path string)
		want   string
	}{
		{"empty", rewrite(nil), "damaged"},
		{"garbage", rewrite([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")), "damaged"},
		{"public key", rewrite(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "damaged"},
		{"another kind of key", rewrite(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})), "not an Ed25519 key"},
		{"far too large", rewrite(bytes.Repeat([]byte("x"), 1<<20)), "damaged"},
		{"torn", func(t *testing.T, path string) {
			if err := os.Truncate(path, 60); err != nil {
				t.Fatal(err)
			}
		}, "damaged"},
		{"named by hand", func(t *testing.T, path string) {
			if err := os.Rename(path, filepath.Join(filepath.Dir(path), keyPrefix+"mine"+keySuffix)); err != nil {
				t.Fatal(err)
			}
		}, "holds no key id"},
		{"a directory", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
	}
	if runtime.GOOS != "windows" {
		tests = append(tests, []struct {
			name   string
			change func(t *testing.T, path string)
			want   string
		}{
			{"readable by all", mode(0o604), "mode 0604"},
			{"readable by the group", mode(0o640), "mode 0640"},
			{"writable by all", mode(0o602), "mode 0602"},
		}...)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := OpenKeys(dir); err != nil {
				t.Fatal(err)
			}
			path := keyFiles(t, dir)[0]
			tt.change(t, path)
			_, err := OpenKeys(dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), keyFiles(t, dir)[0]) {
				t.Fatalf("OpenKeys: %v, want it to name %q and say %q", err, path, tt.want)
			}
			if got := keyFiles(t, dir); len(got) != 1 {
				t.Errorf("a refused key was replaced: %q", got)
			}
		})
	}
	if _, err := OpenKeys(filepath.Join(os.DevNull, "keys")); err == nil {
		t.Error("OpenKeys below a file succeeded")
	}
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	keys, err := OpenKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	signer := NewSigner(keys, testIssuer, testAudience)
	v := newTestVerifier(t, nil, keys.Issuer(testIssuer, testAudience))
	before := keys.signing().id
	raws := []string{mustSign(t, signer, Principal{User: "ann"})}

	var wg sync.WaitGroup // verification goes on while keys change
	for range 2 {
		wg.Go(func() {
			for range 20 {
				if _, err := v.Verify(t.Context(), raws[0]); err != nil {
					t.Errorf("Verify during Rotate: %v", err)
				}
			}
		})
	}
	for range 20 { // several in one millisecond
		last := keys.signing().id
		if err := keys.Rotate(); err != nil {
			t.Fatalf("Rotate: %v", err)
		}
		if keys.signing().id <= last {
			t.Errorf("key %q signs after %q was made", last, keys.signing().id)
		}
	}
	wg.Wait()
	if after := keys.signing().id; after <= before {
		t.Errorf("key %q signs after key %q: ids must sort by age", after, before)
	}
	raws = append(raws, mustSign(t, signer, Principal{User: "ann"}))

	reopened, err := OpenKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := reopened.signing().id, keys.signing().id; got != want {
		t.Errorf("after a restart key %q signs, want the newest %q", got, want)
	}
	for i, raw := range raws {
		for name, k := range map[string]*Keys{"running": keys, "reopened": reopened} {
			if _, err := newTestVerifier(t, nil, k.Issuer(testIssuer, testAudience)).Verify(t.Context(), raw); err != nil {
				t.Errorf("%s keys, token of key %d: %v", name, i, err)
			}
		}
	}

	if err := os.Remove(filepath.Join(dir, keyPrefix+before+keySuffix)); err != nil {
		t.Fatal(err)
	}
	left, err := OpenKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newTestVerifier(t, nil, left.Issuer(testIssuer, testAudience)).Verify(t.Context(), raws[0])
	if e := refusedWith(t, p, err, CodeInvalid); !strings.Contains(e.Reason, "its key was removed") {
		t.Errorf("a token of a removed key: %v", e)
	}
}

// TestJWKS reads the key set with the library that other services use.
func TestJWKS(t *testing.T) {
	keys := newTestKeys(t)
	if err := keys.Rotate(); err != nil {
		t.Fatal(err)
	}
	set, err := keys.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	var fields struct{ Keys []map[string]string }
	if err := json.Unmarshal(set, &fields); err != nil || len(fields.Keys) != 2 {
		t.Fatalf("key set %s: %v, want two keys", set, err)
	}
	for _, k := range fields.Keys {
		for name := range k {
			if !slices.Contains([]string{"kty", "crv", "kid", "use", "alg", "x"}, name) {
				t.Errorf("key set publishes %q", name)
			}
		}
	}
	if got, want := fields.Keys[0]["kid"], keys.signing().id; got != want {
		t.Errorf("first key is %q, want the newest %q", got, want)
	}
	found, err := keyfunc.NewJWKSetJSON(set)
	if err != nil {
		t.Fatalf("keyfunc: %v", err)
	}
	elsewhere := Issuer{Name: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}, Keys: found.KeyfuncCtx, External: true}
	raw := mustSign(t, NewSigner(keys, testIssuer, testAudience), Principal{User: "ann"})
	if p, err := newTestVerifier(t, nil, elsewhere).Verify(t.Context(), raw); err != nil || p.User != "ann" {
		t.Errorf("a verifier that has only the key set: %+v, %v", p, err)
	}
}
