package registry

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/kv/kvtest"
	"pairsync/internal/token"

	"github.com/google/go-cmp/cmp"
)

func TestRevoked(t *testing.T) {
	r, store := newTest(t)
	frame, old := mustDevice(t, r, "ann", "frame"), mustDevice(t, r, "ann", "old frame")
	_, err := r.RevokeDevice(t.Context(), old.ID)
	must(t, err)
	bound := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	must(t, r.RevokeUser(t.Context(), "bob", bound))
	must(t, r.RevokeToken(t.Context(), "lost", time.Time{}))
	device := func(user, id string) token.Principal {
		return token.Principal{User: user, Device: id, Role: token.RoleDevice, ID: "j", IssuedAt: bound}
	}
	external := device("ann", "theirs")
	external.External = true
	for _, tt := range []struct {
		name string
		p    token.Principal
		want bool
	}{
		{"somebody unknown", token.Principal{User: "eve", Role: token.RoleApp, ID: "j"}, false},
		{"a token", token.Principal{User: "eve", Role: token.RoleApp, ID: "lost"}, true},
		{"of a session", token.Principal{User: "eve", Role: token.RoleApp, ID: "j", Session: "lost"}, true},
		{"no token id", token.Principal{User: "eve", Role: token.RoleApp}, false},
		{"user, before", token.Principal{User: "bob", IssuedAt: bound.Add(-time.Second)}, true},
		{"user, at that second", token.Principal{User: "bob", IssuedAt: bound}, false},
		{"user, after", token.Principal{User: "bob", IssuedAt: bound.Add(time.Second)}, false},
		{"user, unknown age", token.Principal{User: "bob"}, true},
		{"user, external token", token.Principal{User: "bob", External: true, IssuedAt: bound.Add(-time.Hour)}, true},
		{"device", device("ann", frame.ID), false},
		{"revoked device", device("ann", old.ID), true},
		{"unknown device", device("ann", "d1"), true},
		{"device of another user", device("eve", frame.ID), true},
		{"device by no id", device("ann", ""), true},
		{"device of an external issuer", external, false},
	} {
		for name, open := range map[string]*Registry{"running": r, "reopened": openTest(t, store)} {
			if got := open.Revoked(tt.p); got != tt.want {
				t.Errorf("%s (%s): revoked %t, want %t", tt.name, name, got, tt.want)
			}
		}
	}
}

// TestVerifierAsksRegistry puts both packages together, as the daemon does.
func TestVerifierAsksRegistry(t *testing.T) {
	r, _ := newTest(t)
	keys, err := token.OpenKeys(t.TempDir())
	must(t, err)
	v, err := token.NewVerifier(r.Revoked, keys.Issuer("pairsync", "pairsync"))
	must(t, err)
	d := mustDevice(t, r, "ann", "frame")
	raw, signed, err := token.NewSigner(keys, "pairsync", "pairsync").Sign(token.Principal{User: "ann", Device: d.ID}, 0)
	must(t, err)
	got, err := v.Verify(t.Context(), raw)
	if err != nil || got != signed {
		t.Fatalf("Verify: %+v, %v, want %+v", got, err, signed)
	}
	_, err = r.RevokeDevice(t.Context(), d.ID)
	must(t, err)
	if _, err := v.Verify(t.Context(), raw); err == nil || !strings.HasPrefix(err.Error(), string(token.CodeRevoked)) {
		t.Errorf("Verify of a revoked device: %v, want %s", err, token.CodeRevoked)
	}
}

func TestRevokeUserOnlyGrows(t *testing.T) {
	r, store := newTest(t)
	bound := time.Now()
	must(t, r.RevokeUser(t.Context(), "ann", bound))
	must(t, r.RevokeUser(t.Context(), "ann", bound.Add(-time.Hour)))
	must(t, r.SeeUser(t.Context(), "ann", "Ann", ""))
	for _, open := range []*Registry{r, openTest(t, store)} {
		if !open.Revoked(token.Principal{User: "ann", IssuedAt: bound.Add(-time.Minute)}) {
			t.Error("an earlier bound, or a new name, took the revocation back")
		}
		if open.Name("ann") != "Ann" {
			t.Errorf("name %q, want Ann", open.Name("ann"))
		}
	}
	if err := r.RevokeUser(t.Context(), "ann", time.Time{}); err == nil {
		t.Error("RevokeUser without a time succeeded")
	}
	if err := r.RevokeUser(t.Context(), "a/b", bound); err == nil {
		t.Error("RevokeUser of an illegal id succeeded")
	}
}

func TestRevokeTokenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, store := newTest(t)
		start := time.Now()
		must(t, r.RevokeToken(t.Context(), "longer", start.Add(time.Hour)))
		must(t, r.RevokeToken(t.Context(), "longer", start.Add(100*time.Hour)))
		must(t, r.RevokeToken(t.Context(), "shorter", start.Add(100*time.Hour)))
		must(t, r.RevokeToken(t.Context(), "shorter", start.Add(time.Hour)))
		must(t, r.RevokeToken(t.Context(), "endless", time.Time{}))
		must(t, r.RevokeToken(t.Context(), "endless", start.Add(time.Hour)))
		must(t, r.RevokeToken(t.Context(), "endless 2", start.Add(time.Hour)))
		must(t, r.RevokeToken(t.Context(), "endless 2", time.Time{}))
		time.Sleep(48 * time.Hour)
		for _, open := range []*Registry{r, openTest(t, store)} {
			for _, id := range []string{"longer", "shorter", "endless", "endless 2"} {
				if !open.Revoked(token.Principal{ID: id}) {
					t.Errorf("%q is not revoked any more", id)
				}
			}
		}
	})
	r, _ := newTest(t)
	for _, id := range []string{"", strings.Repeat("j", maxTokenIDBytes+1)} {
		if err := r.RevokeToken(t.Context(), id, time.Time{}); err == nil {
			t.Errorf("RevokeToken of an id of %d bytes succeeded", len(id))
		}
	}
}

// TestRevocationsArePruned holds that a revocation outlives its token, and
// does not stay for ever.
func TestRevocationsArePruned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(kvtest.Memory)
		r := openTest(t, store)
		for i := range 3*maxPruned + 1 {
			must(t, r.RevokeToken(t.Context(), fmt.Sprintf("old-%03d", i), time.Now().Add(time.Hour)))
		}
		time.Sleep(time.Hour + revocationSlack)
		must(t, r.RevokeToken(t.Context(), "new-1", time.Now().Add(time.Hour)))
		if got, want := len(keysOf(t, store, keyToken)), 3*maxPruned+2; got != want {
			t.Fatalf("%d records before the time, want %d", got, want)
		}
		time.Sleep(time.Second)
		must(t, r.RevokeToken(t.Context(), "new-2", time.Now().Add(time.Hour)))
		if got, want := len(keysOf(t, store, keyToken)), 2*maxPruned+3; got != want {
			t.Errorf("%d records after one more revocation, want %d", got, want)
		}
		openTest(t, store)
		if diff := cmp.Diff([]string{keyToken + "new-1", keyToken + "new-2"}, keysOf(t, store, keyToken)); diff != "" {
			t.Errorf("records after Open (-want +got):\n%s", diff)
		}
	})
}
