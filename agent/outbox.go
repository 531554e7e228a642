package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"pairsync/internal/badgerdb"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/photo"
)

const (
	// attempts is how often a moment is tried before it rests in the queue,
	// and stallAfter how long an attempt may go without a byte or an
	// acknowledgement moving (contract: 3 attempts of 3 s).
	attempts   = 3
	stallAfter = 3 * time.Second
	// stallPoll is how often an attempt looks for movement.
	stallPoll = 250 * time.Millisecond
	// attemptLimit ends an attempt in which other traffic moves, but not ours:
	// what a photo of maxPhotoBytes takes at 40 KB/s.
	attemptLimit = 150 * time.Second

	minRest = 10 * time.Second // in the queue after the attempts, doubling
	maxRest = 5 * time.Minute

	keepOutcomes = 64 // how many outcomes Outcome remembers
)

// attemptPauses are the waits between the attempts.
var attemptPauses = [attempts - 1]time.Duration{time.Second, 2 * time.Second}

// Quality is how far a photo is compressed before it is sent.
type Quality string

// The values of Quality: at most 1080 × 1920 pixels and 1 MB, or 1920 × 1920
// and 2 MB.
const (
	QualityDefault Quality = "default"
	QualityHigh    Quality = "high"
)

func (q Quality) preset() (photo.Preset, error) {
	switch q {
	case "", QualityDefault:
		return photo.Default, nil
	case QualityHigh:
		return photo.High, nil
	}
	return photo.Preset{}, fmt.Errorf("quality %q is neither %q nor %q", q, QualityDefault, QualityHigh)
}

// State is where a sent photo is.
type State string

// The values of State.
const (
	StateQueued State = "queued" // on disk here, will be sent
	StateSent   State = "sent"   // on disk at the server
	StateFailed State = "failed" // refused for good
)

// Outcome is what became of a photo that was to be sent.
type Outcome struct {
	Moment string `json:"moment"`
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"` // why it waits or failed
}

// outbox sends what is saved: one lane per kind, each in the order of saving,
// so that receipts do not wait behind a photo on a slow link. It is safe for
// concurrent use.
type outbox struct {
	store *store
	board *board
	log   *slog.Logger

	mu       sync.Mutex // guards the fields below
	outcomes []Outcome  // of the last keepOutcomes photos
	waits    string     // why the first photo waits, empty when it does not
	changed  chan struct{}
	bounced  time.Time // when a lane last dropped the connection
}

func newOutbox(s *store, b *board, log *slog.Logger) *outbox {
	return &outbox{store: s, board: b, log: log, changed: make(chan struct{})}
}

// add checks a photo and saves it for the present pair; it is on disk when add
// returns. Its errors are for the person who sends: not a photo, no partner,
// outbox full.
func (o *outbox) add(ctx context.Context, file []byte, caption string, q Quality) (Outcome, error) {
	v, _ := o.board.get()
	e, err := newPhoto(v.membership, file, caption, q)
	if err != nil {
		return Outcome{}, err
	}
	if e, err = o.store.savePhoto(ctx, e, file); err != nil {
		return Outcome{}, fmt.Errorf("save photo: %w", err)
	}
	o.board.touch()
	return Outcome{Moment: e.ID, State: StateQueued}, nil
}

// newPhoto returns the entry for a photo of the device's user.
func newPhoto(m membership, file []byte, caption string, q Quality) (entry, error) {
	if _, err := q.preset(); err != nil {
		return entry{}, err
	}
	info, err := photo.Check(file, photo.Limits{MaxBytes: maxSendBytes})
	if err != nil {
		return entry{}, err
	}
	if len(caption) > moment.MaxCaptionBytes {
		return entry{}, fmt.Errorf("caption of %d bytes is too long (at most %d)", len(caption), moment.MaxCaptionBytes)
	}
	if _, ok := m.partner(); !ok {
		return entry{}, errUnpaired
	}
	return entry{
		Kind: moment.Photo, Pair: m.Pair, User: m.User, ID: strings.ToLower(ulid.Make().String()), Device: m.Device,
		ContentType: info.ContentType, Caption: cleanText(caption, moment.MaxCaptionBytes), Quality: q, SavedAt: time.Now().UTC(),
	}, nil
}

// run sends until ctx ends; it fails only when the store has failed.
func (o *outbox) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return o.newLane(moment.Photo, 1).run(ctx) })
	g.Go(func() error { return o.newLane(moment.Receipt, dropPerChange).run(ctx) })
	return g.Wait()
}

// await returns what has become of a photo: at once when it is sent or failed,
// else when that changes or ctx ends.
func (o *outbox) await(ctx context.Context, id string) (Outcome, error) {
	for {
		out, changed, err := o.outcome(id)
		if err != nil || out.State != StateQueued {
			return out, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			out, _, err = o.outcome(id)
			return out, err
		}
	}
}

// outcome looks a photo up, in the store and among those just sent.
func (o *outbox) outcome(id string) (Outcome, <-chan struct{}, error) {
	// The store first: a sent photo is in outcomes before it leaves the store.
	found, err := o.store.entries(moment.Photo, func(e entry) bool { return e.ID == id })
	if err != nil {
		return Outcome{}, nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, out := range o.outcomes {
		if out.Moment == id {
			return out, o.changed, nil
		}
	}
	switch {
	case len(found) == 0:
		return Outcome{}, nil, fmt.Errorf("photo %q: %w", id, errNoPhoto)
	case found[0].Failed != "":
		return Outcome{Moment: id, State: StateFailed, Reason: found[0].Failed}, o.changed, nil
	}
	return Outcome{Moment: id, State: StateQueued, Reason: o.waits}, o.changed, nil
}

// settled records the outcome of a photo for those who wait for it.
func (o *outbox) settled(out Outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.outcomes = append(o.outcomes, out); len(o.outcomes) > keepOutcomes {
		o.outcomes = append(o.outcomes[:0], o.outcomes[1:]...)
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *outbox) setWaits(why string) {
	o.mu.Lock()
	o.waits = why
	o.mu.Unlock()
	o.board.touch()
}

// bounce makes l reconnect, unless another lane has just done so.
func (o *outbox) bounce(l link) {
	o.mu.Lock()
	recent := time.Since(o.bounced) < stallAfter
	if !recent {
		o.bounced = time.Now()
	}
	o.mu.Unlock()
	if !recent {
		l.Bounce()
	}
}

// publication returns e as it goes out.
func publication(e entry, payload []byte) mqttlink.Publish {
	m := moment.Moment{Pair: e.Pair, User: e.User, Kind: e.Kind, ID: e.ID, Caption: e.Caption, Device: e.Device}
	return mqttlink.Publish{
		Topic: m.Topic(), Payload: payload, ContentType: e.ContentType, Properties: m.Properties(), QoS: 1,
	}
}

// permanent reports whether the server's refusal will be the same tomorrow.
func permanent(err error) bool {
	var refusal *mqttlink.ReasonError
	return errors.As(err, &refusal) && !refusal.Retryable()
}

// storeFailed reports whether the store has failed, so that there is no going on.
func storeFailed(err error) bool {
	return errors.Is(err, badgerdb.ErrUnhealthy) || errors.Is(err, badgerdb.ErrClosed)
}
