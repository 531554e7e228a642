package broker

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/registry"
)

// The retained values of a pair are not held in memory: each is computed when
// somebody subscribes or comes back, and told to those who are connected when
// it changes.

// sendRetained queues the retained values that filters match. It runs on the
// reader's goroutine, after SUBACK or, for a session that resumes, CONNACK.
func (c *client) sendRetained(filters []subscription) {
	pair, ok := c.b.deps.Registry.Pair(c.can.Load().pair)
	if !ok || len(filters) == 0 {
		return
	}
	for _, v := range c.b.retainedOf(pair) {
		var ids []int
		match := false
		for i := range filters {
			if f := &filters[i]; f.matchesLive(v.topic, v.latest) {
				match = true
				if f.ID > 0 {
					ids = append(ids, f.ID)
				}
			}
		}
		if !match {
			continue
		}
		slices.Sort(ids)
		c.enqueue(outgoing{topic: v.topic, retained: true, ids: slices.Compact(ids), load: v.load, photo: v.photo})
	}
}

// value is one retained topic of a pair and how its payload is made; load
// fails with a not-found error where there is none.
type value struct {
	topic  string
	latest bool
	photo  bool // load reads one
	load   func(context.Context) (outgoing, error)
}

func (b *Broker) retainedOf(p registry.Pair) []value {
	out := []value{
		{topic: moment.InfoTopic(p.ID), load: func(context.Context) (outgoing, error) { return jsonOut(b.pairInfo(p)) }},
		{topic: moment.NewestTopic(p.ID), photo: true, load: func(ctx context.Context) (outgoing, error) { return b.newestOf(ctx, p) }},
	}
	for _, user := range p.Users {
		out = append(out,
			value{topic: moment.PresenceTopic(p.ID, user), load: func(context.Context) (outgoing, error) {
				return jsonOut(b.presence(user))
			}},
			value{topic: moment.LatestTopic(p.ID, user), latest: true, photo: true, load: b.latestOf(p.ID, user)})
	}
	for _, d := range b.deps.Registry.DevicesOf(p.Users[:]...) {
		if d.Revoked {
			continue
		}
		out = append(out, value{topic: moment.StateTopic(p.ID, d.ID), load: func(ctx context.Context) (outgoing, error) {
			payload, err := b.deps.KV.Get(ctx, stateKey(p.ID, d.ID))
			return outgoing{payload: payload, contentType: "application/json"}, err
		}})
	}
	return out
}

func jsonOut(v any) (outgoing, error) {
	data, err := json.Marshal(v)
	return outgoing{payload: data, contentType: "application/json"}, err
}

// latestOf reads a user's newest photo when it is about to be written.
func (b *Broker) latestOf(pair, user string) func(context.Context) (outgoing, error) {
	return func(ctx context.Context) (outgoing, error) {
		e, err := b.latestPhoto(ctx, pair, user)
		return outgoing{
			payload: e.Payload, contentType: e.ContentType, expires: e.ExpiresAt,
			props: append(userProperties(&e.Moment), packets.UserProperty{Key: moment.PropMoment, Val: e.ID}),
		}, err
	}
}

// latestPhoto returns a user's newest photo, or ErrNotFound where it cannot be
// read or has expired.
func (b *Broker) latestPhoto(ctx context.Context, pair, user string) (ledger.Entry, error) {
	e, err := b.deps.Ledger.Latest(ctx, ledger.PairLog(pair), user)
	if err == nil && (e.Damaged || expired(&e, time.Now())) {
		err = ledger.ErrNotFound
	}
	return e, err
}

func (b *Broker) pairInfo(p registry.Pair) moment.PairInfo {
	info := moment.PairInfo{Created: p.Created}
	for _, u := range p.Users {
		info.Users = append(info.Users, moment.PairUser{ID: u, Name: b.deps.Registry.Name(u)})
	}
	return info
}

// newestOf reads the pair's newest photo from the ledger.
func (b *Broker) newestOf(ctx context.Context, p registry.Pair) (outgoing, error) {
	var newest *ledger.Entry
	for _, user := range p.Users {
		e, err := b.latestPhoto(ctx, p.ID, user)
		if errors.Is(err, ledger.ErrNotFound) {
			continue
		}
		if err != nil {
			return outgoing{}, err
		}
		if newest == nil || e.Seq > newest.Seq {
			newest = &e
		}
	}
	if newest == nil {
		return outgoing{}, ledger.ErrNotFound
	}
	o, err := jsonOut(b.newest(&newest.Moment, newest.StoredAt))
	o.expires = newest.ExpiresAt
	return o, err
}

func (b *Broker) newest(m *moment.Moment, at time.Time) moment.Newest {
	n := moment.Newest{Sender: m.User, Moment: m.ID, Type: m.ContentType, Bytes: len(m.Payload), At: at.UTC()}
	if b.cfg.PublicURL != "" {
		n.URL = strings.TrimSuffix(b.cfg.PublicURL, "/") + "/moments/" + m.User + "/" + m.ID
	}
	return n
}

// tellNewest tells the connected about a photo that was just stored. It must
// not block: it runs on the ledger's goroutine.
func (b *Broker) tellNewest(m *moment.Moment) {
	if o, err := jsonOut(b.newest(m, time.Now())); err == nil {
		o.topic, o.asPublished, o.expires = moment.NewestTopic(m.Pair), true, m.ExpiresAt
		b.fanOut(m.Pair, o, nil)
	}
	o := outgoing{topic: moment.LatestTopic(m.Pair, m.User), asPublished: true, photo: true, load: b.latestOf(m.Pair, m.User)}
	if p, ok := b.deps.Registry.Pair(m.Pair); ok {
		for _, c := range b.audience(p.Users[:]...) {
			c.push(o, true, nil)
		}
	}
}

// fanOut queues o for every connected client of the pair whose filters match.
// Nobody outside the pair is even asked, but for admins.
func (b *Broker) fanOut(pair string, o outgoing, origin *client) {
	p, ok := b.deps.Registry.Pair(pair)
	if !ok {
		return
	}
	for _, c := range b.audience(p.Users[:]...) {
		c.push(o, false, origin)
	}
}

func stateKey(pair, device string) string { return keyState + pair + "/" + device }

// keepState stores a device's state as the retained value of its topic; an
// empty payload clears it (MQTT 5, section 3.3.1.3).
func (b *Broker) keepState(c *client, t moment.Topic, payload []byte) error {
	op := kv.Op{Key: stateKey(t.Pair, t.Device), Value: payload, Delete: len(payload) == 0}
	return b.deps.KV.Apply(c.ctx, op)
}

// presence is computed from the connections there are, so that after a kill -9
// nobody is online who is not.
func (b *Broker) presence(userID string) moment.Presence {
	b.mu.RLock()
	defer b.mu.RUnlock()
	p := moment.Presence{Clients: []string{}, Since: b.started}
	u := b.users[userID]
	if u == nil {
		return p
	}
	p.Online = u.online
	if !u.since.IsZero() {
		p.Since = u.since
	}
	for c := range u.clients {
		if c.sess == nil || c.schedules() {
			continue
		}
		name := c.sess.name
		if d, ok := b.deps.Registry.Device(c.who().Device); ok {
			name = d.Name
		}
		p.Clients = append(p.Clients, name)
	}
	slices.Sort(p.Clients)
	return p
}

// presenceChanged recomputes whether a user is online, after a connection of
// theirs began or ended, and tells the pair.
func (b *Broker) presenceChanged(userID string) {
	b.mu.Lock()
	if u := b.users[userID]; u != nil {
		online := false
		for c := range u.clients {
			online = online || c.app()
		}
		if online != u.online || u.since.IsZero() {
			u.online, u.since = online, time.Now().UTC()
		}
	}
	b.mu.Unlock()
	pair, ok := b.deps.Registry.PairOf(userID)
	if !ok {
		return
	}
	// Computed when it is written: of two changes at a time the last word is
	// true whichever is told last.
	b.fanOut(pair.ID, outgoing{
		topic: moment.PresenceTopic(pair.ID, userID), asPublished: true,
		load: func(context.Context) (outgoing, error) { return jsonOut(b.presence(userID)) },
	}, nil)
}
