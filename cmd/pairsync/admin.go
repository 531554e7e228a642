package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"pairsync/cmd/internal/cli"
	"pairsync/internal/admin"
	"pairsync/internal/config"
)

// asJSON is embedded by the commands that can print JSON.
type asJSON struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// ask calls fn with a client of the server and prints its answer: as JSON
// where that is asked for, else with human.
func ask[T any](ctx context.Context, c *common, std cli.IO, json bool,
	fn func(context.Context, *admin.Client) (T, error), human func(T) error,
) error {
	client, err := c.dial(std)
	if err != nil {
		return err
	}
	v, err := fn(ctx, client)
	if err != nil {
		return err
	}
	if json {
		return cli.JSON(std.Out, v)
	}
	return human(v)
}

type pairCmd struct {
	Create pairCreate `cmd:"" help:"Pair two users; prints the pair's id."`
	List   pairList   `cmd:"" help:"List the pairs."`
	Remove pairRemove `cmd:"" help:"End a pair and delete its moments."`
}

type pairCreate struct {
	Users []string `arg:"" name:"user" help:"The two users' ids."`
	asJSON
}

// Run creates the pair.
func (p *pairCreate) Run(ctx context.Context, c *common, std cli.IO) error {
	if len(p.Users) != 2 {
		return cli.UsageError(fmt.Errorf("a pair has two users, not %d", len(p.Users)))
	}
	return ask(ctx, c, std, p.JSON, func(ctx context.Context, a *admin.Client) (admin.Pair, error) {
		return a.CreatePair(ctx, p.Users[0], p.Users[1])
	}, func(p admin.Pair) error {
		_, err := fmt.Fprintln(std.Out, p.ID)
		return err
	})
}

type pairList struct{ asJSON }

// Run lists the pairs.
func (p *pairList) Run(ctx context.Context, c *common, std cli.IO) error {
	return ask(ctx, c, std, p.JSON, func(ctx context.Context, a *admin.Client) ([]admin.Pair, error) {
		return a.Pairs(ctx)
	}, func(list []admin.Pair) error {
		var rows [][]string
		for _, p := range list {
			rows = append(rows, []string{p.ID, p.Users[0], p.Users[1], cli.Time(&p.Created)})
		}
		return cli.Table(std.Out, []string{"ID", "USER", "USER", "CREATED"}, rows)
	})
}

type pairRemove struct {
	ID string `arg:"" help:"The pair's id."`
	asJSON
}

// Run removes the pair.
func (p *pairRemove) Run(ctx context.Context, c *common, std cli.IO) error {
	return ask(ctx, c, std, p.JSON, func(ctx context.Context, a *admin.Client) (admin.Pair, error) {
		return a.RemovePair(ctx, p.ID)
	}, func(p admin.Pair) error {
		_, err := fmt.Fprintf(std.Out, "removed %s (%s and %s)\n", p.ID, p.Users[0], p.Users[1])
		return err
	})
}

type deviceCmd struct {
	Add    deviceAdd    `cmd:"" help:"Register a device; prints its token."`
	List   deviceList   `cmd:"" help:"List the devices."`
	Revoke deviceRevoke `cmd:"" help:"End a device's tokens and connections for good."`
}

type deviceAdd struct {
	User string        `required:"" placeholder:"U" help:"Whose device it is."`
	Name string        `required:"" placeholder:"N" help:"Its name, for people."`
	Out  string        `placeholder:"FILE" help:"Write the token to FILE (mode 0600) and print the device's id."`
	TTL  time.Duration `name:"ttl" placeholder:"D" help:"How long the token lives (default: until the device is revoked)."`
	asJSON
}

// Run adds the device.
func (d *deviceAdd) Run(ctx context.Context, c *common, std cli.IO) error {
	add := func(ctx context.Context, a *admin.Client) (admin.NewDevice, error) {
		return a.AddDevice(ctx, admin.DeviceRequest{User: d.User, Name: d.Name, TTL: admin.Duration(d.TTL)})
	}
	if d.Out == "" {
		return ask(ctx, c, std, d.JSON, add, func(n admin.NewDevice) error {
			_, err := fmt.Fprintln(std.Out, n.Token.Token)
			return err
		})
	}
	// The token is in the file and nowhere else.
	written := func(ctx context.Context, a *admin.Client) (added admin.Device, err error) {
		err = cli.WriteFile(d.Out, 0o600, func() ([]byte, error) {
			n, err := add(ctx, a)
			added = n.Device
			return []byte(n.Token.Token + "\n"), err
		})
		return added, err
	}
	return ask(ctx, c, std, d.JSON, written, func(d admin.Device) error {
		_, err := fmt.Fprintln(std.Out, d.ID)
		return err
	})
}

type deviceList struct{ asJSON }

// Run lists the devices.
func (d *deviceList) Run(ctx context.Context, c *common, std cli.IO) error {
	return ask(ctx, c, std, d.JSON, func(ctx context.Context, a *admin.Client) ([]admin.Device, error) {
		return a.Devices(ctx)
	}, func(list []admin.Device) error {
		var rows [][]string
		for _, d := range list {
			state := "active"
			if d.Revoked {
				state = "revoked"
			}
			rows = append(rows, []string{d.ID, d.User, d.Name, state, cli.Time(&d.Created)})
		}
		return cli.Table(std.Out, []string{"ID", "USER", "NAME", "STATE", "CREATED"}, rows)
	})
}

type deviceRevoke struct {
	ID string `arg:"" help:"The device's id."`
	asJSON
}

// Run revokes the device.
func (d *deviceRevoke) Run(ctx context.Context, c *common, std cli.IO) error {
	return ask(ctx, c, std, d.JSON, func(ctx context.Context, a *admin.Client) (admin.Device, error) {
		return a.RevokeDevice(ctx, d.ID)
	}, func(d admin.Device) error {
		_, err := fmt.Fprintf(std.Out, "revoked %s (%s of %s)\n", d.ID, cli.Printable(d.Name), d.User)
		return err
	})
}

type tokenCmd struct {
	Issue  tokenIssue  `cmd:"" help:"Sign a token; prints it alone."`
	Revoke tokenRevoke `cmd:"" help:"End a token, or all of a user, and the connections that came with it."`
}

type tokenIssue struct {
	User   string        `required:"" placeholder:"U" help:"Who the token is for."`
	Device string        `placeholder:"D" help:"For a device of that user."`
	Role   string        `placeholder:"R" enum:",app,device,admin,bridge" default:"" help:"app, device, admin or bridge (default: device with --device, else app)."`
	TTL    time.Duration `name:"ttl" default:"1h" placeholder:"D" help:"How long it lives (default: ${default})."`
	asJSON
}

// Run issues the token.
func (t *tokenIssue) Run(ctx context.Context, c *common, std cli.IO) error {
	return ask(ctx, c, std, t.JSON, func(ctx context.Context, a *admin.Client) (admin.Token, error) {
		return a.IssueToken(ctx, admin.TokenRequest{User: t.User, Device: t.Device, Role: t.Role, TTL: admin.Duration(t.TTL)})
	}, func(t admin.Token) error {
		_, err := fmt.Fprintln(std.Out, t.Token)
		return err
	})
}

type tokenRevoke struct {
	JTI  string `arg:"" optional:"" name:"id" help:"The token's id (jti, see token issue --json), or the session (sid) of an external issuer: it ends with all tokens given for it."`
	User string `placeholder:"U" help:"Instead: every token that this user has got so far, devices' too."`
}

// Run revokes the tokens.
func (t *tokenRevoke) Run(ctx context.Context, c *common, std cli.IO) error {
	if (t.JTI == "") == (t.User == "") {
		return cli.UsageError(errors.New("name either a token's id or --user"))
	}
	client, err := c.dial(std)
	if err != nil {
		return err
	}
	return client.Revoke(ctx, admin.Revocation{JTI: t.JTI, User: t.User})
}

type sessionCmd struct {
	List sessionList `cmd:"" help:"List the sessions and what is queued for them."`
	Kick sessionKick `cmd:"" help:"Disconnect a session's client; what is queued stays."`
}

type sessionList struct{ asJSON }

// Run lists the sessions.
func (s *sessionList) Run(ctx context.Context, c *common, std cli.IO) error {
	return ask(ctx, c, std, s.JSON, func(ctx context.Context, a *admin.Client) ([]admin.Session, error) {
		return a.Sessions(ctx)
	}, func(list []admin.Session) error {
		var rows [][]string
		for _, s := range list {
			state := "offline"
			if s.Connected {
				state = "online"
			}
			rows = append(rows, []string{s.ID, s.User, s.Device, state, strconv.Itoa(s.Backlog), config.Bytes(s.BacklogBytes).Rounded(), cli.Time(s.Oldest)})
		}
		return cli.Table(std.Out, []string{"ID", "USER", "DEVICE", "STATE", "BACKLOG", "BYTES", "OLDEST"}, rows)
	})
}

type sessionKick struct {
	ID string `arg:"" help:"The session's id (USER/CLIENT-ID)."`
}

// Run kicks the session.
func (s *sessionKick) Run(ctx context.Context, c *common, std cli.IO) error {
	client, err := c.dial(std)
	if err != nil {
		return err
	}
	return client.Kick(ctx, s.ID)
}

type statusCmd struct{ asJSON }

// Run prints the status; a server that has a problem is exit code 1.
func (s *statusCmd) Run(ctx context.Context, c *common, std cli.IO) error {
	var problem string
	err := ask(ctx, c, std, s.JSON, func(ctx context.Context, a *admin.Client) (admin.Status, error) {
		st, err := a.Status(ctx)
		problem = st.Problem
		return st, err
	}, func(st admin.Status) error {
		var listeners []string
		for name, addr := range st.Listeners {
			listeners = append(listeners, name+" "+addr)
		}
		slices.Sort(listeners)
		_, err := fmt.Fprintf(std.Out, "version      %s\nup since     %s\ndata         %s (%s)\nlisteners    %s\npairs        %d\ndevices      %d\nconnections  %d\n",
			st.Version, cli.Time(&st.Started), st.DataDir, config.Bytes(st.StoreBytes).Rounded(), strings.Join(listeners, ", "), st.Pairs, st.Devices, st.Connections)
		return err
	})
	if err == nil && problem != "" {
		err = fmt.Errorf("the server is not well: %s", problem)
	}
	return err
}
