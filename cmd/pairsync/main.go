// Command pairsync is the server and its admin commands: grammar, signals and
// exit codes. What it does is in internal/daemon, internal/admin and
// internal/demo.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"pairsync/cmd/internal/cli"
	"pairsync/internal/admin"
	"pairsync/internal/version"
)

func main() {
	os.Exit(run(os.Args[1:], cli.IO{Out: os.Stdout, Err: os.Stderr, Environ: os.Environ()}))
}

func run(args []string, std cli.IO) int {
	g := new(grammar)
	return cli.Main(g, "Shares photos between two people: server and admin commands.", args, std, exitCode, &g.common)
}

// exitCode is the one table from errors to exit codes.
func exitCode(err error) int {
	if e := (*admin.Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return cli.Failed
}

// common is what every command takes.
type common struct {
	DataDir string `name:"data-dir" placeholder:"DIR" help:"The server's data directory (PAIRSYNC_DATA_DIR; default: /var/lib/pairsync as a service or root, else the user's state directory)."`
}

// dataDir returns the directory that the flag, the environment or the default
// name, in this order.
func (c *common) dataDir(std cli.IO) (string, error) {
	dir := c.DataDir
	if dir == "" {
		dir = std.Getenv("PAIRSYNC_DATA_DIR")
	}
	if dir == "" {
		dir = cli.StateDir("pairsync", std.Environ)
	}
	if dir == "" {
		return "", cli.UsageError(errors.New("no data directory: name one with --data-dir"))
	}
	return dir, nil
}

// dial returns a client for the server.
func (c *common) dial(std cli.IO) (*admin.Client, error) {
	dir, err := c.dataDir(std)
	if err != nil {
		return nil, err
	}
	client, err := admin.Dial(dir)
	return client, cli.UsageError(err)
}

type grammar struct {
	common

	Serve   serveCmd   `cmd:"" help:"Run the server."`
	Demo    demoCmd    `cmd:"" help:"Send a photo from phone to phone and frame, all in this process."`
	Pair    pairCmd    `cmd:"" help:"Who shares with whom."`
	Device  deviceCmd  `cmd:"" help:"Frames, kiosks and widgets."`
	Token   tokenCmd   `cmd:"" help:"Tokens for apps, devices and tools."`
	Session sessionCmd `cmd:"" help:"MQTT sessions and what is queued for them."`
	Status  statusCmd  `cmd:"" help:"How the running server is."`
	Version versionCmd `cmd:"" help:"Which build this is."`
}

type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(_ context.Context, std cli.IO) error {
	_, err := fmt.Fprintln(std.Out, "pairsync", version.String())
	return err
}
