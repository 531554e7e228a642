package webhook

import (
	"context"
	"encoding/json"
	"maps"
	"time"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// readLog tells of the receipts that are new in a pair's log, and notes for
// whom moments are.
func (w *Webhooks) readLog(ctx context.Context, id string) error {
	p := w.pairs[id]
	if p == nil {
		return nil // it has ended
	}
	for {
		got, err := w.deps.Ledger.Read(ctx, ledger.PairLog(id), p.Read, ledger.Limit{Entries: 256, Want: func(e *ledger.Entry) bool {
			switch e.Kind {
			case moment.Photo, moment.Note, moment.Reaction:
				w.lookLater(p.partner(e.User))
			}
			return e.Kind == moment.Receipt && !e.Damaged
		}})
		if err != nil {
			return err
		}
		var events []*event
		for i := range got.Entries {
			e, err := delivered(id, &got.Entries[i])
			if err != nil {
				return err
			}
			if e != nil {
				events = append(events, e)
			}
		}
		if len(events) > 0 {
			read := p.pairRecord
			read.Read = got.Through
			op, err := read.op(id)
			if err != nil {
				return err
			}
			if err := w.out.put(ctx, events, op); err != nil {
				return err
			}
		}
		if got.Through <= p.Read {
			return nil
		}
		p.Read = got.Through
	}
}

func (r pairRecord) partner(user string) string {
	if user == r.Users[0] {
		return r.Users[1]
	}
	return r.Users[0]
}

// delivered makes the event of a receipt, nil where it says something else than
// that a moment was stored.
func delivered(pair string, e *ledger.Entry) (*event, error) {
	var r moment.ReceiptBody
	if json.Unmarshal(e.Payload, &r) != nil || r.Status != moment.StatusStored {
		return nil, nil
	}
	return newEvent(MomentDelivered, e.StoredAt, Delivered{
		Pair: pair, Sender: r.Sender, Moment: r.Moment, Recipient: e.User, Device: e.Device, At: e.StoredAt.UTC(),
	}, pair, e.User, e.ID)
}

// lookLater has look called for user when their app may have been away long
// enough.
func (w *Webhooks) lookLater(user string) {
	if _, ok := w.due[user]; !ok {
		w.due[user] = time.Now().Add(w.cfg.QueuedAfter)
	}
}

func (w *Webhooks) firstDue() (first time.Time, ok bool) {
	for _, at := range w.due {
		if !ok || at.Before(first) {
			first, ok = at, true
		}
	}
	return first, ok
}

// look tells what waits for a user whose app is away, unless they were told
// and the backend does not know yet: then one event covers what comes until it
// does.
func (w *Webhooks) look(ctx context.Context, user string) error {
	now := time.Now()
	w.due[user] = now.Add(w.cfg.QueuedAfter) // also after an error
	at, ok := w.deps.Registry.PairOf(user)
	p := w.pairs[at.ID]
	if !ok || p == nil {
		delete(w.due, user)
		return nil
	}
	if w.out.queuedFor(user) {
		return nil
	}
	after := p.Told[user]
	b, err := w.deps.Backlog(ctx, user, after)
	if err != nil {
		return err
	}
	switch ends := b.Since.Add(w.cfg.QueuedAfter); {
	case b.count() == 0:
		delete(w.due, user)
		return nil
	case b.Online:
		return nil
	case ends.After(now):
		w.due[user] = ends
		return nil
	}
	e, err := newEvent(MomentQueued, now, Queued{
		Pair: at.ID, Recipient: user, Sender: p.partner(user),
		Count: b.count(), Photos: b.Photos, Notes: b.Notes, Reactions: b.Reactions,
	}, at.ID, user, b.Through)
	if err != nil {
		return err
	}
	e.Recipient, e.After, e.Through = user, b.After, b.Through
	told := p.pairRecord
	told.Told = map[string]ledger.Seq{}
	maps.Copy(told.Told, p.Told)
	told.Told[user] = b.Through
	op, err := told.op(at.ID)
	if err != nil {
		return err
	}
	if err := w.out.put(ctx, []*event{e}, op); err != nil {
		return err
	}
	p.Told = told.Told
	delete(w.due, user)
	return nil
}
