// Package config fills a program's configuration struct from its defaults, a
// strict YAML file, the environment and the command line, in this order, and
// remembers where each value came from.
//
// It knows no setting: a component owns its Config struct (yaml tags, Default,
// Validate), and a program's Config is made of those. Every problem is
// reported at once, with its key and, for the file, its line. A key that the
// struct does not have is an error, in the file and in the environment.
//
//	cfg := daemon.Default()
//	sources, err := config.Load(&cfg, config.Options{File: path, EnvPrefix: "PAIRSYNC_", Environ: os.Environ()})
//
// A setting may be a list of structs; its environment variable is then a list
// in YAML or JSON.
//
// Keys are the yaml tags joined with dots (mqtt.listen); a field without a tag
// or tagged "-" is not a setting. The environment variable of a key is the
// prefix and the key in capitals, dots as underscores (PAIRSYNC_MQTT_LISTEN).
package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
)

// maxFileBytes bounds a configuration file and the files of secrets.
const maxFileBytes = 1 << 20

// Options says what to load from. The zero value loads nothing: the struct
// keeps its defaults and is validated.
type Options struct {
	File         string // path of the YAML file; empty: none
	FileRequired bool   // whether a File that does not exist is an error
	EnvPrefix    string // "PAIRSYNC_"; empty: the environment is not looked at
	Environ      []string
	// EnvForeign lists prefixes of variables that begin with EnvPrefix and
	// belong to something else ("PAIRSYNC_AGENT_").
	EnvForeign []string
	Flags      []Flag
}

// Flag is one setting from the command line.
type Flag struct {
	Key   string // "mqtt.listen"
	Name  string // "--mqtt-listen", for messages
	Value string
}

// Source tells where the value of one key came from.
type Source struct {
	Key   string
	Value string // as text; <secret> for a Secret that is set
	From  string // "default", "FILE:LINE", "PAIRSYNC_…" or "--flag"
}

// Load overwrites what is set elsewhere in dst, a pointer to a struct that
// holds the defaults, and calls dst's Validate() error where it has one. The
// sources are in the order of the struct's fields. On an error dst is partly
// filled and not to be used.
func Load(dst any, o Options) ([]Source, error) {
	l := newLoader(dst)
	l.file(o)
	l.environment(o)
	for _, f := range o.Flags {
		l.set(f.Key, f.Value, f.Name)
	}
	l.secretFiles()
	if v, ok := dst.(interface{ Validate() error }); ok {
		l.fail(v.Validate())
	}
	return l.sources(), errors.Join(l.errs...)
}

// Keys returns every key of a configuration struct, in the order of its fields.
func Keys(dst any) []string {
	var out []string
	for _, f := range newLoader(dst).leaves {
		out = append(out, f.key)
	}
	return out
}

// Prefix puts a component's key in front of each of the errors that its
// Validate joined: "listen: …" becomes "mqtt.listen: …". It returns nil for nil.
func Prefix(key string, err error) error {
	if err == nil {
		return nil
	}
	var many interface{ Unwrap() []error }
	if !errors.As(err, &many) {
		return fmt.Errorf("%s.%w", key, err)
	}
	var out []error
	for _, e := range many.Unwrap() {
		out = append(out, Prefix(key, e))
	}
	return errors.Join(out...)
}

// leaf is one setting.
type leaf struct {
	key   string
	value reflect.Value
	from  string
}

type loader struct {
	root   reflect.Value
	leaves []*leaf
	byKey  map[string]*leaf
	groups map[string]bool // keys that hold further keys
	errs   []error
}

// newLoader lists the settings of dst. A dst that is no pointer to a struct,
// or has two settings of one name, is a mistake in the program: it panics.
func newLoader(dst any) *loader {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: %T is not a pointer to a struct", dst))
	}
	return newLoaderAt("", v.Elem())
}

// newLoaderAt lists the settings of a struct that stands under path.
func newLoaderAt(path string, root reflect.Value) *loader {
	l := &loader{root: root, byKey: map[string]*leaf{}, groups: map[string]bool{path: true}}
	l.walk(path, root)
	names := map[string]string{}
	for _, f := range l.leaves {
		if other, taken := names[envName("", f.key)]; taken {
			panic(fmt.Sprintf("config: %s and %s would have the same environment variable", other, f.key))
		}
		names[envName("", f.key)] = f.key
	}
	return l
}

func (l *loader) walk(path string, v reflect.Value) {
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		if name == "" || name == "-" {
			continue
		}
		key, field := join(path, name), v.Field(i)
		if field.Kind() == reflect.Struct && !isText(field) {
			l.groups[key] = true
			l.walk(key, field)
			continue
		}
		f := &leaf{key: key, value: field, from: "default"}
		l.leaves = append(l.leaves, f)
		l.byKey[key] = f
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func envName(prefix, key string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

func (l *loader) fail(err error) {
	if err != nil {
		l.errs = append(l.errs, err)
	}
}

// set gives the setting key the value of text.
func (l *loader) set(key, text, from string) {
	f, ok := l.byKey[key]
	if !ok {
		panic("config: a flag for the unknown key " + key)
	}
	if s, ok := f.value.Addr().Interface().(*Secret); ok {
		*s, f.from = NewSecret(text), from
		return
	}
	if err := setText(f.value, f.key, text); err != nil {
		l.fail(fmt.Errorf("%s: %s: %w", from, key, err))
		return
	}
	f.from = from
}

// environment takes the variables that begin with the prefix.
func (l *loader) environment(o Options) {
	if o.EnvPrefix == "" {
		return
	}
	names := map[string]string{}
	for _, f := range l.leaves {
		names[envName(o.EnvPrefix, f.key)] = f.key
	}
	for _, variable := range o.Environ {
		name, value, _ := strings.Cut(variable, "=")
		foreign := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
		if !strings.HasPrefix(name, o.EnvPrefix) || slices.ContainsFunc(o.EnvForeign, foreign) {
			continue
		}
		if key, ok := names[name]; ok {
			l.set(key, value, name)
			continue
		}
		known := make([]string, 0, len(names))
		for n := range names {
			known = append(known, n)
		}
		l.fail(fmt.Errorf("environment: %s is not a setting%s", name, suggest(name, known)))
	}
}

// secretFiles reads, for every Secret named x with a sibling x_file that is
// set, the file. Its last line break is not a part of the secret.
func (l *loader) secretFiles() {
	for _, f := range l.leaves {
		secret, ok := f.value.Addr().Interface().(*Secret)
		file := l.byKey[f.key+"_file"]
		if !ok || file == nil || file.value.Kind() != reflect.String || file.value.String() == "" {
			continue
		}
		if !secret.IsZero() {
			l.fail(fmt.Errorf("%s: set by %s and in %s by %s: only one of the two", f.key, f.from, file.key, file.from))
			continue
		}
		b, err := readFile(file.value.String())
		if err != nil {
			l.fail(fmt.Errorf("%s: %w", file.key, err))
			continue
		}
		text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
		if text == "" {
			l.fail(fmt.Errorf("%s: %s is empty", file.key, file.value.String()))
		}
		*secret, f.from = NewSecret(text), file.value.String()
	}
}

// readFile reads a small file whole.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && info.Mode()&os.ModeNamedPipe == 0 || info.Size() > maxFileBytes {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, maxFileBytes)
	}
	return os.ReadFile(path)
}

func (l *loader) sources() []Source {
	out := make([]Source, len(l.leaves))
	for i, f := range l.leaves {
		out[i] = Source{Key: f.key, Value: text(f.value), From: f.from}
	}
	return out
}
