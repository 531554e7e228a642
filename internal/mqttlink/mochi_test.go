package mqttlink

import (
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// mochiDisconnect is what a mochi broker notes as the cause of an orderly end.
var mochiDisconnect = packets.CodeDisconnect

// rules is the broker's one hook: it lets everybody in, but for what a test
// forbids. (mochi's own allow-all hook pulls in a YAML library.)
type rules struct {
	mochi.HookBase
	connect   func(cl *mochi.Client, pk packets.Packet) bool
	mayUse    func(topic string, write bool) bool
	onPublish func(pk packets.Packet) (packets.Packet, error)
}

func (r *rules) ID() string { return "rules" }

func (r *rules) Provides(b byte) bool {
	return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck || b == mochi.OnPublish
}

func (r *rules) OnConnectAuthenticate(cl *mochi.Client, pk packets.Packet) bool {
	return r.connect == nil || r.connect(cl, pk)
}

func (r *rules) OnACLCheck(_ *mochi.Client, topic string, write bool) bool {
	return r.mayUse == nil || r.mayUse(topic, write)
}

func (r *rules) OnPublish(_ *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if r.onPublish == nil {
		return pk, nil
	}
	return r.onPublish(pk)
}
