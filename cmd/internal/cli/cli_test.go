package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWriteFileIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	failing := func() ([]byte, error) { return nil, errors.New("no") }
	if err := WriteFile(path, 0o600, failing); err == nil {
		t.Error("no error")
	}
	if err := WriteFile(path, 0o600, func() ([]byte, error) { return []byte("first"), nil }); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, 0o600, failing); err == nil {
		t.Error("no error")
	}
	b, err := os.ReadFile(path)
	info, _ := os.Stat(path)
	if err != nil || string(b) != "first" || info.Mode().Perm() != 0o600 {
		t.Errorf("file %q, mode %v, %v", b, info.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	called := false
	err = WriteFile(filepath.Join(dir, "no", "such"), 0o600, func() ([]byte, error) { called = true; return nil, nil })
	if err == nil || called {
		t.Errorf("error %v, produced %v; want an error before anything is produced", err, called)
	}
	var exit *Exit
	if err := WriteFile(dir, 0o600, failing); !errors.As(err, &exit) || exit.Code != Usage {
		t.Errorf("a directory as the file: %v", err)
	}
}

func TestTableIsSafeToPrint(t *testing.T) {
	var b strings.Builder
	if err := Table(&b, []string{"A", "B"}, [][]string{{"\x1b[2Jx\ty", ""}, {"ü", "\u202Eevil"}}); err != nil {
		t.Fatal(err)
	}
	if want := "A        B\n\uFFFD[2Jx\uFFFDy  -\nü        \uFFFDevil\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestTime(t *testing.T) {
	if got := Time(nil); got != "-" {
		t.Errorf("nil prints %q", got)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	if got := Time(&at); got != "2026-01-02 03:04:05" {
		t.Errorf("got %q", got)
	}
}

func TestLogger(t *testing.T) {
	var b strings.Builder
	l, err := Logger(&b, "warn", "")
	if err != nil {
		t.Fatal(err)
	}
	l.Info("quiet")
	l.Warn("loud")
	if !strings.Contains(b.String(), `"msg":"loud"`) || strings.Contains(b.String(), "quiet") {
		t.Errorf("logged %q", b.String())
	}
	if _, err := Logger(&b, "noisy", ""); err == nil {
		t.Error("a level that does not exist was taken")
	}
}

func TestStateDir(t *testing.T) {
	if got := StateDir("p", []string{"STATE_DIRECTORY=/s:/t", "HOME=/h"}); got != "/s" {
		t.Errorf("under systemd %q", got)
	}
	if os.Geteuid() == 0 {
		if got := StateDir("p", []string{"HOME=/root"}); got != "/var/lib/p" {
			t.Errorf("as root %q", got)
		}
	} else if got := StateDir("p", []string{"HOME=/h"}); !strings.HasPrefix(got, "/h") {
		t.Errorf("as a user %q", got)
	}
}
