package config

import (
	"errors"
	"fmt"
	"log/slog"
)

// hidden is what a set Secret prints as.
const hidden = "<secret>"

// Secret is a value that must not be seen: it prints as <secret> in fmt, JSON,
// YAML and slog, and as nothing when it is empty. It can be set in the
// environment, or by the key of the same name with _file appended, never in
// the configuration file itself. The zero value is empty.
type Secret struct {
	// A pointer, so that fmt prints an address where a Secret sits in an
	// unexported field and its methods cannot be called.
	value *string
}

// NewSecret returns a Secret that holds s.
func NewSecret(s string) Secret {
	if s == "" {
		return Secret{}
	}
	return Secret{&s}
}

// Reveal returns the value. Hand it only to what needs it.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports whether s is empty.
func (s Secret) IsZero() bool { return s.value == nil }

// Equal reports whether s and o hold the same value.
func (s Secret) Equal(o Secret) bool { return s.Reveal() == o.Reveal() }

// String returns <secret>, or nothing for an empty Secret.
func (s Secret) String() string {
	if s.value == nil {
		return ""
	}
	return hidden
}

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// MarshalText implements encoding.TextMarshaler, for JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// errInFile is why a Secret cannot be read by any decoder.
var errInFile = errors.New("a secret does not belong here: write it to a file and name that in the key with _file appended, or set the environment variable")

// UnmarshalText implements encoding.TextUnmarshaler by refusing: text that a
// decoder has in its hands is text that gets printed.
func (s *Secret) UnmarshalText([]byte) error { return errInFile }
