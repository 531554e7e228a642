package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pairsync/internal/mqttlink"
)

const (
	// sessionExpiry is how long a frame may be switched off (contract, 2).
	sessionExpiry = 90 * 24 * time.Hour
	// receiveMaximum bounds the memory of photos on their way in: with the
	// default of 16, a burst of large ones would not fit a small board.
	receiveMaximum = 4
	// maxPacketBytes leaves room above maxPhotoBytes, so that a photo that is
	// too large arrives, is counted and never comes again: what does not fit
	// a packet the broker skips silently.
	maxPacketBytes = 8 << 20
	// settleTimeout is how long the broker's answers after a connect may take
	// while nothing moves: on a slow link they come behind a window of photos.
	settleTimeout = 30 * time.Second
	// relearnAfter is the wait after a pairing event before the agent
	// reconnects to learn its pair: more events may come, and their
	// acknowledgements are on the way.
	relearnAfter = 200 * time.Millisecond
	// minResettle and maxResettle bound the wait, which doubles, before a
	// reconnect because the subscriptions could not be put in place.
	minResettle = time.Second
	maxResettle = time.Minute
	// minSessionPause and maxSessionPause bound the wait before a session that
	// follows others which soon ended.
	minSessionPause = time.Second
	maxSessionPause = 30 * time.Second
)

var (
	// errNewSession ends a session whose state on the broker does not match
	// what this device needs; the next one starts clean.
	errNewSession = errors.New("session on the broker is not ours to continue")
	// errIdentity ends a session when the token has become another device's.
	errIdentity = errors.New("token names another user or device")
)

// setDial fills a.dial from Deps or the configuration.
func (a *Agent) setDial(deps Deps) error {
	if deps.Dial != nil {
		a.dial.Dial = deps.Dial
		return nil
	}
	if a.cfg.Broker == "" {
		return errors.New("broker: is empty: name the broker, as in mqtt://example.org")
	}
	u, err := url.Parse(a.cfg.Broker)
	if err != nil {
		return errors.New("broker: is not a URL")
	}
	a.dial.Broker = u
	if a.cfg.CAFile != "" {
		pem, err := os.ReadFile(a.cfg.CAFile)
		if err != nil {
			return fmt.Errorf("ca_file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("ca_file: %s holds no PEM certificate", a.cfg.CAFile)
		}
		a.dial.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return nil
}

// stayConnected runs one session after another until ctx ends or the store
// fails. Within a session the link reconnects by itself; a new one begins only
// when the device is another, or when the broker's session cannot be used.
func (a *Agent) stayConnected(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		start := time.Now()
		err := a.runSession(ctx)
		if time.Since(start) > maxSessionPause {
			wait = 0
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case a.store.db.Healthy() != nil:
			return fmt.Errorf("store: %w", a.store.db.Healthy())
		case errors.Is(err, errNewSession), errors.Is(err, errIdentity):
			a.log.Info("starting a new session", "why", err)
		default:
			a.log.Warn("session ended", "err", err, "wait", wait)
			a.board.set(func(v *view) { v.offline = err.Error() })
		}
		if !pause(ctx, wait) {
			return nil
		}
		wait = min(max(2*wait, minSessionPause), maxSessionPause)
	}
}

// pause waits for d; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// session is one MQTT session: a link, what it receives, and what must be
// settled after each connect.
type session struct {
	a    *Agent
	id   identity
	link link
	// messages carries what arrives to the receiver; nobody closes it.
	messages chan incoming
	ups      chan bool     // session present, of the newest connect; capacity 1
	relearn  chan struct{} // a pairing event came; capacity 1
	end      context.CancelCauseFunc

	mu    sync.Mutex // guards the field below
	claim string     // the pair in the token used last
}

// runSession runs one session to its end and returns why it ended.
func (a *Agent) runSession(ctx context.Context) error {
	raw, err := a.token(ctx)
	if err != nil {
		return err
	}
	id, err := parseIdentity(raw)
	if err != nil {
		return err
	}
	have, ok, err := a.store.subscribed()
	if err != nil {
		return err
	}
	clean := !ok || have != a.wanted(id, have.Pair)
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s := &session{
		a: a, id: id, end: end, claim: id.Pair,
		messages: make(chan incoming, 2*receiveMaximum),
		ups:      make(chan bool, 1), relearn: make(chan struct{}, 1),
	}
	// gctx, because the link cannot end while a message waits for a receiver
	// that has ended.
	g, gctx := errgroup.WithContext(ctx)
	if s.link, err = a.newLink(s.linkConfig(gctx, clean), a.log); err != nil {
		return err
	}
	if clean {
		a.log.Info("asking the broker for a new session with everything it holds", "device", id.Device)
	}
	a.board.set(func(v *view) { v.link, v.session = s.link, ctx })
	defer a.board.set(func(v *view) { v.link, v.session, v.connected, v.ready = nil, nil, false, false })

	r := &receiver{store: a.store, board: a.board, show: a.cfg.Show, relearn: s.relearnSoon, log: a.log}
	g.Go(func() error { return s.link.Run(gctx) })
	g.Go(func() error { return r.run(gctx, s.messages) })
	g.Go(func() error { return s.settleAll(gctx) })
	err = g.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// wanted is the record of a session that has everything in place.
func (a *Agent) wanted(id identity, pair string) subscribed {
	return subscribed{User: id.User, Device: id.Device, Pair: pair, Show: a.cfg.Show}
}

func (s *session) linkConfig(ctx context.Context, clean bool) mqttlink.Config {
	c := s.a.dial
	c.ClientID = s.id.Device
	c.Username = s.id.User
	c.Token = s.token
	c.SessionExpiry = sessionExpiry
	c.CleanStart = clean
	c.ReceiveMaximum = receiveMaximum
	c.MaxPacketBytes = maxPacketBytes
	c.Receive = func(m *mqttlink.Message) {
		select {
		case s.messages <- incoming{topic: m.Topic, payload: m.Payload, props: m.Properties, again: m.Duplicate, ack: m.Ack}:
		case <-ctx.Done(): // not acknowledged: it comes again
		}
	}
	c.Up = s.up
	c.Down = s.down
	return c
}

// down is the link's callback of each lost connection and failed attempt. Days
// offline are many attempts: one that says nothing new wakes nobody.
func (s *session) down(err error) {
	why := err.Error()
	v, _ := s.a.board.get()
	if !v.connected && v.offline == why {
		s.a.log.Debug("still offline", "why", why)
		return
	}
	s.a.board.set(func(v *view) { v.connected, v.ready, v.offline = false, false, why })
	if v.connected {
		s.a.log.Info("offline", "why", why)
	}
}

// token reads the token for a connect, and ends the session when it has become
// another's.
func (s *session) token(ctx context.Context) (string, error) {
	raw, err := s.a.token(ctx)
	if err != nil {
		return "", err
	}
	id, err := parseIdentity(raw)
	if err != nil {
		return "", err
	}
	if id.User != s.id.User || id.Device != s.id.Device {
		s.end(errIdentity)
		return "", errIdentity
	}
	s.mu.Lock()
	s.claim = id.Pair
	s.mu.Unlock()
	return raw, nil
}

// up is the link's callback of each connect.
func (s *session) up(present bool) {
	s.a.board.set(func(v *view) { v.connected = true })
	select {
	case <-s.ups: // overtaken
	default:
	}
	s.ups <- present
}

func (s *session) relearnSoon() {
	select {
	case s.relearn <- struct{}{}:
	default:
	}
}

// settleAll settles each connect, and reconnects after pairing events, until
// ctx ends.
func (s *session) settleAll(ctx context.Context) error {
	wait, again := minResettle, (<-chan time.Time)(nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case present := <-s.ups:
			again = nil
			err := s.settle(ctx, present)
			switch {
			case err == nil:
				wait = minResettle
			case errors.Is(err, errNewSession):
				return err
			case ctx.Err() != nil:
				return nil
			default: // the next connect tries again; without one, reconnect
				s.a.board.set(func(v *view) { v.offline = err.Error() })
				s.a.log.Warn("subscriptions are not in place, connecting again", "wait", wait, "err", err)
				again = time.After(wait)
				wait = min(2*wait, maxResettle)
			}
		case <-again:
			again = nil
			s.link.Bounce()
		case <-s.relearn:
			if !pause(ctx, relearnAfter) {
				return nil
			}
			select {
			case <-s.relearn:
			default:
			}
			s.a.log.Info("pairing changed, connecting again to learn the pair")
			s.link.Bounce()
		}
	}
}
