package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
)

// maxAnswerBytes bounds an answer: a list of 100,000 sessions fits.
const maxAnswerBytes = 64 << 20

// Client asks the server of one data directory. It is safe for concurrent use.
type Client struct {
	dataDir string
	http    *http.Client
}

// Dial returns a client for the server that runs on dataDir. It connects with
// each call; a call that finds no server fails with an *Error of
// CodeUnreachable.
func Dial(dataDir string) (*Client, error) {
	path, err := socketPath(dataDir)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{dataDir, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}, nil
}

// CreatePair pairs two users.
func (c *Client) CreatePair(ctx context.Context, a, b string) (p Pair, err error) {
	err = c.call(ctx, http.MethodPost, "/pairs", map[string][2]string{"users": {a, b}}, &p)
	return p, err
}

// Pairs lists the pairs, oldest first, never nil.
func (c *Client) Pairs(ctx context.Context) (list []Pair, err error) {
	err = c.call(ctx, http.MethodGet, "/pairs", nil, &list)
	return list, err
}

// RemovePair ends a pair and deletes its moments; it returns what it was.
func (c *Client) RemovePair(ctx context.Context, id string) (p Pair, err error) {
	err = c.call(ctx, http.MethodDelete, "/pairs/"+url.PathEscape(id), nil, &p)
	return p, err
}

// AddDevice registers a device and returns it with its token.
func (c *Client) AddDevice(ctx context.Context, r DeviceRequest) (d NewDevice, err error) {
	err = c.call(ctx, http.MethodPost, "/devices", r, &d)
	return d, err
}

// Devices lists the devices, revoked ones too, oldest first, never nil.
func (c *Client) Devices(ctx context.Context) (list []Device, err error) {
	err = c.call(ctx, http.MethodGet, "/devices", nil, &list)
	return list, err
}

// RevokeDevice ends a device's tokens and connections.
func (c *Client) RevokeDevice(ctx context.Context, id string) (d Device, err error) {
	err = c.call(ctx, http.MethodDelete, "/devices/"+url.PathEscape(id), nil, &d)
	return d, err
}

// IssueToken signs a token.
func (c *Client) IssueToken(ctx context.Context, r TokenRequest) (t Token, err error) {
	err = c.call(ctx, http.MethodPost, "/tokens", r, &t)
	return t, err
}

// Revoke ends a token, or all that a user has up to now, and the connections
// that came with them. Whether there is such a token nobody knows.
func (c *Client) Revoke(ctx context.Context, r Revocation) error {
	return c.call(ctx, http.MethodPost, "/revocations", r, nil)
}

// Sessions lists the MQTT sessions by id, never nil.
func (c *Client) Sessions(ctx context.Context) (list []Session, err error) {
	err = c.call(ctx, http.MethodGet, "/sessions", nil, &list)
	return list, err
}

// Kick disconnects a session's client; what is queued for it stays.
func (c *Client) Kick(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodPost, "/kick", map[string]string{"id": id}, nil)
}

// Status asks the server how it is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.call(ctx, http.MethodGet, "/status", nil, &s)
	return s, err
}

// call makes one request and decodes the answer into out, where it is not nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("admin request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("admin request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return fmt.Errorf("answer of the server: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		e := new(Error)
		if err := json.Unmarshal(b, e); err != nil || e.Message == "" {
			return &Error{fmt.Sprintf("the server answered %s", resp.Status), CodeFailed}
		}
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("answer of the server: %w", err)
	}
	return nil
}

// unreachable says what to do about a server that did not answer.
func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return &Error{fmt.Sprintf("no pairsync server runs on %s (start it with `pairsync serve`, or name its directory with --data-dir)", c.dataDir), CodeUnreachable}
	case errors.Is(err, fs.ErrPermission):
		return &Error{fmt.Sprintf("the admin socket in %s belongs to another user; run this as the user of the server", c.dataDir), CodeUnreachable}
	}
	return &Error{fmt.Sprintf("the server on %s does not answer: %v", c.dataDir, err), CodeUnreachable}
}
