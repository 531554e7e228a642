package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"pairsync/internal/moment"
)

// answerTo asks the server something over p's socket and returns its answer.
func answerTo(t *testing.T, p *phone, name string, arg any) (a sendAnswer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	raw, err := p.ask(ctx, patience, name, arg)
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	if err != nil {
		t.Fatalf("%s: %s, %v", name, raw, err)
	}
	return a
}

// TestStrangers has somebody with a good token of their own, and a pair of
// their own, try to read, write and answer in the pair of others.
func TestStrangers(t *testing.T) {
	s, n := newServer(t), newNode(t, "phone.mjs")
	c, other := s.pair(t), s.pair(t)
	watch, watchOther := newWatcher(t, s, c), newWatcher(t, s, other)
	ann := newPhone(t, n, s, c.ann, phoneOptions{})
	eve := newPhone(t, n, s, other.ann, phoneOptions{receive: never})
	mate := newPhone(t, n, s, other.ben, phoneOptions{})

	// A photo that waits for ben, who is away.
	o := photoFor(c.ben, newPhoto(500))
	ann.send(t, o)

	// Reading: join_room in another's name, at the handshake and after it.
	for _, user := range []string{c.ann, c.ben} {
		if a := answerTo(t, eve, "join_room", map[string]string{"userId": user}); a.Success || a.Code != "not_allowed" {
			t.Errorf("join_room of %s: %+v", user, a)
		}
		claims := openPhone(t, n, s, user, phoneOptions{auth: map[string]any{"token": s.token(t, other.ann), "userId": user}})
		if e := claims.await(t, "connect_error", 1)[0]; !strings.Contains(string(e.Args[0]), "token_invalid") {
			t.Errorf("a handshake in the name of %s: %s", user, e.Args)
		}
		claims.do(t, "close")
		// Without userId the socket is eve's, whatever room it asks for.
		asks := openPhone(t, n, s, user, phoneOptions{token: s.token(t, other.ann), receive: byEvent})
		asks.await(t, "connect", 1)
		if a := answerTo(t, asks, "join_room", map[string]string{"userId": user}); a.Success || a.Code != "not_allowed" {
			t.Errorf("join_room of %s on a socket of its own: %+v", user, a)
		}
		defer func() {
			if count(asks.events.all(), func(e event) bool { return e.Name == "receive_photo" || e.Name == "room_joined" }) != 0 {
				t.Errorf("a stranger was let into the room of %s", user)
			}
		}()
	}

	// Writing: to partners of others.
	for _, user := range []string{c.ann, c.ben} {
		if a := eve.send(t, photoFor(user, newPhoto(100))); a.Success || a.Code != "not_partner" {
			t.Errorf("send_photo to %s: %+v", user, a)
		}
		note := map[string]any{"noteId": newID("n"), "noteContent": "hello", "partnerId": user, "timestamp": 1}
		if a := answerTo(t, eve, "send_note", note); a.Success || a.Code != "not_partner" {
			t.Errorf("send_note to %s: %+v", user, a)
		}
	}

	// Answering: for a photo of another pair, in every way there is.
	answers := map[string]any{"photoId": o.PhotoID, "momentId": o.PhotoID, "receivedAt": 1}
	for _, name := range []string{"photo_received", "moment_received", "moment_received_ack"} {
		eve.emit(t, name, answers)
		ann.emit(t, name, answers) // nor may its sender
	}
	eve.emit(t, "delete_photo", answers)

	// What eve sends afterwards is done after it; her own pair is well.
	own := photoFor(other.ben, newPhoto(100))
	eve.send(t, own)
	checkPhoto(t, mate.photos(t, 1)[0], other.ann, own)

	// The photo is still there for ben, and only ben's answer counts.
	if count(ann.events.all(), func(e event) bool { return e.Name == "photo_delivered" || e.Name == "moment_received_ack" }) != 0 {
		t.Error("the photo counts as delivered before ben was there")
	}
	ben := newPhone(t, n, s, c.ben, phoneOptions{})
	checkPhoto(t, ben.photos(t, 1)[0], c.ann, o)
	awaitReceipts(t, ann, o.PhotoID, "")

	// Over HTTP.
	for raw, want := range map[string]int{s.token(t, other.ann): http.StatusNotFound, s.token(t, c.ben): http.StatusOK} {
		if status := requestStatus(t, http.MethodGet, "http://"+s.http+"/moments/"+c.ann+"/"+o.PhotoID, raw, ""); status != want {
			t.Errorf("GET of the photo: %d, want %d", status, want)
		}
	}
	watch.expect(t, c.photoTopic(c.ann, o.PhotoID))
	watchOther.expect(t, other.photoTopic(other.ann, own.PhotoID), deleteTopic(other, o.PhotoID))
}

// deleteTopic is where eve's delete_photo ends: in her own pair, where it names
// nothing.
func deleteTopic(c couple, id string) string {
	m := moment.Moment{Pair: c.id, User: c.ann, Kind: moment.Delete, ID: id}
	return m.Topic()
}

func requestStatus(t *testing.T, method, url, token, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// TestDeviceTokenIsNoApp: whoever takes the token out of a frame is not its
// user: no socket, and no token of the app's.
func TestDeviceTokenIsNoApp(t *testing.T) {
	s, n := newServer(t), newNode(t, "phone.mjs")
	c := s.pair(t)
	f := newFrame(t, s, c.ben)
	raw, err := os.ReadFile(f.tokenFile)
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(string(raw))
	p := openPhone(t, n, s, c.ben, phoneOptions{token: device})
	if e := p.await(t, "connect_error", 1)[0]; !strings.Contains(string(e.Args[0]), "token_invalid") || !strings.Contains(string(e.Args[0]), "role device") {
		t.Errorf("connect_error %s", e.Args)
	}
	if status := requestStatus(t, http.MethodPost, "http://"+s.http+"/auth/exchange", device, `{"idToken":"`+device+`"}`); status != http.StatusUnauthorized {
		t.Errorf("a device's token was exchanged: %d", status)
	}
	// It is a device all the same, for its own topics, and not for its user's.
	m := mosquitto{v5, s, c.ben, device}
	app := newPhone(t, n, s, c.ann, phoneOptions{})
	o := photoFor(c.ben, newPhoto(500))
	app.send(t, o)
	if code, said := m.pub(t, c.photoTopic(c.ann, newID("m")), newPhoto(10), "-q", "1"); !strings.Contains(said, "Not authorized") {
		t.Errorf("a photo in the partner's name: exit code %d, %q", code, said)
	}
	f.connect(t)
	f.has(t, o.PhotoID)
	awaitReceipts(t, app, o.PhotoID, f.id)
}
