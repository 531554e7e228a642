package sim

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// TestNothingConfirmedBeforeStored holds the ledger up: phone, frame and
// widget must not hear that their photo is safe before it is, nor that it is
// when it was refused.
func TestNothingConfirmedBeforeStored(t *testing.T) {
	t.Parallel()
	inBubble(t, 1, func(w *world) {
		t := w.t
		s := w.startSplit("ann", "ben")
		pair := w.createPair("ann", "ben")
		c := newCouple(w, func(user string) string { return "http://" + bridgeHost(user) })
		hall := w.frame("ann", "hall").on()
		widget := w.peer("ann", "widget", w.appToken("ann"), nil, nil).on()
		w.await(time.Minute, func() string { return "not everybody is connected" }, func() bool {
			return hall.status().Connected && widget.link.Connected()
		})
		time.Sleep(time.Minute)
		c.round()

		stored := false // the answer to the widget has come
		publish := func(ph *photo) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			m := moment.Moment{Pair: pair, User: "ann", Kind: moment.Photo, ID: ph.id}
			if err := widget.link.Publish(ctx, mqttlink.Publish{Topic: m.Topic(), Payload: ph.bytes, QoS: 1}); err != nil {
				t.Errorf("publish of the widget: %v", err)
			}
			stored = true
		}
		s.ledger.hold()
		ids := []string{c.ann.send(3000).id, hall.send(3000).id}
		byWidget := w.book.make("ann", "widget", 3000)
		ids = append(ids, byWidget.id)
		published := make(chan struct{})
		go func() {
			defer close(published)
			publish(byWidget)
		}()
		for range 3 { // also not when they ask again
			time.Sleep(7 * time.Second)
			if c.ann.idle() || len(hall.status().Outbox) == 0 || stored {
				t.Fatalf("told to be safe while nothing was stored: phone %t, frame %t, widget %t",
					c.ann.idle(), len(hall.status().Outbox) == 0, stored)
			}
			w.net.Cut("ann-phone", bridgeHost("ann")+":80")
			w.net.Cut("hall", hostMQTT)
		}
		if c.ben.has(ids[:1]) {
			t.Error("ben's phone shows a photo that is not stored")
		}
		s.ledger.release()
		<-published
		c.await(ids)

		s.ledger.refuse(fmt.Errorf("append: %w", ledger.ErrFull))
		ids = []string{c.ann.send(3000).id, hall.send(3000).id}
		time.Sleep(2 * time.Minute)
		if c.ann.idle() || len(hall.status().Outbox) == 0 {
			t.Errorf("told to be safe while the disk was full: phone %t, frame %t", c.ann.idle(), len(hall.status().Outbox) == 0)
		}
		s.ledger.refuse(nil)
		c.await(ids)

		// Receipts that are refused for now come later.
		c.ben.stop()
		c.frame.stop()
		ids = []string{c.ann.send(3000).id}
		w.await(time.Minute, func() string { return "ann's phone waits" }, c.ann.idle)
		s.ledger.refuse(fmt.Errorf("append: %w", ledger.ErrFull))
		c.ben.on()
		c.frame.on()
		time.Sleep(2 * time.Minute)
		if !c.ben.has(ids) {
			t.Error("ben's phone does not show a photo because its receipt is refused")
		}
		s.ledger.refuse(nil)
		c.await(ids)
		c.check()
		w.checkStoredOnce(pair, "ben")
	})
}

// TestFrameConfirmsAfterStored cuts a frame's power at the moment at which its
// PUBACK leaves: the photo must be on its disk, because nobody will send it
// again.
func TestFrameConfirmsAfterStored(t *testing.T) {
	t.Parallel()
	inWorld(t, 1, func(w *world) {
		w.createPair("ann", "ben")
		c := newCouple(w, func(string) string { return "http://server" })
		c.round()
		w.net.Refuse("copy", hostMQTT, true)
		for range 8 {
			copies := make(chan string, 16)
			c.frame.wires.watched(func(p []byte) {
				if p[0] != puback {
					return
				}
				to := w.newDir("copy")
				if err := copyDir(c.frame.dir, to); err != nil {
					w.t.Error(err)
				}
				copies <- to
			})
			id := c.ann.send(60_000).id
			c.await([]string{id})
			c.frame.wires.watched(nil)
			close(copies)
			seen := 0
			for dir := range copies {
				seen++
				after := w.frameWith("ben", "copy", c.frame.id, c.frame.token)
				after.dir = dir
				after.on()
				if !slices.ContainsFunc(after.view().seen, func(s sighting) bool { return s.id == id }) {
					w.t.Errorf("the frame confirmed %s before it was on disk", id)
				}
				after.stop()
			}
			if seen == 0 {
				w.t.Errorf("no PUBACK was seen for %s", id)
			}
		}
	})
}

// puback is the first byte of a PUBACK (MQTT 5, section 3.4.1).
const puback = 0x40

// TestBurstKeepsOrder sends many photos at once on one connection, without
// waiting for answers, as the app empties its queue: they arrive in order.
func TestBurstKeepsOrder(t *testing.T) {
	t.Parallel()
	inWorld(t, 1, func(w *world) {
		pair := w.createPair("ann", "ben")
		c := newCouple(w, func(string) string { return "http://server" })
		var ids []string
		for i := range 40 {
			ids = append(ids, w.book.make("ann", "queue", []int{100_000, 700}[i%2]).id)
		}
		w.must(c.ann.flush(ids))
		c.await(ids)
		c.check()
		w.checkStoredOnce(pair, "ben")
	})
}
