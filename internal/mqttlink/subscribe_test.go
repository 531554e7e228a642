package mqttlink

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/google/go-cmp/cmp"

	"pairsync/internal/moment"
)

func TestSubscriptionsAtConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		var got seen
		refused := map[string]byte{}
		c := got.config(Config{Dial: s.dial, SessionExpiry: time.Hour, Subscriptions: []Subscription{
			{Filter: "a", QoS: 1, Backfill: "all"}, {Filter: "b"}, {Filter: "c", QoS: 1, Backfill: "all", NoLocal: true}}})
		c.Refused = func(filter string, err *ReasonError) { refused[filter] = err.Code }
		l := newLink(t, c)
		p, _ := s.accept(accepted)
		first, second := p.read().(*packets.Subscribe), p.read().(*packets.Subscribe)
		want := []packets.SubOptions{{Topic: "a", QoS: 1}, {Topic: "c", QoS: 1, NoLocal: true}}
		if diff := cmp.Diff(want, first.Subscriptions); diff != "" {
			t.Error(diff)
		}
		if u := first.Properties.User; len(u) != 1 || u[0] != (packets.User{Key: moment.PropBackfill, Value: "all"}) {
			t.Errorf("user properties %v", u)
		}
		if len(second.Properties.User) != 0 || len(second.Subscriptions) != 1 {
			t.Errorf("second SUBSCRIBE %v", second)
		}
		p.write(&packets.Suback{PacketID: first.PacketID, Reasons: []byte{1, CodeNotAuthorized}, Properties: &packets.Properties{}})
		synctest.Wait()
		if l.Connected() {
			t.Error("up before the last SUBACK")
		}
		p.write(&packets.Suback{PacketID: second.PacketID, Reasons: []byte{0}, Properties: &packets.Properties{}})
		synctest.Wait()
		if !l.Connected() || !cmp.Equal(refused, map[string]byte{"c": CodeNotAuthorized}) {
			t.Errorf("connected %v, refused %v", l.Connected(), refused)
		}

		// Later ones join the set when granted, and only then.
		added := make(chan error, 1)
		go func() { added <- l.Subscribe(t.Context(), Subscription{Filter: "d"}, Subscription{Filter: "e"}) }()
		q := p.read().(*packets.Subscribe)
		p.write(&packets.Suback{PacketID: q.PacketID, Reasons: []byte{0, 0x8F}, Properties: &packets.Properties{}})
		var re *ReasonError
		if err := <-added; !errors.As(err, &re) || re.Code != 0x8F || !strings.Contains(err.Error(), `"e"`) {
			t.Errorf("Subscribe: %v", err)
		}
		go func() { added <- l.Unsubscribe(t.Context(), "b") }()
		synctest.Wait()
		p.conn.Close() // UNSUBSCRIBE survives the reconnect
		p, _ = s.accept(resumed)
		var filters []string
		for range 2 {
			switch q := p.read().(type) {
			case *packets.Subscribe:
				for _, s := range q.Subscriptions {
					filters = append(filters, s.Topic)
				}
				p.write(&packets.Suback{PacketID: q.PacketID, Reasons: make([]byte, len(q.Subscriptions)), Properties: &packets.Properties{}})
			}
		}
		if want := []string{"a", "c", "d"}; !cmp.Equal(filters, want) {
			t.Errorf("subscribed %v after the reconnect, want %v", filters, want)
		}
		u := p.read().(*packets.Unsubscribe)
		p.write(&packets.Unsuback{PacketID: u.PacketID, Reasons: []byte{0x11}, Properties: &packets.Properties{}})
		if err := <-added; err != nil {
			t.Errorf("Unsubscribe: %v", err)
		}
	})
}

// A caller that gives up while the link is down leaves nothing to be asked.
func TestAbandonedSubscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		l := newLink(t, Config{Dial: s.dial, SessionExpiry: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := l.Subscribe(ctx, Subscription{Filter: "gone"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Subscribe: %v", err)
		}
		p, _ := s.accept(accepted)
		publishing(t.Context(), l, "first")
		if got, ok := p.read().(*packets.Publish); !ok {
			t.Errorf("the server was asked for %T", got)
		} else {
			p.puback(got.PacketID, 0, "")
		}
	})
}

// A server that lets us in and drops us at once sees us less and less.
func TestDroppedAtOnceBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		newLink(t, Config{Dial: s.dial})
		start := time.Now()
		for range 8 {
			p, _ := s.accept(accepted)
			p.conn.Close()
		}
		if took := time.Since(start); took < 10*time.Second {
			t.Errorf("eight connects within %v", took)
		}
	})
}
