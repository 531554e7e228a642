package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/simtest"
	"pairsync/internal/token"
)

// network gives the world's broker a network with faults; the broker is its
// host "broker".
func (w *world) network() *simtest.Network {
	n := simtest.NewNetwork(w.t, 1)
	w.serveOn(n)
	return n
}

// serveOn lets the broker accept on n until it is ended; again after a restart.
func (w *world) serveOn(n *simtest.Network) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	l, b := n.Listen("broker"), w.broker
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := b.Serve(ctx, l); err != nil {
			w.t.Error(err)
		}
	}()
	end = func() { cancel(); <-ended }
	w.ends = append(w.ends, end)
	return end
}

// big sends photos of n bytes each and returns their topics.
func (p *peer) big(t *testing.T, from, to, n int) (topics []string) {
	t.Helper()
	payload := strings.Repeat("x", n)
	for i := from; i < to; i++ {
		id := fmt.Sprintf("p%03d", i)
		if err := p.send(moment.Photo, id, payload); err != nil {
			t.Fatal(err)
		}
		topics = append(topics, "pairs/"+p.w.pair.ID+"/photos/"+p.user+"/"+id)
	}
	return topics
}

// distinct is what p got, each topic once, in the order of the first delivery.
func (p *peer) distinct() (out []string) {
	for _, topic := range p.topics() {
		if !slices.Contains(out, topic) {
			out = append(out, topic)
		}
	}
	return out
}

func (p *peer) drops() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.down)
}

// TestSlowLink: 2 MB over 32 KB/s takes a minute, in which pings have to wait
// behind the photo; both ways it arrives at the first attempt.
func TestSlowLink(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := w.network()
		n.Rate("broker", "ben", 32<<10)
		n.Rate("ann", "broker", 32<<10)
		connect := func(user, host string, subs []mqttlink.Subscription) *peer {
			return w.connect(user, func(c *mqttlink.Config) {
				c.Dial, c.KeepAlive, c.Subscriptions = n.Dialer(host, "broker"), 30*time.Second, subs
			})
		}
		ben := connect("ben", "ben", w.photosOf("ann"))
		defer ben.end()
		ann := connect("ann", "ann", nil)
		defer ann.end()
		payload := strings.Repeat("x", 2<<20)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		m := moment.Moment{Pair: w.pair.ID, User: "ann", Kind: moment.Photo, ID: "slow"}
		if err := ann.Publish(ctx, mqttlink.Publish{Topic: m.Topic(), Payload: []byte(payload), QoS: 1}); err != nil {
			t.Fatalf("upload: %v", err)
		}
		if took := time.Since(start); took < time.Minute {
			t.Fatalf("the upload took %v: the link is not slow", took)
		}
		before := n.Moved("ben", "broker")
		settle(90 * time.Second)
		got := ben.last(m.Topic())
		if got == nil || len(got.Payload) != len(payload) {
			t.Fatalf("the photo did not come")
		}
		const ping, puback = 2, 4
		if moved := n.Moved("ben", "broker") - before; moved < 2*ping+puback {
			t.Errorf("ben sent %d bytes while the photo came, want two pings", moved)
		}
		if a, b := ann.drops(), ben.drops(); a+b > 0 {
			t.Errorf("ann was cut off %d times, ben %d times", a, b)
		}
	})
}

// TestReaderThatStops: the others of the pair go on, it is cut, and its session
// loses nothing.
func TestReaderThatStops(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := w.network()
		reader := func(id string) *peer {
			return w.connect("ben", func(c *mqttlink.Config) {
				c.Dial, c.ClientID, c.Subscriptions = n.Dialer(id, "broker"), id, w.photosOf("ann")
			})
		}
		phone, frame := reader("phone"), reader("frame")
		defer phone.end()
		defer frame.end()
		ann := w.connect("ann", nil)
		defer ann.end()
		n.Stall("broker", "phone") // what phone sends, pings too, arrives
		start := time.Now()
		want := ann.big(t, 0, 40, 200<<10)
		settle(time.Second)
		if diff := cmp.Diff(want, frame.topics()); diff != "" {
			t.Errorf("the frame beside it (-want +got):\n%s", diff)
		}
		for w.broker.Connections() == 3 && time.Since(start) < time.Hour {
			time.Sleep(time.Second)
		}
		if took := time.Since(start); took < writeWait || took > writeWait+10*time.Second {
			t.Errorf("cut after %v, want about %v", took, writeWait)
		}
		n.Cut("phone", "broker") // what the link still held is lost with it
		n.Heal()
		settle(5 * time.Minute)
		if diff := cmp.Diff(want, phone.distinct()); diff != "" {
			t.Errorf("after it came back (-want +got):\n%s", diff)
		}
	})
}

// TestNeverAcknowledges: its window stays full; everybody else goes on, and
// after a reconnect everything comes.
func TestNeverAcknowledges(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		reader := func(id string, hold bool) *peer {
			w.hold = hold
			defer func() { w.hold = false }()
			return w.connect("ben", func(c *mqttlink.Config) { c.ClientID, c.Subscriptions = id, w.photosOf("ann") })
		}
		silent, frame := reader("silent", true), reader("frame", false)
		defer frame.end()
		ann := w.connect("ann", nil)
		defer ann.end()
		want := ann.big(t, 0, 60, 100<<10)
		settle(time.Hour)
		if diff := cmp.Diff(want, frame.topics()); diff != "" {
			t.Errorf("the frame beside it (-want +got):\n%s", diff)
		}
		if got := silent.topics(); len(got) != w.cfg.Window {
			t.Errorf("%d moments are unacknowledged, want the window of %d", len(got), w.cfg.Window)
		}
		if n := w.broker.Connections(); n != 3 {
			t.Errorf("%d connections, want all three", n)
		}
		w.broker.budget.mu.Lock()
		if n := w.broker.budget.taken; n != 0 {
			t.Errorf("%d bytes are held for it", n)
		}
		w.broker.budget.mu.Unlock()
		silent.end()
		again := reader("silent", false)
		defer again.end()
		settle(time.Minute)
		if diff := cmp.Diff(want, again.topics()); diff != "" {
			t.Errorf("after its reconnect (-want +got):\n%s", diff)
		}
	})
}

// TestPeerVanishes: a phone that is gone without a word is offline after its
// keepalive; its session stays and gets everything.
func TestPeerVanishes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n := w.network()
		presence := moment.PresenceTopic(w.pair.ID, "ben")
		ann := w.connect("ann", func(c *mqttlink.Config) { c.Subscriptions = []mqttlink.Subscription{{Filter: presence}} })
		defer ann.end()
		ben := w.asApp("ben", func(c *mqttlink.Config) {
			c.Dial, c.KeepAlive, c.Subscriptions = n.Dialer("ben", "broker"), 30*time.Second, w.photosOf("ann")
		})
		defer ben.end()
		settle(100 * time.Second)
		if !presenceOf(t, ann.last(presence)).Online {
			t.Fatal("ben is not online")
		}
		n.Isolate("ben")
		settle(16 * time.Second)
		if !presenceOf(t, ann.last(presence)).Online {
			t.Error("offline before the keepalive has passed")
		}
		settle(30 * time.Second)
		if presenceOf(t, ann.last(presence)).Online || w.broker.Connections() != 1 {
			t.Errorf("online %v with %d connections after 1.5 keepalives", presenceOf(t, ann.last(presence)).Online, w.broker.Connections())
		}
		want := ann.sendN(t, 0, 3)
		n.Rejoin("ben")
		n.Cut("ben", "broker")
		settle(5 * time.Minute)
		photos := slices.DeleteFunc(ben.distinct(), func(topic string) bool { return !strings.Contains(topic, "/photos/") })
		if diff := cmp.Diff(want, photos); diff != "" {
			t.Errorf("after it came back (-want +got):\n%s", diff)
		}
		if !presenceOf(t, ann.last(presence)).Online {
			t.Error("it is back and not online")
		}
	})
}

// TestVanishedWithoutKeepalive: a client that asked for none is found when
// something is to be written to it. (Where nothing is, the daemon's TCP
// keepalive finds it; internal/daemon.)
func TestVanishedWithoutKeepalive(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ann := w.connect("ann", nil)
		defer ann.end()
		n := w.network()
		c, err := n.Dial(t.Context(), "ben", "broker")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(w.connectBytes(t, "ben", "frame", func(pk *packets.Packet) { pk.Connect.Keepalive = 0 }))
		c.Write(subscribeBytes(w.photosOf("ann")[0].Filter))
		settle(2 * time.Hour)
		if got := w.broker.Connections(); got != 2 {
			t.Fatalf("%d connections after two silent hours, want 2", got)
		}
		n.Isolate("ben")
		ann.big(t, 0, 8, 200<<10) // more than the link's buffers hold
		settle(2 * writeWait)
		if got := w.broker.Connections(); got != 1 {
			t.Errorf("%d connections, want ann's alone", got)
		}
	})
}

// TestThousandReconnects: after a restart a thousand sessions come at once,
// each with moments waiting, and get everything within the byte budget.
func TestThousandReconnects(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const pairs, perPair, moments = 50 / underRace, 20, 5
		w.stop()
		w.cfg.PhotoBytes, w.cfg.Limits.WriteMemory = 64<<10, userShare*(64<<10+readBytes)
		w.start()
		n := simtest.NewNetwork(t, 1)
		endServe := w.serveOn(n)
		var ids []string
		var connecting sync.WaitGroup
		var mu sync.Mutex // guards peers
		var peers []*peer
		most := 0
		for i := range pairs {
			pair, err := w.reg.CreatePair(t.Context(), fmt.Sprint("a", i), fmt.Sprint("b", i))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, pair.ID)
			var tokens [2]string
			for k, user := range pair.Users {
				tokens[k] = w.token(token.Principal{User: user, Role: token.RoleApp})
			}
			for k := range perPair {
				connecting.Go(func() {
					p := w.connect(pair.Users[k%2], func(c *mqttlink.Config) {
						c.ClientID, c.MinBackoff, c.MaxBackoff = fmt.Sprint("frame", k), time.Second, 2*time.Second
						c.Dial = n.Dialer("frames", "broker")
						withToken(tokens[k%2])(c)
						c.Subscriptions = []mqttlink.Subscription{{Filter: "pairs/" + pair.ID + "/photos/#", QoS: 1}}
						receive := c.Receive
						c.Receive = func(m *mqttlink.Message) {
							g := w.broker.budget
							g.mu.Lock()
							most = max(most, g.taken)
							g.mu.Unlock()
							receive(m)
						}
					})
					mu.Lock()
					peers = append(peers, p)
					mu.Unlock()
				})
			}
		}
		connecting.Wait()
		n.Refuse("frames", "broker", true)
		n.Cut("frames", "broker")
		settle(time.Second)
		payload := make([]byte, 40<<10)
		for i, id := range ids {
			for k := range moments {
				_, _, err := ledger.Append(t.Context(), w.ledger, ledger.PairLog(id), moment.Moment{
					Pair: id, User: fmt.Sprint("a", i), Kind: moment.Photo, ID: fmt.Sprint("p", k), Payload: payload,
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		endServe()
		w.restart()
		w.serveOn(n)
		n.Refuse("frames", "broker", false)
		settle(2 * time.Minute)
		for i, p := range peers {
			if got := p.distinct(); len(got) != moments || !slices.IsSorted(got) {
				t.Errorf("%d of %d came to session %d: %v", len(got), moments, i, got)
			}
		}
		if most == 0 || most > w.cfg.Limits.WriteMemory {
			t.Errorf("%d bytes were being written at a time, want some and at most %d", most, w.cfg.Limits.WriteMemory)
		}
		for _, p := range peers {
			p.end()
		}
	})
}
