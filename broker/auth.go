package broker

import (
	"errors"
	"fmt"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/token"
)

// maxClientIDBytes bounds a client id. MQTT promises clients 23 (MQTT 5,
// section 3.1.3.1); ours go as far as the contract's ids.
const maxClientIDBytes = moment.MaxIDBytes

// maxWillDelay is the longest Will Delay Interval that is kept to, in seconds.
const maxWillDelay = 300

// connect decides about a CONNECT: who it is, which session it gets, and what
// CONNACK says. An error has been answered already.
func (b *Broker) connect(cl *mqtt.Client, pk packets.Packet) error {
	nc, ok := cl.Net.Conn.(*conn)
	if !ok {
		return fmt.Errorf("connection of type %T is not ours", cl.Net.Conn)
	}
	c := &client{
		b: b, cl: cl, nc: nc, ctx: nc.ctx,
		wake: make(chan struct{}, 1), closed: make(chan struct{}), gone: make(chan struct{}), done: make(chan struct{}),
		room:    make(chan struct{}, receiveMaximum),
		watches: map[ledger.LogID]func(){},
		window:  b.cfg.Window,
	}
	if rm := int(cl.Properties.Props.ReceiveMaximum); rm > 0 {
		c.window = min(c.window, rm)
	}
	if code, ok := b.limits.connect(nc.Conn); !ok {
		b.metrics.overLimit.Inc()
		return b.refuseConnect(cl, code)
	}
	raw, code, ok := connectToken(pk)
	if !ok {
		return b.refuseConnect(cl, code)
	}
	who, err := b.deps.Verifier.Verify(c.ctx, raw)
	if err != nil {
		b.limits.loginFailed(nc.Conn)
		return b.refuseConnect(cl, tokenCode(err))
	}
	if who, err = actFor(who, string(pk.Connect.Username)); err != nil {
		return b.refuseConnect(cl, packets.Code{Code: packets.ErrBadUsernameOrPassword.Code, Reason: err.Error()})
	}
	c.token.Store(&who)
	b.refreshRights(c)
	if code, ok := b.nameSession(c, strings.Clone(pk.Connect.ClientIdentifier)); !ok {
		return b.refuseConnect(cl, code)
	}
	if err := b.checkWill(c); err != nil {
		return b.refuseConnect(cl, packets.Code{Code: packets.ErrNotAuthorized.Code, Reason: "will: " + err.Error()})
	}
	if !b.limits.join(who.User) {
		b.metrics.overLimit.Inc()
		return b.refuseConnect(cl, packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: "too many connections of this user"})
	}
	cl.Properties.Props.TopicAliasMaximum = 0 // facts-mochi.md, 6
	nc.client = c                             // from here on ServeConn detaches it
	b.attach(c)
	if who.Role != token.RoleAdmin {
		if err := b.begin(c, pk.Connect.Clean); err != nil {
			b.log.Error("session not begun", "client", cl.ID, "error", err)
			return b.refuseConnect(cl, packets.Code{Code: packets.ErrServerBusy.Code, Reason: "the session cannot be stored: " + publicReason(err)})
		}
	}
	c.endWithToken()
	return nil
}

// endWithToken arms the timer that ends the connection when its token expires.
// The bridge's token is checked when it connects; whose phones it serves is
// checked by the bridge.
func (c *client) endWithToken() {
	if c.expiry != nil {
		c.expiry.Stop()
	}
	if who := c.who(); !who.Expires.IsZero() && who.Role != token.RoleBridge {
		c.expiry = time.AfterFunc(time.Until(who.Expires), func() { c.end(packets.ErrMaxConnectTime) })
	}
}

// refuseConnect answers a CONNECT with a reason and returns it as the error
// that ends the connection.
func (b *Broker) refuseConnect(cl *mqtt.Client, code packets.Code) error {
	b.metrics.refusedConnects.Inc()
	b.log.Info("connect refused", "remote", cl.Net.Remote, "code", fmt.Sprintf("0x%02X", code.Code), "reason", code.Reason)
	out := code
	if cl.Properties.ProtocolVersion < 5 {
		out.Code = v3Connack(code.Code)
	}
	// mochi maps codes to 3.1.1 by their whole value, reason included, so a
	// reason of ours passes it as it is.
	if err := b.mq.SendConnack(cl, out, false, nil); err != nil {
		return errors.Join(code, err)
	}
	return code
}

// v3Connack returns the 3.1.1 return code for a reason code (MQTT 3.1.1,
// section 3.2.2.3).
func v3Connack(code byte) byte {
	switch code {
	case packets.ErrUnsupportedProtocolVersion.Code:
		return 0x01
	case packets.ErrClientIdentifierNotValid.Code:
		return 0x02
	case packets.ErrServerBusy.Code, packets.ErrServerUnavailable.Code, packets.ErrQuotaExceeded.Code, packets.ErrConnectionRateExceeded.Code:
		return 0x03
	case packets.ErrBadUsernameOrPassword.Code:
		return 0x04
	}
	return 0x05
}

// tokenCode translates a refused token.
func tokenCode(err error) packets.Code {
	var te *token.Error
	if !errors.As(err, &te) {
		return packets.Code{Code: packets.ErrServerUnavailable.Code, Reason: "the token cannot be checked now"}
	}
	code := packets.ErrBadUsernameOrPassword.Code
	if te.Code == token.CodeRevoked {
		code = packets.ErrNotAuthorized.Code
	}
	return packets.Code{Code: code, Reason: te.Error()}
}

// actFor checks the MQTT username: the token's own user or nothing, and for
// the bridge the user it acts for.
func actFor(p token.Principal, username string) (token.Principal, error) {
	if p.Role == token.RoleBridge {
		if err := moment.CheckID("user", username); err != nil {
			return p, fmt.Errorf("a bridge names the user it acts for as username: %w", err)
		}
		return token.Principal{User: username, Role: token.RoleBridge, Issuer: p.Issuer, ID: p.ID, IssuedAt: p.IssuedAt, Expires: p.Expires}, nil
	}
	if username != "" && username != p.User {
		return p, fmt.Errorf("username must be the token's user or empty")
	}
	return p, nil
}

// nameSession puts the client id into its user's namespace, before mochi
// registers it, so that nobody can take over another user's session.
func (b *Broker) nameSession(c *client, name string) (packets.Code, bool) {
	invalid := func(format string, args ...any) (packets.Code, bool) {
		return packets.Code{Code: packets.ErrClientIdentifierNotValid.Code, Reason: fmt.Sprintf(format, args...)}, false
	}
	switch {
	case c.who().Device != "":
		if name == "" {
			c.cl.Properties.Props.AssignedClientID = c.who().Device
		}
		name = c.who().Device
	case name == "":
		name = c.cl.Properties.Props.AssignedClientID // mochi made one up
	case len(name) > maxClientIDBytes:
		return invalid("client id of %d bytes is too long (at most %d)", len(name), maxClientIDBytes)
	case isAppName(name) != (c.who().Role == token.RoleBridge):
		if isAppName(name) {
			return invalid("client ids app and app-… belong to the bridge")
		}
		return invalid("a bridge connects as app or app-…")
	default:
		if _, taken := b.deps.Registry.Device(name); taken {
			return invalid("client id is a device's, and only that device's token may use it")
		}
	}
	c.cl.ID = c.who().User + "/" + name
	if c.who().Role == token.RoleAdmin {
		// Their sessions are mochi's: whoever has the same names and another
		// role must not inherit what waits in one. No user's id is empty.
		c.cl.ID = "/" + c.cl.ID
	}
	return packets.Code{}, true
}

// checkWill refuses a will that the client could not publish itself: mochi
// publishes wills past the ACL. Wills on a pair's tree are limited to live
// topics; anything durable must be acknowledged to somebody.
func (b *Broker) checkWill(c *client) error {
	w := c.cl.Properties.Will
	if w.Flag == 0 {
		return nil
	}
	t, err := moment.ParseTopic(w.TopicName)
	if err != nil {
		return err
	}
	if err := b.mayPublish(c.can.Load(), t); err != nil {
		return fmt.Errorf("topic %q: %w", w.TopicName, err)
	}
	switch t.Class {
	case moment.ClassOther, moment.ClassLive:
	default:
		return fmt.Errorf("topic %q: a will may only be a live topic", w.TopicName)
	}
	if len(w.Payload) > maxSmallBytes && t.Class == moment.ClassLive {
		return fmt.Errorf("payload of %d bytes is too large (at most %d)", len(w.Payload), maxSmallBytes)
	}
	// mochi keeps a delayed will in memory, also when its session has ended,
	// which is when it is due at the latest (MQTT 5, section 3.1.3.2.2).
	c.cl.Properties.Will.WillDelayInterval = min(w.WillDelayInterval, maxWillDelay, c.cl.Properties.Props.SessionExpiryInterval)
	return nil
}

// ownsDevice returns the check that a device belongs to one of pair's users.
func (b *Broker) ownsDevice(pair string) func(string) bool {
	return func(device string) bool {
		d, ok := b.deps.Registry.Device(device)
		if !ok || d.Revoked {
			return false
		}
		p, ok := b.deps.Registry.Pair(pair)
		return ok && (p.Users[0] == d.User || p.Users[1] == d.User)
	}
}

// publicReason is what a client may be told of a storage error.
func publicReason(err error) string {
	switch {
	case errors.Is(err, ledger.ErrFull):
		return "storage full"
	case errors.Is(err, ledger.ErrUnhealthy):
		return "storage unhealthy"
	}
	return "storage error"
}
