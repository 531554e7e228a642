package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"pairsync/bridge/socketio"
	"pairsync/internal/token"
)

// phone is one admitted Socket.IO connection. A user's app opens two.
type phone struct {
	u      *user
	sock   *socketio.Socket
	who    atomic.Pointer[token.Principal] // changes with auth:refresh
	binary bool                            // auth.binary: photos travel as attachments

	joined bool // guarded by u.mu
	gone   bool // guarded by u.mu
	takes  bool // guarded by u.mu: it has acknowledged a photo
	lags   bool // guarded by u.mu: catchUp is due

	// What follows is guarded by u.mu as well: when the app is to be asked for
	// a new token and when the connection ends, zero for never, and the timers.
	asks, ends         time.Time
	askTimer, endTimer *time.Timer

	// unproven is the photo that was emitted last and is not proven by a pong
	// yet, nil otherwise; guarded by u.mu.
	unproven *delivery

	beat  time.Time // of the last heartbeat; used by the socket's goroutine alone
	sends sendQueue
}

func newPhone(u *user, sock *socketio.Socket, a admission) *phone {
	p := &phone{
		u: u, sock: sock, binary: a.binary,
		sends: sendQueue{memory: semaphore.NewWeighted(int64(u.b.cfg.SocketPhotoMemory))},
	}
	p.who.Store(&a.who)
	return p
}

func (p *phone) id() string { return p.sock.ID() }

func (p *phone) log() *slog.Logger { return p.u.log.With("socket", p.id()) }

// entitled reports whether the phone's token reaches pair. A pair claim that
// names another one (which has ended since) reaches none, as at the broker.
func (p *phone) entitled(pair string) bool {
	who := p.who.Load()
	return pair == "" || who.Pair == "" || who.Pair == pair
}

// emit sends an event and reports whether it will arrive unless the socket
// ends.
func (p *phone) emit(name string, body any) bool {
	return p.emitted(name, p.sock.Emit(name, body))
}

// emitPhoto sends a receive_photo; answered gets its acknowledgement.
func (p *phone) emitPhoto(e *prepared, answered func(args []json.RawMessage)) bool {
	return p.emitted("receive_photo", p.sock.EmitPrepared(e, func(args []json.RawMessage, err error) {
		if err == nil {
			answered(args)
		}
	}))
}

// emitted judges the outcome of an emit. A phone that reads too slowly gets
// everything once more a little later; one that is gone, when it comes back.
func (p *phone) emitted(name string, err error) bool {
	if err == nil {
		return true
	}
	p.log().Debug("event not sent", "event", name, "err", err)
	if errors.Is(err, socketio.ErrBacklog) {
		p.u.lag(p)
	}
	return false
}

// confirm calls fn once a pong has proven that all emitted so far arrived.
func (p *phone) confirm(fn func()) {
	p.sock.Confirm(func(ok bool) {
		if ok {
			fn()
		}
	})
}

// photoAnswered takes the acknowledgement of a receive_photo event: a phone
// that answers has the photo, unless it says otherwise.
func (p *phone) photoAnswered(photo string, args []json.RawMessage) {
	var answer struct {
		Success *bool `json:"success"`
	}
	if len(args) > 0 && bytes.HasPrefix(args[0], []byte("{")) {
		if json.Unmarshal(args[0], &answer) == nil && answer.Success != nil && !*answer.Success {
			return
		}
	}
	p.u.photoAcked(p, photo, time.Now())
}

// revoke ends the connection of somebody whose token counts no more.
func (p *phone) revoke() {
	p.emit("auth:revoked", map[string]any{"code": token.CodeRevoked, "message": "your access was revoked; sign in again"})
	p.sock.Disconnect(true)
}

// ack answers an event that asked for it.
func (p *phone) ack(e *socketio.Event, body any) {
	if err := e.Ack(body); err != nil {
		p.log().Debug("acknowledgement not sent", "event", e.Name, "err", err)
	}
}
