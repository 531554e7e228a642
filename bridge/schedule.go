package bridge

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"pairsync/bridge/socketio"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// A photo that is to be sent later waits in its pair's later log, complete,
// with two properties that no receiver sees. It is published and then taken out
// of there: after a crash between the two it is published again, and the broker
// knows it. The log goes with the pair.
const (
	propDue   = "schedule-due"   // RFC 3339
	propHours = "schedule-hours" // until frames hide it, counted from then
)

const (
	// defaultHours is the duration of a photo that says none (contract, section 4).
	defaultHours = 24
	// maxHours and maxAhead keep a slip of the app's from becoming a promise: a year.
	maxHours = 366 * 24
	maxAhead = maxHours * time.Hour
	// longestNap is how long the scheduler sleeps at most while something waits:
	// the clock that counts may be set meanwhile.
	longestNap = time.Second
	// scheduleLinks is how many users' photos are published at a time.
	scheduleLinks = 16
	// scheduleTimeout bounds one attempt; the next comes after a wait that
	// doubles from the first to the last.
	scheduleTimeout   = 30 * time.Second
	scheduleFirstWait = time.Second
	scheduleLastWait  = time.Minute
)

// scheduled is one photo that waits.
type scheduled struct {
	due   time.Time
	pair  string
	key   moment.Key
	tries int
}

// dueHeap is a container/heap, earliest first.
type dueHeap []scheduled

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is for container/heap.
func (h *dueHeap) Push(x any) { *h = append(*h, x.(scheduled)) }

// Pop is for container/heap.
func (h *dueHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// scheduler publishes photos at their time. What waits is on disk; memory holds
// only when.
type scheduler struct {
	b     *Bridge
	links *semaphore.Weighted
	wake  chan struct{} // capacity 1: there is something new

	mu      sync.Mutex // guards the fields below
	waiting dueHeap    // may hold what is gone from the disk already
	due     map[string][]scheduled
}

func newScheduler(b *Bridge) *scheduler {
	return &scheduler{b: b, links: semaphore.NewWeighted(scheduleLinks), wake: make(chan struct{}, 1), due: map[string][]scheduled{}}
}

// run publishes what is due until ctx ends; what is on the way has until base
// ends.
func (s *scheduler) run(ctx, base context.Context) {
	for loaded := false; ctx.Err() == nil; {
		if !loaded {
			err := s.load(ctx)
			if loaded = err == nil; !loaded && ctx.Err() == nil {
				s.b.log.Error("scheduled photos not read; trying again", "err", err)
			}
		}
		timer := time.NewTimer(s.start(base, loaded))
		select {
		case <-s.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// load reads what waits on disk.
func (s *scheduler) load(ctx context.Context) error {
	logs, err := s.b.deps.Ledger.Logs(ctx)
	if err != nil {
		return err
	}
	for _, log := range logs {
		if _, ok := log.Later(); !ok {
			continue
		}
		for after := ledger.Seq(0); ; {
			got, err := s.b.deps.Ledger.Read(ctx, log, after, ledger.Limit{Entries: 256, HeadersOnly: true})
			if err != nil {
				return err
			}
			for i := range got.Entries {
				e := &got.Entries[i]
				if due, _, _, ok := unschedule(&e.Moment); ok && !e.Damaged {
					s.add(scheduled{due: due, pair: e.Pair, key: e.Key()})
				}
			}
			if got.Through <= after {
				break
			}
			after = got.Through
		}
	}
	return nil
}

// add lets a photo that is on disk be published. Added twice it is published
// once: the second finds nothing.
func (s *scheduler) add(p scheduled) {
	s.mu.Lock()
	heap.Push(&s.waiting, p)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// start hands what is due to a goroutine for each user, and returns when to
// look again.
func (s *scheduler) start(base context.Context, loaded bool) (wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.waiting) > 0 {
		if wait := time.Until(s.waiting[0].due); wait > 0 {
			return min(wait, longestNap)
		}
		p := heap.Pop(&s.waiting).(scheduled)
		user := p.key.User
		_, busy := s.due[user]
		s.due[user] = append(s.due[user], p)
		if !busy {
			s.b.spawn(func() { s.publishAll(base, user) })
		}
	}
	if !loaded {
		return longestNap
	}
	return math.MaxInt64
}

// next returns the next photo of user's that is due.
func (s *scheduler) next(user string) (p scheduled, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.due[user]
	if len(list) == 0 {
		delete(s.due, user)
		return p, false
	}
	s.due[user] = list[1:]
	return list[0], true
}

// publishAll publishes the due photos of one user, in order, over a connection
// that does not make the user online.
func (s *scheduler) publishAll(ctx context.Context, user string) {
	log := s.b.log.With("user", user)
	if s.links.Acquire(ctx, 1) != nil {
		return // they are on disk
	}
	defer s.links.Release(1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := s.b.newLink(mqttlink.Config{
		Dial: s.b.deps.Dial, ClientID: moment.ScheduleClientID, Username: user, CleanStart: true,
		Token: func(ctx context.Context) (string, error) { return s.b.deps.Token(ctx, user) },
		Up:    func(bool) {},
		Down:  func(err error) { log.Debug("broker link down", "err", err) },
	}, func(in inbound) { _ = in.ack() }, log)
	ended := make(chan struct{})
	if err == nil {
		go func() {
			defer close(ended)
			if err := l.Run(ctx); err != nil {
				log.Error("broker link ended", "err", err)
			}
		}()
		defer func() {
			cancel()
			<-ended
		}()
	}
	for p, ok := s.next(user); ok; p, ok = s.next(user) {
		if err == nil {
			s.attempt(ctx, l, p, log)
		} else {
			s.again(p, err, log)
		}
	}
}

// attempt publishes one photo; where that fails it is tried again.
func (s *scheduler) attempt(ctx context.Context, l link, p scheduled, log *slog.Logger) {
	limit, cancel := context.WithTimeout(ctx, scheduleTimeout)
	defer cancel()
	err := s.publish(limit, l, p)
	if err == nil || ctx.Err() != nil {
		return
	}
	if _, still := s.b.deps.Registry.Pair(p.pair); !still {
		return // the broker has said so
	}
	s.again(p, err, log)
}

// again lets a photo be tried once more, later.
func (s *scheduler) again(p scheduled, err error, log *slog.Logger) {
	log.Warn("scheduled photo not sent; trying again", "pair", p.pair, "photo", p.key.ID, "err", err)
	p.due = time.Now().Add(min(scheduleFirstWait<<min(p.tries, 10), scheduleLastWait))
	p.tries++
	s.add(p)
}

func (s *scheduler) publish(ctx context.Context, l link, p scheduled) error {
	later := ledger.LaterLog(p.pair)
	head, err := s.b.deps.Ledger.Lookup(ctx, later, p.key)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil // taken back, or the pair has ended
	}
	if err != nil {
		return err
	}
	if pair, ok := s.b.deps.Registry.PairOf(p.key.User); !ok || pair.ID != p.pair {
		return nil // the log goes with the pair
	}
	if err := s.b.photoMemory.Acquire(ctx, int64(head.Size)); err != nil {
		return err
	}
	defer s.b.photoMemory.Release(int64(head.Size))
	m := head.Moment
	_, hours, extra, _ := unschedule(&m)
	until := time.Now().Add(time.Duration(hours * float64(time.Hour)))
	m.Extra = append(extra, moment.Property{Key: moment.PropShowUntil, Value: until.UTC().Format(time.RFC3339)})
	m.StoredAt = time.Time{}
	if err := l.AwaitUp(ctx); err != nil {
		return err
	}
	if _, err := l.Publish(ctx, mqttlink.Publish{
		Topic: m.Topic(), Payload: m.Payload, ContentType: m.ContentType, Properties: m.Properties(), QoS: 1,
	}); err != nil {
		return err
	}
	if err := s.b.deps.Ledger.Remove(ctx, later, p.key); err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return fmt.Errorf("take it out: %w", err)
	}
	return nil
}

// cancel takes back a photo that waits; none is no error.
func (s *scheduler) cancel(ctx context.Context, pair, user, photo string) error {
	err := s.b.deps.Ledger.Remove(ctx, ledger.LaterLog(pair), moment.Key{User: user, Kind: moment.Photo, ID: photo})
	if errors.Is(err, ledger.ErrNotFound) {
		return nil
	}
	return err
}

// unschedule reads when m is due and for how long it is shown, and returns its
// other properties.
func unschedule(m *moment.Moment) (due time.Time, hours float64, rest []moment.Property, ok bool) {
	hours = defaultHours
	for _, p := range m.Extra {
		var err error
		switch p.Key {
		case propDue:
			due, err = time.Parse(time.RFC3339Nano, p.Value)
		case propHours:
			hours, err = strconv.ParseFloat(p.Value, 64)
		default:
			rest = append(rest, p)
		}
		if err != nil {
			return due, hours, rest, false
		}
	}
	return due, hours, rest, !due.IsZero()
}

// schedulePhoto is the event schedule_photo.
func (p *phone) schedulePhoto(e *socketio.Event) {
	o := p.outgoing(e, "photoId", "", "")
	o.run(o.schedule)
}

func (o *outgoing) schedule() *refusal {
	r, m, _, no := o.read()
	if no != nil {
		return no
	}
	due := parseTime(r.ScheduledTime)
	if due.IsZero() || time.Until(due) > maxAhead {
		return refuse(codeInvalid, "scheduledTime is a time in milliseconds since 1970, at most a year ahead of the server's clock")
	}
	hours := float64(defaultHours)
	if len(r.Duration) > 0 && string(r.Duration) != "null" {
		if err := json.Unmarshal(r.Duration, &hours); err != nil || hours <= 0 || hours > maxHours {
			return refuse(codeInvalid, "duration is the hours that a frame shows the photo: more than 0, at most %d", maxHours)
		}
	}
	m.Extra = []moment.Property{
		{Key: propDue, Value: due.Format(time.RFC3339Nano)},
		{Key: propHours, Value: strconv.FormatFloat(hours, 'g', -1, 64)},
	}
	b := o.p.u.b
	o.p.sends.add(func() {
		defer o.finish()
		_, duplicate, err := ledger.Append(o.ctx, b.deps.Ledger, ledger.LaterLog(m.Pair), m)
		if err != nil {
			o.refuse(refusalOfLedger(err))
			return
		}
		o.waits(duplicate, due)
		if !duplicate {
			b.schedule.add(scheduled{due: due, pair: m.Pair, key: m.Key()})
		}
	}, b.spawn)
	return nil
}

// waits answers that a photo is stored and will be sent.
func (o *outgoing) waits(duplicate bool, due time.Time) {
	messageID := o.msgID
	if messageID == "" {
		messageID = o.id
	}
	body := map[string]any{"success": true, o.idKey: o.id, "messageId": messageID, "deliveryMethod": "scheduled"}
	if duplicate {
		o.p.u.b.metrics.sendDuplicate.Inc()
		body["duplicate"] = true // and its first time counts
	} else {
		o.p.u.b.metrics.scheduled.Inc()
		body["scheduledTime"] = due.UnixMilli()
	}
	o.p.ack(o.e, body)
}

// refusalOfLedger is refusalOf for what the ledger said itself.
func refusalOfLedger(err error) *refusal {
	switch {
	case errors.Is(err, ledger.ErrDeleted):
		return refusalOfReason(&mqttlink.ReasonError{Code: mqttlink.CodeNotAuthorized})
	case errors.Is(err, ledger.ErrQuota):
		return refusalOfReason(&mqttlink.ReasonError{Code: mqttlink.CodeQuotaExceeded})
	case errors.Is(err, ledger.ErrFull):
		return refusalOfReason(&mqttlink.ReasonError{Code: mqttlink.CodeQuotaExceeded, Reason: reasonFull})
	case errors.Is(err, ledger.ErrTooLarge):
		return refusalOfReason(&mqttlink.ReasonError{Code: mqttlink.CodePacketTooLarge})
	}
	return refusalOf(err)
}
