//go:build !linux

package sendqueue

import "net"

// queued is not known here: what was written counts as sent.
func queued(net.Conn) int64 { return 0 }
