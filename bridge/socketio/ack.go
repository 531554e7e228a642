package socketio

import (
	"context"
	"encoding/json"
	"fmt"
)

// maxAcks bounds the events of one socket that wait for an answer.
const maxAcks = 1024

// EmitPrepared queues a prepared event. ack, when not nil, is called once on
// the socket's goroutine: with the client's answer, with ErrDisconnected when
// the socket leaves before, or with ErrAckLimit. It is not called when
// EmitPrepared returns an error. A binary attachment of the answer stands in
// its JSON as a base64 string.
func (s *Socket) EmitPrepared(p *Prepared, ack func(args []json.RawMessage, err error)) error {
	if ack == nil {
		return s.send(p.messages(typeEvent, typeBinaryEvent, s.namespace.name, -1))
	}
	return s.emitAck(p, func(args []json.RawMessage, err error) {
		s.later(func() { ack(args, err) })
	})
}

// EmitWithAck queues an event and waits for the client's answer, ctx or the
// socket's end. It may be called from the socket's own callbacks; no event is
// handled meanwhile, and the answer must not be behind more than 64 of them.
func (s *Socket) EmitWithAck(ctx context.Context, event string, args ...any) ([]json.RawMessage, error) {
	p, err := Prepare(event, args...)
	if err != nil {
		return nil, err
	}
	type answer struct {
		args []json.RawMessage
		err  error
	}
	answered := make(chan answer, 1)
	id, err := s.emitAckID(p, func(args []json.RawMessage, err error) { answered <- answer{args, err} })
	if err != nil {
		return nil, err
	}
	select {
	case a := <-answered:
		return a.args, a.err
	case <-ctx.Done():
		s.takeAck(id)
		return nil, fmt.Errorf("socketio: acknowledgement of %q: %w", event, ctx.Err())
	}
}

func (s *Socket) emitAck(p *Prepared, fn func([]json.RawMessage, error)) error {
	_, err := s.emitAckID(p, fn)
	return err
}

// emitAckID queues p with an acknowledgement id. fn is called once, from
// wherever the answer is read, unless an error is returned.
func (s *Socket) emitAckID(p *Prepared, fn func([]json.RawMessage, error)) (int64, error) {
	s.mu.Lock()
	if s.state != socketJoined {
		s.mu.Unlock()
		return 0, ErrDisconnected
	}
	if s.acks == nil {
		s.acks = map[int64]func([]json.RawMessage, error){}
	}
	id := s.nextAck
	s.nextAck++
	s.acks[id] = fn
	dropped := s.dropOldestAck()
	s.mu.Unlock()
	if dropped != nil {
		dropped(nil, ErrAckLimit)
	}
	if err := s.send(p.messages(typeEvent, typeBinaryEvent, s.namespace.name, id)); err != nil {
		if s.takeAck(id) == nil {
			return 0, nil // the socket left meanwhile and has told fn
		}
		return 0, err
	}
	return id, nil
}

// dropOldestAck takes the oldest function out when there are too many. The
// caller holds s.mu.
func (s *Socket) dropOldestAck() func([]json.RawMessage, error) {
	if len(s.acks) <= maxAcks {
		return nil
	}
	for ; ; s.oldestAck++ {
		if fn, ok := s.acks[s.oldestAck]; ok {
			delete(s.acks, s.oldestAck)
			return fn
		}
	}
}

// takeAck takes the function of an acknowledgement out, nil if there is none.
func (s *Socket) takeAck(id int64) func([]json.RawMessage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn := s.acks[id]
	delete(s.acks, id)
	return fn
}

// acknowledged handles the client's answer; an id nobody waits for is ignored.
func (s *Socket) acknowledged(p packet, parts [][]byte) {
	fn := s.takeAck(p.id)
	if fn == nil {
		return
	}
	args, err := ackArgs(p.data, parts)
	fn(args, err)
}

// A confirmation is a function that waits for a pong, or for the socket's end.
type confirmation struct{ fn func(ok bool) }

// Confirm calls fn(true) on the socket's goroutine once everything emitted so
// far has provably reached the client, over whichever transport, and fn(false)
// when the socket has left before; at once, on the caller's goroutine, when it
// has left already. It costs a ping; one serves all Confirms that were called
// before it left.
func (s *Socket) Confirm(fn func(ok bool)) {
	c := &confirmation{fn}
	s.mu.Lock()
	if s.state == socketLeft {
		s.mu.Unlock()
		fn(false)
		return
	}
	if s.confirms == nil {
		s.confirms = map[*confirmation]struct{}{}
	}
	s.confirms[c] = struct{}{}
	s.mu.Unlock()
	s.conn.session.Confirm(func(ok bool) {
		s.mu.Lock()
		_, waits := s.confirms[c]
		delete(s.confirms, c)
		s.mu.Unlock()
		if waits {
			s.later(func() { fn(ok) })
		}
	})
}

// later runs fn on the socket's goroutine. The socket must not have left.
func (s *Socket) later(fn func()) { s.serial.push(task{run: s.guard(fn)}, false) }
