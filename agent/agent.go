// Package agent is the device program: it keeps the photos that a pair shares
// on a frame, shows the newest on a page, tells the sender, and sends photos of
// its own.
//
//	broker ── mqttlink ──▶ receiver ──▶ store (badger) ──▶ kiosk page (HTTP, SSE)
//	   ▲                                   │
//	   └───────────── outbox ◀─────────────┴── local socket (list, export, send)
//
// Nothing is acknowledged to the broker before it is on disk, and everything
// that goes out is on disk before it is sent; so a device may lose its power at
// any moment. The agent decides nothing about who may send what: the broker
// does. It only refuses what is not from its own pair.
//
// It is not the frame's slideshow program (that is the browser that opens the
// page), and it knows MQTT only through internal/mqttlink.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sync/errgroup"

	"pairsync/internal/mqttlink"
)

// Deps is what an Agent needs from its program. Log is required.
type Deps struct {
	// Dial opens the connection to the broker, in place of Config.Broker.
	Dial func(ctx context.Context) (net.Conn, error)
	// Token returns the device token, in place of Config.TokenFile. It is
	// asked at every connect.
	Token func(ctx context.Context) (string, error)
	// Local and Kiosk, where set, are listened on in place of the socket in
	// the data directory and of Config.Kiosk.Listen. The Agent closes them.
	Local, Kiosk net.Listener
	// Version is what the device's state and status report.
	Version string
	Log     *slog.Logger
}

// Agent is one device. Make it with New, drive it with Run.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	version string
	token   func(context.Context) (string, error)
	newLink func(mqttlink.Config, *slog.Logger) (link, error)
	dial    mqttlink.Config // only where and how to connect

	store  *store
	board  *board
	outbox *outbox
	kiosk  *kiosk // nil without a page
	local  *localServer
}

// New checks the configuration and the token, opens the store and binds the
// local socket and the kiosk address; it starts no goroutine. A store that a
// command has open it waits for, some seconds. Call Run, or Close when the
// agent is not to be run.
func New(cfg Config, deps Deps) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, log: deps.Log, version: deps.Version, token: deps.Token, board: newBoard()}
	a.newLink = func(c mqttlink.Config, log *slog.Logger) (link, error) { return mqttlink.New(c, log) }
	if a.token == nil {
		var err error
		if a.token, err = tokenFile(cfg.TokenFile); err != nil {
			return nil, err
		}
	}
	if err := a.setDial(deps); err != nil {
		return nil, err
	}
	if err := a.open(deps); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// open binds and opens everything; what it opened before an error, Close
// closes.
func (a *Agent) open(deps Deps) (err error) {
	if err := os.MkdirAll(a.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("make data_dir: %w", err)
	}
	// The socket first: it is what tells that another agent runs here.
	if deps.Local == nil {
		if deps.Local, err = listenLocal(a.cfg.DataDir); err != nil {
			return err
		}
	}
	a.local = &localServer{listener: deps.Local, status: a.status, log: a.log}
	if a.store, err = openOrReplace(a.cfg, a.log); err != nil {
		return err
	}
	member, _, err := a.store.member()
	if err != nil {
		return err
	}
	a.board.set(func(v *view) { v.membership = member })
	a.outbox = newOutbox(a.store, a.board, a.log)
	a.local.store, a.local.outbox = a.store, a.outbox
	if deps.Kiosk == nil && a.cfg.Kiosk.Listen != "" {
		if deps.Kiosk, err = net.Listen("tcp", a.cfg.Kiosk.Listen); err != nil {
			return fmt.Errorf("kiosk.listen: %w", err)
		}
	}
	if deps.Kiosk != nil {
		a.kiosk = newKiosk(deps.Kiosk, a.cfg.Show, a.store, a.board, a.log)
	}
	return nil
}

// tokenFile returns a source that reads the file anew at each call. What is in
// it now must be a device's token, so that a mistake shows at once.
func tokenFile(path string) (func(context.Context) (string, error), error) {
	if path == "" {
		return nil, errors.New("token_file: is empty: name the file with the device token")
	}
	raw, err := readToken(path)
	if err == nil {
		_, err = parseIdentity(raw)
	}
	if err != nil {
		return nil, fmt.Errorf("token_file: %w", err)
	}
	return func(context.Context) (string, error) { return readToken(path) }, nil
}

// Run serves until ctx ends or the store fails, and returns when everything it
// started has ended. What was being sent stays in the outbox. It may be called
// once; the Agent is closed afterwards.
func (a *Agent) Run(ctx context.Context) error {
	a.tidy(ctx)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.stayConnected(gctx) })
	g.Go(func() error { return a.outbox.run(gctx) })
	g.Go(func() error { return a.reportState(gctx) })
	g.Go(func() error { return a.local.run(gctx) })
	if a.kiosk != nil {
		g.Go(func() error { return a.kiosk.run(gctx) })
		a.log.Info("kiosk page", "url", "http://"+a.kiosk.addr().String())
	}
	err := g.Wait()
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	return errors.Join(err, a.Close())
}

// tidy does what a crash or a changed configuration left to do. What it cannot
// do, on a full disk say, waits for the next start.
func (a *Agent) tidy(ctx context.Context) {
	if err := a.store.dropOrphans(ctx); err != nil {
		a.log.Error("cannot tidy the outbox", "err", err)
	}
	if err := a.store.evict(ctx); err != nil {
		a.log.Error("cannot remove the oldest photos", "err", err)
	}
}

// KioskAddr returns the page's address, nil when there is none.
func (a *Agent) KioskAddr() net.Addr {
	if a.kiosk == nil {
		return nil
	}
	return a.kiosk.addr()
}

// Close releases what New opened. Run does it itself; closing again does
// nothing.
func (a *Agent) Close() error {
	var errs []error
	if a.kiosk != nil {
		errs = append(errs, a.kiosk.close())
	}
	if a.local != nil {
		errs = append(errs, a.local.close())
	}
	if a.store != nil {
		errs = append(errs, a.store.close())
	}
	return errors.Join(errs...)
}
