package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/moment"
	"pairsync/internal/token"
)

func TestHealth(t *testing.T) {
	inWorld(t, func(w *world) {
		for method, want := range map[string]int{"GET": 200, "HEAD": 200, "POST": 405} {
			rec := httptest.NewRecorder()
			w.bridge.Handler().ServeHTTP(rec, httptest.NewRequest(method, "/health", nil))
			if rec.Code != want {
				t.Errorf("%s /health = %d, want %d", method, rec.Code, want)
			}
		}
	})
}

// A phone with a device id has a session, and gives receipts, of its own.
func TestDeviceID(t *testing.T) {
	inWorld(t, func(w *world) {
		plain, tablet := w.join("ben"), w.connect("ben", map[string]any{"deviceId": "tablet"})
		plain.answers = false
		tablet.room()
		ana := w.join("ana")
		ana.ask("send_photo", photoOf("ben", 1))
		diff(t, "the plain phone's photos", plain.photos(), []string{"photo-1"})
		diff(t, "the tablet's photos", tablet.photos(), []string{"photo-1"})
		got := ana.heard("photo_delivered")
		if len(got) != 1 || got[0].body["device"] != "tablet" {
			t.Errorf("photo_delivered %v, want one of the tablet", got)
		}
		if app, other := w.broker.waiting("ben/app"), w.broker.waiting("ben/app-tablet"); app != 1 || other != 0 {
			t.Errorf("unacknowledged: %d of app, %d of app-tablet; want 1 and 0", app, other)
		}
		id := moment.ReceiptID("ana", "photo-1", "tablet", moment.StatusStored)
		diff(t, "receipts", w.broker.topics("/receipts/"), []string{"pairs/" + w.pair.ID + "/receipts/ben/" + id})
	})
}

func TestBearerToken(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		raw := w.token(token.Principal{User: "ana", Role: token.RoleApp, Name: "Ana B."}, time.Hour)
		c, err := socketio.Dial(ctx, "http://bridge/", socketio.DialOptions{
			Header:  http.Header{"Authorization": {"bearer " + raw}},
			NetDial: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.listen.Dial(ctx, "phone") },
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if name := w.reg.Name("ana"); name != "Ana B." {
			t.Errorf("name %q, want the token's", name)
		}
		c.Close()
		<-c.Done()
	})
}

func TestOutsideRunPhonesComeBackLater(t *testing.T) {
	inWorld(t, func(w *world) {
		idle, err := New(Default(), w.deps)
		if err != nil {
			t.Fatal(err)
		}
		err = idle.admit(nil)
		var refused *socketio.ConnectError
		if !errors.As(err, &refused) {
			t.Fatalf("%v, want a connect error", err)
		}
		data, err := json.Marshal(refused.Data)
		if err != nil || !strings.Contains(string(data), `"retryable":true`) {
			t.Errorf("data %s, %v; want it retryable", data, err)
		}
		if err := idle.io.Close(w.t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	if _, err := New(Config{}, Deps{}); err == nil || !strings.Contains(err.Error(), "photo_bytes") {
		t.Errorf("%v, want the configuration refused", err)
	}
	if _, err := New(Default(), Deps{}); err == nil || !strings.Contains(err.Error(), "dependency") {
		t.Errorf("%v, want the dependencies refused", err)
	}
}
