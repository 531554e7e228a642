// Package token verifies and issues the JSON Web Tokens (RFC 7519) that every
// door of pairsync asks for, and serves the keys to check ours with.
//
// It turns a token into a Principal: who somebody is. What they may do is
// decided by the broker's ACL and the bridge, from the Principal and the
// registry. It keeps no list of users and no sessions.
package token

import (
	"cmp"
	"time"
)

// Role says what kind of client a token is for.
type Role string

// The roles of the contract (section 3).
const (
	RoleApp    Role = "app"
	RoleDevice Role = "device"
	RoleAdmin  Role = "admin"
	// RoleBridge acts for the user named in the MQTT username.
	RoleBridge Role = "bridge"
)

// Principal is a verified identity. It is a value: copy it freely.
type Principal struct {
	User   string // sub; always a legal id
	Pair   string // the pair claim, empty when the registry is to be asked
	Device string // device tokens only
	Role   Role
	Name   string // the name claim, for people to read
	Email  string

	Issuer  string
	ID      string // jti, may be empty on external tokens
	Session string // sid: of an external issuer, or on a token of ours that was given for one of theirs

	IssuedAt time.Time
	Expires  time.Time // zero: lives until revoked
	External bool      // from an issuer that is not us
}

// Lineage names what p's token and all tokens given in exchange for it have in
// common, so that they can be revoked together: its session or, without one,
// its id. It may be empty on an external token.
func (p Principal) Lineage() string { return cmp.Or(p.Session, p.ID) }
