//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"syscall"

	"pairsync/internal/config"
	"pairsync/internal/daemon"
)

// serveProfiled is `pairsync serve` in a process of its own, with a profile of
// the processor and one of the heap at the end: the product has no door for
// that. It is configured by the environment alone.
func serveProfiled(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := daemon.Default()
	if _, err := config.Load(&cfg, config.Options{EnvPrefix: "PAIRSYNC_", Environ: os.Environ()}); err != nil {
		return err
	}
	d, err := daemon.New(ctx, cfg, daemon.Listeners{}, slog.New(slog.NewJSONHandler(os.Stdout, nil)))
	if err != nil {
		return err
	}
	write := func(kind string, to func(*os.File) error) error {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%d.%s.prof", filepath.Base(cfg.DataDir), os.Getpid(), kind)))
		if err != nil {
			return err
		}
		return errors.Join(to(f), f.Close())
	}
	return write("cpu", func(f *os.File) error {
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		heap := make(chan error, 1)
		go func() {
			<-ctx.Done()
			runtime.GC() // the profile is as of the last collection
			heap <- write("heap", func(f *os.File) error { return pprof.Lookup("heap").WriteTo(f, 0) })
		}()
		err := d.Run(ctx)
		stop()
		return errors.Join(err, <-heap)
	})
}
