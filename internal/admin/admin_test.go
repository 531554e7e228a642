package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/kv/kvtest"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// newServer serves a registry on a socket in a new data directory.
func newServer(t *testing.T, change func(*Deps)) (dir string, c *Client) {
	t.Helper()
	dir = t.TempDir()
	reg, err := registry.Open(t.Context(), new(kvtest.Memory))
	if err != nil {
		t.Fatal(err)
	}
	oldest := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	deps := Deps{
		Registry: reg,
		Sign: func(p token.Principal, ttl time.Duration) (string, token.Principal, error) {
			if ttl > 0 {
				p.Expires = oldest.Add(ttl)
			}
			return fmt.Sprintf("%s/%s/%s", p.User, p.Device, p.Role), p, nil
		},
		RemovePair: func(ctx context.Context, id string) error { _, err := reg.RemovePair(ctx, id); return err },
		Sessions: func(context.Context) ([]Session, error) {
			return []Session{{ID: "a/app", User: "a", Connected: true}, {ID: "b/x", User: "b", Device: "x", Backlog: 2, BacklogBytes: 5, Oldest: &oldest}}, nil
		},
		Kick: func(_ context.Context, id string) error {
			if id != "a/app" {
				return fmt.Errorf("session %q: %w", id, registry.ErrNotFound)
			}
			return nil
		},
		Status: func(context.Context) (Status, error) { return Status{Version: "1", Pairs: 3}, nil },
		Log:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&deps)
	}
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: New(deps).Handler()}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-ended })
	if c, err = Dial(dir); err != nil {
		t.Fatal(err)
	}
	return dir, c
}

// wantError checks an error's exit code and that it says what.
func wantError(t *testing.T, err error, code int, what string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Message, what) {
		t.Errorf("error %v, want code %d and %q", err, code, what)
	}
}

func TestPairs(t *testing.T) {
	_, c := newServer(t, nil)
	if list, err := c.Pairs(t.Context()); err != nil || list == nil || len(list) != 0 {
		t.Errorf("Pairs of an empty server: %v, %v; want an empty list", list, err)
	}
	p, err := c.CreatePair(t.Context(), "anna", "ben@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if p.ID == "" || p.Users != [2]string{"anna", "ben@example.com"} || time.Since(p.Created) > time.Minute {
		t.Errorf("created %+v", p)
	}
	_, err = c.CreatePair(t.Context(), "anna", "carla")
	wantError(t, err, CodeFailed, "anna")
	_, err = c.CreatePair(t.Context(), "dora", "dora")
	wantError(t, err, CodeUsage, "two different users")
	_, err = c.CreatePair(t.Context(), "dora", "no spaces")
	wantError(t, err, CodeUsage, "no spaces")

	list, err := c.Pairs(t.Context())
	if err != nil || !cmp.Equal(list, []Pair{p}) {
		t.Errorf("Pairs: %v, %v", list, err)
	}
	if gone, err := c.RemovePair(t.Context(), p.ID); err != nil || !cmp.Equal(gone, p) {
		t.Errorf("RemovePair: %v, %v", gone, err)
	}
	_, err = c.RemovePair(t.Context(), p.ID)
	wantError(t, err, CodeFailed, "not found")
	_, err = c.RemovePair(t.Context(), "../x/ y?z")
	wantError(t, err, CodeFailed, "../x/ y?z")
}

func TestDevicesAndTokens(t *testing.T) {
	_, c := newServer(t, nil)
	d, err := c.AddDevice(t.Context(), DeviceRequest{User: "anna", Name: "Küche"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "anna/" + d.ID + "/device"; d.Token.Token != want || d.Expires != nil || d.Name != "Küche" {
		t.Errorf("added %+v, want the token %q", d, want)
	}
	limited, err := c.AddDevice(t.Context(), DeviceRequest{User: "anna", Name: "b", TTL: Duration(time.Hour)})
	if err != nil || limited.Expires == nil {
		t.Errorf("with a lifetime: %+v, %v", limited, err)
	}
	for name, test := range map[string]struct {
		req  TokenRequest
		code int
		want string // the token, or a part of the error
	}{
		"app":            {TokenRequest{User: "anna", TTL: Duration(time.Hour)}, 0, "anna//"},
		"bridge":         {TokenRequest{User: "x", Role: "bridge", TTL: Duration(time.Hour)}, 0, "x//bridge"},
		"device":         {TokenRequest{User: "anna", Device: d.ID}, 0, "anna/" + d.ID + "/"},
		"endless app":    {TokenRequest{User: "anna"}, CodeUsage, "lifetime"},
		"too short":      {TokenRequest{User: "anna", TTL: Duration(time.Millisecond)}, CodeUsage, "second"},
		"no user":        {TokenRequest{TTL: Duration(time.Hour)}, CodeUsage, "user"},
		"bad role":       {TokenRequest{User: "anna", Role: "root", TTL: Duration(time.Hour)}, CodeUsage, "root"},
		"no such device": {TokenRequest{User: "anna", Device: "nope"}, CodeFailed, "nope"},
		"foreign device": {TokenRequest{User: "ben", Device: d.ID}, CodeFailed, "not found"},
		"device as app":  {TokenRequest{User: "anna", Device: d.ID, Role: "app"}, CodeUsage, "role device"},
		"role device":    {TokenRequest{User: "anna", Role: "device"}, CodeUsage, "needs the device"},
	} {
		got, err := c.IssueToken(t.Context(), test.req)
		if test.code != 0 {
			wantError(t, err, test.code, test.want)
		} else if err != nil || got.Token != test.want {
			t.Errorf("%s: token %q, %v; want %q", name, got.Token, err, test.want)
		}
	}
	if gone, err := c.RevokeDevice(t.Context(), d.ID); err != nil || !gone.Revoked {
		t.Errorf("RevokeDevice: %+v, %v", gone, err)
	}
	_, err = c.IssueToken(t.Context(), TokenRequest{User: "anna", Device: d.ID})
	wantError(t, err, CodeFailed, "revoked")
	list, err := c.Devices(t.Context())
	if err != nil || len(list) != 2 || !list[0].Revoked || list[1].Revoked {
		t.Errorf("Devices: %+v, %v", list, err)
	}
}

// A device without a token would only confuse.
func TestFailedSigningLeavesNoDevice(t *testing.T) {
	_, c := newServer(t, func(d *Deps) {
		d.Sign = func(token.Principal, time.Duration) (string, token.Principal, error) {
			return "", token.Principal{}, errors.New("no key")
		}
	})
	_, err := c.AddDevice(t.Context(), DeviceRequest{User: "anna", Name: "x"})
	wantError(t, err, CodeFailed, "no key")
	list, err := c.Devices(t.Context())
	if err != nil || len(list) != 1 || !list[0].Revoked {
		t.Errorf("Devices: %+v, %v; want it revoked", list, err)
	}
}

func TestSessionsStatusKick(t *testing.T) {
	_, c := newServer(t, nil)
	list, err := c.Sessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(list)
	want := `[{"id":"a/app","user":"a","device":"","connected":true,"backlog":0,"backlogBytes":0,"oldest":null},` +
		`{"id":"b/x","user":"b","device":"x","connected":false,"backlog":2,"backlogBytes":5,"oldest":"2026-01-02T03:04:05Z"}]`
	if string(got) != want {
		t.Errorf("sessions %s\nwant %s", got, want)
	}
	if err := c.Kick(t.Context(), "a/app"); err != nil {
		t.Error(err)
	}
	wantError(t, c.Kick(t.Context(), "nobody/x"), CodeFailed, "nobody/x")
	if s, err := c.Status(t.Context()); err != nil || s.Pairs != 3 {
		t.Errorf("Status: %+v, %v", s, err)
	}
}

func TestBadRequests(t *testing.T) {
	_, c := newServer(t, nil)
	for _, r := range []struct{ method, path, body string }{
		{"POST", "/pairs", "{"}, {"POST", "/pairs", `{"users":["a","b"],"x":1}`}, {"POST", "/pairs", `{"users":["a","b"]} {}`},
		{"POST", "/tokens", `{"user":"` + strings.Repeat("a", maxBodyBytes) + `"}`}, {"POST", "/tokens", `{"ttl":"soon"}`},
		{"PUT", "/pairs", ""}, {"GET", "/nowhere", ""},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), r.method, "http://admin"+r.path, strings.NewReader(r.body))
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var e Error
		err = json.NewDecoder(resp.Body).Decode(&e)
		resp.Body.Close()
		if err != nil || e.Code != CodeUsage || e.Message == "" || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s %s: %s, %+v, %v", r.method, r.path, resp.Status, e, err)
		}
	}
}

func TestSocket(t *testing.T) {
	dir, _ := newServer(t, nil)
	path := filepath.Join(dir, socketName)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", info, err)
	}
	if _, err := Listen(dir); err == nil || !strings.Contains(err.Error(), "another pairsync is running") {
		t.Errorf("Listen beside a living server: %v", err)
	}

	// A socket that nobody answers on, as kill -9 leaves it.
	dead := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dead, socketName))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	c, err := Dial(dead)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Status(t.Context())
	wantError(t, err, CodeUnreachable, "pairsync serve")
	if l, err = Listen(dead); err != nil {
		t.Fatalf("Listen over a dead server's socket: %v", err)
	}
	l.Close()
	if _, err := os.Stat(filepath.Join(dead, socketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there after Close: %v", err)
	}

	file := t.TempDir()
	os.WriteFile(filepath.Join(file, socketName), []byte("precious"), 0o600)
	if _, err := Listen(file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("Listen over a file: %v", err)
	}
	if _, err := Listen(filepath.Join(file, strings.Repeat("x", 100))); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("Listen on a long path: %v", err)
	}
	if c, err = Dial(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	_, err = c.Pairs(t.Context())
	wantError(t, err, CodeUnreachable, "no pairsync server runs")
}

func TestRevoke(t *testing.T) {
	var reg *registry.Registry
	_, c := newServer(t, func(d *Deps) { reg = d.Registry })
	before := token.Principal{User: "anna", ID: "j1", IssuedAt: time.Now().Add(-time.Minute)}
	if err := c.Revoke(t.Context(), Revocation{JTI: "j1"}); err != nil {
		t.Fatal(err)
	}
	other := token.Principal{User: "anna", ID: "j2", IssuedAt: before.IssuedAt}
	if !reg.Revoked(before) || reg.Revoked(other) {
		t.Errorf("by id: revoked %t, another token %t; want the one alone", reg.Revoked(before), reg.Revoked(other))
	}
	if err := c.Revoke(t.Context(), Revocation{User: "anna"}); err != nil {
		t.Fatal(err)
	}
	later := token.Principal{User: "anna", ID: "j3", IssuedAt: time.Now().Add(time.Minute)}
	if !reg.Revoked(other) || reg.Revoked(later) {
		t.Errorf("by user: revoked %t, a later token %t; want the earlier alone", reg.Revoked(other), reg.Revoked(later))
	}
	for _, bad := range []Revocation{{}, {JTI: "x", User: "anna"}, {User: "a/b"}} {
		var e *Error
		if err := c.Revoke(t.Context(), bad); !errors.As(err, &e) || e.Code != CodeUsage {
			t.Errorf("%+v: %v, want a usage error", bad, err)
		}
	}
}
