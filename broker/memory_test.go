package broker

import (
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"pairsync/internal/ledger"
	"pairsync/internal/ledger/badgerledger"
	"pairsync/internal/moment"
	"pairsync/internal/simtest"
	"pairsync/internal/token"
)

// smallBuffers makes the sockets that it accepts hold little, so that what a
// stuck reader costs is in this process.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		err = c.(*net.TCPConn).SetWriteBuffer(4 << 10)
	}
	return c, err
}

// TestStuckReadersHeap: 200 clients with photos waiting read nothing; the heap
// grows by the budget, not by their number. Over real sockets, in real time.
func TestStuckReadersHeap(t *testing.T) {
	const readers, photo = 200, 200 << 10
	const size = userShare * (photo + readBytes)
	s := newStandalone(t, badgerledger.Config{}, func(c *Config) {
		c.PhotoBytes, c.UserSessions = photo, readers
		c.Limits.WriteMemory, c.Limits.UserConnections = size, readers
	})
	defer s.stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.running.Go(func() { s.broker.Serve(s.ctx, smallBuffers{l}) })
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	var users []string
	var pairs []string
	for i := range 10 {
		p, err := s.reg.CreatePair(t.Context(), fmt.Sprint("a", i), fmt.Sprint("b", i))
		if err != nil {
			t.Fatal(err)
		}
		pairs, users = append(pairs, p.ID), append(users, p.Users[1])
	}
	var conns []net.Conn
	for i := range readers {
		raw, _, err := s.signer.Sign(token.Principal{User: users[i%10], Role: token.RoleApp}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			t.Fatal(err)
		}
		c.Write(encode(t, connectPacket(raw, fmt.Sprint("c", i))))
		c.Write(subscribeBytes("pairs/" + pairs[i%10] + "/photos/#"))
		conns = append(conns, c)
	}
	simtest.Await(t, 30*time.Second, func() bool { return s.broker.Connections() == readers })
	for _, c := range conns { // SUBACK has come
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		b := make([]byte, 1)
		for b[0] != 0x90 {
			if _, err := c.Read(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := heap()
	for k := range 8 {
		for i, id := range pairs {
			m := moment.Moment{Pair: id, User: fmt.Sprint("a", i), Kind: moment.Photo, ID: fmt.Sprint("p", k), Payload: make([]byte, photo)}
			if _, _, err := ledger.Append(t.Context(), s.broker.deps.Ledger, ledger.PairLog(id), m); err != nil {
				t.Fatal(err)
			}
		}
	}
	simtest.Await(t, 30*time.Second, func() bool {
		_, holds, waiting := s.broker.budget.state()
		return holds+waiting == readers
	})
	taken, holds, waiting := s.broker.budget.state()
	grown := heap() - before
	t.Logf("%d hold %d bytes of %d, %d wait; the heap has grown by %d KiB", holds, taken, size, waiting, grown>>10)
	if taken > size {
		t.Errorf("%d bytes are taken of %d", taken, size)
	}
	// Beside the payloads: a first chunk for each holder, and the store's own.
	if most := 2*size + 8<<20; grown > most {
		t.Errorf("the heap has grown by %d, want at most %d (without a budget it is %d)", grown, most, readers*photo)
	}
}
