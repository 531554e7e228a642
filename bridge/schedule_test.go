package bridge

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// scheduledPhoto is photo n for partner, to be sent at.
func scheduledPhoto(partner string, n int, at time.Time) map[string]any {
	body := photoOf(partner, n)
	body["scheduledTime"] = at.UnixMilli()
	return body
}

// stored returns the photos that the broker has, with their property name.
func (w *world) stored(property string) map[string]string {
	w.broker.mu.Lock()
	defer w.broker.mu.Unlock()
	out := map[string]string{}
	for _, e := range w.broker.log {
		if !strings.Contains(e.topic, "/photos/") {
			continue
		}
		id := e.topic[strings.LastIndex(e.topic, "/")+1:]
		out[id] = ""
		for _, p := range e.pub.Properties {
			if p.Key == property {
				out[id] = p.Value
			}
		}
	}
	return out
}

// later returns how many photos of the pair wait.
func (w *world) later() int {
	w.t.Helper()
	st, err := w.deps.Ledger.Stat(w.t.Context(), ledger.LaterLog(w.pair.ID))
	if err != nil {
		w.t.Fatal(err)
	}
	return st.Entries
}

func (w *world) ids() []string { return slices.Sorted(maps.Keys(w.stored(""))) }

// TestSchedule: what is scheduled goes out within a second of its time, in
// order, whether the bridge was restarted meanwhile or not, and whether its
// sender is there or not; frames are told how long to show it.
func TestSchedule(t *testing.T) {
	inStoredWorld(t, func(w *world) {
		ana := w.join("ana")
		begin := time.Now().Truncate(time.Second)
		at := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Hour) }
		for _, n := range []int{3, 1, 2} {
			got := ana.ask("schedule_photo", scheduledPhoto("ben", n, at(n)))
			diff(t, "answer", got, map[string]any{
				"success": true, "photoId": fmt.Sprintf("photo-%d", n), "messageId": fmt.Sprintf("msg-%d", n),
				"deliveryMethod": "scheduled", "scheduledTime": float64(at(n).UnixMilli()),
			})
		}
		short := scheduledPhoto("ben", 4, at(1))
		short["duration"] = 0.5
		ana.ask("schedule_photo", short)
		again := ana.ask("schedule_photo", scheduledPhoto("ben", 1, at(9)))
		if again["success"] != true || again["duplicate"] != true {
			t.Errorf("the same photo again: %v", again)
		}
		ana.leave()
		ben := w.join("ben")
		time.Sleep(time.Until(at(1)) - time.Millisecond)
		if got := ben.photos(); len(got) != 0 {
			t.Fatalf("%q came before their time", got)
		}
		time.Sleep(time.Second)
		if got := ben.photos(); !slices.Equal(got, []string{"photo-1", "photo-4"}) {
			t.Errorf("after an hour: %q", got)
		}
		until := w.stored(moment.PropShowUntil)
		for id, want := range map[string]time.Duration{"photo-1": 24 * time.Hour, "photo-4": 30 * time.Minute} {
			got, err := time.Parse(time.RFC3339, until[id])
			if d := got.Sub(at(1).Add(want)); err != nil || d < 0 || d > time.Second {
				t.Errorf("%s is shown until %q, want %v after %v", id, until[id], want, at(1))
			}
		}
		if w.stored(propDue)["photo-1"] != "" || w.stored(moment.PropCaption)["photo-1"] != "hello" || w.stored(moment.PropMessageID)["photo-1"] != "msg-1" {
			t.Errorf("photo-1 went with other properties than it came with")
		}
		for _, e := range ben.heard("partner_presence") {
			if e.at.After(at(1).Add(-time.Minute)) && e.body["isOnline"] == true {
				t.Errorf("ana is online because of her schedule")
			}
		}

		w.restart(func(*Config) {})
		time.Sleep(time.Until(at(2)) + time.Second)
		if got := w.ids(); !slices.Equal(got, []string{"photo-1", "photo-2", "photo-4"}) {
			t.Errorf("after a restart and two hours: %q", got)
		}
		w.stop() // over the time of the third
		time.Sleep(2 * time.Hour)
		w.begin()
		time.Sleep(time.Second)
		if got := w.ids(); !slices.Equal(got, []string{"photo-1", "photo-2", "photo-3", "photo-4"}) {
			t.Errorf("after an absence: %q", got)
		}
		if n := w.later(); n != 0 {
			t.Errorf("%d still wait", n)
		}
		time.Sleep(8 * time.Hour) // the repeat's time
		if got := w.broker.topics("photo-1"); len(got) != 1 {
			t.Errorf("%q were sent", got)
		}
	})
}

func TestScheduleRefuses(t *testing.T) {
	inStoredWorld(t, func(w *world) {
		ana := w.join("ana")
		soon := time.Now().Add(time.Hour)
		for name, tc := range map[string]struct {
			change map[string]any
			code   string
		}{
			"no time":        {map[string]any{"scheduledTime": nil}, "invalid_request"},
			"no such time":   {map[string]any{"scheduledTime": "tomorrow"}, "invalid_request"},
			"too far":        {map[string]any{"scheduledTime": soon.Add(367 * 24 * time.Hour).UnixMilli()}, "invalid_request"},
			"no duration":    {map[string]any{"duration": 0}, "invalid_request"},
			"less than none": {map[string]any{"duration": -1}, "invalid_request"},
			"for ever":       {map[string]any{"duration": 1e9}, "invalid_request"},
			"odd duration":   {map[string]any{"duration": "long"}, "invalid_request"},
			"no photo":       {map[string]any{"photoData": ""}, "invalid_photo"},
			"no image":       {map[string]any{"photoData": "aGVsbG8="}, "invalid_photo"},
			"a stranger":     {map[string]any{"partnerId": "eve"}, "not_partner"},
			"bad id":         {map[string]any{"photoId": "a/b"}, "invalid_request"},
		} {
			body := scheduledPhoto("ben", 1, soon)
			maps.Copy(body, tc.change)
			if got := ana.ask("schedule_photo", body); got["success"] != false || got["code"] != tc.code {
				t.Errorf("%s: %v, want %s", name, got, tc.code)
			}
		}
		if eve := w.join("eve"); eve.ask("schedule_photo", scheduledPhoto("ben", 1, soon))["code"] != "not_paired" {
			t.Error("eve has no pair and may schedule")
		}
		for n := range testQuota {
			if got := ana.ask("schedule_photo", scheduledPhoto("ben", n, soon)); got["success"] != true {
				t.Fatalf("photo %d: %v", n, got)
			}
		}
		if got := ana.ask("schedule_photo", scheduledPhoto("ben", testQuota, soon)); got["code"] != "quota_exceeded" || got["retryable"] != true {
			t.Errorf("over the quota: %v", got)
		}
		if got := ana.ask("delete_photo", map[string]any{"photoId": "photo-0"}); got["success"] != true {
			t.Errorf("delete: %v", got)
		}
		past := scheduledPhoto("ben", testQuota, time.Now().Add(-time.Hour))
		if got := ana.ask("schedule_photo", past); got["success"] != true {
			t.Errorf("a time that is over: %v", got)
		}
		time.Sleep(time.Second)
		if got := w.ids(); !slices.Equal(got, []string{fmt.Sprintf("photo-%d", testQuota)}) {
			t.Errorf("sent at once: %q", got)
		}
		time.Sleep(time.Hour)
		if got := w.ids(); len(got) != testQuota || slices.Contains(got, "photo-0") {
			t.Errorf("sent at their time: %q, want all but photo-0, which was taken back", got)
		}
	})
}

// TestScheduleTriesAgain: a broker that is away or refuses costs time, no photo;
// the end of the pair ends the tries.
func TestScheduleTriesAgain(t *testing.T) {
	inStoredWorld(t, func(w *world) {
		ana := w.join("ana")
		tries := 0
		refuse := func(p mqttlink.Publish) error {
			tries++
			return errors.New("away")
		}
		set := func(fn func(mqttlink.Publish) error) {
			w.broker.mu.Lock()
			defer w.broker.mu.Unlock()
			w.broker.refuse = fn
		}
		set(refuse)
		ana.ask("schedule_photo", scheduledPhoto("ben", 1, time.Now().Add(time.Minute)))
		time.Sleep(10 * time.Minute)
		if tries < 5 || tries > 30 {
			t.Errorf("%d tries in 9 minutes", tries)
		}
		set(nil)
		time.Sleep(scheduleLastWait)
		if got := w.ids(); !slices.Equal(got, []string{"photo-1"}) || w.later() != 0 {
			t.Errorf("sent %q, %d wait", got, w.later())
		}

		set(refuse)
		ana.ask("schedule_photo", scheduledPhoto("ben", 2, time.Now()))
		ana.ask("schedule_photo", scheduledPhoto("ben", 3, time.Now().Add(time.Hour)))
		time.Sleep(time.Minute)
		if _, err := w.reg.RemovePair(w.t.Context(), w.pair.ID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		set(nil)
		if _, err := w.reg.CreatePair(w.t.Context(), "ana", "ben"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		if got := w.ids(); !slices.Equal(got, []string{"photo-1"}) {
			t.Errorf("sent after the end of the pair: %q", got)
		}
	})
}
