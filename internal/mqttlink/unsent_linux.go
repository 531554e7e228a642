package mqttlink

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unsentBytes returns the size of c's send queue (tcp(7), SIOCOUTQ), and 0
// for anything that is not TCP.
func unsentBytes(c net.Conn) uint64 {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	if err := rc.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil || n < 0 {
		return 0
	}
	return uint64(n)
}
