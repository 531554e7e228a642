package config

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// file reads o.File, where there is one.
func (l *loader) file(o Options) {
	if o.File == "" {
		return
	}
	b, err := readFile(o.File)
	if errors.Is(err, fs.ErrNotExist) && !o.FileRequired {
		return
	}
	if err != nil {
		l.fail(fmt.Errorf("configuration file: %w", err))
		return
	}
	l.parse(o.File, b)
}

// yamlFile walks one document.
type yamlFile struct {
	l    *loader
	name string
}

// parse takes the settings of a YAML document.
func (l *loader) parse(name string, b []byte) {
	y := &yamlFile{l: l, name: name}
	doc, err := parser.ParseBytes(b, 0, parser.AllowDuplicateMapKey()) // group reports them, with all else
	if err != nil {
		// Without the source: the library would quote the lines around the fault.
		l.fail(fmt.Errorf("%s: %s", name, yaml.FormatError(err, false, false)))
		return
	}
	for i, d := range doc.Docs {
		switch {
		case d.Body == nil:
		case i > 0:
			y.fail(d.Body, "", errors.New("a second document in one file"))
		default:
			y.group("", d.Body)
		}
	}
}

func (y *yamlFile) at(n ast.Node) string {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return fmt.Sprintf("%s:%d", y.name, t.Position.Line)
	}
	return y.name
}

func (y *yamlFile) fail(n ast.Node, key string, err error) {
	if key != "" {
		err = fmt.Errorf("%s: %w", key, err)
	}
	y.l.fail(fmt.Errorf("%s: %w", y.at(n), err))
}

// structs takes a list of mappings. An item starts from the zero value; its
// problems are reported here, each with its line and key.
func (y *yamlFile) structs(v reflect.Value, key string, n ast.Node) error {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		return errors.New("must be a list")
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		path := fmt.Sprintf("%s[%d]", key, i)
		sub := newLoaderAt(path, out.Index(i))
		(&yamlFile{l: sub, name: y.name}).group(path, item)
		y.l.errs = append(y.l.errs, sub.errs...)
	}
	v.Set(out)
	return nil
}

// isStructs reports whether v is a list of structs that have keys.
func isStructs(v reflect.Value) bool {
	return v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct && !isText(reflect.New(v.Type().Elem()).Elem())
}

// group takes the keys of one mapping.
func (y *yamlFile) group(path string, n ast.Node) {
	entries, ok := y.mapping(path, n)
	if !ok {
		return
	}
	for _, e := range entries {
		key := join(path, e.name)
		f, isLeaf := y.l.byKey[key]
		switch {
		case isLeaf:
			y.leaf(f, e.value)
		case y.l.groups[key]:
			y.group(key, e.value)
		default:
			y.fail(e.key, "", fmt.Errorf("unknown key %q%s", clip(key), suggest(key, y.siblings())))
		}
	}
}

// siblings returns everything a key could have been meant for.
func (y *yamlFile) siblings() []string {
	var out []string
	for key := range y.l.byKey {
		out = append(out, key)
	}
	for key := range y.l.groups {
		out = append(out, key)
	}
	return out
}

type entry struct {
	name  string
	key   ast.Node
	value ast.Node
}

// mapping lists the entries of a mapping; an empty value counts as one
// without entries.
func (y *yamlFile) mapping(path string, n ast.Node) ([]entry, bool) {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.NullNode, *ast.CommentGroupNode:
		return nil, true
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		y.fail(n, path, errors.New("must be a mapping of keys to values"))
		return nil, false
	}
	var out []entry
	for _, v := range values {
		name, ok := scalar(v.Key)
		if !ok {
			y.fail(v, path, errors.New("a key must be plain text"))
			continue
		}
		if slices.ContainsFunc(out, func(e entry) bool { return e.name == name }) {
			y.fail(v.Key, join(path, name), errors.New("given twice"))
			continue
		}
		out = append(out, entry{name, v.Key, v.Value})
	}
	return out, true
}

// leaf gives f the value of n. An empty value keeps the default.
func (y *yamlFile) leaf(f *leaf, n ast.Node) {
	if _, empty := n.(*ast.NullNode); empty || n == nil {
		return
	}
	if err := y.value(f.value, f.key, n); err != nil {
		y.fail(n, f.key, err)
		return
	}
	f.from = y.at(n)
}

// value decodes a scalar, or a list or mapping of scalars.
func (y *yamlFile) value(v reflect.Value, key string, n ast.Node) error {
	if !isText(v) {
		switch v.Kind() {
		case reflect.Slice:
			if isStructs(v) {
				return y.structs(v, key, n)
			}
			return y.list(v, key, n)
		case reflect.Map:
			return y.table(v, key, n)
		}
	}
	s, ok := scalar(n)
	if !ok {
		return errors.New("must be a single value")
	}
	return setText(v, key, s)
}

func (y *yamlFile) list(v reflect.Value, key string, n ast.Node) error {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		return errors.New("must be a list")
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		if err := y.value(out.Index(i), key, item); err != nil {
			return fmt.Errorf("item %d: %w", i+1, err)
		}
	}
	v.Set(out)
	return nil
}

func (y *yamlFile) table(v reflect.Value, key string, n ast.Node) error {
	entries, ok := y.mapping(key, n)
	if !ok {
		return nil // reported
	}
	out := reflect.MakeMap(v.Type())
	for _, e := range entries {
		item := reflect.New(v.Type().Elem()).Elem()
		if err := y.value(item, key, e.value); err != nil {
			return fmt.Errorf("%s: %w", clip(e.name), err)
		}
		out.SetMapIndex(reflect.ValueOf(e.name).Convert(v.Type().Key()), item)
	}
	v.Set(out)
	return nil
}

// scalar returns the text of a scalar as it stands in the file. Anchors,
// aliases and tags are not used here: they are no scalars.
func scalar(n ast.Node) (string, bool) {
	switch s := n.(type) {
	case *ast.StringNode:
		return s.Value, true
	case *ast.LiteralNode:
		return s.Value.Value, true
	case *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode:
		return n.GetToken().Value, true
	}
	return "", false
}
