package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/parser"
)

// isText reports whether v reads and prints itself.
func isText(v reflect.Value) bool {
	_, ok := v.Addr().Interface().(encoding.TextUnmarshaler)
	return ok
}

// setText decodes text into v, the field of key. Integers whose key ends in
// "bytes" or "memory" read sizes too. Lists are separated by commas, tables are lists of
// name=value. It never repeats the text of a Secret.
func setText(v reflect.Value, key, text string) error {
	if t, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return t.UnmarshalText([]byte(text))
	}
	switch p := v.Addr().Interface().(type) {
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration (examples: 90s, 15m, 2160h)", clip(text))
		}
		*p = d
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is neither true nor false", clip(text))
		}
		v.SetBool(text == "true")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return setInt(v, key, text)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a whole number from 0 to %d", clip(text), ^uint64(0)>>(64-v.Type().Bits()))
		}
		v.SetUint(n)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil || f != f || f-f != 0 {
			return fmt.Errorf("%q is not a number", clip(text))
		}
		v.SetFloat(f)
	case reflect.Slice:
		if isStructs(v) {
			return setStructs(v, key, text)
		}
		return setList(v, key, text)
	case reflect.Map:
		return setTable(v, key, text)
	default:
		panic(fmt.Sprintf("config: %s is a %v, which is no type of a setting", key, v.Type()))
	}
	return nil
}

func setInt(v reflect.Value, key, text string) error {
	n, err := strconv.ParseInt(text, 10, v.Type().Bits())
	if err == nil {
		v.SetInt(n)
		return nil
	}
	if !strings.HasSuffix(key, "bytes") && !strings.HasSuffix(key, "memory") {
		return fmt.Errorf("%q is not a whole number", clip(text))
	}
	b, err := ParseBytes(text)
	if err != nil {
		return err
	}
	if v.OverflowInt(int64(b)) {
		return fmt.Errorf("%q is too large", clip(text))
	}
	v.SetInt(int64(b))
	return nil
}

// split cuts a list at its commas; empty text is an empty list.
func split(text string) []string {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	items := strings.Split(text, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}

func setList(v reflect.Value, key, text string) error {
	items := split(text)
	out := reflect.MakeSlice(v.Type(), len(items), len(items))
	for i, item := range items {
		if err := setText(out.Index(i), key, item); err != nil {
			return fmt.Errorf("item %d: %w", i+1, err)
		}
	}
	v.Set(out)
	return nil
}

// setStructs takes a list of mappings, as YAML or JSON. Its text is quoted in no
// error: there may be a secret in the wrong place.
func setStructs(v reflect.Value, key, text string) error {
	if strings.TrimSpace(text) == "" {
		v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		return nil
	}
	doc, err := parser.ParseBytes([]byte(text), 0, parser.AllowDuplicateMapKey())
	if err != nil || len(doc.Docs) != 1 || doc.Docs[0].Body == nil {
		return errors.New("must be a list of mappings, as YAML or JSON")
	}
	y := &yamlFile{l: &loader{}, name: "line"}
	if err := y.structs(v, key, doc.Docs[0].Body); err != nil {
		return err
	}
	return errors.Join(y.l.errs...)
}

func setTable(v reflect.Value, key, text string) error {
	out := reflect.MakeMap(v.Type())
	for _, item := range split(text) {
		name, value, ok := strings.Cut(item, "=")
		if !ok {
			return errors.New("must be name=value, name=value")
		}
		field := reflect.New(v.Type().Elem()).Elem()
		if err := setText(field, key, value); err != nil {
			return fmt.Errorf("%s: %w", clip(name), err)
		}
		out.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), field)
	}
	v.Set(out)
	return nil
}

// text prints a setting as setText would read it.
func text(v reflect.Value) string {
	if t, ok := v.Addr().Interface().(encoding.TextMarshaler); ok {
		b, err := t.MarshalText()
		if err != nil {
			return "<" + err.Error() + ">"
		}
		return string(b)
	}
	switch v.Kind() {
	case reflect.Slice:
		if isStructs(v) {
			return structsText(v)
		}
		items := make([]string, v.Len())
		for i := range items {
			items[i] = text(v.Index(i))
		}
		return strings.Join(items, ",")
	case reflect.Map:
		var items []string
		for it := v.MapRange(); it.Next(); {
			value := reflect.New(v.Type().Elem()).Elem()
			value.Set(it.Value())
			items = append(items, it.Key().String()+"="+text(value))
		}
		slices.Sort(items)
		return strings.Join(items, ",")
	}
	return fmt.Sprint(v.Interface())
}

// structsText prints a list of structs as JSON, which is YAML too.
func structsText(v reflect.Value) string {
	items := make([]string, v.Len())
	for i := range items {
		var fields []string
		for _, f := range newLoaderAt("", v.Index(i)).leaves {
			if f.value.IsZero() {
				continue
			}
			value := strconv.Quote(text(f.value))
			if f.value.Kind() == reflect.Slice && !isText(f.value) {
				list := make([]string, f.value.Len())
				for j := range list {
					list[j] = strconv.Quote(text(f.value.Index(j)))
				}
				value = "[" + strings.Join(list, ",") + "]"
			}
			fields = append(fields, strconv.Quote(f.key)+":"+value)
		}
		items[i] = "{" + strings.Join(fields, ",") + "}"
	}
	if len(items) == 0 {
		return ""
	}
	return "[" + strings.Join(items, ",") + "]"
}

// clip shortens outside text for an error message.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// suggest returns ` (did you mean "x"?)` for the closest of known, or nothing
// when none is close.
func suggest(name string, known []string) string {
	best, least := "", min(4, len(name)/3+1)
	slices.Sort(known)
	for _, k := range known {
		if d := distance(name, k, least); d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// distance is the Levenshtein distance of a and b, or most where it is larger.
func distance(a, b string, most int) int {
	if len(a)-len(b) >= most || len(b)-len(a) >= most {
		return most
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return min(most, row[len(b)])
}
