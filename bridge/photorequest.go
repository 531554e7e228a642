package bridge

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"strings"
	"time"

	"github.com/segmentio/asm/base64"

	"pairsync/internal/moment"
)

// photoRequest is a send_photo as it was read: checked in form, its image not
// decoded yet. Its byte slices belong to the event and are valid as long as
// that is.
type photoRequest struct {
	PhotoID   string
	PartnerID string
	MessageID string // empty in a resend from the app's queue
	Caption   string
	TakenAt   time.Time // zero when the phone gave none that makes sense

	// Of schedule_photo only, as they came.
	ScheduledTime, Duration json.RawMessage

	// The image: base64 text, or the bytes themselves where the phone sent a
	// Socket.IO attachment.
	base64 []byte
	binary []byte
}

// photoParser reads the object that send_photo comes with.
//
// A photo is hundreds of kilobytes in one JSON string, and encoding/json takes
// 1.5 ms for what is mostly a memory scan. So the parser cuts the string out
// by looking for its quotes, puts a mark in its place and has encoding/json
// read the small rest. If the mark does not come back as the one photoData of
// the event, the cut was wrong (a photoData in some inner object, say), and
// the whole is read the general way. See facts-socketio.md, Speed.
type photoParser struct {
	// mark is random so that no event can hold it by intention.
	mark string
}

func newPhotoParser() photoParser { return photoParser{mark: "!" + rand.Text()} }

// What the parser looks for, and how large a rest it bothers to copy.
const (
	photoDataKey = `"photoData":"`
	maxRest      = 32 << 10
)

// parse reads object, the JSON of the event's argument. Everything but the
// image is validated. With a refusal comes what could be read all the same.
func (p photoParser) parse(object []byte, attachments [][]byte) (photoRequest, *refusal) {
	if r, ok := p.fast(object); ok {
		return r, r.check()
	}
	r, no := p.general(object, attachments)
	if no != nil {
		return r, no
	}
	return r, r.check()
}

// fast is the path of every well-formed base64 photo. Where it says no, general
// decides.
func (p photoParser) fast(object []byte) (photoRequest, bool) {
	at := bytes.Index(object, []byte(photoDataKey))
	if at < 0 {
		return photoRequest{}, false
	}
	start := at + len(photoDataKey)
	n := bytes.IndexByte(object[start:], '"')
	if n < 0 || len(object)-n > maxRest {
		return photoRequest{}, false
	}
	data := object[start : start+n]
	if bytes.IndexByte(data, '\\') >= 0 {
		return photoRequest{}, false
	}
	data, ok := cutDataURL(data)
	if !ok || len(data)%4 != 0 {
		return photoRequest{}, false
	}
	rest := make([]byte, 0, len(object)-n+len(p.mark))
	rest = append(append(append(rest, object[:start]...), p.mark...), object[start+n:]...)
	f, err := parsePhotoFields(rest)
	if err != nil || f.PhotoData.times != 1 || string(f.PhotoData.text) != `"`+p.mark+`"` {
		return photoRequest{}, false
	}
	r := f.request()
	r.base64 = data
	return r, true
}

// general reads the event with encoding/json alone.
func (p photoParser) general(object []byte, attachments [][]byte) (photoRequest, *refusal) {
	f, err := parsePhotoFields(object)
	if err != nil {
		return photoRequest{}, refuse(codeInvalid, "send_photo needs one object {photoId, photoData, partnerId, timestamp}: %v", err)
	}
	r := f.request()
	switch data := f.PhotoData.text; {
	case len(data) == 0 || string(data) == "null":
		return r, refuse(codePhoto, "photoData is missing")
	case data[0] == '"':
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return r, refuse(codeInvalid, "photoData is not a JSON string: %v", err)
		}
		cut, ok := cutDataURL([]byte(text))
		if !ok {
			return r, refuse(codePhoto, "photoData has a data: prefix that is not base64")
		}
		r.base64 = dropLineEnds(cut)
	case data[0] == '{':
		b, no := attachmentOf(data, attachments)
		if no != nil {
			return r, no
		}
		r.binary = b
	default:
		return r, refuse(codePhoto, "photoData is neither base64 text nor a binary attachment")
	}
	return r, nil
}

// attachmentOf resolves a Socket.IO placeholder (protocol 5, binary events).
func attachmentOf(data []byte, attachments [][]byte) ([]byte, *refusal) {
	var ph struct {
		Placeholder bool `json:"_placeholder"`
		Num         int  `json:"num"`
	}
	if err := json.Unmarshal(data, &ph); err != nil || !ph.Placeholder || ph.Num < 0 || ph.Num >= len(attachments) {
		return nil, refuse(codePhoto, "photoData is neither base64 text nor a binary attachment")
	}
	return attachments[ph.Num], nil
}

// photoFields is the event's object.
type photoFields struct {
	PhotoID   string          `json:"photoId"`
	PhotoData occurrence      `json:"photoData"`
	PartnerID string          `json:"partnerId"`
	Caption   string          `json:"caption"`
	MessageID string          `json:"messageId"`
	Timestamp json.RawMessage `json:"timestamp"`

	ScheduledTime json.RawMessage `json:"scheduledTime"`
	Duration      json.RawMessage `json:"duration"`
}

// occurrence is a JSON value as it stands, and how often its key occurred.
type occurrence struct {
	text  []byte
	times int
}

// UnmarshalJSON keeps b and counts.
func (o *occurrence) UnmarshalJSON(b []byte) error {
	o.text = append(o.text[:0], b...)
	o.times++
	return nil
}

func parsePhotoFields(object []byte) (photoFields, error) {
	var f photoFields
	err := decodeObject(object, &f)
	return f, err
}

func (f *photoFields) request() photoRequest {
	return photoRequest{
		PhotoID: f.PhotoID, PartnerID: f.PartnerID, MessageID: f.MessageID, Caption: f.Caption,
		TakenAt: parseTime(f.Timestamp), ScheduledTime: f.ScheduledTime, Duration: f.Duration,
	}
}

// check validates everything but the image.
func (r *photoRequest) check() *refusal {
	if err := moment.CheckID("photo", r.PhotoID); err != nil {
		return refuse(codeInvalid, "%v", err)
	}
	if err := moment.CheckID("partner", r.PartnerID); err != nil {
		return refuse(codeInvalid, "%v", err)
	}
	if len(r.Caption) > moment.MaxCaptionBytes {
		return refuse(codeInvalid, "a caption of %d bytes is too long (at most %d)", len(r.Caption), moment.MaxCaptionBytes)
	}
	if strings.IndexByte(r.Caption, 0) >= 0 {
		return refuse(codeInvalid, "the caption holds a NUL character")
	}
	return checkText("messageId", r.MessageID)
}

// size is the decoded image's length.
func (r *photoRequest) size() int {
	if r.binary != nil {
		return len(r.binary)
	}
	return decodedLen(r.base64)
}

// image returns the image's bytes, which are the caller's: an attachment as it
// came, base64 text decoded into one allocation.
func (r *photoRequest) image() ([]byte, *refusal) {
	if r.binary != nil {
		return r.binary, nil
	}
	notBase64 := refuse(codePhoto, "photoData is not base64 (RFC 4648, with padding)")
	if len(r.base64)%4 != 0 {
		return nil, notBase64
	}
	// Room without regard to padding: the decoder writes whole groups before it
	// finds that one is malformed. It also skips line ends, so what is shorter
	// than computed was no base64 either.
	out := make([]byte, len(r.base64)/4*3)
	n, err := base64.StdEncoding.Strict().Decode(out, r.base64)
	if err != nil || n != decodedLen(r.base64) {
		return nil, notBase64
	}
	return out[:n], nil
}

// decodedLen is the exact length of decoded base64 text with padding.
func decodedLen(b []byte) int {
	n := len(b) / 4 * 3
	if n > 0 && b[len(b)-1] == '=' {
		n--
		if b[len(b)-2] == '=' {
			n--
		}
	}
	return n
}

// cutDataURL removes the prefix of a data: URL (RFC 2397). It reports false
// for one that is not base64.
func cutDataURL(b []byte) ([]byte, bool) {
	if !bytes.HasPrefix(b, []byte("data:")) {
		return b, true
	}
	const longestPrefix = 256
	comma := bytes.IndexByte(b[:min(len(b), longestPrefix)], ',')
	if comma < 0 || !bytes.HasSuffix(b[:comma], []byte(";base64")) {
		return nil, false
	}
	return b[comma+1:], true
}

// dropLineEnds removes the line breaks that MIME encoders put into base64
// (RFC 2045); in JSON they are escaped, so only general meets them.
func dropLineEnds(b []byte) []byte {
	out := b[:0]
	for _, c := range b {
		if c != '\r' && c != '\n' {
			out = append(out, c)
		}
	}
	return out
}
