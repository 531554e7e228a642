package broker

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/moment"
)

// Topics outside pairs/ and users/ are for admins: plain MQTT with QoS 0 to 2,
// retained messages and shared subscriptions, all in memory.

// maxKeptBytes is what retained messages outside pairs/ may take; their number
// is limited by the configuration.
const maxKeptBytes = 64 << 20

// message is a publish on such a topic. It is immutable and shared by
// everybody who gets it.
type message struct {
	topic      string
	payload    []byte
	properties packets.Properties // those that travel with it
	qos        byte
	retain     bool
	origin     string    // the session that published it, for No Local
	expires    time.Time // zero: never
}

// messageOf takes a message from a PUBLISH, or from a CONNECT's will. Its
// strings lie in the packet's buffer, which the payload holds anyway.
func messageOf(topic string, payload []byte, p *packets.Properties, qos byte, retain bool, origin string) *message {
	m := &message{
		topic: topic, payload: payload, qos: qos, retain: retain, origin: origin,
		properties: packets.Properties{
			PayloadFormat: p.PayloadFormat, PayloadFormatFlag: p.PayloadFormatFlag,
			ContentType: p.ContentType, ResponseTopic: p.ResponseTopic, CorrelationData: p.CorrelationData, User: p.User,
		},
	}
	if e := p.MessageExpiryInterval; e > 0 {
		m.expires = time.Now().Add(time.Duration(e) * time.Second)
	}
	return m
}

// packet is the PUBLISH of m, without its payload.
func (m *message) packet(version byte, now time.Time) packets.Packet {
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Publish},
		ProtocolVersion: version,
		TopicName:       m.topic,
		Properties:      m.properties,
		Mods:            packets.Mods{AllowResponseInfo: true}, // mochi's name for encoding response topic and correlation data
	}
	if !m.expires.IsZero() { // [MQTT-3.3.2-6]
		pk.Properties.MessageExpiryInterval = uint32(max(1, m.expires.Sub(now)/time.Second))
	}
	return pk
}

func (m *message) expired(now time.Time) bool { return !m.expires.IsZero() && !m.expires.After(now) }

func (m *message) size() int { return len(m.topic) + len(m.payload) }

// publishGeneral takes a publish of an admin on a topic of their own.
func (b *Broker) publishGeneral(c *client, r *reply, pk packets.Packet) {
	m := messageOf(pk.TopicName, pk.Payload, &pk.Properties, pk.FixedHeader.Qos, pk.FixedHeader.Retain, c.cl.ID)
	if err := b.route(m); err != nil {
		c.refuse(r, refusal(packets.ErrQuotaExceeded, err))
		return
	}
	c.answer(r, packets.CodeSuccess, false, nil)
}

// route keeps m where it is retained and gives it to every session whose
// filters match.
func (b *Broker) route(m *message) error {
	b.routing.RLock()
	defer b.routing.RUnlock()
	if m.retain {
		if err := b.kept.set(m); err != nil {
			return err
		}
	}
	groups := map[string][]*adminSession{}
	for _, s := range b.allAdminSessions() {
		var plain []subscription
		for _, f := range s.filters() {
			if inner, shared := f.shared(); !shared {
				plain = append(plain, f)
			} else if moment.Match(inner, m.topic) {
				groups[f.Filter] = append(groups[f.Filter], s)
			}
		}
		b.offer(s, m, plain, false)
	}
	for filter, members := range groups {
		s := choose(members)
		for _, f := range s.filters() {
			if f.Filter == filter {
				f.Filter, _ = f.shared()
				b.offer(s, m, []subscription{f}, false)
			}
		}
	}
	return nil
}

// offer queues m for s where subs match it.
func (b *Broker) offer(s *adminSession, m *message, subs []subscription, retained bool) {
	if s.offer(m, subs, retained) {
		b.metrics.dropped.Inc()
	}
}

// choose returns the member of a shared subscription that gets the next
// message: a connected one where there is any.
func choose(members []*adminSession) *adminSession {
	var up []*adminSession
	for _, s := range members {
		s.mu.Lock()
		if s.owner != nil {
			up = append(up, s)
		}
		s.mu.Unlock()
	}
	if len(up) > 0 {
		members = up
	}
	return members[rand.IntN(len(members))]
}

func (b *Broker) allAdminSessions() []*adminSession {
	b.mu.RLock()
	defer b.mu.RUnlock()
	out := make([]*adminSession, 0, len(b.adminSessions))
	for _, s := range b.adminSessions {
		out = append(out, s)
	}
	return out
}

// sendKept queues the retained messages that a new filter matches (MQTT 5,
// section 3.3.1.3).
func (b *Broker) sendKept(s *adminSession, sub subscription) {
	for _, m := range b.kept.matching(sub.Filter, time.Now()) {
		b.offer(s, m, []subscription{sub}, true)
	}
}

// kept are the retained messages outside pairs/. It is safe for concurrent use.
type kept struct {
	most int // messages

	mu       sync.Mutex // guards the fields below
	messages map[string]*message
	bytes    int
}

// set replaces the retained message of m's topic; an empty payload removes it
// (MQTT 5, section 3.3.1.3).
func (k *kept) set(m *message) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.messages[m.topic]
	bytes := k.bytes + m.size()
	if old != nil {
		bytes -= old.size()
	}
	if len(m.payload) == 0 {
		k.remove(old)
		return nil
	}
	if bytes > maxKeptBytes || old == nil && len(k.messages) >= k.most {
		return errors.New("no room for another retained message")
	}
	k.messages[m.topic], k.bytes = m, bytes
	return nil
}

// remove takes a message out, which may be nil; mu is held.
func (k *kept) remove(m *message) {
	if m != nil {
		delete(k.messages, m.topic)
		k.bytes -= m.size()
	}
}

// matching returns the messages that filter matches, by topic.
func (k *kept) matching(filter string, now time.Time) []*message {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*message
	for topic, m := range k.messages {
		if !m.expired(now) && moment.Match(filter, topic) {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *message) int { return strings.Compare(a.topic, b.topic) })
	return out
}

// expire removes what has expired.
func (k *kept) expire(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.messages {
		if m.expired(now) {
			k.remove(m)
		}
	}
}
