package sendqueue

import (
	"net"
	"testing"
	"time"
)

func TestUnsent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := Unsent(c); got != 0 {
		t.Errorf("nothing was written: got %d", got)
	}
	// Nobody reads: what the peer's kernel does not take stays here.
	if err := c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Write(make([]byte, 64<<20))
	if err == nil {
		t.Fatal("64 MB went to a peer that does not read")
	}
	if got := Unsent(c); got <= 0 || got > int64(n) {
		t.Errorf("wrote %d: got %d unsent", n, got)
	}
}
