package sim

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"pairsync/bridge/socketio"
)

// The app's waits.
const (
	dialTimeout   = 10 * time.Second
	joinTimeout   = 5 * time.Second
	sendTimeout   = 10 * time.Second
	firstBackoff  = time.Second
	lastBackoff   = 5 * time.Second
	heartbeatWait = 30 * time.Second
	// unsureAfter is how long an emit may have been on a connection that is
	// dead already: the ping interval and timeout, and some more.
	unsureAfter = time.Minute
)

// phone is the app of one user on one host of the network: it reconnects,
// joins its room, keeps what it is to send until it is acknowledged, and sends
// it again under the same photoId; it answers receive_photo with
// photo_received and drops a messageId that it has seen, in silence, as the
// app does (facts-app.md).
type phone struct {
	w     *world
	user  string
	host  string
	url   string
	token string
	deaf  bool // it ignores photos: the app's connection socket
	wires wires
	runner

	mu        sync.Mutex // guards the fields below
	client    *socketio.Client
	joined    bool
	changed   chan struct{} // closed and replaced when the fields above or outbox change
	outbox    []*photo
	refused   map[string]string // code of a final refusal, by id
	seen      map[string]bool   // messageIds
	shown     []sighting
	arrivals  int                        // receive_photo, repeats included
	buffered  []string                   // photo_received to be sent at the next connect
	confirmed map[string]*receivedReport // by photo id
	receipts  map[string]map[string]bool // devices that have a photo of ours; "" is the phone
	partner   *bool                      // partner_presence, the last
	onlines   int                        // how often partner_presence said online
	events    []string                   // names of the other events
}

// receivedReport is a photo_received that was sent.
type receivedReport struct {
	client *socketio.Client
	at     time.Time
	lost   bool // its connection ended before anybody could be sure
}

// phone makes a phone that connects to url; it is switched on with on.
func (w *world) phone(user, url string) *phone {
	w.t.Helper()
	return w.phoneWith(user, url, w.appToken(user))
}

func (w *world) phoneWith(user, url, token string) *phone {
	return &phone{
		w: w, user: user, host: user + "-phone", url: url, token: token,
		changed: make(chan struct{}), refused: map[string]string{}, seen: map[string]bool{},
		confirmed: map[string]*receivedReport{}, receipts: map[string]map[string]bool{},
	}
}

// connectionSocket makes the app's other socket: it joins the same room and
// ignores photos (facts-app.md).
func (w *world) connectionSocket(of *phone) *phone {
	p := w.phoneWith(of.user, of.url, of.token)
	p.host, p.deaf = of.host+"-connection", true
	return p
}

// on switches the phone on; stop switches it off.
func (p *phone) on() *phone {
	p.start(p.w.t, func(ctx context.Context) {
		var sender sync.WaitGroup
		sender.Go(func() { p.sendAll(ctx) })
		p.stayConnected(ctx)
		sender.Wait()
	})
	return p
}

// change wakes who waits for changed; p.mu is held.
func (p *phone) change() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *phone) stayConnected(ctx context.Context) {
	backoff := firstBackoff
	for ctx.Err() == nil {
		since := time.Now()
		if err := p.connect(ctx); err != nil {
			p.w.log.Debug("phone not connected", "who", p.host, "err", err)
		}
		if time.Since(since) > lastBackoff {
			backoff = firstBackoff
		}
		pause(ctx, backoff)
		backoff = min(2*backoff, lastBackoff)
	}
}

// connect is one connection, from the dial to its end.
func (p *phone) connect(ctx context.Context) error {
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := socketio.Dial(dial, p.url, socketio.DialOptions{
		Auth: map[string]string{"token": p.token, "userId": p.user}, NetDial: p.dial, On: p.handlers(),
	})
	if err != nil {
		return err
	}
	defer func() { <-c.Done() }()
	defer p.disconnected(c)
	p.connected(c)
	join, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	answer, err := c.EmitWithAck(join, "join_room", map[string]string{"userId": p.user})
	if err != nil {
		return err
	}
	if in := decode[struct{ Success bool }](answer); !in.Success {
		return errors.New("join_room refused")
	}
	p.mu.Lock()
	p.joined = true
	p.change()
	p.mu.Unlock()
	beat := time.NewTicker(heartbeatWait)
	defer beat.Stop()
	for {
		select {
		case <-beat.C:
			if err := c.Emit("heartbeat", map[string]string{"userId": p.user}); err != nil {
				return err
			}
		case <-c.Done():
			return c.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *phone) dial(ctx context.Context, _, address string) (net.Conn, error) {
	return p.wires.dial(ctx, p.w.net, p.host, address)
}

// connected lets c be used, and first sends what was buffered without it, as
// socket.io-client does.
func (p *phone) connected(c *socketio.Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.client = c
	buffered := p.buffered
	p.buffered = nil
	for _, id := range buffered {
		p.report(id)
	}
	p.change()
}

func (p *phone) disconnected(c *socketio.Client) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.client, p.joined = nil, false
	for _, r := range p.confirmed {
		if r.client == c && time.Since(r.at) < unsureAfter {
			r.lost = true
		}
	}
	p.change()
}

// report sends photo_received, now or at the next connect; p.mu is held.
func (p *phone) report(id string) {
	c := p.client
	if c == nil {
		p.buffered = append(p.buffered, id)
		return
	}
	p.confirmed[id] = &receivedReport{client: c, at: time.Now()}
	go func() { // a stalled link must not hold p.mu; the connection's end ends it
		_ = c.Emit("photo_received", map[string]any{"photoId": id, "receivedAt": time.Now().UnixMilli()})
	}()
}

func (p *phone) handlers() map[string]func(*socketio.Event) {
	on := map[string]func(*socketio.Event){
		"receive_photo":    p.receivePhoto,
		"photo_delivered":  p.photoDelivered,
		"partner_presence": p.partnerPresence,
	}
	for _, name := range []string{"code_used", "partner_connected", "partner_disconnected", "pairing_success", "auth:revoked", "receive_note"} {
		on[name] = func(e *socketio.Event) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.events = append(p.events, e.Name)
		}
	}
	return on
}

func (p *phone) receivePhoto(e *socketio.Event) {
	in := decodeEvent[struct {
		PhotoID, MessageID, PhotoData, SenderID string
	}](e)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deaf {
		return
	}
	p.arrivals++
	if p.seen[in.MessageID] {
		return
	}
	p.seen[in.MessageID] = true
	b, err := base64.StdEncoding.DecodeString(in.PhotoData)
	if err != nil || in.SenderID == "" || in.PhotoID == "" {
		p.w.t.Errorf("%s: receive_photo of %q from %q: %v", p.host, in.PhotoID, in.SenderID, err)
		return
	}
	p.shown = append(p.shown, sighting{in.PhotoID, in.SenderID, sha256.Sum256(b)})
	p.report(in.PhotoID)
}

func (p *phone) photoDelivered(e *socketio.Event) {
	in := decodeEvent[struct{ PhotoID, Device string }](e)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.receipts[in.PhotoID] == nil {
		p.receipts[in.PhotoID] = map[string]bool{}
	}
	p.receipts[in.PhotoID][in.Device] = true
}

func (p *phone) partnerPresence(e *socketio.Event) {
	in := decodeEvent[struct{ IsOnline bool }](e)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.partner = &in.IsOnline
	if in.IsOnline {
		p.onlines++
	}
}

// has reports whether the phone has shown all of ids.
func (p *phone) has(ids []string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if !slices.ContainsFunc(p.shown, func(s sighting) bool { return s.id == id }) {
			return false
		}
	}
	return true
}

// wireCount is how many photos the server has sent, repeats included.
func (p *phone) wireCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.arrivals
}

// unsure reports whether the photo_received of id may have been lost on its
// way: the app sends no other, so there may be no receipt.
func (p *phone) unsure(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.confirmed[id]
	return r != nil && r.lost
}

// receiptFrom reports whether device has confirmed the photo to this phone.
func (p *phone) receiptFrom(id, device string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.receipts[id][device]
}

// isJoined reports whether the phone is connected and in its room.
func (p *phone) isJoined() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.joined
}

// seenEvents returns the names of the pairing events that arrived.
func (p *phone) seenEvents() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

// wentOnline returns how often the partner was said to be online.
func (p *phone) wentOnline() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.onlines
}

// partnerOnline returns what the phone shows of its partner.
func (p *phone) partnerOnline() (online, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.partner == nil {
		return false, false
	}
	return *p.partner, true
}

// view is what the phone has shown.
func (p *phone) view() viewer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return viewer{name: p.host, partner: p.w.book.partner(p.user), seen: slices.Clone(p.shown)}
}

// final returns the codes of what was refused for good.
func (p *phone) final() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.refused)
}

// decode reads the first of an answer's arguments; what does not fit is zero.
func decode[T any](args []json.RawMessage) (v T) {
	if len(args) > 0 {
		_ = json.Unmarshal(args[0], &v)
	}
	return v
}

func decodeEvent[T any](e *socketio.Event) T {
	args, err := e.Args()
	if err != nil {
		args = nil
	}
	return decode[T](args)
}
