package bridge

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"pairsync/bridge/socketio"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/photo"
)

// unaskedTimeout is how long a send without an ack is tried: the app has taken
// it out of its queue already, and nobody waits for the answer.
const unaskedTimeout = time.Minute

// smallSend is what a send without a photo counts for in a socket's memory.
const smallSend = 64 << 10

// sendQueue holds what one socket has sent and the broker has not yet stored.
// One goroutine, which exists while there is something to do, publishes it in
// order, so that a photo never overtakes the one sent before. The socket's own
// goroutine goes on reading acknowledgements meanwhile, until memory is used
// up: then it waits, and the phone with it.
type sendQueue struct {
	memory *semaphore.Weighted // bytes

	mu      sync.Mutex // guards the fields below
	jobs    []func()
	running bool
}

// add queues job; spawn starts a goroutine with an owner.
func (q *sendQueue) add(job func(), spawn func(func())) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.jobs = append(q.jobs, job)
	if !q.running {
		q.running = true
		spawn(q.run)
	}
}

func (q *sendQueue) run() {
	for {
		q.mu.Lock()
		if len(q.jobs) == 0 {
			q.jobs, q.running = nil, false
			q.mu.Unlock()
			return
		}
		job := q.jobs[0]
		q.jobs[0] = nil
		q.jobs = q.jobs[1:]
		q.mu.Unlock()
		job()
	}
}

// outgoing is one send of a phone, from its event to its answer.
type outgoing struct {
	p      *phone
	e      *socketio.Event
	ctx    context.Context
	cancel context.CancelFunc
	idKey  string // the answer's member that names it: photoId, noteId
	id     string
	msgID  string // the sender's, or empty
	done   string // events: on success and on failure; empty for none
	failed string

	held, heldAll int64 // bytes of the socket's and the bridge's memory
}

// reserve takes n bytes of memory for the send, waiting for what others hold.
func (o *outgoing) reserve(n int, isPhoto bool) *refusal {
	b := o.p.u.b
	size := max(int64(n), smallSend)
	size = min(size, int64(b.cfg.SocketPhotoMemory))
	if err := o.p.sends.memory.Acquire(o.ctx, size); err != nil {
		return later(codeBusy, "too many photos are on the way from this phone; send it again")
	}
	o.held = size
	if !isPhoto {
		return nil
	}
	if err := b.photoMemory.Acquire(o.ctx, int64(n)); err != nil {
		return later(codeBusy, "the server has too many photos on the way; send it again")
	}
	o.heldAll = int64(n)
	return nil
}

// finish gives the memory back and ends the deadline.
func (o *outgoing) finish() {
	o.p.sends.memory.Release(o.held)
	o.p.u.b.photoMemory.Release(o.heldAll)
	o.cancel()
}

// refuse answers no.
func (o *outgoing) refuse(no *refusal) {
	b := o.p.u.b
	b.metrics.sendRefused.Inc()
	o.p.log().Info("send refused", "event", o.e.Name, "id", o.id, "code", string(no.code), "reason", no.text)
	body := refusalBody(no)
	if o.id != "" {
		body[o.idKey] = o.id
	}
	o.p.ack(o.e, body)
	if o.failed != "" {
		o.p.emit(o.failed, body)
	}
}

func refusalBody(no *refusal) map[string]any {
	return map[string]any{"success": false, "error": no.text, "code": no.code, "retryable": no.retryable}
}

// stored answers yes.
func (o *outgoing) stored(duplicate, online bool) {
	b := o.p.u.b
	b.metrics.sent.Inc()
	method := "queued"
	if online {
		method = "socket"
	}
	messageID := o.msgID
	if messageID == "" {
		messageID = o.id
	}
	body := map[string]any{
		"success": true, o.idKey: o.id, "messageId": messageID,
		"sentAt": stamp(time.Now()), "deliveryMethod": method,
	}
	if duplicate {
		b.metrics.sendDuplicate.Inc()
		body["duplicate"] = true
	}
	o.p.ack(o.e, body)
	if o.done != "" {
		o.p.emit(o.done, body)
	}
	if duplicate {
		o.p.u.repeatReceipt(o.p, o.id)
	}
}

// submit queues m to be published; the answer follows.
func (o *outgoing) submit(m moment.Moment, partner string) {
	u := o.p.u
	pub := mqttlink.Publish{Topic: m.Topic(), Payload: m.Payload, ContentType: m.ContentType, Properties: m.Properties(), QoS: 1}
	u.sendBegins()
	o.p.sends.add(func() {
		defer u.sendEnds()
		defer o.finish()
		duplicate, err := u.publish(o.ctx, pub)
		if err != nil {
			if !isRefusal(err) {
				o.p.log().Warn("send not stored", "event", o.e.Name, "id", o.id, "err", err)
			}
			o.refuse(refusalOf(err))
			return
		}
		o.stored(duplicate, u.partnerOnline(partner))
	}, u.b.spawn)
}

// isRefusal reports whether the broker itself said no.
func isRefusal(err error) bool {
	var reason *mqttlink.ReasonError
	return errors.As(err, &reason)
}

// publish sends p through the user's session, starting one where there is none.
func (u *user) publish(ctx context.Context, p mqttlink.Publish) (duplicate bool, err error) {
	for {
		s, err := u.await(ctx)
		if err != nil {
			return false, err
		}
		duplicate, err := s.publish(ctx, p)
		if !errors.Is(err, mqttlink.ErrClosed) {
			return duplicate, err
		}
		// The session ended under it; a new one may be on its way.
		if err := s.awaitEnd(ctx); err != nil {
			return false, err
		}
	}
}

// partnerOnline reports whether the partner's app is connected: by their
// presence, or by their session in this very process, which is known sooner.
func (u *user) partnerOnline(partner string) bool {
	if u.b.isUp(partner) {
		return true
	}
	u.mu.Lock()
	defer u.unlock()
	return u.session != nil && u.session.pres != nil && u.session.pres.online && u.session.partner == partner
}

// repeatReceipt tells a sender that repeats a photo what its receipts said.
func (u *user) repeatReceipt(p *phone, photo string) {
	u.mu.Lock()
	defer u.unlock()
	for _, r := range u.receipts {
		if r.photo == photo {
			for _, e := range deliveredEvents(r.body) {
				u.later(func() { p.emit(e.name, e.body) })
			}
		}
	}
}

// target returns the pair and partner that a send is for, or why it may not be
// sent. claimed is the partner that the phone means: a photo queued in the app
// for a former partner must never reach the next one.
func (p *phone) target(claimed string) (pair, partner string, no *refusal) {
	pr, partner, ok := p.u.partner()
	switch {
	case !ok:
		return "", "", refuse(codeNotPaired, "you are not paired with anybody")
	case !p.entitled(pr.ID):
		return "", "", refuse(codeNotPaired, "your token is for a pair that has ended; sign in again")
	case claimed != partner:
		return "", "", refuse(codeNotPartner, "%q is not your partner", claimed)
	}
	return pr.ID, partner, nil
}

// sendPhoto is the event send_photo. It runs on the socket's goroutine up to
// the decoded image; the event's bytes are not needed after that.
func (p *phone) sendPhoto(e *socketio.Event) {
	o := p.outgoing(e, "photoId", "photo_sent", "send_photo_error")
	o.run(o.photo)
}

func (p *phone) outgoing(e *socketio.Event, idKey, done, failed string) *outgoing {
	timeout := p.u.b.cfg.SendTimeout
	if !e.WantsAck() {
		timeout = max(timeout, unaskedTimeout)
	}
	ctx, cancel := context.WithTimeout(p.u.b.base, timeout)
	return &outgoing{p: p, e: e, ctx: ctx, cancel: cancel, idKey: idKey, done: done, failed: failed}
}

func (o *outgoing) photo() *refusal {
	_, m, partner, no := o.read()
	if no == nil {
		o.submit(m, partner)
	}
	return no
}

// read makes a moment of an event that comes with a photo, and takes the memory
// for it.
func (o *outgoing) read() (r photoRequest, m moment.Moment, partner string, no *refusal) {
	b := o.p.u.b
	object, err := firstArg(o.e)
	if err != nil {
		return r, m, "", refuse(codeInvalid, "%v", err)
	}
	r, no = b.parser.parse(object, o.e.Attachments)
	o.id = answerID(r.PhotoID)
	if no != nil {
		return r, m, "", no
	}
	o.msgID = r.MessageID
	pair, partner, no := o.p.target(r.PartnerID)
	if no != nil {
		return r, m, "", no
	}
	size := r.size()
	if size > b.cfg.PhotoBytes {
		return r, m, "", refuse(codeTooLarge, "a photo of %d bytes is too large (at most %d)", size, b.cfg.PhotoBytes)
	}
	if no := o.reserve(size, true); no != nil {
		return r, m, "", no
	}
	image, no := r.image()
	if no != nil {
		return r, m, "", no
	}
	contentType, ok := photo.Sniff(image)
	if !ok {
		return r, m, "", refuse(codePhoto, "photoData is not an image the app can show (JPEG, PNG, WebP or GIF)")
	}
	return r, moment.Moment{
		Pair: pair, User: o.p.u.key.user, Kind: moment.Photo, ID: r.PhotoID, ContentType: contentType,
		Caption: r.Caption, TakenAt: r.TakenAt, MessageID: r.MessageID,
		SenderName: b.deps.Registry.Name(o.p.u.key.user), Payload: image,
	}, partner, nil
}
