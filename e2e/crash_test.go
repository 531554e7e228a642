package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pairsync/internal/mqttlink"
)

// rounds is how often the crash tests kill a program.
func rounds(t testing.TB) int {
	t.Helper()
	text := os.Getenv("PAIRSYNC_E2E_ROUNDS")
	if text == "" {
		return 5
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("PAIRSYNC_E2E_ROUNDS is %q, not a number", text)
	}
	return n
}

// seeded returns the source of a test's random choices, and says how to make
// them again.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("PAIRSYNC_E2E_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("PAIRSYNC_E2E_SEED is %q, not a number", text)
		}
	}
	t.Logf("PAIRSYNC_E2E_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// pass lets time go by, so that something happens before the next blow.
func pass(t testing.TB, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

// TestServerCrash kills the server again and again while three publishers send
// and five kinds of subscriber receive. In the end every acknowledged photo
// has arrived everywhere, in one order, and once to the eye.
func TestServerCrash(t *testing.T) {
	rng := seeded(t)
	w := newTraffic(t)
	for range rounds(t) {
		pass(t, time.Duration(100+rng.IntN(1900))*time.Millisecond)
		w.server.crash(t)
	}
	w.finish(t)
}

// TestServerStop is TestServerCrash with SIGTERM: the same promise, and the
// server ends well each time.
func TestServerStop(t *testing.T) {
	rng := seeded(t)
	w := newTraffic(t)
	for range max(1, rounds(t)/3) {
		pass(t, time.Duration(100+rng.IntN(1900))*time.Millisecond)
		w.server.restart(t)
		for _, arrived := range w.arrivals {
			arrived(t)
		}
	}
	w.finish(t)
}

// traffic is a pair at work: photos of ann's from several publishers, and
// everything of ben's that receives them.
type traffic struct {
	server *server
	pair   couple
	frame  *frame

	stop     chan struct{}
	sending  sync.WaitGroup
	mu       sync.Mutex        // guards the fields below
	sent     map[string]string // sha256 by id, of all that was tried
	acked    []string          // ids
	arrivals map[string]func(t testing.TB) []arrival
}

// arrival is one delivery of a photo, repeated ones included.
type arrival struct{ id, sha string }

func newTraffic(t *testing.T) *traffic {
	t.Helper()
	s, n := newServer(t), newNode(t, "phone.mjs")
	w := &traffic{
		server: s, pair: s.pair(t), stop: make(chan struct{}),
		sent: map[string]string{}, arrivals: map[string]func(testing.TB) []arrival{},
	}
	w.frame = newFrame(t, s, w.pair.ben)
	w.frame.connect(t)
	w.receiveByMosquitto(t, v5)
	w.receiveByMosquitto(t, v311)
	w.receiveByLink(t)
	w.receiveByPhone(t, n)

	w.sendByLink(t, "link-a")
	w.sendByLink(t, "link-b")
	w.sendByPhone(t, n)
	return w
}

func (w *traffic) receiveByMosquitto(t *testing.T, version string) {
	t.Helper()
	filter := "pairs/" + w.pair.id + "/photos/" + w.pair.ann + "/+"
	ben := newMosquitto(t, version, w.server, w.pair.ben)
	ben.queue(t, version, filter)
	var procs []*process
	w.arrivals["mosquitto_sub "+version] = func(t testing.TB) (out []arrival) {
		// It comes back by itself after a crash, but leaves when a server that
		// stops says so (MQTT 5, DISCONNECT).
		if len(procs) == 0 || procs[len(procs)-1].ended() {
			procs = append(procs, ben.sub(t, filter, "-i", version, "-c", "-q", "1"))
		}
		for _, p := range procs {
			for _, m := range messages(t, p.out.all()) {
				out = append(out, arrival{path.Base(m.topic), sum(m.payload)})
			}
		}
		return out
	}
	w.arrivals["mosquitto_sub "+version](t)
}

func (w *traffic) receiveByLink(t *testing.T) {
	t.Helper()
	seen := newRecord[arrival]()
	newLink(t, w.server, w.pair.ben, mqttlink.Config{
		ClientID: "link", SessionExpiry: time.Hour, MinBackoff: 50 * time.Millisecond,
		Subscriptions: []mqttlink.Subscription{{Filter: "pairs/" + w.pair.id + "/photos/" + w.pair.ann + "/+", QoS: 1}},
		Receive: func(m *mqttlink.Message) {
			seen.add(arrival{path.Base(m.Topic), sum(m.Payload)})
			_ = m.Ack() // on a connection that is gone it comes again
		},
	})
	w.arrivals["mqttlink"] = func(testing.TB) []arrival { return seen.all() }
}

func (w *traffic) receiveByPhone(t *testing.T, n *node) {
	t.Helper()
	ben := newPhone(t, n, w.server, w.pair.ben, phoneOptions{})
	w.arrivals["phone"] = func(t testing.TB) []arrival {
		var out []arrival
		for _, p := range named[receivedPhoto](t, ben.events.all(), "receive_photo") {
			if p.MessageID != p.PhotoID || p.SenderID != w.pair.ann {
				t.Errorf("the phone got photo %s as message %s from %s", p.PhotoID, p.MessageID, p.SenderID)
			}
			out = append(out, arrival{p.PhotoID, sum(p.image(t))})
		}
		return out
	}
}

// sendLoop sends photo after photo until the traffic stops. try returns when
// the photo is acknowledged, or an error that ends the test.
func (w *traffic) sendLoop(t *testing.T, name string, try func(id string, image []byte) error) {
	w.sending.Go(func() {
		pace := time.NewTicker(15 * time.Millisecond)
		defer pace.Stop()
		for i := 0; ; i++ {
			select {
			case <-w.stop:
				return
			case <-pace.C:
			}
			id, image := fmt.Sprintf("%s-%06d", name, i), newPhoto(1000+rand.IntN(20_000))
			w.mu.Lock()
			w.sent[id] = sum(image)
			w.mu.Unlock()
			if err := try(id, image); err != nil {
				t.Errorf("%s sends %s: %v", name, id, err)
				return
			}
			w.mu.Lock()
			w.acked = append(w.acked, id)
			w.mu.Unlock()
		}
	})
}

func (w *traffic) sendByLink(t *testing.T, name string) {
	t.Helper()
	link := newLink(t, w.server, w.pair.ann, mqttlink.Config{ClientID: name, SessionExpiry: time.Hour, MinBackoff: 50 * time.Millisecond})
	w.sendLoop(t, name, func(id string, image []byte) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return link.Publish(ctx, mqttlink.Publish{Topic: w.pair.photoTopic(w.pair.ann, id), Payload: image, ContentType: "image/jpeg", QoS: 1})
	})
}

// sendByPhone sends as the app does: again under the same id until there is an
// answer.
func (w *traffic) sendByPhone(t *testing.T, n *node) {
	t.Helper()
	ann := newPhone(t, n, w.server, w.pair.ann, phoneOptions{})
	w.sendLoop(t, "phone", func(id string, image []byte) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for {
			o := sendPhoto{
				PhotoID: id, PhotoData: base64.StdEncoding.EncodeToString(image), PartnerID: w.pair.ben,
				Caption: captionMark, Timestamp: time.Now().UnixMilli(), MessageID: newID("msg"),
			}
			a, err := ann.trySend(ctx, 2*time.Second, o)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err == nil && a.Success:
				return nil
			case err == nil && !a.Retryable:
				return fmt.Errorf("refused: %s (%s)", a.Error, a.Code)
			}
		}
	})
}

// finish stops the publishers and judges what has arrived.
func (w *traffic) finish(t *testing.T) {
	t.Helper()
	close(w.stop)
	w.sending.Wait()
	w.arrivals["frame"] = func(t testing.TB) []arrival {
		var out []arrival
		for _, p := range slices.Backward(w.frame.list(t)) {
			out = append(out, arrival{p.Moment, p.SHA256})
		}
		return out
	}
	t.Logf("%d photos acknowledged", len(w.acked))
	if len(w.acked) != len(w.sent) {
		t.Fatalf("%d of %d photos were acknowledged", len(w.acked), len(w.sent))
	}
	// What somebody saw first is what everybody must see: the ledger's order.
	var order []string
	for name, arrived := range w.arrivals {
		first := w.await(t, name, arrived)
		if order == nil {
			order = first
		}
		if !slices.Equal(first, order) {
			t.Errorf("%s has another order than the others: %s", name, difference(first, order))
		}
	}
	last := map[string]string{}
	for _, id := range order {
		publisher := id[:strings.LastIndexByte(id, '-')]
		if id <= last[publisher] {
			t.Errorf("%s arrived after %s", id, last[publisher])
		}
		last[publisher] = id
	}
	if list := w.frame.list(t); len(list) != len(order) {
		t.Errorf("the frame lists %d photos, want each of %d once", len(list), len(order))
	}
}

// await waits until everything has arrived at one subscriber, and returns the
// ids in the order in which they were seen first.
func (w *traffic) await(t *testing.T, name string, arrived func(testing.TB) []arrival) (order []string) {
	t.Helper()
	seen := map[string]bool{}
	missing := func() int {
		order = order[:0]
		clear(seen)
		for _, a := range arrived(t) {
			if want, ok := w.sent[a.id]; !ok || a.sha != want {
				t.Errorf("%s got %s with bytes that nobody sent", name, a.id)
			}
			if !seen[a.id] {
				seen[a.id] = true
				order = append(order, a.id)
			}
		}
		return len(w.sent) - len(seen)
	}
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	late := time.NewTimer(patience)
	defer late.Stop()
	for missing() > 0 {
		select {
		case <-again.C:
		case <-late.C:
			t.Fatalf("%s lacks %d of %d acknowledged photos", name, missing(), len(w.sent))
		}
	}
	return slices.Clone(order)
}

// difference shows where two orders part.
func difference(got, want []string) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("from place %d of %d on: %v, want %v", i, len(want), got[i:min(i+5, len(got))], want[i:min(i+5, len(want))])
		}
	}
	return fmt.Sprintf("%d photos, want %d", len(got), len(want))
}
