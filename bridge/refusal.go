package bridge

import (
	"context"
	"errors"
	"fmt"

	"pairsync/internal/mqttlink"
)

// code says in one word why something that a phone asked for was not done.
// Programs branch on it; the text beside it is for people.
type code string

// The codes of a refused event (contract, section 4).
const (
	codeInvalid     code = "invalid_request"
	codePhoto       code = "invalid_photo"
	codeTooLarge    code = "too_large"
	codeNotPaired   code = "not_paired"
	codeNotPartner  code = "not_partner"
	codeNotAllowed  code = "not_allowed"
	codeQuota       code = "quota_exceeded"
	codeStorageFull code = "storage_full"
	codeBusy        code = "busy"
	codeTimeout     code = "timeout"
	codeUnavailable code = "unavailable"
)

// refusal is an answer of no. Its text goes to the phone.
type refusal struct {
	code      code
	text      string
	retryable bool
}

// Error returns the code and the text.
func (r *refusal) Error() string { return string(r.code) + ": " + r.text }

func refuse(c code, format string, args ...any) *refusal {
	return &refusal{code: c, text: fmt.Sprintf(format, args...)}
}

// later is a refusal that the same request may not meet again.
func later(c code, format string, args ...any) *refusal {
	r := refuse(c, format, args...)
	r.retryable = true
	return r
}

// refusalOf turns the failure of a publish into what the phone is told.
// Nothing was stored, unless the time ran out: then the publish may still
// happen, and a repeat of the same id is harmless.
func refusalOf(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	var reason *mqttlink.ReasonError
	if errors.As(err, &reason) {
		return refusalOfReason(reason)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return later(codeTimeout, "the server did not store it in time; send it again")
	default:
		return later(codeUnavailable, "the server cannot store anything at the moment; send it again later")
	}
}

// reasonFull is how the broker says that 0x97 means its disk and not the
// pair's quota: MQTT has no code of its own for it.
const reasonFull = "storage full"

func refusalOfReason(e *mqttlink.ReasonError) *refusal {
	switch e.Code {
	case mqttlink.CodeQuotaExceeded:
		if e.Reason == reasonFull {
			return later(codeStorageFull, "the server's disk is full; send it again later")
		}
		return later(codeQuota, "the pair's storage quota is used up until the partner has received something")
	case mqttlink.CodeNotAuthorized:
		return refuse(codeNotPaired, "you are not in this pair any more")
	case mqttlink.CodePacketTooLarge:
		return refuse(codeTooLarge, "the photo is larger than the server takes")
	}
	text := e.Reason
	if text == "" {
		text = "the server refused it"
	}
	if e.Retryable() {
		return later(codeUnavailable, "%s; send it again later", text)
	}
	return refuse(codeNotAllowed, "%s", text)
}
