//go:build !linux

package mqttlink

import "net"

// unsentBytes is not known on this system.
func unsentBytes(net.Conn) uint64 { return 0 }
