package token

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

const (
	// RSA moduli: shorter ones are too weak (RFC 7518, section 3.3), longer
	// ones make each check slow.
	minRSABits = 2048
	maxRSABits = 8192
	// maxSetKeys bounds the keys of one set; issuers publish two to five.
	maxSetKeys = 64
)

// publishedKey is a public key of somebody else's key set.
type publishedKey struct {
	public     any      // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
	algorithms []string // those that the key is for
}

// publishedJWK is one member of a key set (RFC 7517, section 4; RFC 7518,
// section 6; RFC 8037, section 2).
type publishedJWK struct {
	Type       string          `json:"kty"`
	ID         string          `json:"kid"`
	Use        string          `json:"use"`
	Operations []string        `json:"key_ops"`
	Algorithm  string          `json:"alg"`
	Curve      string          `json:"crv"`
	N          string          `json:"n"`
	E          string          `json:"e"`
	X          string          `json:"x"`
	Y          string          `json:"y"`
	Private    json.RawMessage `json:"d"`
}

// parseKeySet reads a JSON Web Key Set and returns those of its keys, by id,
// that can check a signature with one of algorithms, and why others were left
// out (RFC 7517, section 5, wants unknown ones ignored). A set that is damaged,
// ambiguous or holds no such key is an error.
func parseKeySet(b []byte, algorithms []string) (keys map[string]publishedKey, skipped []error, err error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, nil, errors.New("not a JSON Web Key Set")
	}
	if len(set.Keys) > maxSetKeys {
		return nil, nil, fmt.Errorf("%d keys are too many (at most %d)", len(set.Keys), maxSetKeys)
	}
	keys = make(map[string]publishedKey, len(set.Keys))
	for i, raw := range set.Keys {
		var j publishedJWK
		if err := json.Unmarshal(raw, &j); err != nil {
			skipped = append(skipped, fmt.Errorf("key %d is not a JSON Web Key", i+1))
			continue
		}
		key, err := j.key(algorithms)
		if err != nil {
			skipped = append(skipped, fmt.Errorf("key %d (kid %q): %w", i+1, clip(j.ID), err))
			continue
		}
		if _, twice := keys[j.ID]; twice {
			return nil, nil, fmt.Errorf("two keys have the id %q", clip(j.ID))
		}
		keys[j.ID] = key
	}
	if len(keys) == 0 {
		return nil, nil, errors.Join(append([]error{fmt.Errorf("no key in it can check %s", strings.Join(algorithms, ", "))}, skipped...)...)
	}
	return keys, skipped, nil
}

// key returns j if it can check a signature with one of algorithms.
func (j *publishedJWK) key(algorithms []string) (publishedKey, error) {
	switch {
	case j.ID == "":
		return publishedKey{}, errors.New("it has no id (kid)")
	case j.Use != "" && j.Use != "sig":
		return publishedKey{}, fmt.Errorf("it is for %q, not for signatures", clip(j.Use))
	case len(j.Operations) > 0 && !slices.Contains(j.Operations, "verify"):
		return publishedKey{}, errors.New("it is not for verifying (key_ops)")
	case j.Private != nil:
		return publishedKey{}, errors.New("it shows its private half: whoever reads the set can sign")
	}
	public, fits, err := j.public()
	if err != nil {
		return publishedKey{}, err
	}
	if j.Algorithm != "" {
		fits = slices.DeleteFunc(fits, func(alg string) bool { return alg != j.Algorithm })
	}
	fits = slices.DeleteFunc(fits, func(alg string) bool { return !slices.Contains(algorithms, alg) })
	if len(fits) == 0 {
		return publishedKey{}, fmt.Errorf("it is for none of the algorithms %s", strings.Join(algorithms, ", "))
	}
	return publishedKey{public, fits}, nil
}

// public returns the key and every algorithm that can go with its type.
func (j *publishedJWK) public() (key any, algorithms []string, err error) {
	switch j.Type {
	case "RSA":
		key, err = j.rsa()
		return key, []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, err
	case "EC":
		for _, c := range []struct {
			curve elliptic.Curve
			alg   string
		}{{elliptic.P256(), "ES256"}, {elliptic.P384(), "ES384"}, {elliptic.P521(), "ES512"}} {
			if c.curve.Params().Name == j.Curve {
				key, err = j.ec(c.curve)
				return key, []string{c.alg}, err
			}
		}
		return nil, nil, fmt.Errorf("curve %q is not supported", clip(j.Curve))
	case "OKP":
		if j.Curve != "Ed25519" {
			return nil, nil, fmt.Errorf("curve %q is not supported", clip(j.Curve))
		}
		x, err := member("x", j.X)
		if err == nil && len(x) != ed25519.PublicKeySize {
			err = fmt.Errorf("x has %d bytes, an Ed25519 key has %d", len(x), ed25519.PublicKeySize)
		}
		return ed25519.PublicKey(x), []string{"EdDSA"}, err
	}
	return nil, nil, fmt.Errorf("type %q is not supported", clip(j.Type))
}

func (j *publishedJWK) rsa() (*rsa.PublicKey, error) {
	nBytes, errN := member("n", j.N)
	eBytes, errE := member("e", j.E)
	if err := errors.Join(errN, errE); err != nil {
		return nil, err
	}
	n, e := new(big.Int).SetBytes(nBytes), new(big.Int).SetBytes(eBytes)
	switch {
	case n.BitLen() < minRSABits || n.BitLen() > maxRSABits:
		return nil, fmt.Errorf("a modulus of %d bits, %d to %d are taken", n.BitLen(), minRSABits, maxRSABits)
	case n.Bit(0) == 0:
		return nil, errors.New("an even modulus")
	case e.BitLen() > 31 || e.Int64() < 3 || e.Bit(0) == 0:
		return nil, errors.New("an exponent that is not an odd number from 3 to 2^31")
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

func (j *publishedJWK) ec(curve elliptic.Curve) (*ecdsa.PublicKey, error) {
	x, errX := member("x", j.X)
	y, errY := member("y", j.Y)
	if err := errors.Join(errX, errY); err != nil {
		return nil, err
	}
	if size := (curve.Params().BitSize + 7) / 8; len(x) != size || len(y) != size {
		return nil, fmt.Errorf("coordinates of %d and %d bytes, %s has %d", len(x), len(y), j.Curve, size)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, x, y))
	if err != nil {
		return nil, errors.New("a point that is not on the curve")
	}
	return key, nil
}

// member decodes a base64url member that must be there.
func member(name, text string) ([]byte, error) {
	if text == "" {
		return nil, fmt.Errorf("%s is missing", name)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || !isTokenText(text) { // the decoder passes over line breaks
		return nil, fmt.Errorf("%s is not base64url", name)
	}
	return b, nil
}
