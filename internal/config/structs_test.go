package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type party struct {
	Name   string        `yaml:"name"`
	Algs   []string      `yaml:"algs"`
	Age    time.Duration `yaml:"age"`
	Secret Secret        `yaml:"secret"`
}

type parties struct {
	Auth struct {
		Parties []party `yaml:"parties"`
	} `yaml:"auth"`
}

func TestListsOfStructs(t *testing.T) {
	want := []party{{Name: "a: \"b\"", Algs: []string{"x", "y, z"}, Age: time.Minute}, {Name: "c"}}
	const doc = "auth:\n  parties:\n    - name: 'a: \"b\"'\n      algs: [x, \"y, z\"]\n      age: 60s\n    - name: c\n"
	var fromFile parties
	sources, err := Load(&fromFile, Options{File: write(t, "c.yaml", doc)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, fromFile.Auth.Parties); diff != "" {
		t.Errorf("from the file (-want +got):\n%s", diff)
	}
	// What is printed is what the environment takes.
	var fromEnv parties
	if _, err := Load(&fromEnv, Options{EnvPrefix: "P_", Environ: []string{"P_AUTH_PARTIES=" + sources[0].Value}}); err != nil {
		t.Fatalf("%s: %v", sources[0].Value, err)
	}
	if diff := cmp.Diff(want, fromEnv.Auth.Parties); diff != "" {
		t.Errorf("%s from the environment (-want +got):\n%s", sources[0].Value, diff)
	}
	for _, empty := range []string{"auth:\n  parties: []\n", "auth:\n  parties:\n"} {
		var none parties
		if s, err := Load(&none, Options{File: write(t, "c.yaml", empty)}); err != nil || len(none.Auth.Parties) != 0 || s[0].Value != "" {
			t.Errorf("%q: %v, %v", empty, none, err)
		}
	}
	if _, err := Load(&fromEnv, Options{EnvPrefix: "P_", Environ: []string{"P_AUTH_PARTIES="}}); err != nil || len(fromEnv.Auth.Parties) != 0 {
		t.Errorf("emptied by the environment: %v, %v", fromEnv.Auth.Parties, err)
	}
}

func TestListsOfStructsRefuse(t *testing.T) {
	var p parties
	_, err := Load(&p, Options{
		File:      write(t, "c.yaml", "auth:\n  parties:\n    - nam: a\n      age: soon\n    - b\n    - secret: hunter2\n    - {name: a, name: b}\n"),
		EnvPrefix: "P_", Environ: []string{"P_AUTH_PARTIES=[{name: a, alg: hunter2}]"},
	})
	if err == nil {
		t.Fatal("loaded")
	}
	for _, want := range []string{
		`:3: unknown key "auth.parties[0].nam" (did you mean "auth.parties[0].name"?)`,
		`:4: auth.parties[0].age: "soon" is not a duration`,
		`:5: auth.parties[1]: must be a mapping`,
		`:6: auth.parties[2].secret: a secret does not belong here`,
		`:7: auth.parties[3].name: given twice`,
		`P_AUTH_PARTIES: auth.parties: line:1: unknown key "auth.parties[0].alg" (did you mean "auth.parties[0].algs"?)`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not hold %q", want)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Error("the error holds a secret")
	}
	for _, text := range []string{"a", "{name: a}", "[", "[a]\n---\n[b]", "# nothing"} {
		if _, err := Load(&p, Options{EnvPrefix: "P_", Environ: []string{"P_AUTH_PARTIES=" + text}}); err == nil {
			t.Errorf("%q was taken for a list of mappings", text)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
}
