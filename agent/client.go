package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// ErrNoStore is returned by a Client whose data directory has never been used
// by an agent.
var ErrNoStore = errors.New("no agent has run here yet")

// Client is what the agent's commands use: it asks the running agent over its
// socket, and where none runs, it opens the store itself. It is safe for
// concurrent use.
type Client struct {
	cfg  Config
	http *http.Client // nil: no agent runs, or its socket cannot be named
	log  *slog.Logger
}

// NewClient returns a client for cfg.DataDir.
func NewClient(cfg Config, log *slog.Logger) (*Client, error) {
	path, err := socketPath(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}
	return &Client{cfg: cfg, http: &http.Client{Transport: transport}, log: log}, nil
}

// List returns the photos kept on the device, newest first, never nil.
func (c *Client) List(ctx context.Context) (list []Photo, err error) {
	err = c.do(ctx, http.MethodGet, "/photos", nil, &list, func(s *store) error {
		list, err = listPhotos(s)
		return err
	})
	return list, err
}

// Export returns a photo's bytes as received or, with clean, upright and
// without location or other metadata. name is a moment's id, or SENDER/ID
// where two senders use the same.
func (c *Client) Export(ctx context.Context, name string, clean bool) (b []byte, err error) {
	sender, id, ok := strings.Cut(name, "/")
	if !ok {
		sender, id = "", name
	}
	query := url.Values{"sender": {sender}, "moment": {id}}
	if clean {
		query.Set("clean", "1")
	}
	err = c.do(ctx, http.MethodGet, "/photo?"+query.Encode(), nil, &b, func(s *store) error {
		b, err = exported(s, sender, id, clean)
		return err
	})
	return b, err
}

// Status returns the agent's status; without a running agent it says what the
// store knows.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	err = c.do(ctx, http.MethodGet, "/status", nil, &st, func(s *store) error {
		m, _, err := s.member()
		if err != nil {
			return err
		}
		st, err = storeStatus(s, m)
		return err
	})
	return st, err
}

// Send saves a photo for the partner and waits up to wait for the server to
// have it. The outcome is StateQueued where it does not yet, with the reason;
// it is on disk then and will be sent. Without a running agent it is only
// saved.
func (c *Client) Send(ctx context.Context, file io.Reader, caption string, q Quality, wait time.Duration) (out Outcome, err error) {
	b, err := readFile(file)
	if err != nil {
		return Outcome{}, err
	}
	stopped := false
	query := url.Values{"caption": {caption}, "quality": {string(q)}}
	err = c.do(ctx, http.MethodPost, "/outbox?"+query.Encode(), b, &out, func(s *store) error {
		stopped = true
		m, _, err := s.member()
		if err != nil {
			return err
		}
		e, err := newPhoto(m, b, caption, q)
		if err != nil {
			return err
		}
		if e, err = s.savePhoto(ctx, e, b); err != nil {
			return fmt.Errorf("save photo: %w", err)
		}
		out = Outcome{Moment: e.ID, State: StateQueued, Reason: "the agent will send it when it runs"}
		return nil
	})
	if err != nil || stopped || wait <= 0 {
		return out, err
	}
	later := out
	query = url.Values{"moment": {out.Moment}, "wait": {wait.String()}}
	err = c.call(ctx, http.MethodGet, "/outbox?"+query.Encode(), nil, &later)
	if errors.Is(err, errNotRunning) {
		return out, nil // it stopped meanwhile; the photo is saved
	}
	return later, err
}

// errNotRunning says that nobody listens on the socket.
var errNotRunning = errors.New("no agent is running")

// do asks the running agent, or where none runs, calls direct with the store.
// An agent that starts in between has the store, and is asked again; another
// command that has it is waited for.
func (c *Client) do(ctx context.Context, method, path string, body []byte, into any, direct func(*store) error) error {
	err := c.call(ctx, method, path, body, into)
	if !errors.Is(err, errNotRunning) {
		return err
	}
	if _, err := os.Stat(storeDir(c.cfg.DataDir)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %s holds no store", ErrNoStore, c.cfg.DataDir)
		}
		return fmt.Errorf("look for the store: %w", err)
	}
	start := time.Now()
	s, openErr := openStore(c.cfg, c.log)
	for openErr != nil {
		if err := c.call(ctx, method, path, body, into); !errors.Is(err, errNotRunning) {
			return err
		}
		if !lockedSince(start, openErr) || !pause(ctx, lockPoll) {
			return openErr
		}
		s, openErr = openStore(c.cfg, c.log)
	}
	return errors.Join(direct(s), s.close())
}

// call makes one request of the local API. into is a pointer to decode JSON
// into, or a *[]byte for the body as it is.
func (c *Client) call(ctx context.Context, method, path string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" && ctx.Err() == nil {
			return errNotRunning
		}
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var fault struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(raw, &fault) != nil || fault.Error == "" {
			fault.Error = "agent answered " + resp.Status
		}
		return errors.New(fault.Error)
	}
	if b, ok := into.(*[]byte); ok {
		*b = raw
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("answer of the agent: %w", err)
	}
	return nil
}
