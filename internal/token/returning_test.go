package token

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestVerifyReturning has tokens that have expired.
func TestVerifyReturning(t *testing.T) {
	keys := newTestKeys(t)
	signer := foreignKey(t)
	inClerkWorld(t, func(t *testing.T, w *clerkWorld) {
		w.server.set = keySet(t, publish(t, "k1", signer.Public()))
		w.start()
		gone := false
		v := newTestVerifier(t, func(Principal) bool { return gone }, keys.Issuer(testIssuer, testAudience),
			Issuer{Name: clerkIssuer, Algorithms: []string{"EdDSA"}, Keys: w.keys.Keyfunc, External: true, AuthorizedParties: []string{"app"}})
		external := func(changes map[string]any) string {
			c := map[string]any{"iss": clerkIssuer, "aud": nil, "sid": "s1", "exp": time.Now().Add(-time.Hour).Unix()}
			for k, v := range changes {
				c[k] = v
			}
			return forge(t, "EdDSA", signer, `{"alg":"EdDSA","kid":"k1"}`, edit(ownClaims(), c))
		}
		var asked []Principal
		yes := func(p Principal) bool { asked = append(asked, p); return true }
		no := func(p Principal) bool { return false }
		for _, tt := range []struct {
			name  string
			raw   string
			known func(Principal) bool
			code  Code // empty: accepted
			asks  int
		}{
			{"expired and known", external(nil), yes, "", 1},
			{"expired and not known", external(nil), no, CodeExpired, 0},
			{"nobody to ask", external(nil), nil, CodeExpired, 0},
			{"live", external(map[string]any{"exp": time.Now().Add(time.Hour).Unix()}), yes, "", 0},
			{"our own", own(t, keys, edit(ownClaims(), map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})), yes, CodeExpired, 0},
			{"another party", external(map[string]any{"azp": "evil"}), yes, CodeInvalid, 0},
			{"pending", external(map[string]any{"sts": "pending"}), yes, CodeInvalid, 0},
			{"no expiry", external(map[string]any{"exp": nil}), yes, CodeInvalid, 0},
			{"altered", external(nil)[:len(external(nil))-8] + "AAAAAAAA", yes, CodeInvalid, 0},
		} {
			asked = nil
			p, err := v.VerifyReturning(t.Context(), tt.raw, tt.known)
			if len(asked) != tt.asks {
				t.Errorf("%s: asked %d times, want %d", tt.name, len(asked), tt.asks)
			}
			if tt.code != "" {
				refusedWith(t, p, err, tt.code)
			} else if err != nil || p.User != "ann" || tt.asks > 0 && cmp.Diff(p, asked[0]) != "" {
				t.Errorf("%s: %+v, %v; want it accepted", tt.name, p, err)
			}
		}
		gone = true
		p, err := v.VerifyReturning(t.Context(), external(nil), yes)
		refusedWith(t, p, err, CodeRevoked)
	})
}

// TestClaimNames: an issuer may say names in claims of its own.
func TestClaimNames(t *testing.T) {
	signer := foreignKey(t)
	inClerkWorld(t, func(t *testing.T, w *clerkWorld) {
		w.server.set = keySet(t, publish(t, "k1", signer.Public()))
		w.start()
		i := Issuer{Name: clerkIssuer, Algorithms: []string{"EdDSA"}, Keys: w.keys.Keyfunc, External: true, NameClaim: "full_name", EmailClaim: "primary_email"}
		v := newTestVerifier(t, nil, i)
		token := func(changes map[string]any) string {
			c := map[string]any{"iss": clerkIssuer, "aud": nil, "name": "not this", "email": "not@this"}
			for k, v := range changes {
				c[k] = v
			}
			return forge(t, "EdDSA", signer, `{"alg":"EdDSA","kid":"k1"}`, edit(ownClaims(), c))
		}
		p, err := v.Verify(t.Context(), token(map[string]any{"full_name": "Ann A.", "primary_email": "ann@example.org"}))
		if err != nil || p.Name != "Ann A." || p.Email != "ann@example.org" {
			t.Errorf("%q %q, %v; want the claims that were named", p.Name, p.Email, err)
		}
		p, err = v.Verify(t.Context(), token(map[string]any{"full_name": 7}))
		refusedWith(t, p, err, CodeInvalid)
		i.NameClaim = "sub"
		if _, err := NewVerifier(nil, i); err == nil || !strings.Contains(err.Error(), `claim "sub"`) {
			t.Errorf("the subject as a name: %v", err)
		}
	})
}
