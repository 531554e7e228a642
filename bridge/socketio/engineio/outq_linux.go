package engineio

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketQueue returns the bytes that the peer's kernel has not acknowledged.
func socketQueue(conn net.Conn) int64 {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	queued := 0
	if raw.Control(func(fd uintptr) {
		queued, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
	}) != nil || err != nil {
		return 0
	}
	return int64(queued)
}
