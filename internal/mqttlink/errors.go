package mqttlink

import (
	"errors"
	"fmt"
)

// ErrClosed is returned by calls on a Link whose Run has ended.
var ErrClosed = errors.New("mqtt link is closed")

// ErrDown is returned where something can only be done while connected: a
// publish at QoS 0, which is never kept for later.
var ErrDown = errors.New("mqtt link is down")

// ErrStale is returned by Message.Ack when the connection that brought the
// message is gone. Nothing was acknowledged; the server sends the message again.
var ErrStale = errors.New("connection of this message is gone")

// ReasonError is a refusal by the server: a reason code of 0x80 or above in a
// CONNACK, PUBACK, SUBACK, UNSUBACK or DISCONNECT (MQTT 5, section 2.4).
type ReasonError struct {
	Code   byte
	Reason string // the server's reason string, may be empty
}

// The reason codes this package and its callers branch on.
const (
	codeUnspecified       = 0x80
	codeMalformed         = 0x81
	codeProtocolError     = 0x82
	CodeRefused           = 0x83 // implementation specific: the reason string says why
	codeBadProtocol       = 0x84
	codeBadClientID       = 0x85
	CodeBadCredentials    = 0x86
	CodeNotAuthorized     = 0x87
	codeUnavailable       = 0x88
	codeBusy              = 0x89
	CodeBanned            = 0x8A
	codeShuttingDown      = 0x8B
	codeBadAuthMethod     = 0x8C
	codeKeepAliveTimeout  = 0x8D
	CodeTakenOver         = 0x8E
	codeReceiveMaximum    = 0x93
	CodePacketTooLarge    = 0x95
	codeRateTooHigh       = 0x96
	CodeQuotaExceeded     = 0x97
	CodeAdministrative    = 0x98
	codeRetainUnsupported = 0x9A
	codeQoSUnsupported    = 0x9B
	codeServerMoved       = 0x9D
	codeConnectionRate    = 0x9F
	CodeMaximumTime       = 0xA0
)

// Error names the code, and the server's reason where it gave one.
func (e *ReasonError) Error() string {
	name := reasonNames[e.Code]
	if name == "" {
		name = "refused"
	}
	if e.Reason == "" {
		return fmt.Sprintf("%s (0x%02X)", name, e.Code)
	}
	return fmt.Sprintf("%s (0x%02X): %s", name, e.Code, e.Reason)
}

// Retryable reports whether the same request may succeed later without
// anybody changing it. A connection is retried in any case, only slower.
func (e *ReasonError) Retryable() bool {
	switch e.Code {
	case codeUnspecified, codeUnavailable, codeBusy, codeShuttingDown, codeKeepAliveTimeout, codeReceiveMaximum,
		codeRateTooHigh, CodeQuotaExceeded, codeConnectionRate, CodeMaximumTime:
		return true
	}
	return false
}

// slow reports whether a connection that ended with e should wait long before
// the next: nothing will have changed in a second, and two clients that share
// a session would push each other out for ever.
func (e *ReasonError) slow() bool {
	switch e.Code {
	case codeBadProtocol, codeBadClientID, CodeBadCredentials, CodeNotAuthorized, CodeBanned, codeBadAuthMethod,
		CodeTakenOver, CodeAdministrative, codeServerMoved:
		return true
	}
	return false
}

// reasonNames are the names of MQTT 5, section 2.4.
var reasonNames = map[byte]string{
	codeUnspecified: "unspecified error", codeMalformed: "malformed packet", codeProtocolError: "protocol error",
	CodeRefused: "refused", codeBadProtocol: "unsupported protocol version", codeBadClientID: "client id not valid",
	CodeBadCredentials: "bad user name or password", CodeNotAuthorized: "not authorized",
	codeUnavailable: "server unavailable", codeBusy: "server busy", CodeBanned: "banned",
	codeShuttingDown: "server shutting down", codeBadAuthMethod: "bad authentication method",
	codeKeepAliveTimeout: "keep alive timeout", CodeTakenOver: "session taken over",
	0x8F: "topic filter invalid", 0x90: "topic name invalid", 0x91: "packet identifier in use",
	0x92: "packet identifier not found", codeReceiveMaximum: "receive maximum exceeded", 0x94: "topic alias invalid",
	CodePacketTooLarge: "packet too large", codeRateTooHigh: "message rate too high",
	CodeQuotaExceeded: "quota exceeded", CodeAdministrative: "administrative action",
	0x99: "payload format invalid", codeRetainUnsupported: "retain not supported",
	codeQoSUnsupported: "QoS not supported", 0x9C: "use another server", codeServerMoved: "server moved",
	0x9E: "shared subscriptions not supported", codeConnectionRate: "connection rate exceeded",
	CodeMaximumTime: "maximum connect time", 0xA1: "subscription identifiers not supported",
	0xA2: "wildcard subscriptions not supported",
}
