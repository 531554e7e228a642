package token

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// MinSecretBytes is the shortest shared secret that SharedSecret takes: the
// length of the hash (RFC 7518, section 3.2). A shorter one could be guessed
// offline from a single token.
const MinSecretBytes = 32

// Issuer is one party whose tokens a Verifier accepts.
type Issuer struct {
	// Name is the exact iss of its tokens.
	Name string
	// Audience must be among the aud of each token. It may be empty for an
	// External issuer only; then a token that has an aud is refused, because
	// it is meant for somebody else (RFC 7519, section 4.1.3).
	Audience string
	// Algorithms lists the only alg values taken from this issuer. HMAC and
	// public-key algorithms never stand in one list.
	Algorithms []string
	// Keys returns what finds the key of a token, bound to the context of one
	// Verify. It is RemoteKeys.Keyfunc for a JWKS URL. It is called from
	// many goroutines, before anything in the token can be trusted, and wraps
	// ErrKeysUnavailable when it cannot tell at this moment.
	Keys func(ctx context.Context) jwt.Keyfunc
	// AuthorizedParties, when not empty, are the allowed azp of tokens that
	// have one.
	AuthorizedParties []string
	// NameClaim and EmailClaim are the claims that hold the user's name and
	// e-mail address; empty: "name" and "email".
	NameClaim, EmailClaim string
	// External marks an issuer that is not ours: it says who somebody is and
	// no more. Its tokens must expire and are for apps, and their pair and
	// device claims are not read.
	External bool
}

// SharedSecret returns an issuer of HS256 tokens, for development: whoever
// can check such a token can also make one, for any user and role. The
// secret is copied; one shorter than MinSecretBytes is refused.
func SharedSecret(issuer, audience string, secret []byte) (Issuer, error) {
	if len(secret) < MinSecretBytes {
		return Issuer{}, fmt.Errorf("shared secret of issuer %q has %d bytes, at least %d are needed: make one with \"openssl rand -base64 48\"",
			issuer, len(secret), MinSecretBytes)
	}
	var key any = slices.Clone(secret)
	return Issuer{
		Name: issuer, Audience: audience,
		Algorithms: []string{jwt.SigningMethodHS256.Alg()},
		Keys: func(context.Context) jwt.Keyfunc {
			return func(*jwt.Token) (any, error) { return key, nil }
		},
	}, nil
}

// validate reports what makes i unusable or unsafe.
func (i *Issuer) validate() error {
	switch {
	case i.Name == "":
		return fmt.Errorf("issuer without a name")
	case i.Audience == "" && !i.External:
		return fmt.Errorf("issuer %q: no audience", i.Name)
	case i.Keys == nil:
		return fmt.Errorf("issuer %q: no keys", i.Name)
	case len(i.Algorithms) == 0:
		return fmt.Errorf("issuer %q: no algorithms", i.Name)
	}
	for _, name := range []string{i.NameClaim, i.EmailClaim} {
		if name != "" && name != "name" && name != "email" && new(claims).reader(name) != nil {
			return fmt.Errorf("issuer %q: claim %q holds no name or e-mail address", i.Name, name)
		}
	}
	for _, alg := range i.Algorithms {
		if alg == jwt.SigningMethodNone.Alg() || jwt.GetSigningMethod(alg) == nil {
			return fmt.Errorf("issuer %q: algorithm %q is not supported (use EdDSA, ES256, RS256, PS256 or HS256)", i.Name, alg)
		}
		if isHMAC(alg) != isHMAC(i.Algorithms[0]) {
			return fmt.Errorf("issuer %q: shared-secret and public-key algorithms in one list (%s)", i.Name, strings.Join(i.Algorithms, ", "))
		}
		if isHMAC(alg) && i.External {
			return fmt.Errorf("issuer %q: %s is for our own tokens only", i.Name, alg)
		}
	}
	return nil
}

func isHMAC(alg string) bool { return strings.HasPrefix(alg, "HS") }
