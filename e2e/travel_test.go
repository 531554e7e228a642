package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPhotoTravels is the main job with the app's own client: from phone to
// phone and frame, and back from the frame, over each transport.
func TestPhotoTravels(t *testing.T) {
	s, n := newServer(t), newNode(t, "phone.mjs")
	for name, transports := range map[string][]string{"websocket": websocketOnly, "upgrade": upgrading, "polling": pollingOnly} {
		t.Run(name, func(t *testing.T) {
			c := s.pair(t)
			f := newFrame(t, s, c.ben)
			f.connect(t)
			ben := newPhone(t, n, s, c.ben, phoneOptions{transports: transports})
			ann := newPhone(t, n, s, c.ann, phoneOptions{transports: transports})
			if name == "upgrade" {
				ann.await(t, "upgrade", 1)
				ben.await(t, "upgrade", 1)
			}
			awaitPresence(t, ann, c.ben, true)
			awaitPresence(t, ben, c.ann, true)

			checkPairing(t, ann, c)
			o := checkTravel(t, ann, ben, f)
			checkDuplicates(t, ann, ben, f, o)
			checkFrameSends(t, f, ann, c.ben)

			ben.do(t, "close")
			awaitPresence(t, ann, c.ben, false)
		})
	}
}

// checkTravel sends a photo from ann to ben's phone and frame, and follows it
// to the receipts.
func checkTravel(t *testing.T, ann, ben *phone, f *frame) sendPhoto {
	t.Helper()
	// 300 KB of JSON: far more than one read of a socket.
	image := newPhoto(200 << 10)
	o := photoFor(ben.user, image)
	a := ann.send(t, o)
	if a.SentAt == "" {
		t.Error("the answer has no sentAt")
	}
	want := sendAnswer{Success: true, PhotoID: o.PhotoID, MessageID: o.MessageID, DeliveryMethod: "socket", SentAt: a.SentAt}
	if diff := cmp.Diff(want, a); diff != "" {
		t.Errorf("answer of send_photo (-want +got):\n%s", diff)
	}
	ann.await(t, "photo_sent", 1)
	got := ben.photos(t, 1)[0]
	checkPhoto(t, got, ann.user, o)
	if got.IsPending {
		t.Error("a photo for a phone that is there is pending")
	}
	if line := f.has(t, o.PhotoID); line.Sender != ann.user || line.SHA256 != sum(image) || line.Bytes != len(image) || line.Caption != o.Caption {
		t.Errorf("list of the frame: %+v", line)
	}
	if !bytes.Equal(f.export(t, o.PhotoID), image) {
		t.Error("the frame exports other bytes than were sent")
	}
	awaitReceipts(t, ann, o.PhotoID, "", f.id)
	return o
}

// checkPairing checks what the app learns of a new pair.
func checkPairing(t *testing.T, ann *phone, c couple) {
	t.Helper()
	type partner struct{ ID, ClerkID, DisplayName string }
	type pairing struct {
		PairID, PairedAt string
		Partner          partner
	}
	got := named[pairing](t, ann.await(t, "pairing_success", 1), "pairing_success")[0]
	want := pairing{c.id, got.PairedAt, partner{c.ben, c.ben, got.Partner.DisplayName}}
	if got != want || got.PairedAt == "" || got.Partner.DisplayName == "" {
		t.Errorf("pairing_success: %+v, want %+v", got, want)
	}
}

// checkPhoto checks everything that receive_photo says.
func checkPhoto(t *testing.T, got receivedPhoto, sender string, o sendPhoto) {
	t.Helper()
	if got.SenderName == "" || got.SenderName == o.PartnerID {
		t.Errorf("sender's name %q", got.SenderName)
	}
	want := receivedPhoto{
		PhotoID: o.PhotoID, MomentID: o.PhotoID, MessageID: o.PhotoID, PhotoData: o.PhotoData, ContentType: "image/jpeg",
		Caption: o.Caption, Timestamp: o.Timestamp, SenderID: sender, SenderName: got.SenderName, IsPending: got.IsPending,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("receive_photo (-want +got):\n%s", clip(diff))
	}
}

// checkDuplicates repeats o as the app does, and as a broken one would: it is
// stored once, and the first bytes win.
func checkDuplicates(t *testing.T, ann, ben *phone, f *frame, o sendPhoto) {
	t.Helper()
	again := o
	again.MessageID = newID("msg")
	if a := ann.send(t, again); !a.Success || !a.Duplicate {
		t.Errorf("the same photo again: %+v, want a duplicate", a)
	}
	again.PhotoData = base64.StdEncoding.EncodeToString(newPhoto(100))
	if a := ann.send(t, again); !a.Success || !a.Duplicate {
		t.Errorf("the same id with another picture: %+v, want a duplicate", a)
	}
	again = o
	again.MessageID = ""
	ann.emit(t, "send_photo", again) // from the app's queue: nobody waits for an answer

	fence := photoFor(o.PartnerID, newPhoto(100))
	ann.send(t, fence)
	got := ben.events.await(t, "the photo after the duplicates", func(list []event) bool {
		photos := named[receivedPhoto](t, list, "receive_photo")
		return len(photos) > 0 && photos[len(photos)-1].PhotoID == fence.PhotoID
	})
	photos := named[receivedPhoto](t, got, "receive_photo")
	ids := make([]string, len(photos))
	for i, p := range photos {
		ids[i] = p.PhotoID
	}
	if want := []string{o.PhotoID, fence.PhotoID}; !slices.Equal(ids, want) {
		t.Errorf("ben's phone received %v, want %v", ids, want)
	}
	f.has(t, fence.PhotoID)
	list := f.list(t)
	if len(list) != 2 || list[0].Moment != fence.PhotoID || list[1].Moment != o.PhotoID {
		t.Errorf("list of the frame: %+v, want the two photos, newest first", list)
	}
	if !bytes.Equal(f.export(t, o.PhotoID), o.image(t)) {
		t.Error("a later picture has taken the place of the first")
	}
}

// checkFrameSends sends a photo from the frame to the partner's phone.
func checkFrameSends(t *testing.T, f *frame, ann *phone, ben string) {
	t.Helper()
	before := len(named[receivedPhoto](t, ann.events.all(), "receive_photo"))
	image := plainPhoto() // comments would not be sent: they may say where it was taken
	file := filepath.Join(t.TempDir(), "photo.jpg")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	var sent []struct{ Moment, State string }
	if err := json.Unmarshal([]byte(f.cli(t, "send", "--json", "--caption", captionMark, "--wait", patience.String(), file)), &sent); err != nil {
		t.Fatal(err)
	}
	if len(sent) != 1 || sent[0].State != "sent" {
		t.Fatalf("send from the frame: %+v", sent)
	}
	got := ann.photos(t, before+1)[before]
	if got.PhotoID != sent[0].Moment || got.SenderID != ben || got.Caption != captionMark {
		t.Errorf("photo from the frame: id %s (want %s), sender %s, caption %q", got.PhotoID, sent[0].Moment, got.SenderID, got.Caption)
	}
	// It is upright, small and without a location already: nothing to change.
	if !bytes.Equal(got.image(t), image) {
		t.Error("the photo from the frame is not the file")
	}
}

func awaitPresence(t *testing.T, p *phone, user string, online bool) {
	t.Helper()
	p.events.await(t, fmt.Sprintf("partner_presence %v of %s", online, user), func(list []event) bool {
		all := named[presence](t, list, "partner_presence")
		return len(all) > 0 && all[len(all)-1] == presence{user, online}
	})
}

// awaitReceipts waits until the sender has heard from all devices, "" being
// the partner's phone.
func awaitReceipts(t *testing.T, p *phone, photo string, devices ...string) {
	t.Helper()
	for _, name := range []string{"photo_delivered", "moment_received_ack"} {
		p.events.await(t, name+" from "+strings.Join(devices, ", "), func(list []event) bool {
			all := named[delivered](t, list, name)
			return !slices.ContainsFunc(devices, func(d string) bool { return !slices.Contains(all, delivered{photo, d}) })
		})
	}
}

// TestPartnerOffline sends to somebody who has never been there: everything
// arrives later, in order, after a restart of the server too.
func TestPartnerOffline(t *testing.T) {
	s, n := newServer(t), newNode(t, "phone.mjs")
	c := s.pair(t)
	f := newFrame(t, s, c.ben)
	ann := newPhone(t, n, s, c.ann, phoneOptions{})
	var sent []sendPhoto
	send := func(count int) {
		for range count {
			o := photoFor(c.ben, newPhoto(2000))
			if a := ann.send(t, o); !a.Success || a.DeliveryMethod != "queued" {
				t.Fatalf("send_photo: %+v, want queued", a)
			}
			sent = append(sent, o)
		}
	}
	send(10)
	s.restart(t)
	ann.await(t, "room_joined", 2)
	send(10)

	// The first photo stays without an answer until the phone has been away.
	ben := newPhone(t, n, s, c.ben, phoneOptions{receive: never})
	ben.photos(t, 1)
	ben.do(t, "drop")
	ben.await(t, "room_joined", 2)
	again := ben.photos(t, 2)
	if again[0] != again[1] {
		t.Errorf("the photo that was not answered came again as another: %s and %s", again[0].MessageID, again[1].MessageID)
	}
	ben.do(t, "receive", "receive", byEvent)
	ben.emit(t, "photo_received", map[string]any{"photoId": again[1].PhotoID})
	got := ben.photos(t, len(sent)+1)[1:]
	for i, o := range sent {
		checkPhoto(t, got[i], c.ann, o)
		if !got[i].IsPending {
			t.Errorf("photo %d was there before the phone, and is not pending", i)
		}
		awaitReceipts(t, ann, o.PhotoID, "")
	}

	checkFrame(t, f, sent)
}

// checkFrame starts a frame that has never run: it gets everything, in order.
func checkFrame(t *testing.T, f *frame, sent []sendPhoto) {
	t.Helper()
	f.connect(t)
	f.has(t, sent[len(sent)-1].PhotoID)
	list := f.list(t)
	slices.Reverse(list)
	if len(list) != len(sent) {
		t.Fatalf("the frame has %d photos, want %d", len(list), len(sent))
	}
	for i, o := range sent {
		if list[i].Moment != o.PhotoID || list[i].SHA256 != sum(o.image(t)) {
			t.Errorf("photo %d on the frame is %s, want %s", i, list[i].Moment, o.PhotoID)
		}
	}
}

// TestTwoSockets holds two sockets of one user, as the app does: a connection
// socket that ignores photos, and a realtime socket that answers them. Photos
// come to both, one at a time, and count as delivered once.
func TestTwoSockets(t *testing.T) {
	s, n := newServer(t), newNode(t, "phone.mjs")
	c := s.pair(t)
	ann := newPhone(t, n, s, c.ann, phoneOptions{})
	connection := newPhone(t, n, s, c.ben, phoneOptions{receive: never})
	realtime := newPhone(t, n, s, c.ben, phoneOptions{transports: upgrading, receive: never})
	awaitPresence(t, ann, c.ben, true)

	first, second := photoFor(c.ben, newPhoto(500)), photoFor(c.ben, newPhoto(500))
	ann.send(t, first)
	checkPhoto(t, connection.photos(t, 1)[0], c.ann, first)
	checkPhoto(t, realtime.photos(t, 1)[0], c.ann, first)
	ann.send(t, second)
	late := newPhone(t, n, s, c.ben, phoneOptions{receive: never})
	checkPhoto(t, late.photos(t, 1)[0], c.ann, first)
	late.do(t, "close")
	if got := realtime.photos(t, 1); len(got) != 1 {
		t.Errorf("the second photo came before the first was answered")
	}
	realtime.do(t, "receive", "receive", byEvent)
	realtime.emit(t, "photo_received", map[string]any{"photoId": first.PhotoID})
	checkPhoto(t, realtime.photos(t, 2)[1], c.ann, second)
	checkPhoto(t, connection.photos(t, 2)[1], c.ann, second)

	// The connection socket goes; the user stays online and is served.
	connection.do(t, "close")
	third := photoFor(c.ben, newPhoto(500))
	ann.send(t, third)
	checkPhoto(t, realtime.photos(t, 3)[2], c.ann, third)
	awaitReceipts(t, ann, third.PhotoID, "")
	events := ann.events.all()
	want := []delivered{{first.PhotoID, ""}, {second.PhotoID, ""}, {third.PhotoID, ""}}
	if diff := cmp.Diff(want, named[delivered](t, events, "photo_delivered")); diff != "" {
		t.Errorf("photo_delivered (-want +got):\n%s", diff)
	}
	seen := named[presence](t, events, "partner_presence")
	if online := slices.Index(seen, presence{c.ben, true}); slices.Contains(seen[online:], presence{c.ben, false}) {
		t.Error("ben went offline while one of his sockets stood")
	}
}

// TestAnswerByAck takes the acknowledgement of receive_photo for an answer too.
func TestAnswerByAck(t *testing.T) {
	s, n := newServer(t), newNode(t, "phone.mjs")
	c := s.pair(t)
	ann := newPhone(t, n, s, c.ann, phoneOptions{})
	newPhone(t, n, s, c.ben, phoneOptions{receive: byAck})
	o := photoFor(c.ben, newPhoto(500))
	ann.send(t, o)
	awaitReceipts(t, ann, o.PhotoID, "")
}

// TestBinary sends and receives the picture as an attachment, without base64.
func TestBinary(t *testing.T) {
	s, n := newServer(t), newNode(t, "phone.mjs")
	for name, transports := range map[string][]string{"websocket": websocketOnly, "polling": pollingOnly} {
		t.Run(name, func(t *testing.T) {
			c := s.pair(t)
			ann := newPhone(t, n, s, c.ann, phoneOptions{transports: transports})
			plain := newPhone(t, n, s, c.ben, phoneOptions{})
			binary := newPhone(t, n, s, c.ben, phoneOptions{
				transports: transports, auth: map[string]any{"token": s.token(t, c.ben), "binary": true},
			})
			o := photoFor(c.ben, newPhoto(100<<10))
			n.must(t, map[string]any{"do": "emit", "of": ann.name, "event": "send_photo", "args": []any{o}, "binary": true})
			checkPhoto(t, plain.photos(t, 1)[0], c.ann, o)
			o.PhotoData = "binary:" + o.PhotoData
			checkPhoto(t, binary.photos(t, 1)[0], c.ann, o)
		})
	}
}
