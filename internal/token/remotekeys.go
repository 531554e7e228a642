package token

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// keysMaxAge is the age at which a key set is fetched anew without being
	// asked for: a key that the issuer took back is refused after that time.
	keysMaxAge = 15 * time.Minute
	// minRefresh is the least time between two fetches, whoever asks: tokens
	// with made-up key ids must not turn us against the issuer.
	minRefresh = 30 * time.Second
	// firstRefresh is the same while no set was ever fetched: nobody can come
	// in, and right after boot the network may take a moment.
	firstRefresh = 5 * time.Second
	// fetchTimeout bounds one fetch. It is below the time that a handshake has.
	fetchTimeout = 4 * time.Second
	// maxSetBytes bounds a key set; with certificate chains they have 10 KB.
	maxSetBytes = 256 << 10
)

// RemoteKeys are an external issuer's public keys, fetched from its JWKS URL
// and kept. They are fetched when they are old and when a token names a key
// that is not among them, by Run alone, at most every 30 seconds and never per
// token. While the issuer cannot be reached the old keys go on. It is safe for
// concurrent use.
type RemoteKeys struct {
	url        string
	algorithms []string
	client     *http.Client
	log        *slog.Logger

	ask   chan struct{} // capacity 1: somebody waits for a fetch
	ended chan struct{} // closed when Run returns

	mu       sync.RWMutex // guards the fields below
	keys     map[string]publishedKey
	made     time.Time     // when the value was made
	fetched  time.Time     // the last success; zero: never
	next     time.Time     // no fetch before
	fetching bool          // a fetch is under way
	err      error         // of the last fetch
	failures uint64        // of all fetches
	round    chan struct{} // closed at the end of the fetch under way, or of the next
}

// NewRemoteKeys returns the keys behind a JWKS URL that can check one of
// algorithms. It fetches nothing: Run does. Redirects are not followed.
func NewRemoteKeys(url string, algorithms []string, client *http.Client, log *slog.Logger) *RemoteKeys {
	own := *client
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &RemoteKeys{
		url: url, algorithms: slices.Clone(algorithms), client: &own, log: log.With("jwks", url), made: time.Now(),
		ask: make(chan struct{}, 1), ended: make(chan struct{}), round: make(chan struct{}),
	}
}

// Run fetches the keys at once and then as often as needed, until ctx ends. It
// can be called once. An issuer that does not answer is no reason to return.
func (r *RemoteKeys) Run(ctx context.Context) error {
	defer close(r.ended)
	for ctx.Err() == nil {
		due := time.NewTimer(r.refresh(ctx))
		for waiting := true; waiting; {
			select {
			case <-r.ask:
				waiting = r.tooSoon() // somebody who asked while the last one was under way
			case <-due.C:
				waiting = false
			case <-ctx.Done():
				waiting = false
			}
		}
		due.Stop()
	}
	return nil
}

func (r *RemoteKeys) tooSoon() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return time.Now().Before(r.next)
}

// refresh fetches the set once and returns the time to the next fetch that
// nobody has to ask for.
func (r *RemoteKeys) refresh(ctx context.Context) time.Duration {
	r.mu.Lock()
	r.fetching = true
	r.mu.Unlock()
	keys, skipped, err := r.fetch(ctx)

	r.mu.Lock()
	defer r.mu.Unlock()
	now, before := time.Now(), r.err
	r.fetching, r.err = false, err
	close(r.round)
	r.round = make(chan struct{})
	pause := minRefresh
	if err == nil {
		if before != nil {
			r.log.Info("signing keys fetched again", "keys", len(keys))
		}
		for _, s := range skipped {
			r.log.Debug("published key not used", "err", s)
		}
		r.keys, r.fetched = keys, now
	} else if ctx.Err() == nil {
		r.failures++
		if r.keys == nil {
			pause = firstRefresh
		}
		if before == nil { // once per outage
			r.log.Warn("signing keys cannot be fetched; those known stay in use", "keys", len(r.keys), "err", err)
		}
	}
	r.next = now.Add(pause)
	if err != nil {
		return pause
	}
	return keysMaxAge
}

// fetch gets and reads the set.
func (r *RemoteKeys) fetch(ctx context.Context) (keys map[string]publishedKey, skipped []error, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("the issuer answered %s", resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxSetBytes+1))
	if err != nil {
		return nil, nil, err
	}
	if len(b) > maxSetBytes {
		return nil, nil, fmt.Errorf("the answer is longer than %d bytes", maxSetBytes)
	}
	return parseKeySet(b, r.algorithms)
}

// Keyfunc finds the key that a token names; it is made for Issuer.Keys. A key
// that is not known is waited for, if a fetch is possible now.
func (r *RemoteKeys) Keyfunc(ctx context.Context) jwt.Keyfunc {
	return func(t *jwt.Token) (any, error) {
		id, ok := t.Header["kid"].(string)
		if !ok || id == "" {
			return nil, invalid("the token names no key (header kid)")
		}
		key, err := r.find(ctx, id)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(key.algorithms, t.Method.Alg()) {
			return nil, invalid("key %q is not for %s", clip(strings.ToValidUTF8(id, "?")), t.Method.Alg())
		}
		return key.public, nil
	}
}

// errNoKey says that a fresh set does not have the key.
var errNoKey = errors.New("the issuer publishes no such key")

func (r *RemoteKeys) find(ctx context.Context, id string) (publishedKey, error) {
	r.mu.RLock()
	key, ok := r.keys[id]
	round, possible := r.round, r.fetching || !time.Now().Before(r.next)
	r.mu.RUnlock()
	if ok {
		return key, nil
	}
	if !possible {
		return publishedKey{}, fmt.Errorf("key not known, and the set was fetched a moment ago: %w", ErrKeysUnavailable)
	}
	select {
	case r.ask <- struct{}{}:
	default: // asked already
	}
	// No fetch takes longer; Run may be about to start.
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout+time.Second/2)
	defer cancel()
	select {
	case <-round:
	case <-r.ended:
	case <-ctx.Done():
		return publishedKey{}, fmt.Errorf("%w: %w", ErrKeysUnavailable, ctx.Err())
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if key, ok := r.keys[id]; ok {
		return key, nil
	}
	if r.err != nil || r.fetched.IsZero() {
		return publishedKey{}, errors.Join(ErrKeysUnavailable, r.err)
	}
	return publishedKey{}, errNoKey
}

// Age returns how old the keys are: the time since they were fetched or, where
// they never were, since NewRemoteKeys.
func (r *RemoteKeys) Age() time.Duration {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.fetched.IsZero() {
		return time.Since(r.made)
	}
	return time.Since(r.fetched)
}

// Failures returns how many fetches have failed.
func (r *RemoteKeys) Failures() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.failures
}
