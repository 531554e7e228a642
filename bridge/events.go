package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"pairsync/bridge/socketio"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// eventTable is what a phone may say (contract, section 4). Everything else is
// ignored, but answered where an answer is asked for: socket.io-client with
// retries waits for one after every event.
func eventTable() map[string]func(*phone, *socketio.Event) {
	return map[string]func(*phone, *socketio.Event){
		"join_room":           (*phone).joinRoom,
		"heartbeat":           (*phone).heartbeat,
		"send_photo":          (*phone).sendPhoto,
		"photo_received":      (*phone).photoReceived,
		"moment_received":     (*phone).photoReceived,
		"moment_received_ack": (*phone).photoReceived,
		"schedule_photo":      (*phone).schedulePhoto,
		"send_note":           (*phone).sendNote,
		"photo_reaction":      (*phone).react,
		"delete_photo":        (*phone).deletePhoto,
		"auth:refresh":        (*phone).refreshToken,
	}
}

// object decodes an event's argument into v. Where that fails the phone is
// told, and false returned.
func (p *phone) object(e *socketio.Event, v any) bool {
	object, err := firstArg(e)
	if err == nil {
		err = decodeObject(object, v)
	}
	if err != nil {
		p.ack(e, refusalBody(refuse(codeInvalid, "%s: %v", e.Name, err)))
		return false
	}
	return true
}

// joinRoom starts deliveries. The app's connection socket repeats it until it
// sees room_joined.
func (p *phone) joinRoom(e *socketio.Event) {
	var in struct {
		UserID string `json:"userId"`
	}
	if !p.object(e, &in) {
		return
	}
	user := p.u.key.user
	if in.UserID != "" && in.UserID != user {
		p.ack(e, refusalBody(refuse(codeNotAllowed, "your token is of another user than %q", clip(in.UserID))))
		return
	}
	p.ack(e, map[string]any{"success": true})
	p.emit("room_joined", map[string]any{"userId": user})
	p.u.join(p)
	p.u.b.start(p.u)
}

// What travels under live/{user}/heartbeat.
const liveHeartbeat = "heartbeat"

type liveBody struct {
	Timestamp int64 `json:"timestamp"` // ms, the server's clock
}

const (
	// minHeartbeat is the least time between heartbeats that are passed on; the
	// app sends one in 15 or 30 s per socket.
	minHeartbeat = time.Second
	// liveTimeout bounds how long a heartbeat may hold up its socket.
	liveTimeout = 2 * time.Second
)

// heartbeat is passed on to the partner, if a session runs.
func (p *phone) heartbeat(e *socketio.Event) {
	p.ack(e, map[string]any{"success": true})
	now := time.Now()
	if now.Sub(p.beat) < minHeartbeat {
		return
	}
	p.beat = now
	pair, _, ok := p.u.partner()
	p.u.mu.Lock()
	s := p.u.session
	p.u.unlock()
	if s == nil || !ok || !p.entitled(pair.ID) {
		return
	}
	body, err := json.Marshal(liveBody{now.UnixMilli()})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(p.u.b.base, liveTimeout)
	defer cancel()
	topic := moment.LiveTopic(pair.ID, p.u.key.user, liveHeartbeat)
	if _, err := s.publish(ctx, mqttlink.Publish{Topic: topic, Payload: body, ContentType: "application/json"}); err != nil {
		p.log().Debug("heartbeat not passed on", "err", err)
	}
}

// photoReceived is the phone's word that it has a photo. It counts before
// join_room too: socket.io-client sends what it had buffered as soon as it is
// connected. A malformed one is ignored.
func (p *phone) photoReceived(e *socketio.Event) {
	var in struct {
		PhotoID    string          `json:"photoId"`
		MomentID   string          `json:"momentId"`
		ReceivedAt json.RawMessage `json:"receivedAt"`
	}
	if !p.object(e, &in) {
		return
	}
	id := in.PhotoID
	if id == "" {
		id = in.MomentID
	}
	if err := moment.CheckID("photo", id); err != nil {
		p.ack(e, refusalBody(refuse(codeInvalid, "%v", err)))
		return
	}
	at := parseTime(in.ReceivedAt)
	if at.IsZero() {
		at = time.Now()
	}
	p.u.photoAcked(p, id, at)
	p.ack(e, map[string]any{"success": true})
}

// sendNote is the event send_note.
func (p *phone) sendNote(e *socketio.Event) {
	o := p.outgoing(e, "noteId", "note_sent", "send_note_error")
	var in struct {
		NoteID    string          `json:"noteId"`
		Content   string          `json:"noteContent"`
		PartnerID string          `json:"partnerId"`
		MessageID string          `json:"messageId"`
		Timestamp json.RawMessage `json:"timestamp"`
	}
	o.run(func() *refusal {
		if no := o.object(&in); no != nil {
			return no
		}
		o.id, o.msgID = answerID(in.NoteID), in.MessageID
		if err := moment.CheckID("note", in.NoteID); err != nil {
			return refuse(codeInvalid, "%v", err)
		}
		if in.Content == "" || len(in.Content) > maxNoteBytes {
			return refuse(codeInvalid, "a note has 1 to %d bytes, not %d", maxNoteBytes, len(in.Content))
		}
		if no := checkText("messageId", in.MessageID); no != nil {
			return no
		}
		return o.small(in.PartnerID, moment.Moment{
			Kind: moment.Note, ID: in.NoteID, MessageID: in.MessageID, TakenAt: parseTime(in.Timestamp),
			ContentType: "text/plain;charset=utf-8", Payload: []byte(strings.ToValidUTF8(in.Content, "�")),
		})
	})
}

// maxNoteBytes bounds a note, as the broker does.
const maxNoteBytes = 64 << 10

// maxReactionBytes bounds a reaction: the longest emoji sequences have 40.
const maxReactionBytes = 64

// react is the event photo_reaction. Its id comes from what it says, so that a
// repeat is stored once and a change of mind is not taken for one.
func (p *phone) react(e *socketio.Event) {
	o := p.outgoing(e, "photoId", "", "")
	var in struct {
		PhotoID   string          `json:"photoId"`
		Reaction  string          `json:"reaction"`
		SenderID  string          `json:"senderId"` // of the photo; the partner's where it is not said
		MessageID string          `json:"messageId"`
		Timestamp json.RawMessage `json:"timestamp"`
	}
	o.run(func() *refusal {
		if no := o.object(&in); no != nil {
			return no
		}
		o.id, o.msgID = answerID(in.PhotoID), in.MessageID
		if err := moment.CheckID("photo", in.PhotoID); err != nil {
			return refuse(codeInvalid, "%v", err)
		}
		if len(in.Reaction) > maxReactionBytes || !utf8.ValidString(in.Reaction) {
			return refuse(codeInvalid, "a reaction is an emoji, at most %d bytes", maxReactionBytes)
		}
		_, partner, ok := p.u.partner()
		if !ok {
			return refuse(codeNotPaired, "you are not paired with anybody")
		}
		sender := partner
		if in.SenderID == p.u.key.user {
			sender = in.SenderID
		}
		body, err := json.Marshal(moment.ReactionBody{Moment: in.PhotoID, Sender: sender, Reaction: in.Reaction})
		if err != nil {
			return refuse(codeInvalid, "%v", err)
		}
		sum := sha256.Sum256(append(append(body, in.Timestamp...), in.MessageID...))
		return o.small(partner, moment.Moment{
			Kind: moment.Reaction, ID: "x-" + hex.EncodeToString(sum[:16]), TakenAt: parseTime(in.Timestamp),
			ContentType: "application/json", Payload: body,
		})
	})
}

// deletePhoto takes back one's own photo.
func (p *phone) deletePhoto(e *socketio.Event) {
	o := p.outgoing(e, "photoId", "", "")
	var in struct {
		PhotoID string `json:"photoId"`
	}
	o.run(func() *refusal {
		if no := o.object(&in); no != nil {
			return no
		}
		o.id = answerID(in.PhotoID)
		if err := moment.CheckID("photo", in.PhotoID); err != nil {
			return refuse(codeInvalid, "%v", err)
		}
		pair, partner, ok := p.u.partner()
		if !ok {
			return refuse(codeNotPaired, "you are not paired with anybody")
		}
		if err := p.u.b.schedule.cancel(o.ctx, pair.ID, p.u.key.user, in.PhotoID); err != nil {
			return refusalOfLedger(err)
		}
		return o.small(partner, moment.Moment{Kind: moment.Delete, ID: in.PhotoID})
	})
}

// run makes a small send from its event; a refusal is answered.
func (o *outgoing) run(build func() *refusal) {
	if no := build(); no != nil {
		o.refuse(no)
		o.finish()
	}
}

// object decodes the event's argument into v.
func (o *outgoing) object(v any) *refusal {
	object, err := firstArg(o.e)
	if err == nil {
		err = decodeObject(object, v)
	}
	if err != nil {
		return refuse(codeInvalid, "%s: %v", o.e.Name, err)
	}
	return nil
}

// small submits a moment that is not a photo to the pair with partner.
func (o *outgoing) small(partner string, m moment.Moment) *refusal {
	pair, partner, no := o.p.target(partner)
	if no != nil {
		return no
	}
	if no := o.reserve(len(m.Payload), false); no != nil {
		return no
	}
	m.Pair, m.User = pair, o.p.u.key.user
	m.SenderName = o.p.u.b.deps.Registry.Name(m.User)
	o.submit(m, partner)
	return nil
}

// unknown answers an event that the table does not have.
func (p *phone) unknown(e *socketio.Event) {
	p.ack(e, map[string]any{"success": false, "error": "unknown event", "code": codeInvalid, "retryable": false})
}

// answerID is an id of the phone's as it may be repeated in an answer: nothing
// where it is none.
func answerID(id string) string {
	if moment.CheckID("answer", id) != nil {
		return ""
	}
	return id
}

// clip shortens outside text for a message.
func clip(s string) string {
	const longest = 64
	if len(s) > longest {
		return strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return s
}
