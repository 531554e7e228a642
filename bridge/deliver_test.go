package bridge

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/bridge/socketio"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

func diff(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestPhotoReachesPartner(t *testing.T) {
	inWorld(t, func(w *world) {
		ana, ben := w.join("ana"), w.join("ben")
		start := time.Now()
		answer := ana.ask("send_photo", photoOf("ben", 1))
		diff(t, "answer", answer, map[string]any{
			"success": true, "photoId": "photo-1", "messageId": "msg-1", "deliveryMethod": "socket", "sentAt": stamp(start),
		})
		diff(t, "photo_sent", ana.heard("photo_sent")[0].body, answer)

		got := ben.heard("receive_photo")
		if len(got) != 1 {
			t.Fatalf("ben got %d photos, want 1", len(got))
		}
		diff(t, "receive_photo", got[0].body, map[string]any{
			"photoId": "photo-1", "momentId": "photo-1", "messageId": "photo-1", "contentType": "image/jpeg", "caption": "hello",
			"timestamp": float64(1_700_000_000_001), "senderId": "ana", "senderName": "ana", "isPending": false,
			"photoData": base64.StdEncoding.EncodeToString(jpeg(1)),
		})
		delivered := ana.heard("photo_delivered")
		if len(delivered) != 1 {
			t.Fatalf("ana heard %d photo_delivered, want 1", len(delivered))
		}
		want := map[string]any{"photoId": "photo-1", "momentId": "photo-1", "receivedAt": stamp(start), "device": ""}
		diff(t, "photo_delivered", delivered[0].body, want)
		diff(t, "moment_received_ack", ana.heard("moment_received_ack")[0].body, want)
		if n := len(ana.photos()); n != 0 {
			t.Errorf("ana got %d photos of her own", n)
		}
		if n := w.broker.waiting("ben/app"); n != 0 {
			t.Errorf("%d moments of ben unacknowledged, want none", n)
		}
	})
}

func TestOfflinePartnerGetsAllInOrder(t *testing.T) {
	inWorld(t, func(w *world) {
		ana := w.join("ana")
		var want []string
		for n := range 40 {
			if got := ana.ask("send_photo", photoOf("ben", n)); got["deliveryMethod"] != "queued" {
				t.Fatalf("answer %v, want it queued", got)
			}
			want = append(want, fmt.Sprintf("photo-%d", n))
		}
		time.Sleep(time.Second)
		ben := w.join("ben")
		diff(t, "photos", ben.photos(), want)
		for _, e := range ben.heard("receive_photo") {
			if e.body["isPending"] != true {
				t.Errorf("%v: isPending %v, want true", e.body["photoId"], e.body["isPending"])
			}
		}
		if got := len(ana.heard("photo_delivered")); got != len(want) {
			t.Errorf("%d receipts, want %d", got, len(want))
		}
	})
}

func TestOnePhotoAtATime(t *testing.T) {
	inWorld(t, func(w *world) {
		for n := range 3 {
			w.fromPartner("ana", n)
		}
		first, second := w.connect("ben", nil), w.connect("ben", nil)
		first.answers, second.answers = false, false
		first.room()
		diff(t, "first socket", first.photos(), []string{"photo-0"})
		second.room()
		diff(t, "second socket, joined later", second.photos(), []string{"photo-0"})
		second.emit("photo_received", map[string]any{"photoId": "photo-0", "receivedAt": "2026-01-02T03:04:05Z"})
		diff(t, "first socket after one ack", first.photos(), []string{"photo-0", "photo-1"})
		first.emit("moment_received", map[string]any{"momentId": "photo-1"})
		diff(t, "second socket after two acks", second.photos(), []string{"photo-0", "photo-1", "photo-2"})
		if got := len(w.broker.topics("/receipts/ben/")); got != 2 {
			t.Errorf("%d receipts, want 2", got)
		}
	})
}

func TestEventAckCounts(t *testing.T) {
	inWorld(t, func(w *world) {
		ben := w.connect("ben", map[string]any{"binary": true})
		ben.answers = false
		var refused bool
		ben.room()
		w.fromPartner("ana", 1)
		ph := w.bridge.users[userKey{"ben", ""}].phones[0]
		ph.photoAnswered("photo-1", rawArgs(`{"success":false}`))
		if refused = len(w.broker.topics("/receipts/")) > 0; refused {
			t.Error("an answer without success counted as received")
		}
		ph.photoAnswered("photo-1", rawArgs(`true`))
		synctest.Wait()
		if len(w.broker.topics("/receipts/")) != 1 {
			t.Error("the event's ack did not count")
		}
		if got := ben.heard("receive_photo")[0].body["photoData"]; cmp.Diff(got, map[string]any{"_placeholder": true, "num": 0.0}) != "" {
			t.Errorf("photoData %v, want an attachment", got)
		}
	})
}

func TestAcknowledgedPhotoIsNotShownAgain(t *testing.T) {
	t.Run("link cut before PUBACK", func(t *testing.T) {
		inWorld(t, func(w *world) {
			ben := w.connect("ben", nil)
			ben.answers = false
			ben.room()
			w.fromPartner("ana", 1)
			w.broker.mu.Lock()
			w.broker.mute = true // the receipt stays on the way
			w.broker.mu.Unlock()
			ben.emit("photo_received", map[string]any{"photoId": "photo-1"})
			w.broker.cut("ben/app")
			w.broker.mu.Lock()
			w.broker.mute = false
			w.broker.mu.Unlock()
			time.Sleep(time.Minute)
			diff(t, "photos", ben.photos(), []string{"photo-1"})
			if n := w.broker.waiting("ben/app"); n != 0 {
				t.Errorf("%d unacknowledged, want none", n)
			}
		})
	})
	t.Run("bridge restarted before PUBACK", func(t *testing.T) {
		inWorld(t, func(w *world) {
			ben := w.join("ben")
			w.broker.mu.Lock()
			w.broker.refuse = func(p mqttlink.Publish) error {
				if strings.Contains(p.Topic, "/receipts/") {
					return errors.New("broker stumbles")
				}
				return nil
			}
			w.broker.mu.Unlock()
			for n := range 3 {
				w.fromPartner("ana", n)
			}
			diff(t, "photos", ben.photos(), []string{"photo-0", "photo-1", "photo-2"})
			w.stop()
			if n := w.broker.waiting("ben/app"); n != 3 {
				t.Fatalf("%d unacknowledged after the stop, want 3: PUBACK before the receipt", n)
			}
			w.broker.refuse = nil
			w.begin()
			again := w.join("ben")
			diff(t, "photos after the restart", again.photos(), []string{})
			if n := w.broker.waiting("ben/app"); n != 0 {
				t.Errorf("%d unacknowledged, want none", n)
			}
			if n := len(w.broker.topics("/receipts/ben/")); n != 3 {
				t.Errorf("%d receipts, want 3", n)
			}
		})
	})
	t.Run("acknowledged before join_room", func(t *testing.T) {
		inWorld(t, func(w *world) {
			w.fromPartner("ana", 1)
			ben := w.connect("ben", nil)
			ben.emit("photo_received", map[string]any{"photoId": "photo-1"})
			ben.room()
			diff(t, "photos", ben.photos(), []string{})
			if n := len(w.broker.topics("/receipts/ben/")); n != 1 {
				t.Errorf("%d receipts, want 1", n)
			}
		})
	})
}

func TestReceiptBeforePUBACK(t *testing.T) {
	inWorld(t, func(w *world) {
		fail := 3
		w.broker.refuse = func(p mqttlink.Publish) error {
			if !strings.Contains(p.Topic, "/receipts/") {
				return nil
			}
			if fail--; fail >= 0 {
				return &mqttlink.ReasonError{Code: 0x88}
			}
			return nil
		}
		w.broker.onAck = func(topic string) {
			for _, e := range w.broker.log {
				if strings.Contains(e.topic, "/receipts/") {
					return
				}
			}
			t.Errorf("%s was acknowledged before its receipt was stored", topic)
		}
		w.fromPartner("ana", 1)
		w.join("ben")
		time.Sleep(10 * time.Second)
		if n := len(w.broker.topics("/receipts/ben/")); n != 1 {
			t.Errorf("%d receipts, want 1", n)
		}
		if n := w.broker.waiting("ben/app"); n != 0 {
			t.Errorf("%d unacknowledged, want none", n)
		}
	})
}

func TestForeignMomentsAreDropped(t *testing.T) {
	inWorld(t, func(w *world) {
		ben := w.join("ben")
		s := w.bridge.users[userKey{"ben", ""}].session
		for _, topic := range []string{
			"pairs/" + w.pair.ID + "/photos/ben/own", "pairs/" + w.pair.ID + "/photos/eve/x", "pairs/other/photos/ana/y",
			"pairs/" + w.pair.ID + "/photos", "pairs/" + w.pair.ID + "/presence/eve", "something/else",
		} {
			acked := false
			s.receive(inbound{&mqttlink.Message{Topic: topic, Payload: jpeg(1), QoS: 1}, func() error { acked = true; return nil }})
			if !acked {
				t.Errorf("%s: not acknowledged", topic)
			}
		}
		diff(t, "photos", ben.photos(), []string{})
	})
}

func TestDeletedPhotoIsNotDelivered(t *testing.T) {
	inWorld(t, func(w *world) {
		ben := w.connect("ben", nil)
		ben.answers = false
		ben.room()
		ana := w.join("ana")
		for n := range 3 {
			ana.ask("send_photo", photoOf("ben", n))
		}
		for _, n := range []int{1, 0} { // one that waits, then the one that ben has
			if got := ana.ask("delete_photo", map[string]any{"photoId": fmt.Sprintf("photo-%d", n)}); got["success"] != true {
				t.Fatalf("delete_photo: %v", got)
			}
		}
		diff(t, "photos", ben.photos(), []string{"photo-0", "photo-2"})
		deleted := ben.heard("photo_deleted")
		if len(deleted) != 2 {
			t.Fatalf("%d photo_deleted, want 2", len(deleted))
		}
		diff(t, "photo_deleted", deleted[1].body, map[string]any{"photoId": "photo-0", "senderId": "ana"})
	})
}

func TestOtherMomentsAreAcknowledgedAfterPong(t *testing.T) {
	inWorld(t, func(w *world) {
		ana := w.join("ana")
		ana.ask("send_note", map[string]any{"noteId": "n1", "noteContent": "hi ♥", "partnerId": "ben", "timestamp": 1_700_000_000_000})
		ana.ask("photo_reaction", map[string]any{"photoId": "p", "reaction": "♥", "timestamp": 1_700_000_000_000})
		w.broker.mu.Lock()
		w.broker.store(mqttlink.Publish{Topic: moment.EventsTopic("ben"), QoS: 1,
			Payload: []byte(`{"event":"pairing_success","pairId":"p1","partner":{"id":"ana"},"pairedAt":"now"}`)})
		w.broker.store(mqttlink.Publish{Topic: moment.EventsTopic("ben"), QoS: 1, Payload: []byte(`{"event":"of the future"}`)})
		w.broker.mu.Unlock()
		ben := w.connect("ben", nil)
		ben.emit("photo_received", map[string]any{"photoId": "nothing"})
		if n := w.broker.waiting("ben/app"); n != 0 {
			t.Fatalf("a session exists before join_room")
		}
		ben.room()
		notes := ben.heard("receive_note")
		if len(notes) != 1 {
			t.Fatalf("%d notes, want 1", len(notes))
		}
		diff(t, "receive_note", notes[0].body, map[string]any{
			"noteId": "n1", "noteContent": "hi ♥", "senderId": "ana", "senderName": "ana", "timestamp": 1_700_000_000_000.0, "messageId": "n1",
		})
		reaction := ben.heard("photo_reaction")[0].body
		delete(reaction, "messageId")
		diff(t, "photo_reaction", reaction, map[string]any{"photoId": "p", "reaction": "♥", "senderId": "ana", "timestamp": 1_700_000_000_000.0})
		diff(t, "pairing_success", ben.heard("pairing_success")[0].body,
			map[string]any{"pairId": "p1", "partner": map[string]any{"id": "ana"}, "pairedAt": "now"})
		if n := w.broker.waiting("ben/app"); n != 0 {
			t.Errorf("%d unacknowledged, want none", n)
		}
		w.broker.mu.Lock()
		w.broker.loseAcks = true
		w.broker.mu.Unlock()
		ana.ask("send_note", map[string]any{"noteId": "n2", "noteContent": "ho", "partnerId": "ben"})
		if n := len(ben.heard("receive_note")); n != 2 {
			t.Fatalf("%d notes, want 2", n)
		}
		w.broker.mu.Lock()
		w.broker.loseAcks = false
		w.broker.mu.Unlock()
		w.broker.cut("ben/app")
		time.Sleep(2 * time.Second)
		if n := len(ben.heard("receive_note")); n != 2 {
			t.Errorf("a note whose PUBACK was lost was emitted again: %d notes", n)
		}
		if n := w.broker.waiting("ben/app"); n != 0 {
			t.Errorf("%d unacknowledged, want none", n)
		}
	})
}

func TestPresenceAndHeartbeat(t *testing.T) {
	inWorld(t, func(w *world) {
		ana := w.join("ana")
		ben := w.join("ben")
		ben.emit("heartbeat", map[string]any{"userId": "ben"})
		ben.emit("heartbeat", map[string]any{"userId": "ben"}) // at once: not passed on
		beats := ana.heard("partner_heartbeat")
		if len(beats) != 1 || beats[0].body["userId"] != "ben" || beats[0].body["timestamp"] != float64(time.Now().UnixMilli()) {
			t.Errorf("heartbeats %v, want one of ben", beats)
		}
		second := w.join("ana")
		if got := second.heard("partner_presence"); len(got) != 1 || got[0].body["isOnline"] != true {
			t.Errorf("a later socket heard %v, want ben online", got)
		}
		time.Sleep(time.Second)
		ben.leave()
		got := ana.heard("partner_presence")
		if last := got[len(got)-1]; last.body["isOnline"] != false || last.body["userId"] != "ben" {
			t.Errorf("last presence %v, want ben offline", last)
		}
	})
}

func TestPairChange(t *testing.T) {
	inWorld(t, func(w *world) {
		ben := w.connect("ben", nil)
		ben.answers = false
		ben.room()
		w.fromPartner("ana", 1)
		w.fromPartner("ana", 2)
		old := w.pair
		if _, err := w.reg.RemovePair(w.t.Context(), old.ID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ben.emit("photo_received", map[string]any{"photoId": "photo-1"})
		w.fromPartner("ana", 3)
		diff(t, "photos", ben.photos(), []string{"photo-1"})
		if f := w.broker.filters("ben/app"); strings.Contains(f, old.ID) {
			t.Errorf("still subscribed: %s", f)
		}
		var err error
		if w.pair, err = w.reg.CreatePair(w.t.Context(), "ben", "cleo"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.fromPartner("cleo", 4)
		diff(t, "photos of the new partner", ben.photos(), []string{"photo-1", "photo-4"})
	})
}

// A phone that was too slow to be given a photo gets it a little later.
func TestLaggingPhoneCatchesUp(t *testing.T) {
	inWorld(t, func(w *world) {
		ben := w.connect("ben", nil)
		ben.answers = false
		ben.room()
		w.fromPartner("ana", 1)
		u := w.bridge.users[userKey{"ben", ""}]
		if u.phones[0].emitted("receive_photo", socketio.ErrBacklog) {
			t.Error("a full queue counted as emitted")
		}
		time.Sleep(lagWait)
		diff(t, "photos", ben.photos(), []string{"photo-1", "photo-1"})
	})
}

// While the broker is away, the end of the last socket still ends the session.
func TestSessionEndsWhileResubscribing(t *testing.T) {
	inWorld(t, func(w *world) {
		ben := w.join("ben")
		w.broker.mu.Lock()
		w.broker.deaf = true
		w.broker.mu.Unlock()
		if _, err := w.reg.RemovePair(w.t.Context(), w.pair.ID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ben.leave()
		if w.bridge.isUp("ben") {
			t.Error("ben is still online")
		}
	})
}
