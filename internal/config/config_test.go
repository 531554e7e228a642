package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

type listen struct {
	Listen string `yaml:"listen"`
}

type sample struct {
	DataDir string `yaml:"data_dir"`
	MQTT    listen `yaml:"mqtt"`
	Limits  struct {
		PhotoBytes Bytes         `yaml:"photo_bytes"`
		PlainBytes int           `yaml:"plain_bytes"`
		Count      int           `yaml:"count"`
		Small      uint8         `yaml:"small"`
		Ratio      float64       `yaml:"ratio"`
		Age        time.Duration `yaml:"age"`
	} `yaml:"limits"`
	Debug      bool              `yaml:"debug"`
	Origins    []string          `yaml:"origins"`
	Labels     map[string]string `yaml:"labels"`
	Secret     Secret            `yaml:"secret"`
	SecretFile string            `yaml:"secret_file"`
	Internal   int
	Skipped    int `yaml:"-"`
}

func (s *sample) Validate() error {
	if s.DataDir == "bad" {
		return errors.New("data_dir: is bad")
	}
	return nil
}

func defaults() *sample {
	s := &sample{DataDir: "/default", MQTT: listen{":1883"}}
	s.Limits.PhotoBytes = 4 << 20
	return s
}

func write(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const whole = `# everything
data_dir: "/file"
mqtt:
  listen: 127.0.0.1:1
limits:
  photo_bytes: 1.5MiB
  plain_bytes: 2KiB
  count: -3
  small: 255
  ratio: 0.25
  age: 90s
debug: true
origins: [a, "b c"]
labels: {x: y, z: "1"}
`

func TestOrderAndSources(t *testing.T) {
	path := write(t, "c.yaml", whole)
	got := defaults()
	sources, err := Load(got, Options{
		File: path, FileRequired: true, EnvPrefix: "P_", EnvForeign: []string{"P_AGENT_"},
		Environ: []string{"P_MQTT_LISTEN=:2", "P_LIMITS_COUNT=7", "P_SECRET=s3", "P_AGENT_X=1", "OTHER=1", "P_ORIGINS=c, d"},
		Flags:   []Flag{{"mqtt.listen", "--mqtt-listen", ":3"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.DataDir, want.MQTT.Listen, want.Debug = "/file", ":3", true
	want.Limits.PhotoBytes, want.Limits.PlainBytes, want.Limits.Count, want.Limits.Small = 3<<19, 2048, 7, 255
	want.Limits.Ratio, want.Limits.Age = 0.25, 90*time.Second
	want.Origins, want.Labels = []string{"c", "d"}, map[string]string{"x": "y", "z": "1"}
	want.Secret = NewSecret("s3")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	wantSources := []Source{
		{"data_dir", "/file", path + ":2"}, {"mqtt.listen", ":3", "--mqtt-listen"},
		{"limits.photo_bytes", "1536KiB", path + ":6"}, {"limits.plain_bytes", "2048", path + ":7"},
		{"limits.count", "7", "P_LIMITS_COUNT"}, {"limits.small", "255", path + ":9"},
		{"limits.ratio", "0.25", path + ":10"}, {"limits.age", "1m30s", path + ":11"},
		{"debug", "true", path + ":12"}, {"origins", "c,d", "P_ORIGINS"}, {"labels", "x=y,z=1", path + ":14"},
		{"secret", "<secret>", "P_SECRET"}, {"secret_file", "", "default"},
	}
	if diff := cmp.Diff(wantSources, sources); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
}

func TestEveryProblemAtOnce(t *testing.T) {
	path := write(t, "c.yaml", `data_dir: bad
mqtt:
  lisen: 1
  listen: [1]
limits:
  photo_bytes: 4 parsecs
  small: 256
  age: soon
  ratio: .nan
debug: yes
origins: a
mqtt: {}
labels: &anchor {a: b}
secret: hunter2
`)
	_, err := Load(defaults(), Options{File: path, EnvPrefix: "P_", Environ: []string{"P_MQTT_LISTN=1", "P_DEBUG=maybe"}})
	if err == nil {
		t.Fatal("loaded")
	}
	for _, want := range []string{
		`:3: unknown key "mqtt.lisen" (did you mean "mqtt.listen"?)`,
		`:4: mqtt.listen: must be a single value`,
		`:6: limits.photo_bytes: "4 parsecs" is not a size`,
		`:7: limits.small: "256" is not a whole number from 0 to 255`,
		`:8: limits.age: "soon" is not a duration`,
		`:9: limits.ratio: must be a single value`,
		`:10: debug: "yes" is neither true nor false`,
		`:11: origins: must be a list`,
		`:12: mqtt: given twice`,
		`:13: labels: must be a mapping`,
		`:14: secret: a secret does not belong here`,
		`P_MQTT_LISTN is not a setting (did you mean "P_MQTT_LISTEN"?)`,
		`P_DEBUG: debug: "maybe" is neither`,
		`data_dir: is bad`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not hold %q", want)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Error("the error holds the secret")
	}
	if t.Failed() {
		t.Log(err)
	}
}

func TestSyntaxErrorsDoNotQuoteTheFile(t *testing.T) {
	for _, text := range []string{"secret: hunter2\nmqtt: {", "secret: 'hunter2\n", "\tsecret: hunter2", "- hunter2"} {
		path := write(t, "c.yaml", text)
		_, err := Load(defaults(), Options{File: path})
		if err == nil || !strings.Contains(err.Error(), "c.yaml") {
			t.Errorf("%q: error %v does not name the file", text, err)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: error quotes the file: %v", text, err)
		}
	}
}

func TestAbsentFileIsNotABadFile(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent.yaml")
	if _, err := Load(defaults(), Options{File: absent}); err != nil {
		t.Errorf("an absent optional file: %v", err)
	}
	if _, err := Load(defaults(), Options{File: absent, FileRequired: true}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent required file: %v", err)
	}
	if _, err := Load(defaults(), Options{File: t.TempDir()}); err == nil {
		t.Error("a directory was taken for a file")
	}
	for name, text := range map[string]string{"empty": "", "comments": "# nothing\n", "empty group": "mqtt:\nlimits: {}\n", "empty values": "data_dir:\ndebug: ~\n"} {
		got := defaults()
		if _, err := Load(got, Options{File: write(t, "c.yaml", text)}); err != nil || !cmp.Equal(got, defaults()) {
			t.Errorf("%s: error %v, or not the defaults", name, err)
		}
	}
}

func TestSecretFiles(t *testing.T) {
	path := write(t, "secret", "hunter2\n")
	got := defaults()
	if _, err := Load(got, Options{EnvPrefix: "P_", Environ: []string{"P_SECRET_FILE=" + path}}); err != nil {
		t.Fatal(err)
	}
	if got.Secret.Reveal() != "hunter2" {
		t.Errorf("secret %q", got.Secret.Reveal())
	}
	for name, environ := range map[string][]string{
		"both":   {"P_SECRET_FILE=" + path, "P_SECRET=x"},
		"absent": {"P_SECRET_FILE=/nonexistent"},
		"empty":  {"P_SECRET_FILE=" + write(t, "secret", "\n")},
	} {
		if _, err := Load(defaults(), Options{EnvPrefix: "P_", Environ: environ}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestSecretNeverPrints(t *testing.T) {
	s := NewSecret("hunter2")
	type wrapped struct {
		Secret Secret `json:"secret" yaml:"secret"`
		hidden Secret
	}
	w := wrapped{s, s}
	var out []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p"} {
		out = append(out, fmt.Sprintf(verb, s), fmt.Sprintf(verb, w), fmt.Sprintf(verb, &s), fmt.Sprintf(verb, []Secret{s}))
	}
	js, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	ym, err := yaml.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "wrapped", w)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "wrapped", w)
	out = append(out, string(js), string(ym), log.String(), fmt.Sprint(s), fmt.Errorf("%w: %v", errInFile, s).Error())
	for _, o := range out {
		if strings.Contains(o, "hunter") || strings.Contains(o, fmt.Sprintf("%x", "hunter")) {
			t.Errorf("the secret shows in %q", o)
		}
	}
	if string(js) != `{"secret":"\u003csecret\u003e"}` || (Secret{}).String() != "" || !(Secret{}).IsZero() {
		t.Errorf("JSON %s, empty prints %q", js, Secret{})
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0": 0, "300": 300, "300B": 300, "4MiB": 4 << 20, "4 mib": 4 << 20, "200KB": 200_000, "1.5GiB": 3 << 29, "2TiB": 2 << 40, "0.5KiB": 512,
	} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "MiB", "4M", "1e3", "0x10", "0.3B", "NaN", "Inf", "9999999TiB", "1 2", "4 parsecs", "1.2.3MB", "9223372036854775808"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", text, got)
		}
	}
	for _, b := range []Bytes{0, 1, 1000, 1024, 4 << 20, 1_500_000, math.MaxInt64} {
		if got, err := ParseBytes(b.String()); err != nil || got != b {
			t.Errorf("%d prints as %q and reads as %d, %v", int64(b), b, got, err)
		}
	}
}

func TestPrefix(t *testing.T) {
	err := Prefix("mqtt", errors.Join(errors.New("listen: no"), errors.New("port: no")))
	if want := "mqtt.listen: no\nmqtt.port: no"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
	if err := Prefix("mqtt", nil); err != nil {
		t.Errorf("Prefix of nil: %v", err)
	}
}

func TestMistakesInTheProgramPanic(t *testing.T) {
	type clash struct {
		A struct {
			B int `yaml:"b"`
		} `yaml:"a"`
		AB int `yaml:"a_b"`
	}
	for name, call := range map[string]func(){
		"no pointer":   func() { Load(sample{}, Options{}) },
		"one variable": func() { Load(&clash{}, Options{}) },
		"unknown flag": func() { Load(defaults(), Options{Flags: []Flag{{"nope", "--nope", ""}}}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			call()
		}()
	}
}

// Whatever is in a file: no panic, no quoted source, and what loads prints as
// text that loads to the same.
func FuzzYAML(f *testing.F) {
	f.Add(whole)
	for _, seed := range []string{"", "mqtt:", "a: b", "- x", "mqtt: {listen: x}", "x: &a [*a]", "limits:\n  age: 1h\n", "? a\n: b", "<<: {}", "!!binary x", "---\n---\n", "labels: |\n  x\n", "debug: true # yes"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		first := defaults()
		l := newLoader(first)
		l.parse("f", []byte(doc))
		if len(l.errs) > 0 {
			return
		}
		second := defaults()
		l2 := newLoader(second)
		for _, leaf := range l.leaves {
			switch leaf.value.Kind() {
			case reflect.Slice, reflect.Map: // a comma inside an item has no textual form
				l2.byKey[leaf.key].value.Set(leaf.value)
			default:
				l2.set(leaf.key, text(leaf.value), "again")
			}
		}
		if diff := cmp.Diff(first, second); diff != "" || len(l2.errs) > 0 {
			t.Fatalf("%q: %v\n%s", doc, l2.errs, diff)
		}
	})
}
