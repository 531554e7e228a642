package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/photo"
)

var (
	// errStalled says that an attempt ended without anything having moved.
	errStalled = errors.New("no answer from the broker")
	// errSessionOver says that the link which was sending is gone; the entry
	// is still queued.
	errSessionOver = errors.New("session ended")
)

// lane sends the entries of one kind, one at a time, in the order of saving.
// It belongs to the goroutine of its run.
type lane struct {
	*outbox
	kind moment.Kind
	// sent entries are dropped from the store together, at most batch at
	// once: a drop that a crash loses only repeats an idempotent publish.
	sent  []entry
	batch int
	after uint64 // entries up to here are sent or not to be sent
	tries int    // rests in a row
}

func (o *outbox) newLane(kind moment.Kind, batch int) *lane {
	return &lane{outbox: o, kind: kind, batch: batch}
}

// run sends until ctx ends. It fails only when the store has failed.
func (l *lane) run(ctx context.Context) error {
	pair := ""
	for {
		v, changed := l.board.get()
		if v.Pair != pair {
			pair, l.after = v.Pair, 0
		}
		wait, err := l.step(ctx, v)
		switch {
		case ctx.Err() != nil:
			return nil
		case storeFailed(err):
			return fmt.Errorf("outbox: %w", err)
		case err != nil:
			l.log.Error("outbox is stuck, trying again", "kind", l.kind, "err", err)
			l.board.fault(err.Error())
			wait = max(wait, minRest)
		}
		if wait > 0 {
			l.idle(ctx, v.ready, wait, changed)
		}
	}
}

// untilTold is the wait of a lane that has nothing to do.
const untilTold = time.Duration(1<<63 - 1)

// step sends the next entry, if there is one and it can be sent now. It
// returns how long to wait before the next step.
func (l *lane) step(ctx context.Context, v view) (time.Duration, error) {
	if v.Pair == "" {
		return untilTold, nil
	}
	e, ok, err := l.store.nextEntry(l.kind, l.after, v.Pair)
	if err != nil {
		return 0, err
	}
	if !ok {
		return untilTold, l.dropSent(ctx, 1)
	}
	if !v.ready {
		l.waiting("offline")
		return untilTold, nil
	}
	payload, e, err := l.prepared(ctx, e)
	if err == nil {
		err = l.deliver(ctx, v, publication(e, payload))
	}
	return l.conclude(ctx, e, err)
}

// waiting tells why the lane's first photo waits.
func (l *lane) waiting(why string) {
	if l.kind != moment.Photo {
		return
	}
	l.mu.Lock()
	same := l.waits == why
	l.mu.Unlock()
	if !same {
		l.setWaits(why)
	}
}

// conclude settles e after a delivery that ended with err.
func (l *lane) conclude(ctx context.Context, e entry, err error) (time.Duration, error) {
	switch {
	case ctx.Err() != nil:
		return 0, nil
	case err == nil:
		l.tries = 0
		l.after = e.Seq
		l.sent = append(l.sent, e)
		if e.Kind == moment.Photo {
			l.log.Info("photo sent", "moment", e.ID, "pair", e.Pair, "bytes", e.Bytes)
			l.waiting("")
			l.settled(Outcome{Moment: e.ID, State: StateSent})
		}
		return 0, l.dropSent(ctx, l.batch)
	case errors.Is(err, errSessionOver):
		return untilTold, nil
	case storeFailed(err):
		return 0, err
	case permanent(err), errors.Is(err, errHopeless), errors.Is(err, badgerdb.ErrDamaged), errors.Is(err, badgerdb.ErrTooLarge):
		return 0, l.refused(ctx, e, err)
	}
	l.waiting(err.Error())
	rest := min(minRest<<min(l.tries, 10), maxRest)
	l.tries++
	l.log.Warn("could not send, it stays queued", "kind", e.Kind, "moment", e.ID, "wait", rest, "err", err)
	return rest, nil
}

// refused keeps a photo that can never be sent, with the reason; a receipt
// that nobody wants is dropped.
func (l *lane) refused(ctx context.Context, e entry, why error) error {
	l.log.Error("refused for good", "kind", e.Kind, "moment", e.ID, "pair", e.Pair, "err", why)
	l.board.fault(why.Error())
	l.after, l.tries = e.Seq, 0
	if e.Kind != moment.Photo {
		return l.store.drop(ctx, e)
	}
	if err := l.store.fail(ctx, e, why.Error()); err != nil {
		return err
	}
	l.settled(Outcome{Moment: e.ID, State: StateFailed, Reason: why.Error()})
	return nil
}

// dropSent removes what was sent from the store once there are least of it.
func (l *lane) dropSent(ctx context.Context, least int) error {
	if len(l.sent) < least {
		return nil
	}
	if err := l.store.drop(ctx, l.sent...); err != nil {
		return err
	}
	l.sent = nil
	l.board.touch()
	return nil
}

// idle waits for d or for the connection to come back (ready is whether it was
// there). A lane with nothing to do also wakes when anything has changed; a
// rest after a failure is not cut short by more to send.
func (l *lane) idle(ctx context.Context, ready bool, d time.Duration, changed <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			return
		case <-changed:
			var v view
			if v, changed = l.board.get(); (v.ready && !ready) || d == untilTold {
				return
			}
			ready = v.ready
		}
	}
}

// errHopeless says that a photo cannot be made fit to send.
var errHopeless = errors.New("cannot be sent")

// prepared returns what goes out for e, compressing a photo first if that has
// not been done.
func (l *lane) prepared(ctx context.Context, e entry) ([]byte, entry, error) {
	payload, err := l.store.payload(e)
	if err != nil || e.Prepared {
		return payload, e, err
	}
	preset, err := e.Quality.preset()
	if err != nil {
		return nil, e, fmt.Errorf("%w: %w", errHopeless, err)
	}
	out, contentType, err := photo.Prepare(payload, preset)
	if err != nil {
		return nil, e, fmt.Errorf("%w: %w", errHopeless, err)
	}
	e, err = l.store.setPrepared(ctx, e, out, contentType)
	return out, e, err
}

// deliver publishes p once and helps it through: an attempt in which nothing
// moves for stallAfter is given up by reconnecting, whereupon the link sends p
// again. After the attempts it rests and tries again, until p is acknowledged
// (nil), refused (the link's error), or the session ends (errSessionOver).
// p is never published a second time, so that the link holds it only once.
func (l *lane) deliver(ctx context.Context, v view, p mqttlink.Publish) error {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(v.session, cancel)()
	result, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		result <- v.link.Publish(ctx, p)
	}()
	defer func() { cancel(); <-ended }()
	for round, fresh := 0, true; ; round++ {
		for attempt := range attempts {
			if !fresh {
				l.bounce(v.link)
			}
			fresh = false
			err := l.attempt(ctx, v.link, result)
			if errors.Is(err, errStalled) && attempt < len(attemptPauses) {
				err = waitResult(ctx, result, attemptPauses[attempt])
			}
			if !errors.Is(err, errStalled) {
				return l.outcomeOf(v, err)
			}
		}
		l.waiting(errStalled.Error())
		l.log.Warn("not acknowledged, it stays queued", "topic", p.Topic, "round", round+1)
		var err error
		if fresh, err = l.rest(ctx, result, min(minRest<<min(round, 10), maxRest)); !errors.Is(err, errStalled) {
			return l.outcomeOf(v, err)
		}
	}
}

// outcomeOf tells the end of the session from an answer.
func (l *lane) outcomeOf(v view, err error) error {
	if err != nil && (v.session.Err() != nil || errors.Is(err, mqttlink.ErrClosed)) {
		return errSessionOver
	}
	return err
}

// attempt waits for the answer while something moves, and returns errStalled
// when nothing has for stallAfter.
func (l *lane) attempt(ctx context.Context, link link, result <-chan error) error {
	poll := time.NewTicker(stallPoll)
	defer poll.Stop()
	start := time.Now()
	last, at := link.Moved(), start
	for {
		select {
		case err := <-result:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case now := <-poll.C:
			if moved := link.Moved(); moved != last {
				last, at = moved, now
			}
			if now.Sub(at) >= stallAfter || now.Sub(start) >= attemptLimit {
				return errStalled
			}
		}
	}
}

// waitResult waits for the answer for d, and returns errStalled without one.
func waitResult(ctx context.Context, result <-chan error, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return errStalled
	}
}

// rest waits for the answer, and returns errStalled to try again: when the
// connection has come back (fresh: the link is sending p on it already), or
// after d, unless it is away.
func (l *lane) rest(ctx context.Context, result <-chan error, d time.Duration) (fresh bool, err error) {
	t := time.NewTimer(d)
	defer t.Stop()
	v, changed := l.board.get()
	for {
		select {
		case err := <-result:
			return false, err
		case <-ctx.Done():
			return false, ctx.Err()
		case <-t.C:
			if v.connected {
				return false, errStalled
			}
			t.Reset(d)
		case <-changed:
			was := v.ready
			if v, changed = l.board.get(); v.ready && !was {
				return true, errStalled
			}
		}
	}
}
