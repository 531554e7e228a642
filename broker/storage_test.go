package broker

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// restartWith starts the world again, changed.
func (w *world) restartWith(change func()) {
	w.t.Helper()
	w.stop()
	change()
	w.start()
}

// refused checks that err is a PUBACK with code and a reason that says why.
func refused(t *testing.T, what string, err error, code byte, why string) {
	t.Helper()
	var re *mqttlink.ReasonError
	if !errors.As(err, &re) || re.Code != code || !strings.Contains(re.Reason, why) {
		t.Errorf("%s: %v, want 0x%02X with %q", what, err, code, why)
	}
}

// TestQuota fills a pair's log, by number and by bytes. What is new is
// refused, what is old stays, and taking back or delivering makes room.
func TestQuota(t *testing.T) {
	for name, quota := range map[string]badgerledger.Config{
		"moments": {MaxEntries: 5},
		"bytes":   {MaxBytes: 5 * int64(len("photo p000"))},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.restartWith(func() { w.quotas, w.cfg.KeepLast = quota, 1 })
				testQuota(t, w)
			})
		})
	}
}

func testQuota(t *testing.T, w *world) {
	const why = "quota"
	ann, ben := w.connect("ann", nil), w.connect("ben", func(c *mqttlink.Config) { c.ClientID = "tool" })
	defer ann.end()
	defer ben.end()
	ann.sendN(t, 0, 5)
	refused(t, "a photo too many", ann.send(moment.Photo, "p005", "photo p005"), 0x97, why)
	refused(t, "the partner's photo", ben.send(moment.Photo, "b", "photo b"), 0x97, why)
	refused(t, "a note", ben.send(moment.Note, "b", "note b"), 0x97, why)
	refused(t, "a reaction", ben.send(moment.Reaction, "b", `{"moment":"p000","sender":"ann","reaction":"❤"}`), 0x97, why)
	ann.sendN(t, 0, 5) // repeats are known
	if err := ben.send(moment.Receipt, "r", `{"moment":"p000","sender":"ann","status":"stored","device":"d","at":"2026-01-02T03:04:05Z"}`); err != nil {
		t.Errorf("a receipt in a full log: %v", err)
	}
	checkOthers(t, w)

	if err := ann.send(moment.Delete, "p004", ""); err != nil {
		t.Fatalf("a delete in a full log: %v", err)
	}
	ann.sendN(t, 5, 6)
	refused(t, "a photo too many again", ann.send(moment.Photo, "p006", "photo p006"), 0x97, why)

	// ben's phone fetches what there is; the next trim makes room.
	app := w.asApp("ben", nil)
	defer app.end()
	settle(2 * trimEvery)
	var got []string
	for _, topic := range app.topics() {
		if strings.Contains(topic, "/photos/") {
			got = append(got, topic[len(topic)-4:])
		}
	}
	if diff := cmp.Diff([]string{"p000", "p001", "p002", "p003", "p005"}, got); diff != "" {
		t.Errorf("ben's phone got (-want +got):\n%s", diff)
	}
	ann.sendN(t, 6, 10)
}

// checkOthers sends in another pair.
func checkOthers(t *testing.T, w *world) {
	t.Helper()
	pair, err := w.reg.CreatePair(t.Context(), "cat", "dan")
	if err != nil {
		t.Fatal(err)
	}
	settle(time.Second)
	cat := w.connect("cat", nil)
	defer cat.end()
	m := moment.Moment{Pair: pair.ID, User: "cat", Kind: moment.Photo, ID: "c"}
	if err := cat.Publish(t.Context(), mqttlink.Publish{Topic: m.Topic(), Payload: []byte("photo c"), QoS: 1}); err != nil {
		t.Errorf("a photo in another pair: %v", err)
	}
}

// TestSessionThatNeverReturns holds back what it was to get until it expires;
// then its record and place are gone and all is trimmed.
func TestSessionThatNeverReturns(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.restartWith(func() { w.cfg.KeepLast = 1 })
		frame := w.connect("ben", func(c *mqttlink.Config) {
			c.ClientID, c.SessionExpiry, c.Subscriptions = "frame", time.Hour, w.photosOf("ann")
		})
		frame.end()
		app, ann := w.asApp("ben", nil), w.connect("ann", nil)
		defer app.end()
		defer ann.end()
		ann.sendN(t, 0, 20)
		check := func(when string, entries int, there bool) {
			t.Helper()
			if st, err := w.ledger.Stat(t.Context(), ledger.PairLog(w.pair.ID)); err != nil || st.Entries != entries {
				t.Errorf("%s: %d moments are kept (%v), want %d", when, st.Entries, err, entries)
			}
			_, cerr := w.ledger.Cursor(t.Context(), "ben/frame", ledger.PairLog(w.pair.ID))
			_, rerr := w.db.KV().Get(t.Context(), keySession+"ben/frame")
			if there && (cerr != nil || rerr != nil) {
				t.Errorf("%s: cursor %v, record %v, want both", when, cerr, rerr)
			}
			if !there && (!errors.Is(cerr, ledger.ErrNotFound) || !errors.Is(rerr, kv.ErrNotFound)) {
				t.Errorf("%s: cursor %v, record %v, want neither", when, cerr, rerr)
			}
		}
		settle(50 * time.Minute)
		check("before it expires", 20, true)
		settle(10*time.Minute + expireEvery + 2*trimEvery)
		check("after it has expired", 1, false)
	})
}

// TestDeviceRevokedInACrash: a revoked device's session is gone though the
// daemon died between the registry's change and what follows from it.
func TestDeviceRevokedInACrash(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		frame, id := w.asFrame("ben", "kitchen")
		frame.tellState(t, id, "{}")
		frame.end()
		w.broker.unwatch() // died before it heard of it
		if _, err := w.reg.RevokeDevice(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.restart()
		if got := w.sessionIDs(); strings.Contains(got, id) {
			t.Errorf("sessions %s, want none of the revoked device", got)
		}
		if _, err := w.db.KV().Get(t.Context(), stateKey(w.pair.ID, id)); !errors.Is(err, kv.ErrNotFound) {
			t.Errorf("its state: %v, want none", err)
		}
	})
}

// asFrame connects a new device of user, which subscribes the partner's photos.
func (w *world) asFrame(user, name string) (frame *peer, id string) {
	w.t.Helper()
	d, err := w.reg.AddDevice(w.t.Context(), user, name)
	if err != nil {
		w.t.Fatal(err)
	}
	partner, _ := w.pair.Partner(user)
	raw := w.token(token.Principal{User: user, Device: d.ID, Role: token.RoleDevice})
	return w.connect(user, func(c *mqttlink.Config) {
		c.Subscriptions = w.photosOf(partner)
		c.Token = func(context.Context) (string, error) { return raw, nil }
	}), d.ID
}

func (p *peer) tellState(t *testing.T, device, state string) {
	t.Helper()
	err := p.Publish(t.Context(), mqttlink.Publish{Topic: moment.StateTopic(p.w.pair.ID, device), Payload: []byte(state), QoS: 1, Retain: true})
	if err != nil {
		t.Fatal(err)
	}
}

// filesWith returns the files below dir that hold marker.
func filesWith(t *testing.T, dir, marker string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(marker)) {
			names = append(names, e.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestNothingIsLeftOnDisk looks through the bytes of the data directory for
// what was taken back, and what a revoked device and a pair that has ended
// have left, some time later.
func TestNothingIsLeftOnDisk(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		later := func() {
			settle(time.Second)
			w.restart() // over restarts too
			settle(70 * time.Minute)
		}
		ann := w.connect("ann", func(c *mqttlink.Config) { c.MinBackoff, c.MaxBackoff = time.Hour, time.Hour })
		send := func(kind moment.Kind, id, caption, payload string) {
			t.Helper()
			m := moment.Moment{Pair: w.pair.ID, User: "ann", Kind: kind, ID: id}
			err := ann.Publish(t.Context(), mqttlink.Publish{
				Topic: m.Topic(), Payload: []byte(payload), QoS: 1, ContentType: "image/jpeg",
				Properties: []moment.Property{{Key: moment.PropCaption, Value: caption}, {Key: moment.PropMessageID, Value: "message-of-" + id}},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		frame, device := w.asFrame("ben", "kitchen")
		frame.tellState(t, device, `{"photos":"state-of-the-frame"}`)
		send(moment.Photo, "id-taken-back", "caption-taken-back", strings.Repeat("bytes-taken-back ", 20_000))
		send(moment.Photo, "id-of-pair", "caption-of-pair", strings.Repeat("bytes-of-pair ", 20_000))
		send(moment.Note, "id-of-note", "", "text-of-note")
		settle(time.Second)
		kept := []string{"id-of-pair", "caption-of-pair", "bytes-of-pair", "message-of-id-of-pair", "id-of-note", "text-of-note"} // no keys: tables share the beginnings of theirs
		gone := []string{"caption-taken-back", "bytes-taken-back", "state-of-the-frame", keyState + w.pair.ID + "/" + device, keySession + "ben/" + device}
		check := func(when string, there bool, markers []string) {
			t.Helper()
			for _, marker := range markers {
				if names := filesWith(t, w.dir, marker); there == (len(names) == 0) {
					t.Errorf("%s: %q is in %q", when, marker, names)
				}
			}
		}
		check("at first", true, append(kept, gone...))

		if err := ann.send(moment.Delete, "id-taken-back", ""); err != nil {
			t.Fatal(err)
		}
		ann.end()
		frame.end()
		if _, err := w.reg.RevokeDevice(t.Context(), device); err != nil {
			t.Fatal(err)
		}
		later()
		check("after it was taken back and revoked", false, gone)
		check("after others were", true, kept)

		if _, err := w.reg.RemovePair(t.Context(), w.pair.ID); err != nil {
			t.Fatal(err)
		}
		later()
		check("after the pair has ended", false, append(kept, gone...))
		check("after the pair has ended", false, []string{"pairs/" + w.pair.ID, "message-of-id-taken-back"})
	})
}

// TestDamagedOnDisk flips a byte of one of three photos in the store's files.
// The others arrive, and the damage is counted once.
func TestDamagedOnDisk(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		frame := w.connect("ben", func(c *mqttlink.Config) { c.ClientID, c.Subscriptions = "frame", w.photosOf("ann") })
		frame.end()
		ann := w.connect("ann", nil)
		for _, id := range []string{"p000", "p001", "p002"} {
			if err := ann.send(moment.Photo, id, strings.Repeat("bytes of "+id+" ", 1000)); err != nil {
				t.Fatal(err)
			}
		}
		ann.end()
		settle(time.Second)
		w.stop()
		flip(t, w.dir, "bytes of p001")
		w.start()

		frame = w.connect("ben", func(c *mqttlink.Config) { c.ClientID, c.Subscriptions = "frame", w.photosOf("ann") })
		settle(time.Minute)
		for _, id := range []string{"p000", "p002"} {
			m := frame.last("pairs/" + w.pair.ID + "/photos/ann/" + id)
			if m == nil || string(m.Payload) != strings.Repeat("bytes of "+id+" ", 1000) {
				t.Errorf("photo %s beside a damaged one did not arrive as it was sent", id)
			}
		}
		if n := len(frame.topics()); n != 2 {
			t.Errorf("%d photos arrived, want the 2 that are good", n)
		}
		frame.end()
		again := w.connect("ben", func(c *mqttlink.Config) { c.ClientID = "frame" })
		settle(time.Minute)
		again.end()
		if got := w.store.Damaged(); got != 1 {
			t.Errorf("%d damaged records counted, want 1", got)
		}
	})
}

// flip changes one byte behind each marker in the store's files.
func flip(t *testing.T, dir, marker string) {
	t.Helper()
	names := filesWith(t, dir, marker)
	if len(names) == 0 {
		t.Fatalf("no file holds %q", marker)
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[bytes.Index(b, []byte(marker))+100] ^= 0x10
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
