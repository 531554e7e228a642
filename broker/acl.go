package broker

import (
	"fmt"
	"strings"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// rights is what a client may do, computed from who it is and the pair its
// user is in at the moment. A value is immutable: a change of the pair gives
// every client of its users a new one.
type rights struct {
	admin   bool
	user    string
	pair    string // empty: in no pair
	partner string // empty with pair
	device  string // empty for an app
}

// rightsOf computes what p may do now. The registry alone says who is in which
// pair: a pair claim that disagrees with it (a pair that has ended since) gives
// no rights to any pair.
func rightsOf(p token.Principal, reg *registry.Registry) *rights {
	r := &rights{admin: p.Role == token.RoleAdmin, user: p.User, device: p.Device}
	pair, ok := reg.PairOf(p.User)
	if !ok || (p.Pair != "" && p.Pair != pair.ID) {
		return r
	}
	r.pair = pair.ID
	r.partner, _ = pair.Partner(p.User)
	return r
}

// read reports whether filter (or topic) lies within what the client may see:
// its own pair's tree and its own user's.
func (r *rights) read(filter string) bool {
	if r.admin {
		return true
	}
	root, rest, ok := strings.Cut(filter, "/")
	if !ok {
		return false
	}
	owner, rest, ok := strings.Cut(rest, "/")
	if !ok || rest == "" {
		return false
	}
	switch root {
	case "pairs":
		return r.pair != "" && owner == r.pair
	case "users":
		return owner == r.user
	}
	return false
}

// follow reports whether the client may have what is in log. What it may not
// have at the moment stays where it is.
func (r *rights) follow(log ledger.LogID) bool {
	if id, ok := log.Pair(); ok {
		return r.pair != "" && id == r.pair
	}
	id, ok := log.User()
	return ok && id == r.user
}

// write returns nil when the client may publish to t, or why not. ownsDevice
// says whether a device belongs to one of the pair's users.
func (r *rights) write(t moment.Topic, ownsDevice func(device string) bool) error {
	if t.Class == moment.ClassOther {
		if r.admin {
			return nil
		}
		return fmt.Errorf("only topics of your pair may be published")
	}
	switch t.Class {
	case moment.ClassMoment, moment.ClassLive, moment.ClassState, moment.ClassCommand:
	default:
		return fmt.Errorf("only the broker publishes here")
	}
	if r.admin {
		return nil
	}
	if r.pair == "" {
		return fmt.Errorf("user %q is in no pair", r.user)
	}
	if t.Pair != r.pair {
		return fmt.Errorf("pair %q is not the pair of user %q", t.Pair, r.user)
	}
	switch t.Class {
	case moment.ClassMoment, moment.ClassLive:
		if t.User != r.user {
			return fmt.Errorf("user %q may not publish as %q", r.user, t.User)
		}
	case moment.ClassState:
		if r.device == "" || t.Device != r.device {
			return fmt.Errorf("device state is published by device %q alone", t.Device)
		}
	case moment.ClassCommand:
		if !ownsDevice(t.Device) {
			return fmt.Errorf("device %q does not belong to the pair", t.Device)
		}
	}
	return nil
}

// mayPublish returns nil when a client with these rights may publish to t, or
// why not. Not even an admin publishes into a pair that is not there.
func (b *Broker) mayPublish(can *rights, t moment.Topic) error {
	if err := can.write(t, b.ownsDevice(t.Pair)); err != nil || t.Pair == "" {
		return err
	}
	p, ok := b.deps.Registry.Pair(t.Pair)
	if !ok {
		return fmt.Errorf("there is no pair %q", t.Pair)
	}
	if _, member := p.Partner(t.User); t.User != "" && !member {
		return fmt.Errorf("user %q is not in pair %q", t.User, t.Pair)
	}
	return nil
}
