package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"strings"
	"sync"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// testRSA is made once: it is slow.
var testRSA = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// publish returns a public key as a member of a key set.
func publish(t testing.TB, id string, public any) map[string]any {
	t.Helper()
	switch k := public.(type) {
	case *rsa.PublicKey:
		return map[string]any{"kty": "RSA", "kid": id, "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes())}
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		size := (len(point) - 1) / 2
		return map[string]any{"kty": "EC", "kid": id, "crv": k.Curve.Params().Name, "x": b64(point[1 : 1+size]), "y": b64(point[1+size:])}
	case ed25519.PublicKey:
		return map[string]any{"kty": "OKP", "kid": id, "crv": "Ed25519", "x": b64(k)}
	}
	t.Fatalf("a %T is no public key", public)
	return nil
}

func keySet(t testing.TB, keys ...map[string]any) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newEC(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestKeySetVerifies signs with each kind of key and checks with what was
// published of it, by every algorithm that it is for and no other.
func TestKeySetVerifies(t *testing.T) {
	all := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	signers := map[string]crypto.Signer{
		"RSA": testRSA(), "P-256": newEC(t, elliptic.P256()), "P-384": newEC(t, elliptic.P384()), "P-521": newEC(t, elliptic.P521()), "Ed25519": foreignKey(t),
	}
	want := map[string]string{
		"RSA": "RS256 RS384 RS512 PS256 PS384 PS512", "P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA",
	}
	for name, signer := range signers {
		keys, skipped, err := parseKeySet(keySet(t, publish(t, "k", signer.Public())), all)
		if err != nil || len(skipped) > 0 {
			t.Errorf("%s: %v %v", name, err, skipped)
			continue
		}
		if got := strings.Join(keys["k"].algorithms, " "); got != want[name] {
			t.Errorf("%s is for %q, want %q", name, got, want[name])
		}
		for _, alg := range keys["k"].algorithms {
			method := jwt.GetSigningMethod(alg)
			sig, err := method.Sign("text", signer)
			if err != nil {
				t.Fatalf("%s: %v", alg, err)
			}
			if err := method.Verify("text", sig, keys["k"].public); err != nil {
				t.Errorf("%s with %s: %v", name, alg, err)
			}
		}
	}
}

func TestKeySetSkips(t *testing.T) {
	good := publish(t, "good", &testRSA().PublicKey)
	with := func(base map[string]any, changes ...any) map[string]any {
		m := maps.Clone(base)
		m["kid"] = "bad"
		for i := 0; i < len(changes); i += 2 {
			if m[changes[i].(string)] = changes[i+1]; changes[i+1] == nil {
				delete(m, changes[i].(string))
			}
		}
		return m
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	n := testRSA().N
	ec, ed := publish(t, "ec", newEC(t, elliptic.P256()).Public()), publish(t, "ed", foreignKey(t).Public())
	for _, tt := range []struct {
		name   string
		key    map[string]any
		reason string
	}{
		{"no id", with(good, "kid", nil), "no id"},
		{"encryption", with(good, "use", "enc"), "not for signatures"},
		{"operations", with(good, "key_ops", []string{"encrypt"}), "key_ops"},
		{"private", with(good, "d", "AQAB"), "private half"},
		{"secret", map[string]any{"kty": "oct", "kid": "bad", "k": "AQAB"}, `type "oct"`},
		{"no type", with(good, "kty", nil), `type ""`},
		{"type in other letters", with(good, "kty", "rsa"), `type "rsa"`},
		{"another algorithm", with(good, "alg", "RS512"), "none of the algorithms"},
		{"an HMAC", with(good, "alg", "HS256"), "none of the algorithms"},
		{"id is a number", with(good, "kid", 7), "not a JSON Web Key"},
		{"no modulus", with(good, "n", nil), "n is missing"},
		{"modulus padded", with(good, "n", good["n"].(string)+"="), "n is not base64url"},
		{"modulus with a line break", with(good, "n", good["n"].(string)+"\n"), "n is not base64url"},
		{"modulus too short", with(publish(t, "", &weak.PublicKey)), "1024 bits"},
		{"modulus too long", with(good, "n", b64(new(big.Int).Lsh(n, 8192).Bytes())), "bits"},
		{"modulus even", with(good, "n", b64(new(big.Int).Sub(n, big.NewInt(1)).Bytes())), "even modulus"},
		{"exponent 1", with(good, "e", "AQ"), "exponent"},
		{"exponent even", with(good, "e", "BA"), "exponent"},
		{"exponent huge", with(good, "e", b64(n.Bytes())), "exponent"},
		{"no exponent", with(good, "e", ""), "e is missing"},
		{"unknown curve", with(ec, "crv", "secp256k1"), "curve"},
		{"another curve", with(ec, "crv", "P-384"), "32 bytes, P-384 has 48"},
		{"off the curve", with(ec, "y", ec["x"]), "not on the curve"},
		{"half a point", with(ec, "y", nil), "y is missing"},
		{"short coordinate", with(ec, "x", "AQ"), "1 and 32 bytes"},
		{"X25519", with(ed, "crv", "X25519"), "curve"},
		{"short Ed25519", with(ed, "x", "AQ"), "1 bytes"},
	} {
		keys, skipped, err := parseKeySet(keySet(t, good, tt.key), []string{"RS256", "ES256", "ES384", "EdDSA"})
		if err != nil || len(keys) != 1 || len(skipped) != 1 {
			t.Errorf("%s: %d keys, skipped %v, %v; want the good one alone", tt.name, len(keys), skipped, err)
			continue
		}
		if !strings.Contains(skipped[0].Error(), tt.reason) {
			t.Errorf("%s: skipped as %q, want it to say %q", tt.name, skipped[0], tt.reason)
		}
	}
}

func TestKeySetRefuses(t *testing.T) {
	good := publish(t, "good", &testRSA().PublicKey)
	many := make([]map[string]any, maxSetKeys+1)
	for i := range many {
		many[i] = good
	}
	for _, tt := range []struct {
		name, text, reason string
	}{
		{"no JSON", "<html>", "not a JSON Web Key Set"},
		{"an array", "[]", "not a JSON Web Key Set"},
		{"nothing", "{}", "no key in it can check RS256"},
		{"only others", string(keySet(t, publish(t, "ed", foreignKey(t).Public()))), "none of the algorithms RS256"},
		{"one id twice", string(keySet(t, good, good)), `two keys have the id "good"`},
		{"too many", string(keySet(t, many...)), "too many"},
	} {
		if keys, _, err := parseKeySet([]byte(tt.text), []string{"RS256"}); err == nil || !strings.Contains(err.Error(), tt.reason) {
			t.Errorf("%s: %d keys, %v; want an error that says %q", tt.name, len(keys), err, tt.reason)
		}
	}
}

// FuzzKeySet: whatever an issuer answers, no panic, and what is taken can be
// published and read again.
func FuzzKeySet(f *testing.F) {
	all := []string{"RS256", "ES256", "ES384", "ES512", "EdDSA"}
	f.Add(keySet(f, publish(f, "a", &testRSA().PublicKey), publish(f, "b", newEC(f, elliptic.P256()).Public()), publish(f, "c", foreignKey(f).Public())))
	for _, seed := range []string{`{}`, `{"keys":[null,1,{}]}`, `{"keys":[{"kty":"EC","crv":"P-256","kid":"x","x":"AA","y":"AA"}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, _, err := parseKeySet(b, all)
		if err != nil {
			return
		}
		for id, key := range keys {
			again, skipped, err := parseKeySet(keySet(t, publish(t, id, key.public)), all)
			if err != nil || len(skipped) > 0 {
				t.Fatalf("%q was taken and is not taken again: %v %v", id, err, skipped)
			}
			for _, k := range again {
				if eq, ok := k.public.(interface{ Equal(crypto.PublicKey) bool }); !ok || !eq.Equal(key.public) {
					t.Errorf("%q is another key when read again", id)
				}
			}
		}
	})
}
