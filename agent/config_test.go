package agent

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/moment"
)

func TestValidate(t *testing.T) {
	good := Default()
	good.DataDir, good.Broker = "/x", "mqtts://example.org"
	if err := good.Validate(); err != nil {
		t.Errorf("good: %v", err)
	}
	bad := Config{Broker: "http://u:secret@h", Show: "all", LogLevel: "loud", Kiosk: KioskConfig{Listen: "8088"}}
	err := bad.Validate()
	if err == nil {
		t.Fatal("bad: no error")
	}
	for _, key := range []string{"data_dir", "broker", "show", "keep_photos", "keep_bytes", "log_level", "kiosk.listen"} {
		if !strings.Contains(err.Error(), key+": ") {
			t.Errorf("%s is not named in:\n%v", key, err)
		}
	}
	for _, broker := range []string{"mqtt://u:secret@h", "mqtt://", "h:1883", "mqtt://u:secret@h:x y"} {
		c := good
		c.Broker = broker
		if err := c.Validate(); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("broker %q: err = %v", broker, err)
		}
	}
}

func TestReadToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if _, err := readToken(path); err == nil {
		t.Error("no file: no error")
	}
	for _, want := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(want+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readToken(path); err != nil || got != want {
			t.Errorf("token = %q, %v, want %q", got, err, want)
		}
	}
	if err := os.WriteFile(path, make([]byte, maxTokenBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readToken(path); err == nil {
		t.Error("huge file: no error")
	}
}

func TestParseIdentity(t *testing.T) {
	got, err := parseIdentity(testToken(pairClaims))
	if diff := cmp.Diff(identity{User: testUser, Device: testDevice, Pair: testPair}, got); diff != "" || err != nil {
		t.Errorf("(-want +got):\n%s%v", diff, err)
	}
	for name, raw := range map[string]string{
		"empty":         "",
		"text":          "secret",
		"not base64":    "a.secret!.c",
		"not JSON":      "a." + base64.RawURLEncoding.EncodeToString([]byte("secret")) + ".c",
		"no device":     testToken(map[string]string{"sub": "secret"}),
		"illegal user":  testToken(map[string]string{"sub": "a/b", "device": "d"}),
		"illegal pair":  testToken(map[string]string{"sub": "a", "device": "d", "pair": "+"}),
		"wildcard user": testToken(map[string]string{"sub": "#", "device": "d"}),
	} {
		if _, err := parseIdentity(raw); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: err = %v", name, err)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add(testToken(pairClaims))
	f.Add("a.b.c")
	f.Add("..")
	f.Fuzz(func(t *testing.T, raw string) {
		id, err := parseIdentity(raw)
		if err != nil {
			return
		}
		claims := map[string]string{"sub": id.User, "device": id.Device}
		if id.Pair != "" {
			claims["pair"] = id.Pair
		}
		if again, err := parseIdentity(testToken(claims)); err != nil || again != id {
			t.Errorf("%+v came back as %+v, %v", id, again, err)
		}
	})
}

func FuzzParsePairInfo(f *testing.F) {
	f.Add([]byte(`{"users":[{"id":"ann","name":"Ann"},{"id":"bo","name":"Bo"}],"created":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"users":[{"id":"ann"},{"id":"ann"}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		users, err := parsePairInfo(raw, testUser)
		if err != nil {
			return
		}
		m := membership{User: testUser, Users: users}
		p, ok := m.partner()
		if len(users) != 2 || !ok || p.ID == testUser || moment.CheckID("user", p.ID) != nil || len(p.Name) > maxNameBytes {
			t.Errorf("accepted %+v", users)
		}
	})
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":           "plain",
		"a\x00b\x1b[31mc": "ab[31mc",
		"two\nlines\t":    "two\nlines\t",
		"\xff\xfe":        "\uFFFD\uFFFD",
		"äöüäöü":          "äöüä",
	} {
		max := 64
		if in == "äöüäöü" {
			max = 9 // in the middle of a character
		}
		if got := cleanText(in, max); got != want {
			t.Errorf("cleanText(%q) = %q, want %q", in, got, want)
		}
	}
}
