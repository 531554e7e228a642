package moment

import (
	"fmt"
	"time"
	"unicode/utf8"
)

// Property is one MQTT 5 user property.
type Property struct{ Key, Value string }

// The user properties of the contract (section 2).
const (
	PropCaption    = "caption"
	PropTakenAt    = "taken-at"
	PropSenderName = "sender-name"
	PropDevice     = "device"
	PropMessageID  = "message-id"
	PropStoredAt   = "stored-at"
	PropShowUntil  = "show-until" // when frames hide a photo, RFC 3339; kept in Extra
	PropMoment     = "moment"     // on latest/{user} only
	PropBackfill   = "backfill"   // on SUBSCRIBE only
)

// Limits of what travels beside a payload. They keep the header of an entry
// small enough to be read without its payload, and inside badger's
// transaction limits on a device (facts-badger.md).
const (
	MaxCaptionBytes  = 4 << 10
	MaxPropertyBytes = 1 << 10 // any other single value
	MaxExtraBytes    = 4 << 10 // all unknown properties together
)

// SetProperties fills m's fields from the user properties of a PUBLISH.
// Unknown ones are kept in Extra; stored-at and moment are ignored, because
// only the server sets them (a receiver uses SetDelivered). It fails, naming the
// property, on text that is not UTF-8, on a value over its limit and on a
// taken-at that is not RFC 3339.
func (m *Moment) SetProperties(props []Property) error {
	extra := 0
	for _, p := range props {
		limit := MaxPropertyBytes
		if p.Key == PropCaption {
			limit = MaxCaptionBytes
		}
		if len(p.Value) > limit {
			return fmt.Errorf("property %q of %d bytes is too long (at most %d)", clip(p.Key), len(p.Value), limit)
		}
		if !utf8.ValidString(p.Key) || !utf8.ValidString(p.Value) {
			return fmt.Errorf("property %q is not UTF-8", clip(p.Key))
		}
		switch p.Key {
		case PropCaption:
			m.Caption = p.Value
		case PropTakenAt:
			at, err := time.Parse(time.RFC3339, p.Value)
			if err != nil {
				return fmt.Errorf("property %q: %q is not an RFC 3339 time", p.Key, clip(p.Value))
			}
			m.TakenAt = at
		case PropSenderName:
			m.SenderName = p.Value
		case PropDevice:
			m.Device = p.Value
		case PropMessageID:
			m.MessageID = p.Value
		case PropStoredAt, PropMoment, PropBackfill: // the server's own, or not of a publish
		default:
			if extra += len(p.Key) + len(p.Value); extra > MaxExtraBytes {
				return fmt.Errorf("unknown properties of more than %d bytes together", MaxExtraBytes)
			}
			m.Extra = append(m.Extra, p)
		}
	}
	return nil
}

// SetDelivered is SetProperties for a receiver: it also takes stored-at.
func (m *Moment) SetDelivered(props []Property) error {
	for _, p := range props {
		if p.Key != PropStoredAt {
			continue
		}
		at, err := time.Parse(time.RFC3339, p.Value)
		if err != nil {
			return fmt.Errorf("property %q: %q is not an RFC 3339 time", p.Key, clip(p.Value))
		}
		m.StoredAt = at
	}
	return m.SetProperties(props)
}

// Properties returns the user properties that carry m's fields, empty ones
// left out, in a fixed order, the unknown ones last.
func (m *Moment) Properties() []Property {
	out := make([]Property, 0, 6+len(m.Extra))
	add := func(k, v string) {
		if v != "" {
			out = append(out, Property{k, v})
		}
	}
	add(PropCaption, m.Caption)
	if !m.TakenAt.IsZero() {
		add(PropTakenAt, m.TakenAt.Format(time.RFC3339Nano))
	}
	add(PropSenderName, m.SenderName)
	add(PropDevice, m.Device)
	add(PropMessageID, m.MessageID)
	if !m.StoredAt.IsZero() {
		add(PropStoredAt, m.StoredAt.UTC().Format(time.RFC3339Nano))
	}
	return append(out, m.Extra...)
}

// ScheduleClientID is the MQTT client id under which the bridge publishes what
// its user had scheduled. No device id can hold the slash, so it is nobody's.
const ScheduleClientID = "app-/schedule"

// ShowUntil returns when frames should hide m, or zero for never. A text that
// is not RFC 3339 says nothing.
func (m *Moment) ShowUntil() time.Time {
	for _, p := range m.Extra {
		if p.Key == PropShowUntil {
			if at, err := time.Parse(time.RFC3339, p.Value); err == nil {
				return at
			}
		}
	}
	return time.Time{}
}

// clip shortens outside text for an error message.
func clip(s string) string {
	const most = 160 // bytes: a topic of ordinary ids stays whole
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
