// Package moment is pairsync's message model: what a pair shares, how it is
// named, and how it looks on MQTT.
//
// It is the only place that builds or parses topics and the only place that
// knows which MQTT 5 properties carry which field. It does no I/O, knows no
// MQTT library and holds no state; every function is safe for concurrent use.
//
//	pairs/{pair}/photos/{user}/{moment}      durable, image bytes
//	pairs/{pair}/notes/{user}/{moment}       durable, UTF-8 text
//	pairs/{pair}/reactions/{user}/{id}       durable, JSON Reaction
//	pairs/{pair}/receipts/{user}/{id}        durable, JSON Receipt
//	pairs/{pair}/deletes/{user}/{moment}     durable, empty
//	users/{user}/events                      durable, JSON pairing event
//	pairs/{pair}/info|newest                 retained, broker only
//	pairs/{pair}/latest/{user}               retained, broker only
//	pairs/{pair}/presence/{user}             retained, broker only
//	pairs/{pair}/live/{user}/{name}          ephemeral
//	pairs/{pair}/devices/{device}/state|cmd  retained | ephemeral
package moment

import (
	"fmt"
	"time"
)

// Kind says what a moment is. Its text is the topic level that carries it.
type Kind string

// The durable kinds. Events live in a user's own log, the rest in the pair's.
const (
	Photo    Kind = "photos"
	Note     Kind = "notes"
	Reaction Kind = "reactions"
	Receipt  Kind = "receipts"
	Delete   Kind = "deletes"
	Event    Kind = "events"
)

// Valid reports whether k is one of the durable kinds.
func (k Kind) Valid() bool { return k.InPair() || k == Event }

// InPair reports whether moments of kind k live in a pair's log, under
// pairs/{pair}/{kind}/{user}/{id}.
func (k Kind) InPair() bool {
	switch k {
	case Photo, Note, Reaction, Receipt, Delete:
		return true
	}
	return false
}

// MaxIDBytes is the longest id the contract allows (contract, section 1).
const MaxIDBytes = 128

// Key is a moment's identity inside its log. Publishing the same Key twice
// stores it once; the first bytes win.
type Key struct {
	User string
	Kind Kind
	ID   string
}

// String returns "kind/user/id", for logs and errors.
func (k Key) String() string { return string(k.Kind) + "/" + k.User + "/" + k.ID }

// Moment is one thing sent to a pair (or, for Kind Event, told to one user).
// The zero value is not valid; see Validate. A Moment owns its Payload: whoever
// is handed one may keep it and must not modify it.
type Moment struct {
	Pair string // empty for Event
	User string // the sender; for Event the user it is addressed to
	Kind Kind
	ID   string // unique per (User, Kind); chosen by the sender

	ContentType string
	Caption     string
	TakenAt     time.Time // zero when unknown; RFC 3339 on the wire; never used for order
	SenderName  string
	Device      string     // the sending device's id, empty for an app
	MessageID   string     // the app's second key to the same moment, may be empty
	Origin      string     // the sender's MQTT client id, for No Local; never on the wire; may be empty
	StoredAt    time.Time  // set by the server when it was appended
	ExpiresAt   time.Time  // zero, or when Message Expiry ends it (MQTT 5, 3.3.2.3.3)
	Extra       []Property // user properties that pairsync does not know, in order

	Payload []byte
}

// Key returns the moment's identity inside its log.
func (m *Moment) Key() Key { return Key{User: m.User, Kind: m.Kind, ID: m.ID} }

// Topic returns the MQTT topic of a valid moment.
func (m *Moment) Topic() string {
	if m.Kind == Event {
		return EventsTopic(m.User)
	}
	return "pairs/" + m.Pair + "/" + string(m.Kind) + "/" + m.User + "/" + m.ID
}

// Validate reports the first thing that makes m impossible to store: an
// unknown kind or an id outside the contract's alphabet.
func (m *Moment) Validate() error {
	if !m.Kind.Valid() {
		return fmt.Errorf("moment kind %q: unknown", m.Kind)
	}
	if m.Kind.InPair() {
		if err := CheckID("pair", m.Pair); err != nil {
			return err
		}
	}
	if err := CheckID("user", m.User); err != nil {
		return err
	}
	return CheckID("moment", m.ID)
}

// CheckID reports whether s is a legal id: 1–128 characters of
// A–Z a–z 0–9 _ - . : @. what names it in the error ("pair", "user", …).
func CheckID(what, s string) error {
	if s == "" {
		return fmt.Errorf("%s id is empty", what)
	}
	if len(s) > MaxIDBytes {
		return fmt.Errorf("%s id of %d bytes is too long (at most %d)", what, len(s), MaxIDBytes)
	}
	for i := range len(s) {
		if !idByte(s[i]) {
			return fmt.Errorf("%s id %q: character %q is not allowed (use A–Z a–z 0–9 _ - . : @)", what, s, s[i:i+1])
		}
	}
	return nil
}

func idByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	switch c {
	case '_', '-', '.', ':', '@':
		return true
	}
	return false
}
