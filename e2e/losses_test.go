package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// lane is a pair at work: ann's phone sends to ben's.
type lane struct {
	couple
	ann    *phone
	ben    *phone
	tunnel *tunnel // of ben's phone
	acked  []sendPhoto
}

// sendUntil has ann send one photo after the other, as fast as they are
// acknowledged, until stop is closed.
func (l *lane) sendUntil(t *testing.T, stop <-chan struct{}, most int) {
	for i := 0; i < most; i++ {
		select {
		case <-stop:
			return
		default:
		}
		o := photoFor(l.couple.ben, newPhoto(2000+i%20*1000))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		a, err := l.ann.trySend(ctx, patience, o)
		cancel()
		if err != nil || !a.Success {
			t.Errorf("%s sends: %+v, %v", l.couple.ann, a, err)
			return
		}
		l.acked = append(l.acked, o)
	}
}

// check waits until ben's phone has everything and judges what it would show:
// a client that drops a messageId that it has seen.
func (l *lane) check(t *testing.T) (repeated int) {
	t.Helper()
	var shown []receivedPhoto
	list := l.ben.events.await(t, fmt.Sprintf("%d photos at the phone of %s", len(l.acked), l.couple.ben), func(list []event) bool {
		ids := map[string]bool{}
		for _, p := range named[receivedPhoto](t, list, "receive_photo") {
			ids[p.MessageID] = true
		}
		return len(ids) >= len(l.acked)
	})
	seen := map[string]bool{}
	for _, p := range named[receivedPhoto](t, list, "receive_photo") {
		if seen[p.MessageID] {
			repeated++
			continue
		}
		seen[p.MessageID] = true
		shown = append(shown, p)
	}
	if len(shown) != len(l.acked) {
		t.Errorf("%s is shown %d photos, %d were acknowledged", l.couple.ben, len(shown), len(l.acked))
	}
	for i := range min(len(shown), len(l.acked)) {
		if got, want := shown[i], l.acked[i]; got.PhotoID != want.PhotoID || got.PhotoData != want.PhotoData || got.SenderID != l.couple.ann {
			t.Fatalf("photo %d of %s is %s from %s, want %s", i, l.couple.ben, got.PhotoID, got.SenderID, want.PhotoID)
		}
	}
	return repeated
}

// TestCutPhones cuts three of ten receiving phones, chosen at random, with a TCP
// reset every half second, while photos flow as fast as they can: none that
// was acknowledged is lost, none is shown twice, all are in the sender's order.
func TestCutPhones(t *testing.T) {
	const (
		phones = 10
		cutNow = 3
		rounds = 10
	)
	rng := seeded(t)
	s, n := newServer(t), newNode(t, "phone.mjs")
	lanes := make([]*lane, phones)
	for i := range lanes {
		l := &lane{couple: s.pair(t), tunnel: newTunnel(t, s)}
		l.ben = newPhone(t, n, s, l.couple.ben, phoneOptions{transports: [][]string{websocketOnly, upgrading}[i%2], via: l.tunnel})
		l.ann = newPhone(t, n, s, l.couple.ann, phoneOptions{})
		lanes[i] = l
	}
	stop := make(chan struct{})
	var sending sync.WaitGroup
	for _, l := range lanes {
		sending.Go(func() { l.sendUntil(t, stop, 1<<30) })
	}
	cuts := 0
	for range rounds {
		pass(t, 500*time.Millisecond)
		for _, i := range rng.Perm(phones)[:cutNow] {
			cuts += lanes[i].tunnel.cut()
		}
	}
	close(stop)
	sending.Wait()
	sent, repeated := 0, 0
	for _, l := range lanes {
		sent += len(l.acked)
		repeated += l.check(t)
	}
	t.Logf("%d photos, %d connections cut, %d photos came again under their id", sent, cuts, repeated)
	if sent < phones*rounds || cuts < rounds {
		t.Errorf("only %d photos and %d cuts: nothing was tried", sent, cuts)
	}
}

// TestKilledWithQueues kills the server with kill -9 right after it has
// acknowledged photos for phones that are away: all arrive, in order.
func TestKilledWithQueues(t *testing.T) {
	s, n := newServer(t), newNode(t, "phone.mjs")
	lanes := make([]*lane, 4)
	var sending sync.WaitGroup
	for i := range lanes {
		l := &lane{couple: s.pair(t)}
		l.ann = newPhone(t, n, s, l.couple.ann, phoneOptions{})
		lanes[i] = l
		sending.Go(func() { l.sendUntil(t, nil, 25) })
	}
	sending.Wait()
	s.crash(t) // the moment the last one was acknowledged
	for _, l := range lanes {
		l.ben = newPhone(t, n, s, l.couple.ben, phoneOptions{})
	}
	for _, l := range lanes {
		if l.check(t); len(l.acked) != 25 {
			t.Errorf("%d photos were acknowledged, want 25", len(l.acked))
		}
	}
}

// TestLostAnswer loses the answer to a photo with its connection. The app
// sends it again, on a new connection and once more from its queue: it is
// stored once.
func TestLostAnswer(t *testing.T) {
	s, n := newServer(t), newNode(t, "phone.mjs")
	c := s.pair(t)
	way := newTunnel(t, s)
	ann := newPhone(t, n, s, c.ann, phoneOptions{via: way})
	ben := newPhone(t, n, s, c.ben, phoneOptions{})
	watch := newWatcher(t, s, c)

	way.hear(false)
	o := photoFor(c.ben, newPhoto(5000))
	ann.emit(t, "send_photo", o)
	ben.photos(t, 1) // the server has it; ann does not know
	way.cut()
	way.hear(true)
	ann.await(t, "room_joined", 2)
	if count(ann.events.all(), func(e event) bool { return e.Name == "photo_sent" }) != 0 {
		t.Fatal("the answer was not lost")
	}
	if a := ann.send(t, o); !a.Success || !a.Duplicate || a.PhotoID != o.PhotoID {
		t.Errorf("the second try: %+v, want a duplicate", a)
	}
	queued := o
	queued.MessageID = ""
	ann.emit(t, "send_photo", queued)

	fence := photoFor(c.ben, newPhoto(100))
	ann.send(t, fence)
	got := ben.events.await(t, "the photo after the tries", func(list []event) bool {
		return slices.ContainsFunc(named[receivedPhoto](t, list, "receive_photo"), func(p receivedPhoto) bool { return p.PhotoID == fence.PhotoID })
	})
	photos := named[receivedPhoto](t, got, "receive_photo")
	if len(photos) != 2 || photos[0].PhotoID != o.PhotoID || photos[0].PhotoData != base64.StdEncoding.EncodeToString(o.image(t)) {
		t.Errorf("ben's phone got %d photos, want each of two once", len(photos))
	}
	watch.expect(t, c.photoTopic(c.ann, o.PhotoID), c.photoTopic(c.ann, fence.PhotoID))
}
