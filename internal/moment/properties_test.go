package moment

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestPropertiesRoundTrip(t *testing.T) {
	sent := Moment{
		Caption: "the sea 🌊", TakenAt: time.Date(2026, 5, 17, 20, 15, 0, 123_000_000, time.FixedZone("", 2*3600)),
		SenderName: "Ann", Device: "d1", MessageID: "msg-1", StoredAt: time.Date(2026, 5, 17, 18, 15, 1, 0, time.UTC),
		Extra: []Property{{"x-b", "2"}, {"x-a", "1"}, {"x-b", "3"}},
	}
	props := sent.Properties()
	want := []Property{
		{"caption", "the sea 🌊"}, {"taken-at", "2026-05-17T20:15:00.123+02:00"}, {"sender-name", "Ann"}, {"device", "d1"},
		{"message-id", "msg-1"}, {"stored-at", "2026-05-17T18:15:01Z"}, {"x-b", "2"}, {"x-a", "1"}, {"x-b", "3"},
	}
	if diff := cmp.Diff(want, props); diff != "" {
		t.Errorf("properties, -want +got:\n%s", diff)
	}
	var received Moment
	if err := received.SetDelivered(props); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sent, received); diff != "" {
		t.Errorf("as received, -sent +got:\n%s", diff)
	}
	var published Moment
	if err := published.SetProperties(props); err != nil || !published.StoredAt.IsZero() {
		t.Errorf("a publisher set stored-at to %v (error %v)", published.StoredAt, err)
	}
	if got := (&Moment{}).Properties(); len(got) != 0 {
		t.Errorf("an empty moment has properties %v", got)
	}
}

func TestSetPropertiesRefuses(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	for name, test := range map[string]struct {
		props []Property
		want  string // empty: it is taken
	}{
		"longest caption":     {[]Property{{PropCaption, long(MaxCaptionBytes)}}, ""},
		"caption too long":    {[]Property{{PropCaption, long(MaxCaptionBytes + 1)}}, `"caption"`},
		"longest value":       {[]Property{{PropMessageID, long(MaxPropertyBytes)}}, ""},
		"value too long":      {[]Property{{PropMessageID, long(MaxPropertyBytes + 1)}}, `"message-id"`},
		"unknown too long":    {[]Property{{"x", long(MaxPropertyBytes + 1)}}, `"x"`},
		"unknown too many":    {[]Property{{"a", long(1000)}, {"b", long(1000)}, {"c", long(1000)}, {"d", long(1000)}, {"e", long(1000)}}, "unknown properties"},
		"long key":            {[]Property{{long(60_000), "x"}}, "unknown properties"},
		"not a time":          {[]Property{{PropTakenAt, "yesterday"}}, `"yesterday"`},
		"time without a zone": {[]Property{{PropTakenAt, "2026-05-17T20:15:00"}}, `"taken-at"`},
		"not UTF-8":           {[]Property{{PropCaption, "\xff"}}, "UTF-8"},
		"key not UTF-8":       {[]Property{{"\xff", "x"}}, "UTF-8"},
		"empty caption":       {[]Property{{PropCaption, ""}}, ""},
	} {
		var m Moment
		err := m.SetProperties(test.props)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
		if err != nil && (len(err.Error()) > 300 || !utf8.ValidString(err.Error())) {
			t.Errorf("%s: the error has %d bytes, UTF-8 %v", name, len(err.Error()), utf8.ValidString(err.Error()))
		}
	}
	var m Moment
	if err := m.SetDelivered([]Property{{PropStoredAt, "now"}}); err == nil {
		t.Error("stored-at \"now\" was taken")
	}
}

// FuzzProperties checks that what is taken comes out again with the same
// meaning, and fits the limits.
func FuzzProperties(f *testing.F) {
	f.Add(PropCaption, "the sea", PropTakenAt, "2026-05-17T20:15:00+02:00", "x", "y")
	f.Add(PropStoredAt, "2026-05-17T20:15:00Z", PropDevice, "d1", PropSenderName, "")
	f.Add(PropTakenAt, "0001-01-01T00:00:00Z", PropTakenAt, "9999-12-31T23:59:59.999999999-23:59", "", "")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3 string) {
		var m Moment
		err := m.SetDelivered([]Property{{k1, v1}, {k2, v2}, {k3, v3}})
		if err != nil {
			if !utf8.ValidString(err.Error()) {
				t.Fatalf("error %q is not UTF-8", err)
			}
			return
		}
		total := 0
		for _, p := range m.Properties() {
			if !utf8.ValidString(p.Key) || !utf8.ValidString(p.Value) {
				t.Fatalf("%q is not UTF-8", p)
			}
			total += len(p.Key) + len(p.Value)
		}
		if limit := MaxCaptionBytes + 5*MaxPropertyBytes + MaxExtraBytes + 100; total > limit {
			t.Fatalf("properties of %d bytes, at most %d expected", total, limit)
		}
		var again Moment
		if err := again.SetDelivered(m.Properties()); err != nil {
			t.Fatalf("%+v does not come back: %v", m, err)
		}
		if diff := cmp.Diff(m, again); diff != "" {
			t.Fatalf("-first +second:\n%s", diff)
		}
	})
}

func TestPayloads(t *testing.T) {
	at := time.Date(2026, 5, 17, 18, 15, 1, 0, time.UTC)
	for want, v := range map[string]any{
		`{"moment":"m1","sender":"ann","status":"stored","device":"d1","at":"2026-05-17T18:15:01Z"}`:          ReceiptBody{"m1", "ann", StatusStored, "d1", at},
		`{"moment":"m1","sender":"ann","reaction":"❤️"}`:                                                      ReactionBody{"m1", "ann", "❤️"},
		`{"users":[{"id":"ann","name":"Ann"},{"id":"bob","name":"Bob"}],"created":"2026-05-17T18:15:01Z"}`:    PairInfo{[]PairUser{{"ann", "Ann"}, {"bob", "Bob"}}, at},
		`{"sender":"ann","moment":"m1","type":"image/jpeg","bytes":7,"at":"2026-05-17T18:15:01Z","url":"/x"}`: Newest{"ann", "m1", "image/jpeg", 7, at, "/x"},
		`{"online":true,"since":"2026-05-17T18:15:01Z","clients":["app"]}`:                                    Presence{true, at, []string{"app"}},
		`{"cmd":"next"}`:             Command{Cmd: "next"},
		`{"cmd":"delete","id":"m1"}`: Command{Cmd: "delete", ID: "m1"},
	} {
		got, err := json.Marshal(v)
		if err != nil || string(got) != want {
			t.Errorf("got %s, %v; want %s", got, err, want)
		}
	}
}

// TestNewestFits holds the contract's 1 KiB with the longest ids.
func TestNewestFits(t *testing.T) {
	id := strings.Repeat("x", MaxIDBytes)
	n := Newest{id, id, "image/jpeg", 4 << 20, time.Now(), "https://" + strings.Repeat("h", 100) + "/moments/" + id + "/" + id + "?w=1080&h=1920"}
	if b, err := json.Marshal(n); err != nil || len(b) > 1<<10 {
		t.Errorf("%d bytes, error %v", len(b), err)
	}
}

func TestReceiptID(t *testing.T) {
	first := ReceiptID("ann", "m1", "d1", StatusStored)
	if first != ReceiptID("ann", "m1", "d1", StatusStored) || CheckID("receipt", first) != nil {
		t.Errorf("%q: not the same every time, or not legal", first)
	}
	seen := map[string]bool{first: true}
	for _, other := range []string{
		ReceiptID("bob", "m1", "d1", StatusStored), ReceiptID("ann", "m2", "d1", StatusStored), ReceiptID("ann", "m1", "d2", StatusStored),
		ReceiptID("ann", "m1", "d1", StatusShown), ReceiptID("annm", "1", "d1", StatusStored), ReceiptID("ann", "m1", "", StatusStored),
	} {
		if seen[other] {
			t.Errorf("%q is the id of two receipts", other)
		}
		seen[other] = true
	}
}
