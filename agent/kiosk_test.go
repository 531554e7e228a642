package agent

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pairsync/internal/badgerdb"
	"pairsync/internal/memnet"
	"pairsync/internal/moment"
)

func newTestKiosk(t *testing.T) *kiosk {
	t.Helper()
	b := newBoard()
	b.set(func(v *view) { v.membership, v.ready = testMember, true })
	return newKiosk(memnet.Listen("kiosk"), ShowPartner, newTestStore(t), b, quiet())
}

func ask(k *kiosk, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "127.0.0.1:8088"
	for i := 0; i < len(headers); i += 2 {
		if r.Header.Set(headers[i], headers[i+1]); headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	w := httptest.NewRecorder()
	k.handler().ServeHTTP(w, r)
	return w
}

func TestOnlyTheOwnPageMayTalk(t *testing.T) {
	k := newTestKiosk(t)
	const own = "http://127.0.0.1:8088"
	shown := `{"sender":"bo","moment":"m1"}`
	tests := []struct {
		name    string
		method  string
		path    string
		headers []string
		want    int
	}{
		{"page", "GET", "/", nil, 200},
		{"page at localhost", "GET", "/", []string{"Host", "localhost:8088"}, 200},
		{"page at [::1]", "GET", "/", []string{"Host", "[::1]:8088"}, 200},
		{"page without port", "GET", "/", []string{"Host", "127.0.0.1"}, 200},
		{"rebound name", "GET", "/", []string{"Host", "evil.example:8088"}, 403},
		{"rebound name like an address", "GET", "/", []string{"Host", "127.0.0.1.evil.example"}, 403},
		{"not loopback", "GET", "/", []string{"Host", "192.168.1.9:8088"}, 403},
		{"empty host", "GET", "/", []string{"Host", ""}, 403},
		{"foreign origin", "GET", "/events", []string{"Origin", "http://evil.example"}, 403},
		{"null origin", "GET", "/photo", []string{"Origin", "null"}, 403},
		{"other port", "GET", "/events", []string{"Origin", "http://127.0.0.1:80"}, 403},
		{"cross-site image", "GET", "/photo?sender=bo&moment=m1", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"same-site image", "GET", "/photo?sender=bo&moment=m1", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"own image", "GET", "/photo?sender=bo&moment=m1", []string{"Sec-Fetch-Site", "same-origin"}, 200},
		{"unknown image", "GET", "/photo?sender=bo&moment=m2", nil, 404},
		{"own post", "POST", "/shown", []string{"Origin", own}, 204},
		{"post without origin", "POST", "/shown", nil, 403},
		{"foreign post", "POST", "/shown", []string{"Origin", "http://evil.example"}, 403},
		{"form get", "GET", "/shown", nil, 405},
		{"preflight", "OPTIONS", "/shown", []string{"Origin", "http://evil.example"}, 403},
		{"put", "PUT", "/", []string{"Origin", own}, 405},
		{"nothing there", "GET", "/etc/passwd", nil, 404},
		{"embedded directory", "GET", "/kiosk/", nil, 404},
	}
	putPhoto(t, k.store, "m1", testJPEG(t, 1))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := ask(k, tt.method, tt.path, shown, tt.headers...)
			if w.Code != tt.want {
				t.Errorf("status = %d, want %d", w.Code, tt.want)
			}
			for _, h := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Methods"} {
				if w.Header().Get(h) != "" {
					t.Errorf("%s: %s", h, w.Header().Get(h))
				}
			}
			if w.Header().Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(w.Header().Get("Content-Security-Policy"), "default-src 'none'") {
				t.Errorf("headers = %v", w.Header())
			}
		})
	}
}

func TestPageHasNothingInline(t *testing.T) {
	k := newTestKiosk(t)
	for path, contentType := range map[string]string{
		"/": "text/html; charset=utf-8", "/kiosk.css": "text/css; charset=utf-8",
		"/kiosk.js": "text/javascript; charset=utf-8", "/icon.svg": "image/svg+xml",
	} {
		w := ask(k, "GET", path, "")
		body := w.Body.String()
		if w.Code != 200 || w.Header().Get("Content-Type") != contentType {
			t.Errorf("%s: %d, %s", path, w.Code, w.Header().Get("Content-Type"))
		}
		for _, bad := range []string{" style=", " onclick=", " onload=", "<style", "javascript:", "https://", "eval("} {
			if strings.Contains(body, bad) {
				t.Errorf("%s holds %q, which the policy forbids or which leaves the device", path, bad)
			}
		}
	}
}

func TestPhotoIsServedAsVerified(t *testing.T) {
	k := newTestKiosk(t)
	body := testJPEG(t, 1)
	putPhoto(t, k.store, "m1", body)
	w := ask(k, "GET", "/photo?sender=bo&moment=m1", "")
	if w.Code != 200 || w.Body.String() != string(body) {
		t.Errorf("status %d, %d bytes", w.Code, w.Body.Len())
	}
	h := w.Header()
	if h.Get("Content-Type") != "image/jpeg" || h.Get("Content-Security-Policy") != photoPolicy {
		t.Errorf("headers = %v", h)
	}
	if w := ask(k, "GET", "/photo?sender=bo&moment=m1", "", "If-None-Match", h.Get("ETag")); w.Code != http.StatusNotModified {
		t.Errorf("with its ETag: status %d, want 304", w.Code)
	}
	put(t, k.store, change{apply: func(tx *badgerdb.Tx) error { return tx.Set(numberedKey(prefixBytes, 1), []byte("torn")) }})
	if w := ask(k, "GET", "/photo?sender=bo&moment=m1", ""); w.Code != http.StatusNotFound {
		t.Errorf("damaged: status %d, want 404", w.Code)
	}
	if sums := mustTotals(t, k.store); sums.Photos != 0 {
		t.Error("the damaged photo is still in the store")
	}
}

func TestShownIsToldOnce(t *testing.T) {
	k := newTestKiosk(t)
	putPhoto(t, k.store, "m1", testJPEG(t, 1))
	own := []string{"Origin", "http://127.0.0.1:8088"}
	for _, tt := range []struct {
		body string
		want int
	}{
		{`{"sender":"bo","moment":"m1"}`, 204},
		{`{"sender":"bo","moment":"m1"}`, 204},
		{`{"sender":"bo","moment":"m2"}`, 404},
		{`noise`, 400},
		{`{"sender":"` + strings.Repeat("x", 8<<10) + `"}`, 400},
	} {
		if w := ask(k, "POST", "/shown", tt.body, own...); w.Code != tt.want {
			t.Errorf("POST %.40s: status %d, want %d", tt.body, w.Code, tt.want)
		}
	}
	receipts, err := k.store.entries(moment.Receipt, func(e entry) bool {
		return e.ID == moment.ReceiptID(testPartner, "m1", testDevice, moment.StatusShown)
	})
	if err != nil || len(receipts) != 1 {
		t.Errorf("%d receipts, %v, want one", len(receipts), err)
	}
	if list, err := listPhotos(k.store); err != nil || !list[0].Shown {
		t.Errorf("list = %+v, %v, want shown", list, err)
	}
}

func TestUndecodablePhotoLeavesTheShow(t *testing.T) {
	k := newTestKiosk(t)
	putPhoto(t, k.store, "m1", testJPEG(t, 1))
	putPhoto(t, k.store, "m2", testJPEG(t, 2))
	for range 2 {
		if w := ask(k, "POST", "/broken", `{"sender":"bo","moment":"m2"}`, "Origin", "http://127.0.0.1:8088"); w.Code != 204 {
			t.Errorf("status = %d, want 204", w.Code)
		}
	}
	v, _ := k.board.get()
	if s, err := k.screen(v); err != nil || s.Photo == nil || s.Photo.Moment != "m1" {
		t.Errorf("screen = %+v, %v, want m1", s, err)
	}
	if sums := mustTotals(t, k.store); sums.Broken != 1 || sums.Photos != 2 || !strings.Contains(v.lastError, "m2") {
		t.Errorf("totals = %+v, last error %q", sums, v.lastError)
	}
}

func TestScreen(t *testing.T) {
	k := newTestKiosk(t)
	show := func() screen {
		t.Helper()
		v, _ := k.board.get()
		s, err := k.screen(v)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if diff := cmp.Diff(screen{Paired: true, Online: true, Partner: "Bo"}, show()); diff != "" {
		t.Errorf("no photo yet (-want +got):\n%s", diff)
	}
	var fresh bool
	n := note{Pair: testPair, Sender: testPartner, Moment: "n1", Text: "hi", ReceivedAt: time.Now()}
	put(t, k.store, k.store.takeNote(n, nil, &fresh))
	if s := show(); s.Note == nil || s.Note.Text != "hi" || s.Note.From != "Bo" {
		t.Errorf("note = %+v", s.Note)
	}
	putPhoto(t, k.store, "m1", testJPEG(t, 1))
	// A frame without a battery starts in 1970, until the network tells the time.
	n.Moment, n.Text, n.ReceivedAt = "n2", "newer", time.Unix(60, 0)
	put(t, k.store, k.store.takeNote(n, nil, &fresh))
	if s := show(); s.Note == nil || s.Note.Text != "newer" {
		t.Errorf("note after a clock jump = %+v, want the one that came last", s.Note)
	}
	putPhoto(t, k.store, "a&b", testJPEG(t, 2))
	former := testMember
	former.Pair = "p0"
	putPhotoOf(t, k.store, former, testPartner, "former", testJPEG(t, 3))
	putPhotoOf(t, k.store, testMember, testUser, "own", testJPEG(t, 4))
	s := show()
	if s.Photo == nil || s.Photo.Moment != "a&b" || s.Photo.Source != "/photo?moment=a%26b&sender=bo" || s.Photo.From != "Bo" || s.Note != nil {
		t.Errorf("photo = %+v, note %+v, want the partner's newest of this pair", s.Photo, s.Note)
	}
	k.show = ShowBoth
	if s := show(); s.Photo == nil || s.Photo.Moment != "own" || s.Photo.From != "Ann" {
		t.Errorf("show both: photo = %+v", s.Photo)
	}
	k.board.set(func(v *view) { v.membership, v.ready = membership{User: testUser, Device: testDevice}, false })
	if diff := cmp.Diff(screen{}, show()); diff != "" {
		t.Errorf("unpaired (-want +got):\n%s", diff)
	}
}

func TestEventsFollowTheBoard(t *testing.T) {
	k := newTestKiosk(t)
	srv := httptest.NewServer(k.handler())
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("content type = %q", got)
	}
	lines := bufio.NewScanner(resp.Body)
	next := func() screen {
		t.Helper()
		for lines.Scan() {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok {
				continue
			}
			var s screen
			if err := json.Unmarshal([]byte(data), &s); err != nil {
				t.Fatal(err)
			}
			return s
		}
		t.Fatal("the stream ended: ", lines.Err())
		return screen{}
	}
	if s := next(); s.Photo != nil || !s.Online {
		t.Errorf("first: %+v", s)
	}
	putPhoto(t, k.store, "m1", testJPEG(t, 1))
	k.board.touch()
	if s := next(); s.Photo == nil || s.Photo.Moment != "m1" {
		t.Errorf("after a photo: %+v", s)
	}
	k.board.touch() // changes nothing that is shown: no event
	k.board.set(func(v *view) { v.ready = false })
	if s := next(); s.Online {
		t.Errorf("offline: %+v", s)
	}
}

func TestOpenPagesAreBounded(t *testing.T) {
	k := newTestKiosk(t)
	for range maxPages {
		k.pages <- struct{}{}
	}
	if w := ask(k, "GET", "/events", ""); w.Code != http.StatusServiceUnavailable {
		t.Errorf("status = %d, want 503", w.Code)
	}
}

func TestAgentServesThePage(t *testing.T) {
	b := newFakeBroker()
	cfg := testConfig(t)
	cfg.Kiosk.Listen = "127.0.0.1:0"
	a, stop := runAgent(t, b, cfg)
	resp, err := http.Get("http://" + a.KioskAddr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !strings.Contains(string(page), "kiosk.js") {
		t.Errorf("page = %.80q, %v", page, err)
	}
	events, err := http.Get("http://" + a.KioskAddr().String() + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	start := time.Now()
	stop() // an open stream does not hold the agent back
	if took := time.Since(start); took >= shutdownTimeout {
		t.Errorf("stopping took %v", took)
	}
}
