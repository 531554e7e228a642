package main

import (
	"context"

	"pairsync/cmd/internal/cli"
	"pairsync/internal/config"
	"pairsync/internal/daemon"
	"pairsync/internal/demo"
)

// configFile is read when it exists and nobody names another.
const configFile = "/etc/pairsync/pairsync.yaml"

type serveCmd struct {
	Config     string `placeholder:"FILE" help:"Configuration file (PAIRSYNC_CONFIG; default: /etc/pairsync/pairsync.yaml where it exists)."`
	MQTTListen string `name:"mqtt-listen" placeholder:"ADDR" help:"mqtt.listen"`
	HTTPListen string `name:"http-listen" placeholder:"ADDR" help:"http.listen"`
	OpsListen  string `name:"ops-listen" placeholder:"ADDR" help:"ops.listen"`
}

// Run serves until the context ends.
func (s *serveCmd) Run(ctx context.Context, c *common, std cli.IO) error {
	cfg, err := s.load(c, std)
	if err != nil {
		return cli.UsageError(err)
	}
	log, err := cli.Logger(std.Out, cfg.Log.Level, cfg.Log.Format)
	if err != nil {
		return cli.UsageError(err)
	}
	d, err := daemon.New(ctx, cfg, daemon.Listeners{}, log)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go daemon.ReleaseMemory(ctx)
	return d.Run(ctx)
}

// load composes the configuration: defaults, file, environment, flags.
func (s *serveCmd) load(c *common, std cli.IO) (daemon.Config, error) {
	cfg := daemon.Default()
	cfg.DataDir = cli.StateDir("pairsync", std.Environ)
	o := config.Options{
		File: s.Config, EnvPrefix: "PAIRSYNC_", Environ: std.Environ,
		EnvForeign: []string{"PAIRSYNC_AGENT_", "PAIRSYNC_CONFIG"},
	}
	if o.File == "" {
		o.File = std.Getenv("PAIRSYNC_CONFIG")
	}
	if o.FileRequired = o.File != ""; !o.FileRequired {
		o.File = configFile
	}
	for _, f := range []config.Flag{
		{Key: "data_dir", Name: "--data-dir", Value: c.DataDir},
		{Key: "mqtt.listen", Name: "--mqtt-listen", Value: s.MQTTListen},
		{Key: "http.listen", Name: "--http-listen", Value: s.HTTPListen},
		{Key: "ops.listen", Name: "--ops-listen", Value: s.OpsListen},
	} {
		if f.Value != "" {
			o.Flags = append(o.Flags, f)
		}
	}
	_, err := config.Load(&cfg, o)
	return cfg, err
}

type demoCmd struct {
	Once  bool   `help:"Send one photo, check every byte, clean up and exit."`
	Photo string `placeholder:"FILE" help:"The photo to send (default: one that is built in)."`
}

// Run shows the photo's way.
func (d *demoCmd) Run(ctx context.Context, c *common, std cli.IO) error {
	log, err := cli.Logger(std.Err, "warn", "text")
	if err != nil {
		return err
	}
	return demo.Run(ctx, demo.Options{Once: d.Once, Photo: d.Photo, DataDir: c.DataDir, Out: std.Out, Log: log})
}
