package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// runDemo runs `pairsync demo` with a temporary directory of its own and
// returns what it left there.
func runDemo(t *testing.T, args ...string) (code int, said string, left []os.DirEntry) {
	t.Helper()
	tmp := shortDir(t)
	p := start(t, "pairsync demo", []string{"TMPDIR=" + tmp}, append([]string{programs.server, "demo"}, args...)...)
	code = p.wait(t)
	left, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	return code, p.text(), left
}

func TestDemo(t *testing.T) {
	code, said, left := runDemo(t, "--once")
	if code != 0 || len(left) > 0 {
		t.Errorf("exit code %d, left behind: %v", code, left)
	}
	at := 0
	for _, step := range []string{
		"server up", "are the pair", "frame", "ann's phone connected", "ben's phone connected", "sends a photo", "stored: on the server's disk",
		"acknowledged to ann's phone", "on ben's phone, byte for byte", "stored on the frame, byte for byte", "receipt back", "everything arrived as it was sent",
	} {
		i := strings.Index(said[at:], step)
		if i < 0 {
			t.Fatalf("the demo does not tell %q, or not in its place:\n%s", step, said)
		}
		at += i
	}
}

func TestDemoWithPhoto(t *testing.T) {
	file := filepath.Join(t.TempDir(), "own.jpg")
	if err := os.WriteFile(file, newPhoto(300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, said, left := runDemo(t, "--once", "--photo", file); code != 0 || len(left) > 0 {
		t.Errorf("exit code %d, left behind: %v\n%s", code, left, said)
	}
}

func TestDemoBadPhoto(t *testing.T) {
	dir := t.TempDir()
	for name, bad := range map[string]struct {
		content []byte
		reason  string
	}{
		"no-photo.jpg": {[]byte("this is a text"), "no-photo.jpg"},
		"cut.jpg":      {newPhoto(100)[:30], "cut.jpg"},
		"empty.jpg":    {[]byte{}, "empty.jpg"},
		"missing.jpg":  {nil, "missing.jpg"},
		"large.jpg":    {newPhoto(5 << 20), "large"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, name)
			if bad.content != nil {
				if err := os.WriteFile(file, bad.content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			code, said, left := runDemo(t, "--once", "--photo", file)
			if code != 1 && code != 2 || !strings.Contains(said, bad.reason) {
				t.Errorf("exit code %d, %q, want 1 or 2 and a word on %s", code, said, bad.reason)
			}
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
