package sim

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/admin"
)

// api makes a request of /pairs/ as user and returns what it answers.
func (w *world) api(method, path, user string, in any) (data map[string]any, err error) {
	transport := &http.Transport{DialContext: w.net.DialContext(user + "-http"), DisableKeepAlives: true}
	client := &http.Client{Transport: &bearing{w.appToken(user), transport}, Timeout: time.Minute}
	var out struct {
		Success bool           `json:"success"`
		Data    map[string]any `json:"data"`
	}
	err = call(client, method, "http://server/pairs/"+path, in, &out)
	if err == nil && !out.Success {
		err = fmt.Errorf("%s %s: success with 2xx is false", method, path)
	}
	return out.Data, err
}

// bearing adds a token to every request.
type bearing struct {
	token string
	http.RoundTripper
}

// RoundTrip makes the request with the token.
func (b *bearing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.RoundTripper.RoundTrip(r)
}

// TestPairingByCode: two people pair by a code, over a crash of the server.
// Whoever is connected is told at once, whoever is not, when they come; the
// same when one of them leaves.
func TestPairingByCode(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.doing = "pairing by code"
		ann, ben := w.phone("ann", "http://server"), w.phone("ben", "http://server")
		ann.on() // ben is away
		w.await(time.Minute, func() string { return "ann has not joined" }, ann.isJoined)
		made, err := w.api("POST", "generate-code", "ann", nil)
		w.must(err)
		w.crash()
		w.await(time.Minute, func() string { return "ann is not back" }, ann.isJoined)
		joined, err := w.api("POST", "join", "ben", map[string]any{"code": made["code"]})
		w.must(err)
		w.book.pair("ann", "ben")
		paired := []string{"code_used", "pairing_success", "partner_connected"}
		told := func(p *phone, want []string) {
			t.Helper()
			w.await(10*time.Second, func() string {
				return fmt.Sprintf("%s was told %q, want %q", p.user, p.seenEvents(), want)
			}, func() bool { return slices.Equal(firsts(p.seenEvents()), want) })
		}
		told(ann, paired)
		w.crash()
		ben.on()
		told(ben, paired)
		w.await(time.Minute, func() string { return "ann is not back" }, ann.isJoined)
		if now, err := w.api("GET", "current", "ben", nil); err != nil || fmt.Sprint(now) != fmt.Sprint(joined) {
			t.Errorf("current pair %v, %v, want %v", now, err, joined)
		}

		w.doing = "leaving"
		ben.stop() // again away
		_, err = w.api("DELETE", "disconnect", "ann", nil)
		w.must(err)
		apart := append(slices.Clone(paired), "partner_disconnected")
		told(ann, apart)
		w.crash()
		ben.on()
		told(ben, apart)
	})
}

// firsts returns each element's first appearance: a crash may lose the word that
// an event has arrived, and then it comes again.
func firsts(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// TestLeavingEndsDeliveries: when the request that ends a pair is answered,
// nothing of it is delivered any more, and what was queued goes off the disk.
func TestLeavingEndsDeliveries(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.doing = "leaving with photos queued"
		w.createPair("ann", "ben")
		ann, ben := w.phone("ann", "http://server").on(), w.phone("ben", "http://server").on()
		w.await(time.Minute, func() string { return "somebody has not joined" }, func() bool { return ann.isJoined() && ben.isJoined() })
		send := func(n int) {
			for range n {
				ann.send(4 << 10)
			}
		}
		send(3)
		w.await(time.Minute, func() string { return "the first photos are not there" }, func() bool { return ben.wireCount() == 3 })
		ben.stop()
		send(30)
		backlog := func() (n int) {
			var list []admin.Session
			w.must(w.ask(http.MethodGet, "/sessions", nil, &list))
			for _, s := range list {
				n += s.Backlog
			}
			return n
		}
		w.await(time.Minute, func() string { return fmt.Sprintf("%d are queued", backlog()) }, func() bool { return backlog() >= 30 })

		// ben comes back over a line that is too slow for all of them.
		w.net.Rate(hostHTTP, ben.host, 4<<10)
		ben.on()
		w.await(time.Minute, func() string { return "ben gets nothing" }, func() bool { return ben.wireCount() > 3 })
		_, err := w.api("DELETE", "disconnect", "ben", nil)
		w.must(err)
		synctest.Wait()
		at := ben.wireCount() + 1 // one may be on the line
		if at > 20 {
			t.Fatalf("ben has %d photos already: nothing is left to be stopped", at)
		}
		time.Sleep(5 * time.Minute)
		if got := ben.wireCount(); got > at {
			t.Errorf("%d photos were delivered after the end of the pair", got-at)
		}
		if n := backlog(); n != 0 {
			t.Errorf("%d moments are still queued", n)
		}
		w.crash()
		if n := backlog(); n != 0 {
			t.Errorf("%d moments are queued after a crash", n)
		}
	})
}
