package bridge

import (
	"fmt"
	"testing"
	"time"
)

func (w *world) user(name string) *user {
	w.bridge.mu.Lock()
	defer w.bridge.mu.Unlock()
	return w.bridge.users[userKey{name, ""}]
}

func (w *world) deadLetters(user string) []string {
	w.t.Helper()
	letters, err := DeadLetters(w.t.Context(), w.store, user)
	if err != nil {
		w.t.Fatal(err)
	}
	out := []string{}
	for _, d := range letters {
		out = append(out, d.Photo)
	}
	return out
}

// silent joins a phone of user that says nothing about its photos.
func (w *world) silent(user string) *app {
	w.t.Helper()
	a := w.connect(user, nil)
	a.answers = false
	a.room()
	return a
}

// TestPassedPhotoHasItsTries: what went to sockets that take no photos does not
// count against a photo when another one is taken before it.
func TestPassedPhotoHasItsTries(t *testing.T) {
	inWorld(t, func(w *world) {
		w.silent("ben")
		w.fromPartner("ana", 1)
		w.fromPartner("ana", 2)
		time.Sleep(4*time.Hour + 30*time.Minute)
		ben := w.connect("ben", nil)
		ben.ignores = "photo-1"
		ben.room()
		ben.emit("photo_received", map[string]any{"photoId": "photo-2"})
		diff(t, "photos", ben.photos(), []string{"photo-1"})
		time.Sleep(time.Minute)
		diff(t, "dead letters", w.deadLetters("ben"), []string{})
		ben.mu.Lock()
		ben.ignores = ""
		ben.mu.Unlock()
		time.Sleep(silentWait)
		diff(t, "dead letters", w.deadLetters("ben"), []string{})
		if n := w.broker.waiting("ben/app"); n != 0 {
			t.Errorf("%d unacknowledged, want none", n)
		}
	})
}

// TestJoinerGetsOldestFirst: also while a later photo has its turn and the
// oldest waits for its next one.
func TestJoinerGetsOldestFirst(t *testing.T) {
	inWorld(t, func(w *world) {
		w.silent("ben")
		w.fromPartner("ana", 1)
		w.fromPartner("ana", 2)
		time.Sleep(retryWaits[0] + retryWaits[1] + 5*time.Second)
		ben := w.join("ben")
		time.Sleep(time.Second)
		diff(t, "photos", ben.photos(), []string{"photo-1", "photo-2"})
	})
}

// TestJoinerHasItsTimeToAnswer: photos in a burst are lost in the app, also in
// that of a phone that joins shortly before the next would go out.
func TestJoinerHasItsTimeToAnswer(t *testing.T) {
	inWorld(t, func(w *world) {
		w.silent("ben")
		w.fromPartner("ana", 1)
		w.fromPartner("ana", 2)
		time.Sleep(retryWaits[0] - time.Millisecond)
		late := w.silent("ben")
		time.Sleep(retryWaits[0] - time.Millisecond)
		diff(t, "photos before its time", late.photos(), []string{"photo-1"})
		time.Sleep(2 * time.Millisecond)
		diff(t, "photos after it", late.photos(), []string{"photo-1", "photo-2"})
	})
}

// TestPhotoOnItsWayIsNotPassed: the line of the phone that takes photos is slow
// and that of the other one is not.
func TestPhotoOnItsWayIsNotPassed(t *testing.T) {
	inWorld(t, func(w *world) {
		line := make(chan struct{}, 1)
		line <- struct{}{}
		w.line = line
		slow := w.silent("ben")
		w.line = nil
		w.silent("ben")
		<-line
		w.fromPartner("ana", 1)
		w.fromPartner("ana", 2)
		time.Sleep(retryWaits[0] + time.Second)
		line <- struct{}{}
		diff(t, "photos of the slow phone", slow.photos(), []string{"photo-1"})
		time.Sleep(retryWaits[0] + time.Second)
		diff(t, "photos of the slow phone later", slow.photos(), []string{"photo-1", "photo-2"})
	})
}

// TestPhonesThatComeAndGo: whatever comes and goes without an answer gives no
// photo up; it only lets the others go first.
func TestPhonesThatComeAndGo(t *testing.T) {
	inWorld(t, func(w *world) {
		for n := range 3 {
			w.fromPartner("ana", n)
		}
		for range 5 * lateRounds {
			w.silent("ben").leave()
			time.Sleep(time.Second)
		}
		diff(t, "dead letters", w.deadLetters("ben"), []string{})
		ben := w.join("ben")
		time.Sleep(time.Second)
		if got := len(ben.photos()); got != 3 {
			t.Errorf("%v, want each of the three photos once", ben.photos())
		}
	})
}

// Only the photo that has its turn is held in the form that phones get.
func TestPassedPhotosAreNotHeldEncoded(t *testing.T) {
	inWorld(t, func(w *world) {
		w.silent("ben")
		for n := range window {
			w.fromPartner("ana", n)
		}
		time.Sleep(2 * retryWaits[0] * window)
		u := w.user("ben")
		u.mu.Lock()
		defer u.unlock()
		for _, d := range u.session.photos {
			if d != u.session.outstanding && (d.text != nil || d.binary != nil) {
				t.Errorf("%s is held encoded while it waits", d.m.ID)
			}
		}
	})
}

// A session that ends before the broker has delivered anything again forgets
// nothing, and what never comes again is forgotten at last.
func TestAttemptsOutliveShortSessions(t *testing.T) {
	inWorld(t, func(w *world) {
		w.connect("ben", nil)
		u := w.user("ben")
		session := func(known int) int {
			s := &session{u: u}
			u.mu.Lock()
			defer u.unlock()
			for n := range known {
				u.attempts[fmt.Sprint(n)] = attempts{rounds: 3}
			}
			s.stopPhotos()
			return len(u.attempts)
		}
		if got := session(window); got != window {
			t.Errorf("%d photos are known after a short session, want %d", got, window)
		}
		if got := session(3 * window); got > ackSlots {
			t.Errorf("%d photos are known, and they become more", got)
		}
	})
}
