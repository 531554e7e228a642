package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/badgerdb"
	"pairsync/internal/memnet"
)

// runAgent runs an agent of b with a real socket until the test ends; stop
// ends it earlier.
func runAgent(t *testing.T, b *fakeBroker, cfg Config) (a *Agent, stop func()) {
	t.Helper()
	listener, err := listenLocal(cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	a = newTestAgent(t, b, cfg, deviceClaims)
	a.local.listener = listener
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		}
	}
	t.Cleanup(stop)
	return a, stop
}

func newTestClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := NewClient(cfg, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClientWithAndWithoutARunningAgent(t *testing.T) {
	b := newFakeBroker()
	cfg := testConfig(t)
	c := newTestClient(t, cfg)
	ctx := t.Context()
	if _, err := c.List(ctx); !errors.Is(err, ErrNoStore) {
		t.Errorf("before the first run: err = %v, want ErrNoStore", err)
	}
	if _, err := os.Stat(storeDir(cfg.DataDir)); !errors.Is(err, os.ErrNotExist) {
		t.Error("asking made a store")
	}

	a, stop := runAgent(t, b, cfg)
	awaitView(t, a, "ready", ready)
	body := testJPEG(t, 1)
	b.deliver(photoTopic(testPartner, "m1"), body)
	awaitPhotos(t, a, 1)
	check := func(t *testing.T, running bool) {
		t.Helper()
		list, err := c.List(ctx)
		if err != nil || len(list) != 1 || list[0].Moment != "m1" || list[0].SHA256 != hashHex(body) {
			t.Errorf("List = %+v, %v", list, err)
		}
		for _, name := range []string{"m1", "bo/m1"} {
			if got, err := c.Export(ctx, name, false); err != nil || !bytes.Equal(got, body) {
				t.Errorf("Export(%q): %d bytes, %v, want them as received", name, len(got), err)
			}
		}
		if got, err := c.Export(ctx, "m1", true); err != nil || len(got) == 0 {
			t.Errorf("Export clean: %d bytes, %v", len(got), err)
		}
		for _, name := range []string{"m2", "eve/m1", "..", "a?b=c&d"} {
			if got, err := c.Export(ctx, name, false); err == nil || !strings.Contains(err.Error(), "no such photo") {
				t.Errorf("Export(%q) = %d bytes, %v, want no such photo", name, len(got), err)
			}
		}
		st, err := c.Status(ctx)
		if err != nil || st.Running != running || st.Connected != running || st.Pair != testPair || st.Partner != testPartner || st.Photos != 1 {
			t.Errorf("Status = %+v, %v", st, err)
		}
	}
	check(t, true)
	out, err := c.Send(ctx, bytes.NewReader(testJPEG(t, 2)), "hi", QualityHigh, 10*time.Second)
	if err != nil || out.State != StateSent {
		t.Errorf("Send = %+v, %v, want sent", out, err)
	}
	if _, err := c.Send(ctx, strings.NewReader("text"), "", "", 0); err == nil || !strings.Contains(err.Error(), "not a photo") {
		t.Errorf("Send text: err = %v", err)
	}
	if _, err := New(cfg, Deps{Dial: a.dial.Dial, Token: a.token, Log: quiet()}); !errors.Is(err, ErrRunning) {
		t.Errorf("a second agent: err = %v, want ErrRunning", err)
	}

	// A stop between the answer and this only sends the photo again.
	awaitView(t, a, "an empty outbox", func(view) bool { return mustTotals(t, a.store).OutPhotos == 0 })
	stop()
	check(t, false)
	out, err = c.Send(ctx, bytes.NewReader(testJPEG(t, 3)), "later", "", time.Second)
	if err != nil || out.State != StateQueued || out.Reason != "the agent will send it when it runs" {
		t.Errorf("Send = %+v, %v, want queued", out, err)
	}
	a, _ = runAgent(t, b, cfg)
	awaitView(t, a, "an empty outbox", func(view) bool { return mustTotals(t, a.store).OutPhotos == 0 })
	b.get(func(b *fakeBroker) {
		if diff := cmp.Diff([]string{"hi", "later"}, captions(b.answered)); diff != "" {
			t.Errorf("arrived (-want +got):\n%s", diff)
		}
	})
}

// A command and an agent, or two commands, that want the store at the same
// moment: the later one waits.
func TestAStoreInUseIsWaitedFor(t *testing.T) {
	deps := Deps{
		Dial:  noDial,
		Token: func(context.Context) (string, error) { return testToken(deviceClaims), nil },
		Log:   quiet(),
	}
	for name, use := range map[string]func(*testing.T, Config) error{
		"agent": func(_ *testing.T, cfg Config) error {
			d := deps
			d.Local = memnet.Listen("agent")
			a, err := New(cfg, d)
			if err != nil {
				return err
			}
			return a.Close()
		},
		"command": func(t *testing.T, cfg Config) error {
			_, err := newTestClient(t, cfg).List(t.Context())
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig(t)
				s := openTestStore(t, cfg)
				go func() {
					time.Sleep(lockPatience / 2)
					s.close()
				}()
				if err := use(t, cfg); err != nil {
					t.Errorf("the store was let go after %v: %v", lockPatience/2, err)
				}
				s = openTestStore(t, cfg)
				start := time.Now()
				if err := use(t, cfg); !errors.Is(err, badgerdb.ErrLocked) {
					t.Errorf("the store is never let go: err = %v, want ErrLocked", err)
				}
				if took := time.Since(start); took > 2*lockPatience {
					t.Errorf("waited for %v", took)
				}
				s.close()
			})
		})
	}
}

func TestSocketIsPrivateAndReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, socketName)
	if err := os.WriteFile(path, nil, 0o644); err != nil { // what a crash left
		t.Fatal(err)
	}
	l, err := listenLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode = %v, %v, want 0600", info.Mode(), err)
	}
	if _, err := listenLocal(filepath.Join(dir, strings.Repeat("x", 100))); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("long path: err = %v", err)
	}
}

func TestExportOfTwoSendersAsks(t *testing.T) {
	s := newTestStore(t)
	putPhotoOf(t, s, testMember, testPartner, "m1", testJPEG(t, 1))
	putPhotoOf(t, s, testMember, testUser, "m1", testJPEG(t, 2))
	if _, err := exported(s, "", "m1", false); err == nil || !strings.Contains(err.Error(), "ann/m1") {
		t.Errorf("err = %v, want a hint how to name one", err)
	}
	if b, err := exported(s, testUser, "m1", false); err != nil || !bytes.Equal(b, testJPEG(t, 2)) {
		t.Errorf("named: %d bytes, %v", len(b), err)
	}
}

func TestClosedAgentLetsGo(t *testing.T) {
	cfg := testConfig(t)
	cfg.Kiosk.Listen = "127.0.0.1:0"
	deps := Deps{
		Dial:  noDial,
		Token: func(context.Context) (string, error) { return testToken(deviceClaims), nil },
		Log:   quiet(),
	}
	for range 2 { // nothing is left locked or bound
		a, err := New(cfg, deps)
		if err != nil {
			t.Fatal(err)
		}
		if a.KioskAddr() == nil {
			t.Error("no kiosk address")
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
	}
	bad := cfg
	bad.Kiosk.Listen = "256.0.0.1:1"
	if _, err := New(bad, deps); err == nil {
		t.Error("an impossible address: no error")
	}
	a, err := New(cfg, deps) // the failed one rolled back
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
}
