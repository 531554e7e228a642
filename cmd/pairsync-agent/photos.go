package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"pairsync/agent"
	"pairsync/cmd/internal/cli"
	"pairsync/internal/config"
)

type sendCmd struct {
	Files   []string      `arg:"" name:"file" help:"Photos (JPEG, PNG, WebP, GIF)."`
	Caption string        `placeholder:"TEXT" help:"Caption of each."`
	Quality string        `enum:"default,high" default:"default" placeholder:"Q" help:"default (fits 1080x1920, 1 MB) or high (1920x1920, 2 MB)."`
	Wait    time.Duration `default:"15s" placeholder:"D" help:"How long to wait for the server to have each photo; then it stays queued (default: ${default})."`
	JSON    bool          `name:"json" help:"Print JSON."`
}

// sent is what became of one file.
type sent struct {
	File string `json:"file"`
	agent.Outcome
}

// Run sends the files, one after the other, and fails when one of them could
// not be saved or was refused. A queued one is no failure.
func (s *sendCmd) Run(ctx context.Context, c *common, std cli.IO) error {
	client, err := c.client(std)
	if err != nil {
		return err
	}
	all, failures := []sent{}, []error{}
	for _, file := range s.Files {
		out, err := s.send(ctx, client, file)
		if err == nil && out.State == agent.StateFailed {
			err = errors.New(out.Reason)
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("send %s: %w", file, err))
			continue
		}
		all = append(all, sent{file, out})
		if s.JSON {
			continue
		}
		line := fmt.Sprintf("%s %s %s", out.Moment, out.State, file)
		if out.Reason != "" {
			line += ": " + out.Reason
		}
		if _, err := fmt.Fprintln(std.Out, cli.Printable(line)); err != nil {
			return err
		}
	}
	if s.JSON {
		failures = append(failures, cli.JSON(std.Out, all))
	}
	return errors.Join(failures...)
}

func (s *sendCmd) send(ctx context.Context, client *agent.Client, file string) (agent.Outcome, error) {
	f, err := os.Open(file)
	if err != nil {
		return agent.Outcome{}, err
	}
	defer f.Close()
	return client.Send(ctx, f, s.Caption, agent.Quality(s.Quality), s.Wait)
}

type listCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run lists the photos.
func (l *listCmd) Run(ctx context.Context, c *common, std cli.IO) error {
	client, err := c.client(std)
	if err != nil {
		return err
	}
	list, err := client.List(ctx)
	if err != nil {
		return err
	}
	if l.JSON {
		return cli.JSON(std.Out, list)
	}
	var rows [][]string
	for _, p := range list {
		shown := "new"
		if p.Shown {
			shown = "shown"
		}
		rows = append(rows, []string{p.Moment, p.Sender, config.Bytes(p.Bytes).Rounded(), cli.Time(&p.ReceivedAt), shown, p.Caption})
	}
	return cli.Table(std.Out, []string{"MOMENT", "SENDER", "SIZE", "RECEIVED", "STATE", "CAPTION"}, rows)
}

type exportCmd struct {
	Moment string `arg:"" help:"The moment's id, or SENDER/ID."`
	File   string `arg:"" help:"Where to write it; - is standard output."`
	Clean  bool   `help:"Upright and without location or other metadata; otherwise the bytes as received."`
}

// Run writes the photo.
func (e *exportCmd) Run(ctx context.Context, c *common, std cli.IO) error {
	client, err := c.client(std)
	if err != nil {
		return err
	}
	export := func() ([]byte, error) { return client.Export(ctx, e.Moment, e.Clean) }
	if e.File != "-" {
		return cli.WriteFile(e.File, 0o644, export)
	}
	b, err := export()
	if err != nil {
		return err
	}
	_, err = std.Out.Write(b)
	return err
}

type statusCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run prints the status.
func (s *statusCmd) Run(ctx context.Context, c *common, std cli.IO) error {
	client, err := c.client(std)
	if err != nil {
		return err
	}
	st, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if s.JSON {
		return cli.JSON(std.Out, st)
	}
	return printStatus(std, st)
}

func printStatus(std cli.IO, st agent.Status) error {
	state := "not running"
	switch {
	case st.Connected:
		state = "connected"
	case st.Running && st.Offline != "":
		state = "offline: " + st.Offline
	case st.Running:
		state = "offline"
	}
	orNone := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	_, err := fmt.Fprintf(std.Out, "agent     %s\ndevice    %s of %s\npair      %s with %s\nphotos    %d (%s), %d broken\nrefused   %d\nwaiting   %d photos, %d receipts\n",
		cli.Printable(state), orNone(st.Device), orNone(st.User), orNone(st.Pair), orNone(st.Partner),
		st.Photos, config.Bytes(st.Bytes).Rounded(), st.Broken, st.Refused, len(st.Outbox), st.Receipts)
	if err != nil || len(st.Outbox) == 0 {
		return err
	}
	fmt.Fprintln(std.Out)
	var rows [][]string
	for _, o := range st.Outbox {
		rows = append(rows, []string{o.Moment, o.State, config.Bytes(o.Bytes).Rounded(), cli.Time(&o.SavedAt), o.Reason})
	}
	return cli.Table(std.Out, []string{"WAITING", "STATE", "SIZE", "SAVED", "REASON"}, rows)
}
