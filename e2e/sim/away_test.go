package sim

import (
	"fmt"
	"testing"
	"time"

	"pairsync/internal/moment"
)

// TestAwayForDays keeps ben's phone, frame and widget away for five days in
// which ann sends and the server is restarted, in good order and by power
// cuts. All of it is there when they come back, in order. Most of each day the
// server is down: badger looks 20 times a second whether there is something to
// compact, and days of that take minutes.
func TestAwayForDays(t *testing.T) {
	t.Parallel()
	inWorld(t, 1, func(w *world) {
		t := w.t
		pair := w.createPair("ann", "ben")
		c := newCouple(w, func(string) string { return "http://server" })
		widget := w.peer("ben", "widget", w.appToken("ben"), []string{moment.KindFilter(pair, moment.Photo, "ann")}, nil).on()
		c.round()

		c.ben.stop()
		c.frame.stop()
		widget.stop()
		var ids []string
		for day := range 5 {
			for range 4 {
				ids = append(ids, c.ann.send(20_000).id)
				time.Sleep(time.Minute)
			}
			w.await(time.Minute, func() string { return "ann's phone waits for an acknowledgement" }, c.ann.idle)
			if day%2 == 0 {
				w.crash()
			}
			w.stop()
			time.Sleep(24 * time.Hour)
			w.start()
		}
		w.await(time.Minute, func() string { return "ann's phone is not connected" }, c.ann.isJoined)
		time.Sleep(time.Second)
		if online, known := c.ann.partnerOnline(); online || !known {
			t.Errorf("ann's phone shows online %t (known %t) after ben has been away for days", online, known)
		}

		c.ben.on()
		c.frame.on()
		widget = w.peer("ben", "widget", w.appToken("ben"), nil, nil).on() // its session knows what it wants
		c.await(ids)
		time.Sleep(time.Minute)
		c.check()
		v := widget.view()
		if got := len(v.seen); got != len(ids) {
			t.Errorf("the widget got %d photos, want the %d sent while it was away", got, len(ids))
		}
		for i := range min(len(ids), len(v.seen)) {
			if v.seen[i].id != ids[i] {
				t.Fatalf("the widget's photo %d is %s, want %s", i, v.seen[i].id, ids[i])
			}
		}
		w.checkStoredOnce(pair, "ben")
	})
}

// TestNeverSeenPartner sends to somebody whose phone and frame connect for the
// first time days later.
func TestNeverSeenPartner(t *testing.T) {
	t.Parallel()
	inWorld(t, 1, func(w *world) {
		w.createPair("ann", "ben")
		ann := w.phone("ann", "http://server").on()
		var ids []string
		for range 20 { // more than the window
			ids = append(ids, ann.send(3000).id)
		}
		w.await(time.Minute, func() string { return "ann's phone waits for an acknowledgement" }, ann.idle)
		w.crash()
		w.stop()
		time.Sleep(48 * time.Hour)
		w.start()
		c := &couple{w: w, ann: ann, ben: w.phone("ben", "http://server").on(), frame: w.frame("ben", "kitchen").on()}
		c.await(ids)
		c.check()
	})
}

// TestCrashAtEveryStep cuts the power of the server, and of the frame, after
// every few bytes of a flow. What was acknowledged is still there.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		name  string
		crash func(*couple)
	}{
		{"server", func(c *couple) { c.w.crash() }},
		{"frame", func(c *couple) { c.frame.crash() }},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			inWorld(t, 1, func(w *world) {
				pair := w.createPair("ann", "ben")
				c := newCouple(w, func(string) string { return "http://server" })
				for _, host := range []string{"ann-phone", "ben-phone", "kitchen"} {
					for _, server := range []string{hostHTTP, hostMQTT} {
						w.net.Rate(host, server, 10_000) // so that time tells the steps apart
						w.net.Rate(server, host, 10_000)
					}
				}
				for at := time.Duration(0); at < 2*time.Second; at += 140 * time.Millisecond {
					ids := []string{c.ann.send(3000).id, c.ann.send(2500).id}
					time.Sleep(at)
					w.doing = fmt.Sprintf("power cut %v after the send", at)
					v.crash(c)
					c.await(ids)
				}
				w.doing = ""
				w.net.Heal()
				c.check()
				w.checkStoredOnce(pair, "ben")
			})
		})
	}
}
