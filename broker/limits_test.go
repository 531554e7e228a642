package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/memnet"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// from is a connection that comes from an address.
type from struct {
	net.Conn
	addr string
}

func (f from) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(f.addr), 4711))
}

// dialFrom connects to the broker as somebody from addr.
func (w *world) dialFrom(addr string) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		near, far := memnet.Pipe("client", "broker")
		go w.broker.ServeConn(context.Background(), from{far, addr})
		return near, nil
	}
}

// limited restarts the world with other limits.
func (w *world) limited(change func(*LimitsConfig)) {
	w.stop()
	change(&w.cfg.Limits)
	w.start()
}

func TestConnectionLimits(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.limited(func(l *LimitsConfig) { l.Connections, l.AddressConnections, l.UserConnections = 6, 3, 2 })
		var open []*peer
		connect := func(user, addr string) *mqttlink.ReasonError {
			p := w.connect(user, func(c *mqttlink.Config) {
				c.ClientID = fmt.Sprint("c", len(open))
				c.Dial, c.MinBackoff, c.MaxBackoff = w.dialFrom(addr), time.Hour, time.Hour
			})
			open = append(open, p)
			p.mu.Lock()
			defer p.mu.Unlock()
			var re *mqttlink.ReasonError
			if len(p.down) > 0 && !errors.As(p.down[0], &re) {
				t.Fatalf("%s from %s: %v, want a reason code", user, addr, p.down[0])
			}
			return re
		}
		for _, tc := range []struct {
			user, addr string
			code       byte
		}{
			{"u1", "10.0.0.1", 0}, {"u1", "10.0.0.1", 0},
			{"u1", "10.0.0.2", 0x97}, // its third
			{"u2", "10.0.0.1", 0},
			{"u3", "10.0.0.1", 0x97}, // the address's fourth
			{"u3", "2001:db8::1", 0}, {"u4", "2001:db8::2", 0}, {"u5", "2001:db8::3", 0},
			{"u6", "2001:db8::ffff", 0x89}, // the seventh
		} {
			var code byte
			if re := connect(tc.user, tc.addr); re != nil {
				code = re.Code
			}
			if code != tc.code {
				t.Errorf("%s from %s: 0x%02X, want 0x%02X", tc.user, tc.addr, code, tc.code)
			}
		}
		for _, p := range open {
			p.end()
		}
		settle(time.Second)
		if w.broker.limits.open != 0 || len(w.broker.limits.users) != 0 || len(w.broker.limits.from) != 0 {
			t.Errorf("%d connections, %d users and %d addresses are still counted", w.broker.limits.open, len(w.broker.limits.users), len(w.broker.limits.from))
		}
		if re := connect("u1", "10.0.0.1"); re != nil {
			t.Errorf("after all have gone: %v", re)
		}
		open[len(open)-1].end()
	})
}

// TestFailedLoginsAreCounted: refused tokens count, good ones do not.
func TestFailedLoginsAreCounted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		here := netip.MustParseAddr("10.0.0.1")
		good := w.connect("ann", func(c *mqttlink.Config) { c.Dial = w.dialFrom(here.String()) })
		good.end()
		if n := w.broker.limits.logins.Failures(here); n != 0 {
			t.Errorf("%d failures after a good login", n)
		}
		bad := w.connect("ann", func(c *mqttlink.Config) { c.Dial = w.dialFrom(here.String()); withToken("wrong")(c) })
		bad.end()
		if n := w.broker.limits.logins.Failures(here); n == 0 {
			t.Error("a refused token is not counted")
		}
		// A token that nobody can check now says nothing about who shows it.
		before := w.broker.limits.logins.Failures(here)
		later := &token.Error{Code: token.CodeRateLimited}
		w.broker.limits.loginFailed(from{addr: here.String()}, later)
		if n := w.broker.limits.logins.Failures(here); n != before {
			t.Errorf("%d failures after a token that could not be checked, want %d", n, before)
		}
		if code := tokenCode(later).Code; code != 0x88 {
			t.Errorf("such a token gets 0x%02X, want 0x88 Server unavailable", code)
		}
	})
}

func TestConnectRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(defaultLimits())
		c := from{addr: "10.0.0.1"}
		var code byte
		for code == 0 {
			pk, _ := l.connect(c)
			code = pk.Code
		}
		if code != 0x9F {
			t.Errorf("a flood of CONNECTs: 0x%02X, want 0x9F", code)
		}
		if pk, ok := l.connect(from{addr: "10.0.0.2"}); !ok {
			t.Errorf("another address meanwhile: 0x%02X", pk.Code)
		}
	})
}

func TestPublishRate(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.limited(func(l *LimitsConfig) { l.UserPublishes, l.UserPublishBytes = 2, 256<<10 })
		ann := w.connect("ann", func(c *mqttlink.Config) { c.MinBackoff, c.MaxBackoff = time.Hour, time.Hour })
		defer ann.end()
		start := time.Now()
		for i := range 2*burst + 10 {
			if err := ann.send(moment.Note, fmt.Sprint("n", i), "hello"); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took < 4*time.Second || took > 6*time.Second {
			t.Errorf("10 above the burst at 2/s took %v, want about 5s", took)
		}
		big := strings.Repeat("x", 1<<20)
		for range 40 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			err := ann.Publish(ctx, mqttlink.Publish{
				Topic: "pairs/" + w.pair.ID + "/photos/ann/" + fmt.Sprint(time.Now().UnixNano()), Payload: []byte(big), QoS: 1,
			})
			cancel()
			if err != nil {
				break
			}
		}
		ann.mu.Lock()
		defer ann.mu.Unlock()
		var re *mqttlink.ReasonError
		if len(ann.down) == 0 || !errors.As(ann.down[0], &re) || re.Code != 0x96 {
			t.Errorf("ended with %v, want 0x96 Message rate too high", ann.down)
		}
	})
}
