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

func TestUnansweredPhotoIsRepeatedAndGivenUp(t *testing.T) {
	tests := []struct {
		sockets int
		at      []time.Duration // of the emits, since the first
		deadAt  time.Duration
	}{
		{1, []time.Duration{0, 10, 40, 100, 220, 340, 460, 580}, 600},
		{2, []time.Duration{0, 10, 40, 100, 220}, 340},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.sockets), func(t *testing.T) {
			inWorld(t, func(w *world) {
				var phones []*app
				for range tt.sockets {
					phones = append(phones, w.join("ben"))
				}
				w.fromPartner("ana", 0) // which they take, so that they count
				for _, p := range phones {
					p.answers = false
				}
				start := time.Now()
				w.fromPartner("ana", 1)
				time.Sleep(tt.deadAt*time.Second - time.Millisecond)
				var at []time.Duration
				for _, e := range phones[0].heard("receive_photo")[1:] {
					at = append(at, e.at.Sub(start)/time.Second)
				}
				diff(t, "emits at seconds", at, tt.at)
				if letters, _ := DeadLetters(w.t.Context(), w.store, "ben"); len(letters) != 0 {
					t.Fatalf("dead letters too early: %v", letters)
				}
				time.Sleep(time.Second)
				letters, err := DeadLetters(w.t.Context(), w.store, "")
				if err != nil || len(letters) != 1 {
					t.Fatalf("dead letters %v, %v, want one", letters, err)
				}
				want := DeadLetter{Pair: w.pair.ID, User: "ben", Sender: "ana", Photo: "photo-1", Tries: len(tt.at),
					Sockets: tt.sockets, At: start.Add(tt.deadAt * time.Second).UTC()}
				diff(t, "dead letter", letters[0], want)
				w.fromPartner("ana", 2)
				time.Sleep(time.Second)
				if got := phones[0].photos(); got[len(got)-1] != "photo-2" {
					t.Errorf("the next photo did not follow: %v", got)
				}
				if n := len(w.broker.topics("/receipts/")); n != 1 {
					t.Errorf("%d receipts, want that for photo-0 alone", n)
				}
			})
		})
	}
}

// TestNextPhotoPassesOneThatStaysUnanswered: the phone's word for a photo was
// lost on the way, and its app ignores every repeat. What follows must not wait
// for that.
func TestNextPhotoPassesOneThatStaysUnanswered(t *testing.T) {
	inWorld(t, func(w *world) {
		ben := w.join("ben")
		ben.ignores = "photo-1"
		for n := range 40 {
			w.fromPartner("ana", n)
		}
		time.Sleep(9 * time.Second)
		diff(t, "photos at first", ben.photos(), []string{"photo-0", "photo-1"})
		time.Sleep(2 * time.Second)
		if got := len(w.broker.topics("/receipts/ben/")); got < 14 {
			t.Errorf("%d receipts after 11s: the photos behind wait", got)
		}
		time.Sleep(15 * time.Minute)
		if got := len(w.broker.topics("/receipts/ben/")); got != 39 {
			t.Errorf("%d receipts, want all but that of photo-1", got)
		}
		if letters, err := DeadLetters(w.t.Context(), w.store, "ben"); err != nil || len(letters) != 1 || letters[0].Photo != "photo-1" {
			t.Errorf("dead letters %v (%v), want photo-1", letters, err)
		}
	})
}

// TestJoinStartsOver: a socket that joins gets what is unanswered in order,
// one after the other.
func TestJoinStartsOver(t *testing.T) {
	inWorld(t, func(w *world) {
		silent := w.connect("ben", nil)
		silent.answers = false
		silent.room()
		var want []string
		for n := range 6 {
			w.fromPartner("ana", n)
			want = append(want, fmt.Sprintf("photo-%d", n))
		}
		time.Sleep(15 * time.Second)
		diff(t, "photos of the first socket", silent.photos(), []string{"photo-0", "photo-1"})
		ben := w.join("ben")
		time.Sleep(time.Second)
		diff(t, "photos of the second", ben.photos(), want)
	})
}

// TestSocketThatIgnoresPhotos: the app's connection socket stays alive while
// the one that takes photos is dead. That gives no photo up: the other one
// finds everything when it is back.
func TestSocketThatIgnoresPhotos(t *testing.T) {
	inWorld(t, func(w *world) {
		connection := w.connect("ben", nil)
		connection.answers = false
		connection.room()
		realtime := w.join("ben")
		w.fromPartner("ana", 0)
		realtime.leave()
		for n := range 3 {
			w.fromPartner("ana", n+1)
		}
		time.Sleep(12 * time.Hour) // a night on the table
		if letters, err := DeadLetters(w.t.Context(), w.store, "ben"); err != nil || len(letters) != 0 {
			t.Errorf("given up: %v (%v)", letters, err)
		}
		if n := len(connection.photos()); n > 60 {
			t.Errorf("%d photos were emitted to the socket that ignores them", n)
		}
		realtime = w.join("ben")
		time.Sleep(time.Second)
		diff(t, "photos of the socket that came back", realtime.photos(), []string{"photo-1", "photo-2", "photo-3"})
	})
}

// A phone that comes and goes without ever answering must not start the count
// again, or everything behind its photo would wait for ever.
func TestTriesOutliveSessions(t *testing.T) {
	inWorld(t, func(w *world) {
		w.fromPartner("ana", 1)
		w.fromPartner("ana", 2)
		var last []string
		for range lateRounds + 1 {
			ben := w.connect("ben", nil)
			ben.answers = false
			ben.room()
			time.Sleep(5 * time.Second)
			last = ben.photos()
			ben.leave()
			time.Sleep(time.Second)
		}
		diff(t, "the last connection's photos", last, []string{"photo-1", "photo-2"})
	})
}

// Only time with a live socket counts against a photo.
func TestAbsenceDoesNotCount(t *testing.T) {
	inWorld(t, func(w *world) {
		w.connect("ben", nil) // keeps the session, and never joins
		w.fromPartner("ana", 1)
		for range 3 {
			ben := w.connect("ben", nil)
			ben.answers = false
			ben.room()
			time.Sleep(time.Second)
			diff(t, "photos", ben.photos(), []string{"photo-1"})
			ben.leave()
			time.Sleep(20 * time.Minute)
		}
	})
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

// TestPassedPhotoStaysPassed: that a phone took a later photo is remembered
// over sessions. The others do not wait then, and five tries are enough, also to a
// socket that never took any.
func TestPassedPhotoStaysPassed(t *testing.T) {
	inWorld(t, func(w *world) {
		ben := w.join("ben")
		ben.ignores = "photo-1"
		w.fromPartner("ana", 1)
		time.Sleep(time.Second)
		w.fromPartner("ana", 2)
		time.Sleep(11 * time.Second)
		diff(t, "photos of the first", ben.photos(), []string{"photo-1", "photo-2"})
		ben.leave()
		w.fromPartner("ana", 3)
		second := w.silent("ben")
		time.Sleep(time.Second)
		diff(t, "photos of the second: the later one does not wait", second.photos(), []string{"photo-1", "photo-3"})
		time.Sleep(time.Hour)
		diff(t, "given up", w.deadLetters("ben"), []string{"photo-1"})
	})
}
