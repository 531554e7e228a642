package socketio

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePacket(t *testing.T) {
	for _, c := range []struct {
		text string
		want packet
	}{
		{"0", packet{kind: typeConnect, namespace: "/", id: -1}},
		{`0{"token":"1"}`, packet{kind: typeConnect, namespace: "/", id: -1, data: []byte(`{"token":"1"}`)}},
		{"0/custom", packet{kind: typeConnect, namespace: "/custom", id: -1}},
		{"0/custom,", packet{kind: typeConnect, namespace: "/custom", id: -1}},
		{`0/a,{"b":","}`, packet{kind: typeConnect, namespace: "/a", id: -1, data: []byte(`{"b":","}`)}},
		{"1", packet{kind: typeDisconnect, namespace: "/", id: -1}},
		{"1/a,", packet{kind: typeDisconnect, namespace: "/a", id: -1}},
		{`2["a"]`, packet{kind: typeEvent, namespace: "/", id: -1, data: []byte(`["a"]`)}},
		{`212["a"]`, packet{kind: typeEvent, namespace: "/", id: 12, data: []byte(`["a"]`)}},
		{`2/n,0["a"]`, packet{kind: typeEvent, namespace: "/n", id: 0, data: []byte(`["a"]`)}},
		{`3456[]`, packet{kind: typeAck, namespace: "/", id: 456, data: []byte(`[]`)}},
		{`52-["a"]`, packet{kind: typeBinaryEvent, attachments: 2, namespace: "/", id: -1, data: []byte(`["a"]`)}},
		{`51-/n,7["a"]`, packet{kind: typeBinaryEvent, attachments: 1, namespace: "/n", id: 7, data: []byte(`["a"]`)}},
		{`610-3[1]`, packet{kind: typeBinaryAck, attachments: 10, namespace: "/", id: 3, data: []byte(`[1]`)}},
	} {
		got, err := parsePacket([]byte(c.text))
		if err != nil {
			t.Errorf("parse %q: %v", c.text, err)
		}
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(packet{})); diff != "" {
			t.Errorf("parse %q (-want +got):\n%s", c.text, diff)
		}
		if again := string(append(got.appendHead(nil), got.data...)); again != strings.TrimSuffix(c.text, ",") && again != c.text && again != c.text+"," {
			t.Errorf("parse %q, append: got %q", c.text, again)
		}
	}
}

func TestParsePacketRefuses(t *testing.T) {
	for _, text := range []string{
		"", "7", "abc", "-1",
		"0[]", `0"a"`, "05", "0{", "0null", `0{"a":1}x`,
		"1{}", "1[]",
		"5-[\"a\"]", `5["a"]`, `5a-["a"]`, `511-["a"]`, `5999-["a"]`, `51`, "61[]",
		"3[]", "31{}", "31", `31"a"`, "61-[]",
		`2` + strings.Repeat("9", 19) + `["a"]`,
		"0/" + strings.Repeat("a", 300),
		`0{"token":"` + strings.Repeat("a", 64<<10) + `"}`,
	} {
		if got, err := parsePacket([]byte(text)); err == nil {
			t.Errorf("parse %.40q: got %v, want an error", text, got)
		}
	}
}

func TestEventNames(t *testing.T) {
	for _, c := range []struct{ raw, want string }{
		{`["a"]`, "a"}, {` [ "a" , 1 ] `, "a"}, {`["é\u0041\n"]`, "éA\n"}, {`[12,"x"]`, "12"}, {`[""]`, ""}, {`["-1"]`, "-1"},
	} {
		e, err := newEvent(packet{data: []byte(c.raw)}, nil)
		if err != nil || e.Name != c.want {
			t.Errorf("event %s: got %v, %v, want %q", c.raw, e, err, c.want)
		}
	}
	for _, raw := range []string{
		``, `{}`, `[]`, `[null]`, `[true]`, `[["a"]]`, `[{}]`, `"a"`, `["a"`, `["a",]`, `["a" 1]`, `["a"]x`, `["a]`, `["a\"]`,
		`["a",{]`, `["a",{"b"}]`, `["a",{"b":}]`, `["a",{1:2}]`, `["a",[1,]]`, `["a",01]`, `["a",tru]`, `["a",+1]`, `["a",}]`, `["a",1e]`,
		"[\"\xff\"]", `["\x"]`,
		`["connect"]`, `["connect_error"]`, `["disconnect"]`, `["disconnecting"]`, `["newListener"]`, `["removeListener"]`, `["dis\u0063onnect"]`,
		`["a",` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `]`,
	} {
		if e, err := newEvent(packet{data: []byte(raw)}, nil); err == nil {
			t.Errorf("event %.60s was taken as %q", raw, e.Name)
		}
	}
}

func TestArgs(t *testing.T) {
	e, err := newEvent(packet{data: []byte(` ["a", {"x":"]\\\"[" , "y":[1,{}]},"\\\\", 1.5e3 , null] `)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	args, err := e.Args()
	if err != nil {
		t.Fatal(err)
	}
	want := []json.RawMessage{[]byte(`{"x":"]\\\"[" , "y":[1,{}]}`), []byte(`"\\\\"`), []byte(`1.5e3`), []byte(`null`)}
	if diff := cmp.Diff(want, args); diff != "" {
		t.Errorf("args (-want +got):\n%s", diff)
	}
}

func TestPlaceholders(t *testing.T) {
	for _, c := range []struct {
		raw string
		ok  bool
	}{
		{`["a",{"_placeholder":true,"num":0}]`, true},
		{`["a",{"x":[{"num":1,"_placeholder":true}]}]`, true},
		{`["a",{"_placeholder":true,"num":2}]`, false},
		{`["a",{"_placeholder":true,"num":-1}]`, false},
		{`["a",{"_placeholder":true,"num":0.5}]`, false},
		{`["a",{"_placeholder":true,"num":1e30}]`, false},
		{`["a",{"_placeholder":true}]`, false},
		{`["a",{"_placeholder":false,"num":9}]`, true},
		{`["a","{\"_placeholder\":true,\"num\":9}"]`, true},
	} {
		err := checkPlaceholders(&packet{data: []byte(c.raw), attachments: 2})
		if (err == nil) != c.ok {
			t.Errorf("%s with two attachments: got %v, want ok %v", c.raw, err, c.ok)
		}
	}
}

func TestEncode(t *testing.T) {
	type inner struct {
		Data Binary `json:"data"`
		Name string `json:"name,omitempty"`
	}
	one, two := Binary{1, 2}, Binary{3}
	for _, c := range []struct {
		args        []any
		want        string
		attachments [][]byte
	}{
		{[]any{"a"}, `["a"]`, nil},
		{[]any{"a", nil, 1.5, "<&>\u2028"}, `["a",null,1.5,"<&>\u2028"]`, nil},
		{[]any{"a", json.RawMessage(`{"b": 1}`)}, `["a",{"b": 1}]`, nil},
		{[]any{"a", []byte{9}}, `["a",{"_placeholder":true,"num":0}]`, [][]byte{{9}}},
		{[]any{"a", []byte(nil), Binary(nil), inner{}}, `["a",null,null,{"data":null}]`, nil},
		{[]any{"a", []byte{}}, `["a",{"_placeholder":true,"num":0}]`, [][]byte{{}}},
		{[]any{"a", one, inner{two, "n"}}, `["a",{"_placeholder":true,"num":0},{"data":{"_placeholder":true,"num":1},"name":"n"}]`, [][]byte{one, two}},
		{[]any{"a", map[string]any{"x": []any{&inner{Data: two}, map[int]Binary{1: one}}}},
			`["a",{"x":[{"data":{"_placeholder":true,"num":0}},{"1":{"_placeholder":true,"num":1}}]}]`, [][]byte{two, one}},
		{[]any{"a", []Binary{one, one}}, `["a",[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]]`, [][]byte{one, one}},
		{[]any{"a", map[string]any{"x": `{"_placeholder":true,"num":"0:0"}`}}, `["a",{"x":"{\"_placeholder\":true,\"num\":\"0:0\"}"}]`, nil},
	} {
		got, err := encode(c.args)
		if err != nil {
			t.Errorf("encode %v: %v", c.args, err)
			continue
		}
		if string(got.body) != c.want {
			t.Errorf("encode %v: got %s, want %s", c.args, got.body, c.want)
		}
		if diff := cmp.Diff(c.attachments, got.attachments); diff != "" {
			t.Errorf("encode %v: attachments (-want +got):\n%s", c.args, diff)
		}
	}
	for _, args := range [][]any{
		{"a", func() {}},
		{"a", json.RawMessage(`{"b":`)},
		{"a", json.RawMessage("\"\x1e4\"")}, // would begin a new packet when polled
		{"a", json.RawMessage("\"\xff\"")},
		{"a", make([][]Binary, 0), [][]byte{}, []Binary{{1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}, {10}, {11}}},
	} {
		if got, err := encode(args); err == nil {
			t.Errorf("encode %v: got %s, want an error", args, got.body)
		}
	}
}

func TestPrepareJSON(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 100, 100_000} {
		raw := bytes.Repeat([]byte{0xfb}, n)
		p, err := PrepareJSON("photo", []byte(`{"a":1,"d":"data:`), raw, []byte(`","z":[2]}`))
		if err != nil {
			t.Fatal(err)
		}
		var got []any
		if err := json.Unmarshal(p.body, &got); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		slow, err := json.Marshal(raw)
		if err != nil {
			t.Fatal(err)
		}
		want := `["photo",{"a":1,"d":"data:` + string(slow[1:len(slow)-1]) + `","z":[2]}]`
		if string(p.body) != want || cap(p.body) > len(want)+len(want)/4+64 {
			t.Errorf("%d bytes: got %.80s (cap %d)", n, p.body, cap(p.body))
		}
	}
	for _, c := range [][2]string{{`{"d":`, `}`}, {`{"d":"`, `}`}, {`{"d":"`, `"`}, {``, ``}, {"{\"d\":\"\x1e", `"}`}} {
		if p, err := PrepareJSON("photo", []byte(c[0]), []byte{1}, []byte(c[1])); err == nil {
			t.Errorf("head %q, tail %q: got %s", c[0], c[1], p.body)
		}
	}
	if _, err := PrepareJSON("disconnect", []byte(`"`), nil, []byte(`"`)); err == nil {
		t.Error("a reserved name was taken")
	}
	if _, err := Prepare("connect"); err == nil {
		t.Error("a reserved name was taken")
	}
}

// FuzzPacket holds packets to a round trip and the scanner to encoding/json:
// what json.Valid takes, the scanner takes apart into the same values.
func FuzzPacket(f *testing.F) {
	for _, seed := range []string{
		"0", `0/n,{"a":1}`, `2["a",{"b":["\\\"",1e5,null]}]`, `51-/n,7["a",{"_placeholder":true,"num":0}]`, `312[]`, `62-1[{},"x"]`, "1/n,",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := parsePacket(text)
		if err != nil {
			return
		}
		again, err := parsePacket(append(p.appendHead(nil), p.data...))
		if err != nil {
			t.Fatalf("%q parses to %v, which does not parse: %v", text, p, err)
		}
		if diff := cmp.Diff(p, again, cmp.AllowUnexported(packet{})); diff != "" {
			t.Fatalf("%q (-first +second):\n%s", text, diff)
		}
		if p.attachments > maxAttachments || len(p.namespace) > maxNamespaceBytes {
			t.Fatalf("%q: over the limits: %v", text, p)
		}
		checkScan(t, p.data)
	})
}

// checkScan compares the scanner with encoding/json.
func checkScan(t *testing.T, raw []byte) {
	values, err := scanArray(raw, nil)
	var want []json.RawMessage
	strict := json.Unmarshal(raw, &want)
	switch {
	case strict == nil && want != nil && err != nil && !strings.Contains(err.Error(), "deep") && len(raw) < maxScalarBytes:
		t.Fatalf("%q is an array to encoding/json, but: %v", raw, err)
	case strict != nil || err != nil:
		return // the scanner leaves the inside of strings to others
	case len(values) != len(want):
		t.Fatalf("%q: %d values, want %d", raw, len(values), len(want))
	}
	for i := range want {
		if !bytes.Equal(values[i], want[i]) {
			t.Fatalf("%q: value %d is %q, want %q", raw, i, values[i], want[i])
		}
	}
}
