package bridge

import (
	"encoding/json"
	"fmt"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/moment"
	"pairsync/internal/photo"
)

// prepared is an event that is encoded once for all phones of a user.
type prepared = socketio.Prepared

// photoBody is receive_photo without its image, which follows as photoData.
type photoBody struct {
	PhotoID     string `json:"photoId"`
	MomentID    string `json:"momentId"`
	MessageID   string `json:"messageId"` // the photoId, on every delivery: the app drops repeats by it
	ContentType string `json:"contentType"`
	Caption     string `json:"caption"`
	Timestamp   int64  `json:"timestamp"` // ms
	SenderID    string `json:"senderId"`
	SenderName  string `json:"senderName"`
	IsPending   bool   `json:"isPending"` // it waited for this session
}

func (s *session) photoBody(m *moment.Moment) photoBody {
	contentType := m.ContentType
	if contentType == "" {
		contentType, _ = photo.Sniff(m.Payload)
	}
	return photoBody{
		PhotoID: m.ID, MomentID: m.ID, MessageID: m.ID, ContentType: contentType, Caption: m.Caption,
		Timestamp: when(m).UnixMilli(), SenderID: m.User, SenderName: s.nameOf(m),
		IsPending: !m.StoredAt.IsZero() && m.StoredAt.Before(s.since),
	}
}

// when is the time of a moment for people to read; receivers never order by it.
func when(m *moment.Moment) time.Time {
	switch {
	case !m.TakenAt.IsZero():
		return m.TakenAt
	case !m.StoredAt.IsZero():
		return m.StoredAt
	}
	return time.Now()
}

// prepare encodes d once for each of the two forms that phones ask for.
func (d *delivery) prepare(binary bool, s *session) (*prepared, error) {
	var err error
	if binary {
		if d.binary == nil {
			d.binary, err = prepareBinary(s.photoBody(&d.m), d.m.Payload)
		}
		return d.binary, err
	}
	if d.text == nil {
		d.text, err = prepareText(s.photoBody(&d.m), d.m.Payload)
	}
	return d.text, err
}

// prepareText makes a receive_photo with base64. The image is encoded in place
// between the JSON around it: encoding/json would take ten times as long.
func prepareText(body photoBody, image []byte) (*prepared, error) {
	head, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode photo %q: %w", body.PhotoID, err)
	}
	head = append(head[:len(head)-1], `,"photoData":"`...)
	return socketio.PrepareJSON("receive_photo", head, image, []byte(`"}`))
}

func prepareBinary(body photoBody, image []byte) (*prepared, error) {
	return socketio.Prepare("receive_photo", struct {
		photoBody
		PhotoData socketio.Binary `json:"photoData"`
	}{body, image})
}

func noteBody(m *moment.Moment, sender string) map[string]any {
	return map[string]any{
		"noteId": m.ID, "noteContent": string(m.Payload), "senderId": m.User, "senderName": sender,
		"timestamp": when(m).UnixMilli(), "messageId": m.ID,
	}
}

func reactionBody(m *moment.Moment, r moment.ReactionBody) map[string]any {
	return map[string]any{
		"photoId": r.Moment, "reaction": r.Reaction, "senderId": m.User,
		"timestamp": when(m).UnixMilli(), "messageId": m.ID,
	}
}

// stamp is a time as JavaScript's toISOString writes it.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
