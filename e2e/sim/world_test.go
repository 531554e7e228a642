package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/admin"
	"pairsync/internal/bufpool"
	"pairsync/internal/daemon"
	"pairsync/internal/simtest"
)

// The names under which a daemon listens; phones dial "http://server".
const (
	hostHTTP  = "server:80"
	hostMQTT  = "server:1883"
	hostAdmin = "admin:80"
)

// tokenLife is longer than any world lasts.
const tokenLife = admin.Duration(365 * 24 * time.Hour)

// stopLimit is what the bounds of the daemon's parts add up to, however stuck
// its clients are: a service manager's patience must not end before.
const stopLimit = 15 * time.Second

// world is a network with one server on it. Its methods are for the test's
// goroutine.
type world struct {
	t    *testing.T
	net  *simtest.Network
	log  *slog.Logger
	book *book
	base string       // a directory of the real file system, made outside the bubble
	dirs atomic.Int64 // how many were given out below base

	doing     string // what the test is at, for its failure
	serverDir string
	stop      func() // ends the running server
}

// inWorld runs fn in a bubble whose daemon is up.
func inWorld(t *testing.T, seed uint64, fn func(w *world)) {
	inBubble(t, seed, func(w *world) {
		w.serverDir = w.newDir("server")
		w.start()
		w.t.Cleanup(func() { w.stop() })
		fn(w)
	})
}

// inBubble runs fn in a bubble with a network and no server.
func inBubble(t *testing.T, seed uint64, fn func(w *world)) {
	base := t.TempDir()
	bufpool.Poison()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: simtest.NewNetwork(t, seed), log: simtest.Logger(t), book: newBook(), base: base, stop: func() {}}
		fn(w)
	})
}

// must ends the test at an error.
func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// newDir returns the name of a directory that does not exist yet.
func (w *world) newDir(name string) string {
	return filepath.Join(w.base, fmt.Sprintf("%s-%d", name, w.dirs.Add(1)))
}

// start runs the daemon on serverDir.
func (w *world) start() {
	w.t.Helper()
	cfg := daemon.Default()
	cfg.DataDir = w.serverDir
	cfg.MQTTS.Listen, cfg.Ops.Listen = "", ""
	cfg.HTTP.PublicURL = "http://server"
	cfg.Broker.KeepLast = 100_000 // the auditor reads everything
	ctx, cancel := context.WithCancel(context.Background())
	d, err := daemon.New(ctx, cfg, daemon.Listeners{
		MQTT: w.net.Listen(hostMQTT), HTTP: w.net.Listen(hostHTTP), Admin: w.net.Listen(hostAdmin),
	}, w.log.With("who", "server"))
	w.must(err)
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	<-d.Ready()
	w.stop = func() {
		began := time.Now()
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("server: %v", err)
		}
		if took := time.Since(began); took > stopLimit {
			w.t.Errorf("the server took %v to stop", took)
		}
		w.stop = func() {}
	}
}

// restart stops the daemon in good order and starts it again.
func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.start()
}

// crash is what a power cut does to the server: all that is not on disk is
// gone, and nobody is told. The next daemon runs on a copy of the directory as
// it was at this moment; what the old one still writes goes nowhere.
func (w *world) crash() {
	w.t.Helper()
	w.serverDir = w.snapshot(w.serverDir, "server")
	for _, host := range []string{hostMQTT, hostHTTP, hostAdmin} {
		w.net.Refuse(simtest.Any, host, true)
		w.net.Cut(simtest.Any, host)
	}
	w.stop()
	w.start()
	for _, host := range []string{hostMQTT, hostHTTP, hostAdmin} {
		w.net.Refuse(simtest.Any, host, false)
	}
}

// snapshot copies a data directory as it is on disk when nothing in the world
// moves, and returns the copy's name.
func (w *world) snapshot(dir, name string) string {
	w.t.Helper()
	synctest.Wait()
	to := w.newDir(name)
	w.must(copyDir(dir, to))
	return to
}

// copyDir copies what a store has on disk. The log of the memtable, which
// points into the value log, is copied first, so that a copy of a store that
// is being written to is one that a crash could have left.
func copyDir(from, to string) error {
	var files, later []string
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return os.MkdirAll(filepath.Join(to, strings.TrimPrefix(path, from)), 0o700)
		case !e.Type().IsRegular() || e.Name() == "ballast":
		case filepath.Ext(path) == ".mem":
			files = append(files, path)
		default:
			later = append(later, path)
		}
		return nil
	})
	for _, path := range append(files, later...) {
		err = errors.Join(err, copySparse(path, filepath.Join(to, strings.TrimPrefix(path, from))))
	}
	return err
}

// copySparse copies a file and leaves its zero blocks holes: the store's files
// are mostly that.
func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	block, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	var size int64
	for {
		n, err := io.ReadFull(in, block)
		if !bytes.Equal(block[:n], zero[:n]) {
			if _, err := out.WriteAt(block[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.Join(out.Truncate(size), out.Close())
		}
		if err != nil {
			return err
		}
	}
}

// ask makes one request of the admin socket.
func (w *world) ask(method, path string, in, out any) error {
	transport := &http.Transport{DialContext: w.net.DialContext("admin-cli"), DisableKeepAlives: true}
	return call(&http.Client{Transport: transport, Timeout: time.Minute}, method, "http://admin"+path, in, out)
}

// call makes one request with JSON either way.
func call(client *http.Client, method, url string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s %s", method, url, resp.Status, answer)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

// createPair pairs two users and returns the pair's id.
func (w *world) createPair(a, b string) string {
	w.t.Helper()
	var p admin.Pair
	w.must(w.ask(http.MethodPost, "/pairs", map[string][2]string{"users": {a, b}}, &p))
	w.book.pair(a, b)
	return p.ID
}

func (w *world) removePair(id string) {
	w.t.Helper()
	w.must(w.ask(http.MethodDelete, "/pairs/"+id, nil, nil))
}

// appToken returns a token of a user's app.
func (w *world) appToken(user string) string {
	w.t.Helper()
	var t admin.Token
	w.must(w.ask(http.MethodPost, "/tokens", admin.TokenRequest{User: user, TTL: tokenLife}, &t))
	return t.Token
}

// device registers a device and returns its id and token.
func (w *world) device(user, name string) (id, token string) {
	w.t.Helper()
	var d admin.NewDevice
	w.must(w.ask(http.MethodPost, "/devices", admin.DeviceRequest{User: user, Name: name}, &d))
	return d.ID, d.Token.Token
}

// await sleeps until cond is true and fails the test after limit; say tells
// what was missing.
func (w *world) await(limit time.Duration, say func() string, cond func() bool) {
	w.t.Helper()
	end := time.Now().Add(limit)
	for step := 10 * time.Millisecond; !cond(); step = min(2*step, 5*time.Second) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: after %v %s", w.doing, limit, say())
		}
		time.Sleep(step)
	}
}

// runner is the goroutine of a phone, a frame or a peer.
type runner struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// start runs it, until stop or the end of the test.
func (r *runner) start(t testing.TB, run func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.done.Go(func() { run(ctx) })
	t.Cleanup(r.stop)
}

// stop ends it and waits; without a start, and again, it does nothing.
func (r *runner) stop() {
	if r.cancel != nil {
		r.cancel()
		r.done.Wait()
		r.cancel = nil
	}
}

func (r *runner) running() bool { return r.cancel != nil }

// pause waits for d; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// wires are the connections of one host, oldest first. The zero value is none.
type wires struct {
	mu    sync.Mutex // guards the fields below
	all   []*wire
	watch func(p []byte) // sees what is about to be written; nil for nobody
}

// watched sets who sees what is about to be written.
func (ws *wires) watched(by func(p []byte)) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.watch = by
}

// dial connects and enters the connection.
func (ws *wires) dial(ctx context.Context, n *simtest.Network, from, to string) (net.Conn, error) {
	c, err := n.Dial(ctx, from, to)
	if err != nil {
		return nil, err
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.all = append(ws.all, &wire{Conn: c, of: ws})
	return ws.all[len(ws.all)-1], nil
}

// newest returns the last connection's boundaries, of what was sent and of
// what was received.
func (ws *wires) newest() (sent, received []int64) {
	ws.mu.Lock()
	c := ws.all[len(ws.all)-1]
	ws.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sent), slices.Clone(c.received)
}

// wire notes where the bytes of one connection were written and read: the
// boundaries of its packets, as far as one end can see them.
type wire struct {
	net.Conn
	of *wires

	mu       sync.Mutex // guards the fields below
	out, in  int64
	sent     []int64
	received []int64
}

func (c *wire) Write(p []byte) (int, error) {
	c.of.mu.Lock()
	watch := c.of.watch
	c.of.mu.Unlock()
	if watch != nil {
		watch(p)
	}
	n, err := c.Conn.Write(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out += int64(n)
	c.sent = append(c.sent, c.out)
	return n, err
}

func (c *wire) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 {
		c.in += int64(n)
		c.received = append(c.received, c.in)
	}
	return n, err
}
