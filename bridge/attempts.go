package bridge

import "time"

// When a photo that no phone acknowledged is emitted again, counted from the
// pong that proved the last emit. The last wait repeats.
var retryWaits = [...]time.Duration{10 * time.Second, 30 * time.Second, 60 * time.Second, 120 * time.Second}

// When a photo is given up: it is acknowledged to the broker and kept as a
// dead letter, because everything behind it waits. Only sockets that have
// acknowledged a photo before count as having refused this one: the app's
// "connection" socket ignores photos and stays alive while the one that takes
// them is dead (facts-app.md), for hours if need be, and a photo must not be
// lost to that.
const (
	deadTries   = 5
	deadSockets = 2
	deadAfter   = 10 * time.Minute // of at least one live socket that takes photos
)

// lateRounds is how many rounds, to whatever sockets came and went, a photo
// stays before the others: a phone that never answers for it is to get them.
const lateRounds = 50

// silentWait is the time between emits, after the first two, to sockets of
// which none has ever taken a photo: each costs the phone its data volume. A
// socket that joins gets the photo at once in any case.
const silentWait = time.Hour

// attempts is how hard the bridge has tried to get one photo acknowledged. It
// outlives sessions: a phone that comes and goes is no reason to start again.
type attempts struct {
	rounds  int             // that any pong proved, since it was passed
	passed  bool            // a phone took a later photo, and not this one: it may well have it
	tries   int             // rounds that the pong of a socket that takes photos proved
	sockets map[string]bool // ids of those sockets; only as many as count
	live    stopwatch       // runs while a socket that takes photos is there and has had it
}

// stopwatch adds up times.
type stopwatch struct {
	sum  time.Duration
	from time.Time // zero: stopped
}

func (w *stopwatch) start() {
	if w.from.IsZero() {
		w.from = time.Now()
	}
}

func (w *stopwatch) stop() { w.sum, w.from = w.total(), time.Time{} }

func (w *stopwatch) total() time.Duration {
	if w.from.IsZero() {
		return w.sum
	}
	return w.sum + time.Since(w.from)
}

func (a *attempts) pause() { a.live.stop() }

func (a *attempts) exhausted() bool {
	return a.passed && a.rounds >= deadTries || a.tries >= deadTries && len(a.sockets) >= deadSockets ||
		a.live.total() >= deadAfter
}

// late reports whether the others go first.
func (a *attempts) late() bool { return a.passed || a.rounds >= lateRounds }

// pass notes that a phone took a later photo. What went before to sockets that
// may never have been those of an app that takes photos does not count.
func (a *attempts) pass() {
	if !a.passed {
		a.passed, a.rounds = true, 0
	}
}

// wait is the time to the next emit after so many rounds.
func (a *attempts) wait(rounds int) time.Duration {
	w := retryWaits[min(max(rounds, 1), len(retryWaits))-1]
	if a.live.from.IsZero() && !a.passed {
		if rounds > 2 {
			w = silentWait
		}
		return w
	}
	return max(0, min(w, deadAfter-a.live.total()))
}
