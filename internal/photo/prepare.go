package photo

import (
	"errors"
	"fmt"
	"image"
)

// Preset is what a photo is made to fit before it is sent.
type Preset struct {
	// Width and Height bound a photo that stands upright; one that lies is
	// bound by the same two the other way round.
	Width, Height int
	Quality       int // of the JPEG, 1..100; lowered where MaxBytes demands it
	MaxBytes      int
}

// The presets of the contract; nobody changes them.
var (
	// Default suits phones and frames.
	Default = Preset{Width: 1080, Height: 1920, Quality: 85, MaxBytes: 1 << 20}
	// High keeps more detail.
	High = Preset{Width: 1920, Height: 1920, Quality: 95, MaxBytes: 2 << 20}
)

const (
	// minQuality is where blocks begin to show: below it, fewer pixels look
	// better than a lower quality.
	minQuality  = 45
	qualityStep = 10
	minSide     = 16 // where a preset's MaxBytes is given up as impossible
)

// Prepare makes a photo ready to be sent: upright, without location, within
// the preset. The result is always a JPEG, never larger in pixels than r. To
// fit MaxBytes the quality is lowered first, then the size.
//
// A JPEG that fits, is upright and says nothing of where it was taken is
// returned unchanged, the same slice; where only the metadata is in the way it
// loses that and its picture's bytes stay. It fails like Check, and with
// ErrTooLarge where nothing fits MaxBytes.
func Prepare(r []byte, p Preset) (out []byte, contentType string, err error) {
	return Limits{}.Prepare(r, p)
}

// Prepare is the function Prepare with the limits l.
func (l Limits) Prepare(r []byte, p Preset) (out []byte, contentType string, err error) {
	if p.Width < 1 || p.Height < 1 || p.Quality < 1 || p.Quality > 100 || p.MaxBytes < 1 {
		return nil, "", fmt.Errorf("preset %+v: not possible", p)
	}
	head, err := l.inspect(r)
	if err != nil {
		return nil, "", err
	}
	size := p.size(head)
	if head.ContentType == JPEG && head.Orientation == 1 && size == image.Pt(head.Width, head.Height) {
		if out, err := keepPicture(r, head, p.MaxBytes); out != nil || err != nil {
			return out, JPEG, err
		}
	}
	m, err := l.shrink(r, head, func(have image.Point) (image.Rectangle, image.Point) {
		return image.Rectangle{Max: have}, image.Pt(min(have.X, size.X), min(have.Y, size.Y))
	})
	if err != nil {
		return nil, "", err
	}
	out, err = fitBytes(m, head.profile, p)
	return out, JPEG, err
}

// size returns the size that p gives a photo, as it is stored.
func (p Preset) size(h header) image.Point {
	short, long := min(p.Width, p.Height), max(p.Width, p.Height)
	if h.Width > h.Height { // turning changes nothing about which side is longer
		short, long = long, short
	}
	_, out := place(image.Pt(h.Width, h.Height), short, long, Contain)
	return out
}

// keepPicture returns r, or r without its metadata, if that is at most most
// bytes; else nil. It decodes the picture, because what is broken is not sent.
func keepPicture(r []byte, head header, most int) ([]byte, error) {
	out := r
	if head.private {
		var err error
		if out, err = cleanJPEG(r); err != nil {
			return nil, err
		}
	}
	if len(out) > most {
		return nil, nil
	}
	if _, err := decode(r, head); err != nil {
		return nil, err
	}
	return out, nil
}

// fitBytes encodes m so that it fits p.MaxBytes.
func fitBytes(m image.Image, profile []byte, p Preset) ([]byte, error) {
	for {
		for q := p.Quality; q == p.Quality || q >= minQuality; q -= qualityStep {
			out, err := encodeJPEG(m, profile, q, p.MaxBytes)
			if !errors.Is(err, errOverLimit) {
				return out, err
			}
		}
		size := m.Bounds().Size()
		w, h := size.X*3/4, size.Y*3/4
		if min(w, h) < 1 || max(w, h) < minSide {
			return nil, fmt.Errorf("%w: it cannot be made smaller than %d bytes", ErrTooLarge, p.MaxBytes)
		}
		m = resize(m, m.Bounds(), w, h)
	}
}
