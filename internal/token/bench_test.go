package token

import "testing"

// BenchmarkVerify is what one CONNECT pays for its token.
func BenchmarkVerify(b *testing.B) {
	keys := newTestKeys(b)
	v := newTestVerifier(b, nil, keys.Issuer(testIssuer, testAudience), newTestSecret(b, "dev"))
	for name, raw := range map[string]string{
		"EdDSA": mustSign(b, NewSigner(keys, testIssuer, testAudience), Principal{User: "ann", Pair: "01j0000000000000000000000", Device: "01j0000000000000000000001"}),
		"HS256": forge(b, "HS256", testSecret, `{"alg":"HS256"}`, edit(ownClaims(), map[string]any{"iss": "dev"})),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := v.Verify(b.Context(), raw); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
