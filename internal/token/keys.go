package token

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/golang-jwt/jwt/v5"
)

// Keys are our own Ed25519 signing keys, one file each in a directory. The
// newest signs; all of them verify, so that tokens outlive a rotation until
// the old file is removed. It is safe for concurrent use.
type Keys struct {
	dir string

	rotating sync.Mutex // held over a whole Rotate; mu is not, for its disk writes

	mu     sync.RWMutex // guards the fields below
	newest signingKey
	public map[string]any // ed25519.PublicKey by key id, boxed once
}

// signingKey is one key with its id (kid). Ids are ULIDs, so that their order
// is their age.
type signingKey struct {
	id      string
	private ed25519.PrivateKey
}

// OpenKeys loads the keys in dir, and makes the directory (0700) and a first
// key (0600) where there is none. A key file that is damaged, or that others
// may read, is an error that names the file: going on without it would refuse
// every token it signed. Files that are not named like a key are left alone.
func OpenKeys(dir string) (*Keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open signing keys: %w", err)
	}
	loaded, err := loadKeys(dir)
	if err != nil {
		return nil, err
	}
	k := &Keys{dir: dir, public: make(map[string]any, len(loaded)+1)}
	for _, key := range loaded {
		k.add(key)
	}
	if len(loaded) == 0 {
		if err := k.Rotate(); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Rotate makes a new key, which signs from now on. Tokens signed by earlier
// keys stay valid until those keys' files are removed and the process is
// started again.
func (k *Keys) Rotate() error {
	k.rotating.Lock()
	defer k.rotating.Unlock()
	key, err := createKey(k.dir, k.signing().id)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add(key)
	return nil
}

// add needs the lock, or sole use of k.
func (k *Keys) add(key signingKey) {
	k.public[key.id] = key.private.Public().(ed25519.PublicKey)
	if key.id > k.newest.id {
		k.newest = key
	}
}

// signing returns the key that signs at present.
func (k *Keys) signing() signingKey {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.newest
}

// jwk is the public half of an Ed25519 key as RFC 8037, section 2 has it.
type jwk struct {
	Type      string `json:"kty"`
	Curve     string `json:"crv"`
	ID        string `json:"kid"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	X         string `json:"x"`
}

// JWKS returns the public keys as a JSON Web Key Set (RFC 7517, section 5),
// newest first. It holds no private key.
func (k *Keys) JWKS() ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	set := struct {
		Keys []jwk `json:"keys"`
	}{}
	ids := slices.Sorted(maps.Keys(k.public))
	slices.Reverse(ids)
	for _, id := range ids {
		set.Keys = append(set.Keys, jwk{
			Type: "OKP", Curve: "Ed25519", ID: id, Use: "sig", Algorithm: jwt.SigningMethodEdDSA.Alg(),
			X: base64.RawURLEncoding.EncodeToString(k.public[id].(ed25519.PublicKey)),
		})
	}
	return json.Marshal(set)
}

// Issuer returns the issuer of the tokens that a Signer with the same issuer
// and audience makes with these keys.
func (k *Keys) Issuer(issuer, audience string) Issuer {
	return Issuer{
		Name: issuer, Audience: audience,
		Algorithms: []string{jwt.SigningMethodEdDSA.Alg()},
		Keys:       func(context.Context) jwt.Keyfunc { return k.find },
	}
}

// find is a jwt.Keyfunc. It asks for a key id instead of trying every key,
// which would let a stranger have us check each signature several times.
func (k *Keys) find(t *jwt.Token) (any, error) {
	id, ok := t.Header["kid"].(string)
	if !ok || id == "" {
		return nil, invalid("the token names no key (header kid)")
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	key, ok := k.public[id]
	if !ok {
		return nil, invalid("key %q is not one of ours: the token is from another server, or its key was removed", clip(strings.ToValidUTF8(id, "?")))
	}
	return key, nil
}
