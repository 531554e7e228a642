package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/moment"
)

var (
	deviceClaims = map[string]string{"sub": testUser, "device": testDevice}
	pairClaims   = map[string]string{"sub": testUser, "device": testDevice, "pair": testPair}
)

// world runs fn beside a running agent of the fake broker, on fake time.
func world(t *testing.T, b *fakeBroker, claims map[string]string, fn func(t *testing.T, a *Agent)) {
	t.Helper()
	worldOf(t, b, testConfig(t), claims, fn)
}

func worldOf(t *testing.T, b *fakeBroker, cfg Config, claims map[string]string, fn func(t *testing.T, a *Agent)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b.changed = make(chan struct{}) // of this bubble
		a := newTestAgent(t, b, cfg, claims)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		fn(t, a)
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// awaitView waits until the agent's view is as wanted, at most a minute of
// fake time.
func awaitView(t *testing.T, a *Agent, what string, want func(view) bool) view {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		v, changed := a.board.get()
		if want(v) {
			return v
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("waited for %s; the view is %+v", what, v)
		}
	}
}

func ready(v view) bool { return v.ready }

func photoTopic(sender, id string) string {
	return "pairs/" + testPair + "/photos/" + sender + "/" + id
}

// awaitPhotos waits until the store has n photos.
func awaitPhotos(t *testing.T, a *Agent, n int) {
	t.Helper()
	awaitView(t, a, fmt.Sprintf("%d photos", n), func(view) bool { return mustTotals(t, a.store).Photos == n })
}

func TestFirstConnectAsksForEverything(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		v := awaitView(t, a, "ready", ready)
		if v.Pair != testPair || v.name(testPartner) != "Bo" {
			t.Errorf("serves %+v", v.membership)
		}
		b.get(func(b *fakeBroker) {
			if diff := cmp.Diff([]string{"clean"}, b.connects); diff != "" {
				t.Errorf("connects (-want +got):\n%s", diff)
			}
			want := map[string]string{
				"users/ann/events":      "",
				"pairs/p1/info":         "",
				"pairs/p1/photos/bo/+":  "all",
				"pairs/p1/notes/bo/+":   "all",
				"pairs/p1/deletes/bo/+": "all",
			}
			if diff := cmp.Diff(want, b.subs); diff != "" {
				t.Errorf("subscriptions (-want +got):\n%s", diff)
			}
		})
	})
}

func TestSecondRunResumesTheSession(t *testing.T) {
	b := newFakeBroker()
	cfg := testConfig(t)
	for range 2 {
		worldOf(t, b, cfg, deviceClaims, func(t *testing.T, a *Agent) {
			awaitView(t, a, "ready", ready)
			b.cut()
			synctest.Wait()
			awaitView(t, a, "ready again", ready)
		})
	}
	want := []string{"clean", "resume", "resume", "resume"}
	if diff := cmp.Diff(want, b.connects); diff != "" {
		t.Errorf("connects (-want +got):\n%s", diff)
	}
}

func TestForgottenSessionIsSetUpAgain(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		b.set(func(b *fakeBroker) { b.session = false })
		b.cut()
		synctest.Wait()
		awaitView(t, a, "ready", ready)
		b.get(func(b *fakeBroker) {
			if b.subs["pairs/p1/photos/bo/+"] != "all" {
				t.Errorf("subscriptions = %v", b.subs)
			}
		})
	})
}

func TestCrashWhileAForgottenSessionIsSetUp(t *testing.T) {
	b := newFakeBroker()
	cfg := testConfig(t)
	worldOf(t, b, cfg, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		b.set(func(b *fakeBroker) { b.session, b.deaf = false, true })
		b.cut()
		time.Sleep(time.Second) // and the power goes, before the subscriptions are in place
	})
	b.deaf = false
	worldOf(t, b, cfg, deviceClaims, func(t *testing.T, a *Agent) { awaitView(t, a, "ready", ready) })
	if got := b.connects[len(b.connects)-1]; got != "clean" {
		t.Errorf("connected %q, want a new session: the old one would never be given what the ledger holds", got)
	}
}

func TestHalfSetUpSessionStartsClean(t *testing.T) {
	b := newFakeBroker()
	b.session = true // of an agent that died, or lost its store, before it had subscribed
	cfg := testConfig(t)
	worldOf(t, b, cfg, deviceClaims, func(t *testing.T, a *Agent) { awaitView(t, a, "ready", ready) })
	// Another way to show photos needs other subscriptions.
	cfg.Show = ShowBoth
	worldOf(t, b, cfg, deviceClaims, func(t *testing.T, a *Agent) { awaitView(t, a, "ready", ready) })
	if diff := cmp.Diff([]string{"clean", "clean"}, b.connects); diff != "" {
		t.Errorf("connects (-want +got):\n%s", diff)
	}
	if b.subs["pairs/p1/photos/ann/+"] != "all" {
		t.Errorf("show both: subscriptions = %v", b.subs)
	}
}

func TestUnpairedThenPairedThenPairedAnew(t *testing.T) {
	b := newFakeBroker()
	b.pair = ""
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		v := awaitView(t, a, "ready", ready)
		if _, paired := v.partner(); paired || v.Pair != "" {
			t.Errorf("unpaired: serves %+v", v.membership)
		}
		for _, pair := range []string{"p1", "p2"} {
			b.set(func(b *fakeBroker) { b.pair = pair })
			b.deliver("users/ann/events", []byte(`{}`))
			awaitView(t, a, pair, func(v view) bool { return v.ready && v.Pair == pair })
			b.get(func(b *fakeBroker) {
				if got := b.connects[len(b.connects)-1]; got != "clean" || b.subs["pairs/"+pair+"/photos/bo/+"] != "all" {
					t.Errorf("%s: connected %q with %v, want a new session with everything", pair, got, b.subs)
				}
			})
		}
		b.set(func(b *fakeBroker) { b.pair = "" })
		b.deliver("users/ann/events", []byte(`{}`))
		awaitView(t, a, "unpaired", func(v view) bool { return v.ready && v.Pair == "" })
	})
}

func TestATokenOfAnotherDeviceStartsANewSession(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		b.set(func(b *fakeBroker) { b.claims = map[string]string{"sub": testUser, "device": "hall"} })
		b.cut()
		awaitView(t, a, "the other device", func(v view) bool { return v.ready && v.Device == "hall" })
		b.get(func(b *fakeBroker) {
			l := b.links[len(b.links)-1]
			if l.cfg.ClientID != "hall" || b.connects[len(b.connects)-1] != "clean" {
				t.Errorf("client id %q, connects %v", l.cfg.ClientID, b.connects)
			}
		})
	})
}

func TestUnreadableTokenIsTriedAgain(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		b.set(func(b *fakeBroker) { b.tokenErr = errors.New("token file is gone") })
		b.cut()
		time.Sleep(time.Minute)
		if v, _ := a.board.get(); v.ready {
			t.Error("ready without a token")
		}
		b.set(func(b *fakeBroker) { b.tokenErr = nil })
		awaitView(t, a, "ready", ready)
	})
}

func TestPairFromTheTokenWhereTheBrokerTellsNone(t *testing.T) {
	b := newFakeBroker()
	b.tellPair = false
	cfg := testConfig(t)
	worldOf(t, b, cfg, pairClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, testPair, func(v view) bool { return v.ready && v.Pair == testPair })
	})
	// The pair in a token may be over: the broker refuses to talk of it.
	b.pair = ""
	worldOf(t, b, cfg, pairClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "unpaired", func(v view) bool { return v.ready && v.Pair == "" })
	})
}

func TestReceive(t *testing.T) {
	jpeg := testJPEG(t, 3)
	tests := []struct {
		name            string
		show            Show
		topic           string
		payload         []byte
		photos, receipt int
		broken, refused int
	}{
		{name: "partner", topic: photoTopic(testPartner, "m1"), payload: jpeg, photos: 1, receipt: 1},
		{name: "stranger", topic: photoTopic("eve", "m1"), payload: jpeg, refused: 1},
		{name: "other pair", topic: "pairs/p9/photos/bo/m1", payload: jpeg, refused: 1},
		{name: "not a topic", topic: "pairs/p1/nonsense", payload: jpeg, refused: 1},
		{name: "own, unwanted", topic: photoTopic(testUser, "m1"), payload: jpeg},
		{name: "own, wanted", show: ShowBoth, topic: photoTopic(testUser, "m1"), payload: jpeg, photos: 1},
		{name: "noise", topic: photoTopic(testPartner, "m1"), payload: []byte("no photo"), broken: 1},
		{name: "empty", topic: photoTopic(testPartner, "m1"), broken: 1},
		{name: "too large", topic: photoTopic(testPartner, "m1"), payload: append(append([]byte{}, jpeg...), make([]byte, maxPhotoBytes)...), broken: 1},
		{name: "note", topic: "pairs/p1/notes/bo/n1", payload: []byte("hello"), receipt: 1},
		{name: "note, not text", topic: "pairs/p1/notes/bo/n1", payload: []byte{0xff, 0xfe}, refused: 1},
		{name: "latest", topic: "pairs/p1/latest/bo", payload: jpeg},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestStore(t)
			r := testReceiver(s)
			if tt.show != "" {
				r.show = tt.show
			}
			acks := 0
			for range 2 { // the second copy changes nothing but the count of refusals
				m := incoming{topic: tt.topic, payload: tt.payload, ack: func() error { acks++; return nil }}
				if err := r.takeAll(t.Context(), []incoming{m, m}); err != nil {
					t.Fatal(err)
				}
			}
			sums := mustTotals(t, s)
			v, _ := r.board.get()
			got := []int{acks, sums.Photos, sums.OutReceipts, sums.Broken, v.refused}
			want := []int{4, tt.photos, tt.receipt, tt.broken, 4 * tt.refused}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("acks, photos, receipts, broken, refused (-want +got):\n%s", diff)
			}
		})
	}
}

func testReceiver(s *store) *receiver {
	b := newBoard()
	b.set(func(v *view) { v.membership = testMember })
	return &receiver{store: s, board: b, show: ShowPartner, relearn: func() {}, log: quiet()}
}

func TestNothingIsAcknowledgedBeforeItIsStored(t *testing.T) {
	s := newTestStore(t)
	r := testReceiver(s)
	m := func(id string) incoming {
		return incoming{topic: photoTopic(testPartner, id), payload: testJPEG(t, 1), ack: func() error {
			if _, _, err := s.photo(testPartner, id); err != nil {
				t.Errorf("%s acknowledged, but: %v", id, err)
			}
			return nil
		}}
	}
	if err := r.takeAll(t.Context(), []incoming{m("m1"), m("m2"), m("m3")}); err != nil {
		t.Fatal(err)
	}
	// A failed store acknowledges nothing and ends the agent.
	s.close()
	err := r.takeAll(t.Context(), []incoming{{topic: photoTopic(testPartner, "m4"), payload: testJPEG(t, 1), ack: func() error {
		t.Error("acknowledged without a store")
		return nil
	}}})
	if !storeFailed(err) {
		t.Errorf("err = %v, want the store's failure", err)
	}
}

func TestPropertiesOfAPhoto(t *testing.T) {
	s := newTestStore(t)
	r := testReceiver(s)
	m := incoming{
		topic: photoTopic(testPartner, "m1"), payload: testJPEG(t, 1), ack: func() error { return nil },
		props: []moment.Property{
			{Key: moment.PropCaption, Value: "by the\nsea\x07" + strings.Repeat("\x01", 1000)},
			{Key: moment.PropTakenAt, Value: "2026-05-03T12:00:00+02:00"},
			{Key: moment.PropStoredAt, Value: "2026-05-03T12:00:01Z"},
		},
	}
	if err := r.takeAll(t.Context(), []incoming{m}); err != nil {
		t.Fatal(err)
	}
	list, err := listPhotos(s)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	raw, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	body := testJPEG(t, 1)
	want := map[string]any{
		"sender": "bo", "moment": "m1", "bytes": float64(len(body)), "sha256": hashHex(body), "caption": "by the\nsea",
		"takenAt": "2026-05-03T12:00:00+02:00", "receivedAt": list[0].ReceivedAt.Format(time.RFC3339Nano), "shown": false,
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("list --json (-want +got):\n%s", diff)
	}
}

func TestDeviceState(t *testing.T) {
	b := newFakeBroker()
	world(t, b, deviceClaims, func(t *testing.T, a *Agent) {
		awaitView(t, a, "ready", ready)
		for i := range 5 {
			b.deliver(photoTopic(testPartner, fmt.Sprintf("m%d", i)), testJPEG(t, i))
		}
		b.deliver(photoTopic(testPartner, "bad"), []byte("noise"))
		awaitPhotos(t, a, 5)
		time.Sleep(2 * stateEvery)
		var states []string
		b.get(func(b *fakeBroker) {
			for _, p := range b.published {
				if p.Topic == "pairs/p1/devices/frame/state" {
					if !p.Retain {
						t.Error("state is not retained")
					}
					states = append(states, string(p.Payload))
				}
			}
		})
		if len(states) != 2 {
			t.Fatalf("%d states, want one on connect and one after the changes: %q", len(states), states)
		}
		var got deviceState
		if err := json.Unmarshal([]byte(states[1]), &got); err != nil {
			t.Fatal(err)
		}
		want := deviceState{Version: "test", Photos: 5, Bytes: mustTotals(t, a.store).Bytes, Awake: true, Broken: 1, LastError: got.LastError}
		if diff := cmp.Diff(want, got); diff != "" || !strings.Contains(got.LastError, "bad") {
			t.Errorf("state (-want +got):\n%s\nlast error %q", diff, got.LastError)
		}
	})
}

func TestLongOfflineWakesNobody(t *testing.T) {
	s := &session{a: &Agent{board: newBoard(), log: quiet()}}
	s.a.board.set(func(v *view) { v.connected, v.ready = true, true })
	s.down(errors.New("no route"))
	v, changed := s.a.board.get()
	if v.connected || v.ready || v.offline != "no route" {
		t.Errorf("view = %+v, want offline with the reason", v)
	}
	s.down(errors.New("no route"))
	select {
	case <-changed:
		t.Error("the same failure again woke everybody")
	default:
	}
	s.down(errors.New("token expired"))
	if v, _ := s.a.board.get(); v.offline != "token expired" {
		t.Errorf("offline = %q, want the newest reason", v.offline)
	}
}
