package bridge

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// outcome is all that a send_photo's text decides.
type outcome struct {
	Refused bool
	Fields  photoRequest
	Image   string
}

func outcomeOf(r photoRequest, no *refusal) outcome {
	if no != nil {
		return outcome{Refused: true}
	}
	image, no := r.image()
	if no != nil {
		return outcome{Refused: true}
	}
	size := r.size()
	r.base64, r.binary = nil, nil
	if size != len(image) {
		panic(fmt.Sprintf("size() says %d, the image has %d bytes", size, len(image)))
	}
	return outcome{Fields: r, Image: string(image)}
}

var sameOutcome = cmp.AllowUnexported(outcome{}, photoRequest{})

// slowly reads object the general way alone.
func slowly(p photoParser, object []byte) outcome {
	r, no := p.general(object, nil)
	if no == nil {
		no = r.check()
	}
	return outcomeOf(r, no)
}

func seeds() []string {
	data := base64.StdEncoding.EncodeToString(jpeg(1))
	const head, tail = `{"photoId":"p","partnerId":"b","photoData":"`, `","timestamp":1700000000000,"caption":"a \"photoData\":\"x\" b"}`
	return []string{
		head + data + tail,
		head + "data:image/png;base64," + data + tail,
		head + strings.ReplaceAll(data, "/", `\/`) + tail,
		head + data[:20] + `\r\n` + data[20:] + tail,
		head + data[:20] + "\n" + data[20:] + tail,
		head + data[:21] + tail,
		head + tail,
		`{"meta":{"photoData":"` + data + `"},` + (head + data + tail)[1:],
		`{"meta":{"photoData":"` + data + `"},"photodata":"","photoId":"p","partnerId":"b"}`,
		`{"photoData":"` + data + `","photoData":"","photoId":"p","partnerId":"b"}`,
		`{"photoData":"","photoData":"` + data + `","photoId":"p","partnerId":"b"}`,
		`{"photoData":"/9j/","PHOTODATA":null,"photoId":"p","partnerId":"b"}`,
		`{"photoData" : "` + data + `","photoId":"p","partnerId":"b"}`,
		`{"x":"photoData\":\"","photoData":"/9j/","photoId":"p","partnerId":"b"}`,
		`{"photoData":"/9j/`, `{"photoData":{"_placeholder":true,"num":0}}`, `[]`, `null`, ``, `{`,
		`{"photoId":"0","partnerId":"0","photoData":"0000="}`,
	}
}

// FuzzSendPhoto holds the fast way of reading a send_photo against the general
// one: where it takes an event, both must see the same.
func FuzzSendPhoto(f *testing.F) {
	for _, s := range seeds() {
		f.Add([]byte(s))
	}
	p := newPhotoParser()
	f.Fuzz(func(t *testing.T, object []byte) {
		r, ok := p.fast(object)
		if !ok {
			slowly(p, object) // must not panic
			return
		}
		if d := cmp.Diff(slowly(p, object), outcomeOf(r, r.check()), sameOutcome); d != "" {
			t.Errorf("the general and the fast way disagree (-general +fast):\n%s", d)
		}
	})
}

func TestFastPath(t *testing.T) {
	p := newPhotoParser()
	for i, s := range seeds() {
		_, ok := p.fast([]byte(s))
		if want := i < 2 || i == 6 || i == 13; ok != want {
			t.Errorf("seed %d %.60q: fast path %v, want %v", i, s, ok, want)
		}
	}
}

func TestParseTime(t *testing.T) {
	tests := []struct {
		raw  string
		want string
	}{
		{`1700000000000`, "2023-11-14T22:13:20Z"},
		{`1700000000000.75`, "2023-11-14T22:13:20Z"},
		{`"1700000000000"`, "2023-11-14T22:13:20Z"},
		{`"2026-01-02T03:04:05+02:00"`, "2026-01-02T01:04:05Z"},
		{`1.7e12`, "2023-11-14T22:13:20Z"},
		{``, ""}, {`null`, ""}, {`{}`, ""}, {`true`, ""}, {`"yesterday"`, ""}, {`-5`, ""}, {`1e300`, ""}, {`9007199254740991`, ""},
		{`"0000-01-01T00:00:00Z"`, ""}, {`"` + strings.Repeat("1", 80) + `"`, ""},
	}
	for _, tt := range tests {
		got := ""
		if at := parseTime(json.RawMessage(tt.raw)); !at.IsZero() {
			got = at.Format(time.RFC3339)
		}
		if got != tt.want {
			t.Errorf("parseTime(%s) = %q, want %q", tt.raw, got, tt.want)
		}
	}
}

func BenchmarkSendPhoto(b *testing.B) {
	image := make([]byte, 200<<10)
	for i := range image {
		image[i] = byte(i * i >> 3)
	}
	object := []byte(`{"photoId":"p","partnerId":"b","photoData":"` + base64.StdEncoding.EncodeToString(image) + `","timestamp":1700000000000}`)
	p := newPhotoParser()
	b.SetBytes(int64(len(object)))
	b.ReportAllocs()
	for b.Loop() {
		r, no := p.parse(object, nil)
		if no != nil {
			b.Fatal(no)
		}
		if _, no := r.image(); no != nil {
			b.Fatal(no)
		}
	}
}
