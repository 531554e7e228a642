package token

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"pairsync/internal/moment"

	"github.com/golang-jwt/jwt/v5"
)

// Signer makes our own tokens with the newest of its keys. It is immutable
// and safe for concurrent use.
type Signer struct {
	keys             *Keys
	issuer, audience string
}

// NewSigner returns a Signer whose tokens a Verifier accepts that was given
// keys.Issuer(issuer, audience).
func NewSigner(keys *Keys, issuer, audience string) *Signer {
	return &Signer{keys: keys, issuer: issuer, audience: audience}
}

// signedClaims is what a token of ours holds.
type signedClaims struct {
	jwt.RegisteredClaims
	Pair   string `json:"pair,omitempty"`
	Device string `json:"device,omitempty"`
	Role   Role   `json:"role"`
	Name   string `json:"name,omitempty"`
	Email  string `json:"email,omitempty"`
	SID    string `json:"sid,omitempty"`
	ACL    []rule `json:"acl"`
}

// Sign returns a token for p that expires ttl from now, to the second, and p
// as Verify will return it. With ttl 0 it lives until revoked, which only
// device tokens may. An empty role means device where p.Device is set, else
// app. p's issuer, token id and times are ignored; illegal ids are an error.
func (s *Signer) Sign(p Principal, ttl time.Duration) (raw string, signed Principal, err error) {
	if p.Role == "" {
		p.Role = RoleApp
		if p.Device != "" {
			p.Role = RoleDevice
		}
	}
	if err := p.check(); err != nil {
		return "", Principal{}, fmt.Errorf("sign token: %w", err)
	}
	if !isTokenID(p.Session) {
		return "", Principal{}, fmt.Errorf("sign token: a session (sid) is a printable text of at most %d bytes", maxTokenIDBytes)
	}
	if ttl < 0 || ttl > 0 && ttl < time.Second {
		return "", Principal{}, fmt.Errorf("sign token: lifetime %s is shorter than a second", ttl)
	}
	if ttl == 0 && p.Role != RoleDevice {
		return "", Principal{}, errors.New("sign token: only device tokens may live until revoked; give a lifetime")
	}
	// Times in a token have whole seconds. In UTC they compare equal to what
	// Verify returns.
	now := time.Now().UTC().Truncate(time.Second)
	signed = Principal{
		User: p.User, Pair: p.Pair, Device: p.Device, Role: p.Role,
		Name: CleanName(p.Name), Email: CleanName(p.Email), Session: p.Session,
		Issuer: s.issuer, ID: strings.ToLower(rand.Text()), IssuedAt: now,
	}
	c := signedClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: s.issuer, Subject: signed.User, Audience: jwt.ClaimStrings{s.audience},
			IssuedAt: jwt.NewNumericDate(now), ID: signed.ID,
		},
		Pair: signed.Pair, Device: signed.Device, Role: signed.Role,
		Name: signed.Name, Email: signed.Email, SID: signed.Session,
		ACL: rules(signed),
	}
	if ttl > 0 {
		signed.Expires = now.Add(ttl).Truncate(time.Second)
		c.ExpiresAt = jwt.NewNumericDate(signed.Expires)
	}
	key := s.keys.signing()
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, &c)
	t.Header["kid"] = key.id
	if raw, err = t.SignedString(key.private); err != nil {
		return "", Principal{}, fmt.Errorf("sign token: %w", err)
	}
	if len(raw) > MaxTokenBytes {
		return "", Principal{}, fmt.Errorf("sign token: %d bytes are too long (at most %d): give shorter ids or names", len(raw), MaxTokenBytes)
	}
	return raw, signed, nil
}

// rule is one entry of the acl claim, in the format of EMQX since 5.5
// (https://docs.emqx.com/en/emqx/latest/access-control/authn/acl.html).
type rule struct {
	Permission string `json:"permission"`
	Action     string `json:"action"`
	Topic      string `json:"topic"`
}

// actingUser is EMQX's placeholder for the MQTT username, in which a bridge
// token names the user it acts for.
const actingUser = "${username}"

// rules returns what p may do, as the ACL of the contract (section 2) has it,
// for brokers that decide by the token alone. Our own broker does not read
// them: it knows the registry, where pairs end. Each rule allows; whatever
// none of them matches is for EMQX to deny, with authorization.no_match =
// deny and no other source configured. A principal without a pair has no
// rights in any, since such a broker cannot ask the registry.
func rules(p Principal) []rule {
	allow := func(action, topic string) rule { return rule{"allow", action, topic} }
	user, pair := p.User, p.Pair
	switch p.Role {
	case RoleAdmin:
		return []rule{allow("all", "#")}
	case RoleBridge:
		user = actingUser
		if pair == "" {
			pair = "+"
		}
	}
	list := []rule{allow("subscribe", "users/"+user+"/#")}
	if pair == "" {
		return list
	}
	list = append(list, allow("subscribe", "pairs/"+pair+"/#"))
	for _, kind := range []moment.Kind{moment.Photo, moment.Note, moment.Reaction, moment.Receipt, moment.Delete} {
		list = append(list, allow("publish", moment.KindFilter(pair, kind, user)))
	}
	list = append(list,
		allow("publish", moment.LiveTopic(pair, user, "+")),
		allow("publish", moment.CommandTopic(pair, "+")))
	if p.Device != "" {
		list = append(list, allow("publish", moment.StateTopic(pair, p.Device)))
	}
	return list
}
