// Command pairsync-agent is the program of a frame or kiosk: grammar, signals
// and exit codes. What it does is in package agent.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"pairsync/agent"
	"pairsync/cmd/internal/cli"
	"pairsync/internal/config"
	"pairsync/internal/version"
)

func main() {
	os.Exit(run(os.Args[1:], cli.IO{Out: os.Stdout, Err: os.Stderr, Environ: os.Environ()}))
}

func run(args []string, std cli.IO) int {
	g := new(grammar)
	return cli.Main(g, "Receives and shows the photos of a pair, and sends some.", args, std, exitCode, &g.common)
}

// exitCode is the one table from errors to exit codes.
func exitCode(err error) int {
	if errors.Is(err, agent.ErrNoStore) {
		return cli.Unreachable
	}
	return cli.Failed
}

// configFile is read when it exists and nobody names another.
const configFile = "/etc/pairsync/pairsync-agent.yaml"

// common is what every command takes.
type common struct {
	DataDir string `name:"data-dir" placeholder:"DIR" help:"The agent's data directory (PAIRSYNC_AGENT_DATA_DIR; default: /var/lib/pairsync-agent as a service or root, else the user's state directory)."`
	Config  string `placeholder:"FILE" help:"Configuration file (PAIRSYNC_AGENT_CONFIG; default: /etc/pairsync/pairsync-agent.yaml where it exists)."`
}

// load composes the configuration: defaults, file, environment, flags.
func (c *common) load(std cli.IO, flags ...config.Flag) (agent.Config, error) {
	cfg := agent.Default()
	cfg.DataDir = cli.StateDir("pairsync-agent", std.Environ)
	o := config.Options{
		File: c.Config, EnvPrefix: "PAIRSYNC_AGENT_", Environ: std.Environ,
		EnvForeign: []string{"PAIRSYNC_AGENT_CONFIG"},
	}
	if o.File == "" {
		o.File = std.Getenv("PAIRSYNC_AGENT_CONFIG")
	}
	if o.FileRequired = o.File != ""; !o.FileRequired {
		o.File = configFile
	}
	for _, f := range append(flags, config.Flag{Key: "data_dir", Name: "--data-dir", Value: c.DataDir}) {
		if f.Value != "" {
			o.Flags = append(o.Flags, f)
		}
	}
	_, err := config.Load(&cfg, o)
	return cfg, cli.UsageError(err)
}

// client returns a client of the agent on the data directory.
func (c *common) client(std cli.IO) (*agent.Client, error) {
	cfg, err := c.load(std)
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(std.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	client, err := agent.NewClient(cfg, log)
	return client, cli.UsageError(err)
}

type grammar struct {
	common

	Run     runCmd     `cmd:"" help:"Run the agent."`
	Send    sendCmd    `cmd:"" help:"Send photos to the partner."`
	List    listCmd    `cmd:"" help:"List the photos on this device, newest first."`
	Export  exportCmd  `cmd:"" help:"Write a photo to a file."`
	Status  statusCmd  `cmd:"" help:"How the agent is."`
	Version versionCmd `cmd:"" help:"Which build this is."`
}

type runCmd struct {
	Broker      string `placeholder:"URL" help:"The server: mqtt://HOST, mqtts://HOST, ws://HOST/mqtt or wss://HOST/mqtt."`
	TokenFile   string `placeholder:"FILE" help:"File with the device's token."`
	KioskListen string `placeholder:"ADDR" help:"Address of the kiosk page (default: 127.0.0.1:8088)."`
}

// Run runs the agent until the context ends.
func (r *runCmd) Run(ctx context.Context, c *common, std cli.IO) error {
	cfg, err := c.load(std,
		config.Flag{Key: "broker", Name: "--broker", Value: r.Broker},
		config.Flag{Key: "token_file", Name: "--token-file", Value: r.TokenFile},
		config.Flag{Key: "kiosk.listen", Name: "--kiosk-listen", Value: r.KioskListen})
	if err != nil {
		return err
	}
	if cfg.Broker == "" || cfg.TokenFile == "" {
		return cli.UsageError(errors.New("name the server with --broker and the file of the device's token with --token-file"))
	}
	log, err := cli.Logger(std.Out, cfg.LogLevel, "")
	if err != nil {
		return cli.UsageError(err)
	}
	a, err := agent.New(cfg, agent.Deps{Version: version.Version, Log: log})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(_ context.Context, std cli.IO) error {
	_, err := fmt.Fprintln(std.Out, "pairsync-agent", version.String())
	return err
}
