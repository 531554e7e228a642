// Package clitest holds the testscript commands that the scripts of both
// programs share.
package clitest

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// pollPauses and pollEvery bound Eventually to twenty seconds.
const (
	pollPauses = 400
	pollEvery  = 50 * time.Millisecond
)

// Code runs a command that must exit with a code: code N COMMAND ARGS….
func Code(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// Eventually repeats a command until it exits with 0 and prints what matches:
// eventually PATTERN COMMAND ARGS….
func Eventually(ts *testscript.TestScript, _ bool, args []string) {
	pattern := regexp.MustCompile("(?m)" + args[0])
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for range pollPauses {
		cmd := exec.Command(args[1], args[2:]...)
		cmd.Dir = ts.MkAbs(".")
		if out, err := cmd.Output(); err == nil && pattern.Match(out) {
			return
		}
		<-tick.C
	}
	ts.Fatalf("%v never printed %q", args[1:], args[0])
}
