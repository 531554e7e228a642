package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"pairsync/internal/version"
)

const (
	// senders is how many requests are under way at a time: the backend of two
	// people's photos must not be swamped after it was away.
	senders = 4
	// maxAnswer is how much of an answer's body is read, so that its
	// connection can be used again.
	maxAnswer = 16 << 10
	// firstRetry is the wait after the first failure; each further one is three
	// times as long, up to maxRetry: 5s, 15s, 45s, 2m15s, 7m, 20m, 1h, 3h, 6h.
	firstRetry = 5 * time.Second
	maxRetry   = 6 * time.Hour
	// maxRetryAfter bounds what a backend may ask for with Retry-After.
	maxRetryAfter = 24 * time.Hour
)

// backoff is the wait after the given number of failures, changed by up to a
// fifth, so that what failed together does not come again together.
func backoff(failures int) time.Duration {
	d := firstRetry
	for i := 1; i < failures && d < maxRetry; i++ {
		d *= 3
	}
	d = min(d, maxRetry)
	return d - d/5 + rand.N(2*d/5)
}

// send sends what is due until ctx ends.
func (w *Webhooks) send(ctx context.Context) {
	var sending sync.WaitGroup
	defer sending.Wait()
	free := make(chan struct{}, senders)
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return
		}
		e, wait := w.out.next(time.Now())
		if e != nil {
			sending.Go(func() {
				w.try(ctx, e)
				<-free
			})
			continue
		}
		<-free
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-due:
		case <-w.out.changed:
		case <-ctx.Done():
			return
		}
	}
}

// try sends one event once and settles what becomes of it.
func (w *Webhooks) try(ctx context.Context, e *event) {
	if err := w.tryOnce(ctx, e); err != nil && ctx.Err() == nil {
		w.log.Error("webhook outbox", "id", e.ID, "error", err)
	}
}

func (w *Webhooks) tryOnce(ctx context.Context, e *event) error {
	if e.Type == MomentQueued {
		done, err := w.overtaken(ctx, e)
		if done || err != nil {
			return err
		}
	}
	status, wait, err := w.post(ctx, e)
	now := time.Now()
	switch {
	case ctx.Err() != nil:
		return nil // it is sent again after the start
	case err == nil && status/100 == 2:
		w.metrics.sent.Inc()
		w.told(nil)
		return w.out.remove(ctx, e)
	case err == nil && status == http.StatusGone:
		w.metrics.failed.Inc()
		w.log.Error("webhook backend answered 410 Gone: nothing is sent until the next start", "type", e.Type)
		return w.out.close(ctx)
	}
	if err == nil {
		err = fmt.Errorf("answer %d", status)
	}
	w.metrics.failed.Inc()
	w.told(err)
	w.log.Debug("webhook not taken", "id", e.ID, "type", e.Type, "tries", e.Tries+1, "error", err)
	if now.Sub(e.Created) >= w.cfg.GiveUp {
		w.metrics.dropped.Inc()
		w.log.Warn("webhook event given up", "id", e.ID, "type", e.Type, "tries", e.Tries+1, "error", err)
		return w.out.remove(ctx, e)
	}
	if wait > 0 {
		w.out.pause(now.Add(wait))
	}
	return w.out.later(ctx, e, now.Add(max(wait, backoff(e.Tries+1))), true)
}

// overtaken settles a moment.queued that is not to be sent now: what it tells
// of has arrived, or is about to.
func (w *Webhooks) overtaken(ctx context.Context, e *event) (bool, error) {
	b, err := w.deps.Backlog(ctx, e.Recipient, e.After)
	if err != nil {
		return true, errors.Join(err, w.out.later(ctx, e, time.Now().Add(firstRetry), false))
	}
	switch {
	case b.count() == 0 || b.After >= e.Through:
		w.metrics.stale.Inc()
		return true, w.out.remove(ctx, e)
	case b.Online:
		return true, w.out.later(ctx, e, time.Now().Add(w.cfg.QueuedAfter), false)
	}
	return false, nil
}

// told logs when the backend begins to fail, and when it takes events again.
func (w *Webhooks) told(err error) {
	before := w.failing.Swap(err != nil)
	switch {
	case err != nil && !before:
		w.log.Warn("webhook backend does not take events; they are kept and sent again", "error", err)
	case err == nil && before:
		w.log.Info("webhook backend takes events again")
	}
}

// post sends e and returns the answer's status, and how long the backend asks
// to be left alone.
func (w *Webhooks) post(ctx context.Context, e *event) (status int, wait time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.cfg.URL, bytes.NewReader(e.Body))
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "pairsync/"+version.Version)
	sign(req.Header, w.keys, e.ID, time.Now(), e.Body)
	resp, err := w.client.Do(req)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err // without the URL: there may be a secret in its query
		}
		return 0, 0, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // only the status counts
	return resp.StatusCode, retryAfter(resp.Header.Get("Retry-After"), time.Now()), nil
}

// retryAfter reads the header of that name (RFC 9110, section 10.2.3), 0 where
// it is absent or makes no sense.
func retryAfter(text string, now time.Time) time.Duration {
	if text == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return max(0, min(at.Sub(now), maxRetryAfter))
}
