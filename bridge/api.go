package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"pairsync/internal/token"
)

// maxBodyBytes bounds a request's body: a token and a little around it.
const maxBodyBytes = 16 << 10

// exchange answers POST /auth/exchange and /auth/google: a token of an external
// issuer for one of ours, which lives longer (contract, section 5).
func (b *Bridge) exchange(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), verifyTimeout)
	defer cancel()
	var in struct {
		IDToken string `json:"idToken"`
	}
	body := http.MaxBytesReader(w, r.Body, maxBodyBytes)
	if err := json.NewDecoder(body).Decode(&in); err != nil {
		answerJSON(w, http.StatusBadRequest, refusalBody(refuse(codeInvalid, "the body is not {\"idToken\": \"…\"}")))
		return
	}
	client := b.clientAt(r.RemoteAddr, r.Header)
	err := client.allowed()
	var who token.Principal
	if err == nil {
		who, err = b.deps.Verifier.Verify(ctx, in.IDToken)
		if err == nil && !who.External {
			err = invalid("idToken is a token of this server already: use it as it is")
		}
		client.refused(err)
	}
	if err != nil {
		b.log.Info("token not exchanged", "remote", r.RemoteAddr, "err", err)
		answerRefusedToken(w, err)
		return
	}
	b.remember(ctx, who, false)
	raw, _, err := b.appToken(&who)
	if err != nil {
		b.log.Error("app token not made", "user", who.User, "err", err)
		answerJSON(w, http.StatusInternalServerError, refusalBody(later(codeUnavailable, "the server cannot make a token at the moment")))
		return
	}
	b.metrics.exchanged.Inc()
	answerJSON(w, http.StatusOK, map[string]any{
		"user": map[string]any{
			"id": who.User, "clerkId": who.User,
			"email": b.deps.Registry.Email(who.User), "displayName": b.deps.Registry.Name(who.User),
		},
		"token": raw,
	})
}

// answerRefusedToken says in the body what a connect_error says, and in the
// status what HTTP has for it.
func answerRefusedToken(w http.ResponseWriter, err error) {
	body, status := refusedToken(err), http.StatusUnauthorized
	var wait *limited
	switch {
	case errors.As(err, &wait):
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", strconv.Itoa(int(wait.wait/time.Second)+1))
	case body["retryable"] == true: // the issuer's keys
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "30")
	default:
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	answerJSON(w, status, body)
}

// answerJSON writes an answer that nobody may keep: it is about one user.
func answerJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone asks again
}
