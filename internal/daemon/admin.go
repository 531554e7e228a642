package daemon

import (
	"context"
	"fmt"
	"net/http"

	"pairsync/internal/admin"
	"pairsync/internal/registry"
	"pairsync/internal/version"
)

// adminHandler serves the admin socket.
func (d *Daemon) adminHandler() http.Handler {
	return admin.New(admin.Deps{
		Registry: d.registry, Sign: d.signer.Sign, Log: d.log.With("part", "admin"),
		RemovePair: d.removePair, Sessions: d.sessions, Kick: d.kick, Status: d.status,
	}).Handler()
}

// removePair ends a pair and returns when its moments are off the disk.
func (d *Daemon) removePair(ctx context.Context, id string) error {
	if _, err := d.registry.RemovePair(ctx, id); err != nil {
		return err
	}
	return d.broker.AwaitChanges(ctx)
}

func (d *Daemon) sessions(ctx context.Context) ([]admin.Session, error) {
	all, err := d.broker.Sessions(ctx)
	out := make([]admin.Session, len(all))
	for i, s := range all {
		out[i] = admin.Session(s)
	}
	return out, err
}

func (d *Daemon) kick(_ context.Context, id string) error {
	if !d.broker.Kick(id) {
		return fmt.Errorf("session %q: %w, or it is not connected", id, registry.ErrNotFound)
	}
	return nil
}

func (d *Daemon) status(context.Context) (admin.Status, error) {
	s := admin.Status{
		Version: version.String(), Started: d.started, DataDir: d.cfg.DataDir,
		Listeners: d.bound(), Pairs: len(d.registry.Pairs()), Connections: d.broker.Connections(),
	}
	for _, dev := range d.registry.Devices() {
		if !dev.Revoked {
			s.Devices++
		}
	}
	tree, segments := d.db.Size()
	s.StoreBytes = tree + segments
	if err := d.db.Healthy(); err != nil {
		s.Problem = err.Error()
	}
	return s, nil
}
