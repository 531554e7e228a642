package mqttlink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"pairsync/internal/moment"
)

func TestPublishReachesSubscriber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := world(t)
		var got seen
		rx := newLink(t, got.config(Config{Dial: n.dial, ClientID: "rx", SessionExpiry: time.Hour,
			Subscriptions: []Subscription{{Filter: "a/#", QoS: 1}}}))
		tx := newLink(t, Config{Dial: n.dial, ClientID: "tx"})
		awaitUp(t, rx)
		awaitUp(t, tx)

		payload := make([]byte, 200_000)
		for i := range payload {
			payload[i] = byte(i * i)
		}
		props := []moment.Property{{Key: "caption", Value: "hé"}, {Key: "caption", Value: "again"}}
		if err := tx.Publish(t.Context(), Publish{Topic: "a/b", Payload: payload, ContentType: "image/jpeg", Properties: props, QoS: 1}); err != nil {
			t.Fatal(err)
		}
		if err := tx.Publish(t.Context(), Publish{Topic: "a/c", QoS: 0}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ups, downs, messages := got.get()
		want := []*Message{
			{Topic: "a/b", Payload: payload, ContentType: "image/jpeg", Properties: props, QoS: 1},
			{Topic: "a/c", Payload: []byte{}},
		}
		if diff := cmp.Diff(want, messages, cmpopts.IgnoreUnexported(Message{})); diff != "" {
			t.Errorf("messages (-want +got):\n%s", diff)
		}
		if len(ups) != 1 || ups[0] || len(downs) != 0 {
			t.Errorf("ups %v, downs %v; want one new session", ups, downs)
		}
		if moved := tx.Moved(); moved < 200_000 || moved > 201_000 {
			t.Errorf("Moved() = %d", moved)
		}
	})
}

func TestRetainedComesAtSubscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := world(t)
		var got seen
		l := newLink(t, got.config(Config{Dial: n.dial, ClientID: "x"}))
		awaitUp(t, l)
		if err := l.Publish(t.Context(), Publish{Topic: "s", Payload: []byte("v"), QoS: 1, Retain: true}); err != nil {
			t.Fatal(err)
		}
		if err := l.Subscribe(t.Context(), Subscription{Filter: "s"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, _, messages := got.get()
		if len(messages) != 1 || !messages[0].Retained {
			t.Fatalf("got %+v, want one retained message", messages)
		}
	})
}

// A session outlives its connections: subscriptions, what is on its way to us,
// and what we have in flight.
func TestSessionSurvivesCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, broker := world(t)
		var got seen
		c := got.config(Config{Dial: n.dial, ClientID: "rx", SessionExpiry: time.Hour,
			Subscriptions: []Subscription{{Filter: "a", QoS: 1}}})
		receive := c.Receive
		c.Receive = func(m *Message) { receive(m); m.Ack() }
		rx := newLink(t, c)
		awaitUp(t, rx)
		tx := newLink(t, Config{Dial: n.dial, ClientID: "tx", SessionExpiry: time.Hour})
		awaitUp(t, tx)
		for i := range 20 {
			n.cut()
			if i%2 == 0 {
				time.Sleep(time.Second)
			}
			if err := tx.Publish(t.Context(), Publish{Topic: "a", Payload: []byte(fmt.Sprint(i)), QoS: 1}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		count := map[string]int{}
		for _, p := range got.payloads() {
			count[p]++
		}
		for i := range 20 {
			if count[fmt.Sprint(i)] == 0 {
				t.Errorf("message %d did not arrive", i)
			}
		}
		ups, _, _ := got.get()
		if len(ups) < 10 || !ups[len(ups)-1] {
			t.Errorf("ups %v: want many, the last with its session", ups)
		}
		if cl, ok := broker.Clients.Get("rx"); !ok || cl.Closed() {
			t.Error("rx is not connected at the end")
		}
	})
}

func TestAcksGoOutInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, broker := world(t)
		var got seen
		rx := newLink(t, got.config(Config{Dial: n.dial, ClientID: "rx", SessionExpiry: time.Hour,
			Subscriptions: []Subscription{{Filter: "a", QoS: 1}}}))
		awaitUp(t, rx)
		for i := range 3 {
			broker.Publish("a", []byte(fmt.Sprint(i)), false, 1)
		}
		synctest.Wait()
		cl, _ := broker.Clients.Get("rx")
		_, _, m := got.get()
		steps := []struct {
			ack  int
			left int
		}{{1, 3}, {1, 3}, {0, 1}, {2, 0}, {0, 0}}
		for _, s := range steps {
			if err := m[s.ack].Ack(); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if left := cl.State.Inflight.Len(); left != s.left {
				t.Errorf("after Ack of %d the broker holds %d, want %d", s.ack, left, s.left)
			}
		}
		rx.Bounce()
		synctest.Wait()
		if err := m[0].Ack(); !errors.Is(err, ErrStale) {
			t.Errorf("Ack on a gone connection: %v, want ErrStale", err)
		}
	})
}

func TestBounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := world(t)
		var got seen
		l := newLink(t, got.config(Config{Dial: n.dial, ClientID: "x", SessionExpiry: time.Hour}))
		awaitUp(t, l)
		start := time.Now()
		l.Bounce()
		synctest.Wait()
		awaitUp(t, l)
		if waited := time.Since(start); waited != 0 {
			t.Errorf("Bounce took %v to reconnect, want none", waited)
		}
		if ups, downs, _ := got.get(); len(ups) != 2 || len(downs) != 1 {
			t.Errorf("ups %v, downs %v", ups, downs)
		}

		n.ln.Close() // every dial fails from here on
		l.Bounce()
		time.Sleep(time.Minute)
		_, before, _ := got.get()
		l.Bounce() // and this one cuts the wait short
		synctest.Wait()
		if _, after, _ := got.get(); len(after) < len(before)+1 {
			t.Error("Bounce did not end the back-off")
		}
	})
}

func TestTokenIsAskedAtEveryConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, broker := world(t)
		asked := 0
		l := newLink(t, Config{Dial: n.dial, ClientID: "x", Username: "anna",
			Token: func(context.Context) (string, error) {
				if asked++; asked == 2 {
					return "", errors.New("no token now")
				}
				return fmt.Sprint("token ", asked), nil
			}})
		awaitUp(t, l)
		l.Bounce()
		time.Sleep(5 * time.Second)
		awaitUp(t, l)
		if asked != 3 {
			t.Errorf("token asked %d times, want 3", asked)
		}
		cl, _ := broker.Clients.Get("x")
		if got := string(cl.Properties.Username); got != "anna" {
			t.Errorf("username %q", got)
		}
	})
}

func TestRunEndsWithDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, broker := world(t)
		l, err := New(Config{Dial: n.dial, ClientID: "x", SessionExpiry: time.Hour}, quiet())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		awaitUp(t, l)
		cl, _ := broker.Clients.Get("x")
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		synctest.Wait()
		if cause := cl.StopCause(); cause == nil || !errors.Is(cause, mochiDisconnect) {
			t.Errorf("the broker saw %v, want an orderly DISCONNECT", cause)
		}
		if err := l.Publish(t.Context(), Publish{Topic: "a", QoS: 1}); !errors.Is(err, ErrClosed) {
			t.Errorf("Publish after Run: %v, want ErrClosed", err)
		}
		if err := l.AwaitUp(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("AwaitUp after Run: %v, want ErrClosed", err)
		}
		if err := l.Run(t.Context()); err == nil {
			t.Error("a second Run succeeded")
		}
	})
}

func TestIdleLinkPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := world(t)
		var got seen
		l := newLink(t, got.config(Config{Dial: n.dial, ClientID: "x", SessionExpiry: time.Hour}))
		awaitUp(t, l)
		time.Sleep(time.Hour)
		ups, downs, _ := got.get()
		if len(ups) != 1 || len(downs) != 0 {
			t.Errorf("an idle hour: ups %v, downs %v; want one connection", ups, downs)
		}
		if moved := l.Moved(); moved < 60*4 || moved > 60*4+200 {
			t.Errorf("an idle hour moved %d bytes, want a ping and its answer a minute", moved)
		}
	})
}

func TestOverTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	newBroker(t, ln, new(rules))
	var got seen
	arrived := make(chan struct{}, 8)
	c := got.config(Config{Broker: &url.URL{Scheme: "mqtt", Host: ln.Addr().String()}, ClientID: "x",
		Subscriptions: []Subscription{{Filter: "a", QoS: 1}}})
	receive := c.Receive
	c.Receive = func(m *Message) { receive(m); m.Ack(); arrived <- struct{}{} }
	l := newLink(t, c)
	awaitUp(t, l)
	payload := make([]byte, 3<<20)
	for range 3 {
		if err := l.Publish(t.Context(), Publish{Topic: "a", Payload: payload, QoS: 1}); err != nil {
			t.Fatal(err)
		}
		<-arrived
	}
	if moved := l.Moved(); moved < 6*3<<20 {
		t.Errorf("Moved() = %d after three photos in both directions", moved)
	}
}
