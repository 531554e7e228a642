package moment

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

// ReceiptBody is the payload of a receipt: "device D of user U has stored (or
// shown) moment M". U is in the topic; Device is empty for an app.
type ReceiptBody struct {
	Moment string    `json:"moment"`
	Sender string    `json:"sender"`
	Status string    `json:"status"` // StatusStored or StatusShown
	Device string    `json:"device"`
	At     time.Time `json:"at"`
}

// What a receipt may say.
const (
	StatusStored = "stored"
	StatusShown  = "shown"
)

// ReactionBody is the payload of a reaction; an empty Reaction takes the
// earlier one back.
type ReactionBody struct {
	Moment   string `json:"moment"`
	Sender   string `json:"sender"`
	Reaction string `json:"reaction"`
}

// PairInfo is the retained payload of InfoTopic.
type PairInfo struct {
	Users   []PairUser `json:"users"`
	Created time.Time  `json:"created"`
}

// PairUser is one of the two users of a pair.
type PairUser struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Newest is the retained payload of NewestTopic, at most 1 KiB.
type Newest struct {
	Sender string    `json:"sender"`
	Moment string    `json:"moment"`
	Type   string    `json:"type"`
	Bytes  int       `json:"bytes"`
	At     time.Time `json:"at"`
	URL    string    `json:"url"`
}

// Presence is the retained payload of PresenceTopic. Online means that an app
// session is connected; devices appear in Clients only.
type Presence struct {
	Online  bool      `json:"online"`
	Since   time.Time `json:"since"`
	Clients []string  `json:"clients"`
}

// Command is the payload of CommandTopic. ID names the moment it is about,
// where it is about one.
type Command struct {
	Cmd string `json:"cmd"`
	ID  string `json:"id,omitempty"`
}

// ReceiptID returns the id of the receipt that device (empty for an app) gives
// for sender's moment: the same every time, so that a repeated receipt is
// stored once.
func ReceiptID(sender, moment, device, status string) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{sender, moment, device, status}, "\x00")))
	return "r-" + hex.EncodeToString(sum[:16])
}
