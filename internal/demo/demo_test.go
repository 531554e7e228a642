package demo

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pairsync/internal/simtest"
)

// TestOnce runs the whole demo over real TCP and checks what it tells.
func TestOnce(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	t.Setenv("TMPDIR", t.TempDir())
	var out bytes.Buffer
	if err := Run(ctx, Options{Once: true, Out: &out, Log: simtest.Logger(t)}); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{
		"stored: on the server's disk", "acknowledged to ann's phone", "on ben's phone, byte for byte",
		"stored on the frame, byte for byte", "ben's phone has it", "the frame has it", "everything arrived",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo does not tell %q:\n%s", want, &out)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "pairsync-demo-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestBadPhoto: what is no photo is refused before anything is started.
func TestBadPhoto(t *testing.T) {
	for name, content := range map[string]string{"text.jpg": "not a photo", "empty.jpg": ""} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err := Run(t.Context(), Options{Once: true, Photo: path, Out: &out, Log: simtest.Logger(t)})
		if err == nil || !strings.Contains(err.Error(), name) || out.Len() > 0 {
			t.Errorf("%s: %v, want an error that names the file; printed %q", name, err, &out)
		}
	}
}
