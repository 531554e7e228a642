package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
)

func ownClaims() map[string]any {
	now := time.Now()
	return map[string]any{
		"iss": testIssuer, "aud": testAudience, "sub": "ann", "jti": "j1",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
}

// TestVerifyRefuses has every token signed with our own key, unless it is
// about just that.
func TestVerifyRefuses(t *testing.T) {
	keys := newTestKeys(t)
	private := keys.signing().private
	kid := keys.signing().id
	pub := publicOf(t, keys)
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	pubPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	jwks, err := keys.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	v := newTestVerifier(t, func(p Principal) bool { return p.ID == "gone" }, keys.Issuer(testIssuer, testAudience), newTestSecret(t, "dev"))
	now := time.Now()
	with := func(key string, value any) string {
		return own(t, keys, edit(ownClaims(), map[string]any{key: value}))
	}
	head := func(header string) string {
		return forge(t, "EdDSA", private, header, edit(ownClaims(), nil))
	}
	confused := func(key []byte, iss string) string {
		return forge(t, "HS256", key, `{"alg":"HS256","kid":"`+kid+`"}`, edit(ownClaims(), map[string]any{"iss": iss}))
	}
	good := own(t, keys, edit(ownClaims(), nil))
	parts := strings.Split(good, ".")

	tests := []struct {
		name, raw string
		code      Code
		reason    string
	}{
		{"none given", "", CodeMissing, "no token"},
		{"not a token", "hello", CodeInvalid, "not a JWT"},
		{"two parts", parts[0] + "." + parts[1], CodeInvalid, "not a JWT"},
		{"four parts", good + ".x", CodeInvalid, "not a JWT"},
		{"line break", good + "\n", CodeInvalid, "not a JWT"},
		{"line break in the signature", good[:len(good)-9] + "\n" + good[len(good)-9:], CodeInvalid, "not a JWT"},
		{"loose base64", good[:len(good)-1] + string(good[len(good)-1]+1), CodeInvalid, ""},
		{"too long", good + strings.Repeat("A", MaxTokenBytes), CodeInvalid, "too long (at most 8192)"},
		{"header is no object", head(`["EdDSA"]`), CodeInvalid, "not a JWT"},
		{"header is null", head(`null`), CodeInvalid, "no algorithm"},
		{"claims are no object", own(t, keys, `[]`), CodeInvalid, "not a JSON object"},
		{"claims are null", own(t, keys, `null`), CodeInvalid, "no issuer"},
		{"claims with text after them", own(t, keys, edit(ownClaims(), nil)+"x"), CodeInvalid, "not a JWT"},
		{"claims nested deeply", own(t, keys, `{"iss":"pairsync","x":`+strings.Repeat("[", 4000)+strings.Repeat("]", 4000)+`}`), CodeInvalid, ""},

		{"none", forge(t, "", nil, `{"alg":"none"}`, edit(ownClaims(), nil)), CodeInvalid, `algorithm "none" is not accepted`},
		{"none, signed", forge(t, "EdDSA", private, `{"alg":"none"}`, edit(ownClaims(), nil)), CodeInvalid, `algorithm "none"`},
		{"None", forge(t, "", nil, `{"alg":"None"}`, edit(ownClaims(), nil)), CodeInvalid, "no algorithm that is supported"},
		{"no alg", head(`{"kid":"` + kid + `"}`), CodeInvalid, "no algorithm that is supported"},
		{"alg is no text", head(`{"alg":1}`), CodeInvalid, "no algorithm that is supported"},
		{"HMAC with the public key", confused(pub, testIssuer), CodeInvalid, `algorithm "HS256" is not accepted from issuer "pairsync"`},
		{"HMAC with the public key as PEM", confused(pubPEM, testIssuer), CodeInvalid, `algorithm "HS256"`},
		{"HMAC with the key set", confused(jwks, testIssuer), CodeInvalid, `algorithm "HS256"`},
		{"HMAC with nothing", confused(nil, testIssuer), CodeInvalid, `algorithm "HS256"`},
		{"the other issuer's secret", confused(testSecret, testIssuer), CodeInvalid, `algorithm "HS256"`},
		{"the other issuer's name", own(t, keys, edit(ownClaims(), map[string]any{"iss": "dev"})), CodeInvalid, `algorithm "EdDSA" is not accepted from issuer "dev"`},
		{"public key as the other issuer's secret", confused(pub, "dev"), CodeInvalid, "signature"},
		{"another key under our id", forge(t, "EdDSA", foreignKey(t), `{"alg":"EdDSA","kid":"`+kid+`"}`, edit(ownClaims(), nil)), CodeInvalid, "signature"},
		{"another key", forge(t, "EdDSA", foreignKey(t), `{"alg":"EdDSA","kid":"theirs"}`, edit(ownClaims(), nil)), CodeInvalid, `key "theirs" is not one of ours`},
		{"key in the header", forge(t, "EdDSA", foreignKey(t), `{"alg":"EdDSA","jwk":{"kty":"OKP"},"jku":"http://x"}`, edit(ownClaims(), nil)), CodeInvalid, "names no key"},
		{"no key id", head(`{"alg":"EdDSA"}`), CodeInvalid, "names no key"},
		{"key id is no text", head(`{"alg":"EdDSA","kid":["a"]}`), CodeInvalid, "names no key"},
		{"crit", head(`{"alg":"EdDSA","kid":"` + kid + `","crit":["exp"]}`), CodeInvalid, `"crit"`},
		{"crit is null", head(`{"alg":"EdDSA","kid":"` + kid + `","crit":null}`), CodeInvalid, `"crit"`},
		{"altered", parts[0] + "." + segment(edit(ownClaims(), map[string]any{"sub": "bob"})) + "." + parts[2], CodeInvalid, "signature"},
		{"no signature", parts[0] + "." + parts[1] + ".", CodeInvalid, "signature"},

		{"unknown issuer", with("iss", "https://evil.example"), CodeInvalid, `issuer "https://evil.example" is not accepted here`},
		{"no issuer", with("iss", nil), CodeInvalid, "no issuer"},
		{"issuer in other letters", with("iss", "Pairsync"), CodeInvalid, "not accepted"},
		{"a huge issuer is not repeated", with("iss", strings.Repeat("x", 2000)), CodeInvalid, `xxx…" is not accepted`},
		{"no audience", with("aud", nil), CodeInvalid, "no audience"},
		{"empty audience", with("aud", []string{}), CodeInvalid, "no audience"},
		{"another audience", with("aud", "tv"), CodeInvalid, `audience "tv" is not the one needed ("phones")`},
		{"other audiences", with("aud", []string{"tv", "phones2"}), CodeInvalid, `audience "tv"`},
		{"audience with a null", with("aud", []any{testAudience, nil}), CodeInvalid, `claim "aud" has the wrong type`},
		{"audience is an object", with("aud", map[string]any{"phones": 1}), CodeInvalid, `claim "aud" has the wrong type`},

		{"no expiry", with("exp", nil), CodeInvalid, "never expires"},
		{"expired", with("exp", now.Add(-3*time.Minute).Unix()), CodeExpired, "token expired 3m"},
		{"expired in 1970", with("exp", 0), CodeExpired, "expired"},
		{"expiry is text", with("exp", fmt.Sprint(now.Add(time.Hour).Unix())), CodeInvalid, `claim "exp" has the wrong type`},
		{"expiry is null", own(t, keys, strings.Replace(edit(ownClaims(), map[string]any{"exp": "X"}), `"X"`, "null", 1)), CodeInvalid, `claim "exp" has the wrong type`},
		{"expiry is negative", with("exp", -1), CodeInvalid, `claim "exp" has the wrong type`},
		{"expiry without end", with("exp", 1e300), CodeInvalid, `claim "exp" has the wrong type`},
		{"expiry beyond floats", own(t, keys, strings.Replace(edit(ownClaims(), map[string]any{"exp": "X"}), `"X"`, "1e999", 1)), CodeInvalid, `claim "exp" has the wrong type`},
		{"not yet", with("nbf", now.Add(time.Minute).Unix()), CodeInvalid, "not valid for another"},
		{"issued in the future", with("iat", now.Add(time.Minute).Unix()), CodeInvalid, "in the future"},
		{"pending session", with("sts", "pending"), CodeInvalid, "pending"},
		{"status is no text", with("sts", true), CodeInvalid, `claim "sts" has the wrong type`},

		{"no subject", with("sub", nil), CodeInvalid, "user id is empty"},
		{"subject is null", own(t, keys, strings.Replace(edit(ownClaims(), nil), `"ann"`, "null", 1)), CodeInvalid, `claim "sub" has the wrong type`},
		{"subject is a number", with("sub", 7), CodeInvalid, `claim "sub" has the wrong type`},
		{"subject with a slash", with("sub", "ann/bob"), CodeInvalid, "user id"},
		{"subject with a wildcard", with("sub", "+"), CodeInvalid, "user id"},
		{"subject too long", with("sub", strings.Repeat("a", 129)), CodeInvalid, "too long"},
		{"bad pair", with("pair", "a#"), CodeInvalid, "pair id"},
		{"bad device", with("device", "a b"), CodeInvalid, "device id"},
		{"unknown role", with("role", "root"), CodeInvalid, `role "root" is unknown`},
		{"role is a list", with("role", []string{"admin"}), CodeInvalid, `claim "role" has the wrong type`},
		{"device role without device", with("role", "device"), CodeInvalid, "device id is empty"},
		{"device of an app", own(t, keys, edit(ownClaims(), map[string]any{"role": "app", "device": "d"})), CodeInvalid, `role "app" does not go with a device`},
		{"device of an admin", own(t, keys, edit(ownClaims(), map[string]any{"role": "admin", "device": "d"})), CodeInvalid, "does not go with a device"},
		{"token id too long", with("jti", strings.Repeat("j", 257)), CodeInvalid, `claim "jti"`},
		{"token id with a line break", with("jti", "a\nb"), CodeInvalid, `claim "jti"`},
		{"session id with a null byte", with("sid", "a\x00"), CodeInvalid, `claim "sid"`},
		{"subject twice", own(t, keys, `{"sub":"bob",`+edit(ownClaims(), nil)[1:]), CodeInvalid, `claim "sub" appears twice`},
		{"subject twice, once escaped", own(t, keys, `{"\u0073ub":"bob",`+edit(ownClaims(), nil)[1:]), CodeInvalid, `claim "sub" appears twice`},
		{"expiry twice", own(t, keys, `{"exp":9999999999,`+edit(ownClaims(), nil)[1:]), CodeInvalid, `claim "exp" appears twice`},
		{"subject in other letters", own(t, keys, strings.Replace(edit(ownClaims(), nil), `"sub"`, `"SUB"`, 1)), CodeInvalid, "user id is empty"},

		{"revoked", with("jti", "gone"), CodeRevoked, "revoked"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := v.Verify(t.Context(), tt.raw)
			e := refusedWith(t, p, err, tt.code)
			if !strings.Contains(e.Reason, tt.reason) {
				t.Errorf("reason %q, want it to say %q", e.Reason, tt.reason)
			}
			if e.Retryable() {
				t.Errorf("%q is retryable", e)
			}
			if len(e.Error()) > 400 || len(tt.raw) > 20 && strings.Contains(e.Error(), tt.raw[:20]) {
				t.Errorf("error %q holds text of the token or is too long", e)
			}
		})
	}
	if _, err := v.Verify(t.Context(), good); err != nil {
		t.Errorf("the token they all derive from: %v", err)
	}
}

func TestVerifyAccepts(t *testing.T) {
	keys := newTestKeys(t)
	v := newTestVerifier(t, nil, keys.Issuer(testIssuer, testAudience))
	base := Principal{User: "ann", Role: RoleApp, Issuer: testIssuer, ID: "j1"}
	tests := []struct {
		name    string
		changes map[string]any
		want    func(p *Principal)
	}{
		{"least", nil, func(*Principal) {}},
		{"several audiences", map[string]any{"aud": []string{"tv", testAudience}}, func(*Principal) {}},
		{"no jti, no iat", map[string]any{"jti": nil, "iat": nil}, func(p *Principal) { p.ID, p.IssuedAt = "", time.Time{} }},
		{"pair", map[string]any{"pair": "p:1"}, func(p *Principal) { p.Pair = "p:1" }},
		{"device without a role", map[string]any{"device": "d1"}, func(p *Principal) { p.Device, p.Role = "d1", RoleDevice }},
		{"endless device", map[string]any{"device": "d1", "role": "device", "exp": nil}, func(p *Principal) { p.Device, p.Role, p.Expires = "d1", RoleDevice, time.Time{} }},
		{"admin", map[string]any{"role": "admin"}, func(p *Principal) { p.Role = RoleAdmin }},
		{"bridge", map[string]any{"role": "bridge"}, func(p *Principal) { p.Role = RoleBridge }},
		{"name and address", map[string]any{"name": " Ann\t\u202eÖ\x00 ", "email": "ann@example.com"}, func(p *Principal) { p.Name, p.Email = "Ann Ö", "ann@example.com" }},
		{"name of emoji", map[string]any{"name": "\u200d👩\u200d❤️\u200d👩 \u200d"}, func(p *Principal) { p.Name = "👩\u200d❤️\u200d👩" }},
		{"name that cannot be seen", map[string]any{"name": " \u200d\u00a0\u200c"}, func(*Principal) {}},
		{"name is null", map[string]any{"name": (*int)(nil)}, func(*Principal) {}},
		{"long name", map[string]any{"name": strings.Repeat("ä", 200)}, func(p *Principal) { p.Name = strings.Repeat("ä", 128) }},
		{"active session", map[string]any{"sts": "active", "sid": "s-1"}, func(p *Principal) { p.Session = "s-1" }},
		{"claims that we do not read", map[string]any{"fva": []int{1, -1}, "SUB": "bob", "acl": []any{map[string]any{"topic": "#"}}}, func(*Principal) {}},
		{"azp without a list", map[string]any{"azp": "http://x"}, func(*Principal) {}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := ownClaims()
			want := base
			want.IssuedAt = time.Unix(c["iat"].(int64), 0).UTC()
			want.Expires = time.Unix(c["exp"].(int64), 0).UTC()
			tt.want(&want)
			got, err := v.Verify(t.Context(), own(t, keys, edit(c, tt.changes)))
			if err != nil {
				t.Fatalf("Verify: %v", err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("principal (-want +got):\n%s", diff)
			}
		})
	}
}

// TestVerifyTimes walks a token over its edges on a clock that can be set.
func TestVerifyTimes(t *testing.T) {
	keys := newTestKeys(t)
	synctest.Test(t, func(t *testing.T) {
		v := newTestVerifier(t, nil, keys.Issuer(testIssuer, testAudience))
		start := time.Now()
		raw := own(t, keys, edit(ownClaims(), map[string]any{
			"iat": start.Add(30 * time.Second).Unix(), "nbf": start.Add(60 * time.Second).Unix(), "exp": start.Add(120 * time.Second).Unix(),
		}))
		for _, tt := range []struct {
			at     time.Duration
			code   Code
			reason string
		}{
			{19 * time.Second, CodeInvalid, "not valid for another 41s"},
			{49 * time.Second, CodeInvalid, "not valid for another 11s"},
			{50 * time.Second, "", ""},
			{130*time.Second - 1, "", ""},
			{130 * time.Second, CodeExpired, "token expired 10s ago"},
			{300 * time.Second, CodeExpired, "token expired 3m0s ago"},
		} {
			time.Sleep(time.Until(start.Add(tt.at)))
			p, err := v.Verify(t.Context(), raw)
			if tt.code == "" {
				if err != nil {
					t.Errorf("after %s: %v", tt.at, err)
				}
				continue
			}
			if e := refusedWith(t, p, err, tt.code); !strings.Contains(e.Reason, tt.reason) {
				t.Errorf("after %s: reason %q, want %q", tt.at, e.Reason, tt.reason)
			}
		}
	})
}

func TestVerifyExternal(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	var down error
	clerk := Issuer{
		Name: "https://clerk.example", Algorithms: []string{"RS256"}, External: true,
		AuthorizedParties: []string{"https://app.example"},
		Keys: func(ctx context.Context) jwt.Keyfunc {
			return func(*jwt.Token) (any, error) { return &key.PublicKey, errors.Join(down, ctx.Err()) }
		},
	}
	v := newTestVerifier(t, nil, newTestKeys(t).Issuer(testIssuer, testAudience), clerk)
	token := func(changes map[string]any) string {
		c := map[string]any{"iss": clerk.Name, "aud": nil, "sid": "sess_1"}
		for k, v := range changes {
			c[k] = v
		}
		return forge(t, "RS256", key, `{"alg":"RS256","kid":"x"}`, edit(ownClaims(), c))
	}
	for _, changes := range []map[string]any{
		nil,
		{"azp": "https://app.example"},
		{"pair": "p1", "device": "d1"}, // not theirs to say
		{"pair": "a/b", "device": "#"},
		{"role": "org:member"},
		{"role": "app"},
	} {
		p, err := v.Verify(t.Context(), token(changes))
		if err != nil {
			t.Errorf("%v: %v", changes, err)
			continue
		}
		want := Principal{User: "ann", Role: RoleApp, Issuer: clerk.Name, ID: "j1", Session: "sess_1", IssuedAt: p.IssuedAt, Expires: p.Expires, External: true}
		if diff := cmp.Diff(want, p); diff != "" {
			t.Errorf("%v (-want +got):\n%s", changes, diff)
		}
	}
	for _, tt := range []struct {
		changes map[string]any
		reason  string
	}{
		{map[string]any{"azp": "https://evil.example"}, "azp"},
		{map[string]any{"aud": "somebody"}, "must have none"},
		{map[string]any{"exp": nil}, "never expires"},
		{map[string]any{"exp": nil, "role": "device", "device": "d1"}, `role "device"`},
		{map[string]any{"exp": nil, "device": "d1"}, "never expires"},
		{map[string]any{"role": "admin"}, `role "admin" is not taken`},
		{map[string]any{"role": "bridge"}, `role "bridge" is not taken`},
		{map[string]any{"sts": "pending"}, "pending"},
		{map[string]any{"iss": testIssuer, "aud": testAudience}, `algorithm "RS256" is not accepted from issuer "pairsync"`},
	} {
		p, err := v.Verify(t.Context(), token(tt.changes))
		if e := refusedWith(t, p, err, CodeInvalid); !strings.Contains(e.Reason, tt.reason) {
			t.Errorf("%v: reason %q, want %q", tt.changes, e.Reason, tt.reason)
		}
	}

	down = fmt.Errorf("no route to host: %w", ErrKeysUnavailable)
	p, err := v.Verify(t.Context(), token(nil))
	if e := refusedWith(t, p, err, CodeInvalid); !e.Retryable() || !errors.Is(err, ErrKeysUnavailable) {
		t.Errorf("%v with keys unavailable: retryable %t, want true", err, e.Retryable())
	}
	down = errors.New("kid not found")
	p, err = v.Verify(t.Context(), token(nil))
	if e := refusedWith(t, p, err, CodeInvalid); e.Retryable() || !strings.Contains(e.Reason, "no key for this token") {
		t.Errorf("an unknown key: %v, retryable %t", err, e.Retryable())
	}
	down = nil
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Verify(ctx, token(nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify with an ended context: %v, want %v: Keys must see it", err, context.Canceled)
	}
}

// TestVerifyWrongKeyType has an issuer whose key does not fit its algorithm,
// as a mixed-up key set may give.
func TestVerifyWrongKeyType(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := newTestKeys(t)
	for _, key := range []any{nil, "text", []byte("bytes"), &ec.PublicKey, jwt.UnsafeAllowNoneSignatureType, jwt.VerificationKeySet{}} {
		i := keys.Issuer(testIssuer, testAudience)
		i.Keys = func(context.Context) jwt.Keyfunc { return func(*jwt.Token) (any, error) { return key, nil } }
		p, err := newTestVerifier(t, nil, i).Verify(t.Context(), own(t, keys, edit(ownClaims(), nil)))
		refusedWith(t, p, err, CodeInvalid)
	}
}

// TestVerifySharedName has our keys and a development secret under one name.
func TestVerifySharedName(t *testing.T) {
	keys := newTestKeys(t)
	v := newTestVerifier(t, nil, keys.Issuer(testIssuer, testAudience), newTestSecret(t, testIssuer))
	claims := edit(ownClaims(), nil)
	for name, raw := range map[string]string{
		"EdDSA": own(t, keys, claims),
		"HS256": forge(t, "HS256", testSecret, `{"alg":"HS256"}`, claims),
	} {
		if _, err := v.Verify(t.Context(), raw); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, err := v.Verify(t.Context(), forge(t, "HS256", []byte(publicOf(t, keys)), `{"alg":"HS256"}`, claims))
	refusedWith(t, p, err, CodeInvalid)
}

func TestNewVerifierRefuses(t *testing.T) {
	good := newTestKeys(t).Issuer(testIssuer, testAudience)
	for _, tt := range []struct {
		name   string
		change func(i *Issuer)
		want   string
	}{
		{"no name", func(i *Issuer) { i.Name = "" }, "without a name"},
		{"no audience", func(i *Issuer) { i.Audience = "" }, "no audience"},
		{"no keys", func(i *Issuer) { i.Keys = nil }, "no keys"},
		{"no algorithms", func(i *Issuer) { i.Algorithms = nil }, "no algorithms"},
		{"none", func(i *Issuer) { i.Algorithms = []string{"none"} }, `"none" is not supported`},
		{"unknown", func(i *Issuer) { i.Algorithms = []string{"EdDSA", "HS1"} }, `"HS1" is not supported`},
		{"mixed", func(i *Issuer) { i.Algorithms = []string{"RS256", "HS256"} }, "in one list"},
		{"mixed the other way", func(i *Issuer) { i.Algorithms = []string{"HS256", "EdDSA"} }, "in one list"},
		{"external secret", func(i *Issuer) { i.Algorithms, i.External = []string{"HS256"}, true }, "our own tokens only"},
	} {
		i := good
		tt.change(&i)
		if _, err := NewVerifier(nil, i); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want it to say %q", tt.name, err, tt.want)
		}
	}
	if _, err := NewVerifier(nil, good, good); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the same issuer twice: %v", err)
	}
	if _, err := NewVerifier(nil); err == nil {
		t.Error("a verifier without issuers was made")
	}
	if _, err := SharedSecret("dev", testAudience, make([]byte, MinSecretBytes-1)); err == nil || strings.Contains(err.Error(), "\x00") {
		t.Errorf("a secret of %d bytes: %v", MinSecretBytes-1, err)
	}
}

func TestErrorRetryable(t *testing.T) {
	for code, want := range map[Code]bool{CodeMissing: false, CodeInvalid: false, CodeExpired: false, CodeRevoked: false, CodeRateLimited: true} {
		if got := (&Error{Code: code}).Retryable(); got != want {
			t.Errorf("%s: retryable %t, want %t", code, got, want)
		}
	}
}
