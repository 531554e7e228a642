package token

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pairsync/internal/moment"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// MaxTokenBytes is the longest token that is looked at. Ours have about
	// 1.5 KB, those of external issuers with many claims 2–4 KB.
	MaxTokenBytes = 8 << 10
	// Leeway is how far apart the issuer's clock and ours may be (contract,
	// section 3).
	Leeway = 10 * time.Second
)

// Verifier turns tokens into principals. It is immutable and safe for
// concurrent use.
type Verifier struct {
	revoked func(Principal) bool
	// issuers by name; those that share one have no algorithm in common, so
	// that a token's iss and alg always lead to one issuer's keys.
	issuers map[string][]*Issuer
	texts   []string // the claims in which issuers say names and e-mail addresses
	parser  *jwt.Parser
}

// NewVerifier returns a Verifier that accepts tokens of the given issuers
// that revoked does not know as revoked. revoked may be nil for "none are";
// it is called from many goroutines, with a principal verified in all other
// respects. Two issuers may share a name if their algorithms differ (our own
// keys and a shared secret for development). It is an error to give no
// issuer, or one that could not be checked safely.
func NewVerifier(revoked func(Principal) bool, issuers ...Issuer) (*Verifier, error) {
	if len(issuers) == 0 {
		return nil, errors.New("no token issuers configured")
	}
	v := &Verifier{
		revoked: revoked,
		issuers: make(map[string][]*Issuer, len(issuers)),
		// The claims are checked here and not by the parser, whose errors do
		// not say by how much a token is too old or what audience it is for.
		parser: jwt.NewParser(jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation()),
	}
	for _, i := range issuers {
		if err := i.validate(); err != nil {
			return nil, err
		}
		i.Algorithms = slices.Clone(i.Algorithms)
		i.AuthorizedParties = slices.Clone(i.AuthorizedParties)
		i.NameClaim, i.EmailClaim = cmp.Or(i.NameClaim, "name"), cmp.Or(i.EmailClaim, "email")
		v.texts = append(v.texts, i.NameClaim, i.EmailClaim)
		for _, other := range v.issuers[i.Name] {
			for _, alg := range i.Algorithms {
				if slices.Contains(other.Algorithms, alg) {
					return nil, fmt.Errorf("issuer %q is configured twice for %s", i.Name, alg)
				}
			}
		}
		v.issuers[i.Name] = append(v.issuers[i.Name], &i)
	}
	return v, nil
}

// Verify checks raw and returns whom it is for. ctx bounds the look-up of an
// external issuer's keys. The error is always an *Error; the Principal is
// then empty.
func (v *Verifier) Verify(ctx context.Context, raw string) (Principal, error) {
	return v.VerifyReturning(ctx, raw, nil)
}

// VerifyReturning is Verify, but for one thing: a token of an external issuer
// that has expired, and is good in all other respects, is accepted where known
// says so. It is for a door that has seen the token's session before.
func (v *Verifier) VerifyReturning(ctx context.Context, raw string, known func(Principal) bool) (Principal, error) {
	if raw == "" {
		return Principal{}, &Error{Code: CodeMissing, Reason: "no token was given"}
	}
	if len(raw) > MaxTokenBytes {
		return Principal{}, invalid("a token of %d bytes is too long (at most %d)", len(raw), MaxTokenBytes)
	}
	if !isTokenText(raw) {
		return Principal{}, invalid("not a JWT: it has characters other than A–Z a–z 0–9 _ - and dots")
	}
	c := claims{texts: make(map[string]string, 2)}
	for _, name := range v.texts {
		c.texts[name] = ""
	}
	var from *Issuer
	_, err := v.parser.ParseWithClaims(raw, &c, func(t *jwt.Token) (any, error) {
		i, err := v.issuerOf(t, &c)
		if err != nil {
			return nil, err
		}
		from = i
		return i.key(ctx, t)
	})
	if err != nil {
		return Principal{}, refusal(err)
	}
	p, err := from.principal(&c, time.Now(), known)
	if err != nil {
		return Principal{}, err
	}
	if v.revoked != nil && v.revoked(p) {
		return Principal{}, &Error{Code: CodeRevoked, Reason: "this token, its device or its user's tokens were revoked"}
	}
	return p, nil
}

// issuerOf chooses the issuer by what the token claims of itself. Nothing in
// it is trusted yet: the claim only decides whose key must have signed it,
// and with which algorithm.
func (v *Verifier) issuerOf(t *jwt.Token, c *claims) (*Issuer, error) {
	if _, has := t.Header["crit"]; has {
		return nil, invalid("header \"crit\" asks for an extension that is not supported")
	}
	if c.Issuer == "" {
		return nil, invalid("the token names no issuer (iss)")
	}
	known := v.issuers[c.Issuer]
	if len(known) == 0 {
		return nil, invalid("issuer %q is not accepted here", clip(c.Issuer))
	}
	for _, i := range known {
		if slices.Contains(i.Algorithms, t.Method.Alg()) {
			return i, nil
		}
	}
	return nil, invalid("algorithm %q is not accepted from issuer %q", t.Method.Alg(), clip(c.Issuer))
}

// key finds the key that must have signed t.
func (i *Issuer) key(ctx context.Context, t *jwt.Token) (any, error) {
	key, err := i.Keys(ctx)(t)
	var refused *Error
	switch {
	case err == nil:
		return key, nil
	case errors.As(err, &refused):
		return nil, refused
	case errors.Is(err, ErrKeysUnavailable):
		return nil, &Error{Code: CodeInvalid, Reason: fmt.Sprintf("the keys of issuer %q cannot be fetched at the moment", i.Name), cause: err}
	}
	return nil, &Error{Code: CodeInvalid, Reason: fmt.Sprintf("issuer %q has no key for this token", i.Name), cause: err}
}

// refusal turns an error of the parser, which may quote the token, into ours.
func refusal(err error) *Error {
	var refused *Error
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.Is(err, jwt.ErrTokenMalformed):
		return invalid("not a JWT: it must be three base64url parts, the first two of them JSON objects")
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return invalid("the signature does not match: the token was altered or made with another key")
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return invalid("the token names no algorithm that is supported here")
	}
	return invalid("the token cannot be read")
}

// principal checks the claims of a token whose signature is good. known is
// that of VerifyReturning.
func (i *Issuer) principal(c *claims, now time.Time, known func(Principal) bool) (Principal, error) {
	p := Principal{
		User: c.Subject, Role: RoleApp,
		Name: CleanName(c.texts[i.NameClaim]), Email: CleanName(c.texts[i.EmailClaim]),
		Issuer: i.Name, ID: c.ID, Session: c.session, External: i.External,
	}
	if c.IssuedAt != nil {
		p.IssuedAt = c.IssuedAt.UTC()
	}
	if c.ExpiresAt != nil {
		p.Expires = c.ExpiresAt.UTC()
	}
	if err := i.checkParties(c); err != nil {
		return Principal{}, err
	}
	if !i.External {
		p.Pair, p.Device, p.Role = c.pair, c.device, ownRole(c)
	} else if r := Role(c.role); r == RoleAdmin || r == RoleBridge || r == RoleDevice {
		return Principal{}, invalid("role %q is not taken from issuer %q", r, i.Name)
	}
	if err := p.check(); err != nil {
		return Principal{}, invalid("%s", err)
	}
	err := checkTimes(c, &p, now)
	if e := (*Error)(nil); known != nil && i.External && errors.As(err, &e) && e.Code == CodeExpired && known(p) {
		err = nil
	}
	if err != nil {
		return Principal{}, err
	}
	return p, nil
}

// ownRole returns the role that a token of ours has.
func ownRole(c *claims) Role {
	switch {
	case c.role != "":
		return Role(c.role)
	case c.device != "":
		return RoleDevice
	}
	return RoleApp
}

// checkParties checks for whom the token was made, and its form.
func (i *Issuer) checkParties(c *claims) error {
	switch {
	case i.Audience == "" && len(c.Audience) > 0:
		return invalid("audience %q: tokens of issuer %q must have none here", clip(c.Audience[0]), i.Name)
	case i.Audience != "" && len(c.Audience) == 0:
		return invalid("the token names no audience (aud), %q is needed", i.Audience)
	case i.Audience != "" && !slices.Contains(c.Audience, i.Audience):
		return invalid("audience %q is not the one needed (%q)", clip(c.Audience[0]), i.Audience)
	case c.party != "" && len(i.AuthorizedParties) > 0 && !slices.Contains(i.AuthorizedParties, c.party):
		return invalid("authorized party %q (azp) is not on the list", clip(c.party))
	case c.status == "pending":
		return invalid("the session is still pending (sts): finish signing in")
	case !isTokenID(c.ID):
		return invalid("claim \"jti\" is not a printable text of at most %d bytes", maxTokenIDBytes)
	case !isTokenID(c.session):
		return invalid("claim \"sid\" is not a printable text of at most %d bytes", maxTokenIDBytes)
	}
	return nil
}

// checkTimes checks exp, nbf and iat. Expiry comes first: it is the one that
// a client can do something about.
func checkTimes(c *claims, p *Principal, now time.Time) error {
	switch {
	case c.ExpiresAt == nil && p.Role != RoleDevice: // external tokens never have that role
		return invalid("the token never expires (exp is missing): only device tokens may live until revoked")
	case c.ExpiresAt != nil && !now.Before(p.Expires.Add(Leeway)):
		return &Error{Code: CodeExpired, Reason: fmt.Sprintf("token expired %s ago", now.Sub(p.Expires).Round(time.Second))}
	case c.NotBefore != nil && now.Add(Leeway).Before(c.NotBefore.Time):
		return invalid("token is not valid for another %s (nbf): check the clocks", c.NotBefore.Sub(now).Round(time.Second))
	case c.IssuedAt != nil && now.Add(Leeway).Before(p.IssuedAt):
		return invalid("token was issued %s in the future (iat): check the clocks", p.IssuedAt.Sub(now).Round(time.Second))
	}
	return nil
}

// check reports ids outside the contract's alphabet, and a role that does not
// exist or does not fit the device claim. Signing holds to it as well.
func (p *Principal) check() error {
	if err := moment.CheckID("user", p.User); err != nil {
		return err
	}
	if p.Pair != "" {
		if err := moment.CheckID("pair", p.Pair); err != nil {
			return err
		}
	}
	switch p.Role {
	case RoleDevice:
		return moment.CheckID("device", p.Device)
	case RoleApp, RoleAdmin, RoleBridge:
		if p.Device != "" {
			return fmt.Errorf("role %q does not go with a device (only role %q does)", p.Role, RoleDevice)
		}
		return nil
	}
	return fmt.Errorf("role %q is unknown (app, device, admin or bridge)", clip(string(p.Role)))
}

// isTokenText reports whether s has only the characters of a JWT in compact
// form. The base64 decoder would pass over line breaks.
func isTokenText(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-', c == '.':
		default:
			return false
		}
	}
	return true
}

// isTokenID reports whether s can be a jti or sid: printable ASCII, not too
// long, or empty.
func isTokenID(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= maxTokenIDBytes
}
