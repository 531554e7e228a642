package daemon

import (
	"net"
	"syscall"
	"testing"

	"pairsync/internal/simtest"
)

// TestTCPKeepalive: a client that asked MQTT for no keepalive and vanishes is
// found by TCP's, within minutes, on every listener that serves MQTT.
func TestTCPKeepalive(t *testing.T) {
	d, err := New(t.Context(), testConfig(t.TempDir()), Listeners{}, simtest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	for name, l := range map[string]net.Listener{"mqtt": d.l.MQTT, "http": d.l.HTTP} {
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		served, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer served.Close()
		raw, err := served.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		option := func(level, opt int) (v int) {
			raw.Control(func(fd uintptr) { v, err = syscall.GetsockoptInt(int(fd), level, opt) })
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		on := option(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
		found := option(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE) +
			option(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL)*option(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT)
		if on == 0 || found > 10*60 {
			t.Errorf("%s: keepalive %d, a dead peer is found after %d s; want on, within 10 minutes", name, on, found)
		}
	}
}
