package registry

import (
	"slices"
	"sync/atomic"
)

// ChangeKind says what happened.
type ChangeKind int

// What can happen. The comment names the fields of Change that are set.
const (
	PairCreated   ChangeKind = iota + 1 // Pair
	PairRemoved                         // Pair
	DeviceAdded                         // Device, User
	DeviceRevoked                       // Device, User
	TokenRevoked                        // TokenID
	UserRevoked                         // User
	CodeMade                            // User: they have a new pairing code
	UserSeen                            // User: name or e-mail address changed
)

// String returns the kind for logs.
func (k ChangeKind) String() string {
	switch k {
	case PairCreated:
		return "pair created"
	case PairRemoved:
		return "pair removed"
	case DeviceAdded:
		return "device added"
	case DeviceRevoked:
		return "device revoked"
	case TokenRevoked:
		return "token revoked"
	case UserRevoked:
		return "user revoked"
	case CodeMade:
		return "pairing code made"
	case UserSeen:
		return "user seen"
	}
	return "unknown change"
}

// Change is something that happened to the registry.
type Change struct {
	Kind    ChangeKind
	Pair    Pair
	Device  Device
	User    string
	TokenID string
}

type watcher struct {
	fn      func(Change)
	stopped atomic.Bool
}

func (w *watcher) tell(c Change) {
	if !w.stopped.Load() {
		w.fn(c)
	}
}

// Watch calls fn for every later change, one at a time and in order, after it
// is durable and visible to all methods, and before the method that made it
// returns. fn must not block and must not change the registry (it would wait
// for itself); it may read. stop may be called from anywhere, also from fn; a
// call that is under way in another goroutine may still be finishing.
func (r *Registry) Watch(fn func(Change)) (stop func()) {
	w := &watcher{fn: fn}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watchers = append(r.watchers, w)
	return func() {
		w.stopped.Store(true)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.watchers = slices.DeleteFunc(r.watchers, func(other *watcher) bool { return other == w })
	}
}
