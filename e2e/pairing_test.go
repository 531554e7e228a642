package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// pairsAPI makes a request of /pairs/ as user, from a web page of origin, and
// returns the status and what was answered.
func (s *server) pairsAPI(t testing.TB, method, path, user, body, origin string) (status int, answer pairsAnswer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.http+"/pairs/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token(t, user))
	req.Header.Set("Origin", origin)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || json.Unmarshal(raw, &answer) != nil {
		t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, raw, err)
	}
	if got := resp.Header.Get("Access-Control-Allow-Origin"); got != origin {
		t.Errorf("%s %s: Access-Control-Allow-Origin %q, want %q", method, path, got, origin)
	}
	return resp.StatusCode, answer
}

// pairsAnswer is what /pairs/ answers, of all its requests.
type pairsAnswer struct {
	Success bool
	Error   string
	Data    struct {
		Code    string
		Pair    struct{ ID, User1ID, User2ID, PairedAt string }
		Partner struct{ ID, ClerkID, DisplayName string }
	}
}

// TestPairAndSchedule: two phones with the official client pair by a code, one
// schedules a photo for the other, and one leaves. Over kill -9 in between.
func TestPairAndSchedule(t *testing.T) {
	const origin = "https://app.example"
	s := newServer(t, "PAIRSYNC_HTTP_ORIGINS="+origin)
	n := newNode(t, "phone.mjs")
	ann, ben := newID("ann"), newID("ben")
	annPhone, benPhone := newPhone(t, n, s, ann, phoneOptions{}), newPhone(t, n, s, ben, phoneOptions{transports: upgrading})

	status, made := s.pairsAPI(t, "POST", "generate-code", ann, "", origin)
	if status != 200 || len(made.Data.Code) != 6 {
		t.Fatalf("generate-code: %d %+v", status, made)
	}
	s.crash(t)
	annPhone.await(t, "room_joined", 2)
	benPhone.await(t, "room_joined", 2)
	join := `{"code":"` + made.Data.Code + `"}`
	status, joined := s.pairsAPI(t, "POST", "join", ben, join, origin)
	if status != 200 || !joined.Success || joined.Data.Partner.ClerkID != ann || joined.Data.Pair.User1ID != ann || joined.Data.Pair.User2ID != ben {
		t.Fatalf("join: %d %+v", status, joined)
	}
	for _, p := range []*phone{annPhone, benPhone} {
		for _, name := range []string{"code_used", "pairing_success", "partner_connected"} {
			got := named[struct{ PairID string }](t, p.await(t, name, 1), name)[0]
			if got.PairID != joined.Data.Pair.ID {
				t.Errorf("%s of %s: %+v, want pair %s", name, p.user, got, joined.Data.Pair.ID)
			}
		}
	}
	if status, got := s.pairsAPI(t, "POST", "join", newID("eve"), join, origin); status != 404 || got.Success || got.Error != "invalid_code" {
		t.Errorf("the code again: %d %+v, want 404 invalid_code", status, got)
	}

	o := photoFor(ben, newPhoto(100<<10))
	at := time.Now().Add(5 * time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	answer, err := annPhone.ask(ctx, patience, "schedule_photo", struct {
		sendPhoto
		ScheduledTime int64 `json:"scheduledTime"`
		Duration      int   `json:"duration"`
	}{o, at.UnixMilli(), 24})
	if err != nil || !strings.Contains(string(answer), `"success":true`) {
		t.Fatalf("schedule_photo: %s, %v", answer, err)
	}
	s.crash(t)
	got := benPhone.photos(t, 1)[0]
	if late := time.Since(at); late < 0 || got.PhotoID != o.PhotoID || got.PhotoData != o.PhotoData || got.SenderID != ann {
		t.Errorf("%s came %v after its time from %q", got.PhotoID, late, got.SenderID)
	}

	if status, got := s.pairsAPI(t, "DELETE", "disconnect", ben, "", origin); status != 200 || !got.Success {
		t.Errorf("disconnect: %d %+v", status, got)
	}
	for _, p := range []*phone{annPhone, benPhone} {
		p.await(t, "partner_disconnected", 1)
	}
	if status, got := s.pairsAPI(t, "GET", "current", ann, "", origin); status != 200 || got.Data.Pair.ID != "" {
		t.Errorf("current after the end: %d %+v", status, got)
	}
}
