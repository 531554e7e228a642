package registry

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNames(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, tt := range []struct {
		name        string
		ann, bob    string // the name claims of users ann and bob, a pair
		want, want2 string
	}{
		{"none seen", "", "", "ann", "bob"},
		{"both seen", "Ann A.", "Bob B.", "Ann A.", "Bob B."},
		{"one seen", "Ann A.", "", "Ann A.", "bob"},
		{"the same", "Alex", "Alex", "ann", "bob"},
		{"the same but for case", "alex", "ALEX", "ann", "bob"},
		{"the same but for spaces", " Alex", "Alex\t", "ann", "bob"},
		{"named as the partner's id", "Bob", "", "ann", "bob"},
		{"named as the partner's id, who has another name", "bob", "Robert", "ann", "Robert"},
		{"swapped", "bob", "ann", "ann", "bob"},
		{"named as oneself", "ann", "bob", "ann", "bob"},
		{"nothing printable", "\x00\u202e", "Bob", "ann", "Bob"},
		{"long", long, "Bob", long[:256], "Bob"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, store := newTest(t)
			must(t, r.SeeUser(t.Context(), "ann", tt.ann, ""))
			must(t, r.SeeUser(t.Context(), "bob", tt.bob, ""))
			mustPair(t, r, "ann", "bob")
			for _, open := range []*Registry{r, openTest(t, store)} {
				if diff := cmp.Diff([]string{tt.want, tt.want2}, []string{open.Name("ann"), open.Name("bob")}); diff != "" {
					t.Errorf("names (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestNameWithoutPair(t *testing.T) {
	r, _ := newTest(t)
	must(t, r.SeeUser(t.Context(), "ann", "Alex", "alex@example.com"))
	must(t, r.SeeUser(t.Context(), "bob", "Alex", "Alex@example.com"))
	if r.Name("ann") != "Alex" || r.Name("bob") != "Alex" || r.Email("ann") == "" {
		t.Errorf("strangers may share a name: %q, %q", r.Name("ann"), r.Name("bob"))
	}
	p := mustPair(t, r, "ann", "bob")
	if r.Name("ann") != "ann" || r.Email("ann") != "" || r.Email("bob") != "" {
		t.Errorf("partners share %q, %q, %q", r.Name("ann"), r.Email("ann"), r.Email("bob"))
	}
	_, err := r.RemovePair(t.Context(), p.ID)
	must(t, err)
	if r.Name("ann") != "Alex" || r.Email("bob") != "Alex@example.com" {
		t.Errorf("after the pair's end: %q, %q", r.Name("ann"), r.Email("bob"))
	}
}

func TestSeeUser(t *testing.T) {
	r, store := newTest(t)
	told := new(changes)
	defer r.Watch(told.add)()
	see := func(name, email string) {
		t.Helper()
		must(t, r.SeeUser(t.Context(), "ann", name, email))
	}
	see("", "")
	if keys := keysOf(t, store, ""); len(keys) != 0 {
		t.Errorf("nothing seen was stored: %q", keys)
	}
	see("Ann", "a@b.c")
	see("Ann", "a@b.c")
	see("", "")
	must(t, r.lock(t.Context())) // a slow change of somebody else
	see("Ann", "a@b.c")
	r.unlock()
	see("Anna", "")
	see("", "anna@b.c")
	if r.Name("ann") != "Anna" || r.Email("ann") != "anna@b.c" {
		t.Errorf("name %q, email %q, want the last of each", r.Name("ann"), r.Email("ann"))
	}
	want := Change{Kind: UserSeen, User: "ann"}
	if diff := cmp.Diff([]Change{want, want, want}, told.all()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if err := r.SeeUser(t.Context(), "a/b", "x", ""); err == nil {
		t.Error("SeeUser of an illegal id succeeded")
	}
}
