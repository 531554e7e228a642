package moment

import (
	"errors"
	"fmt"
	"strings"
)

// Class says what a topic of the contract is for, and so how the broker
// treats it.
type Class int

// The classes of topics. ClassOther is everything outside pairs/ and users/,
// which only the admin role may use.
const (
	ClassOther Class = iota
	ClassMoment
	ClassEvents
	ClassInfo
	ClassNewest
	ClassLatest
	ClassPresence
	ClassLive
	ClassState
	ClassCommand
)

// Durable reports whether topics of class c go through the ledger.
func (c Class) Durable() bool { return c == ClassMoment || c == ClassEvents }

// Retained reports whether topics of class c carry a retained value.
func (c Class) Retained() bool {
	switch c {
	case ClassInfo, ClassNewest, ClassLatest, ClassPresence, ClassState:
		return true
	}
	return false
}

// Topic is a parsed topic name of the contract. Fields that the class does
// not have are empty.
type Topic struct {
	Class  Class
	Pair   string
	User   string
	Kind   Kind   // ClassMoment and ClassEvents
	ID     string // ClassMoment
	Name   string // ClassLive
	Device string // ClassState, ClassCommand
}

// ErrTopic is wrapped by every error of ParseTopic. It does not say whether
// the caller may use the topic, only that the contract has no such topic.
var ErrTopic = errors.New("not a topic of pairsync")

// ParseTopic parses a topic name (never a filter). Topics outside pairs/ and
// users/ give ClassOther and no error; a topic inside them that the contract
// does not define, or with an illegal id, is an error that wraps ErrTopic.
func ParseTopic(name string) (Topic, error) {
	t, err := parseTopic(strings.Split(name, "/"))
	if err != nil {
		return Topic{}, fmt.Errorf("topic %q: %w", clip(name), err)
	}
	return t, nil
}

func parseTopic(l []string) (Topic, error) {
	switch l[0] {
	case "users":
		if len(l) != 3 || l[2] != "events" {
			return Topic{}, ErrTopic
		}
		return checked(Topic{Class: ClassEvents, Kind: Event, User: l[1]})
	case "pairs":
		if len(l) < 3 {
			return Topic{}, ErrTopic
		}
		return parsePair(l)
	}
	return Topic{Class: ClassOther}, nil
}

func parsePair(l []string) (Topic, error) {
	t := Topic{Pair: l[1]}
	rest := l[3:]
	switch what := l[2]; {
	case what == "info" && len(rest) == 0:
		t.Class = ClassInfo
	case what == "newest" && len(rest) == 0:
		t.Class = ClassNewest
	case what == "latest" && len(rest) == 1:
		t.Class, t.User = ClassLatest, rest[0]
	case what == "presence" && len(rest) == 1:
		t.Class, t.User = ClassPresence, rest[0]
	case what == "live" && len(rest) == 2:
		t.Class, t.User, t.Name = ClassLive, rest[0], rest[1]
	case what == "devices" && len(rest) == 2 && rest[1] == "state":
		t.Class, t.Device = ClassState, rest[0]
	case what == "devices" && len(rest) == 2 && rest[1] == "cmd":
		t.Class, t.Device = ClassCommand, rest[0]
	case Kind(what).InPair() && len(rest) == 2:
		t.Class, t.Kind, t.User, t.ID = ClassMoment, Kind(what), rest[0], rest[1]
	default:
		return Topic{}, ErrTopic
	}
	return checked(t)
}

// checked verifies every id that the topic's class has.
func checked(t Topic) (Topic, error) {
	for _, f := range []struct {
		what, id string
		has      bool
	}{
		{"pair", t.Pair, t.Class != ClassEvents},
		{"user", t.User, t.Class == ClassMoment || t.Class == ClassEvents || t.Class == ClassLatest || t.Class == ClassPresence || t.Class == ClassLive},
		{"moment", t.ID, t.Class == ClassMoment},
		{"live", t.Name, t.Class == ClassLive},
		{"device", t.Device, t.Class == ClassState || t.Class == ClassCommand},
	} {
		if !f.has {
			continue
		}
		if err := CheckID(f.what, f.id); err != nil {
			return Topic{}, fmt.Errorf("%w: %w", ErrTopic, err)
		}
	}
	return t, nil
}

// The topics that are not moments. Arguments must be legal ids.

// EventsTopic returns the topic of a user's durable pairing events.
func EventsTopic(user string) string { return "users/" + user + "/events" }

// InfoTopic returns the retained topic that tells who is in a pair (PairInfo).
func InfoTopic(pair string) string { return "pairs/" + pair + "/info" }

// NewestTopic returns the retained topic for small widgets (Newest).
func NewestTopic(pair string) string { return "pairs/" + pair + "/newest" }

// LatestTopic returns the retained topic with a user's newest photo.
func LatestTopic(pair, user string) string { return "pairs/" + pair + "/latest/" + user }

// PresenceTopic returns the retained topic of a user's Presence.
func PresenceTopic(pair, user string) string { return "pairs/" + pair + "/presence/" + user }

// LiveTopic returns the ephemeral topic name of user ("heartbeat", "typing").
func LiveTopic(pair, user, name string) string { return "pairs/" + pair + "/live/" + user + "/" + name }

// StateTopic returns the retained topic of a device's own state.
func StateTopic(pair, device string) string { return "pairs/" + pair + "/devices/" + device + "/state" }

// CommandTopic returns the topic on which a device takes commands.
func CommandTopic(pair, device string) string { return "pairs/" + pair + "/devices/" + device + "/cmd" }

// KindFilter returns the filter for everything of one kind that user sends to
// pair: "pairs/{pair}/{kind}/{user}/+".
func KindFilter(pair string, kind Kind, user string) string {
	return "pairs/" + pair + "/" + string(kind) + "/" + user + "/+"
}

// Match reports whether an MQTT topic filter matches a topic name (MQTT 5,
// section 4.7). Neither is validated; a leading $ in the name is matched by a
// literal first level only. Shared-subscription prefixes are the caller's.
func Match(filter, name string) bool {
	if strings.HasPrefix(name, "$") && !strings.HasPrefix(filter, "$") {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		n, nrest, nmore := strings.Cut(name, "/")
		if f != "+" && f != n {
			return false
		}
		switch {
		case !fmore && !nmore:
			return true
		case !nmore:
			return frest == "#" // "a/#" also matches "a"
		case !fmore:
			return false
		}
		filter, name = frest, nrest
	}
}
