package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
)

// node is one of the drivers in node/ and python/: it runs clients of that
// language and says what happens to them.
type node struct {
	proc *process

	mu      sync.Mutex // guards the fields below
	encoder *json.Encoder
	last    int
	answers map[int]chan nodeAnswer
	clients map[string]*record[event]
}

// event is something that a client reported.
type event struct {
	Of   string // the client
	Name string
	Args []json.RawMessage
}

func (e event) String() string { return fmt.Sprintf("%s %s", e.Name, e.Args) }

// nodeAnswer is the answer to a request.
type nodeAnswer struct {
	Result json.RawMessage `json:"result"`
	Error  *nodeError      `json:"error"`
}

// nodeError is an error of the client library. Code is the MQTT reason code,
// where it is one.
type nodeError struct {
	Message string          `json:"message"`
	Code    json.RawMessage `json:"code"`
}

func (e *nodeError) Error() string { return fmt.Sprintf("%s (code %s)", e.Message, e.Code) }

// newNode starts a driver in JavaScript.
func newNode(t testing.TB, script string) *node {
	t.Helper()
	return newDriver(t, script, "node", "node/"+script)
}

// newDriver starts a driver.
func newDriver(t testing.TB, name string, argv ...string) *node {
	t.Helper()
	n := &node{answers: map[int]chan nodeAnswer{}, clients: map[string]*record[event]{}}
	n.proc = start(t, name, nil, argv...)
	n.encoder = json.NewEncoder(n.proc.stdin)
	go n.read()
	return n
}

// read hands on what the driver says, until it has ended.
func (n *node) read() {
	for seen := 0; ; {
		lines, err := n.proc.out.until(context.Background(), func(l []string) bool { return len(l) > seen })
		if err != nil {
			n.end()
			return
		}
		for _, line := range lines[seen:] {
			n.take(line)
		}
		seen = len(lines)
	}
}

func (n *node) take(line string) {
	var m struct {
		N int `json:"n"`
		nodeAnswer
		Of    string            `json:"of"`
		Event string            `json:"event"`
		Args  []json.RawMessage `json:"args"`
	}
	if json.Unmarshal([]byte(line), &m) != nil {
		return // something for people, shown when the test fails
	}
	n.mu.Lock()
	client, answer := n.clients[m.Of], n.answers[m.N]
	delete(n.answers, m.N)
	n.mu.Unlock()
	switch {
	case client != nil:
		client.add(event{m.Of, m.Event, m.Args})
	case answer != nil:
		answer <- m.nodeAnswer
	}
}

// end ends every record and every wait.
func (n *node) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.clients {
		c.end()
	}
	for _, a := range n.answers {
		close(a)
	}
	clear(n.answers)
}

// client makes the record of a client that is about to be opened.
func (n *node) client(name string) *record[event] {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := newRecord[event]()
	n.clients[name] = r
	return r
}

// share has the client that is about to be opened report to another one's
// record: one process reports for both, so that their order is kept.
func (n *node) share(name string, r *record[event]) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.clients[name] = r
}

// do asks the driver for something and waits for its answer.
func (n *node) do(ctx context.Context, request map[string]any) (json.RawMessage, error) {
	answer := make(chan nodeAnswer, 1)
	n.mu.Lock()
	n.last++
	request["n"] = n.last
	n.answers[n.last] = answer
	err := n.encoder.Encode(request)
	n.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case a, ok := <-answer:
		switch {
		case !ok:
			return nil, errors.New("the driver has ended")
		case a.Error != nil:
			return nil, a.Error
		}
		return a.Result, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%v: %w", request["do"], ctx.Err())
	}
}

// must is do for a test's goroutine.
func (n *node) must(t testing.TB, request map[string]any) json.RawMessage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	result, err := n.do(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// named returns the first argument of all events with one name.
func named[T any](t testing.TB, events []event, name string) []T {
	t.Helper()
	var out []T
	for _, e := range events {
		if e.Name != name {
			continue
		}
		var v T
		if len(e.Args) > 0 {
			if err := json.Unmarshal(e.Args[0], &v); err != nil {
				t.Fatalf("%s: %v: %s", name, err, e.Args[0])
			}
		}
		out = append(out, v)
	}
	return out
}
