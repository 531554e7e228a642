package bridge

import (
	"errors"
	"net/http"
	"net/netip"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/internal/loginlimit"
	"pairsync/internal/token"
)

// client is the address that somebody shows a token from. One inside the
// process is not counted.
type client struct {
	b       *Bridge
	address netip.Addr
	counted bool
}

func (b *Bridge) client(h socketio.Handshake) client { return b.clientAt(h.RemoteAddr, h.Header) }

func (b *Bridge) clientAt(remote string, header http.Header) client {
	hops := header.Values("X-Forwarded-For")
	address, ok := loginlimit.ClientOf(remote, hops, b.cfg.TrustedProxies)
	if at, err := netip.ParseAddrPort(remote); err == nil && len(hops) > 0 && at.Addr().Unmap() == address {
		b.proxyWarning.Do(func() {
			b.log.Warn("a request names its client in X-Forwarded-For, but does not come from one of http.trusted_proxies; if it is your proxy, all phones count as one address", "remote", remote)
		})
	}
	return client{b, address, ok}
}

// allowed counts an attempt; its error is a *limited.
func (c client) allowed() error {
	if !c.counted {
		return nil
	}
	if no := c.b.logins.Allow(c.address); no != nil {
		c.b.metrics.limited.Inc()
		return &limited{&token.Error{Code: token.CodeRateLimited, Reason: no.Error()}, no.Wait}
	}
	return nil
}

// refused counts a failure, if it is one of whoever showed the token. One that
// has expired is no attempt to guess: the app may know no better, and its home
// must not wait for it.
func (c client) refused(err error) {
	var e *token.Error
	if !c.counted || !errors.As(err, &e) || e.Retryable() || e.Code == token.CodeExpired {
		return
	}
	c.b.logins.Failed(c.address)
}

// limited is a *token.Error that says when to come again.
type limited struct {
	no   *token.Error
	wait time.Duration
}

// Error returns the reason.
func (l *limited) Error() string { return l.no.Error() }

// Unwrap returns the *token.Error.
func (l *limited) Unwrap() error { return l.no }
