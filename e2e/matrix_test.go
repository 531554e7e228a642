package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// TestCrashMatrix kills the server at every stage of its life while three pairs
// send everything that a pair can send, in both versions of MQTT, to durable
// sessions in both that stay, lose their connections, are taken over, or are
// away for whole rounds. In the end what was acknowledged is compared with what
// has arrived at each session.
func TestCrashMatrix(t *testing.T) {
	rng := seeded(t)
	m := newMatrix(t, rng)
	for range rounds(t) {
		for _, f := range m.followings() {
			if f.habit == away && rng.IntN(2) == 0 {
				f.toggle(t)
			}
		}
		pass(t, time.Duration(rng.IntN(1500))*time.Millisecond)
		m.blow(t, rng)
	}
	m.quiet(t)
	m.judge(t)
	m.checkSessions(t, nil)
	m.checkAway(t)
	m.count(t)
	for _, what := range slices.Sorted(maps.Keys(m.done)) {
		t.Logf("%7d %s", m.done[what], what)
	}
}

// matrix is the world of TestCrashMatrix.
type matrix struct {
	server *server
	node   *node
	pairs  []*matrixPair
	done   map[string]int // what was done and seen, for the log

	stop    chan struct{}
	sending sync.WaitGroup
	hurting sync.WaitGroup
}

func newMatrix(t *testing.T, rng *rand.Rand) *matrix {
	t.Helper()
	m := &matrix{server: newServer(t, "PAIRSYNC_LOG_LEVEL=info"), node: newNode(t, "mqttjs.mjs"), done: map[string]int{}, stop: make(chan struct{})}
	for range 3 {
		m.pairs = append(m.pairs, m.newPair(t, rng))
	}
	for _, f := range m.followings() {
		if f.habit == restless {
			m.hurtAtRandom(t, f, rand.New(rand.NewPCG(rng.Uint64(), 0)))
		}
	}
	return m
}

func (m *matrix) followings() (all []*following) {
	for _, p := range m.pairs {
		all = append(all, p.followings...)
	}
	return all
}

// hurtAtRandom has a client lose its connection, or its session to a second
// program, until the traffic stops.
func (m *matrix) hurtAtRandom(t *testing.T, f *following, rng *rand.Rand) {
	m.hurting.Go(func() {
		for {
			timer := time.NewTimer(time.Duration(100+rng.IntN(900)) * time.Millisecond)
			select {
			case <-m.stop:
				timer.Stop()
				return
			case <-timer.C:
			}
			if rng.IntN(4) > 0 {
				f.client.drop(t)
				continue
			}
			old := f.client
			f.on(t)
			old.end(t)
		}
	})
}

// blow ends the server's life in one of the ways in which it can end, and
// starts it again.
func (m *matrix) blow(t *testing.T, rng *rand.Rand) {
	t.Helper()
	switch way := rng.IntN(6); way {
	case 0:
		m.done["SIGTERM"]++
		m.server.stop(t)
	case 1:
		m.done["kill -9 while it stops"]++
		m.server.proc.signal(t, syscall.SIGTERM)
		pass(t, time.Duration(rng.IntN(150))*time.Millisecond)
		m.server.proc.kill(t)
	default:
		m.done["kill -9 under load"]++
		m.server.proc.kill(t)
		for range way - 3 { // none, none, one or two
			m.done["kill -9 while it starts"]++
			m.server.launch()
			pass(t, time.Duration(rng.IntN(400))*time.Millisecond)
			m.server.proc.kill(t)
		}
	}
	m.server.start(t)
}

// quiet ends the traffic and lets everything arrive.
func (m *matrix) quiet(t *testing.T) {
	t.Helper()
	close(m.stop)
	m.sending.Wait()
	m.hurting.Wait()
	for _, f := range m.followings() {
		if f.client == nil {
			f.toggle(t)
		}
	}
	for _, p := range m.pairs {
		for _, f := range p.followings {
			eventually(t, f.name+" to have all that was acknowledged", func() bool { return len(p.missing(f.arrived(t))) == 0 })
		}
	}
}

// judge holds what has arrived against what was acknowledged.
func (m *matrix) judge(t *testing.T) {
	t.Helper()
	for _, p := range m.pairs {
		var first []string // what one session got, in its order
		for _, f := range p.followings {
			all := f.arrived(t)
			order := p.judge(t, f.name, all)
			if first == nil {
				first = order
			}
			mine, others := common(order, first), common(first, order)
			if !slices.Equal(mine, others) {
				t.Errorf("%s has another order than %s: %s", f.name, p.followings[0].name, difference(mine, others))
				t.Logf("%s got around there:\n%s", f.name, around(all, mine, others))
			}
		}
	}
}

// count notes what there was, for the log.
func (m *matrix) count(t *testing.T) {
	t.Helper()
	for _, p := range m.pairs {
		m.done["publishes of what was there, with other bytes"] += p.repeated
		for _, s := range p.sent {
			m.done[string(s.kind)+" acknowledged"]++
		}
		for _, f := range p.followings {
			first := map[string]bool{}
			for _, a := range f.arrived(t) {
				switch {
				case !first[a.topic]:
					m.done["moments arrived"]++
				case a.dup:
					m.done["arrived again, as duplicates"]++
				default: // the server that sent it first is dead
					m.done["arrived again, not known to be duplicates"]++
				}
				first[a.topic] = true
			}
			m.done["connections of subscribers"] += f.last
		}
	}
}

// around shows what one session got where its order parts from another's.
func around(all []taken, got, want []string) string {
	i := 0
	for i < min(len(got), len(want))-1 && got[i] == want[i] {
		i++
	}
	at := slices.IndexFunc(all, func(a taken) bool { return a.topic == got[i] })
	var b strings.Builder
	for _, a := range all[max(0, at-10):min(len(all), at+25)] {
		fmt.Fprintf(&b, "connection %d, duplicate %t: %s\n", a.conn, a.dup, a.topic)
	}
	return b.String()
}

// common returns those of list that are in other too.
func common(list, other []string) []string {
	in := map[string]bool{}
	for _, v := range other {
		in[v] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(v string) bool { return !in[v] })
}

// judge checks what one session got, in all, and returns the topics in the
// order in which they were seen first.
func (p *matrixPair) judge(t *testing.T, name string, all []taken) (order []string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	seen, last := map[string]int{}, map[string]int{} // by topic, the last connection; by stream
	for _, a := range all {
		s := p.sent[a.topic]
		conn, again := seen[a.topic]
		switch {
		case s == nil:
			t.Errorf("%s got %s, which nobody of its pair sent", name, a.topic)
			continue
		case s.sum != a.sum:
			t.Errorf("%s got %s with other bytes than were sent first", name, a.topic)
		case again && conn == a.conn:
			t.Errorf("%s got %s twice on one connection", name, a.topic)
		case !again && s.kind == moment.Photo && seen[p.deleteTopic(s)] > 0:
			t.Errorf("%s got %s after it was taken back", name, a.topic)
		case !again && s.n <= last[s.stream]:
			t.Errorf("%s got number %d of %s after number %d", name, s.n, s.stream, last[s.stream])
		}
		if !again {
			order = append(order, a.topic)
			last[s.stream] = s.n
		}
		seen[a.topic] = a.conn
	}
	return order
}

// missing are the topics that must have arrived and have not. What was taken
// back need not.
func (p *matrixPair) missing(all []taken) (out []string) {
	got := map[string]bool{}
	for _, a := range all {
		got[a.topic] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for topic, s := range p.sent {
		if !got[topic] && p.sent[p.deleteTopic(s)] == nil {
			out = append(out, topic)
		}
	}
	return out
}

func (p *matrixPair) deleteTopic(s *sentMoment) string {
	m := moment.Moment{Pair: p.id, User: s.user, Kind: moment.Delete, ID: s.id}
	return m.Topic()
}

// checkSessions waits until the server says of every session of the matrix that
// it is connected and has nothing left, and of those that are off that they
// have what is in backlog (in moments and bytes, by session).
func (m *matrix) checkSessions(t *testing.T, backlog map[string][2]int) {
	t.Helper()
	var wrong []string
	defer func() {
		for _, line := range wrong {
			t.Log(line)
		}
	}()
	eventually(t, "the list of sessions to be right", func() bool {
		wrong = nil
		list := m.server.sessions(t)
		for _, f := range m.followings() {
			s, ok := list[f.session()]
			want := backlog[f.session()]
			if !ok || s.Connected != (f.client != nil) || s.Backlog != want[0] || s.BacklogBytes != int64(want[1]) || (s.Oldest != nil) != (want[0] > 0) {
				wrong = append(wrong, fmt.Sprintf("%s: %+v, want connected %t and a backlog of %v", f.session(), s, f.client != nil, want))
			}
		}
		m.done["looks at the sessions"]++
		return len(wrong) == 0
	})
}

// checkAway kills the server once more, while somebody's phone and all that
// follows another pair for ben are away: nobody is online who is not, and ben's
// sessions say what waits for them.
func (m *matrix) checkAway(t *testing.T) {
	t.Helper()
	p, s := m.pairs[0], m.server
	c, phones, watch := s.pair(t), newNode(t, "phone.mjs"), newRecord[event]()
	newPhone(t, phones, s, c.ann, phoneOptions{})
	ben := newPhone(t, phones, s, c.ben, phoneOptions{})
	newLink(t, s, c.ann, mqttlink.Config{
		ClientID: "watch", MinBackoff: 50 * time.Millisecond,
		Down:          func(error) { watch.add(event{Name: "down"}) },
		Subscriptions: []mqttlink.Subscription{{Filter: moment.PresenceTopic(c.id, "+"), QoS: 1}},
		Receive:       func(msg *mqttlink.Message) { watch.add(event{Name: msg.Topic, Args: []json.RawMessage{msg.Payload}}) },
	})
	awaitOnline(t, watch, c, 0, true)

	backlog, before := map[string][2]int{}, map[string]int{}
	for _, f := range p.followings {
		before[f.name] = len(f.arrived(t))
		if f.user == p.ben {
			f.toggle(t)
		}
	}
	bytes := 0
	const waiting = 5
	for range waiting {
		image := newPhoto(1000)
		if err := p.publish(t.Context(), &sentMoment{kind: moment.Photo, user: p.ann, id: newID("m"), stream: "late"}, p.byLink, image); err != nil {
			t.Fatal(err)
		}
		bytes += len(image)
	}
	for _, f := range p.followings {
		if f.user == p.ben {
			backlog[f.session()] = [2]int{waiting, bytes}
		}
	}
	from := len(watch.all())
	s.proc.kill(t)
	ben.do(t, "close")
	s.start(t)
	awaitOnline(t, watch, c, from, false)
	m.checkSessions(t, backlog)

	for _, f := range p.followings {
		if f.client == nil {
			f.toggle(t)
		}
	}
	for _, f := range p.followings {
		eventually(t, f.name+" to have what it missed", func() bool { return len(p.missing(f.arrived(t))) == 0 })
		if f.user == p.ben {
			if got := len(f.arrived(t)) - before[f.name]; got != waiting {
				t.Errorf("%s got %d moments when it came back, want the %d that waited", f.name, got, waiting)
			}
		}
	}
	m.judge(t)
	m.checkSessions(t, nil)
}

// awaitOnline waits until ann is said to be online, and ben as told. Where he is
// away, only what came from the next server counts, and must never name him.
func awaitOnline(t *testing.T, watch *record[event], c couple, from int, ben bool) {
	t.Helper()
	watch.await(t, "the presence of ann and ben", func(list []event) bool {
		list = list[from:]
		if !ben {
			down := slices.IndexFunc(list, func(e event) bool { return e.Name == "down" })
			if down < 0 {
				return false
			}
			list = list[down:]
		}
		now := map[string]moment.Presence{}
		for _, e := range list {
			var v moment.Presence
			if e.Name == "down" {
				continue
			}
			if err := json.Unmarshal(e.Args[0], &v); err != nil {
				t.Errorf("%s: %v", e, err)
			}
			now[path.Base(e.Name)] = v
			if path.Base(e.Name) == c.ben && !ben && (v.Online || len(v.Clients) > 0) {
				t.Errorf("ben is away, and said to be there: %+v", v)
			}
		}
		_, known := now[c.ben]
		return known && now[c.ann].Online && now[c.ben].Online == ben
	})
}
