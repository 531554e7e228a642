package daemon

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/photo"
	"pairsync/internal/token"
)

// maxRenditionSide bounds what a widget may ask for: 4K.
const maxRenditionSide = 4096

// serveMoment answers GET /moments/{user}/{moment}: a photo of the caller's
// pair as it was sent, or with w and h a JPEG rendition that fits (fit=contain,
// the default) or fills (fit=cover) them, upright and without metadata.
func (d *Daemon) serveMoment(w http.ResponseWriter, r *http.Request) {
	raw, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	who, err := d.verifier.Verify(r.Context(), raw)
	if err != nil {
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	width, height, fit, err := renditionOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e, err := d.photoFor(r, who)
	if errors.Is(err, ledger.ErrNotFound) {
		http.Error(w, "no such photo in your pair", http.StatusNotFound)
		return
	}
	body, contentType := e.Payload, ""
	if err == nil {
		contentType, body, err = d.render(r, body, width, height, fit)
	}
	if err != nil {
		d.log.Warn("photo not served", "error", err)
		http.Error(w, "the photo cannot be shown", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "private, max-age=86400")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // a widget that has gone asks again
}

// photoFor reads the photo that r names, if it belongs to who's pair.
func (d *Daemon) photoFor(r *http.Request, who token.Principal) (ledger.Entry, error) {
	sender, id := r.PathValue("user"), r.PathValue("moment")
	pair, ok := d.registry.PairOf(who.User)
	if !ok || who.Pair != "" && who.Pair != pair.ID || sender != pair.Users[0] && sender != pair.Users[1] {
		return ledger.Entry{}, ledger.ErrNotFound
	}
	e, err := d.ledger.Lookup(r.Context(), ledger.PairLog(pair.ID), moment.Key{User: sender, Kind: moment.Photo, ID: id})
	if err == nil && e.Damaged {
		err = errors.New("the stored photo is damaged")
	}
	return e, err
}

// render makes the rendition, one at a time: decoding is what costs memory.
func (d *Daemon) render(r *http.Request, b []byte, width, height int, fit photo.Fit) (contentType string, out []byte, err error) {
	contentType, ok := photo.Sniff(b)
	if !ok {
		return "", nil, photo.ErrUnknownFormat
	}
	if width == 0 {
		return contentType, b, nil
	}
	select {
	case d.rendering <- struct{}{}:
	case <-r.Context().Done():
		return "", nil, r.Context().Err()
	}
	defer func() { <-d.rendering }()
	out, err = photo.Render(b, width, height, fit)
	return photo.JPEG, out, err
}

// renditionOf reads w, h, fit and format; zero sizes ask for the photo itself.
func renditionOf(r *http.Request) (width, height int, fit photo.Fit, err error) {
	q := r.URL.Query()
	fit = photo.Contain
	switch f := q.Get("fit"); f {
	case "", string(photo.Contain):
	case string(photo.Cover):
		fit = photo.Cover
	default:
		return 0, 0, fit, fmt.Errorf("fit %q is neither contain nor cover", f)
	}
	if f := q.Get("format"); f != "" && f != "jpeg" {
		return 0, 0, fit, fmt.Errorf("format %q is not jpeg", f)
	}
	if q.Get("w") == "" && q.Get("h") == "" {
		return 0, 0, fit, nil
	}
	for name, v := range map[string]*int{"w": &width, "h": &height} {
		if *v, err = strconv.Atoi(q.Get(name)); err != nil || *v < 1 || *v > maxRenditionSide {
			return 0, 0, fit, fmt.Errorf("w and h go together, each 1 to %d", maxRenditionSide)
		}
	}
	return width, height, fit, nil
}
