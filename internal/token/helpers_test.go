package token

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

const (
	testIssuer   = "pairsync"
	testAudience = "phones"
)

var testSecret = []byte("an HS256 secret for development, long enough")

func newTestKeys(t testing.TB) *Keys {
	t.Helper()
	k, err := OpenKeys(t.TempDir())
	if err != nil {
		t.Fatalf("OpenKeys: %v", err)
	}
	return k
}

func newTestSecret(t testing.TB, issuer string) Issuer {
	t.Helper()
	i, err := SharedSecret(issuer, testAudience, testSecret)
	if err != nil {
		t.Fatalf("SharedSecret: %v", err)
	}
	return i
}

func newTestVerifier(t testing.TB, revoked func(Principal) bool, issuers ...Issuer) *Verifier {
	t.Helper()
	v, err := NewVerifier(revoked, issuers...)
	if err != nil {
		t.Fatalf("NewVerifier: %v", err)
	}
	return v
}

func mustSign(t testing.TB, s *Signer, p Principal) string {
	t.Helper()
	raw, _, err := s.Sign(p, 3600e9)
	if err != nil {
		t.Fatalf("Sign(%+v): %v", p, err)
	}
	return raw
}

// forge makes a token of any header and claims, JSON or not, signed with key
// by alg. An alg of "" leaves the signature empty.
func forge(t testing.TB, alg string, key any, header, claims string) string {
	t.Helper()
	text := segment(header) + "." + segment(claims)
	if alg == "" {
		return text + "."
	}
	sig, err := jwt.GetSigningMethod(alg).Sign(text, key)
	if err != nil {
		t.Fatalf("sign with %s: %v", alg, err)
	}
	return text + "." + segment(string(sig))
}

// own makes a token signed by the newest of our keys.
func own(t testing.TB, k *Keys, claims string) string {
	t.Helper()
	key := k.signing()
	return forge(t, "EdDSA", key.private, `{"alg":"EdDSA","typ":"JWT","kid":"`+key.id+`"}`, claims)
}

func segment(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// edit returns claims JSON with some values replaced; nil removes one.
func edit(base, changes map[string]any) string {
	all := make(map[string]any)
	for k, v := range base {
		all[k] = v
	}
	for k, v := range changes {
		if all[k] = v; v == nil {
			delete(all, k)
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func publicOf(t testing.TB, k *Keys) ed25519.PublicKey {
	t.Helper()
	return k.signing().private.Public().(ed25519.PublicKey)
}

func foreignKey(t testing.TB) crypto.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

// refusedWith fails unless err is an *Error with that code and reason.
func refusedWith(t testing.TB, p Principal, err error, code Code) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %T (%v), want *Error; principal %+v", err, err, p)
	}
	if e.Code != code {
		t.Errorf("refused as %q, want %q", e, code)
	}
	if p != (Principal{}) {
		t.Errorf("a refused token gave principal %+v", p)
	}
	return e
}
