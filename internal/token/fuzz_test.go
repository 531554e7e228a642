package token

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"pairsync/internal/moment"
)

// FuzzVerify gives Verify mangled tokens. Whatever it accepts is checked
// again by other means: signed by the key that the issuer's name stands for,
// over exactly the bytes given, for us, by a legal user, not expired.
func FuzzVerify(f *testing.F) {
	keys := newTestKeys(f)
	pub := publicOf(f, keys)
	v := newTestVerifier(f, nil, keys.Issuer(testIssuer, testAudience), newTestSecret(f, "dev"))
	for _, raw := range fuzzSeeds(f, keys) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := v.Verify(t.Context(), raw)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code == "" || e.Reason == "" || p != (Principal{}) {
				t.Fatalf("refused with %#v and principal %+v", err, p)
			}
			return
		}
		text, sig := cutSignature(t, raw)
		switch p.Issuer {
		case testIssuer:
			if !ed25519.Verify(pub, []byte(text), sig) {
				t.Fatalf("accepted %q, which our key did not sign", raw)
			}
		case "dev":
			mac := hmac.New(sha256.New, testSecret)
			mac.Write([]byte(text))
			if !hmac.Equal(mac.Sum(nil), sig) {
				t.Fatalf("accepted %q, which the secret did not sign", raw)
			}
		default:
			t.Fatalf("accepted issuer %q", p.Issuer)
		}
		if err := moment.CheckID("user", p.User); err != nil {
			t.Fatalf("accepted %+v: %v", p, err)
		}
		if p.External || p.Expires.IsZero() && p.Role != RoleDevice || !p.Expires.IsZero() && time.Since(p.Expires) > Leeway {
			t.Fatalf("accepted %+v", p)
		}
	})
}

// FuzzClaims gives Verify well-signed tokens with any claims: no signature
// stands between the input and what reads it.
func FuzzClaims(f *testing.F) {
	keys := newTestKeys(f)
	v := newTestVerifier(f, nil, keys.Issuer(testIssuer, testAudience))
	for _, raw := range fuzzSeeds(f, keys) {
		if parts := strings.Split(raw, "."); len(parts) == 3 {
			if b, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
				f.Add(string(b))
			}
		}
	}
	f.Add(`{"iss":"pairsync","iss":"dev"}`)
	f.Add(`{"iss":"pairsync","aud":"phones","sub":"ann","device":"d","iat":1e0}`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := v.Verify(t.Context(), own(t, keys, text))
		if err != nil {
			return
		}
		// What encoding/json reads from the same text must be the same user,
		// device and role: no second reading is left to choose from.
		var c struct {
			Iss, Sub, Pair, Device, Role string
		}
		all := make(map[string]json.RawMessage)
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			t.Fatalf("accepted claims %q: %v", text, err)
		}
		for name, field := range map[string]*string{"iss": &c.Iss, "sub": &c.Sub, "pair": &c.Pair, "device": &c.Device, "role": &c.Role} {
			if value, ok := all[name]; ok {
				if err := json.Unmarshal(value, field); err != nil {
					t.Fatalf("accepted claim %q of %q: %v", name, text, err)
				}
			}
		}
		if c.Iss != testIssuer || c.Sub != p.User || c.Pair != p.Pair || c.Device != p.Device || c.Role != "" && c.Role != string(p.Role) {
			t.Fatalf("claims %q were read as %+v", text, p)
		}
		if err := p.check(); err != nil {
			t.Fatalf("accepted %+v: %v", p, err)
		}
	})
}

func cutSignature(t *testing.T, raw string) (text string, sig []byte) {
	t.Helper()
	i := strings.LastIndexByte(raw, '.')
	sig, err := base64.RawURLEncoding.Strict().DecodeString(raw[i+1:])
	if err != nil || strings.Count(raw, ".") != 2 {
		t.Fatalf("accepted %q, which is not a JWT: %v", raw, err)
	}
	return raw[:i], sig
}

func fuzzSeeds(f *testing.F, keys *Keys) []string {
	good := edit(ownClaims(), nil)
	kid := keys.signing().id
	pub := publicOf(f, keys)
	signed := mustSign(f, NewSigner(keys, testIssuer, testAudience), Principal{User: "ann", Pair: "p", Device: "d"})
	return []string{
		"", ".", "..", "...", "a.b.c", signed, signed + ".", signed[1:], strings.ToUpper(signed),
		own(f, keys, good),
		own(f, keys, edit(ownClaims(), map[string]any{"exp": 1})),
		own(f, keys, edit(ownClaims(), map[string]any{"aud": "tv"})),
		own(f, keys, edit(ownClaims(), map[string]any{"aud": []any{1, nil, "phones"}})),
		own(f, keys, `{"sub":"bob",`+good[1:]),
		own(f, keys, `{"x":`+strings.Repeat(`{"x":`, 500)+"1"+strings.Repeat("}", 501)),
		forge(f, "", nil, `{"alg":"none"}`, good),
		forge(f, "HS256", []byte(pub), `{"alg":"HS256","kid":"`+kid+`"}`, good),
		forge(f, "HS256", testSecret, `{"alg":"HS256"}`, edit(ownClaims(), map[string]any{"iss": "dev"})),
		forge(f, "EdDSA", foreignKey(f), `{"alg":"EdDSA","kid":"`+kid+`"}`, good),
		forge(f, "EdDSA", keys.signing().private, `{"alg":"EdDSA","kid":"`+kid+`","crit":["b64"],"b64":false}`, good),
		strings.Repeat("A", MaxTokenBytes+1),
	}
}
