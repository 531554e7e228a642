//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"pairsync/e2e/load"
	"pairsync/internal/admin"
	"pairsync/internal/token"
)

// patience bounds the wait for a server to start or stop.
const patience = 60 * time.Second

// pair is two users and the id of their topic tree.
type pair struct{ id, from, to string }

// prefix is the topic of from's photos up to the moment's id.
func (p pair) prefix() string { return "pairs/" + p.id + "/photos/" + p.from + "/" }

// filter is what a device of to subscribes to.
func (p pair) filter() string { return p.prefix() + "#" }

// server is a broker under test, running in a process of its own.
type server interface {
	name() string
	addr() string
	pid() int
	// pairs makes n pairs; it is called once.
	pairs(ctx context.Context, n int) ([]pair, error)
	// login returns who a client of user says it is.
	login(user string) (load.Config, error)
	// stop ends the process with the signal; the data stays.
	stop(sig syscall.Signal) error
}

// raised are the settings that pairsync runs with beside its defaults: all the
// load comes from one address, and from few users. Everything else, the quotas
// of a pair too, is as shipped.
var raised = []string{
	"PAIRSYNC_BROKER_LIMITS_CONNECTIONS=100000",
	"PAIRSYNC_BROKER_LIMITS_ADDRESS_CONNECTIONS=100000",
	"PAIRSYNC_BROKER_LIMITS_ADDRESS_CONNECTS=1000000",
	"PAIRSYNC_BROKER_LIMITS_USER_PUBLISHES=1000000",
	"PAIRSYNC_BROKER_LIMITS_USER_PUBLISH_BYTES=8GiB",
	"PAIRSYNC_LOG_FORMAT=json",
}

// pairsync is `pairsync serve`.
type pairsync struct {
	*child
	dir   string
	keys  *token.Signer // the server's own: tokens by the thousand
	admin *admin.Client
}

// startPairsync starts the server on dir and waits until it serves: until it
// has said so, and a client's CONNECT was answered.
func startPairsync(ctx context.Context, program []string, dir string) (*pairsync, error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	env := append(raised[:len(raised):len(raised)], "PAIRSYNC_DATA_DIR="+dir,
		"PAIRSYNC_MQTT_LISTEN="+ports[0], "PAIRSYNC_HTTP_LISTEN="+ports[1], "PAIRSYNC_OPS_LISTEN="+ports[2])
	c, err := startChild("pairsync", ports[0], dir+".log", env, program[0], append(program[1:len(program):len(program)], "serve")...)
	if err != nil {
		return nil, err
	}
	s := &pairsync{child: c, dir: dir}
	if err := s.begin(ctx); err != nil {
		return nil, errors.Join(err, s.stop(syscall.SIGKILL))
	}
	return s, nil
}

func (s *pairsync) begin(ctx context.Context) error {
	if err := s.awaitReady(); err != nil {
		return err
	}
	keys, err := token.OpenKeys(filepath.Join(s.dir, "keys"))
	if err != nil {
		return err
	}
	s.keys = token.NewSigner(keys, "pairsync", "pairsync")
	if s.admin, err = admin.Dial(s.dir); err != nil {
		return err
	}
	return answers(ctx, s)
}

func (s *pairsync) pairs(ctx context.Context, n int) ([]pair, error) {
	out := make([]pair, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range out {
		g.Go(func() error {
			p := pair{from: fmt.Sprintf("ann-%d", i), to: fmt.Sprintf("ben-%d", i)}
			made, err := s.admin.CreatePair(ctx, p.from, p.to)
			p.id = made.ID
			out[i] = p
			return err
		})
	}
	return out, g.Wait()
}

func (s *pairsync) login(user string) (load.Config, error) {
	raw, _, err := s.keys.Sign(token.Principal{User: user, Role: token.RoleApp}, time.Hour)
	return load.Config{Addr: s.addr(), User: user, Password: raw}, err
}

// mosquitto is Debian's mosquitto: persistence on, nothing synced, no logins.
type mosquitto struct{ *child }

const mosquittoConfig = `listener %s 127.0.0.1
allow_anonymous true
persistence true
persistence_location %s/
max_queued_messages 0
max_inflight_messages 20
set_tcp_nodelay true
user root
log_type error
log_type warning
`

func startMosquitto(ctx context.Context, dir string) (*mosquitto, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(ports[0])
	file := dir + ".conf"
	if err := os.WriteFile(file, fmt.Appendf(nil, mosquittoConfig, port, dir), 0o600); err != nil {
		return nil, err
	}
	// It does not raise its limit of open files by itself.
	c, err := startChild("mosquitto", ports[0], dir+".log", nil, "sh", "-c", `ulimit -n "$(ulimit -Hn)"; exec "$@"`, "sh", mosquittoProgram(), "-c", file)
	if err != nil {
		return nil, err
	}
	s := &mosquitto{c}
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if err = answers(ctx, s); err == nil {
			return s, nil
		}
		if s.ended() || time.Since(start) > patience || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("mosquitto does not serve: %w", err), s.stop(syscall.SIGKILL))
		}
	}
}

// mosquittoProgram is where Debian puts it; sbin is not on everybody's path.
func mosquittoProgram() string {
	if path, err := exec.LookPath("mosquitto"); err == nil {
		return path
	}
	return "/usr/sbin/mosquitto"
}

func (s *mosquitto) pairs(_ context.Context, n int) ([]pair, error) {
	out := make([]pair, n)
	for i := range out {
		out[i] = pair{id: fmt.Sprintf("pair-%d", i), from: fmt.Sprintf("ann-%d", i), to: fmt.Sprintf("ben-%d", i)}
	}
	return out, nil
}

func (s *mosquitto) login(string) (load.Config, error) { return load.Config{Addr: s.addr()}, nil }

// answers connects once.
func answers(ctx context.Context, s server) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cfg, err := s.login("probe")
	if err != nil {
		return err
	}
	cfg.ClientID = "probe"
	c, err := load.Dial(ctx, cfg)
	if err != nil {
		return err
	}
	return c.Close()
}

// child is a process. What it says goes into a file.
type child struct {
	what, address string
	cmd           *exec.Cmd
	file          string
	ready         chan struct{} // closed when it has said readyText
	done          chan struct{} // closed when it has ended
}

func startChild(what, addr, file string, env []string, program string, args ...string) (*child, error) {
	out, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	c := &child{what: what, address: addr, file: file, ready: make(chan struct{}), done: make(chan struct{})}
	c.cmd = exec.Command(program, args...)
	c.cmd.Stdout, c.cmd.Stderr = w, w
	c.cmd.Env = append(environment(), env...)
	err = c.cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		out.Close()
		return nil, fmt.Errorf("start %s: %w", what, err)
	}
	go func() {
		defer close(c.done)
		c.keep(io.TeeReader(r, out))
		r.Close()
		out.Close()
		_ = c.cmd.Wait() // stop looks at the state
	}()
	return c, nil
}

// environment is ours without settings of the program under test.
func environment() []string {
	var out []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PAIRSYNC_") {
			out = append(out, v)
		}
	}
	return out
}

// readyText is in the line of the log that pairsync is ready with.
const readyText = `"msg":"ready"`

// keep reads to the end.
func (c *child) keep(r io.Reader) {
	ready := sync.OnceFunc(func() { close(c.ready) })
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadString('\n')
		if strings.Contains(line, readyText) {
			ready()
		}
		if err != nil {
			return
		}
	}
}

// awaitReady waits until it has said that it is ready.
func (c *child) awaitReady() error {
	select {
	case <-c.ready:
		return nil
	case <-c.done:
		return fmt.Errorf("%s has ended: see %s", c.what, c.file)
	case <-time.After(patience):
		return fmt.Errorf("%s was not ready within %v: see %s", c.what, patience, c.file)
	}
}

func (c *child) name() string { return c.what }
func (c *child) addr() string { return c.address }
func (c *child) pid() int     { return c.cmd.Process.Pid }

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *child) stop(sig syscall.Signal) error {
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.done:
	case <-time.After(patience):
		err := c.cmd.Process.Kill()
		<-c.done
		return errors.Join(fmt.Errorf("%s did not end within %v: see %s", c.what, patience, c.file), err)
	}
	if code := c.cmd.ProcessState.ExitCode(); sig == syscall.SIGTERM && code != 0 {
		return fmt.Errorf("%s ended with exit code %d: see %s", c.what, code, c.file)
	}
	return nil
}

// freePorts returns n addresses on loopback that nobody listens on, below the
// range that outgoing connections take theirs from.
func freePorts(n int) ([]string, error) {
	var out []string
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
		if out = append(out, addr); len(out) == n {
			return out, nil
		}
	}
	return nil, fmt.Errorf("no %d free ports on loopback", n)
}
