package bridge

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

func rawArgs(args ...string) []json.RawMessage {
	var out []json.RawMessage
	for _, a := range args {
		out = append(out, json.RawMessage(a))
	}
	return out
}

func TestRefusedSends(t *testing.T) {
	with := func(key string, value any) map[string]any {
		p := photoOf("ben", 1)
		if p[key] = value; value == nil {
			delete(p, key)
		}
		return p
	}
	reason := func(code byte, text string) func(mqttlink.Publish) error {
		return func(mqttlink.Publish) error { return &mqttlink.ReasonError{Code: code, Reason: text} }
	}
	tests := []struct {
		name      string
		event     string
		body      any
		refuse    func(mqttlink.Publish) error
		code      code
		retryable bool
	}{
		{name: "not the partner", body: with("partnerId", "eve"), code: codeNotPartner},
		{name: "oneself", body: with("partnerId", "ana"), code: codeNotPartner},
		{name: "no partner", body: with("partnerId", nil), code: codeInvalid},
		{name: "no photo id", body: with("photoId", nil), code: codeInvalid},
		{name: "photo id is a number", body: with("photoId", 7), code: codeInvalid},
		{name: "bad photo id", body: with("photoId", "a/b"), code: codeInvalid},
		{name: "long caption", body: with("caption", strings.Repeat("x", 4097)), code: codeInvalid},
		{name: "NUL in caption", body: with("caption", "a\x00b"), code: codeInvalid},
		{name: "long messageId", body: with("messageId", strings.Repeat("x", 2000)), code: codeInvalid},
		{name: "no photo", body: with("photoData", nil), code: codePhoto},
		{name: "empty photo", body: with("photoData", ""), code: codePhoto},
		{name: "photo is a number", body: with("photoData", 5), code: codePhoto},
		{name: "not base64", body: with("photoData", "@@@@"), code: codePhoto},
		{name: "cut base64", body: with("photoData", "/9j/4A"), code: codePhoto},
		{name: "not an image", body: with("photoData", "aGVsbG8gd29ybGQh"), code: codePhoto},
		{name: "data URL without base64", body: with("photoData", "data:image/svg+xml,<svg/>"), code: codePhoto},
		{name: "made up attachment", body: with("photoData", map[string]any{"num": 0}), code: codePhoto},
		{name: "too large", body: with("photoData", base64.StdEncoding.EncodeToString(make([]byte, DefaultPhotoBytes+1))), code: codeTooLarge},
		{name: "not an object", body: "photo", code: codeInvalid},
		{name: "quota", body: photoOf("ben", 1), refuse: reason(0x97, ""), code: codeQuota, retryable: true},
		{name: "disk full", body: photoOf("ben", 1), refuse: reason(0x97, "storage full"), code: codeStorageFull, retryable: true},
		{name: "not authorized", body: photoOf("ben", 1), refuse: reason(0x87, ""), code: codeNotPaired},
		{name: "busy", body: photoOf("ben", 1), refuse: reason(0x89, ""), code: codeUnavailable, retryable: true},
		{name: "refused", body: photoOf("ben", 1), refuse: reason(0x83, "no"), code: codeNotAllowed},
		{name: "note without text", event: "send_note", body: map[string]any{"noteId": "n", "partnerId": "ben"}, code: codeInvalid},
		{name: "note to another", event: "send_note", body: map[string]any{"noteId": "n", "noteContent": "x", "partnerId": "eve"}, code: codeNotPartner},
		{name: "reaction as a novel", event: "photo_reaction", body: map[string]any{"photoId": "p", "reaction": strings.Repeat("x", 99)}, code: codeInvalid},
		{name: "delete nothing", event: "delete_photo", body: map[string]any{}, code: codeInvalid},
		{name: "unknown event", event: "make_coffee", body: map[string]any{}, code: codeInvalid},
		{name: "room of another", event: "join_room", body: map[string]any{"userId": "ben"}, code: codeNotAllowed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.broker.refuse = tt.refuse
				ana := w.join("ana")
				event := tt.event
				if event == "" {
					event = "send_photo"
				}
				got := ana.ask(event, tt.body)
				if got["success"] != false || got["code"] != string(tt.code) || got["retryable"] != tt.retryable || got["error"] == "" {
					t.Errorf("answer %v, want code %s, retryable %v", got, tt.code, tt.retryable)
				}
				if event == "send_photo" {
					if errs := ana.heard("send_photo_error"); len(errs) != 1 || errs[0].body["code"] != string(tt.code) {
						t.Errorf("send_photo_error %v, want one of %s", errs, tt.code)
					}
				}
				if n := len(w.broker.topics("")); n != 0 {
					t.Errorf("%d moments stored, want none", n)
				}
			})
		})
	}
}

func TestSendWithoutAPair(t *testing.T) {
	inWorld(t, func(w *world) {
		eve := w.join("eve")
		if got := eve.ask("send_photo", photoOf("ana", 1)); got["code"] != string(codeNotPaired) {
			t.Errorf("answer %v, want not_paired", got)
		}
		eve.emit("heartbeat", map[string]any{"userId": "eve"})
	})
}

func TestSendFormsAndDuplicate(t *testing.T) {
	inWorld(t, func(w *world) {
		ana := w.connect("ana", nil) // sends before join_room
		encoded := base64.StdEncoding.EncodeToString(jpeg(1))
		for i, data := range []any{
			encoded, "data:image/jpeg;base64," + encoded, encoded[:40] + "\r\n" + encoded[40:], socketio.Binary(jpeg(1)),
		} {
			body := photoOf("ben", i)
			body["photoData"] = data
			if got := ana.ask("send_photo", body); got["success"] != true {
				t.Errorf("form %d: %v", i, got)
			}
		}
		ben := w.join("ben")
		for _, e := range ben.heard("receive_photo") {
			if e.body["photoData"] != encoded {
				t.Errorf("%v arrived changed", e.body["photoId"])
			}
		}
		ana.room()
		if n := len(ben.photos()); n != 4 {
			t.Fatalf("%d photos arrived, want 4", n)
		}
		ana.leave()
		ana = w.join("ana")
		before := len(ana.heard("photo_delivered"))
		got := ana.ask("send_photo", photoOf("ben", 1))
		if got["duplicate"] != true || got["success"] != true {
			t.Errorf("a repeat was answered %v", got)
		}
		if n := len(ana.heard("photo_delivered")) - before; n != 1 {
			t.Errorf("a repeat of a delivered photo made %d photo_delivered, want 1", n)
		}
		if n := len(ben.photos()); n != 4 {
			t.Errorf("%d photos arrived after the repeat, want 4", n)
		}
	})
}

func TestSlowBrokerIsAnsweredInTime(t *testing.T) {
	inWorld(t, func(w *world) {
		ana := w.join("ana")
		w.broker.mu.Lock()
		w.broker.mute = true
		w.broker.mu.Unlock()
		start := time.Now()
		got := ana.ask("send_photo", photoOf("ben", 1))
		if got["code"] != string(codeTimeout) || got["retryable"] != true {
			t.Errorf("answer %v, want a retryable timeout", got)
		}
		if d := time.Since(start); d != DefaultSendTimeout {
			t.Errorf("answered after %v, want %v", d, DefaultSendTimeout)
		}
	})
}

// The app empties its queue at once, without acks, and may be gone a moment
// later: what has arrived is stored all the same, in order.
func TestQueueOfAPhoneThatLeaves(t *testing.T) {
	inWorld(t, func(w *world) {
		w.broker.delay = 10 * time.Millisecond
		ana := w.connect("ana", nil)
		for n := range 30 {
			body := photoOf("ben", n)
			delete(body, "messageId")
			if err := ana.sock.Emit("send_photo", body); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		ana.leave()
		time.Sleep(time.Second)
		stored := w.broker.topics("/photos/ana/")
		if len(stored) != 30 {
			t.Fatalf("%d photos stored, want 30", len(stored))
		}
		for n, topic := range stored {
			if !strings.HasSuffix(topic, fmt.Sprintf("/photo-%d", n)) {
				t.Errorf("place %d holds %s", n, topic)
			}
		}
		w.bridge.mu.Lock()
		defer w.bridge.mu.Unlock()
		if len(w.bridge.users) != 0 || len(w.bridge.up) != 0 || len(w.bridge.sockets) != 0 {
			t.Errorf("left behind: %d users, %d up, %d sockets", len(w.bridge.users), len(w.bridge.up), len(w.bridge.sockets))
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		ana := w.join("ana")
		w.broker.mu.Lock()
		w.broker.mute = true
		w.broker.mu.Unlock()
		big := append(jpeg(1), make([]byte, 3<<20)...)
		body := photoOf("ben", 1)
		body["photoData"] = base64.StdEncoding.EncodeToString(big)
		for range 5 {
			if err := ana.sock.Emit("send_photo", body); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		p := w.bridge.users[userKey{"ana", ""}].phones[0]
		if p.sends.memory.TryAcquire(DefaultSocketPhotoMemory - 4<<20) {
			t.Error("four photos on the way, and the socket's memory is not used")
		}
		p.sends.mu.Lock()
		queued := len(p.sends.jobs)
		p.sends.mu.Unlock()
		if queued > 5 {
			t.Errorf("%d photos queued beyond the socket's memory", queued)
		}
		ana.sock.Close()
	})
}

func TestAdmission(t *testing.T) {
	inWorld(t, func(w *world) {
		good := w.token(token.Principal{User: "ana", Role: token.RoleApp}, time.Hour)
		old := w.token(token.Principal{User: "ana", Role: token.RoleApp}, time.Second)
		frame := w.token(token.Principal{User: "ana", Role: token.RoleAdmin}, time.Hour)
		time.Sleep(time.Minute)
		tests := []struct {
			name string
			auth map[string]any
			code token.Code
		}{
			{"no token", map[string]any{}, token.CodeMissing},
			{"rubbish", map[string]any{"token": "abc"}, token.CodeInvalid},
			{"expired", map[string]any{"token": old}, token.CodeExpired},
			{"another user", map[string]any{"token": good, "userId": "ben"}, token.CodeInvalid},
			{"admin", map[string]any{"token": frame}, token.CodeInvalid},
			{"bad device", map[string]any{"token": good, "deviceId": "a b"}, token.CodeInvalid},
			{"token is a number", map[string]any{"token": 5}, token.CodeInvalid},
		}
		for _, tt := range tests {
			err := w.refusal(tt.auth)
			var data struct {
				Code       token.Code
				Retryable  bool
				ServerTime int64
			}
			raw, _ := err.Data.(json.RawMessage)
			if json.Unmarshal(raw, &data) != nil || data.Code != tt.code || data.Retryable || data.ServerTime != time.Now().UnixMilli() {
				t.Errorf("%s: %s %s, want code %s", tt.name, err.Message, raw, tt.code)
			}
			if strings.Contains(err.Message, good) {
				t.Errorf("%s: the message holds the token", tt.name)
			}
		}
		for range DefaultSocketsPerUser {
			w.connect("ana", nil)
		}
		if err := w.refusal(map[string]any{"token": good}); !strings.Contains(fmt.Sprint(string(err.Data.(json.RawMessage))), "rate_limited") {
			t.Errorf("socket %d was refused with %v", DefaultSocketsPerUser+1, err)
		}
	})
}

func TestRevocation(t *testing.T) {
	inWorld(t, func(w *world) {
		raw, who, err := w.signer.Sign(token.Principal{User: "ana", Role: token.RoleApp}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		other := w.join("ana")
		ana := w.connect("ana", map[string]any{"token": raw})
		if err := w.reg.RevokeToken(w.t.Context(), who.ID, time.Time{}); err != nil {
			t.Fatal(err)
		}
		<-ana.sock.Done()
		if got := ana.heard("auth:revoked"); len(got) != 1 {
			t.Errorf("auth:revoked %v, want one", got)
		}
		if got := other.ask("join_room", map[string]any{"userId": "ana"}); got["success"] != true {
			t.Errorf("the other token's socket: %v", got)
		}
		time.Sleep(2 * time.Second)
		if err := w.reg.RevokeUser(w.t.Context(), "ana", time.Now()); err != nil {
			t.Fatal(err)
		}
		<-other.sock.Done()
	})
}

// A token with the claim of a pair that has ended reaches nothing of the next.
func TestStalePairClaim(t *testing.T) {
	inWorld(t, func(w *world) {
		stale := w.token(token.Principal{User: "ben", Role: token.RoleApp, Pair: "old"}, time.Hour)
		ben := w.connect("ben", map[string]any{"token": stale})
		ben.room()
		w.fromPartner("ana", 1)
		diff(t, "photos", ben.photos(), []string{})
		if got := ben.ask("send_photo", photoOf("ana", 2)); got["code"] != string(codeNotPaired) {
			t.Errorf("send: %v, want not_paired", got)
		}
	})
}
