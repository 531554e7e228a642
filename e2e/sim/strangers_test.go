package sim

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// newStrangers is a couple and a second pair, cat and dan.
func newStrangers(w *world) (c *couple, pair string, cat, dan *phone) {
	w.t.Helper()
	pair = w.createPair("ann", "ben")
	w.createPair("cat", "dan")
	c = newCouple(w, func(string) string { return "http://server" })
	cat, dan = w.phone("cat", "http://server").on(), w.phone("dan", "http://server").on()
	w.await(time.Minute, func() string { return "cat and dan are not connected" }, func() bool {
		return cat.isJoined() && dan.isJoined()
	})
	return c, pair, cat, dan
}

// TestTokenOfAnother: a token opens only its own user's door, whatever else
// the handshake says.
func TestTokenOfAnother(t *testing.T) {
	t.Parallel()
	inWorld(t, 1, func(w *world) {
		t := w.t
		newStrangers(w)
		good := w.appToken("cat")
		for name, auth := range map[string]map[string]string{
			"another's userId":  {"token": good, "userId": "ann"},
			"no token":          {"userId": "cat"},
			"damaged signature": {"token": good[:len(good)-4] + "AAAA", "userId": "cat"},
			"another's claims":  {"token": withClaims(good, w.appToken("ann")), "userId": "ann"},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, err := socketio.Dial(ctx, "http://server", socketio.DialOptions{Auth: auth, NetDial: w.net.DialContext("mallory")})
			cancel()
			var refused *socketio.ConnectError
			if !errors.As(err, &refused) {
				t.Errorf("%s: %v, want a refusal", name, err)
			}
		}
		// Let in as herself, she cannot join another's room.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		mallory, err := socketio.Dial(ctx, "http://server", socketio.DialOptions{
			Auth: map[string]string{"token": good}, NetDial: w.net.DialContext("mallory"),
		})
		w.must(err)
		answer, err := mallory.EmitWithAck(ctx, "join_room", map[string]string{"userId": "ann"})
		w.must(err)
		if decode[struct{ Success bool }](answer).Success {
			t.Error("join_room of another user succeeded")
		}
		mallory.Close()
		<-mallory.Done()
	})
}

// withClaims puts the claims of one token between the ends of another.
func withClaims(token, other string) string {
	a, b := strings.Split(token, "."), strings.Split(other, ".")
	return a[0] + "." + b[1] + "." + a[2]
}

// TestOutsideThePair: whatever cat says, nothing of hers reaches ann and ben,
// and nothing of theirs reaches her.
func TestOutsideThePair(t *testing.T) {
	t.Parallel()
	inWorld(t, 1, func(w *world) {
		t := w.t
		c, pair, cat, dan := newStrangers(w)
		// Photos for somebody who is not her partner.
		for _, to := range []string{"ben", "ann", "cat", "nobody", ""} {
			ph := w.book.make("cat", "mallory", 3000)
			ph.to = to
			cat.sendPhoto(ph)
			w.await(time.Minute, func() string { return "cat's photo has no answer" }, cat.idle)
			if code := cat.final()[ph.id]; code != "not_partner" && code != "invalid_request" {
				t.Errorf("a photo of cat for %q was answered %q, want a refusal", to, code)
			}
		}
		// Her MQTT client asks for everything, and publishes in another's name.
		token := w.appToken("cat")
		wanted := []string{
			"#", "+/#", "pairs/#", "pairs/+/photos/#", "pairs/" + pair + "/#", "pairs/" + pair + "/photos/ann/+",
			"$share/g/pairs/" + pair + "/#", "users/+/events", "users/ann/events", "$SYS/#",
		}
		spy := w.peer("cat", "spy", token, wanted, nil).on()
		for _, topic := range []string{
			"pairs/" + pair + "/photos/ann/forged-1", "pairs/" + pair + "/photos/cat/forged-2",
			"pairs/" + pair + "/deletes/ann/forged-3", "pairs/" + pair + "/live/ann/heartbeat",
			moment.PresenceTopic(pair, "ann"), moment.InfoTopic(pair), moment.EventsTopic("ann"),
			moment.StateTopic(pair, c.frame.id), moment.CommandTopic(pair, c.frame.id),
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			err := spy.link.Publish(ctx, mqttlink.Publish{Topic: topic, Payload: newJPEG(1, 1000), QoS: 1})
			cancel()
			var reason *mqttlink.ReasonError
			if !errors.As(err, &reason) || reason.Code != mqttlink.CodeNotAuthorized {
				t.Errorf("publish of cat to %s: %v, want 0x87", topic, err)
			}
		}
		// Client ids that others use are hers alone under her name.
		twin := w.peer("cat", c.frame.id, token, nil, nil).on()
		time.Sleep(10 * time.Second)

		c.round()
		cat.send(3000)
		dan.send(3000)
		time.Sleep(time.Minute)
		c.check()
		if got := spy.topics(); len(got) > 0 {
			t.Errorf("cat's spy got %v", got)
		}
		for _, p := range []*phone{cat, dan} {
			if v := p.view(); len(v.seen) != 1 || v.seen[0].sender != v.partner {
				t.Errorf("%s shows %v, want one photo of its partner", p.host, v.seen)
			}
		}
		if twin.link.Connected() {
			t.Error("cat took the client id of ben's frame")
		}
		if !c.frame.status().Connected {
			t.Error("ben's frame has lost its session to cat")
		}
	})
}

// TestRemovedPair ends a pair and makes a new one of ann: ben's phone, frame
// and widget get nothing any more, also not what was stored before, and what
// ann's app had queued for ben never reaches eve.
func TestRemovedPair(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]bool{"ben is away": true, "ben is connected": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inWorld(t, 1, func(w *world) { removedPair(w, away) })
		})
	}
}

func removedPair(w *world, away bool) {
	t := w.t
	pair := w.createPair("ann", "ben")
	c := newCouple(w, func(string) string { return "http://server" })
	widget := w.peer("ben", "widget", w.appToken("ben"), []string{"pairs/" + pair + "/#"}, nil).on()
	c.round()
	if away {
		c.ben.stop()
		c.frame.stop()
	}
	last := c.ann.send(3000)
	w.await(time.Minute, func() string { return "ann's phone waits" }, c.ann.idle)
	time.Sleep(10 * time.Second)
	c.ann.stop()
	late := w.book.make("ann", c.ann.host, 3000) // queued in the app for ben
	c.ann.sendPhoto(late)
	time.Sleep(time.Second)
	shown, told := len(c.ben.view().seen), len(widget.topics())

	w.removePair(pair)
	w.createPair("ann", "eve")
	eve := w.phone("eve", "http://server").on()
	attic := w.frame("eve", "attic").on()
	c.ann.on()
	if away {
		c.ben.on()
		c.frame.on()
	}
	time.Sleep(2 * time.Minute)
	kept := len(c.frame.photos())
	for range 3 {
		c.ann.send(3000)
		eve.send(3000)
	}
	w.await(time.Hour, func() string { return "ann and eve do not have each other's photos" }, func() bool {
		return c.ann.idle() && eve.idle() && len(eve.view().seen) >= 3 && len(attic.photos()) >= 3
	})
	time.Sleep(15 * time.Minute)

	if code := c.ann.final()[late.id]; code != "not_partner" {
		t.Errorf("ann's queued photo for ben was answered %q, want not_partner", code)
	}
	if got := len(c.ben.view().seen); got != shown {
		t.Errorf("ben's phone shows %d photos after the pair's end, %d before", got, shown)
	}
	for _, p := range c.frame.photos() {
		if p.Moment == last.id && away || p.Sender != "ann" {
			t.Errorf("ben's frame took %s of %s after the pair's end", p.Moment, p.Sender)
		}
	}
	if got := len(c.frame.photos()); got > kept {
		t.Errorf("ben's frame took %d photos of a pair it is not in", got-kept)
	}
	if got := widget.topics()[told:]; len(got) > 0 {
		t.Errorf("ben's widget got %v after the pair's end", got)
	}
	for _, v := range []viewer{eve.view(), attic.view()} {
		if len(v.seen) != 3 {
			t.Errorf("%s shows %d photos, want the 3 that ann sent eve", v.name, len(v.seen))
		}
		for _, s := range v.seen {
			if s.id == late.id || s.id == last.id || s.sender != "ann" {
				t.Errorf("%s shows %s of %s", v.name, s.id, s.sender)
			}
		}
	}
	for _, p := range []*phone{c.ann, c.ben} {
		if !slices.Contains(p.seenEvents(), "partner_disconnected") {
			t.Errorf("%s was not told that the pair has ended", p.host)
		}
	}
}
