package broker

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// refusedWith connects with cfg changed and returns the reason code of the
// refusal, or 0 when it was let in.
func (w *world) refusedWith(user string, change func(*mqttlink.Config)) *mqttlink.ReasonError {
	w.t.Helper()
	p := w.connect(user, func(c *mqttlink.Config) {
		c.MinBackoff, c.MaxBackoff = time.Hour, time.Hour
		change(c)
	})
	defer p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.down) == 0 {
		return &mqttlink.ReasonError{}
	}
	var re *mqttlink.ReasonError
	if !errors.As(p.down[0], &re) {
		w.t.Fatalf("down with %v, want a reason code", p.down[0])
	}
	return re
}

func withToken(raw string) func(*mqttlink.Config) {
	return func(c *mqttlink.Config) { c.Token = func(context.Context) (string, error) { return raw, nil } }
}

func TestConnectRefusals(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		good := w.token(token.Principal{User: "ann", Role: token.RoleApp})
		expired, _, err := w.signer.Sign(token.Principal{User: "ann", Role: token.RoleApp}, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		device, err := w.reg.AddDevice(t.Context(), "ben", "kitchen")
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			name   string
			change func(*mqttlink.Config)
			code   byte
			reason string
		}{
			{"no token", func(c *mqttlink.Config) { c.Token = nil }, 0x86, "token"},
			{"garbage", withToken("aaaa.bbbb.cccc"), 0x86, "token"},
			{"expired", withToken(expired), 0x86, "expired"},
			{"other username", func(c *mqttlink.Config) { c.Username = "ben" }, 0x86, "username"},
			{"the bridge's client id", func(c *mqttlink.Config) { c.ClientID = "app" }, 0x85, "bridge"},
			{"the bridge's client ids", func(c *mqttlink.Config) { c.ClientID = "app-x" }, 0x85, "bridge"},
			{"a device's client id", func(c *mqttlink.Config) { c.ClientID = device.ID }, 0x85, "device"},
			{"right", withToken(good), 0, ""},
			{"right with username", func(c *mqttlink.Config) { c.Username = "ann" }, 0, ""},
		} {
			got := w.refusedWith("ann", tc.change)
			if got.Code != tc.code || !strings.Contains(got.Reason, tc.reason) {
				t.Errorf("%s: refused with 0x%02X %q, want 0x%02X naming %q", tc.name, got.Code, got.Reason, tc.code, tc.reason)
			}
		}
	})
}

func TestPublishRights(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		eve := w.connect("eve", nil)
		defer eve.end()
		ann := w.connect("ann", nil)
		defer ann.end()
		device, err := w.reg.AddDevice(t.Context(), "ben", "kitchen")
		if err != nil {
			t.Fatal(err)
		}
		pair := w.pair.ID
		receipt := func(sender string) string {
			return `{"moment":"m1","sender":"` + sender + `","status":"stored","device":"","at":"2026-01-01T00:00:00Z"}`
		}
		big := strings.Repeat("x", w.cfg.PhotoBytes+1)
		for _, tc := range []struct {
			name    string
			from    *peer
			topic   string
			payload string
			code    byte
			reason  string
		}{
			{"own photo", ann, "pairs/" + pair + "/photos/ann/ok", "x", 0, ""},
			{"photo as the partner", ann, "pairs/" + pair + "/photos/ben/m1", "x", 0x87, "ben"},
			{"no pair", eve, "pairs/" + pair + "/photos/eve/m1", "x", 0x87, "no pair"},
			{"a pair that is not there", ann, "pairs/other/photos/ann/m1", "x", 0x87, "other"},
			{"bad id", ann, "pairs/" + pair + "/photos/ann/a b", "x", 0x87, "character"},
			{"long id", ann, "pairs/" + pair + "/photos/ann/" + strings.Repeat("a", 129), "x", 0x87, "too long"},
			{"no such topic", ann, "pairs/" + pair + "/videos/ann/m1", "x", 0x87, "not a topic"},
			{"outside", ann, "news", "x", 0x87, "your pair"},
			{"presence", ann, "pairs/" + pair + "/presence/ann", "{}", 0x87, "broker"},
			{"events", ann, "users/ann/events", "{}", 0x87, "broker"},
			{"empty photo", ann, "pairs/" + pair + "/photos/ann/m2", "", 0x83, "empty"},
			{"too large", ann, "pairs/" + pair + "/photos/ann/m3", big, 0x83, "too large"},
			{"note", ann, "pairs/" + pair + "/notes/ann/n1", "grüß dich", 0, ""},
			{"note of bytes", ann, "pairs/" + pair + "/notes/ann/n2", "\xff\xfe", 0x99, "UTF-8"},
			{"delete with payload", ann, "pairs/" + pair + "/deletes/ann/m1", "x", 0x83, "too large"},
			{"receipt for the partner's", ann, "pairs/" + pair + "/receipts/ann/r1", receipt("ben"), 0, ""},
			{"receipt for one's own", ann, "pairs/" + pair + "/receipts/ann/r2", receipt("ann"), 0x87, "partner"},
			{"receipt of nonsense", ann, "pairs/" + pair + "/receipts/ann/r3", "{", 0x83, "receipt"},
			{"reaction of nonsense", ann, "pairs/" + pair + "/reactions/ann/r3", `{"moment":""}`, 0x83, "sender"},
			{"state of a device", ann, "pairs/" + pair + "/devices/" + device.ID + "/state", "{}", 0x87, "alone"},
			{"command to the pair's device", ann, "pairs/" + pair + "/devices/" + device.ID + "/cmd", `{"cmd":"next"}`, 0, ""},
			{"command to another device", ann, "pairs/" + pair + "/devices/toaster/cmd", `{"cmd":"next"}`, 0x87, "toaster"},
			{"live", ann, "pairs/" + pair + "/live/ann/heartbeat", "{}", 0, ""},
			{"live of 5 KiB", ann, "pairs/" + pair + "/live/ann/heartbeat", strings.Repeat("x", 5<<10), 0x83, "too large"},
		} {
			err := tc.from.Publish(t.Context(), mqttlink.Publish{Topic: tc.topic, Payload: []byte(tc.payload), QoS: 1})
			var re *mqttlink.ReasonError
			switch {
			case tc.code == 0 && err != nil:
				t.Errorf("%s: refused: %v", tc.name, err)
			case tc.code != 0 && !errors.As(err, &re):
				t.Errorf("%s: got %v, want reason code 0x%02X", tc.name, err, tc.code)
			case tc.code != 0 && (re.Code != tc.code || !strings.Contains(re.Reason, tc.reason)):
				t.Errorf("%s: refused with 0x%02X %q, want 0x%02X naming %q", tc.name, re.Code, re.Reason, tc.code, tc.reason)
			}
		}
		// Nothing that was refused is in the log.
		got, err := w.ledger.Read(t.Context(), ledger.PairLog(pair), 0, ledger.Limit{})
		if err != nil {
			t.Fatal(err)
		}
		var stored []string
		for _, e := range got.Entries {
			stored = append(stored, e.Key().String())
		}
		if want := "photos/ann/ok notes/ann/n1 receipts/ann/r1"; strings.Join(stored, " ") != want {
			t.Errorf("stored %v, want %s", stored, want)
		}
	})
}

func TestSubscribeRights(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		eve := w.connect("eve", nil)
		defer eve.end()
		ann := w.connect("ann", nil)
		defer ann.end()
		pair := w.pair.ID
		for _, tc := range []struct {
			from   *peer
			filter string
			ok     bool
		}{
			{ann, "pairs/" + pair + "/#", true},
			{ann, "pairs/" + pair + "/photos/+/+", true},
			{ann, "users/ann/#", true},
			{ann, "users/ann/events", true},
			{ann, "users/ben/events", false},
			{ann, "users/+/events", false},
			{ann, "pairs/+/photos/+/+", false},
			{ann, "pairs/#", false},
			{ann, "#", false},
			{ann, "+/" + pair + "/photos/ann/+", false},
			{ann, "$SYS/#", false},
			{ann, "$share/g/pairs/" + pair + "/#", false},
			{ann, "pairs/" + pair, false},
			{eve, "pairs/" + pair + "/#", false},
			{eve, "pairs/" + pair + "/info", false},
			{eve, "users/eve/#", true},
			{eve, "users/ann/events", false},
		} {
			err := tc.from.Subscribe(t.Context(), mqttlink.Subscription{Filter: tc.filter, QoS: 1})
			var re *mqttlink.ReasonError
			if tc.ok && err != nil || !tc.ok && (!errors.As(err, &re) || re.Code != 0x87) {
				t.Errorf("%s subscribes %s: %v, want allowed %v (else 0x87)", tc.from.user, tc.filter, err, tc.ok)
			}
		}
	})
}

// TestSameClientID: a client id is its user's own, so guessing one takes
// nothing from anybody.
func TestSameClientID(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		named := func(c *mqttlink.Config) { c.ClientID = "phone" }
		ben := w.connect("ben", func(c *mqttlink.Config) { named(c); c.Subscriptions = w.photosOf("ann") })
		defer ben.end()
		eve := w.connect("eve", named)
		defer eve.end()
		ann := w.connect("ann", named)
		defer ann.end()
		want := ann.sendN(t, 0, 2)
		settle(time.Second)
		if got := ben.topics(); len(got) != len(want) {
			t.Errorf("ben got %v, want %v", got, want)
		}
		if got := eve.topics(); len(got) != 0 {
			t.Errorf("eve got %v", got)
		}
	})
}

// TestPairRemoved: rights, deliveries and what is stored end with the pair.
func TestPairRemoved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ben := w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") })
		ann := w.connect("ann", nil)
		ann.sendN(t, 0, 1)
		settle(time.Second)
		if _, err := w.reg.RemovePair(t.Context(), w.pair.ID); err != nil {
			t.Fatal(err)
		}
		var re *mqttlink.ReasonError
		if err := ann.send(moment.Photo, "late", "x"); !errors.As(err, &re) || re.Code != 0x87 {
			t.Errorf("publish after the end: %v, want 0x87", err)
		}
		settle(time.Second)
		if got := ben.topics(); len(got) != 1 {
			t.Errorf("ben got %v, want the one from before", got)
		}
		if _, _, err := ledger.Append(t.Context(), w.ledger, ledger.PairLog(w.pair.ID), moment.Moment{
			Pair: w.pair.ID, User: "ann", Kind: moment.Photo, ID: "x", Payload: []byte("x"),
		}); !errors.Is(err, ledger.ErrDeleted) {
			t.Errorf("append to the removed pair's log: %v, want ErrDeleted", err)
		}
		w.crash(ann.end, ben.end)
		if left := w.broker.sessions["ben/ben-phone"].filters(); len(left) > 0 {
			t.Errorf("filters of the removed pair are left: %v", left)
		}
		again, err := w.reg.CreatePair(t.Context(), "ben", "ann")
		if err != nil || again.ID == w.pair.ID {
			t.Fatalf("pairing again: %v, %v", again, err)
		}
	})
}

// TestOldPublisherIsNotLiedTo: MQTT 3.1.1 knows no reason codes, so a refused
// publish is not acknowledged and the connection ends after a while.
func TestOldPublisherIsNotLiedTo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.raw()
		c.Write(w.connectBytes(t, "ann", "x", func(pk *packets.Packet) {
			pk.ProtocolVersion = 4
			pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte("ann")
		}))
		c.Write(encode(t, packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 4,
			PacketID: 1, TopicName: "pairs/" + w.pair.ID + "/photos/ben/x", Payload: []byte("x"),
		}))
		start := time.Now()
		got := ended(t, c, time.Minute)
		if want := []byte{0x20, 2, 0, 0}; !bytes.Equal(got, want) || time.Since(start) != refusalWait {
			t.Errorf("got % x in %v, want CONNACK alone (% x) in %v", got, time.Since(start), want, refusalWait)
		}
	})
}

// TestConnectionEndsWithItsToken, and the session stays.
func TestConnectionEndsWithItsToken(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		raw, _, err := w.signer.Sign(token.Principal{User: "ben", Role: token.RoleApp}, 90*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		ben := w.connect("ben", func(c *mqttlink.Config) {
			withToken(raw)(c)
			c.MinBackoff, c.MaxBackoff = time.Hour, time.Hour
		})
		defer ben.end()
		settle(2 * time.Minute)
		ben.mu.Lock()
		var re *mqttlink.ReasonError
		if len(ben.down) == 0 || !errors.As(ben.down[0], &re) || re.Code != 0xA0 {
			t.Errorf("ended with %v, want 0xA0 Maximum connect time", ben.down)
		}
		ben.mu.Unlock()
		if got := w.sessionIDs(); !strings.Contains(got, "ben/ben-phone") {
			t.Errorf("sessions %s, want ben's", got)
		}
	})
}
