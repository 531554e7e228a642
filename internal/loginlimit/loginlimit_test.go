package loginlimit

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	here  = netip.MustParseAddr("10.0.0.1")
	there = netip.MustParseAddr("10.0.0.2")
)

func TestFailuresHaveToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(100, 10)
		for i := range 10 {
			if no := l.Allow(here); no != nil {
				t.Fatalf("failure %d: already %v", i, no)
			}
			l.Failed(here)
		}
		if no := l.Allow(here); no == nil || no.Wait != FirstWait || !strings.Contains(no.Error(), "failed logins") {
			t.Errorf("after 10 failures: %v, want a wait of %v", no, FirstWait)
		}
		if no := l.Allow(there); no != nil {
			t.Errorf("another address: %v", no)
		}
		for wait := FirstWait; wait < 2*LastWait; wait *= 2 {
			time.Sleep(min(wait, LastWait) - time.Millisecond)
			if l.Allow(here) == nil {
				t.Errorf("let in before %v", wait)
			}
			time.Sleep(time.Millisecond)
			if no := l.Allow(here); no != nil {
				t.Errorf("after %v: %v", wait, no)
			}
			l.Failed(here)
		}
		if l.Failures(here) == 0 {
			t.Error("the failures are not counted")
		}
		time.Sleep(Forgiven + time.Second)
		if n := l.Failures(here); n != 0 {
			t.Errorf("%d failures after a good while", n)
		}
		l.Failed(here)
		if no := l.Allow(here); no != nil {
			t.Errorf("one failure after a good while: %v", no)
		}
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(20, 10)
		allowed := func(most int) (n int) {
			for range most {
				if l.Allow(here) == nil {
					n++
				}
			}
			return n
		}
		if got := allowed(10_000); got != 20*Burst {
			t.Errorf("%d attempts at once, want %d", got, 20*Burst)
		}
		time.Sleep(time.Second)
		if got := allowed(1000); got != 20 {
			t.Errorf("%d a second later, want 20", got)
		}
	})
}

// TestAddressesAreBounded: an attack from everywhere does not grow the table,
// and one from many addresses does not forgive who failed just now.
func TestAddressesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(100, 10)
		address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
		for i := range 3 * MaxAddresses {
			l.Failed(address(i))
			if len(l.of.known) > MaxAddresses {
				t.Fatalf("%d addresses are kept, want at most %d", len(l.of.known), MaxAddresses)
			}
		}
		l = New(100, 1)
		l.Failed(here)
		for i := range 2 * MaxAddresses {
			l.Allow(address(i + 1<<20))
		}
		if n := l.Failures(here); n != 1 {
			t.Errorf("%d failures after a flood of others, want 1", n)
		}
	})
}

func TestNormal(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "10.0.0.1", "2001:db8::1": "2001:db8::", "2001:db8::ffff:1": "2001:db8::", "fe80::1%eth0": "fe80::",
	} {
		if got := Normal(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("%s counts as %s, want %s", in, got, want)
		}
	}
}

func TestClientOf(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	for _, tt := range []struct {
		name, remote string
		forwarded    []string
		want         string // empty: none
	}{
		{"no proxy", "203.0.113.7:1", nil, "203.0.113.7"},
		{"somebody who lies", "203.0.113.7:1", []string{"198.51.100.1"}, "203.0.113.7"},
		{"a proxy", "127.0.0.1:1", []string{"203.0.113.7"}, "203.0.113.7"},
		{"a proxy, mapped", "[::ffff:127.0.0.1]:1", []string{"203.0.113.7"}, "203.0.113.7"},
		{"a proxy that says nothing", "127.0.0.1:1", nil, "127.0.0.1"},
		{"a liar behind a proxy", "127.0.0.1:1", []string{"198.51.100.1, 203.0.113.7"}, "203.0.113.7"},
		{"two proxies", "127.0.0.1:1", []string{"198.51.100.1", "203.0.113.7, 10.1.1.1"}, "203.0.113.7"},
		{"with a port", "127.0.0.1:1", []string{"[2001:db8::1]:443"}, "2001:db8::1"},
		{"nonsense", "127.0.0.1:1", []string{"198.51.100.1, unknown"}, "127.0.0.1"},
		{"inside the process", "phone", []string{"203.0.113.7"}, ""},
	} {
		got, ok := ClientOf(tt.remote, tt.forwarded, trusted)
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("%s: %v (%t), want %q", tt.name, got, ok, tt.want)
		}
	}
}
