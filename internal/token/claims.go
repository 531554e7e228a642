package token

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// maxTokenIDBytes bounds jti and sid, which end up as keys in the
	// registry. The longest seen from a real issuer are UUIDs.
	maxTokenIDBytes = 256
	// maxNameBytes bounds what people read: names and e-mail addresses (RFC
	// 5321 allows an address 254).
	maxNameBytes = 256
	// maxUnix is the end of year 9999, after which RFC 3339 has no text.
	maxUnix = 253402300799
)

// claims are those claims of a token that pairsync reads. The registered ones
// keep their type from jwt, which also makes claims a jwt.Claims.
type claims struct {
	jwt.RegisteredClaims
	pair, device, role string
	texts              map[string]string // those asked for: names and e-mail addresses
	session            string            // sid
	party              string            // azp
	status             string            // sts
}

// UnmarshalJSON reads one JSON object more strictly than encoding/json does
// by itself: names are compared exactly, a claim that pairsync reads may
// appear only once, and only with its own type. Two readers that pick
// different duplicates, or take "SUB" for "sub", would disagree on who
// somebody is (RFC 8725, section 2.4). Its errors are *Error.
func (c *claims) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return invalid("the claims are not a JSON object")
	}
	seen := make(map[string]bool, 16)
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return invalid("the claims are not a JSON object")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return invalid("the claims are not a JSON object")
		}
		read := c.reader(name)
		if read == nil {
			continue
		}
		if seen[name] {
			return invalid("claim %q appears twice", name)
		}
		seen[name] = true
		if !read(value) {
			return invalid("claim %q has the wrong type", name)
		}
	}
	return nil
}

// reader returns what takes the value of the named claim and reports whether
// it had the right type, or nil for a claim that pairsync does not read.
func (c *claims) reader(name string) func(json.RawMessage) bool {
	switch name {
	case "iss":
		return into(&c.Issuer)
	case "sub":
		return into(&c.Subject)
	case "jti":
		return into(&c.ID)
	case "sid":
		return into(&c.session)
	case "azp":
		return into(&c.party)
	case "sts":
		return into(&c.status)
	case "pair":
		return into(&c.pair)
	case "device":
		return into(&c.device)
	case "role":
		return into(&c.role)
	case "aud":
		return intoAudience(&c.Audience)
	case "exp":
		return intoDate(&c.ExpiresAt)
	case "nbf":
		return intoDate(&c.NotBefore)
	case "iat":
		return intoDate(&c.IssuedAt)
	}
	if _, wanted := c.texts[name]; wanted {
		return func(value json.RawMessage) bool {
			var s string
			ok := orNull(into(&s))(value)
			c.texts[name] = s
			return ok
		}
	}
	return nil
}

func into(s *string) func(json.RawMessage) bool {
	return func(value json.RawMessage) bool {
		return value[0] == '"' && json.Unmarshal(value, s) == nil
	}
}

// orNull also takes null, for an absent value: token templates of external
// issuers fill it in for people who gave no name.
func orNull(read func(json.RawMessage) bool) func(json.RawMessage) bool {
	return func(value json.RawMessage) bool {
		return string(value) == "null" || read(value)
	}
}

// intoAudience takes one string or an array of strings (RFC 7519, 4.1.3).
func intoAudience(a *jwt.ClaimStrings) func(json.RawMessage) bool {
	return func(value json.RawMessage) bool {
		if value[0] == '"' {
			*a = make(jwt.ClaimStrings, 1)
			return json.Unmarshal(value, &(*a)[0]) == nil
		}
		var list []any // not []string, which would take a null element
		if value[0] != '[' || json.Unmarshal(value, &list) != nil {
			return false
		}
		for _, v := range list {
			s, ok := v.(string)
			if !ok {
				return false
			}
			*a = append(*a, s)
		}
		return true
	}
}

// intoDate takes a NumericDate (RFC 7519, section 2) between 1970 and 9999.
func intoDate(d **jwt.NumericDate) func(json.RawMessage) bool {
	return func(value json.RawMessage) bool {
		if value[0] < '0' || value[0] > '9' {
			return false
		}
		sec, err := strconv.ParseFloat(string(value), 64)
		if err != nil || sec > maxUnix {
			return false
		}
		*d = jwt.NewNumericDate(time.Unix(int64(sec), 0))
		return true
	}
}

// joiners hold emoji sequences and Persian words together. They cannot be
// seen by themselves, so a name must not begin or end with one.
const joiners = "\u200c\u200d"

// CleanName makes outside text fit to be shown as somebody's name or address:
// valid UTF-8, printable, without white space around it, at most 256 bytes.
// It may return an empty string. A clean name stays as it is.
func CleanName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case strings.ContainsRune(joiners, r):
			return r
		case unicode.IsSpace(r):
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
	if len(s) > maxNameBytes {
		s = strings.ToValidUTF8(s[:maxNameBytes], "")
	}
	return strings.Trim(s, " "+joiners)
}
