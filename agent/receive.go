package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
	"unicode/utf8"

	"pairsync/internal/badgerdb"
	"pairsync/internal/moment"
	"pairsync/internal/photo"
)

// photoLimits are what the page's browser can decode on a small board.
var photoLimits = photo.Limits{MaxBytes: maxPhotoBytes}

// maxNoteBytes bounds the text of a note; more is cut.
const maxNoteBytes = 8 << 10

// Waits between two tries to store what arrived, where the disk is full.
const (
	minStoreRetry = time.Second
	maxStoreRetry = 30 * time.Second
	roomEvery     = time.Minute // between removals of photos because of it
)

// receiver stores what arrives and then acknowledges it, in order. What it
// cannot store it does not acknowledge: it tries again until it can.
type receiver struct {
	store   *store
	board   *board
	show    Show
	relearn func() // a pairing event came
	log     *slog.Logger

	madeRoom time.Time // when photos were last removed because the disk is full
}

// incoming is one message from the broker. The receiver may keep its payload.
type incoming struct {
	topic   string
	payload []byte
	props   []moment.Property
	again   bool // the broker has sent it on an earlier connection
	// ack acknowledges it; it fails when the connection that brought it is
	// gone, and then it comes again.
	ack func() error
}

// arrival is one message and what it asks for.
type arrival struct {
	msg    incoming
	change *change // nil: nothing to store
	// broken replaces change when the store says that it can never hold it.
	broken *arrival
	stored func() // called when change is on disk, may be nil

	outcome chan error // capacity 1; gets the outcome of change
}

// run takes messages until ctx ends. It returns an error only when the store
// has failed.
func (r *receiver) run(ctx context.Context, in <-chan incoming) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-in:
			if err := r.takeAll(ctx, collect(m, in)); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
		}
	}
}

// collect returns first and what else is waiting, so that the store can write
// it in one go.
func collect(first incoming, in <-chan incoming) []incoming {
	batch := []incoming{first}
	for len(batch) < receiveMaximum {
		select {
		case m := <-in:
			batch = append(batch, m)
		default:
			return batch
		}
	}
	return batch
}

// takeAll stores a batch and acknowledges it, in order.
func (r *receiver) takeAll(ctx context.Context, batch []incoming) error {
	arrivals := make([]arrival, len(batch))
	for i, m := range batch {
		a := r.judge(ctx, m)
		a.msg = m
		if a.change != nil {
			a.outcome = make(chan error, 1)
			if err := r.store.submit(ctx, *a.change, func(err error) { a.outcome <- err }); err != nil {
				a.outcome <- err
			}
		}
		arrivals[i] = a
	}
	for _, a := range arrivals {
		if a.change != nil {
			if err := r.await(ctx, &a); err != nil {
				return err
			}
			if a.stored != nil {
				a.stored()
			}
		}
		if err := a.msg.ack(); err != nil {
			r.log.Debug("acknowledgement lost, it will come again", "topic", a.msg.topic, "err", err)
		}
	}
	return nil
}

// await waits until a's change is on disk, and tries again for as long as the
// store cannot take it.
func (r *receiver) await(ctx context.Context, a *arrival) error {
	wait := minStoreRetry
	err := <-a.outcome
	for {
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, badgerdb.ErrUnhealthy), errors.Is(err, badgerdb.ErrClosed):
			return fmt.Errorf("store %s: %w", a.msg.topic, err)
		case errors.Is(err, badgerdb.ErrTooLarge) && a.broken != nil:
			a.change, a.stored, a.broken = a.broken.change, a.broken.stored, nil
		default:
			r.log.Error("cannot store what arrived, trying again", "topic", a.msg.topic, "wait", wait, "err", err)
			r.board.fault(err.Error())
			if errors.Is(err, badgerdb.ErrFull) {
				r.makeRoom(ctx)
			}
			if !pause(ctx, wait) {
				return ctx.Err()
			}
			wait = min(2*wait, maxStoreRetry)
		}
		err = r.store.update(ctx, *a.change)
	}
}

// makeRoom lets the oldest photos go when the disk is full, a few a minute:
// the store needs some time to give their space back.
func (r *receiver) makeRoom(ctx context.Context) {
	if time.Since(r.madeRoom) < roomEvery {
		return
	}
	r.madeRoom = time.Now()
	n, err := r.store.makeRoom(ctx)
	if err != nil {
		r.log.Error("cannot make room", "err", err)
		return
	}
	r.log.Warn("disk is full, removed the oldest photos", "photos", n)
	r.board.touch()
}

// judge says what a message asks for.
func (r *receiver) judge(ctx context.Context, m incoming) arrival {
	t, err := moment.ParseTopic(m.topic)
	if err != nil {
		return r.refuse(m.topic, "not a topic of pairsync")
	}
	v, _ := r.board.get()
	switch t.Class {
	case moment.ClassInfo:
		r.takeInfo(ctx, v, t.Pair, m.payload)
	case moment.ClassEvents:
		// One that comes again is older than this connection, which has
		// learned the pair. To connect again for it could go on for ever: its
		// acknowledgement waits behind a photo that is being sent.
		if !m.again {
			r.relearn()
		}
	case moment.ClassMoment:
		return r.judgeMoment(v.membership, t, m)
	}
	return arrival{}
}

// refuse counts a moment that is not this device's to take.
func (r *receiver) refuse(topic, why string) arrival {
	r.log.Warn("refused", "topic", topic, "why", why)
	r.board.set(func(v *view) { v.refused++ })
	return arrival{}
}

func (r *receiver) judgeMoment(member membership, t moment.Topic, m incoming) arrival {
	partner, ok := member.partner()
	switch {
	case !ok || t.Pair != member.Pair:
		return r.refuse(m.topic, "not this device's pair")
	case t.User != partner.ID && t.User != member.User:
		return r.refuse(m.topic, "sender is not in the pair")
	case t.User != partner.ID && r.show != ShowBoth:
		return arrival{} // one's own, and not wanted on this frame
	}
	switch t.Kind {
	case moment.Photo:
		return r.judgePhoto(member, t, m)
	case moment.Note:
		return r.judgeNote(member, t, m)
	case moment.Delete:
		gone := new(bool)
		c := r.store.takeBack(t.Pair, t.User, t.ID, gone)
		return arrival{change: &c, stored: func() {
			if *gone {
				r.log.Info("taken back", "sender", t.User, "moment", t.ID)
				r.board.touch()
			}
		}}
	}
	return arrival{}
}

func (r *receiver) judgePhoto(member membership, t moment.Topic, m incoming) arrival {
	key := moment.Key{User: t.User, Kind: t.Kind, ID: t.ID}
	info, err := photo.Check(m.payload, photoLimits)
	if err != nil {
		return r.broken(t.Pair, key, err.Error())
	}
	var props moment.Moment
	if err := props.SetDelivered(m.props); err != nil {
		r.log.Warn("properties of a photo ignored", "moment", t.ID, "err", err)
		props = moment.Moment{}
	}
	now := time.Now()
	rec := record{
		Pair: t.Pair, Sender: t.User, Moment: t.ID, Type: info.ContentType,
		Bytes: len(m.payload), SHA256: hashHex(m.payload),
		Caption: cleanText(props.Caption, moment.MaxCaptionBytes), TakenAt: props.TakenAt, ReceivedAt: now.UTC(),
	}
	fresh := new(bool)
	receipt := newReceipt(member, t.User, t.ID, moment.StatusStored, now)
	c := r.store.takePhoto(rec, m.payload, receipt, fresh)
	broken := r.broken(t.Pair, key, "too large for the store")
	return arrival{change: &c, broken: &broken, stored: func() {
		if !*fresh {
			r.log.Debug("photo was here already", "sender", t.User, "moment", t.ID)
			return
		}
		r.log.Info("photo stored", "sender", t.User, "moment", t.ID, "bytes", rec.Bytes)
		r.board.touch()
	}}
}

// broken keeps a photo out of the show for good, and counts it.
func (r *receiver) broken(pair string, key moment.Key, why string) arrival {
	fresh := new(bool)
	c := r.store.takeBroken(pair, key, why, fresh)
	return arrival{change: &c, stored: func() {
		if *fresh {
			r.log.Warn("photo cannot be shown", "sender", key.User, "moment", key.ID, "why", why)
			r.board.fault(fmt.Sprintf("photo %s of %s: %s", key.ID, key.User, why))
		}
	}}
}

func (r *receiver) judgeNote(member membership, t moment.Topic, m incoming) arrival {
	if !utf8.Valid(m.payload) {
		return r.refuse(m.topic, "note is not UTF-8")
	}
	now := time.Now()
	n := note{Pair: t.Pair, Sender: t.User, Moment: t.ID, Text: cleanText(string(m.payload), maxNoteBytes), ReceivedAt: now.UTC()}
	fresh := new(bool)
	c := r.store.takeNote(n, newReceipt(member, t.User, t.ID, moment.StatusStored, now), fresh)
	return arrival{change: &c, stored: func() {
		if *fresh {
			r.log.Info("note stored", "sender", t.User, "moment", t.ID)
			r.board.touch()
		}
	}}
}

// takeInfo learns who is in the pair that the session asked about.
func (r *receiver) takeInfo(ctx context.Context, v view, pair string, payload []byte) {
	if pair != v.awaited || v.link == nil {
		return
	}
	users, err := parsePairInfo(payload, v.User)
	if err != nil {
		r.log.Warn("pair info ignored", "pair", pair, "err", err)
		return
	}
	m := membership{User: v.User, Device: v.Device, Pair: pair, Users: users}
	if m.equal(v.membership) {
		return
	}
	if err := r.store.setMember(ctx, m); err != nil {
		r.log.Error("cannot keep the pair info", "err", err) // the session asks again at the next connect
		return
	}
	r.board.set(func(v *view) { v.membership = m })
}
