package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"pairsync/internal/loginlimit"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// What one user, and one address that many users may share, may try. After so
// many codes that did not work whoever guesses waits, in the end a minute for
// each further one; a code is one of 729 million and lives for 15 minutes.
const (
	userTriesPerSecond    = 1
	userWrongCodes        = 10
	addressTriesPerSecond = 10
	addressWrongCodes     = 50
	// maxPairsBody is enough for a code and a little around it.
	maxPairsBody = 4 << 10
)

// pairingLimits keeps those who guess at codes, and those who make them without
// end, from going on.
type pairingLimits struct {
	user    *loginlimit.Of[string]
	address *loginlimit.Of[netip.Addr]
	made    *loginlimit.Of[string]
}

func newPairingLimits() pairingLimits {
	const tooMany = "too many codes that do not work"
	return pairingLimits{
		user:    loginlimit.NewOf[string](userTriesPerSecond, userWrongCodes, tooMany, "too many tries"),
		address: loginlimit.NewOf[netip.Addr](addressTriesPerSecond, addressWrongCodes, tooMany+" from this address", "too many tries from this address"),
		made:    loginlimit.NewOf[string](userTriesPerSecond, userWrongCodes, tooMany, "too many requests"),
	}
}

// The codes of /pairs/ beside those of tokens and events.
const (
	codeWrongCode     code = "invalid_code"
	codeOwnCode       code = "own_code"
	codePaired        code = "already_paired"
	codePartnerPaired code = "partner_already_paired"
	codeRateLimited   code = code(token.CodeRateLimited)
)

// apiError is a refusal with its HTTP status, and when to come again.
type apiError struct {
	status int
	code   code
	text   string
	wait   time.Duration // 0: nothing to wait for
}

// Error returns the code and the text.
func (e *apiError) Error() string { return string(e.code) + ": " + e.text }

// servePairs adds the pairing API (contract, section 5).
func (b *Bridge) servePairs(mux *http.ServeMux) {
	mux.HandleFunc("POST /pairs/generate-code", b.forUser(b.generateCode))
	mux.HandleFunc("POST /pairs/join", b.forUser(b.joinPair))
	mux.HandleFunc("GET /pairs/current", b.forUser(b.currentPair))
	mux.HandleFunc("DELETE /pairs/disconnect", b.forUser(b.leavePair))
}

// pairsRequest is a request of a signed-in user.
type pairsRequest struct {
	*http.Request
	w    http.ResponseWriter
	user string
	from client
}

// body decodes a bounded JSON body into v.
func (r pairsRequest) body(v any, example string) error {
	if err := json.NewDecoder(http.MaxBytesReader(r.w, r.Body, maxPairsBody)).Decode(v); err != nil {
		return &apiError{status: http.StatusBadRequest, code: codeInvalid, text: "the body is not " + example}
	}
	return nil
}

// forUser makes a handler of what answers a signed-in user.
func (b *Bridge) forUser(answer func(context.Context, pairsRequest) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), verifyTimeout)
		defer cancel()
		who, from, err := b.signedIn(ctx, r)
		if err != nil {
			b.log.Info("request refused", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
			answerPairs(w, nil, tokenError(err))
			return
		}
		data, err := answer(ctx, pairsRequest{r, w, who.User, from})
		answerPairs(w, data, b.pairsError(who.User, err))
	}
}

// signedIn returns who a request's token is of, and where it comes from.
func (b *Bridge) signedIn(ctx context.Context, r *http.Request) (who token.Principal, from client, err error) {
	from = b.clientAt(r.RemoteAddr, r.Header)
	if err = from.allowed(); err != nil {
		return who, from, err
	}
	who, returning, err := b.verify(ctx, bearer(r.Header.Get("Authorization")))
	from.refused(err)
	if err == nil {
		b.remember(ctx, who, returning)
	}
	return who, from, err
}

// answerPairs writes {success, data} or {success, error}: error is for
// programs, and the message beside it for people.
func answerPairs(w http.ResponseWriter, data any, no *apiError) {
	if no == nil {
		answerJSON(w, http.StatusOK, map[string]any{"success": true, "data": data})
		return
	}
	if no.wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(no.wait.Seconds()))))
	}
	if no.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	answerJSON(w, no.status, map[string]any{"success": false, "error": no.code, "message": no.text})
}

// tokenError is what a refused token is answered with.
func tokenError(err error) *apiError {
	e := &token.Error{Code: token.CodeInvalid, Reason: "the token could not be checked"}
	errors.As(err, &e)
	out := &apiError{status: http.StatusUnauthorized, code: code(e.Code), text: e.Reason}
	var wait *limited
	switch {
	case errors.As(err, &wait):
		out.status, out.wait = http.StatusTooManyRequests, wait.wait
	case e.Retryable(): // the issuer's keys
		out.status, out.wait = http.StatusServiceUnavailable, unavailableWait
	}
	return out
}

// unavailableWait is when to ask again after a failure of ours.
const unavailableWait = 30 * time.Second

// pairsError is what user is told of err; nil where there is none.
func (b *Bridge) pairsError(user string, err error) *apiError {
	var known *apiError
	no := func(status int, c code, text string) *apiError { return &apiError{status: status, code: c, text: text} }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case errors.Is(err, registry.ErrCode):
		return no(http.StatusNotFound, codeWrongCode, registry.ErrCode.Error())
	case errors.Is(err, registry.ErrSameUser):
		return no(http.StatusConflict, codeOwnCode, "this is your own code: give it to your partner")
	case errors.Is(err, registry.ErrPaired):
		return no(http.StatusConflict, codePaired, "you are in a pair already: leave it first")
	case errors.Is(err, registry.ErrPartnerPaired):
		return no(http.StatusConflict, codePartnerPaired, registry.ErrPartnerPaired.Error())
	case errors.Is(err, registry.ErrNotFound):
		return no(http.StatusNotFound, codeNotPaired, "you are not paired with anybody")
	}
	b.log.Error("pairing request not done", "user", user, "err", err)
	return &apiError{http.StatusServiceUnavailable, codeUnavailable, "the server cannot do this at the moment; try again later", unavailableWait}
}

// limitError is what somebody who has to wait is told; nil for nobody.
func limitError(no *loginlimit.Refusal) error {
	if no == nil {
		return nil
	}
	return &apiError{http.StatusTooManyRequests, codeRateLimited, no.Error(), no.Wait}
}

func (b *Bridge) generateCode(ctx context.Context, r pairsRequest) (any, error) {
	if err := limitError(b.pairing.made.Allow(r.user)); err != nil {
		return nil, err
	}
	c, err := b.deps.Registry.NewPairingCode(ctx, r.user)
	if err != nil {
		return nil, err
	}
	return map[string]any{"code": c.Code, "expiresAt": stamp(c.Expires)}, nil
}

func (b *Bridge) joinPair(ctx context.Context, r pairsRequest) (any, error) {
	var in struct {
		Code string `json:"code"`
	}
	if err := r.body(&in, `{"code": "…"}`); err != nil {
		return nil, err
	}
	if err := limitError(b.pairing.user.Allow(r.user)); err != nil {
		return nil, err
	}
	if r.from.counted {
		if err := limitError(b.pairing.address.Allow(loginlimit.Normal(r.from.address))); err != nil {
			return nil, err
		}
	}
	p, err := b.deps.Registry.JoinPair(ctx, in.Code, r.user)
	if errors.Is(err, registry.ErrCode) || errors.Is(err, registry.ErrPartnerPaired) {
		b.metrics.guessed.Inc()
		b.pairing.user.Failed(r.user)
		if r.from.counted {
			b.pairing.address.Failed(loginlimit.Normal(r.from.address))
		}
	}
	if err != nil {
		return nil, err
	}
	b.log.Info("paired by code", "pair", p.ID, "users", p.Users[:])
	return b.pairBody(p, r.user), nil
}

func (b *Bridge) currentPair(_ context.Context, r pairsRequest) (any, error) {
	p, ok := b.deps.Registry.PairOf(r.user)
	if !ok {
		return nil, nil
	}
	return b.pairBody(p, r.user), nil
}

func (b *Bridge) leavePair(ctx context.Context, r pairsRequest) (any, error) {
	p, ok := b.deps.Registry.PairOf(r.user)
	if !ok {
		return nil, registry.ErrNotFound
	}
	if _, err := b.deps.Registry.RemovePair(ctx, p.ID); err != nil {
		return nil, err
	}
	b.log.Info("pair left", "pair", p.ID, "by", r.user)
	return nil, nil
}

// pairBody is a pair as user sees it. What is not known of the partner is null,
// so that it never equals what the app does not know of its own user.
func (b *Bridge) pairBody(p registry.Pair, user string) map[string]any {
	partner, _ := p.Partner(user)
	var email any
	if e := b.deps.Registry.Email(partner); e != "" {
		email = e
	}
	return map[string]any{
		"pair": map[string]any{"id": p.ID, "user1Id": p.Users[0], "user2Id": p.Users[1], "pairedAt": stamp(p.Created)},
		"partner": map[string]any{
			"id": partner, "clerkId": partner, "displayName": b.deps.Registry.Name(partner), "email": email, "photoUrl": nil,
		},
	}
}
