// Package demo shows the whole of pairsync in one process on loopback: a
// server, two phones that speak Socket.IO as the app does, and a frame; a
// photo travels between them before one's eyes, and every byte is checked.
//
// It is what `pairsync demo` runs. Everything in it is the real thing; only
// the phones are our own small Socket.IO client.
package demo

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"pairsync/agent"
	"pairsync/internal/admin"
	"pairsync/internal/daemon"
	"pairsync/internal/photo"
	"pairsync/internal/version"
)

// sample is the photo that travels where none is given: by Dave Perrett, MIT
// licence (photo.LICENSE).
//
//go:embed photo.jpg
var sample []byte

// The two users of the demo. The frame hangs at ben's.
const (
	sender   = "ann"
	receiver = "ben"
)

// stepWait bounds every step: on loopback each takes milliseconds.
const stepWait = 20 * time.Second

// Options says how to run the demo.
type Options struct {
	// Once ends the demo after the photo was checked; otherwise it stays up
	// until the context ends.
	Once bool
	// Photo is a file to send in place of the built-in photo.
	Photo string
	// DataDir is kept after the demo; empty: a temporary directory that is not.
	DataDir string
	// Out gets the story, Log what goes wrong.
	Out io.Writer
	Log *slog.Logger
}

// Run runs the demo. It returns nil when everything arrived as it was sent
// and, without Once, ctx ended; else the first thing that was not right. What
// it made in a temporary directory is removed in either case.
func Run(ctx context.Context, o Options) (err error) {
	payload, err := load(o.Photo)
	if err != nil {
		return err
	}
	dir := o.DataDir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "pairsync-demo-"); err != nil {
			return fmt.Errorf("temporary store: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer cancel()
		s := &stage{o: o, dir: dir, g: g, start: time.Now(), photo: payload}
		defer s.leave()
		return s.play(gctx)
	})
	return g.Wait()
}

// load reads the photo and refuses what no phone would send.
func load(path string) ([]byte, error) {
	b := sample
	if path != "" {
		var err error
		if b, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("photo: %w", err)
		}
	}
	limit := int(daemon.Default().Limits.PhotoBytes)
	if _, err := photo.Check(b, photo.Limits{MaxBytes: limit}); err != nil {
		return nil, fmt.Errorf("photo %s: %w", path, err)
	}
	return b, nil
}

// stage is one run of the demo.
type stage struct {
	o     Options
	dir   string
	g     *errgroup.Group
	start time.Time
	photo []byte

	daemon *daemon.Daemon
	admin  *admin.Client
	pair   admin.Pair
	frame  *frame
	phones map[string]*phone
}

// frame is the device at ben's wall.
type frame struct {
	id     string
	dir    string
	agent  *agent.Agent
	client *agent.Client
}

// say prints one line with the time since the start.
func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(s.o.Out, "%8s  %s\n", sinceText(time.Since(s.start)), fmt.Sprintf(format, args...))
}

func sinceText(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func (s *stage) play(ctx context.Context) error {
	fmt.Fprintf(s.o.Out, "pairsync %s: a photo from %s's phone to %s's phone and frame\n\n", version.Version, sender, receiver)
	for _, step := range []func(context.Context) error{s.startServer, s.makePair, s.startFrame, s.connectPhones, s.travel} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if s.o.Once {
		s.say("everything arrived as it was sent")
		return nil
	}
	s.invite()
	return s.watch(ctx)
}

// startServer runs the daemon on loopback: on the usual ports where they are
// free, else on any.
func (s *stage) startServer(ctx context.Context) error {
	cfg := daemon.Default()
	cfg.DataDir = filepath.Join(s.dir, "server")
	cfg.HTTP.Origins = []string{"*"} // a page of yours on any port may try it
	var l daemon.Listeners
	for _, b := range []struct {
		port string
		l    *net.Listener
	}{{"1883", &l.MQTT}, {"8080", &l.HTTP}, {"9464", &l.Ops}} {
		var err error
		if *b.l, err = listen(b.port); err != nil {
			return err
		}
	}
	d, err := daemon.New(ctx, cfg, l, s.o.Log)
	if err != nil {
		return err
	}
	s.daemon = d
	s.g.Go(func() error { return d.Run(ctx) })
	select {
	case <-d.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.admin, err = admin.Dial(cfg.DataDir); err != nil {
		return err
	}
	s.say("server up: MQTT on %s, Socket.IO on http://%s", d.MQTTAddr(), d.HTTPAddr())
	return nil
}

// listen takes the usual port on loopback or, where it is taken, a free one.
func listen(port string) (net.Listener, error) {
	if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
		return l, nil
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

func (s *stage) makePair(ctx context.Context) (err error) {
	pairs, err := s.admin.Pairs(ctx) // a kept data directory has it already
	if err != nil {
		return err
	}
	for _, p := range pairs {
		if p.Users == [2]string{sender, receiver} {
			s.pair = p
		}
	}
	if s.pair.ID == "" {
		if s.pair, err = s.admin.CreatePair(ctx, sender, receiver); err != nil {
			return err
		}
	}
	s.say("%s and %s are the pair %s", sender, receiver, s.pair.ID)
	return nil
}

// startFrame adds a device of ben's and runs its agent.
func (s *stage) startFrame(ctx context.Context) error {
	device, err := s.admin.AddDevice(ctx, admin.DeviceRequest{User: receiver, Name: "kitchen"})
	if err != nil {
		return err
	}
	f := &frame{id: device.ID, dir: filepath.Join(s.dir, "frame-"+device.ID)}
	page, err := listen("8088")
	if err != nil {
		return err
	}
	kiosk := page.Addr().String()
	if err := page.Close(); err != nil { // the agent binds its page itself
		return err
	}
	cfg := agent.Default()
	cfg.DataDir, cfg.Broker, cfg.Kiosk.Listen = f.dir, "mqtt://"+s.daemon.MQTTAddr().String(), kiosk
	f.agent, err = agent.New(cfg, agent.Deps{
		Token:   func(context.Context) (string, error) { return device.Token.Token, nil },
		Version: version.Version, Log: s.o.Log.With("part", "frame"),
	})
	if err != nil {
		return err
	}
	s.g.Go(func() error { return f.agent.Run(ctx) })
	if f.client, err = agent.NewClient(cfg, s.o.Log); err != nil {
		return err
	}
	s.frame = f
	if err := s.until(ctx, "the frame to connect", func() (bool, error) {
		st, err := f.client.Status(ctx)
		return err == nil && st.Connected && st.Pair == s.pair.ID, nil
	}); err != nil {
		return err
	}
	s.say("frame %q connected, its page is http://%s", device.Name, f.agent.KioskAddr())
	return nil
}

// until polls done until it says so.
func (s *stage) until(ctx context.Context, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, stepWait)
	defer cancel()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s", stepWait, what)
		}
	}
}

// split returns host and port of an address, for programs that want them apart.
func split(a net.Addr) (host, port string) {
	host, port, _ = net.SplitHostPort(a.String()) // our own listener's
	return host, port
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
