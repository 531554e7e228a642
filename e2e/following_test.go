package e2e

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// habit is how a client behaves while the server is being killed.
type habit int

const (
	steady   habit = iota // it comes back at once and stays
	restless              // it loses its connection, or its session to a second program
	away                  // it is off for whole rounds
)

// following is a durable session that follows everything of a pair, by
// whichever clients that come and go under its name.
type following struct {
	name, user, token string
	habit             habit
	version           int // of mqtt.js; 0 is mqttlink, MQTT 5
	pair              *matrixPair
	server            *server
	node              *node
	client            followingClient // the newest; nil while it is off

	events *record[event] // of all clients, in the order in which they saw it
	read   int            // how many of them arrivals has
	all    []taken
	conns  map[string]int // the number of each client's connection
	last   int
}

// taken is one delivery of a moment.
type taken struct {
	topic, sum string
	conn       int // the number of the connection, from 1
	dup        bool
}

// followingClient is a client of either kind.
type followingClient interface {
	drop(t testing.TB) // the connection is lost; it comes back
	end(t testing.TB)  // it leaves, and its session stays
}

// session is its name in the list of sessions.
func (f *following) session() string { return f.user + "/" + f.name }

func (f *following) filter() string { return "pairs/" + f.pair.id + "/#" }

// subscribe makes the session, and leaves its client on.
func (f *following) subscribe(t testing.TB) {
	t.Helper()
	f.events, f.conns = newRecord[event](), map[string]int{}
	f.on(t)
	if c, ok := f.client.(*jsClient); ok {
		c.await(t, "connect", 1)
		if granted, err := c.subscribe(t, f.filter()); granted != 1 || err != nil {
			t.Fatalf("%s subscribes: granted %d, %v", f.name, granted, err)
		}
		return
	}
	f.events.await(t, "the subscription of "+f.name, func(list []event) bool {
		return count(list, func(e event) bool { return e.Name == "up" }) > 0
	})
}

// toggle switches it on or off.
func (f *following) toggle(t testing.TB) {
	t.Helper()
	if f.client != nil {
		f.client.end(t)
		f.client = nil
		return
	}
	f.on(t)
}

// on connects one more client to the session.
func (f *following) on(t testing.TB) {
	t.Helper()
	if f.version > 0 {
		c := &jsClient{node: f.node, name: newID("js"), version: f.version, events: f.events}
		f.node.share(c.name, f.events)
		options := durable(f.version, f.name)
		maps.Copy(options, map[string]any{"digest": true})
		c.open(t, jsTransports["tcp"](f.server), f.token, options)
		f.client = c
		return
	}
	of := newID("link")
	report := func(name string, arg any) {
		raw, err := json.Marshal(arg)
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
		f.events.add(event{of, name, []json.RawMessage{raw}})
	}
	report("connect", nil)
	link, stop := runLink(t, f.server, f.user, f.token, mqttlink.Config{
		ClientID: f.name, SessionExpiry: time.Hour, MinBackoff: 50 * time.Millisecond,
		Subscriptions: []mqttlink.Subscription{{Filter: f.filter(), QoS: 1}},
		Receive: func(m *mqttlink.Message) {
			report("message", jsMessage{Topic: m.Topic, SHA256: sum(m.Payload), Dup: m.Duplicate, Retain: m.Retained})
			_ = m.Ack() // on a connection that is gone it comes again
		},
		Up:   func(bool) { report("up", nil) },
		Down: func(error) { report("connect", nil) }, // what follows is another connection's
	})
	f.client = linkClient{link, stop}
}

// linkClient is an mqttlink as a followingClient.
type linkClient struct {
	link *mqttlink.Link
	stop func()
}

func (c linkClient) drop(testing.TB) { c.link.Bounce() }
func (c linkClient) end(testing.TB)  { c.stop() }

func (c *jsClient) drop(t testing.TB) { c.do(t, "drop") }
func (c *jsClient) end(t testing.TB)  { c.do(t, "abandon") }

// arrived returns every moment that came, repeated ones included. It is for
// the test's goroutine.
func (f *following) arrived(t testing.TB) []taken {
	t.Helper()
	events := f.events.all()
	for _, e := range events[f.read:] {
		switch e.Name {
		case "connect":
			f.last++
			f.conns[e.Of] = f.last
		case "message":
			var m jsMessage
			if err := json.Unmarshal(e.Args[0], &m); err != nil {
				t.Fatal(err)
			}
			// The retained values of its own pair come too.
			own := strings.HasPrefix(m.Topic, "pairs/"+f.pair.id+"/")
			if topic, err := moment.ParseTopic(m.Topic); own && err == nil && !topic.Class.Durable() {
				continue
			}
			f.all = append(f.all, taken{m.Topic, m.SHA256, f.conns[e.Of], m.Dup})
		}
	}
	f.read = len(events)
	return f.all
}
