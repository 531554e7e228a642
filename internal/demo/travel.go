package demo

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/admin"
)

// phone is one of the two phones: the app's events over Socket.IO.
type phone struct {
	user   string
	token  string
	client *socketio.Client
	photos chan received
	// delivered gets each photo_delivered, the sender's receipt.
	delivered chan delivered
}

// received is the part of receive_photo that the demo looks at.
type received struct {
	PhotoID   string `json:"photoId"`
	PhotoData string `json:"photoData"`
	SenderID  string `json:"senderId"`
	Caption   string `json:"caption"`
}

// delivered is photo_delivered; Device is empty for a phone.
type delivered struct {
	PhotoID string `json:"photoId"`
	Device  string `json:"device"`
}

func (s *stage) connectPhones(ctx context.Context) error {
	s.phones = map[string]*phone{}
	for _, user := range []string{sender, receiver} {
		p, err := s.connectPhone(ctx, user)
		if err != nil {
			return fmt.Errorf("%s's phone: %w", user, err)
		}
		s.phones[user] = p
		s.say("%s's phone connected over Socket.IO and joined its room", user)
	}
	return nil
}

func (s *stage) connectPhone(ctx context.Context, user string) (*phone, error) {
	tok, err := s.admin.IssueToken(ctx, admin.TokenRequest{User: user, TTL: admin.Duration(24 * time.Hour)})
	if err != nil {
		return nil, err
	}
	p := &phone{user: user, token: tok.Token, photos: make(chan received, 16), delivered: make(chan delivered, 16)}
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()
	p.client, err = socketio.Dial(ctx, "http://"+s.daemon.HTTPAddr().String(), socketio.DialOptions{
		Auth: map[string]string{"token": tok.Token, "userId": user},
		On: map[string]func(*socketio.Event){
			"receive_photo":   func(e *socketio.Event) { offer(p.photos, decode[received](e)) },
			"photo_delivered": func(e *socketio.Event) { offer(p.delivered, decode[delivered](e)) },
		},
	})
	if err != nil {
		return nil, err
	}
	_, err = p.client.EmitWithAck(ctx, "join_room", map[string]string{"userId": user})
	return p, err
}

// decode reads an event's only argument; what does not fit is left zero, and
// the check of what arrived fails.
func decode[T any](e *socketio.Event) (v T) {
	args, err := e.Args()
	if err == nil && len(args) == 1 {
		err = json.Unmarshal(args[0], &v)
	}
	return v
}

// offer hands v over unless nobody has taken the last 16.
func offer[T any](ch chan T, v T) {
	select {
	case ch <- v:
	default:
	}
}

// await returns the next value of ch.
func await[T any](ctx context.Context, ch <-chan T, what string) (v T, err error) {
	timer := time.NewTimer(stepWait)
	defer timer.Stop()
	select {
	case v = <-ch:
		return v, nil
	case <-timer.C:
		return v, fmt.Errorf("waited %v for %s", stepWait, what)
	case <-ctx.Done():
		return v, ctx.Err()
	}
}

// travel sends the photo from ann's phone and follows it to the end.
func (s *stage) travel(ctx context.Context) error {
	id := fmt.Sprintf("demo-%s", sum(append([]byte(s.start.String()), s.photo...))[:16])
	stored := make(chan struct{}, 1)
	stop := s.daemon.WatchPair(s.pair.ID, func() { offer(stored, struct{}{}) })
	defer stop()
	answer := make(chan sent, 1)
	failed := make(chan error, 1)
	s.say("%s's phone sends a photo of %d bytes (send_photo %s)", sender, len(s.photo), id)
	s.g.Go(func() error {
		a, err := s.send(ctx, id)
		if err != nil {
			failed <- err
			return nil // travel returns it
		}
		answer <- a
		return nil
	})
	if _, err := await(ctx, stored, "the photo to be stored"); err != nil {
		select {
		case err = <-failed:
		default:
		}
		return err
	}
	s.say("  stored: on the server's disk, synced")
	a, err := await(ctx, answer, "the acknowledgement")
	if err != nil {
		return err
	}
	s.say("  acknowledged to %s's phone (deliveryMethod %q)", sender, a.DeliveryMethod)
	if err := s.arriveOnPhone(ctx, id); err != nil {
		return err
	}
	if err := s.arriveOnFrame(ctx, id); err != nil {
		return err
	}
	return s.receipts(ctx, id)
}

// sent is the acknowledgement of send_photo.
type sent struct {
	Success        bool   `json:"success"`
	DeliveryMethod string `json:"deliveryMethod"`
	Error          string `json:"error"`
	Code           string `json:"code"`
}

func (s *stage) send(ctx context.Context, id string) (a sent, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()
	args, err := s.phones[sender].client.EmitWithAck(ctx, "send_photo", map[string]any{
		"photoId": id, "photoData": base64.StdEncoding.EncodeToString(s.photo), "partnerId": receiver,
		"caption": "from the demo", "timestamp": time.Now().UnixMilli(), "messageId": id,
	})
	if err != nil {
		return a, fmt.Errorf("send_photo: %w", err)
	}
	if len(args) != 1 {
		return a, errors.New("send_photo: empty acknowledgement")
	}
	if err := json.Unmarshal(args[0], &a); err != nil {
		return a, fmt.Errorf("send_photo: acknowledgement: %w", err)
	}
	if !a.Success {
		return a, fmt.Errorf("send_photo refused: %s (%s)", a.Error, a.Code)
	}
	return a, nil
}

func (s *stage) arriveOnPhone(ctx context.Context, id string) error {
	p := s.phones[receiver]
	var got received
	for got.PhotoID != id { // a kept data directory may hold older ones
		var err error
		if got, err = await(ctx, p.photos, "the photo on "+receiver+"'s phone"); err != nil {
			return err
		}
		if err := p.client.Emit("photo_received", map[string]any{"photoId": got.PhotoID, "receivedAt": time.Now().UnixMilli()}); err != nil {
			return err
		}
	}
	b, err := base64.StdEncoding.DecodeString(got.PhotoData)
	if err != nil {
		return fmt.Errorf("photo on %s's phone: %w", receiver, err)
	}
	if got.SenderID != sender {
		return fmt.Errorf("photo on %s's phone says it is from %q, not %q", receiver, got.SenderID, sender)
	}
	if sum(b) != sum(s.photo) {
		return fmt.Errorf("photo on %s's phone: %d bytes that are not the %d sent", receiver, len(b), len(s.photo))
	}
	s.say("  on %s's phone, byte for byte (sha256 %s…)", receiver, sum(b)[:12])
	return nil
}

func (s *stage) arriveOnFrame(ctx context.Context, id string) error {
	var b []byte
	err := s.until(ctx, "the photo on the frame", func() (bool, error) {
		var err error
		b, err = s.frame.client.Export(ctx, sender+"/"+id, false)
		return err == nil, nil // not there yet
	})
	if err != nil {
		return err
	}
	if sum(b) != sum(s.photo) {
		return fmt.Errorf("photo on the frame: %d bytes that are not the %d sent", len(b), len(s.photo))
	}
	s.say("  stored on the frame, byte for byte")
	return nil
}

// receipts waits for both receipts at the sender: from the phone and from the
// frame.
func (s *stage) receipts(ctx context.Context, id string) error {
	open := map[string]string{"": receiver + "'s phone", s.frame.id: "the frame"}
	for len(open) > 0 {
		d, err := await(ctx, s.phones[sender].delivered, "the receipts at "+sender+"'s phone")
		if err != nil {
			return err
		}
		from, ok := open[d.Device]
		if d.PhotoID != id || !ok {
			continue
		}
		delete(open, d.Device)
		s.say("  receipt back at %s's phone: %s has it", sender, from)
	}
	return nil
}

// invite prints what to play with.
func (s *stage) invite() {
	mqttHost, mqttPort := split(s.daemon.MQTTAddr())
	fmt.Fprintf(s.o.Out, `
It stays up until Ctrl-C. To play with:
  the frame's page     http://%[1]s
  send from the frame  pairsync-agent send --data-dir %[2]s FILE
  what the frame has   pairsync-agent list --data-dir %[2]s
  the server's state   pairsync status --data-dir %[3]s
  queues               pairsync session list --data-dir %[3]s
  metrics              http://%[4]s/metrics
  a plain MQTT client  mosquitto_sub -V 5 -h %[5]s -p %[6]s -i widget -t 'pairs/%[7]s/newest' -u %[8]s -P "$(pairsync token issue --user %[8]s --data-dir %[3]s)"
  a phone of your own  socket.io-client to http://%[9]s with auth {token}; the token of %[10]s:
%[11]s

`, s.frame.agent.KioskAddr(), s.frame.dir, s.dir+"/server", s.daemon.OpsAddr(), mqttHost, mqttPort, s.pair.ID, receiver,
		s.daemon.HTTPAddr(), sender, s.phones[sender].token)
}

// watch tells what else arrives until ctx ends; the phones answer as the app
// would.
func (s *stage) watch(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case got := <-s.phones[sender].photos:
			s.took(sender, got)
		case got := <-s.phones[receiver].photos:
			s.took(receiver, got)
		case d := <-s.phones[sender].delivered:
			s.say("receipt at %s's phone for %s", sender, d.PhotoID)
		case d := <-s.phones[receiver].delivered:
			s.say("receipt at %s's phone for %s", receiver, d.PhotoID)
		}
	}
}

func (s *stage) took(user string, got received) {
	s.say("%s's phone received %s from %s (%d bytes)", user, got.PhotoID, got.SenderID, base64.StdEncoding.DecodedLen(len(got.PhotoData)))
	err := s.phones[user].client.Emit("photo_received", map[string]any{"photoId": got.PhotoID, "receivedAt": time.Now().UnixMilli()})
	if err != nil {
		s.o.Log.Warn("photo_received not sent", "user", user, "error", err)
	}
}

// leave closes the phones.
func (s *stage) leave() {
	for _, p := range s.phones {
		if err := p.client.Close(); err != nil {
			s.o.Log.Debug("phone not closed cleanly", "error", err)
		}
	}
}
