package sendqueue

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// queued asks the kernel (tcp(7), SIOCOUTQ).
func queued(conn net.Conn) int64 {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	if raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }) != nil || err != nil || n < 0 {
		return 0
	}
	return int64(n)
}
