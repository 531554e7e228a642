package sim

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// schedule sends a photo of the book that is to go at a time, and returns it.
func (p *phone) schedule(partner string, at time.Time) *photo {
	p.w.t.Helper()
	ph := p.w.book.make(p.user, p.host, 4<<10)
	p.mu.Lock()
	c := p.client
	p.mu.Unlock()
	answer, err := c.EmitWithAck(p.w.t.Context(), "schedule_photo", map[string]any{
		"photoId": ph.id, "photoData": base64.StdEncoding.EncodeToString(ph.bytes), "partnerId": partner,
		"timestamp": time.Now().UnixMilli(), "scheduledTime": at.UnixMilli(), "duration": 2,
	})
	p.w.must(err)
	var in struct{ Success bool }
	if len(answer) != 1 || json.Unmarshal(answer[0], &in) != nil || !in.Success {
		p.w.t.Fatalf("schedule_photo: %s", answer)
	}
	return ph
}

// TestSchedule: a photo whose acknowledgement the sender has goes out at its
// time, after a power cut and with its sender away, who is not shown as online
// for it; one of a pair that has ended goes nowhere.
func TestSchedule(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.doing = "scheduling"
		pair := w.createPair("ann", "ben")
		ann, ben := w.phone("ann", "http://server").on(), w.phone("ben", "http://server").on()
		both := func() bool { return ann.isJoined() && ben.isJoined() }
		w.await(time.Minute, func() string { return "somebody has not joined" }, both)
		at := time.Now().Add(time.Hour).Truncate(time.Second)
		first := ann.schedule("ben", at)
		second := ann.schedule("ben", at.Add(time.Hour))
		w.crash()
		ann.stop()
		w.await(time.Minute, func() string { return "ben is not back" }, ben.isJoined)
		time.Sleep(time.Until(at) - 10*time.Millisecond)
		onlines := ben.wentOnline()
		if ben.wireCount() != 0 {
			t.Error("a photo came before its time")
		}
		time.Sleep(10*time.Millisecond + time.Second)
		if !ben.has([]string{first.id}) {
			t.Errorf("the photo is not there a second after its time")
		}
		if n := ben.wentOnline(); n != onlines {
			t.Error("ann was shown as online")
		}
		w.crash()
		time.Sleep(time.Until(at.Add(time.Hour + time.Second)))
		if !ben.has([]string{first.id, second.id}) || ben.wireCount() != 2 {
			t.Errorf("after the second one's time: %d photos", ben.wireCount())
		}

		ann.on()
		w.await(time.Minute, func() string { return "somebody has not joined" }, both)
		ann.schedule("ben", time.Now().Add(time.Hour))
		w.removePair(pair)
		w.createPair("ann", "ben")
		w.crash()
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if n := ben.wireCount(); n != 2 {
			t.Error(fmt.Sprintf("%d photos of a pair that has ended", n-2))
		}
	})
}
