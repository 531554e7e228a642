package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/token"
)

// Expiry says what becomes of a live connection when its token expires
// (contract, section 3).
type Expiry string

// The policies.
const (
	// ExpirySession lets it live on until it ends by itself, is revoked or is
	// MaxSession old. For tokens of a minute, which only say who comes in.
	ExpirySession Expiry = "session"
	// ExpiryGrace asks for a new token with auth:expiring and ends it a while
	// after the old one expired.
	ExpiryGrace Expiry = "grace"
	// ExpiryStrict ends it when the token expires.
	ExpiryStrict Expiry = "strict"
)

func (e Expiry) validate() error {
	switch e {
	case ExpirySession, ExpiryGrace, ExpiryStrict:
		return nil
	}
	return fmt.Errorf("%q is none of session, grace and strict", e)
}

const (
	// expiryNotice is how long before a token's end auth:expiring is emitted.
	expiryNotice = 30 * time.Second
	// expiryGrace is how long after it the connection is ended.
	expiryGrace = 30 * time.Second
	// appTokenLife is how long the tokens live that the bridge gives to apps
	// (contract, section 5).
	appTokenLife = 30 * 24 * time.Hour
)

// AuthConfig is what the bridge has to know of the auth section.
type AuthConfig struct {
	// Expiry is for our own tokens, Issuers for those of external issuers, by
	// name; an issuer that is not there has Expiry as well.
	Expiry  Expiry
	Issuers map[string]Expiry
	// MaxSession bounds a connection, counted from its last good token; 0: no
	// bound.
	MaxSession time.Duration
	// ReconnectWindow, where not 0, lets an app in with an expired token of an
	// external issuer whose session was seen alive so short a time ago. Only
	// with ExpirySession.
	ReconnectWindow time.Duration
}

// policy returns what counts for who's token.
func (c AuthConfig) policy(who *token.Principal) Expiry {
	if e, ok := c.Issuers[who.Issuer]; ok {
		return e
	}
	return c.Expiry
}

// deadlines returns when the app is to be asked for a new token and when the
// connection ends; zero is never.
func (c AuthConfig) deadlines(who *token.Principal, now time.Time) (ask, end time.Time) {
	if c.MaxSession > 0 {
		end = now.Add(c.MaxSession)
	}
	var expires time.Time
	switch c.policy(who) {
	case ExpirySession:
		return ask, end
	case ExpiryGrace:
		ask, expires = who.Expires.Add(-expiryNotice), who.Expires.Add(expiryGrace)
	case ExpiryStrict:
		expires = who.Expires
	}
	if end.IsZero() || expires.Before(end) {
		end = expires
	}
	return ask, end
}

// verify checks an app's token. returning is set where it has expired and
// is accepted all the same. The error is a *token.Error.
func (b *Bridge) verify(ctx context.Context, raw string) (who token.Principal, returning bool, err error) {
	auth := b.cfg.Auth
	who, err = b.deps.Verifier.VerifyReturning(ctx, raw, func(p token.Principal) bool {
		returning = auth.policy(&p) == ExpirySession && time.Since(b.deps.Registry.SessionSeen(p)) <= auth.ReconnectWindow
		return returning
	})
	switch {
	case err != nil:
		return token.Principal{}, false, err
	case who.Role != token.RoleApp:
		return token.Principal{}, false, invalid("a token of role " + string(who.Role) + " cannot be used by an app")
	case auth.policy(&who) == ExpiryStrict && !time.Now().Before(who.Expires):
		// The verifier forgives a few seconds; the connection would end at once.
		return token.Principal{}, false, &token.Error{Code: token.CodeExpired, Reason: "token has just expired"}
	}
	return who, returning, nil
}

// remember keeps what a good token said of its user, and that its session is
// alive. Without it the phone still works.
func (b *Bridge) remember(ctx context.Context, who token.Principal, returning bool) {
	if err := b.deps.Registry.SeeUser(ctx, who.User, who.Name, who.Email); err != nil {
		b.log.Warn("name of user not kept", "user", who.User, "err", err)
	}
	if returning {
		b.metrics.returned.Inc()
		b.log.Info("let in again with an expired token", "user", who.User, "issuer", who.Issuer, "session", who.Lineage(),
			"expired", who.Expires, "seen", b.deps.Registry.SessionSeen(who))
		return
	}
	if window := b.cfg.Auth.ReconnectWindow; window > 0 && who.External {
		if err := b.deps.Registry.SeeSession(ctx, who, window); err != nil {
			b.log.Warn("session of user not kept", "user", who.User, "err", err)
		}
	}
}

// appToken signs a token of ours for the user of an external one. It ends with
// the revocation of that one's session.
func (b *Bridge) appToken(who *token.Principal) (raw string, signed token.Principal, err error) {
	return b.deps.Sign(token.Principal{
		User: who.User, Role: token.RoleApp, Name: who.Name, Email: who.Email, Session: who.Lineage(),
	}, appTokenLife)
}

// offerToken hands the app a token that outlives the one it came with.
func (p *phone) offerToken() {
	who := p.who.Load()
	raw, signed, err := p.u.b.appToken(who)
	if err != nil {
		p.log().Error("resume token not made", "err", err)
		return
	}
	p.emit("auth:token", map[string]any{"token": raw, "expiresAt": signed.Expires.UnixMilli()})
}

// arm sets the timers for the phone's present token; u.mu is held.
func (p *phone) arm() {
	p.disarm()
	if p.gone {
		return
	}
	now := time.Now()
	p.asks, p.ends = p.u.b.cfg.Auth.deadlines(p.who.Load(), now)
	if !p.asks.IsZero() {
		p.askTimer = time.AfterFunc(p.asks.Sub(now), p.askForToken)
	}
	if !p.ends.IsZero() {
		p.endTimer = time.AfterFunc(p.ends.Sub(now), p.expire)
	}
}

// disarm stops the timers; u.mu is held. One that has fired already finds
// that its time has not come.
func (p *phone) disarm() {
	p.asks, p.ends = time.Time{}, time.Time{}
	for _, t := range []*time.Timer{p.askTimer, p.endTimer} {
		if t != nil {
			t.Stop()
		}
	}
}

func (p *phone) askForToken() {
	p.u.mu.Lock()
	defer p.u.unlock()
	if p.asks.IsZero() || time.Now().Before(p.asks) {
		return
	}
	body := map[string]any{"expiresAt": p.who.Load().Expires.UnixMilli(), "disconnectAt": p.ends.UnixMilli()}
	p.u.later(func() { p.emit("auth:expiring", body) })
}

// expire ends a connection whose time is over, in such a way that the app
// comes back and has its token looked at.
func (p *phone) expire() {
	p.u.mu.Lock()
	defer p.u.unlock()
	if p.ends.IsZero() || time.Now().Before(p.ends) {
		return
	}
	p.u.b.metrics.expired.Inc()
	p.log().Info("socket ended with its token")
	p.u.later(p.sock.Drop)
}

// refreshToken is the event auth:refresh: a new token of the same user takes
// the place of the one that the socket came with. A refused one changes
// nothing.
func (p *phone) refreshToken(e *socketio.Event) {
	var in struct {
		Token string `json:"token"`
	}
	if !p.object(e, &in) {
		return
	}
	who, err := p.newToken(in.Token)
	if err != nil {
		p.log().Info("token not refreshed", "err", err)
		body := refusedToken(err)
		body["success"] = false
		p.ack(e, body)
		return
	}
	p.ack(e, map[string]any{"success": true, "expiresAt": who.Expires.UnixMilli()})
}

func (p *phone) newToken(raw string) (token.Principal, error) {
	b, u := p.u.b, p.u
	ctx, cancel := context.WithTimeout(b.base, verifyTimeout)
	defer cancel()
	client := b.client(p.sock.Handshake())
	if err := client.allowed(); err != nil {
		return token.Principal{}, err
	}
	who, returning, err := b.verify(ctx, raw)
	switch {
	case err != nil:
	case returning:
		err = &token.Error{Code: token.CodeExpired, Reason: "an expired token refreshes nothing"}
	case who.User != u.key.user:
		err = invalid("the new token is for another user")
	}
	if err != nil {
		client.refused(err)
		return token.Principal{}, err
	}
	b.remember(ctx, who, false)

	u.mu.Lock()
	pair := registryPair(u)
	before := p.entitled(pair)
	p.who.Store(&who)
	p.arm()
	if s := u.session; s != nil && p.joined && !before && p.entitled(pair) {
		s.joined(p)
	}
	u.unlock()
	b.metrics.refreshed.Inc()
	// It may have been revoked between the check and its taking effect.
	if b.deps.Registry.Revoked(who) {
		p.revoke()
		return token.Principal{}, &token.Error{Code: token.CodeRevoked, Reason: "this token was revoked"}
	}
	return who, nil
}

// registryPair returns the id of u's present pair, or nothing.
func registryPair(u *user) string {
	pair, _, _ := u.partner()
	return pair.ID
}

// refusedToken is what a program is told of a refused token. serverTime (ms)
// lets an app with a wrong clock find out why its token counts as expired.
func refusedToken(err error) map[string]any {
	e := &token.Error{Code: token.CodeInvalid, Reason: "the token could not be checked"}
	errors.As(err, &e)
	return map[string]any{"error": e.Reason, "code": e.Code, "retryable": e.Retryable(), "serverTime": time.Now().UnixMilli()}
}
