package e2e

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"

	"pairsync/agent"
)

// frame is a `pairsync-agent run` with a data directory of its own, which it
// keeps over restarts.
type frame struct {
	id, dir, tokenFile string
	broker             string // where it connects
	server             *server
	owner              testing.TB // ends the process with itself
	proc               *process
}

// newFrame adds a device of user's and starts its agent.
func newFrame(t testing.TB, s *server, user string) *frame {
	t.Helper()
	f := &frame{dir: shortDir(t), server: s, owner: t, broker: "mqtt://" + s.mqtt}
	f.tokenFile = filepath.Join(f.dir, "token")
	f.id = s.cli(t, "device", "add", "--user", user, "--name", "kitchen", "--out", f.tokenFile)
	info, err := os.Stat(f.tokenFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("token file: mode %v, %v", info.Mode(), err)
	}
	raw, err := os.ReadFile(f.tokenFile)
	if err != nil {
		t.Fatal(err)
	}
	s.secrets.add("a device token", string(raw[:len(raw)-1]))
	return f
}

// start starts the agent and waits until it answers commands: one that came
// before would open the store itself, and the agent could not.
func (f *frame) start(t testing.TB) {
	t.Helper()
	f.proc = start(f.owner, "pairsync-agent run", []string{"PAIRSYNC_AGENT_LOG_LEVEL=debug", "PAIRSYNC_AGENT_KEEP_PHOTOS=1000000"}, programs.agent, "run",
		"--data-dir", f.dir, "--broker", f.broker, "--token-file", f.tokenFile, "--kiosk-listen", "127.0.0.1:0")
	f.server.secrets.watch(f.proc)
	eventually(t, "the agent to answer", func() bool {
		c, err := net.Dial("unix", filepath.Join(f.dir, "agent.sock"))
		return err == nil && c.Close() == nil
	})
}

// cli runs a command of the agent and returns what it prints.
func (f *frame) cli(t testing.TB, args ...string) string {
	t.Helper()
	return output(t, programs.agent, append(args, "--data-dir", f.dir)...)
}

// connect starts the agent and waits until it is connected.
func (f *frame) connect(t testing.TB) {
	t.Helper()
	f.start(t)
	f.awaitConnected(t)
}

// awaitConnected waits until the agent is connected and knows its pair.
func (f *frame) awaitConnected(t testing.TB) {
	t.Helper()
	eventually(t, "the frame to connect", func() bool {
		code, out := runs(t, programs.agent, "status", "--json", "--data-dir", f.dir)
		var st agent.Status
		return code == 0 && json.Unmarshal([]byte(out), &st) == nil && st.Connected && st.Partner != ""
	})
}

// list returns the photos on the frame, newest first.
func (f *frame) list(t testing.TB) []agent.Photo {
	t.Helper()
	var list []agent.Photo
	if err := json.Unmarshal([]byte(f.cli(t, "list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// has waits until the frame lists the photo, and returns its line.
func (f *frame) has(t testing.TB, photo string) (line agent.Photo) {
	t.Helper()
	eventually(t, "photo "+photo+" on the frame", func() bool {
		for _, p := range f.list(t) {
			if p.Moment == photo {
				line = p
				return true
			}
		}
		return false
	})
	return line
}

// export returns a photo as the frame has it.
func (f *frame) export(t testing.TB, photo string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "export")
	f.cli(t, "export", photo, file)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
