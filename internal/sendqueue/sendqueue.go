// Package sendqueue tells how much of what was written to a connection has not
// reached the other side's kernel yet. A write that returned has only been
// queued; whoever wants to know whether a slow link still makes progress has
// to take the queue off.
package sendqueue

import "net"

// Unsent returns the bytes in conn's send queue, looking through TLS and
// WebSocket wrappers; 0 for what is not TCP, and on systems that do not tell
// (all but Linux).
func Unsent(conn net.Conn) int64 { return queued(Innermost(conn)) }

// Innermost returns the connection inside TLS and WebSocket wrappers.
func Innermost(conn net.Conn) net.Conn {
	for {
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return conn
		}
		conn = inner.NetConn()
	}
}
