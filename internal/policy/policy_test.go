// Package policy holds the tests that keep the house as architecture.md and
// CONTRIBUTING.md describe it. It has no code of its own.
package policy

import (
	"encoding/json"
	"go/doc"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// goPackage is what `go list -json` tells of a package.
type goPackage struct {
	ImportPath string
	Dir        string
	Imports    []string
	GoFiles    []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", "pairsync/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("only %d packages were found", len(all))
	}
	return all
}

// TestImports: cmd imports the components, components import internal only and
// never each other, and internal packages below the wiring import no component.
func TestImports(t *testing.T) {
	components := []string{"broker", "bridge", "agent"}
	component := func(path string) string {
		for _, c := range components {
			if path == "pairsync/"+c || strings.HasPrefix(path, "pairsync/"+c+"/") {
				return c
			}
		}
		return ""
	}
	// The wiring: what puts the components together.
	wiring := []string{"pairsync/internal/daemon", "pairsync/internal/demo"}
	// What socketio may use: connections, nothing of ours that travels on them.
	plumbing := []string{"pairsync/internal/memnet", "pairsync/internal/sendqueue"}
	for _, p := range listPackages(t) {
		for _, imp := range p.Imports {
			to := component(imp)
			switch from := component(p.ImportPath); {
			case from != "" && to != "" && from != to:
				t.Errorf("%s imports %s: components never import each other", p.ImportPath, imp)
			case from != "" && (strings.HasPrefix(imp, "pairsync/cmd") || slices.Contains(wiring, imp)):
				t.Errorf("%s imports %s, which is above it", p.ImportPath, imp)
			case from == "" && to != "" && strings.HasPrefix(p.ImportPath, "pairsync/internal/") && !slices.Contains(wiring, p.ImportPath):
				t.Errorf("%s imports the component %s", p.ImportPath, imp)
			case strings.Contains(imp, "dgraph-io/badger") && p.ImportPath != "pairsync/internal/badgerdb":
				t.Errorf("%s imports badger: internal/badgerdb alone knows its traps", p.ImportPath)
			case strings.Contains(imp, "mochi-mqtt/server") && !strings.HasPrefix(p.ImportPath, "pairsync/broker"):
				t.Errorf("%s imports mochi: the broker alone does", p.ImportPath)
			}
		}
		if strings.HasPrefix(p.ImportPath, "pairsync/bridge/socketio") {
			for _, imp := range p.Imports {
				if strings.HasPrefix(imp, "pairsync/") && !strings.HasPrefix(imp, "pairsync/bridge/socketio") && !slices.Contains(plumbing, imp) {
					t.Errorf("socketio imports %s: it knows nothing of photos or MQTT", imp)
				}
			}
		}
	}
}

// TestPackageDocs: every package tells a newcomer what it is.
func TestPackageDocs(t *testing.T) {
	for _, p := range listPackages(t) {
		if len(p.GoFiles) == 0 {
			continue
		}
		text := ""
		for _, f := range p.GoFiles {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if parsed.Doc != nil {
				text += parsed.Doc.Text()
			}
		}
		if doc.Synopsis(text) == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// TestTopLevel: the top level is the customer's list.
func TestTopLevel(t *testing.T) {
	allowed := []string{
		"broker", "agent", "bridge", "cmd", "configs", "internal", "e2e", "go.mod", "go.sum",
		"Makefile", "README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md",
	}
	out, err := exec.Command("git", "ls-files", "--full-name", "../..").Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	for _, f := range strings.Fields(string(out)) {
		top, _, _ := strings.Cut(f, "/")
		if !strings.HasPrefix(top, ".") && !slices.Contains(allowed, top) {
			t.Errorf("%s: %q does not belong to the top level", f, top)
		}
	}
}
