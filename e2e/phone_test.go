package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// The transports of socket.io-client: as the app's connection socket has them,
// as its realtime socket has them, and what is left behind a bad proxy.
var (
	websocketOnly = []string{"websocket"}
	upgrading     = []string{"polling", "websocket"}
	pollingOnly   = []string{"polling"}
)

// How a phone answers receive_photo.
const (
	byEvent = "event" // photo_received, as the app does
	byAck   = "ack"   // the acknowledgement of the event
	never   = "never"
)

// phone is a socket.io-client.
type phone struct {
	node   *node
	name   string
	user   string
	events *record[event]
}

// phoneOptions says what is special about a phone.
type phoneOptions struct {
	transports []string       // websocketOnly by default
	receive    string         // byEvent by default
	token      string         // instead of a good one
	auth       map[string]any // instead of {token}
	via        *tunnel        // instead of the server's port
}

// openPhone opens a socket and does not wait for it.
func openPhone(t testing.TB, n *node, s *server, user string, o phoneOptions) *phone {
	t.Helper()
	if o.transports == nil {
		o.transports = websocketOnly
	}
	if o.receive == "" {
		o.receive = byEvent
	}
	if o.token == "" {
		o.token = s.token(t, user)
	}
	auth := map[string]any{"token": o.token}
	if o.auth != nil {
		auth = o.auth
	}
	addr := s.http
	if o.via != nil {
		addr = o.via.addr
	}
	p := &phone{node: n, name: newID("phone"), user: user}
	p.events = n.client(p.name)
	n.must(t, map[string]any{
		"do": "open", "of": p.name, "url": "http://" + addr, "user": user, "receive": o.receive,
		"options": map[string]any{"transports": o.transports, "auth": auth},
	})
	return p
}

// newPhone opens a socket and waits until it has joined its room.
func newPhone(t testing.TB, n *node, s *server, user string, o phoneOptions) *phone {
	t.Helper()
	p := openPhone(t, n, s, user, o)
	p.await(t, "room_joined", 1)
	return p
}

// await waits for n events with one name and returns all that there are.
func (p *phone) await(t testing.TB, name string, n int) []event {
	t.Helper()
	return p.events.await(t, fmt.Sprintf("%d × %s at the phone of %s", n, name, p.user), func(list []event) bool {
		return count(list, func(e event) bool { return e.Name == name }) >= n
	})
}

// photos waits for n receive_photo and returns all that there are, the
// repeated ones too.
func (p *phone) photos(t testing.TB, n int) []receivedPhoto {
	t.Helper()
	return named[receivedPhoto](t, p.await(t, "receive_photo", n), "receive_photo")
}

// emit sends an event and does not wait for an answer.
func (p *phone) emit(t testing.TB, name string, arg any) {
	t.Helper()
	p.node.must(t, map[string]any{"do": "emit", "of": p.name, "event": name, "args": []any{arg}})
}

// ask sends an event and waits for the server's acknowledgement.
func (p *phone) ask(ctx context.Context, timeout time.Duration, name string, arg any) (json.RawMessage, error) {
	return p.node.do(ctx, map[string]any{
		"do": "emit", "of": p.name, "event": name, "args": []any{arg}, "timeout": timeout.Milliseconds(),
	})
}

// send sends a photo and returns the answer.
func (p *phone) send(t testing.TB, o sendPhoto) sendAnswer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a, err := p.trySend(ctx, patience, o)
	if err != nil {
		t.Fatalf("send_photo %s: %v", o.PhotoID, err)
	}
	return a
}

func (p *phone) trySend(ctx context.Context, timeout time.Duration, o sendPhoto) (a sendAnswer, err error) {
	raw, err := p.ask(ctx, timeout, "send_photo", o)
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	return a, err
}

// do asks the driver to do something to this phone.
func (p *phone) do(t testing.TB, what string, more ...string) {
	t.Helper()
	request := map[string]any{"do": what, "of": p.name}
	for i := 0; i+1 < len(more); i += 2 {
		request[more[i]] = more[i+1]
	}
	p.node.must(t, request)
}

// sendPhoto is the argument of send_photo, as the app sends it.
type sendPhoto struct {
	PhotoID   string `json:"photoId"`
	PhotoData string `json:"photoData"`
	PartnerID string `json:"partnerId"`
	Caption   string `json:"caption,omitempty"`
	Timestamp int64  `json:"timestamp"`
	MessageID string `json:"messageId,omitempty"`
}

// photoFor is a send of a photo to partner; like the app's, its id has 64 hex
// digits and each try would have a message id of its own.
func photoFor(partner string, image []byte) sendPhoto {
	return sendPhoto{
		PhotoID: sum(append(image, newID("")...)), PhotoData: base64.StdEncoding.EncodeToString(image), PartnerID: partner,
		Caption: captionMark, Timestamp: time.Now().UnixMilli(), MessageID: newID("msg"),
	}
}

// sendAnswer is the acknowledgement of send_photo.
type sendAnswer struct {
	Success        bool   `json:"success"`
	PhotoID        string `json:"photoId"`
	MessageID      string `json:"messageId"`
	SentAt         string `json:"sentAt"`
	DeliveryMethod string `json:"deliveryMethod"`
	Duplicate      bool   `json:"duplicate"`
	Error          string `json:"error"`
	Code           string `json:"code"`
	Retryable      bool   `json:"retryable"`
}

// receivedPhoto is the argument of receive_photo.
type receivedPhoto struct {
	PhotoID     string `json:"photoId"`
	MomentID    string `json:"momentId"`
	MessageID   string `json:"messageId"`
	PhotoData   string `json:"photoData"`
	ContentType string `json:"contentType"`
	Caption     string `json:"caption"`
	Timestamp   int64  `json:"timestamp"`
	SenderID    string `json:"senderId"`
	SenderName  string `json:"senderName"`
	IsPending   bool   `json:"isPending"`
}

// image returns the picture's bytes.
func (r receivedPhoto) image(t testing.TB) []byte { return decoded(t, r.PhotoData) }

// image returns the picture's bytes.
func (s sendPhoto) image(t testing.TB) []byte { return decoded(t, s.PhotoData) }

func decoded(t testing.TB, text string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatalf("%s: %v", clip(text), err)
	}
	return b
}

// delivered is the argument of photo_delivered.
type delivered struct {
	PhotoID string `json:"photoId"`
	Device  string `json:"device"`
}

// presence is the argument of partner_presence.
type presence struct {
	UserID   string `json:"userId"`
	IsOnline bool   `json:"isOnline"`
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func count[T any](list []T, ok func(T) bool) int {
	n := 0
	for _, v := range list {
		if ok(v) {
			n++
		}
	}
	return n
}
