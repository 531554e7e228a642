package main

import (
	"bytes"
	"context"
	"image"
	"image/color"
	"image/jpeg"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"pairsync/agent"
	"pairsync/cmd/internal/clitest"
	"pairsync/internal/admin"
	"pairsync/internal/config"
	"pairsync/internal/daemon"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pairsync-agent": main})
}

func TestScripts(t *testing.T) {
	broker := newServer(t)
	photo := newPhoto(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("BROKER", broker)
			e.Setenv("HOME", e.Getenv("WORK"))
			return os.WriteFile(filepath.Join(e.WorkDir, "photo.jpg"), photo, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"run": runAgent, "pair": pair, "eventually": clitest.Eventually, "code": clitest.Code, "field": field,
		},
	})
}

// newServer runs a real server until the test ends and returns its broker URL.
// Scripts find its admin socket through PAIRSYNC_TEST_DATA.
func newServer(t *testing.T) (broker string) {
	t.Helper()
	cfg := daemon.Default()
	cfg.DataDir = t.TempDir()
	cfg.MQTT.Listen, cfg.HTTP.Listen, cfg.Ops.Listen = "127.0.0.1:0", "127.0.0.1:0", ""
	d, err := daemon.New(t.Context(), cfg, daemon.Listeners{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PAIRSYNC_TEST_DATA", cfg.DataDir)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	<-d.Ready()
	return "mqtt://" + d.MQTTAddr().String()
}

// newPhoto returns a JPEG that needs no change to be sent.
func newPhoto(t *testing.T) []byte {
	t.Helper()
	img := image.NewRGBA(image.Rect(0, 0, 320, 240))
	for i := range img.Pix {
		img.Pix[i] = byte(i * i >> 7)
	}
	img.Set(0, 0, color.White)
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pair makes two users a pair and gives each a device whose token is in the
// file of its user's name: pair A B.
func pair(ts *testscript.TestScript, neg bool, args []string) {
	ctx := context.Background()
	c, err := admin.Dial(os.Getenv("PAIRSYNC_TEST_DATA"))
	ts.Check(err)
	_, err = c.CreatePair(ctx, args[0], args[1])
	ts.Check(err)
	for _, user := range args {
		d, err := c.AddDevice(ctx, admin.DeviceRequest{User: user, Name: "frame"})
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(user), []byte(d.Token.Token+"\n"), 0o600))
	}
}

// runAgent starts `pairsync-agent run` with the token and the data directory
// of a user; at the end of the script it must exit with 0: run USER.
func runAgent(ts *testscript.TestScript, neg bool, args []string) {
	cmd := exec.Command("pairsync-agent", "run", "--broker", ts.Getenv("BROKER"),
		"--token-file", ts.MkAbs(args[0]), "--data-dir", ts.MkAbs(args[0]+".data"), "--kiosk-listen", "127.0.0.1:0")
	cmd.Stderr = os.Stderr
	ts.Check(cmd.Start())
	ts.Defer(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			ts.Fatalf("agent of %s: %v", args[0], err)
		}
	})
}

// field sets an environment variable to a word of what the last command
// printed: field NAME N.
func field(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Setenv(args[0], strings.Fields(ts.ReadFile("stdout"))[n-1])
}

// sample is the documented configuration.
const sample = "../../configs/pairsync-agent.yaml"

// The documented file loads, sets every key, and sets it to its default.
func TestSampleConfiguration(t *testing.T) {
	fromFile, defaults := agent.Default(), agent.Default()
	got, err := config.Load(&fromFile, config.Options{File: sample, FileRequired: true})
	if err != nil {
		t.Fatal(err)
	}
	want, _ := config.Load(&defaults, config.Options{}) // without data_dir, which has no fixed default
	for i, s := range got {
		if s.From == "default" {
			t.Errorf("%s does not set %s", sample, s.Key)
		}
		if s.Value != want[i].Value && s.Key != "data_dir" {
			t.Errorf("%s says %s is %q, the default is %q", sample, s.Key, s.Value, want[i].Value)
		}
	}
}
