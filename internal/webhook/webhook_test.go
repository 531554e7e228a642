package webhook

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/moment"
)

func TestQueued(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		began := time.Now()
		w.photo("ann")
		settle(10 * time.Second)
		w.photo("ann")
		w.append("ann", moment.Note, "secret-note")
		w.photo("ben") // ann is away too: an event of her own
		settle(19 * time.Second)
		w.backend.expect()
		settle(time.Minute)
		got := w.backend.expect(MomentQueued, MomentQueued)
		want := []map[string]any{
			{"pair": w.pair.ID, "recipient": "ben", "sender": "ann", "count": 3.0, "photos": 2.0, "notes": 1.0, "reactions": 0.0},
			{"pair": w.pair.ID, "recipient": "ann", "sender": "ben", "count": 1.0, "photos": 1.0, "notes": 0.0, "reactions": 0.0},
		}
		if diff := cmp.Diff(want, []map[string]any{got[0].Data, got[1].Data}); diff != "" {
			t.Errorf("data (-want +got):\n%s", diff)
		}
		if after := got[0].at.Sub(began).Round(time.Second); after != 30*time.Second {
			t.Errorf("told after %v, want 30s", after)
		}
		// What was told is not told again; what is new is.
		settle(time.Hour)
		w.backend.expect()
		w.photo("ann")
		settle(time.Minute)
		if got := w.backend.expect(MomentQueued); got[0].Data["count"] != 1.0 {
			t.Errorf("the second event: %v, want the one new photo", got[0].Data)
		}
	})
}

func TestNotQueued(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		// Fetched in time.
		w.photo("ann")
		settle(20 * time.Second)
		leave := w.app("ben", true)
		settle(time.Minute)
		// There all the time.
		w.photo("ann")
		settle(time.Minute)
		w.append("ben", moment.Receipt, `{"moment":"x","sender":"ann","status":"shown"}`)
		settle(time.Minute)
		leave()
		settle(time.Hour)
		w.backend.expect()
	})
}

// TestQueuedWhenItLeaves: an app that is there and takes nothing counts as
// away from when it leaves.
func TestQueuedWhenItLeaves(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		leave := w.app("ben", false)
		w.photo("ann")
		settle(10*time.Minute + 15*time.Second) // between two looks
		w.backend.expect()
		left := time.Now()
		leave()
		settle(2 * time.Minute)
		got := w.backend.expect(MomentQueued)
		if after := got[0].at.Sub(left).Round(time.Second); after != 30*time.Second {
			t.Errorf("told %v after it left, want 30s", after)
		}
	})
}

// TestQueuedBesideAWidget: what else of the recipient's is there, and has the
// photo, does not ring in their pocket.
func TestQueuedBesideAWidget(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		leave := w.widget("ben", "ann")
		defer leave()
		w.photo("ann")
		settle(time.Minute)
		w.backend.expect(MomentQueued)
	})
}

func TestWhatHappens(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		leave := w.app("ben", true)
		id := w.photo("ann")
		w.receipt(id, moment.StatusStored, "")
		w.receipt(id, moment.StatusStored, "frame1")
		w.receipt(id, moment.StatusShown, "frame1")
		settle(time.Second)
		got := w.backend.expect(MomentDelivered, MomentDelivered)
		for i, device := range []string{"", "frame1"} {
			want := map[string]any{"pair": w.pair.ID, "sender": "ann", "moment": id, "recipient": "ben", "device": device, "at": got[i].Data["at"]}
			if diff := cmp.Diff(want, got[i].Data); diff != "" {
				t.Errorf("moment.delivered (-want +got):\n%s", diff)
			}
		}
		leave()
		w.crash()
		settle(time.Second)
		w.backend.expect() // it is not told twice

		d, err := w.reg.AddDevice(t.Context(), "ben", "secret-name")
		w.must(err)
		settle(time.Second)
		if diff := cmp.Diff(map[string]any{"device": d.ID, "user": "ben", "pair": w.pair.ID}, w.backend.expect(DeviceLinked)[0].Data); diff != "" {
			t.Errorf("device.linked (-want +got):\n%s", diff)
		}
		w.hooks.Expired(w.pair.ID, 3)
		w.hooks.Expired(w.pair.ID, 1)
		settle(time.Second)
		if diff := cmp.Diff(map[string]any{"pair": w.pair.ID, "count": 4.0}, w.backend.expect(MomentExpired)[0].Data); diff != "" {
			t.Errorf("moment.expired (-want +got):\n%s", diff)
		}
		_, err = w.reg.RemovePair(t.Context(), w.pair.ID)
		w.must(err)
		settle(time.Second)
		want := map[string]any{"pair": w.pair.ID, "users": []any{"ann", "ben"}}
		if diff := cmp.Diff(want, w.backend.expect(PairRemoved)[0].Data); diff != "" {
			t.Errorf("pair.removed (-want +got):\n%s", diff)
		}
		w.crash()
		settle(time.Hour)
		w.backend.expect()
	})
}

// TestExpired: what becomes too old before its recipient has it is told.
func TestExpired(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stop()
		w.maxAge = 3 * time.Hour
		w.start()
		w.photo("ann")
		w.photo("ann")
		settle(2 * time.Hour)
		w.backend.expect(MomentQueued)
		settle(3 * time.Hour)
		if got := w.backend.expect(MomentExpired); got[0].Data["count"] != 2.0 || got[0].Data["pair"] != w.pair.ID {
			t.Errorf("moment.expired: %v, want two of the pair", got[0].Data)
		}
	})
}

// TestCrash loses everything that was not in the outbox yet: it is found at
// the start.
func TestCrash(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.backend.refuse(true)
		w.lost.Store(true)
		id := w.photo("ann")
		w.receipt(id, moment.StatusStored, "frame1")
		other, err := w.reg.CreatePair(t.Context(), "cid", "dot")
		w.must(err)
		d, err := w.reg.AddDevice(t.Context(), "ben", "frame")
		w.must(err)
		settle(time.Second)
		w.crash()
		w.backend.refuse(false)
		settle(time.Second)
		got := w.backend.expect(MomentDelivered, PairCreated, DeviceLinked)
		for _, r := range got {
			switch r.Type {
			case MomentDelivered:
				if r.Data["moment"] != id {
					t.Errorf("moment.delivered of %v, want %s", r.Data, id)
				}
			case PairCreated:
				if r.Data["pair"] != other.ID {
					t.Errorf("pair.created of %v, want %s", r.Data, other.ID)
				}
			case DeviceLinked:
				if r.Data["device"] != d.ID {
					t.Errorf("device.linked of %v, want %s", r.Data, d.ID)
				}
			}
		}
		settle(time.Minute)
		w.backend.expect(MomentQueued) // the photo, which ben's app does not have

		w.backend.refuse(true)
		w.lost.Store(true)
		_, err = w.reg.RemovePair(t.Context(), other.ID)
		w.must(err)
		settle(time.Second)
		w.crash()
		w.backend.refuse(false)
		settle(time.Minute)
		if got := w.backend.expect(PairRemoved); got[0].Data["pair"] != other.ID {
			t.Errorf("pair.removed of %v, want %s", got[0].Data, other.ID)
		}
	})
}

// TestSameIDAfterCrash loses the note that an event was taken: it comes again
// under the same id, which is how the backend knows it.
func TestSameIDAfterCrash(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.photo("ann")
		settle(29 * time.Second)
		w.lost.Store(true)
		settle(2 * time.Second)
		first := w.backend.expect(MomentQueued)[0]
		w.crash()
		settle(time.Minute)
		if again := w.backend.expect(MomentQueued)[0]; again.id != first.id || again.id == "" {
			t.Errorf("the same event has the ids %q and %q", first.id, again.id)
		}
	})
}

// TestSwitchedOn tells nothing of what was there before, and nothing of what
// happened while it was off.
func TestSwitchedOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		on := w.cfg.URL
		w.photo("ann")
		w.stop()
		w.cfg.URL = ""
		w.start()
		settle(time.Second)
		id := w.photo("ann")
		w.receipt(id, moment.StatusStored, "frame1")
		_, err := w.reg.AddDevice(t.Context(), "ben", "frame")
		w.must(err)
		settle(time.Minute)
		w.stop()
		w.cfg.URL = on
		w.start()
		settle(time.Hour)
		w.backend.expect()
		w.photo("ann")
		settle(time.Minute)
		if got := w.backend.expect(MomentQueued); got[0].Data["count"] != 1.0 {
			t.Errorf("after it was switched on: %v, want the one new photo", got[0].Data)
		}
	})
}

// TestStoreFails: what the store refuses is told when it works again.
func TestStoreFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		e, err := newEvent(MomentExpired, time.Now(), Expired{}, 1)
		w.must(err)
		if err := w.hooks.out.put(ctx, []*event{e}); err == nil {
			t.Fatal("put did not fail")
		}
		if _, wait := w.hooks.out.next(time.Now()); wait != 0 || len(w.hooks.out.events) != 0 {
			t.Error("an event that is not on disk is sent")
		}
	})
}
