package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// programs are the paths of the two programs under test, built by TestMain.
var programs struct{ server, agent string }

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "pairsync-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(build(dir), installClients()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build builds both programs into dir.
func build(dir string) error {
	programs.server, programs.agent = filepath.Join(dir, "pairsync"), filepath.Join(dir, "pairsync-agent")
	cmd := exec.Command("go", "build", "-o", dir, "pairsync/cmd/pairsync", "pairsync/cmd/pairsync-agent")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs under test: %w\n%s", err, out)
	}
	return nil
}

// installClients makes sure that the clients are there; those of npm it
// installs itself, as make deps does.
func installClients() error {
	for program, what := range map[string]string{
		"node": "Node.js 20 or newer", "npm": "npm", "mosquitto_pub": "mosquitto-clients", "mosquitto_sub": "mosquitto-clients",
	} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is missing (%s): run `make deps`", program, what)
		}
	}
	if out, err := exec.Command(python(), "-c", "import socketio, aiohttp, requests, websocket").CombinedOutput(); err != nil {
		return fmt.Errorf("python3-socketio or what it needs is missing: run `make deps`\n%s", out)
	}
	lock, err := os.Stat("package-lock.json")
	if err != nil {
		return err
	}
	// npm writes this file last, when everything is in place.
	installed, err := os.Stat(filepath.Join("node_modules", ".package-lock.json"))
	if err == nil && !installed.ModTime().Before(lock.ModTime()) {
		return nil
	}
	cmd := exec.Command("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci in e2e: %w: run `make deps`\n%s", err, out)
	}
	return nil
}

// python is the interpreter that has Debian's packages, where there is one: the
// first in the path may be another.
func python() string {
	const debian = "/usr/bin/python3"
	if _, err := os.Stat(debian); err == nil {
		return debian
	}
	return "python3"
}
