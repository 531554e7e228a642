package e2e

import (
	"context"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"testing"

	"pairsync/internal/mqttlink"
)

// watcher sees everything that a pair's log holds: it is the one that tells
// whether something was stored that should not have been.
type watcher struct {
	pair couple
	link *mqttlink.Link
	seen *record[string] // topics, also of what is delivered again
}

// newLink runs an MQTT client of user's until the test ends.
func newLink(t testing.TB, s *server, user string, cfg mqttlink.Config) *mqttlink.Link {
	t.Helper()
	link, _ := runLink(t, s, user, s.token(t, user), cfg)
	up, done := context.WithTimeout(t.Context(), patience)
	defer done()
	if err := link.AwaitUp(up); err != nil {
		t.Fatalf("link of %s: %v", user, err)
	}
	return link
}

// runLink runs an MQTT client until it is stopped or the test ends, and does
// not wait for it to connect.
func runLink(t testing.TB, s *server, user, raw string, cfg mqttlink.Config) (link *mqttlink.Link, stop func()) {
	t.Helper()
	cfg.Token = func(context.Context) (string, error) { return raw, nil }
	cfg.Broker = &url.URL{Scheme: "mqtt", Host: s.mqtt}
	cfg.MaxBackoff = cfg.MinBackoff
	link, err := mqttlink.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := link.Run(ctx); err != nil {
			t.Errorf("link of %s: %v", user, err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return link, stop
}

// newWatcher watches the durable moments of c, all that there ever were.
func newWatcher(t testing.TB, s *server, c couple) *watcher {
	t.Helper()
	w := &watcher{pair: c, seen: newRecord[string]()}
	var subs []mqttlink.Subscription
	for _, kind := range []string{"photos", "notes", "reactions", "deletes"} {
		subs = append(subs, mqttlink.Subscription{Filter: "pairs/" + c.id + "/" + kind + "/#", QoS: 1, Backfill: "all"})
	}
	w.link = newLink(t, s, c.ben, mqttlink.Config{
		ClientID: newID("watcher"), CleanStart: true, SessionExpiry: 0, Subscriptions: subs,
		Receive: func(m *mqttlink.Message) {
			w.seen.add(m.Topic)
			if err := m.Ack(); err != nil {
				t.Logf("watcher: %v", err)
			}
		},
	})
	return w
}

// expect checks that the log holds exactly these topics, in any order, by
// publishing one more and waiting for it.
func (w *watcher) expect(t testing.TB, topics ...string) {
	t.Helper()
	fence := w.pair.photoTopic(w.pair.ben, newID("fence"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.link.Publish(ctx, mqttlink.Publish{Topic: fence, Payload: newPhoto(10), QoS: 1}); err != nil {
		t.Fatal(err)
	}
	got := slices.Clone(w.seen.await(t, "the last moment of the log", func(seen []string) bool { return slices.Contains(seen, fence) }))
	want := append(slices.Clone(topics), fence)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the pair's log holds\n%v\nwant\n%v", got, want)
	}
}
