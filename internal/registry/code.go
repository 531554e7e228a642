package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"pairsync/internal/kv"
	"pairsync/internal/moment"
)

const (
	// CodeLife is how long a pairing code can be used (contract, section 5).
	CodeLife = 15 * time.Minute
	// CodeLength is a pairing code's length in characters: 30⁶ are 729
	// million, few enough to type.
	CodeLength = 6
	// codeAlphabet has no characters that look like others: no 0 O, 1 I L, and
	// no U, which is heard and read as V.
	codeAlphabet = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
)

var (
	// ErrCode is wrapped by JoinPair for a code that does not work: it was
	// never given, is too old, was used or replaced. Which of them is not said:
	// it would help nobody but those who guess.
	ErrCode = errors.New("the pairing code is wrong, too old or used: ask your partner for a new one")
	// ErrPartnerPaired is wrapped by JoinPair when the user who gave the code
	// has found somebody else meanwhile.
	ErrPartnerPaired = errors.New("the one who gave the code is paired already")
)

// PairingCode lets whoever knows it become the partner of User, once.
type PairingCode struct {
	Code    string // CodeLength characters of codeAlphabet
	User    string
	Expires time.Time // UTC, whole milliseconds
}

type codeRecord struct {
	V       int       `json:"v"`
	Code    string    `json:"code"`
	User    string    `json:"user"`
	Expires time.Time `json:"expires"`
}

// NewPairingCode makes a code of user, which replaces the one they had. It
// fails with ErrPaired when they are in a pair.
func (r *Registry) NewPairingCode(ctx context.Context, user string) (PairingCode, error) {
	if err := moment.CheckID("user", user); err != nil {
		return PairingCode{}, fmt.Errorf("make pairing code: %w", err)
	}
	if err := r.lock(ctx); err != nil {
		return PairingCode{}, fmt.Errorf("make pairing code: %w", err)
	}
	defer r.unlock()
	if p, ok := r.PairOf(user); ok {
		return PairingCode{}, fmt.Errorf("make pairing code: user %q is in pair %q: %w", user, p.ID, ErrPaired)
	}
	c := PairingCode{Code: randomCode(CodeLength), User: user, Expires: now().Add(CodeLife)}
	for _, taken := r.codes[c.Code]; taken; _, taken = r.codes[c.Code] {
		c.Code = randomCode(CodeLength)
	}
	op, err := put(keyCode+user, codeRecord{recordVersion, c.Code, user, c.Expires})
	if err != nil {
		return PairingCode{}, fmt.Errorf("make pairing code: %w", err)
	}
	ops, old := []kv.Op{op}, r.oldCodes()
	for _, o := range old {
		if o.User != user {
			ops = append(ops, o.deletion())
		}
	}
	err = r.commit(ctx, func() {
		for _, o := range old {
			r.dropCode(o.User)
		}
		r.dropCode(user)
		r.setCode(c)
	}, Change{Kind: CodeMade, User: user}, ops...)
	if err != nil {
		return PairingCode{}, fmt.Errorf("make pairing code of %q: %w", user, err)
	}
	return c, nil
}

// JoinPair makes user the partner of whoever gave code, and uses the code up:
// both or neither. It fails with ErrCode, ErrPaired when user is in a pair,
// ErrPartnerPaired when the other one is, and ErrSameUser for one's own code.
// Small letters, spaces and dashes in code do not matter.
func (r *Registry) JoinPair(ctx context.Context, code, user string) (Pair, error) {
	if err := moment.CheckID("user", user); err != nil {
		return Pair{}, fmt.Errorf("join pair: %w", err)
	}
	if err := r.lock(ctx); err != nil {
		return Pair{}, fmt.Errorf("join pair: %w", err)
	}
	defer r.unlock()
	if p, ok := r.PairOf(user); ok {
		return Pair{}, fmt.Errorf("join pair: user %q is in pair %q: %w", user, p.ID, ErrPaired)
	}
	c, ok := r.codes[cleanCode(code)]
	if !ok || !now().Before(c.Expires) {
		return Pair{}, fmt.Errorf("join pair: %w", ErrCode)
	}
	if c.User == user {
		return Pair{}, fmt.Errorf("join pair with one's own code: %w", ErrSameUser)
	}
	if _, ok := r.PairOf(c.User); ok {
		return Pair{}, fmt.Errorf("join pair of %q: %w", c.User, ErrPartnerPaired)
	}
	p, err := r.makePair(ctx, c.User, user, true)
	if err != nil {
		return Pair{}, fmt.Errorf("join pair: %w", err)
	}
	return p, nil
}

// endCodes returns what removes the codes of users, on disk and in memory: a
// code must not outlive the pair that its user was in meanwhile.
func (r *Registry) endCodes(users ...string) (ops []kv.Op, apply func()) {
	for _, u := range users {
		if c, ok := r.codeOf[u]; ok {
			ops = append(ops, r.codes[c].deletion())
		}
	}
	return ops, func() {
		for _, u := range users {
			r.dropCode(u)
		}
	}
}

// oldCodes returns the codes that nobody can use any more. The write lock is
// held. It looks at all: there are no more than were made in the last
// CodeLife, and those since the last call.
func (r *Registry) oldCodes() []PairingCode {
	var old []PairingCode
	for _, c := range r.codes {
		if !now().Before(c.Expires) {
			old = append(old, c)
		}
	}
	return old
}

func (c PairingCode) deletion() kv.Op { return kv.Op{Key: keyCode + c.User, Delete: true} }

// setCode and dropCode change memory; mu is held, or nobody else knows r yet.
func (r *Registry) setCode(c PairingCode) { r.codes[c.Code], r.codeOf[c.User] = c, c.Code }

func (r *Registry) dropCode(user string) {
	delete(r.codes, r.codeOf[user])
	delete(r.codeOf, user)
}

func (r *Registry) loadCode(user string, value []byte) error {
	var c codeRecord
	if err := decode(value, &c); err != nil {
		return err
	}
	if err := errors.Join(sameID(user, c.User), moment.CheckID("user", c.User)); err != nil {
		return damaged(err)
	}
	if len(c.Code) != CodeLength {
		return damaged(fmt.Errorf("a code of %d characters", len(c.Code)))
	}
	r.setCode(PairingCode{Code: c.Code, User: c.User, Expires: c.Expires})
	return nil
}

// cleanCode undoes what people and keyboards do to a code.
func cleanCode(s string) string {
	if len(s) > 4*CodeLength {
		return ""
	}
	return strings.ToUpper(strings.NewReplacer(" ", "", "-", "").Replace(s))
}

// randomCode returns n characters that nobody can foresee.
func randomCode(n int) string {
	out := make([]byte, 0, n)
	var b [1]byte
	for len(out) < n {
		rand.Read(b[:]) // never fails
		// What does not divide evenly is thrown away: every character is as likely.
		if int(b[0]) < 256/len(codeAlphabet)*len(codeAlphabet) {
			out = append(out, codeAlphabet[int(b[0])%len(codeAlphabet)])
		}
	}
	return string(out)
}
