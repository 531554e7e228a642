package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// jsClient is a client of mqtt.js.
type jsClient struct {
	node    *node
	name    string
	version int // 4 is MQTT 3.1.1
	events  *record[event]
}

// jsTransports are the ways of mqtt.js to the server.
var jsTransports = map[string]func(*server) string{
	"tcp": func(s *server) string { return "mqtt://" + s.mqtt },
	"ws":  func(s *server) string { return "ws://" + s.http + "/mqtt" },
}

// jsMessage is a message as mqtt.js has it.
type jsMessage struct {
	Topic       string            `json:"topic"`
	Payload     []byte            `json:"payload"`
	SHA256      string            `json:"sha256"` // instead of the payload, where the option digest is set
	QoS         int               `json:"qos"`
	Retain      bool              `json:"retain"`
	Dup         bool              `json:"dup"`
	ContentType string            `json:"contentType"`
	Properties  map[string]string `json:"properties"`
}

// jsConnect is a CONNACK.
type jsConnect struct {
	Present    bool   `json:"present"`
	Assigned   string `json:"assigned"`
	MaximumQoS int    `json:"maximumQoS"`
}

// openJS opens a client and does not wait for it. more overrides options.
func openJS(t testing.TB, n *node, url string, version int, token string, more map[string]any) *jsClient {
	t.Helper()
	c := &jsClient{node: n, name: newID("js"), version: version}
	c.events = n.client(c.name)
	c.open(t, url, token, more)
	return c
}

func (c *jsClient) open(t testing.TB, url, token string, more map[string]any) {
	t.Helper()
	options := map[string]any{"protocolVersion": c.version, "username": "", "password": token}
	if token == "" {
		delete(options, "password")
	}
	maps.Copy(options, more)
	c.node.must(t, map[string]any{"do": "open", "of": c.name, "url": url, "options": options})
}

// newJS opens a client and waits until it is connected.
func newJS(t testing.TB, n *node, url string, version int, token string, more map[string]any) *jsClient {
	t.Helper()
	c := openJS(t, n, url, version, token, more)
	c.await(t, "connect", 1)
	return c
}

// durable are the options of a client that keeps its session.
func durable(version int, id string) map[string]any {
	o := map[string]any{"clientId": id, "clean": false}
	if version == 5 {
		o["properties"] = map[string]any{"sessionExpiryInterval": 3600}
	}
	return o
}

func (c *jsClient) await(t testing.TB, name string, n int) []event {
	t.Helper()
	return c.events.await(t, name+" at a client of mqtt.js", func(list []event) bool {
		return count(list, func(e event) bool { return e.Name == name }) >= n
	})
}

// messages waits for n messages and returns all that there are.
func (c *jsClient) messages(t testing.TB, n int) []jsMessage {
	t.Helper()
	return named[jsMessage](t, c.await(t, "message", n), "message")
}

// subscribe returns the granted QoS or reason code.
func (c *jsClient) subscribe(t testing.TB, filter string) (int, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	raw, err := c.node.do(ctx, map[string]any{"do": "subscribe", "of": c.name, "topic": filter, "options": map[string]any{"qos": 1}})
	if err != nil {
		return 0, err
	}
	var granted []int
	if err := json.Unmarshal(raw, &granted); err != nil || len(granted) != 1 {
		t.Fatalf("mqtt.js was granted %s: %v", raw, err)
	}
	return granted[0], nil
}

// publish returns when the server has acknowledged it.
func (c *jsClient) publish(ctx context.Context, topic string, payload []byte, options map[string]any) error {
	_, err := c.node.do(ctx, map[string]any{
		"do": "publish", "of": c.name, "topic": topic, "payload": base64.StdEncoding.EncodeToString(payload), "options": options,
	})
	return err
}

func (c *jsClient) mustPublish(t testing.TB, topic string, payload []byte, options map[string]any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.publish(ctx, topic, payload, options); err != nil {
		t.Fatalf("mqtt.js publishes %s: %v", topic, err)
	}
}

// do asks the driver to do something to this client.
func (c *jsClient) do(t testing.TB, what string) {
	t.Helper()
	c.node.must(t, map[string]any{"do": what, "of": c.name})
}

// errorCode returns the MQTT reason code of an error of mqtt.js, 0 where it
// has none.
func errorCode(err error) int {
	var e *nodeError
	var code int
	if errors.As(err, &e) {
		_ = json.Unmarshal(e.Code, &code) // errors of Node have words for codes
	}
	return code
}

// eachJS runs fn with every version of MQTT over every transport.
func eachJS(t *testing.T, fn func(t *testing.T, version int, url func(*server) string)) {
	for _, transport := range slices.Sorted(maps.Keys(jsTransports)) {
		for name, version := range map[string]int{"v5": 5, "v311": 4} {
			t.Run(name+" "+transport, func(t *testing.T) { fn(t, version, jsTransports[transport]) })
		}
	}
}

// TestMQTTJSQueue keeps a durable session of mqtt.js over a kill -9 of the
// server, with the properties of a moment.
func TestMQTTJSQueue(t *testing.T) {
	s, n := newServer(t), newNode(t, "mqttjs.mjs")
	eachJS(t, func(t *testing.T, version int, url func(*server) string) {
		c := s.pair(t)
		token := s.token(t, c.ben)
		filter := "pairs/" + c.id + "/photos/" + c.ann + "/+"
		widget := newJS(t, n, url(s), version, token, durable(version, "widget"))
		if granted, err := widget.subscribe(t, filter); granted != 1 || err != nil {
			t.Fatalf("subscribe: granted %d, %v", granted, err)
		}
		widget.do(t, "close")

		ann := newJS(t, n, url(s), version, s.token(t, c.ann), nil)
		options := map[string]any{"qos": 1}
		if version == 5 {
			options["properties"] = map[string]any{
				"contentType": "image/jpeg", "userProperties": map[string]any{"caption": captionMark, "taken-at": "2026-11-23T02:00:00Z"},
			}
		}
		var sent []posted
		for i := range 10 {
			if i == 5 {
				s.crash(t)
				ann.await(t, "connect", 2)
			}
			p := posted{c.photoTopic(c.ann, newID("m")), newPhoto(5000)}
			ann.mustPublish(t, p.topic, p.image, options)
			sent = append(sent, p)
		}
		widget = newJS(t, n, url(s), version, token, durable(version, "widget"))
		if first := named[jsConnect](t, widget.events.all(), "connect")[0]; !first.Present {
			t.Error("the session was not present")
		}
		got := widget.messages(t, len(sent))
		var plain []message
		for _, m := range got {
			plain = append(plain, message{m.Topic, m.Payload, "1", m.Retain})
			if version == 5 && (m.ContentType != "image/jpeg" || m.Properties["caption"] != captionMark || m.Properties["taken-at"] == "" || m.Properties["stored-at"] == "") {
				t.Errorf("%s has content type %q and properties %v", m.Topic, m.ContentType, m.Properties)
			}
		}
		checkQueue(t, plain, sent)
		widget.do(t, "close")
		ann.do(t, "close")
	})
}

// TestMQTTJSForeignPair tries to read and write a pair that is not one's own.
func TestMQTTJSForeignPair(t *testing.T) {
	s, n := newServer(t), newNode(t, "mqttjs.mjs")
	c, other := s.pair(t), s.pair(t)
	watch := newWatcher(t, s, c)
	var refusals []func()
	eachJS(t, func(sub *testing.T, version int, url func(*server) string) {
		eve := newJS(sub, n, url(s), version, s.token(t, other.ann), nil)
		want := "Not authorized"
		if version == 4 {
			want = "Unspecified error" // 0x80 has no meaning there but failure
		}
		if granted, err := eve.subscribe(sub, "pairs/"+c.id+"/photos/#"); err == nil || !strings.Contains(err.Error(), want) {
			sub.Errorf("subscribe: granted %d, %v, want %q", granted, err, want)
		}
		topic := c.photoTopic(c.ann, newID("m"))
		if version == 5 {
			ctx, cancel := context.WithTimeout(sub.Context(), patience)
			defer cancel()
			if err := eve.publish(ctx, topic, newPhoto(10), map[string]any{"qos": 1}); errorCode(err) != 0x87 {
				sub.Errorf("publish: %v, want code 0x87", err)
			}
			eve.do(sub, "close")
			return
		}
		refusals = append(refusals, startRefused(t, eve, topic, newPhoto(10)))
	})
	for _, awaitRefusal := range refusals {
		awaitRefusal()
	}
	watch.expect(t)
}

// startRefused publishes with 3.1.1, which knows no refusal but the end of the
// connection, and returns what waits for that.
func startRefused(t *testing.T, c *jsClient, topic string, payload []byte) (awaitRefusal func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	began := time.Now()
	go func() { answered <- c.publish(ctx, topic, payload, map[string]any{"qos": 1}) }()
	return func() {
		t.Helper()
		c.await(t, "close", 1)
		if took := time.Since(began); took < time.Second {
			t.Errorf("closed after %v: a client that tries again would do so without a pause", took)
		}
		cancel()
		if err := <-answered; !errors.Is(err, context.Canceled) {
			t.Errorf("publish to %s was answered with %v, want no answer", topic, err)
		}
		c.do(t, "abandon")
	}
}

// TestMQTTJSQoS2 publishes at QoS 2 with 3.1.1.
func TestMQTTJSQoS2(t *testing.T) {
	s, n := newServer(t), newNode(t, "mqttjs.mjs")
	c := s.pair(t)
	watch := newWatcher(t, s, c)
	ann := newJS(t, n, jsTransports["tcp"](s), 4, s.token(t, c.ann), nil)
	first, second := c.photoTopic(c.ann, newID("m")), c.photoTopic(c.ann, newID("m"))
	for _, topic := range []string{first, second, first} {
		ann.mustPublish(t, topic, newPhoto(100), map[string]any{"qos": 2})
	}
	watch.expect(t, first, second)

	newer := newJS(t, n, jsTransports["tcp"](s), 5, s.token(t, c.ann), nil)
	if connack := named[jsConnect](t, newer.events.all(), "connect")[0]; connack.MaximumQoS != 1 {
		t.Errorf("MQTT 5 clients are told a maximum QoS of %d, want 1", connack.MaximumQoS)
	}
}

// TestEmptyClientID lets the server name a client.
func TestEmptyClientID(t *testing.T) {
	s, n := newServer(t), newNode(t, "mqttjs.mjs")
	c := s.pair(t)
	token := s.token(t, c.ann)
	five := newJS(t, n, jsTransports["tcp"](s), 5, token, map[string]any{"clientId": ""})
	if assigned := named[jsConnect](t, five.events.all(), "connect")[0].Assigned; assigned == "" || strings.Contains(assigned, "/") {
		t.Errorf("assigned client id %q", assigned)
	}
	three := newJS(t, n, jsTransports["tcp"](s), 4, token, map[string]any{"clientId": "", "clean": true})
	topic := c.photoTopic(c.ann, newID("m"))
	watch := newWatcher(t, s, c)
	three.mustPublish(t, topic, newPhoto(10), map[string]any{"qos": 1})
	five.mustPublish(t, topic, newPhoto(10), map[string]any{"qos": 1})
	watch.expect(t, topic)
}

// TestRetained reads what a widget reads when it has just been switched on.
func TestRetained(t *testing.T) {
	s, n := newServer(t), newNode(t, "mqttjs.mjs")
	phones := newNode(t, "phone.mjs")
	for name, version := range map[string]int{"v5": 5, "v311": 4} {
		t.Run(name, func(t *testing.T) {
			c := s.pair(t)
			base := "pairs/" + c.id
			ann := newPhone(t, phones, s, c.ann, phoneOptions{})
			o := photoFor(c.ben, newPhoto(10<<10))
			ann.send(t, o)

			widget := newJS(t, n, jsTransports["tcp"](s), version, s.token(t, c.ben), nil)
			if granted, err := widget.subscribe(t, base+"/#"); granted > 1 || err != nil {
				t.Fatalf("subscribe: granted %d, %v", granted, err)
			}
			checkRetained(t, widget, c, o)
			checkLatest(t, widget, c, o)

			ann.do(t, "close")
			widget.events.await(t, "ann to be offline", func(list []event) bool {
				for _, m := range named[jsMessage](t, list, "message") {
					if m.Topic == base+"/presence/"+c.ann && !m.Retain && strings.Contains(string(m.Payload), `"online":false`) {
						return true
					}
				}
				return false
			})
		})
	}
}

// checkRetained checks what widget is told when it subscribes to the whole
// pair, after ann has sent o.
func checkRetained(t *testing.T, widget *jsClient, c couple, o sendPhoto) {
	t.Helper()
	base, byTopic := "pairs/"+c.id, map[string]jsMessage{}
	for _, m := range widget.messages(t, 4) {
		byTopic[m.Topic] = m
	}
	var info struct {
		Users []struct{ ID, Name string }
	}
	retained(t, byTopic, base+"/info", &info)
	if len(info.Users) != 2 || info.Users[0].ID != c.ann || info.Users[1].ID != c.ben {
		t.Errorf("info: %+v", info)
	}
	var newest struct {
		Sender, Moment, Type, URL string
		Bytes                     int
	}
	retained(t, byTopic, base+"/newest", &newest)
	if newest.Sender != c.ann || newest.Moment != o.PhotoID || newest.Type != "image/jpeg" || newest.Bytes != len(o.image(t)) || !strings.HasPrefix(newest.URL, "http://") {
		t.Errorf("newest: %+v", newest)
	}
	for user, online := range map[string]bool{c.ann: true, c.ben: false} {
		var p struct{ Online bool }
		retained(t, byTopic, base+"/presence/"+user, &p)
		if p.Online != online {
			t.Errorf("presence of %s: online %v, want %v", user, p.Online, online)
		}
	}
	for topic := range byTopic {
		if strings.HasPrefix(topic, base+"/latest/") {
			t.Errorf("%s came to a subscriber of %s/#", topic, base)
		}
	}
}

// checkLatest asks for the newest picture by name: no other filter brings it.
func checkLatest(t *testing.T, widget *jsClient, c couple, o sendPhoto) {
	t.Helper()
	latest := "pairs/" + c.id + "/latest/" + c.ann
	if _, err := widget.subscribe(t, latest); err != nil {
		t.Fatal(err)
	}
	widget.events.await(t, "the latest photo", func(list []event) bool {
		for _, m := range named[jsMessage](t, list, "message") {
			if m.Topic == latest {
				return m.Retain && string(m.Payload) == string(o.image(t)) && (widget.version == 4 || m.Properties["moment"] == o.PhotoID)
			}
		}
		return false
	})
}

func retained(t *testing.T, byTopic map[string]jsMessage, topic string, v any) {
	t.Helper()
	m, ok := byTopic[topic]
	if !ok {
		t.Fatalf("no %s among %v", topic, slices.Sorted(maps.Keys(byTopic)))
	}
	if !m.Retain {
		t.Errorf("%s is not retained", topic)
	}
	if err := json.Unmarshal(m.Payload, v); err != nil {
		t.Errorf("%s: %v: %s", topic, err, m.Payload)
	}
}
