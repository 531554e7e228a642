package moment

import (
	"strings"
	"testing"
)

func TestCheckID(t *testing.T) {
	for _, id := range []string{"a", "user_2abcDEF", "jane@example.org", "a-b.c:d_e@f", "0", strings.Repeat("x", MaxIDBytes)} {
		if err := CheckID("user", id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for id, want := range map[string]string{
		"":                                   "empty",
		strings.Repeat("x", MaxIDBytes+1):    "too long",
		"a/b":                                `"/"`,
		"+":                                  `"+"`,
		"#":                                  `"#"`,
		"$SYS":                               `"$"`,
		"a b":                                `" "`,
		"a\x00b":                             `"\x00"`,
		"zoë":                                "not allowed",
		"a\n":                                `"\n"`,
		"a%2fb":                              `"%"`,
		"\xff":                               `"\xff"`,
		"..\\":                               "not allowed",
		strings.Repeat("é", MaxIDBytes/2):    "not allowed",
		strings.Repeat("é", MaxIDBytes/2+10): "too long",
	} {
		err := CheckID("pair", id)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "pair") {
			t.Errorf("%q: got %v, want an error with %q", id, err, want)
		}
	}
}

func FuzzCheckID(f *testing.F) {
	f.Add("user_1")
	f.Add("zoë")
	f.Fuzz(func(t *testing.T, id string) {
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:@"
		legal := id != "" && len(id) <= 128 && strings.Trim(id, alphabet) == ""
		for _, c := range id { // Trim looks at the ends only
			legal = legal && strings.ContainsRune(alphabet, c)
		}
		if got := CheckID("user", id) == nil; got != legal {
			t.Errorf("%q: legal is %v, want %v", id, got, legal)
		}
	})
}

func TestValidate(t *testing.T) {
	valid := Moment{Pair: "p1", User: "ann", Kind: Photo, ID: "m1"}
	for name, test := range map[string]struct {
		change func(*Moment)
		want   string
	}{
		"photo":             {func(m *Moment) {}, ""},
		"receipt":           {func(m *Moment) { m.Kind = Receipt }, ""},
		"event, no pair":    {func(m *Moment) { m.Kind, m.Pair = Event, "" }, ""},
		"zero":              {func(m *Moment) { *m = Moment{} }, "kind"},
		"unknown kind":      {func(m *Moment) { m.Kind = "films" }, `"films"`},
		"no pair":           {func(m *Moment) { m.Pair = "" }, "pair id is empty"},
		"foreign character": {func(m *Moment) { m.User = "a/b" }, "user id"},
		"no id":             {func(m *Moment) { m.ID = "" }, "moment id is empty"},
	} {
		m := valid
		test.change(&m)
		err := m.Validate()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

func TestKinds(t *testing.T) {
	for kind, want := range map[Kind]struct{ valid, inPair bool }{
		Photo: {true, true}, Note: {true, true}, Reaction: {true, true}, Receipt: {true, true}, Delete: {true, true},
		Event: {true, false}, "": {false, false}, "films": {false, false}, "live": {false, false},
	} {
		if kind.Valid() != want.valid || kind.InPair() != want.inPair {
			t.Errorf("%q: valid %v, in pair %v; want %+v", kind, kind.Valid(), kind.InPair(), want)
		}
	}
}

func TestTopicOfMoment(t *testing.T) {
	m := Moment{Pair: "p1", User: "ann", Kind: Photo, ID: "m1"}
	if got := m.Topic(); got != "pairs/p1/photos/ann/m1" {
		t.Errorf("photo: %q", got)
	}
	if got := m.Key(); got != (Key{"ann", Photo, "m1"}) || got.String() != "photos/ann/m1" {
		t.Errorf("key: %v", got)
	}
	e := Moment{User: "ann", Kind: Event, ID: "e1"}
	if got := e.Topic(); got != "users/ann/events" {
		t.Errorf("event: %q", got)
	}
}
