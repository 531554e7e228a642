package mqttlink

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"pairsync/internal/memnet"
)

// script is a server that does exactly what a test says, packet by packet.
type script struct {
	t  *testing.T
	ln *memnet.Listener
}

func newScript(t *testing.T) *script { return &script{t: t, ln: memnet.Listen("script")} }

func (s *script) dial(ctx context.Context) (net.Conn, error) { return s.ln.Dial(ctx, "client") }

// accept takes the next connection and answers its CONNECT.
func (s *script) accept(ack packets.Connack) (*peer, *packets.Connect) {
	s.t.Helper()
	conn, err := s.ln.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	p := &peer{t: s.t, conn: conn}
	connect := p.read().(*packets.Connect)
	if ack.Properties == nil {
		ack.Properties = &packets.Properties{}
	}
	p.write(&ack)
	return p, connect
}

type peer struct {
	t    *testing.T
	conn net.Conn
}

func (p *peer) read() any {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(time.Hour))
	cp, err := packets.ReadPacket(p.conn)
	if err != nil {
		p.t.Fatalf("server reads: %v", err)
	}
	return cp.Content
}

func (p *peer) readPublish() *packets.Publish { p.t.Helper(); return p.read().(*packets.Publish) }

func (p *peer) write(packet io.WriterTo) {
	p.t.Helper()
	if _, err := packet.WriteTo(p.conn); err != nil {
		p.t.Fatalf("server writes: %v", err)
	}
}

func (p *peer) puback(id uint16, code byte, reason string) {
	p.t.Helper()
	p.write(&packets.Puback{PacketID: id, ReasonCode: code, Properties: &packets.Properties{ReasonString: reason}})
}

// publishing starts a Publish and returns where its result arrives.
func publishing(ctx context.Context, l *Link, payload string) <-chan error {
	done := make(chan error, 1)
	go func() { done <- l.Publish(ctx, Publish{Topic: "t", Payload: []byte(payload), QoS: 1}) }()
	synctest.Wait()
	return done
}

var accepted = packets.Connack{}
var resumed = packets.Connack{SessionPresent: true}

func TestRefusedConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		var got seen
		newLink(t, got.config(Config{Dial: s.dial}))
		start := time.Now()
		for range 3 {
			s.accept(packets.Connack{ReasonCode: CodeNotAuthorized, Properties: &packets.Properties{ReasonString: "token expired"}})
		}
		if waited := time.Since(start); waited < 2*slowMinBackoff/2 {
			t.Errorf("three refused connects within %v, want a slow back-off", waited)
		}
		synctest.Wait()
		_, downs, _ := got.get()
		var re *ReasonError
		if len(downs) == 0 || !errors.As(downs[0], &re) || *re != (ReasonError{CodeNotAuthorized, "token expired"}) || re.Retryable() {
			t.Fatalf("downs %v, want the server's code and reason", downs)
		}
		if want := "connect: not authorized (0x87): token expired"; downs[0].Error() != want {
			t.Errorf("error %q, want %q", downs[0], want)
		}
	})
}

func TestServerDisconnectReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		var got seen
		newLink(t, got.config(Config{Dial: s.dial}))
		p, _ := s.accept(accepted)
		p.write(&packets.Disconnect{ReasonCode: CodeMaximumTime, Properties: &packets.Properties{ReasonString: "token"}})
		p, _ = s.accept(accepted)     // comes back by itself
		p.conn.Write([]byte{0xE0, 0}) // a DISCONNECT without a code
		s.accept(accepted)
		synctest.Wait()
		_, downs, _ := got.get()
		var re *ReasonError
		if len(downs) != 2 || !errors.As(downs[0], &re) || re.Code != CodeMaximumTime || !re.Retryable() || errors.As(downs[1], &re) {
			t.Errorf("downs %v", downs)
		}
	})
}

func TestConnectPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		l := newLink(t, Config{Dial: s.dial, Username: "anna", CleanStart: true, SessionExpiry: 90 * 24 * time.Hour,
			Token: func(context.Context) (string, error) { return "secret", nil }})
		p, c := s.accept(packets.Connack{Properties: &packets.Properties{AssignedClientID: "made-up"}})
		if !c.CleanStart || c.ClientID != "" || c.Username != "anna" || string(c.Password) != "secret" || c.KeepAlive != 60 {
			t.Errorf("first CONNECT: %v", c)
		}
		if *c.Properties.ReceiveMaximum != 16 || *c.Properties.SessionExpiryInterval != 90*86400 || *c.Properties.MaximumPacketSize != 16<<20 {
			t.Errorf("properties %v", c.Properties)
		}
		synctest.Wait()
		l.Bounce()
		_, c = s.accept(accepted)
		if c.CleanStart || c.ClientID != "made-up" {
			t.Errorf("second CONNECT has clean start %v, client id %q", c.CleanStart, c.ClientID)
		}
		p.conn.Close()
	})
}

// What is in flight when a connection ends is sent again first, in order, with
// DUP and its packet id, before anything newer.
func TestResendKeepsOrderAndIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		l := newLink(t, Config{Dial: s.dial, SessionExpiry: time.Hour})
		p, _ := s.accept(accepted)
		one, two := publishing(t.Context(), l, "one"), publishing(t.Context(), l, "two")
		first, second := p.readPublish(), p.readPublish()
		p.conn.Close()
		synctest.Wait()
		three := publishing(t.Context(), l, "three")

		p, _ = s.accept(resumed)
		for i, want := range []packets.Publish{{PacketID: first.PacketID, Payload: []byte("one"), Duplicate: true},
			{PacketID: second.PacketID, Payload: []byte("two"), Duplicate: true}, {Payload: []byte("three")}} {
			got := p.readPublish()
			if string(got.Payload) != string(want.Payload) || got.Duplicate != want.Duplicate || (want.PacketID != 0 && got.PacketID != want.PacketID) {
				t.Errorf("publish %d after the reconnect: %v, want %v", i, got, &want)
			}
			p.puback(got.PacketID, 0, "")
		}
		for i, done := range []<-chan error{one, two, three} {
			if err := <-done; err != nil {
				t.Errorf("publish %d: %v", i, err)
			}
		}
	})
}

// A server that lost the session loses nothing of ours.
func TestForgottenSessionSendsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		l := newLink(t, Config{Dial: s.dial, SessionExpiry: time.Hour})
		p, _ := s.accept(accepted)
		done := publishing(t.Context(), l, "one")
		p.readPublish()
		p.conn.Close()
		p, _ = s.accept(accepted)
		again := p.readPublish()
		if again.Duplicate || string(again.Payload) != "one" {
			t.Errorf("got %v, want a new publish without DUP", again)
		}
		p.puback(again.PacketID, 0, "")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestRefusedPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		l := newLink(t, Config{Dial: s.dial})
		max := uint32(1000)
		none := byte(0)
		p, _ := s.accept(packets.Connack{Properties: &packets.Properties{MaximumPacketSize: &max, RetainAvailable: &none}})
		done := publishing(t.Context(), l, "one")
		p.puback(p.readPublish().PacketID, CodeQuotaExceeded, "10,000 photos")
		var re *ReasonError
		if err := <-done; !errors.As(err, &re) || *re != (ReasonError{CodeQuotaExceeded, "10,000 photos"}) || !re.Retryable() {
			t.Errorf("got %v", err)
		}
		if err := <-publishing(t.Context(), l, strings.Repeat("x", 1000)); !errors.As(err, &re) || re.Code != CodePacketTooLarge {
			t.Errorf("too large for this server: %v", err)
		}
		if err := l.Publish(t.Context(), Publish{Topic: "t", Retain: true}); !errors.As(err, &re) || re.Code != codeRetainUnsupported {
			t.Errorf("retain: %v", err)
		}
	})
}

// A caller that gives up leaves nothing behind: its packet id stays taken
// until the answer, and it is not sent again.
func TestAbandonedPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		l := newLink(t, Config{Dial: s.dial, SessionExpiry: time.Hour})
		one := uint16(1)
		p, _ := s.accept(packets.Connack{Properties: &packets.Properties{ReceiveMaximum: &one}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		gone, waiting := publishing(ctx, l, "gone"), publishing(ctx, l, "never sent")
		kept := publishing(t.Context(), l, "kept")
		first := p.readPublish()
		for _, done := range []<-chan error{gone, waiting} {
			if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		}
		p.puback(first.PacketID, 0, "") // its slot serves the next
		if got := p.readPublish(); string(got.Payload) != "kept" {
			t.Errorf("then came %q", got.Payload)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p.conn.Close()
		p, _ = s.accept(resumed)
		if got := p.readPublish(); string(got.Payload) != "kept" || !got.Duplicate {
			t.Errorf("after the reconnect came %v", got)
		} else {
			p.puback(got.PacketID, 0, "")
		}
		if err := <-kept; err != nil {
			t.Error(err)
		}
		last := publishing(ctx, l, "in flight")
		p.readPublish()
		<-last // gives up
		p.conn.Close()
		p, _ = s.accept(resumed)
		done := publishing(t.Context(), l, "new")
		got := p.readPublish()
		if string(got.Payload) != "new" || got.Duplicate {
			t.Errorf("an abandoned publish came back: %v", got)
		}
		p.puback(got.PacketID, 0, "")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A publish that was in flight, and that the server no longer takes after the
// reconnect, is refused; a late PUBACK for it means nothing.
func TestPubackForWhatWasRefusedHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		l := newLink(t, Config{Dial: s.dial, SessionExpiry: time.Hour})
		p, _ := s.accept(accepted)
		done := publishing(t.Context(), l, strings.Repeat("x", 100))
		id := p.readPublish().PacketID
		p.conn.Close()
		small := uint32(50)
		p, _ = s.accept(packets.Connack{SessionPresent: true, Properties: &packets.Properties{MaximumPacketSize: &small}})
		var refusal *ReasonError
		if err := <-done; !errors.As(err, &refusal) || refusal.Code != CodePacketTooLarge {
			t.Errorf("got %v, want packet too large", err)
		}
		p.puback(id, 0, "")
		done = publishing(t.Context(), l, "small")
		p.puback(p.readPublish().PacketID, 0, "")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestPublishWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		l := newLink(t, Config{Dial: s.dial})
		if err := l.Publish(t.Context(), Publish{Topic: "t"}); !errors.Is(err, ErrDown) {
			t.Errorf("QoS 0 while down: %v, want ErrDown", err)
		}
		done := publishing(t.Context(), l, "patient")
		p, _ := s.accept(accepted)
		p.puback(p.readPublish().PacketID, 0, "")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Servers that break the rules, and what Down hears of it.
func TestBadServers(t *testing.T) {
	publish := func(id uint16) *packets.Publish {
		return &packets.Publish{Topic: "t", QoS: 1, PacketID: id, Properties: &packets.Properties{}}
	}
	for name, test := range map[string]struct {
		misbehave func(p *peer)
		want      string
	}{
		"garbage":          {func(p *peer) { p.conn.Write([]byte{0, 0}) }, "malformed packet"},
		"a second CONNACK": {func(p *peer) { p.write(&packets.Connack{Properties: &packets.Properties{}}) }, "unexpected"},
		"QoS 2": {func(p *peer) {
			p.write(&packets.Publish{Topic: "t", QoS: 2, PacketID: 1, Properties: &packets.Properties{}})
		}, "QoS 2"},
		"a huge packet": {func(p *peer) { p.conn.Write([]byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F}) }, "at most"},
		"a flood of properties": {func(p *peer) {
			user := make([]packets.User, 60_000)
			p.write(&packets.Publish{Topic: "t", Properties: &packets.Properties{User: user}})
		}, "properties of"},
		"more than the window": {func(p *peer) {
			for id := range uint16(17) {
				p.write(publish(id + 1))
			}
		}, "without waiting"},
		"an answer to nothing": {func(p *peer) { p.write(&packets.Suback{PacketID: 7, Properties: &packets.Properties{}}) }, "asked for nothing"},
		"silence":              {func(*peer) {}, "does not answer"},
		"half a packet":        {func(p *peer) { p.conn.Write([]byte{0x30, 10, 0}); p.conn.Close() }, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScript(t)
				var got seen
				newLink(t, got.config(Config{Dial: s.dial}))
				p, _ := s.accept(accepted)
				synctest.Wait()
				test.misbehave(p)
				time.Sleep(2 * time.Minute)
				_, downs, _ := got.get()
				if len(downs) == 0 || !strings.Contains(downs[0].Error(), test.want) {
					t.Errorf("downs %v, want %q", downs, test.want)
				}
			})
		})
	}
}

func TestServerKeepAliveIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t)
		newLink(t, Config{Dial: s.dial})
		seconds := uint16(300)
		p, _ := s.accept(packets.Connack{Properties: &packets.Properties{ServerKeepAlive: &seconds}})
		start := time.Now()
		if _, ok := p.read().(*packets.Pingreq); !ok || time.Since(start) != 300*time.Second {
			t.Errorf("first packet after %v", time.Since(start))
		}
		p.conn.Write([]byte{0xD0, 0})
	})
}

func TestNewNamesEveryProblem(t *testing.T) {
	_, err := New(Config{KeepAlive: time.Millisecond, MaxPacketBytes: 1, MinBackoff: time.Hour,
		Subscriptions: []Subscription{{Filter: "a", QoS: 2}, {}}}, quiet())
	for _, want := range []string{"broker URL", "keepalive", "back-off", "packet size", "QoS 2", "needs a topic filter"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %q", err, want)
		}
	}
}
