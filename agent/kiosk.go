package agent

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/moment"
)

// The kiosk page: HTTP for the browser on this device.
//
//	GET  /                            the page, with its style and script
//	GET  /events                      server-sent events: the screen, as JSON, on each change
//	GET  /photo?sender=&moment=       a photo's bytes
//	POST /shown {"sender","moment"}   the page has shown a photo
//	POST /broken {"sender","moment"}  the page has the photo and cannot decode it
const (
	// maxPages bounds how many pages may be open at once.
	maxPages = 8
	// pingEvery keeps an idle event stream open, and finds one that is gone.
	pingEvery = 20 * time.Second
	// pageTimeout bounds one answer, and one event of a stream.
	pageTimeout = 30 * time.Second
)

// Only the page's own files and photos, nothing inline, nothing from outside.
const (
	pagePolicy  = "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	photoPolicy = "default-src 'none'; sandbox"
)

//go:embed kiosk
var kioskFiles embed.FS

// kiosk serves the page.
type kiosk struct {
	listener net.Listener
	loopback bool // listening on a loopback address only
	show     Show
	store    *store
	board    *board
	log      *slog.Logger
	pages    chan struct{} // a slot for each open event stream
}

// screen is what the page shows.
type screen struct {
	Paired  bool         `json:"paired"`
	Online  bool         `json:"online"`
	Partner string       `json:"partner"` // what to call them
	Photo   *screenPhoto `json:"photo"`   // the newest, null when there is none
	Note    *screenNote  `json:"note"`    // set when it is newer than the photo
}

type screenPhoto struct {
	Sender     string     `json:"sender"`
	Moment     string     `json:"moment"`
	Source     string     `json:"src"`
	From       string     `json:"from"`
	Caption    string     `json:"caption"`
	TakenAt    *time.Time `json:"takenAt"`
	ReceivedAt time.Time  `json:"receivedAt"`
}

type screenNote struct {
	From       string    `json:"from"`
	Text       string    `json:"text"`
	ReceivedAt time.Time `json:"receivedAt"`
}

// newKiosk returns the page's server on l, which it closes.
func newKiosk(l net.Listener, show Show, s *store, b *board, log *slog.Logger) *kiosk {
	k := &kiosk{listener: l, loopback: true, show: show, store: s, board: b, log: log, pages: make(chan struct{}, maxPages)}
	if addr, ok := l.Addr().(*net.TCPAddr); ok {
		k.loopback = addr.IP.IsLoopback()
	}
	return k
}

func (k *kiosk) addr() net.Addr { return k.listener.Addr() }

func (k *kiosk) close() error { return closeListener(k.listener) }

func (k *kiosk) run(ctx context.Context) error {
	// No WriteTimeout: event streams last. Each answer sets its own deadline.
	return serveHTTP(ctx, k.listener, &http.Server{Handler: k.handler(), ReadTimeout: pageTimeout}, k.log)
}

func (k *kiosk) handler() http.Handler {
	mux := http.NewServeMux()
	for path, file := range map[string]string{
		"/{$}": "index.html", "/kiosk.css": "kiosk.css", "/kiosk.js": "kiosk.js", "/icon.svg": "icon.svg",
	} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { k.file(w, r, file) })
	}
	mux.HandleFunc("GET /events", k.events)
	mux.HandleFunc("GET /photo", k.photo)
	mux.HandleFunc("POST /shown", func(w http.ResponseWriter, r *http.Request) { k.told(w, r, k.shown) })
	mux.HandleFunc("POST /broken", func(w http.ResponseWriter, r *http.Request) { k.told(w, r, k.broken) })
	return k.guard(mux)
}

// guard lets only the device's own page in. The Host check defeats DNS
// rebinding, for which a name is needed; the Origin and Fetch Metadata checks
// defeat requests from other pages in the same browser.
func (k *kiosk) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		origin := r.Header.Get("Origin")
		site := r.Header.Get("Sec-Fetch-Site")
		switch {
		case !k.ownHost(r.Host),
			origin != "" && origin != "http://"+r.Host,
			origin == "" && r.Method != http.MethodGet && r.Method != http.MethodHead,
			site != "" && site != "same-origin" && site != "none":
			http.Error(w, "only this device's own page may talk to it", http.StatusForbidden)
			return
		}
		if r.URL.Path != "/events" {
			http.NewResponseController(w).SetWriteDeadline(time.Now().Add(pageTimeout))
		}
		next.ServeHTTP(w, r)
	})
}

// ownHost reports whether host names this device without a DNS name.
func (k *kiosk) ownHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if name == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil && (ip.IsLoopback() || !k.loopback)
}

func (k *kiosk) file(w http.ResponseWriter, r *http.Request, name string) {
	b, err := fs.ReadFile(kioskFiles, "kiosk/"+name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
}

// screen returns what is to be shown now.
func (k *kiosk) screen(v view) (screen, error) {
	partner, paired := v.partner()
	s := screen{Paired: paired, Online: v.ready}
	if !paired {
		return s, nil
	}
	s.Partner = v.name(partner.ID)
	arrival := uint64(0)
	err := k.store.eachPhoto(func(r record) error {
		if r.Broken || r.Pair != v.Pair || (r.Sender != partner.ID && k.show != ShowBoth) {
			return nil
		}
		arrival = r.Arrival
		p := listed(r)
		query := url.Values{"sender": {r.Sender}, "moment": {r.Moment}}
		s.Photo = &screenPhoto{
			Sender: r.Sender, Moment: r.Moment, Source: "/photo?" + query.Encode(), From: v.name(r.Sender),
			Caption: r.Caption, TakenAt: p.TakenAt, ReceivedAt: r.ReceivedAt,
		}
		return badgerdb.ErrStop
	})
	if err != nil {
		return s, err
	}
	n, ok, err := k.store.newestNote(v.Pair)
	if ok && n.Arrival > arrival { // not by the time: a frame's clock jumps
		s.Note = &screenNote{From: v.name(n.Sender), Text: n.Text, ReceivedAt: n.ReceivedAt}
	}
	return s, err
}

// events streams the screen (HTML, section 9.2) until the page leaves.
func (k *kiosk) events(w http.ResponseWriter, r *http.Request) {
	select {
	case k.pages <- struct{}{}:
		defer func() { <-k.pages }()
	default:
		http.Error(w, "too many open pages", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	var last []byte
	for {
		v, changed := k.board.get()
		s, err := k.screen(v)
		if err != nil {
			k.log.Error("cannot tell the page what to show", "err", err)
			return
		}
		body, err := json.Marshal(s)
		if err != nil {
			k.log.Error("cannot tell the page what to show", "err", err)
			return
		}
		if !bytes.Equal(body, last) {
			last = body
			if sendEvent(w, out, "data: "+string(body)+"\n\n") != nil {
				return
			}
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		case <-ping.C:
			if sendEvent(w, out, ": ping\n\n") != nil {
				return
			}
		}
	}
}

func sendEvent(w http.ResponseWriter, out *http.ResponseController, text string) error {
	if err := out.SetWriteDeadline(time.Now().Add(pageTimeout)); err != nil {
		return err
	}
	if _, err := w.Write([]byte(text)); err != nil {
		return err
	}
	return out.Flush()
}

// photo serves a photo as the type it was verified to be.
func (k *kiosk) photo(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	rec, b, err := k.store.photo(q.Get("sender"), q.Get("moment"))
	switch {
	case errors.Is(err, errNoPhoto):
		http.NotFound(w, r)
		return
	case errors.Is(err, badgerdb.ErrDamaged):
		k.log.Error("photo is damaged on disk and was removed", "sender", q.Get("sender"), "moment", q.Get("moment"), "err", err)
		if err := k.store.forget(r.Context(), q.Get("sender"), q.Get("moment")); err != nil {
			k.log.Error("cannot remove the damaged photo", "err", err)
		}
		k.board.fault("a photo was damaged on disk and removed")
		http.NotFound(w, r)
		return
	case err != nil:
		k.log.Error("cannot read a photo", "err", err)
		http.Error(w, "cannot read the photo", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", rec.Type)
	h.Set("Content-Length", strconv.Itoa(len(b)))
	h.Set("Content-Security-Policy", photoPolicy)
	h.Set("Cache-Control", "private, max-age=86400, immutable")
	h.Set("ETag", `"`+rec.SHA256+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// told takes what the page says about a photo, and has it recorded.
func (k *kiosk) told(w http.ResponseWriter, r *http.Request, record func(ctx context.Context, sender, id string) (bool, error)) {
	var what struct{ Sender, Moment string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&what); err != nil {
		http.Error(w, `expected {"sender","moment"}`, http.StatusBadRequest)
		return
	}
	first, err := record(r.Context(), what.Sender, what.Moment)
	switch {
	case errors.Is(err, errNoPhoto):
		http.NotFound(w, r)
		return
	case err != nil:
		k.log.Error("cannot record what the page said", "path", r.URL.Path, "err", err)
		http.Error(w, "cannot record it", http.StatusInternalServerError)
		return
	}
	if first {
		k.board.touch()
	}
	w.WriteHeader(http.StatusNoContent)
}

// shown records that a photo has become visible, and tells its sender.
func (k *kiosk) shown(ctx context.Context, sender, id string) (first bool, err error) {
	v, _ := k.board.get()
	now := time.Now()
	return k.store.markShown(ctx, sender, id, now.UTC(), newReceipt(v.membership, sender, id, moment.StatusShown, now))
}

// broken records that a photo cannot be decoded.
func (k *kiosk) broken(ctx context.Context, sender, id string) (first bool, err error) {
	if first, err = k.store.markBroken(ctx, sender, id); first {
		k.log.Warn("photo cannot be shown", "sender", sender, "moment", id)
		k.board.fault("photo " + id + " of " + sender + ": the browser cannot decode it")
	}
	return first, err
}
