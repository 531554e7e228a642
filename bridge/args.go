package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/moment"
)

// errNoObject says that an event came without the object that it needs.
var errNoObject = errors.New("the first argument is not an object")

// decodeObject decodes the JSON object that is an event's first argument.
func decodeObject(object []byte, v any) error {
	if !bytes.HasPrefix(object, []byte("{")) {
		return errNoObject
	}
	return json.Unmarshal(object, v)
}

// firstArg returns an event's first argument; nil where it has none. Further
// ones are ignored, as Socket.IO servers do.
func firstArg(e *socketio.Event) ([]byte, error) {
	args, err := e.Args()
	if err != nil || len(args) == 0 {
		return nil, err
	}
	return args[0], nil
}

// parseTime reads a time of the app's: milliseconds since 1970, as a number or
// in quotes, or RFC 3339. Anything else, and what RFC 3339 could not carry on,
// is the zero time: a phone's clock is never a reason to refuse a moment.
func parseTime(raw json.RawMessage) time.Time {
	if len(raw) == 0 || len(raw) > 64 {
		return time.Time{}
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		if at, err := time.Parse(time.RFC3339, text); err == nil {
			return inRange(at)
		}
		raw = json.RawMessage(text)
	}
	var ms float64
	if json.Unmarshal(raw, &ms) != nil || math.Abs(ms) > 1<<53 {
		return time.Time{}
	}
	return inRange(time.UnixMilli(int64(ms)))
}

func inRange(at time.Time) time.Time {
	if at = at.UTC(); at.Year() < 1970 || at.Year() > 9999 {
		return time.Time{}
	}
	return at
}

// checkText bounds a text of the app's that travels as an MQTT property.
func checkText(name, s string) *refusal {
	if len(s) > moment.MaxPropertyBytes {
		return refuse(codeInvalid, "%s of %d bytes is too long (at most %d)", name, len(s), moment.MaxPropertyBytes)
	}
	if strings.IndexByte(s, 0) >= 0 {
		return refuse(codeInvalid, "%s holds a NUL character", name)
	}
	return nil
}
