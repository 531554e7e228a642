package broker

import (
	"errors"

	"github.com/mochi-mqtt/server/v2/packets"
)

// authMethod is the one method of MQTT 5's enhanced authentication that we
// speak (section 4.12): the data is a token.
const authMethod = "JWT"

// connectToken returns the token of a CONNECT: its password or, with the
// authentication method JWT, its authentication data.
func connectToken(pk packets.Packet) (raw string, code packets.Code, ok bool) {
	method := pk.Properties.AuthenticationMethod
	if method != "" && method != authMethod {
		return "", packets.Code{
			Code:   packets.ErrBadAuthenticationMethod.Code,
			Reason: "the authentication method is " + authMethod + ", or none and the token as password",
		}, false
	}
	if len(pk.Connect.Password) == 0 && method != "" {
		return string(pk.Properties.AuthenticationData), code, true
	}
	return string(pk.Connect.Password), code, true
}

// reauthenticate replaces a live connection's token (MQTT 5, section 4.12.1):
// its rights are computed anew and its end moves to the new token's. Only a
// token of the same user, device and role will do; another one ends the
// connection. An error is a reason code that mochi disconnects with.
func (b *Broker) reauthenticate(c *client, pk packets.Packet) error {
	switch {
	case pk.ReasonCode != packets.CodeReAuthenticate.Code:
		return packets.ErrProtocolViolation
	case pk.Properties.AuthenticationMethod != authMethod:
		return packets.ErrBadAuthenticationMethod
	}
	old := c.who()
	who, err := b.deps.Verifier.Verify(c.ctx, string(pk.Properties.AuthenticationData))
	if err == nil {
		who, err = actFor(who, old.User)
	}
	if err == nil && (who.User != old.User || who.Device != old.Device || who.Role != old.Role) {
		err = errors.New("the new token is for another user, device or role")
	}
	if err != nil {
		b.limits.loginFailed(c.nc.Conn, err)
		b.log.Info("re-authentication refused", "client", c.cl.ID, "reason", err)
		return packets.ErrNotAuthorized
	}
	c.token.Store(&who)
	c.endWithToken()
	b.refreshRights(c)
	return c.cl.WritePacket(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Auth},
		ReasonCode:  packets.CodeSuccess.Code,
		Properties:  packets.Properties{AuthenticationMethod: authMethod},
	})
}
