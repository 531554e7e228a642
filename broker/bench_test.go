package broker

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// BenchmarkLive is moments from one client of a pair to the other over
// loopback TCP, fsynced before the PUBACK; the clients are in this process and
// share its cores.
func BenchmarkLive(b *testing.B) {
	for _, bc := range []struct {
		name          string
		bytes         int
		pairs, window int
	}{{"200KB/8pairs", 200 << 10, 8, 10}, {"1KB/50pairs", 1 << 10, 50, 20}} {
		b.Run(bc.name, func(b *testing.B) {
			bench := newBench(b)
			defer bench.end()
			var clients []*mqttlink.Link
			var pairs []registry.Pair
			var delivered sync.WaitGroup
			for i := range bc.pairs {
				p, err := bench.reg.CreatePair(b.Context(), fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i))
				if err != nil {
					b.Fatal(err)
				}
				bench.connect(p.Users[1], []mqttlink.Subscription{{Filter: moment.KindFilter(p.ID, moment.Photo, p.Users[0]), QoS: 1}}, func(m *mqttlink.Message) {
					m.Ack()
					delivered.Done()
				})
				clients = append(clients, bench.connect(p.Users[0], nil, nil))
				pairs = append(pairs, p)
			}
			payload := make([]byte, bc.bytes)
			b.SetBytes(int64(bc.bytes))
			b.ResetTimer()
			next := make(chan int)
			var wg sync.WaitGroup
			for w := range bc.pairs * bc.window {
				link, pair := clients[w%bc.pairs], pairs[w%bc.pairs]
				wg.Go(func() {
					for i := range next {
						m := moment.Moment{Pair: pair.ID, User: pair.Users[0], Kind: moment.Photo, ID: fmt.Sprint(i)}
						if err := link.Publish(context.Background(), mqttlink.Publish{Topic: m.Topic(), Payload: payload, QoS: 1}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for i := range b.N {
				delivered.Add(1)
				next <- i
			}
			close(next)
			wg.Wait()
			delivered.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

// bench is a broker on loopback TCP with its store on the disk of the
// temporary directory.
type bench struct {
	*standalone
	b    *testing.B
	addr string
	ends []func()
}

func newBench(b *testing.B) *bench {
	s := newStandalone(b, badgerledger.Config{MaxEntries: 1 << 30, MaxBytes: 1 << 50})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s.running.Go(func() { s.broker.Serve(s.ctx, l) })
	return &bench{standalone: s, b: b, addr: l.Addr().String(), ends: []func(){s.stop}}
}

// standalone is a running broker with its store, outside any bubble.
type standalone struct {
	ctx     context.Context
	broker  *Broker
	reg     *registry.Registry
	signer  *token.Signer
	running sync.WaitGroup
	stop    func()
}

func newStandalone(tb testing.TB, cfg badgerledger.Config, change ...func(*Config)) *standalone {
	tb.Helper()
	log := slog.New(slog.DiscardHandler)
	dir := tb.TempDir()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	db, err := badgerdb.Open(dir, badgerdb.Server, log)
	must(err)
	led, err := badgerledger.New(db, cfg, log)
	must(err)
	reg, err := registry.Open(ctx, db.KV())
	must(err)
	keys, err := token.OpenKeys(dir + "/keys")
	must(err)
	verifier, err := token.NewVerifier(reg.Revoked, keys.Issuer("pairsync", "pairsync"))
	must(err)
	bc := DefaultConfig()
	for _, f := range change {
		f(&bc)
	}
	b, err := New(ctx, bc, Deps{Ledger: led, KV: db.KV(), Verifier: verifier, Registry: reg, Log: log})
	must(err)
	s := &standalone{ctx: ctx, broker: b, reg: reg, signer: token.NewSigner(keys, "pairsync", "pairsync")}
	s.running.Go(func() { b.Run(ctx) })
	s.stop = sync.OnceFunc(func() {
		cancel()
		s.running.Wait()
		db.Close()
	})
	return s
}

func (x *bench) connect(user string, subs []mqttlink.Subscription, receive func(*mqttlink.Message)) *mqttlink.Link {
	link, err := mqttlink.New(mqttlink.Config{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", x.addr)
		},
		ClientID: user, SessionExpiry: time.Hour, Subscriptions: subs, Receive: receive,
		Token: func(context.Context) (string, error) {
			raw, _, err := x.signer.Sign(token.Principal{User: user, Role: token.RoleApp}, time.Hour)
			return raw, err
		},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		x.b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		link.Run(ctx)
	}()
	x.ends = append(x.ends, func() { cancel(); <-ended })
	if err := link.AwaitUp(ctx); err != nil {
		x.b.Fatal(err)
	}
	return link
}

func (x *bench) end() {
	for i := len(x.ends) - 1; i >= 0; i-- {
		x.ends[i]()
	}
}
