package broker

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// subscription is one topic filter of a session.
type subscription struct {
	Filter string `json:"filter"`
	QoS    byte   `json:"qos"`
	// From is the place in the filter's log after which it delivers: a filter
	// delivers nothing appended before it was subscribed, but for backfill.
	From              ledger.Seq `json:"from"`
	ID                int        `json:"id,omitempty"` // MQTT 5 Subscription Identifier
	NoLocal           bool       `json:"noLocal,omitempty"`
	RetainAsPublished bool       `json:"retainAsPublished,omitempty"`
}

// log returns the one log that the filter can match: its first two levels are
// literal, or the ACL would have refused it. Admins' filters have none.
func (s *subscription) log() (ledger.LogID, bool) {
	return logOfFilter(s.Filter)
}

func logOfFilter(filter string) (ledger.LogID, bool) {
	l := strings.SplitN(filter, "/", 3)
	if len(l) < 3 || strings.ContainsAny(l[1], "+#") || l[1] == "" {
		return "", false
	}
	switch l[0] {
	case "pairs":
		return ledger.PairLog(l[1]), true
	case "users":
		return ledger.UserLog(l[1]), true
	}
	return "", false
}

// follow is how far a session has come in one log.
type follow struct {
	// cursor is the acknowledged prefix: everything at or below it is done
	// with. It is what the ledger keeps for a durable session.
	cursor ledger.Seq
	// pos is how far the pump has read; what lies between and matched is in
	// the session's inflight.
	pos ledger.Seq
	// resets counts how often pos was set back, for a read in progress.
	resets int
}

// inflight is a moment that was sent at QoS 1 and is not acknowledged. Its
// payload is not held: a redelivery reads it again.
type inflight struct {
	log  ledger.LogID // empty: no longer followed; only its PUBACK is awaited
	seq  ledger.Seq
	id   uint16 // packet id, the same on redelivery
	size int
	// serial names the connection that it was last sent on.
	serial uint64
}

// session is one MQTT session: what is subscribed, how far each log was
// delivered, and what waits for a PUBACK. Durable ones outlive connections and
// restarts; see store.go for what is kept on disk.
type session struct {
	// Immutable after creation.
	id     string // "<user>/<client id>"
	user   string
	name   string // the client id
	device string // empty for an app

	// saving makes the writes of the record one at a time, so that the last
	// state wins; it guards stored. Taken before mu, never inside it.
	saving sync.Mutex
	stored bool // a record is on disk

	mu    sync.Mutex // guards the fields below
	owner *client    // the connection that may use it; nil while offline
	// serial is that of the newest connection that has had it.
	serial uint64
	// placed holds the logs that had a place when this connection began:
	// backfill counts for the others, in a new session for all.
	placed  map[ledger.LogID]bool
	version byte
	expiry  time.Duration // 0: ends with its connection
	offline time.Time     // since when without a connection
	subs    []subscription
	follows map[ledger.LogID]*follow
	sent    []*inflight // in the order of sending
	bytes   int         // of sent
	nextID  uint16
	// unreleased holds the packet ids of QoS 2 publishes from MQTT 3.1.1 whose
	// PUBREL has not come; of those to durable topics the ledger knows repeats.
	unreleased map[uint16]bool
	// ended is not nil once the session has ended, and closed when its record
	// and cursors are off the disk.
	ended chan struct{}
}

// durable reports whether the session outlives its connection; mu is held.
func (s *session) durable() bool { return s.expiry > 0 }

// expired reports whether it has been offline for longer than its expiry; mu is
// held.
func (s *session) expired(now time.Time) bool {
	return s.owner == nil && !s.offline.Add(s.expiry).After(now)
}

// over reports whether the session has ended.
func (s *session) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended != nil
}

// want says whether and how an entry of log is for this session: the highest
// QoS of the filters that match, and their identifiers. mu is held.
func (s *session) want(log ledger.LogID, e *ledger.Entry, now time.Time) (qos byte, ids []int, ok bool) {
	if e.Damaged || expired(e, now) {
		return 0, nil, false
	}
	topic := e.Topic()
	for i := range s.subs {
		f := &s.subs[i]
		if l, has := f.log(); !has || l != log || e.Seq <= f.From {
			continue
		}
		if f.NoLocal && e.Origin == s.name && e.User == s.user {
			continue
		}
		if !moment.Match(f.Filter, topic) {
			continue
		}
		ok = true
		qos = max(qos, f.QoS)
		if f.ID > 0 {
			ids = append(ids, f.ID)
		}
	}
	slices.Sort(ids)
	return qos, slices.Compact(ids), ok
}

// expired reports whether Message Expiry has ended a moment (MQTT 5, section
// 3.3.2.3.3).
func expired(e *ledger.Entry, now time.Time) bool {
	return !e.ExpiresAt.IsZero() && !e.ExpiresAt.After(now)
}

// needsCursor reports whether a durable cursor is kept for log: only where a
// filter of QoS 1 can match it. mu is held.
func (s *session) needsCursor(log ledger.LogID) bool { return s.durable() && s.atLeastOnce(log) }

// atLeastOnce reports whether a filter of QoS 1 can match log; mu is held.
func (s *session) atLeastOnce(log ledger.LogID) bool {
	return slices.ContainsFunc(s.subs, func(f subscription) bool {
		l, ok := f.log()
		return ok && l == log && f.QoS > 0
	})
}

// logs returns every log that a filter can match; mu is held.
func (s *session) logs() []ledger.LogID {
	var out []ledger.LogID
	for i := range s.subs {
		if l, ok := s.subs[i].log(); ok && !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	return out
}

// packetID returns one that nothing in flight uses; mu is held. The window is
// far smaller than the 65,535 ids, so there always is one.
func (s *session) packetID() uint16 {
	for {
		s.nextID++
		if s.nextID == 0 {
			continue
		}
		if !slices.ContainsFunc(s.sent, func(f *inflight) bool { return f.id == s.nextID }) {
			return s.nextID
		}
	}
}

// maxUnreleased bounds the unreleased of a client that never sends a PUBREL.
const maxUnreleased = 1024

// received notes a QoS 2 publish; false for one that came before and was not
// released since (MQTT 3.1.1, section 4.3.3).
func (s *session) received(id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unreleased[id] {
		return false
	}
	if s.unreleased == nil {
		s.unreleased = map[uint16]bool{}
	}
	if len(s.unreleased) < maxUnreleased {
		s.unreleased[id] = true
	}
	return true
}

// released notes a PUBREL.
func (s *session) released(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unreleased, id)
}

// ack takes the PUBACK for packet id and returns the log whose cursor moved,
// and where to. mu is held.
func (s *session) ack(id uint16) (log ledger.LogID, to ledger.Seq, moved bool) {
	i := slices.IndexFunc(s.sent, func(f *inflight) bool { return f.id == id })
	if i < 0 {
		return "", 0, false // a late PUBACK of an earlier delivery: nothing to do
	}
	f := s.sent[i]
	s.sent = slices.Delete(s.sent, i, i+1)
	s.bytes -= f.size
	to, moved = s.settle(f.log)
	return f.log, to, moved
}

// settle moves log's cursor over the acknowledged prefix. mu is held.
func (s *session) settle(log ledger.LogID) (to ledger.Seq, moved bool) {
	fl := s.follows[log]
	if fl == nil {
		return 0, false
	}
	to = fl.pos
	for _, f := range s.sent {
		if f.log == log {
			to = min(to, f.seq-1)
		}
	}
	if to <= fl.cursor {
		return 0, false
	}
	fl.cursor = to
	return to, true
}

// backfill is where a SUBSCRIBE asks the filters of a new session to start: at
// the log's beginning, or so many entries back; the zero value is now.
type backfill struct {
	all bool
	n   int
}

// parseBackfill parses the SUBSCRIBE's user property of that name.
func parseBackfill(v string) (backfill, error) {
	if v == "" || v == "all" {
		return backfill{all: v != ""}, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return backfill{}, fmt.Errorf("user property backfill: %q is neither \"all\" nor a number of moments", v[:min(len(v), 32)])
	}
	return backfill{n: n}, nil
}

// put adds or replaces a filter; mu is held. It reports whether it was there.
func (s *session) put(f subscription) (existed bool) {
	i, found := slices.BinarySearchFunc(s.subs, f.Filter, func(a subscription, b string) int { return cmp.Compare(a.Filter, b) })
	if found {
		s.subs[i] = f
		return true
	}
	s.subs = slices.Insert(s.subs, i, f)
	return false
}

// matchLive reports whether a filter matches an ephemeral or retained topic,
// with the identifiers, and whether one asks for Retain As Published. A latest
// photo is for filters that name it: pairs/P/# would get each photo twice.
func (s *session) matchLive(topic string, latest, own bool) (ok bool, ids []int, rap bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ok, _, ids, rap = matchFilters(s.subs, topic, latest, own)
	return ok, ids, rap
}

// matchFilters is what all of subs that match a topic amount to: the highest
// QoS, the identifiers in order, and whether one asks for Retain As Published.
// No Local keeps a filter from what the session published itself.
func matchFilters(subs []subscription, topic string, latest, own bool) (ok bool, qos byte, ids []int, rap bool) {
	for i := range subs {
		f := &subs[i]
		if !f.matchesLive(topic, latest) || own && f.NoLocal {
			continue
		}
		ok = true
		qos = max(qos, f.QoS)
		rap = rap || f.RetainAsPublished
		if f.ID > 0 {
			ids = append(ids, f.ID)
		}
	}
	slices.Sort(ids)
	return ok, qos, slices.Compact(ids), rap
}

func (f *subscription) matchesLive(topic string, latest bool) bool {
	if latest {
		if l := strings.SplitN(f.Filter, "/", 4); len(l) < 4 || l[2] != "latest" {
			return false
		}
	}
	return moment.Match(f.Filter, topic)
}

// filters returns a copy of the subscriptions.
func (s *session) filters() []subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.subs)
}

// find returns the filter's subscription, or nil; mu is held.
func (s *session) find(filter string) *subscription {
	for i := range s.subs {
		if s.subs[i].Filter == filter {
			return &s.subs[i]
		}
	}
	return nil
}

// forget takes a log out of the session: its filters, its place and what is in
// flight from it. mu is held.
func (s *session) forget(log ledger.LogID) {
	s.subs = slices.DeleteFunc(s.subs, func(f subscription) bool {
		l, ok := f.log()
		return ok && l == log
	})
	s.unfollow(log)
}

// unfollow drops a log's place and what is in flight from it; mu is held. What
// was sent on the connection there is keeps its packet id and its place in the
// window until it is acknowledged or the connection ends: the client counts it
// (Receive Maximum; MQTT 5, section 4.9).
func (s *session) unfollow(log ledger.LogID) {
	delete(s.follows, log)
	s.sent = slices.DeleteFunc(s.sent, func(f *inflight) bool {
		if f.log != log {
			return false
		}
		if s.owner != nil && f.serial == s.owner.serial {
			f.log = ""
			return false
		}
		s.bytes -= f.size
		return true
	})
}
