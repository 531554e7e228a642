package agent

import (
	"context"
	"slices"
	"sync"
	"unicode"
	"unicode/utf8"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// link is the part of an mqttlink.Link that the agent uses.
type link interface {
	Run(ctx context.Context) error
	Publish(ctx context.Context, p mqttlink.Publish) error
	Subscribe(ctx context.Context, subs ...mqttlink.Subscription) error
	Props() []moment.Property
	Bounce()
	Moved() uint64
}

// view is what the agent knows about itself at one moment.
type view struct {
	membership
	// link is the present session's, nil between two; session ends with it.
	link    link
	session context.Context
	// awaited is the pair whose info is asked for; info of another is ignored.
	awaited string
	// connected: the broker has accepted us. ready: the subscriptions are in
	// place too and the pair is known to be current.
	connected, ready bool
	offline          string // why it is not ready; empty when it is
	lastError        string // what went wrong last
	refused          int    // moments from outside the pair since the start
}

// board is the one place where the agent's parts tell each other what changed:
// receiver and outbox write, the kiosk page and the device state read. It is
// safe for concurrent use.
type board struct {
	mu      sync.Mutex // guards the fields below
	now     view
	changed chan struct{} // closed and replaced at each change
}

func newBoard() *board { return &board{changed: make(chan struct{})} }

// get returns the present view and a channel that is closed when it is no
// longer the present one.
func (b *board) get() (view, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.now
	v.Users = slices.Clone(v.Users)
	return v, b.changed
}

// set changes the view and wakes everybody who waits. fn must not block.
func (b *board) set(fn func(*view)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn(&b.now)
	close(b.changed)
	b.changed = make(chan struct{})
}

// touch tells everybody that something in the store changed.
func (b *board) touch() { b.set(func(*view) {}) }

// fault records what went wrong last, for status and the device's state.
func (b *board) fault(text string) {
	b.set(func(v *view) { v.lastError = cleanText(text, maxErrorBytes) })
}

// Bounds of texts that people read. Captions have moment.MaxCaptionBytes.
const (
	maxNameBytes  = 256
	maxErrorBytes = 512
)

// cleanText makes outside text fit to be kept and shown: control characters
// other than line breaks and tabs are dropped, and it is cut to max bytes at a
// character. That also bounds its length as JSON, where a control character
// takes six bytes.
func cleanText(s string, max int) string {
	out := make([]byte, 0, min(len(s), max))
	for _, r := range s {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			continue
		}
		if len(out)+utf8.RuneLen(r) > max {
			break
		}
		out = utf8.AppendRune(out, r)
	}
	return string(out)
}
