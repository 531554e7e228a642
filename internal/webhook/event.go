package webhook

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"pairsync/internal/ledger"
)

// The types of events. The comment names the type of their data.
const (
	MomentQueued    = "moment.queued"    // Queued
	MomentDelivered = "moment.delivered" // Delivered
	MomentExpired   = "moment.expired"   // Expired
	PairCreated     = "pair.created"     // Pair
	PairRemoved     = "pair.removed"     // Pair
	DeviceLinked    = "device.linked"    // Device
)

// Queued is the data of moment.queued: something waits for somebody whose app
// is away. It counts what came since the last such event for this recipient.
type Queued struct {
	Pair      string `json:"pair"`
	Recipient string `json:"recipient"`
	Sender    string `json:"sender"`
	Count     int    `json:"count"` // of all that follows
	Photos    int    `json:"photos"`
	Notes     int    `json:"notes"`
	Reactions int    `json:"reactions"`
}

// Delivered is the data of moment.delivered: a device of the recipient has
// stored a moment of the sender. There is one for each device.
type Delivered struct {
	Pair      string    `json:"pair"`
	Sender    string    `json:"sender"`
	Moment    string    `json:"moment"`
	Recipient string    `json:"recipient"`
	Device    string    `json:"device"` // empty: the app
	At        time.Time `json:"at"`     // when the server had the receipt
}

// Expired is the data of moment.expired: moments became too old before
// everybody had them.
type Expired struct {
	Pair  string `json:"pair"`
	Count int    `json:"count"`
}

// Pair is the data of pair.created and pair.removed.
type Pair struct {
	Pair  string    `json:"pair"`
	Users [2]string `json:"users"`
}

// Device is the data of device.linked.
type Device struct {
	Device string `json:"device"`
	User   string `json:"user"`
	Pair   string `json:"pair,omitempty"` // empty: the user has none
}

// event is one that waits in the outbox, as it is kept on disk.
type event struct {
	ID      string          `json:"id"` // webhook-id
	Type    string          `json:"type"`
	Body    json.RawMessage `json:"body"` // what is sent
	Created time.Time       `json:"created"`
	Tries   int             `json:"tries"`
	Next    time.Time       `json:"next"` // not before
	// Of moment.queued: whom it is about and what it counted, so that it can be
	// dropped when that has arrived meanwhile.
	Recipient string     `json:"recipient,omitempty"`
	After     ledger.Seq `json:"after,omitempty"`
	Through   ledger.Seq `json:"through,omitempty"`

	busy bool // it is being sent
}

// newEvent makes an event of what happened at the time at. Its id comes from
// identity, which says what it tells: told again after a crash it has the same.
func newEvent(kind string, at time.Time, data any, identity ...any) (*event, error) {
	body, err := json.Marshal(struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      any       `json:"data"`
	}{kind, at.UTC(), data})
	if err != nil {
		return nil, fmt.Errorf("event %s: %w", kind, err)
	}
	parts := []string{kind}
	for _, v := range identity {
		parts = append(parts, fmt.Sprint(v))
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return &event{ID: "evt_" + hex.EncodeToString(sum[:16]), Type: kind, Body: body, Created: time.Now().UTC()}, nil
}
