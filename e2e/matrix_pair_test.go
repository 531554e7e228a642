package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// matrixPair is one of the pairs of the matrix: what was sent in it, and the
// sessions that follow it.
type matrixPair struct {
	couple
	followings []*following
	link       *mqttlink.Link // publishes for ann

	mu       sync.Mutex             // guards the fields below
	sent     map[string]*sentMoment // what was acknowledged or is being sent, by topic
	photos   []*sentMoment          // those that were acknowledged and not taken back
	repeated int                    // publishes of what was acknowledged before
}

// sentMoment is a moment as it was sent first.
type sentMoment struct {
	kind     moment.Kind
	user, id string
	stream   string // in one stream each publish waits for the last one's acknowledgement
	n        int    // grows within the stream
	sum      string
}

func (p *matrixPair) topic(s *sentMoment) string {
	m := moment.Moment{Pair: p.id, User: s.user, Kind: s.kind, ID: s.id}
	return m.Topic()
}

// publisher publishes at QoS 1 and returns when it is acknowledged.
type publisher func(ctx context.Context, topic string, payload []byte) error

// newPair makes a pair in which both users send and receive.
func (m *matrix) newPair(t *testing.T, rng *rand.Rand) *matrixPair {
	t.Helper()
	p := &matrixPair{couple: m.server.pair(t), sent: map[string]*sentMoment{}}
	ann, ben := m.server.token(t, p.ann), m.server.token(t, p.ben)
	for _, f := range []following{
		{name: "steady-311", user: p.ben, habit: steady, version: 4}, {name: "steady-link", user: p.ann, habit: steady},
		{name: "restless-link", user: p.ben, habit: restless}, {name: "restless-311", user: p.ann, habit: restless, version: 4},
		{name: "restless-5", user: p.ben, habit: restless, version: 5}, {name: "away-link", user: p.ann, habit: away},
		{name: "away-311", user: p.ben, habit: away, version: 4}, {name: "away-5", user: p.ann, habit: away, version: 5},
	} {
		f.pair, f.server, f.node, f.token = p, m.server, m.node, map[string]string{p.ann: ann, p.ben: ben}[f.user]
		f.subscribe(t)
		p.followings = append(p.followings, &f)
	}

	p.link, _ = runLink(t, m.server, p.ann, ann, mqttlink.Config{ClientID: "sender", SessionExpiry: time.Hour, MinBackoff: 50 * time.Millisecond})
	older := newJS(t, m.node, jsTransports["tcp"](m.server), 4, ann, durable(4, "sender-311"))
	newer := newJS(t, m.node, jsTransports["tcp"](m.server), 5, ben, durable(5, "sender-5"))
	m.send(t, p, p.ann, "link-a", p.byLink, rng)
	m.send(t, p, p.ann, "link-b", p.byLink, rng)
	m.send(t, p, p.ann, "311", older.atQoS1, rng)
	m.send(t, p, p.ben, "5", newer.atQoS1, rng)
	return p
}

func (p *matrixPair) byLink(ctx context.Context, topic string, payload []byte) error {
	return p.link.Publish(ctx, mqttlink.Publish{Topic: topic, Payload: payload, QoS: 1})
}

func (c *jsClient) atQoS1(ctx context.Context, topic string, payload []byte) error {
	return c.publish(ctx, topic, payload, map[string]any{"qos": 1})
}

// send sends one thing after the other until the traffic stops.
func (m *matrix) send(t *testing.T, p *matrixPair, user, stream string, by publisher, from *rand.Rand) {
	rng := rand.New(rand.NewPCG(from.Uint64(), 0))
	m.sending.Go(func() {
		for {
			pace := time.NewTimer(time.Duration(5+rng.IntN(40)) * time.Millisecond)
			select {
			case <-m.stop:
				pace.Stop()
				return
			case <-pace.C:
			}
			if err := p.sendAny(t.Context(), user, stream, by, rng); err != nil {
				t.Errorf("stream %s of %s: %v", stream, user, err)
				return
			}
		}
	})
}

// sendAny sends something of a kind that rng chooses.
func (p *matrixPair) sendAny(ctx context.Context, user, stream string, by publisher, rng *rand.Rand) error {
	s := &sentMoment{kind: moment.Photo, user: user, id: newID("m"), stream: stream}
	payload := func(v any) []byte {
		b, _ := json.Marshal(v) // structs of text: it cannot fail
		return b
	}
	about := p.anyPhoto(rng, func(o *sentMoment) bool { return o.user != user })
	own := p.anyPhoto(rng, func(o *sentMoment) bool { return o.user == user && o.stream == stream })
	switch n := rng.IntN(100); {
	case n < 8:
		return p.publish(ctx, s, by, newPhoto(200_000))
	case n < 16:
		s.kind = moment.Note
		return p.publish(ctx, s, by, []byte("note "+s.id))
	case n < 20 && about != nil:
		s.kind = moment.Reaction
		return p.publish(ctx, s, by, payload(moment.ReactionBody{Moment: about.id, Sender: about.user, Reaction: "❤"}))
	case n < 24 && about != nil:
		s.kind = moment.Receipt
		return p.publish(ctx, s, by, payload(moment.ReceiptBody{Moment: about.id, Sender: about.user, Status: moment.StatusShown, At: time.Now()}))
	case n < 28 && own != nil:
		p.mu.Lock()
		p.photos = slices.DeleteFunc(p.photos, func(o *sentMoment) bool { return o == own })
		p.mu.Unlock()
		s.kind, s.id = moment.Delete, own.id
		return p.publish(ctx, s, by, nil)
	case n < 31 && own != nil:
		p.mu.Lock()
		p.repeated++
		p.mu.Unlock()
		return p.confirmed(ctx, by, p.topic(own), newPhoto(100)) // the first bytes win
	}
	return p.publish(ctx, s, by, newPhoto(1000+rng.IntN(20_000)))
}

// publish notes a new moment and sends it.
func (p *matrixPair) publish(ctx context.Context, s *sentMoment, by publisher, payload []byte) error {
	s.sum = sum(payload)
	p.mu.Lock()
	s.n = len(p.sent) + 1
	p.sent[p.topic(s)] = s
	p.mu.Unlock()
	if err := p.confirmed(ctx, by, p.topic(s), payload); err != nil {
		return err
	}
	if s.kind == moment.Photo {
		p.mu.Lock()
		p.photos = append(p.photos, s)
		p.mu.Unlock()
	}
	return nil
}

func (p *matrixPair) confirmed(ctx context.Context, by publisher, topic string, payload []byte) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := by(ctx, topic, payload); err != nil {
		return fmt.Errorf("publish %s: %w", topic, err)
	}
	return nil
}

// anyPhoto returns one of the photos that are there, nil for none.
func (p *matrixPair) anyPhoto(rng *rand.Rand, ok func(*sentMoment) bool) *sentMoment {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range 10 {
		if len(p.photos) == 0 {
			break
		}
		if o := p.photos[rng.IntN(len(p.photos))]; ok(o) {
			return o
		}
	}
	return nil
}
