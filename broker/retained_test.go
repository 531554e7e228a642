package broker

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// last returns the newest message on topic, or nil.
func (p *peer) last(topic string) *mqttlink.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.got) - 1; i >= 0; i-- {
		if p.got[i].Topic == topic {
			return p.got[i]
		}
	}
	return nil
}

// asApp connects as the bridge does for a user's phone.
func (w *world) asApp(user string, change func(*mqttlink.Config)) *peer {
	return w.connect(user, func(c *mqttlink.Config) {
		c.ClientID, c.Username = "app", user
		c.Token = func(context.Context) (string, error) {
			return w.token(token.Principal{User: "bridge", Role: token.RoleBridge}), nil
		}
		if change != nil {
			change(c)
		}
	})
}

func presenceOf(t *testing.T, m *mqttlink.Message) (p moment.Presence) {
	t.Helper()
	if m == nil {
		t.Fatal("no presence")
	}
	if err := json.Unmarshal(m.Payload, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPresence(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		topic := moment.PresenceTopic(w.pair.ID, "ben")
		ann := w.connect("ann", func(c *mqttlink.Config) { c.Subscriptions = []mqttlink.Subscription{{Filter: topic}} })
		defer ann.end()
		settle(time.Second)
		if p := presenceOf(t, ann.last(topic)); p.Online || !ann.last(topic).Retained {
			t.Fatalf("at first %+v retained %v, want offline and retained", p, ann.last(topic).Retained)
		}
		widget := w.connect("ben", func(c *mqttlink.Config) { c.ClientID = "widget" })
		settle(time.Second)
		if p := presenceOf(t, ann.last(topic)); p.Online || len(p.Clients) != 1 {
			t.Errorf("with a widget %+v, want offline and one client", p)
		}
		app := w.asApp("ben", nil)
		settle(time.Second)
		if p := presenceOf(t, ann.last(topic)); !p.Online || strings.Join(p.Clients, " ") != "app widget" {
			t.Errorf("with the app %+v, want online with app and widget", p)
		}
		app.end()
		settle(time.Second)
		if p := presenceOf(t, ann.last(topic)); p.Online {
			t.Errorf("after the app %+v, want offline", p)
		}
		widget.end()
	})
}

func TestAppSessionOfAPairLosesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		want := ann.sendN(t, 0, 5) // ben has never connected
		w.restart()
		ann.end()
		ben := w.asApp("ben", nil) // and subscribes nothing himself
		settle(time.Second)
		got := ben.topics()
		events := slices.DeleteFunc(slices.Clone(got), func(topic string) bool { return topic != "users/ben/events" })
		photos := slices.DeleteFunc(got, func(topic string) bool { return topic == "users/ben/events" })
		if !slices.Equal(photos, want) || len(events) != 2 {
			t.Fatalf("got %v and %d events, want %v and two pairing events", photos, len(events), want)
		}
		ben.end()
	})
}

func TestLatestAndNewest(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		ann.sendN(t, 0, 3)
		latest, newest := moment.LatestTopic(w.pair.ID, "ann"), moment.NewestTopic(w.pair.ID)
		ben := w.connect("ben", func(c *mqttlink.Config) {
			c.Subscriptions = []mqttlink.Subscription{{Filter: "pairs/" + w.pair.ID + "/latest/+", QoS: 1}, {Filter: newest}}
		})
		defer ben.end()
		settle(time.Second)
		m := ben.last(latest)
		if m == nil || string(m.Payload) != "photo p002" || !m.Retained || m.QoS != 0 {
			t.Fatalf("latest on subscribe: %+v", m)
		}
		if !strings.Contains(string(ben.last(newest).Payload), `"moment":"p002"`) {
			t.Fatalf("newest on subscribe: %s", ben.last(newest).Payload)
		}
		ann.sendN(t, 3, 4)
		settle(time.Second)
		if m := ben.last(latest); string(m.Payload) != "photo p003" || m.Retained {
			t.Errorf("latest when it changes: %q retained %v", m.Payload, m.Retained)
		}
		if len(ben.topics()) != 4 {
			t.Errorf("got %v, want newest and latest twice each", ben.topics())
		}
	})
}

func TestDeleteTakesBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		ann.sendN(t, 0, 2)
		if err := ann.send(moment.Delete, "p000", ""); err != nil {
			t.Fatal(err)
		}
		ben := w.connect("ben", func(c *mqttlink.Config) {
			c.Subscriptions = []mqttlink.Subscription{{Filter: "pairs/" + w.pair.ID + "/#", QoS: 1, Backfill: "all"}}
		})
		defer ben.end()
		settle(time.Second)
		if ben.last("pairs/"+w.pair.ID+"/photos/ann/p000") != nil || ben.last("pairs/"+w.pair.ID+"/photos/ann/p001") == nil {
			t.Errorf("got %v, want p001 and not p000", ben.topics())
		}
	})
}

func TestTrimWaitsForEverybody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stop()
		w.cfg.KeepLast = 2
		w.start()
		frame := w.connect("ben", func(c *mqttlink.Config) { c.ClientID = "frame"; c.Subscriptions = w.photosOf("ann") })
		frame.end()
		app := w.asApp("ben", nil)
		ann := w.connect("ann", nil)
		defer ann.end()
		ann.sendN(t, 0, 10)
		for range 20 { // in whatever order it looks at the sessions
			w.broker.markDirty(ledger.PairLog(w.pair.ID))
			settle(trimEvery)
		}
		count := func() int {
			got, err := w.ledger.Read(t.Context(), ledger.PairLog(w.pair.ID), 0, ledger.Limit{Entries: 100, HeadersOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			return len(got.Entries)
		}
		if n := count(); n != 10 {
			t.Fatalf("%d of 10 are left while the frame is away", n)
		}
		info, err := w.broker.Sessions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		backlog := map[string]int{}
		for _, s := range info {
			backlog[s.ID] = s.Backlog
		}
		if backlog["ben/frame"] != 10 || backlog["ben/app"] != 0 {
			t.Errorf("backlogs %v, want 10 for the frame and 0 for the app", backlog)
		}
		frame = w.connect("ben", func(c *mqttlink.Config) { c.ClientID = "frame"; c.Subscriptions = w.photosOf("ann") })
		settle(time.Minute)
		if n := len(frame.topics()); n != 10 {
			t.Fatalf("the frame got %d of 10", n)
		}
		// ann's own app never connected: its filters match none of her photos.
		if n := count(); n != 2 {
			t.Errorf("%d are left after everybody had them, want the last 2", n)
		}
		frame.end()
		app.end()
	})
}

func TestSessionExpiresAndReleases(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		frame := w.connect("ben", func(c *mqttlink.Config) {
			c.ClientID, c.SessionExpiry, c.Subscriptions = "frame", time.Hour, w.photosOf("ann")
		})
		frame.end()
		w.restart()
		settle(50 * time.Minute)
		if got := w.sessionIDs(); !strings.Contains(got, "ben/frame") {
			t.Fatalf("sessions %s, want the frame's before its expiry", got)
		}
		settle(20 * time.Minute)
		if got := w.sessionIDs(); strings.Contains(got, "ben/frame") {
			t.Errorf("sessions %s after the frame's expiry", got)
		}
		if _, err := w.ledger.Cursor(t.Context(), "ben/frame", ledger.PairLog(w.pair.ID)); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("its cursor: %v, want none", err)
		}
	})
}

func (w *world) sessionIDs() string {
	w.t.Helper()
	all, err := w.broker.Sessions(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var ids []string
	for _, s := range all {
		ids = append(ids, s.ID)
	}
	return strings.Join(ids, " ")
}

func TestTakeover(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		first := w.connect("ben", func(c *mqttlink.Config) {
			c.Subscriptions, c.MinBackoff, c.MaxBackoff = w.photosOf("ann"), time.Hour, time.Hour
		})
		defer first.end()
		second := w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") })
		defer second.end()
		first.mu.Lock()
		var re *mqttlink.ReasonError
		if len(first.down) != 1 || !errors.As(first.down[0], &re) || re.Code != 0x8E {
			t.Errorf("the first ended with %v, want 0x8E Session taken over", first.down)
		}
		first.mu.Unlock()
		ann := w.connect("ann", nil)
		defer ann.end()
		ann.sendN(t, 0, 2)
		settle(time.Second)
		if a, b := len(first.topics()), len(second.topics()); a != 0 || b != 2 {
			t.Errorf("the first got %d, the second %d; want 0 and 2", a, b)
		}
	})
}

func TestRevokedDeviceIsDisconnected(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		d, err := w.reg.AddDevice(t.Context(), "ben", "kitchen")
		if err != nil {
			t.Fatal(err)
		}
		frame := w.connect("ben", func(c *mqttlink.Config) {
			c.Subscriptions = w.photosOf("ann")
			raw := w.token(token.Principal{User: "ben", Device: d.ID, Role: token.RoleDevice})
			c.Token = func(context.Context) (string, error) { return raw, nil }
		})
		defer frame.end()
		if got := w.sessionIDs(); !strings.Contains(got, "ben/"+d.ID) {
			t.Fatalf("sessions %s, want one named by the device", got)
		}
		if _, err := w.reg.RevokeDevice(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		frame.mu.Lock()
		var re *mqttlink.ReasonError
		if len(frame.down) == 0 || !errors.As(frame.down[0], &re) || re.Code != 0x98 {
			t.Errorf("ended with %v, want 0x98 Administrative action", frame.down)
		}
		frame.mu.Unlock()
		if got := w.sessionIDs(); strings.Contains(got, d.ID) {
			t.Errorf("sessions %s, want none of the revoked device", got)
		}
	})
}
