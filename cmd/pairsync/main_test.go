package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"pairsync/cmd/internal/clitest"
	"pairsync/internal/config"
	"pairsync/internal/daemon"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pairsync": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PAIRSYNC_DATA_DIR", e.Getenv("WORK")+"/data")
			e.Setenv("HOME", e.Getenv("WORK"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"serve": serve, "code": clitest.Code, "field": field, "mode": mode},
	})
}

// serve starts `pairsync serve ARGS…` on free ports and returns once it is
// ready. At the end of the script it is interrupted and must exit with 0.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	cmd := exec.Command("pairsync", append([]string{"serve", "--mqtt-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0"}, args...)...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = append(os.Environ(), "PAIRSYNC_DATA_DIR="+ts.Getenv("PAIRSYNC_DATA_DIR"))
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	lines := bufio.NewScanner(out)
	for {
		if !lines.Scan() {
			ts.Fatalf("serve ended before it was ready: %v", cmd.Wait())
		}
		var line struct{ Msg, MQTT, HTTP, Ops string }
		ts.Check(json.Unmarshal(lines.Bytes(), &line))
		if line.Msg == "ready" {
			if line.MQTT == "" || line.HTTP == "" || line.Ops == "" {
				ts.Fatalf("the ready line names no addresses: %s", lines.Bytes())
			}
			break
		}
	}
	ts.Defer(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			ts.Fatalf("serve: %v", err)
		}
	})
}

// field sets an environment variable to a field of the JSON that the last
// command printed: field NAME KEY.
func field(ts *testscript.TestScript, neg bool, args []string) {
	var object map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &object))
	v, ok := object[args[1]]
	if !ok {
		ts.Fatalf("no field %q in %v", args[1], object)
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

// mode checks a file's permissions: mode FILE -rw-------.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := info.Mode().String(); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

// sample is the documented configuration.
const sample = "../../configs/pairsync.yaml"

// The documented file loads, sets every key, and sets it to its default.
func TestSampleConfiguration(t *testing.T) {
	fromFile, defaults := daemon.Default(), daemon.Default()
	got, err := config.Load(&fromFile, config.Options{File: sample, FileRequired: true})
	if err != nil {
		t.Fatal(err)
	}
	want, _ := config.Load(&defaults, config.Options{}) // without data_dir, which has no fixed default
	for i, s := range got {
		if s.From == "default" && s.Key != "webhook.secret" { // never in the file
			t.Errorf("%s does not set %s", sample, s.Key)
		}
		if s.Value != want[i].Value && s.Key != "data_dir" {
			t.Errorf("%s says %s is %q, the default is %q", sample, s.Key, s.Value, want[i].Value)
		}
	}
}
