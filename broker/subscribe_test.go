package broker

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/kv"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// clientOf returns the connection of a session.
func (w *world) clientOf(id string) *client {
	w.t.Helper()
	w.broker.mu.RLock()
	defer w.broker.mu.RUnlock()
	c := w.broker.clients[id]
	if c == nil {
		w.t.Fatalf("no connection of %q", id)
	}
	return c
}

// TestBackfillOfNonsense is refused, and says what would do.
func TestBackfillOfNonsense(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.wire("ben", "phone", nil)
		for _, v := range []string{"-3", "al", "1e3", "5 ", "99999999999999999999999999999999999999"} {
			c.send(packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 3,
				Filters:    packets.Subscriptions{{Filter: "pairs/" + w.pair.ID + "/#", Qos: 1}, {Filter: "users/ben/#", Qos: 1}},
				Properties: packets.Properties{User: []packets.UserProperty{{Key: "backfill", Val: v}}},
			})
			got := c.only(packets.Suback, time.Second)
			if len(got) != 1 || !bytes.Equal(got[0].ReasonCodes, []byte{0x83, 0x83}) || !strings.Contains(got[0].Properties.ReasonString, `"all"`) {
				t.Errorf("backfill %q: got %+v, want 0x83 for both and why", v, got)
			}
		}
		c.subscribe(packets.Subscription{Filter: "pairs/" + w.pair.ID + "/photos/#", Qos: 1})
		got := c.only(packets.Suback, time.Second)
		if len(got) != 1 || !bytes.Equal(got[0].ReasonCodes, []byte{1}) || got[0].Properties.ReasonString != "" {
			t.Errorf("a good one: got %+v", got)
		}
		if n := len(w.clientOf("ben/phone").sess.filters()); n != 1 {
			t.Errorf("%d filters are kept, want the good one", n)
		}
	})
}

// TestTooManyFilters: the 65th is refused, those before stay.
func TestTooManyFilters(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for code, change := range map[byte]func(*packets.Packet){0x97: nil, 0x80: v3(false)} {
			c := w.wire("ben", "phone", change)
			var subs []packets.Subscription
			for i := range 65 {
				subs = append(subs, packets.Subscription{Filter: fmt.Sprintf("pairs/%s/live/ann/%d", w.pair.ID, i)})
			}
			c.subscribe(subs...)
			got := c.only(packets.Suback, time.Second)
			if want := append(make([]byte, 64), code); len(got) != 1 || !bytes.Equal(got[0].ReasonCodes, want) {
				t.Fatalf("got %+v, want 64 times 0 and 0x%02X", got, code)
			}
			if v5 := change == nil; v5 != strings.Contains(got[0].Properties.ReasonString, "64 filters") {
				t.Errorf("reason %q", got[0].Properties.ReasonString)
			}
			ann := w.connect("ann", nil)
			for _, i := range []string{"0", "64"} {
				if err := ann.Publish(t.Context(), mqttlink.Publish{Topic: moment.LiveTopic(w.pair.ID, "ann", i), Payload: []byte("x")}); err != nil {
					t.Fatal(err)
				}
			}
			if got := c.only(packets.Publish, time.Second); len(got) != 1 {
				t.Errorf("got %v, want that of the first filter", w.tails(got))
			}
			ann.end()
			c.Close()
			settle(time.Second)
		}
	})
}

// TestUnsubscribe: delivery stops, the cursor is released so that trims go on,
// and what is in flight counts against the window until it is acknowledged
// (MQTT 5, section 4.9), but does not come again.
func TestUnsubscribe(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.stop()
		w.cfg.KeepLast = 0
		w.start()
		ann := w.connect("ann", nil)
		defer ann.end()
		ben := w.asApp("ben", nil)
		defer ben.end()
		small := func(pk *packets.Packet) { pk.Properties.ReceiveMaximum = 3 }
		c := w.wire("ben", "phone", small)
		filter := w.photosOf("ann")[0].Filter
		c.subscribe(packets.Subscription{Filter: filter, Qos: 1})
		c.await(time.Second)
		ann.sendN(t, 0, 5)
		sent := c.await(time.Second)
		if len(sent) != 3 {
			t.Fatalf("got %v, want the window of 3", brief(sent))
		}
		settle(4 * trimEvery) // nothing but the phone keeps them from being trimmed
		if _, err := w.ledger.Cursor(t.Context(), "ben/phone", ledger.PairLog(w.pair.ID)); err != nil {
			t.Errorf("before: %v", err)
		}
		c.send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: 8,
			Filters: packets.Subscriptions{{Filter: filter}, {Filter: filter + "/none"}},
		})
		if got := c.only(packets.Unsuback, time.Second); len(got) != 1 || !bytes.Equal(got[0].ReasonCodes, []byte{0, 0x11}) {
			t.Errorf("got %+v, want an UNSUBACK with 0 and 0x11", got)
		}
		if at, err := w.ledger.Cursor(t.Context(), "ben/phone", ledger.PairLog(w.pair.ID)); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("its cursor: %d, %v; want none", at, err)
		}
		settle(10 * time.Second)
		if st, err := w.ledger.Stat(t.Context(), ledger.PairLog(w.pair.ID)); err != nil || st.Entries != 1 {
			t.Errorf("%d photos are left (%v), want the newest", st.Entries, err)
		}
		c.subscribe(packets.Subscription{Filter: filter, Qos: 1})
		c.await(time.Second)
		ann.sendN(t, 5, 9)
		if got := c.await(time.Second); len(got) > 0 {
			t.Errorf("got %v over the Receive Maximum", brief(got))
		}
		for _, pk := range sent {
			c.answer(packets.Puback, pk.PacketID)
		}
		got := c.await(time.Second)
		if diff := cmp.Diff([]string{"p005 qos1 id4", "p006 qos1 id5", "p007 qos1 id6"}, brief(got)); diff != "" {
			t.Errorf("subscribed again (-want +got):\n%s", diff)
		}
		c.send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: 8, Filters: packets.Subscriptions{{Filter: filter}},
		})
		settle(time.Second)
		c.Close()
		settle(time.Second)
		c = w.wire("ben", "phone", small)
		c.subscribe(packets.Subscription{Filter: filter, Qos: 1})
		if got := c.only(packets.Publish, time.Second); len(got) > 0 {
			t.Errorf("after a reconnect: got %v", brief(got))
		}
		ann.sendN(t, 9, 20)
		if got := c.await(time.Second); len(got) != 3 {
			t.Errorf("after a reconnect: got %v, want a whole window", brief(got))
		}
	})
}

// TestUnsubscribeOneOfTwo: the other filter of the log goes on, and what only
// the one had asked for does not come again.
func TestUnsubscribeOneOfTwo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		filter := w.photosOf("ann")[0].Filter
		c := w.wire("ben", "phone", nil)
		c.subscribe(packets.Subscription{Filter: filter, Qos: 1}, packets.Subscription{Filter: "pairs/" + w.pair.ID + "/notes/#", Qos: 1})
		c.await(time.Second)
		ann.sendN(t, 0, 1)
		if err := ann.send(moment.Note, "n1", "x"); err != nil {
			t.Fatal(err)
		}
		c.send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: 8, Filters: packets.Subscriptions{{Filter: filter}},
		})
		settle(time.Second)
		c.Close()
		ann.sendN(t, 1, 2)
		settle(time.Second)
		c = w.wire("ben", "phone", nil)
		if diff := cmp.Diff([]string{"n/n1 qos1 id2 dup"}, brief(c.only(packets.Publish, time.Second))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		c.answer(packets.Puback, 2)
		settle(time.Second)
		st, err := w.ledger.Stat(t.Context(), ledger.PairLog(w.pair.ID))
		if err != nil {
			t.Fatal(err)
		}
		if at, err := w.ledger.Cursor(t.Context(), "ben/phone", ledger.PairLog(w.pair.ID)); err != nil || at != st.Head {
			t.Errorf("cursor at %d (%v), want the head %d", at, err, st.Head)
		}
	})
}

// TestLateHooks: a SUBSCRIBE or UNSUBSCRIBE that a connection was in the middle
// of when it was taken over changes neither the session's filters nor its
// places, nor those of the session that followed.
func TestLateHooks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		phone := func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") }
		for _, clean := range []bool{false, true} {
			old := w.connect("ben", func(c *mqttlink.Config) { phone(c); c.MinBackoff, c.MaxBackoff = time.Hour, time.Hour })
			late := w.clientOf("ben/ben-phone")
			ann.sendN(t, 0, 2)
			settle(time.Second)
			next := w.connect("ben", func(c *mqttlink.Config) { phone(c); c.CleanStart = clean })
			settle(time.Second)
			place := func() ledger.Seq {
				at, err := w.ledger.Cursor(t.Context(), "ben/ben-phone", ledger.PairLog(w.pair.ID))
				if err != nil {
					t.Fatalf("clean start %v: %v", clean, err)
				}
				return at
			}
			before := place()
			w.broker.unsubscribed(late, packets.Packet{PacketID: 1, Filters: packets.Subscriptions{{Filter: w.photosOf("ann")[0].Filter}}})
			if at := place(); at != before {
				t.Errorf("clean start %v: after the late UNSUBSCRIBE at %d, want %d", clean, at, before)
			}
			codes := []byte{1}
			w.broker.subscribed(late, packets.Packet{
				Filters:    packets.Subscriptions{{Filter: "pairs/" + w.pair.ID + "/notes/#", Qos: 1}},
				Properties: packets.Properties{User: []packets.UserProperty{{Key: "backfill", Val: "all"}}},
			}, codes)
			if at := place(); at != before || codes[0] < 0x80 {
				t.Errorf("clean start %v: after the late SUBSCRIBE at %d, want %d; answered 0x%02X", clean, at, before, codes[0])
			}
			// One that was through with the filter when the session ended:
			if err := w.broker.setPlaces(t.Context(), late.sess, map[ledger.LogID]ledger.Seq{ledger.PairLog(w.pair.ID): 0}); err != nil {
				t.Fatal(err)
			}
			if at := place(); clean && at != before {
				t.Errorf("an ended session's place was written: %d", at)
			}
			if got := w.clientOf("ben/ben-phone").sess.filters(); len(got) != 1 {
				t.Errorf("clean start %v: filters %v, want the one", clean, got)
			}
			next.end()
			old.end()
		}
		ann.end()
	})
}

// TestLatePuback: what a connection acknowledges after a clean start has ended
// its session does not move the new one's place.
func TestLatePuback(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		phone := func(c *mqttlink.Config) {
			c.Subscriptions = w.photosOf("ann")
			c.Subscriptions[0].Backfill = "all"
			c.MinBackoff, c.MaxBackoff = time.Hour, time.Hour
		}
		w.hold = true
		old := w.connect("ben", phone)
		defer old.end()
		late := w.clientOf("ben/ben-phone")
		ann.sendN(t, 0, 2)
		settle(time.Second)
		next := w.connect("ben", func(c *mqttlink.Config) { phone(c); c.CleanStart = true })
		defer next.end()
		settle(time.Second)
		w.broker.acked(late, 1)
		if at, err := w.ledger.Cursor(t.Context(), "ben/ben-phone", ledger.PairLog(w.pair.ID)); err != nil || at != 0 {
			t.Errorf("the new session's place is %d (%v), want the log's start", at, err)
		}
	})
}

// TestSubscribeFailsWhilePairIsMade: what cannot be stored is taken back, and
// nothing else: the new pair's filters stay.
func TestSubscribeFailsWhilePairIsMade(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		app := w.asApp("cat", nil)
		defer app.end()
		s := w.clientOf("cat/app").sess
		failed := false
		w.apply(func(ops []kv.Op) error {
			if ops[0].Key != "session/cat/app" || failed {
				return nil
			}
			failed = true
			pair, err := w.reg.CreatePair(t.Context(), "cat", "dan")
			if err != nil {
				return err
			}
			w.pair = pair
			for len(s.filters()) < 2 { // until Run has put its filters in
				runtime.Gosched()
			}
			return ledger.ErrFull
		})
		err := app.Subscribe(t.Context(), mqttlink.Subscription{Filter: "users/cat/#", QoS: 1})
		var re *mqttlink.ReasonError
		if !errors.As(err, &re) || re.Code != 0x83 {
			t.Fatalf("subscribe: %v, want 0x83", err)
		}
		if err := w.broker.AwaitChanges(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := s.filters()
		if len(got) != 6 || slices.ContainsFunc(got, func(f subscription) bool { return f.Filter == "users/cat/#" }) {
			t.Errorf("filters %+v, want the six of the pair", got)
		}
	})
}

// TestSubscribeThatFailsChangesNothing: the filter stays what it was.
func TestSubscribeThatFailsChangesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.wire("ben", "phone", nil)
		filter := w.photosOf("ann")[0].Filter
		c.subscribe(packets.Subscription{Filter: filter, Qos: 1, Identifier: 5})
		c.await(time.Second)
		w.apply(func(ops []kv.Op) error {
			if ops[0].Key == "session/ben/phone" {
				return ledger.ErrFull
			}
			return nil
		})
		c.subscribe(packets.Subscription{Filter: filter, Qos: 0, Identifier: 6})
		got := c.only(packets.Suback, time.Second)
		if len(got) != 1 || got[0].ReasonCodes[0] != 0x83 || !strings.Contains(got[0].Properties.ReasonString, "full") {
			t.Errorf("got %+v, want 0x83 storage full", got)
		}
		w.apply(nil)
		ann := w.connect("ann", nil)
		defer ann.end()
		ann.sendN(t, 0, 1)
		pub := c.only(packets.Publish, time.Second)
		if len(pub) != 1 || pub[0].FixedHeader.Qos != 1 || !slices.Equal(pub[0].Properties.SubscriptionIdentifier, []int{5}) {
			t.Errorf("got %v, want it at QoS 1 with identifier 5", brief(pub))
		}
	})
}

// TestAppSubscribesWhilePairIsMade: an app that is faster than the pair's own
// set-up gets everything from the log's start all the same.
func TestAppSubscribesWhilePairIsMade(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		dan := w.asApp("dan", nil)
		defer dan.end()
		w.slow("session/cat/app", 5*time.Second) // made before dan's
		pair, err := w.reg.CreatePair(t.Context(), "cat", "dan")
		if err != nil {
			t.Fatal(err)
		}
		w.pair = pair
		cat := w.connect("cat", nil)
		defer cat.end()
		if err := cat.send(moment.Note, "n1", "hello"); err != nil {
			t.Fatal(err)
		}
		cat.sendN(t, 0, 1)
		if err := dan.Subscribe(t.Context(), mqttlink.Subscription{Filter: moment.KindFilter(pair.ID, moment.Photo, "cat"), QoS: 1, Backfill: "all"}); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		var got []string
		for _, topic := range dan.topics() {
			if topic != "users/dan/events" {
				got = append(got, strings.TrimPrefix(topic, "pairs/"+pair.ID+"/"))
			}
		}
		if diff := cmp.Diff([]string{"photos/cat/p000", "notes/cat/n1"}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestAppSessionEndsWhilePairIsMade: the pair gets a new one.
func TestAppSessionEndsWhilePairIsMade(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		app := w.asApp("cat", func(c *mqttlink.Config) { c.SessionExpiry = time.Hour })
		app.end()
		ending := make(chan struct{})
		w.apply(func(ops []kv.Op) error {
			if ops[0].Key == "session/cat/app" && ops[0].Delete {
				close(ending)
				time.Sleep(2 * time.Second)
			}
			return nil
		})
		go func() { // as a clean start does
			w.broker.mu.RLock()
			s := w.broker.sessions["cat/app"]
			w.broker.mu.RUnlock()
			if err := w.broker.drop(t.Context(), s); err != nil {
				t.Error(err)
			}
		}()
		<-ending
		if _, err := w.reg.CreatePair(t.Context(), "cat", "dan"); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		if got := w.sessionIDs(); !strings.Contains(got, "cat/app") {
			t.Errorf("sessions %s, want cat/app", got)
		}
	})
}
