package bridge

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/moment"
	"pairsync/internal/token"
)

// admission is what a handshake that was accepted said.
type admission struct {
	who       token.Principal
	returning bool // the token has expired and was accepted all the same
	device    string
	binary    bool
}

// key names the session that the socket belongs to.
func (a admission) key() userKey { return userKey{a.who.User, a.device} }

// admissionKey is where admit leaves the admission on its socket.
const admissionKey = "admission"

const (
	// verifyTimeout bounds the look-up of an external issuer's keys.
	verifyTimeout = 5 * time.Second
	// maxDeviceBytes keeps "app-" and a device id within a legal client id.
	maxDeviceBytes = moment.MaxIDBytes - len("app-")
	// codeStopping is what a phone gets outside Run: it says nothing about its
	// token, and that it may come again.
	codeStopping = token.CodeRateLimited
)

// admit checks a handshake (contract, section 4). Its error is what the phone
// gets as connect_error.
func (b *Bridge) admit(sock *socketio.Socket) error {
	base, ok := b.open()
	if !ok {
		return connectError(&token.Error{Code: codeStopping, Reason: "the server is starting or stopping; try again"})
	}
	ctx, cancel := context.WithTimeout(base, verifyTimeout)
	defer cancel()
	client := b.client(sock.Handshake())
	var a admission
	err := client.allowed()
	if err == nil {
		a, err = b.check(ctx, sock.Handshake())
		client.refused(err)
	}
	if err == nil && b.full(a.who.User) {
		err = &token.Error{Code: token.CodeRateLimited, Reason: "too many connections of this user; close some"}
	}
	if err != nil {
		b.metrics.refused.Inc()
		b.log.Info("socket refused", "remote", sock.Handshake().RemoteAddr, "err", err)
		return connectError(err)
	}
	b.remember(ctx, a.who, a.returning)
	sock.Set(admissionKey, a)
	return nil
}

// check returns what the handshake says if its token is good. The error is a
// *token.Error.
func (b *Bridge) check(ctx context.Context, h socketio.Handshake) (admission, error) {
	var auth struct {
		Token    string `json:"token"`
		UserID   string `json:"userId"`
		DeviceID string `json:"deviceId"`
		Binary   bool   `json:"binary"`
	}
	if h.Auth != nil {
		if err := json.Unmarshal(h.Auth, &auth); err != nil {
			return admission{}, invalid("auth is not {token, userId?, deviceId?, binary?}")
		}
	}
	if auth.Token == "" {
		auth.Token = bearer(h.Header.Get("Authorization"))
	}
	who, returning, err := b.verify(ctx, auth.Token)
	if err != nil {
		return admission{}, err
	}
	switch {
	case auth.UserID != "" && auth.UserID != who.User:
		return admission{}, invalid("userId is not the user of the token")
	case auth.DeviceID == "":
	case len(auth.DeviceID) > maxDeviceBytes || moment.CheckID("device", auth.DeviceID) != nil:
		return admission{}, invalid("deviceId is not a legal id (1–124 characters of A–Z a–z 0–9 _ - . : @)")
	}
	return admission{who: who, returning: returning, device: auth.DeviceID, binary: auth.Binary}, nil
}

func invalid(reason string) *token.Error {
	return &token.Error{Code: token.CodeInvalid, Reason: reason}
}

// bearer returns the token of an Authorization header (RFC 6750, 2.1).
func bearer(header string) string {
	const scheme = "bearer "
	if len(header) < len(scheme) || !strings.EqualFold(header[:len(scheme)], scheme) {
		return ""
	}
	return strings.TrimSpace(header[len(scheme):])
}

// connectError is a refusal as the phone gets it.
func connectError(err error) *socketio.ConnectError {
	data := refusedToken(err)
	message, _ := data["error"].(string)
	delete(data, "error")
	return &socketio.ConnectError{Message: message, Data: data}
}
