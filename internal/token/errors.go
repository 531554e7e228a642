package token

import (
	"errors"
	"fmt"
)

// Code says in one word why a token was refused, for programs (contract,
// section 4).
type Code string

// The codes of the contract. CodeRateLimited is never returned by Verify: the
// doors that count attempts use it.
const (
	CodeMissing     Code = "token_missing"
	CodeInvalid     Code = "token_invalid"
	CodeExpired     Code = "token_expired"
	CodeRevoked     Code = "revoked"
	CodeRateLimited Code = "rate_limited"
)

// ErrKeysUnavailable is wrapped by an Issuer's Keys when the keys cannot be
// had at this moment (a JWKS server that does not answer). It does not mean
// that the issuer has no such key.
var ErrKeysUnavailable = errors.New("signing keys unavailable")

// Error is why a token was refused. Every error of Verify is one.
type Error struct {
	Code Code
	// Reason is for people; it is safe to show to whoever sent the token and
	// to log, and never holds text of the token beyond its issuer, audience,
	// algorithm, key id and ids, quoted and shortened.
	Reason string

	cause error // of a key look-up; nil otherwise
}

// Error returns the code and the reason.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Reason }

// Unwrap returns the failure of the key look-up behind the refusal, or nil.
func (e *Error) Unwrap() error { return e.cause }

// Retryable reports whether the same token may be accepted a little later
// without anybody doing anything: after a rate limit, or once the issuer's
// keys can be fetched again.
func (e *Error) Retryable() bool {
	return e.Code == CodeRateLimited || errors.Is(e.cause, ErrKeysUnavailable)
}

func invalid(format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Reason: fmt.Sprintf(format, args...)}
}

// clip shortens outside text for a reason.
func clip(s string) string {
	const longest = 64
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}
