package moment

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseTopic(t *testing.T) {
	for name, want := range map[string]Topic{
		"pairs/p1/photos/ann/m1":     {Class: ClassMoment, Pair: "p1", User: "ann", Kind: Photo, ID: "m1"},
		"pairs/p1/notes/ann/m1":      {Class: ClassMoment, Pair: "p1", User: "ann", Kind: Note, ID: "m1"},
		"pairs/p1/reactions/ann/m1":  {Class: ClassMoment, Pair: "p1", User: "ann", Kind: Reaction, ID: "m1"},
		"pairs/p1/receipts/ann/m1":   {Class: ClassMoment, Pair: "p1", User: "ann", Kind: Receipt, ID: "m1"},
		"pairs/p1/deletes/ann/m1":    {Class: ClassMoment, Pair: "p1", User: "ann", Kind: Delete, ID: "m1"},
		"users/ann/events":           {Class: ClassEvents, User: "ann", Kind: Event},
		"pairs/p1/info":              {Class: ClassInfo, Pair: "p1"},
		"pairs/p1/newest":            {Class: ClassNewest, Pair: "p1"},
		"pairs/p1/latest/ann":        {Class: ClassLatest, Pair: "p1", User: "ann"},
		"pairs/p1/presence/ann":      {Class: ClassPresence, Pair: "p1", User: "ann"},
		"pairs/p1/live/ann/typing":   {Class: ClassLive, Pair: "p1", User: "ann", Name: "typing"},
		"pairs/p1/devices/d1/state":  {Class: ClassState, Pair: "p1", Device: "d1"},
		"pairs/p1/devices/d1/cmd":    {Class: ClassCommand, Pair: "p1", Device: "d1"},
		"home/kitchen":               {},
		"$SYS/broker/version":        {},
		"pair/p1/photos/ann/m1":      {},
		"/pairs/p1/photos/ann/m1":    {},
		"":                           {},
		"Pairs/p1/info":              {},
		"pairs/p1:x/photos/a@b.c/-_": {Class: ClassMoment, Pair: "p1:x", User: "a@b.c", Kind: Photo, ID: "-_"},
	} {
		got, err := ParseTopic(name)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: error %v, -want +got:\n%s", name, err, diff)
		}
	}
	for _, name := range []string{
		"pairs", "pairs/", "pairs/p1", "pairs/p1/", "pairs//info", "pairs/p1/films/ann/m1",
		"pairs/p1/photos", "pairs/p1/photos/ann", "pairs/p1/photos/ann/", "pairs/p1/photos//m1", "pairs/p1/photos/ann/m1/x",
		"pairs/+/photos/ann/m1", "pairs/p1/photos/#", "pairs/p1/info/x", "pairs/p1/events/ann/m1", "pairs/p1/latest",
		"pairs/p1/devices/d1", "pairs/p1/devices/d1/reboot", "pairs/p1/devices//state", "pairs/p1/live/ann", "pairs/p1/live/ann/",
		"users", "users/ann", "users/ann/photos", "users//events", "users/ann/events/1", "users/a b/events",
		"pairs/p1/photos/ann/" + strings.Repeat("m", MaxIDBytes+1),
	} {
		got, err := ParseTopic(name)
		if !errors.Is(err, ErrTopic) || got != (Topic{}) {
			t.Errorf("%q: got %+v, %v; want %v", name, got, err, ErrTopic)
		}
	}
	if _, err := ParseTopic("pairs/" + strings.Repeat("x/", 30_000)); len(err.Error()) > 300 {
		t.Errorf("a long topic makes an error of %d bytes", len(err.Error()))
	}
}

// build returns the topic's name, as its publisher makes it.
func (t Topic) build() string {
	switch t.Class {
	case ClassMoment, ClassEvents:
		m := Moment{Pair: t.Pair, User: t.User, Kind: t.Kind, ID: t.ID}
		return m.Topic()
	case ClassInfo:
		return InfoTopic(t.Pair)
	case ClassNewest:
		return NewestTopic(t.Pair)
	case ClassLatest:
		return LatestTopic(t.Pair, t.User)
	case ClassPresence:
		return PresenceTopic(t.Pair, t.User)
	case ClassLive:
		return LiveTopic(t.Pair, t.User, t.Name)
	case ClassState:
		return StateTopic(t.Pair, t.Device)
	case ClassCommand:
		return CommandTopic(t.Pair, t.Device)
	}
	return ""
}

// FuzzParseTopic checks that what parses is built back to the same name, holds
// legal ids only, and matches itself.
func FuzzParseTopic(f *testing.F) {
	for _, name := range []string{"pairs/p1/photos/ann/m1", "users/ann/events", "pairs/p1/info", "pairs/p1/newest", "pairs/p1/latest/ann",
		"pairs/p1/presence/ann", "pairs/p1/live/ann/typing", "pairs/p1/devices/d1/state", "pairs/p1/devices/d1/cmd", "$SYS/x", "pairs/+/#"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, err := ParseTopic(name)
		switch {
		case err != nil:
			if !errors.Is(err, ErrTopic) || got != (Topic{}) {
				t.Fatalf("%q: got %+v, %v", name, got, err)
			}
		case got.Class == ClassOther:
			if first, _, _ := strings.Cut(name, "/"); first == "pairs" || first == "users" {
				t.Fatalf("%q is nobody's topic", name)
			}
		default:
			if back := got.build(); back != name {
				t.Fatalf("%q is built back as %q", name, back)
			}
			for _, id := range []string{got.Pair, got.User, got.ID, got.Name, got.Device} {
				if id != "" && CheckID("any", id) != nil {
					t.Fatalf("%q holds the illegal id %q", name, id)
				}
			}
			if got.Class == ClassMoment && !Match(KindFilter(got.Pair, got.Kind, got.User), name) {
				t.Fatalf("%q is not matched by its kind's filter", name)
			}
		}
	})
}

func TestClasses(t *testing.T) {
	for c := ClassOther; c <= ClassCommand; c++ {
		durable := c == ClassMoment || c == ClassEvents
		retained := c == ClassInfo || c == ClassNewest || c == ClassLatest || c == ClassPresence || c == ClassState
		if c.Durable() != durable || c.Retained() != retained {
			t.Errorf("class %d: durable %v, retained %v", c, c.Durable(), c.Retained())
		}
	}
}

// TestMatch holds the examples of MQTT 5, section 4.7.
func TestMatch(t *testing.T) {
	for _, test := range []struct {
		filter, name string
		want         bool
	}{
		{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
		{"sport/tennis/player1/#", "sport/tennis/player2", false},
		{"sport/#", "sport", true},
		{"sport/#", "sports", false},
		{"#", "a/b", true},
		{"#", "/", true},
		{"sport/tennis/+", "sport/tennis/player1", true},
		{"sport/tennis/+", "sport/tennis/player1/ranking", false},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+/+", "/finance", true},
		{"/+", "/finance", true},
		{"+", "/finance", false},
		{"+/tennis/#", "sport/tennis", true},
		{"#", "$SYS/x", false},
		{"+/monitor/Clients", "$SYS/monitor/Clients", false},
		{"$SYS/#", "$SYS/monitor", true},
		{"$SYS/monitor/+", "$SYS/monitor/Clients", true},
		{"$SYS/#", "SYS/monitor", false},
		{"a/b", "a/b", true},
		{"a/b", "A/b", false},
		{"a/b", "a/b/", false},
		{"a/b/", "a/b", false},
		{"a//b", "a/b", false},
		{"a/+/b", "a//b", true},
	} {
		if got := Match(test.filter, test.name); got != test.want {
			t.Errorf("filter %q, name %q: got %v", test.filter, test.name, got)
		}
	}
}

// plainMatch is Match as the standard says it, level by level.
func plainMatch(filter, name []string) bool {
	switch {
	case len(filter) == 1 && filter[0] == "#":
		return true
	case len(filter) == 0 || len(name) == 0:
		return len(filter) == len(name)
	case filter[0] != "+" && filter[0] != name[0]:
		return false
	}
	return plainMatch(filter[1:], name[1:])
}

func FuzzMatch(f *testing.F) {
	f.Add("pairs/p1/photos/+/#", "pairs/p1/photos/ann/m1")
	f.Add("a/#", "a")
	f.Add("+/+", "/b")
	f.Add("#", "$SYS")
	f.Fuzz(func(t *testing.T, filter, name string) {
		if filter == "" || name == "" || strings.ContainsAny(name, "+#") {
			return
		}
		levels := strings.Split(filter, "/")
		for i, l := range levels { // section 4.7.1: alone in a level, # only in the last
			if strings.ContainsAny(l, "+#") && (len(l) > 1 || l == "#" && i < len(levels)-1) {
				return
			}
		}
		names := strings.Split(name, "/")
		want := plainMatch(levels, names)
		if name[0] == '$' && (levels[0] == "+" || levels[0] == "#") {
			want = false
		}
		if got := Match(filter, name); got != want {
			t.Errorf("filter %q, name %q: got %v, want %v", filter, name, got, want)
		}
	})
}
