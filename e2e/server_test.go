package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pairsync/internal/admin"
	"pairsync/internal/moment"
)

// server is a `pairsync serve` with a data directory and ports of its own,
// which it keeps over restarts.
type server struct {
	dir             string
	mqtt, http, ops string // addresses
	env             []string
	proc            *process
	owner           testing.TB // ends the process with itself; tests within it restart it
	secrets         *secrets
}

// newServer starts a server.
func newServer(t testing.TB, env ...string) *server {
	t.Helper()
	return newServerIn(t, shortDir(t), env...)
}

// newServerIn starts a server with a data directory of the caller's.
func newServerIn(t testing.TB, dir string, env ...string) *server {
	t.Helper()
	ports := freePorts(t, 3)
	s := &server{
		dir: dir, mqtt: ports[0], http: ports[1], ops: ports[2],
		env:     append([]string{"PAIRSYNC_LOG_FORMAT=json", "PAIRSYNC_LOG_LEVEL=debug"}, env...),
		secrets: newSecrets(t), owner: t,
	}
	s.start(t)
	return s
}

// launch starts the server and does not wait for it.
func (s *server) launch() {
	s.proc = start(s.owner, "pairsync serve", s.env, programs.server, "serve", "--data-dir", s.dir,
		"--mqtt-listen", s.mqtt, "--http-listen", s.http, "--ops-listen", s.ops)
	s.secrets.watch(s.proc)
}

// start starts the server and waits until it serves.
func (s *server) start(t testing.TB) {
	t.Helper()
	s.launch()
	s.proc.out.await(t, "the server to be ready", func(lines []string) bool {
		for _, line := range lines {
			var l struct {
				Msg string `json:"msg"`
			}
			if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "ready" {
				return true
			}
		}
		return false
	})
}

// crash is kill -9 and a new start.
func (s *server) crash(t testing.TB) {
	t.Helper()
	s.proc.kill(t)
	s.start(t)
}

// stop is SIGTERM; the server must end well.
func (s *server) stop(t testing.TB) {
	t.Helper()
	s.proc.signal(t, syscall.SIGTERM)
	if code := s.proc.wait(t); code != 0 {
		t.Errorf("SIGTERM: exit code %d, want 0", code)
	}
}

func (s *server) restart(t testing.TB) {
	t.Helper()
	s.stop(t)
	s.start(t)
}

// cli runs an admin command and returns what it prints.
func (s *server) cli(t testing.TB, args ...string) string {
	t.Helper()
	return output(t, programs.server, append(args, "--data-dir", s.dir)...)
}

// output runs a program that must succeed and returns its standard output.
func output(t testing.TB, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = environment()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// couple is a pair: the id and its two users.
type couple struct{ id, ann, ben string }

// pair pairs two users whose names nobody else has.
func (s *server) pair(t testing.TB) couple {
	t.Helper()
	suffix := fmt.Sprintf("%08x", rand.Uint32())
	c := couple{ann: "ann-" + suffix, ben: "ben-" + suffix}
	c.id = s.cli(t, "pair", "create", c.ann, c.ben)
	return c
}

func (c couple) photoTopic(user, id string) string {
	m := moment.Moment{Pair: c.id, User: user, Kind: moment.Photo, ID: id}
	return m.Topic()
}

// token issues a token for user's app.
func (s *server) token(t testing.TB, user string) string {
	t.Helper()
	raw := s.cli(t, "token", "issue", "--user", user, "--ttl", "24h")
	s.secrets.add("a token of "+user, raw)
	return raw
}

// sessions returns what the server says of its sessions, by id.
func (s *server) sessions(t testing.TB) map[string]admin.Session {
	t.Helper()
	var list []admin.Session
	if err := json.Unmarshal([]byte(s.cli(t, "session", "list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	byID := map[string]admin.Session{}
	for _, l := range list {
		byID[l.ID] = l
	}
	return byID
}

// session returns what the server says of one session, nil where there is none.
func (s *server) session(t testing.TB, id string) *admin.Session {
	t.Helper()
	l, ok := s.sessions(t)[id]
	if !ok {
		return nil
	}
	return &l
}

// freePorts returns n addresses on loopback that nobody listens on. They lie
// below the range that the system takes ports from for outgoing connections:
// while a server is down, a client that tries to reconnect could otherwise be
// given the server's own port, and talk to itself.
func freePorts(t testing.TB, n int) []string {
	t.Helper()
	var out []string
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if out = append(out, addr); len(out) == n {
			return out
		}
	}
	t.Fatalf("no %d free ports on loopback", n)
	return nil
}

// shortDir is t.TempDir with a path short enough for a unix socket in it.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
