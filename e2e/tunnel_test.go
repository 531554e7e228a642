package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
)

// tunnel is a way to the server's app port that can be cut, as a phone's
// network is: with a TCP reset, at any byte.
type tunnel struct {
	addr string
	to   string

	mu    sync.Mutex // guards the fields below
	conns map[*net.TCPConn]bool
	deaf  bool // what the server says is lost
	done  sync.WaitGroup
}

// newTunnel opens a way to the server until the test ends.
func newTunnel(t testing.TB, s *server) *tunnel {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &tunnel{addr: l.Addr().String(), to: s.http, conns: map[*net.TCPConn]bool{}}
	w.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.done.Go(func() { w.carry(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.cut()
		w.done.Wait()
	})
	return w
}

// carry joins one connection to the server until either end closes.
func (w *tunnel) carry(near *net.TCPConn) {
	defer near.Close()
	c, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	far := c.(*net.TCPConn)
	defer far.Close()
	w.mu.Lock()
	w.conns[near], w.conns[far] = true, true
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() {
		io.Copy(far, near)
		far.CloseWrite()
	})
	both.Go(func() {
		io.Copy(hearing{w, near}, far)
		near.CloseWrite()
	})
	both.Wait()
	w.mu.Lock()
	delete(w.conns, near)
	delete(w.conns, far)
	w.mu.Unlock()
}

// hearing writes what the server says, unless the tunnel is deaf.
type hearing struct {
	w    *tunnel
	near *net.TCPConn
}

func (h hearing) Write(p []byte) (int, error) {
	h.w.mu.Lock()
	deaf := h.w.deaf
	h.w.mu.Unlock()
	if deaf {
		return len(p), nil
	}
	return h.near.Write(p)
}

// cut resets every connection, and returns how many there were.
func (w *tunnel) cut() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.conns) / 2
	for c := range w.conns {
		c.SetLinger(0) // close sends RST and drops what was not sent yet
		c.Close()
	}
	clear(w.conns)
	return n
}

// hear says whether what the server says arrives.
func (w *tunnel) hear(yes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = !yes
}
