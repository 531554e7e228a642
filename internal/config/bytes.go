package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a size. It reads and prints as a number with a unit: "4MiB",
// "1.5 GB", "300" (bytes).
type Bytes int64

// The units of Bytes, largest first, binary before decimal.
var units = []struct {
	name string
	size int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

// ParseBytes reads a size. It fails on negative ones, on fractions of a byte
// and on units it does not know; case does not matter.
func ParseBytes(s string) (Bytes, error) {
	number, factor := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		if rest, ok := cutSuffixFold(number, u.name); ok {
			number, factor = strings.TrimSpace(rest), u.size
			break
		}
	}
	bad := func() (Bytes, error) {
		return 0, fmt.Errorf("%q is not a size (examples: 4MiB, 200KB, 1048576)", s)
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		if n < 0 || n > math.MaxInt64/factor {
			return bad()
		}
		return Bytes(n * factor), nil
	}
	if strings.Trim(number, "0123456789.") != "" {
		return bad() // no exponents, signs, infinities
	}
	f, err := strconv.ParseFloat(number, 64)
	if f *= float64(factor); err != nil || f != math.Trunc(f) || f >= 1<<62 {
		return bad()
	}
	return Bytes(f), nil
}

func cutSuffixFold(s, suffix string) (string, bool) {
	i := len(s) - len(suffix)
	if i < 0 || !strings.EqualFold(s[i:], suffix) {
		return s, false
	}
	return s[:i], true
}

// String returns b in the largest unit that loses nothing.
func (b Bytes) String() string {
	for _, u := range units {
		if b != 0 && int64(b)%u.size == 0 && u.size > 1 {
			return strconv.FormatInt(int64(b)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// Rounded returns b for people: three digits or so, in binary units.
func (b Bytes) Rounded() string {
	for _, u := range units[:4] {
		if int64(b) >= u.size {
			return strconv.FormatFloat(float64(b)/float64(u.size), 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + " B"
}

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBytes(string(text))
	return err
}
