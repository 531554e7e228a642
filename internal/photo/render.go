package photo

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
)

// Fit says how a rendition fills the size that was asked for.
type Fit string

const (
	// Contain shows the whole photo, as large as fits.
	Contain Fit = "contain"
	// Cover fills the size and cuts off what is too much, evenly.
	Cover Fit = "cover"
)

const (
	renderQuality = 85
	cleanQuality  = 90 // for what has to be turned, or has no encoder here
)

// Render returns a JPEG of at most w×h pixels, upright, without metadata but
// its colour profile. A w or h of 0 sets no bound. Nothing is enlarged: a
// smaller photo keeps its size, under Cover its size in the shape asked for.
// Transparent parts become white. b is not modified. It fails like Check, and
// on a negative size or unknown fit.
func Render(b []byte, w, h int, fit Fit) ([]byte, error) { return Limits{}.Render(b, w, h, fit) }

// Render is the function Render with the limits l.
func (l Limits) Render(b []byte, w, h int, fit Fit) ([]byte, error) {
	if w < 0 || h < 0 || fit != Contain && fit != Cover {
		return nil, fmt.Errorf("rendition of %d×%d, fit %q: not possible", w, h, fit)
	}
	head, err := l.inspect(b)
	if err != nil {
		return nil, err
	}
	w, h = turned(w, h, head.Orientation) // from here on as the photo is stored
	m, err := l.shrink(b, head, func(size image.Point) (image.Rectangle, image.Point) {
		return place(size, w, h, fit)
	})
	if err != nil {
		return nil, err
	}
	return encodeJPEG(m, head.profile, renderQuality, 0)
}

// Clean returns the photo upright and without location or other metadata; its
// colour profile stays. An upright photo keeps its format, its animation and
// the very bytes of its picture. One that has to be turned is encoded anew: a
// PNG as PNG, everything else as JPEG. A photo that is clean already is
// returned as it is, the same slice. It fails like Check.
func Clean(b []byte) ([]byte, error) { return Limits{}.Clean(b) }

// Clean is the function Clean with the limits l.
func (l Limits) Clean(b []byte) ([]byte, error) {
	head, err := l.inspect(b)
	if err != nil {
		return nil, err
	}
	if head.Orientation != 1 {
		return l.turn(b, head)
	}
	if !head.metadata {
		return b, nil
	}
	switch head.ContentType {
	case JPEG:
		return cleanJPEG(b)
	case PNG:
		return cleanPNG(b)
	case WebP:
		return cleanWebP(b)
	}
	return cleanGIF(b)
}

// turn encodes a photo anew, upright, in full size.
func (l Limits) turn(b []byte, head header) ([]byte, error) {
	m, err := l.shrink(b, head, func(size image.Point) (image.Rectangle, image.Point) {
		return image.Rectangle{Max: size}, size
	})
	if err != nil {
		return nil, err
	}
	if head.ContentType != PNG {
		return encodeJPEG(m, head.profile, cleanQuality, 0)
	}
	var out bytes.Buffer
	if err := png.Encode(&out, m); err != nil {
		return nil, fmt.Errorf("encode PNG: %w", err)
	}
	return out.Bytes(), nil
}

// place works out which part of a photo of the given size is shown, and in
// what size.
func place(size image.Point, w, h int, fit Fit) (crop image.Rectangle, out image.Point) {
	crop, out = image.Rectangle{Max: size}, size
	if fit == Cover && w > 0 && h > 0 {
		part := image.Pt(min(size.X, scaled(size.Y, w, h)), min(size.Y, scaled(size.X, h, w)))
		crop = image.Rectangle{Max: part}.Add(size.Sub(part).Div(2))
		return crop, image.Pt(min(w, part.X), min(h, part.Y))
	}
	if w > 0 && out.X > w {
		out = image.Pt(w, scaled(size.Y, w, size.X))
	}
	if h > 0 && out.Y > h {
		out = image.Pt(min(out.X, scaled(size.X, h, size.Y)), h)
	}
	return crop, out
}

// scaled returns n·num/den, rounded, at least 1.
func scaled(n, num, den int) int {
	return int(max(1, (int64(n)*int64(num)+int64(den)/2)/int64(den)))
}

// shrink decodes b and returns the part and size that place chooses, upright.
func (l Limits) shrink(b []byte, head header, place func(size image.Point) (image.Rectangle, image.Point)) (image.Image, error) {
	crop, out := place(image.Pt(head.Width, head.Height))
	if err := l.checkMemory(head.pixelBytes + scratch(crop, out, head.Orientation)); err != nil {
		return nil, err
	}
	m, err := decode(b, head)
	if err != nil {
		return nil, err
	}
	crop, out = place(m.Bounds().Size()) // a GIF's frame may be smaller than its canvas
	crop = crop.Add(m.Bounds().Min)
	if crop == m.Bounds() && out == crop.Size() && head.Orientation == 1 && encodable(m) {
		return m, nil
	}
	return upright(resize(m, crop, out.X, out.Y), head.Orientation), nil
}

// scratch returns what resize and upright allocate, in bytes.
func scratch(crop image.Rectangle, out image.Point, orientation int) int64 {
	need := 4 * int64(out.X) * int64(out.Y)
	if orientation != 1 {
		need *= 2
	}
	if k := min(crop.Dx()/out.X, crop.Dy()/out.Y); k > 1 {
		need += 4 * int64(crop.Dx()/k) * int64(crop.Dy()/k)
	}
	return need
}

var errOverLimit = errors.New("over the limit")

// limited is a buffer that refuses to grow over most bytes; 0 is no limit.
type limited struct {
	bytes.Buffer
	most int
}

func (w *limited) Write(p []byte) (int, error) {
	if w.most > 0 && w.Len()+len(p) > w.most {
		return 0, errOverLimit
	}
	return w.Buffer.Write(p)
}

// encodeJPEG encodes m with its colour profile, nil for none. It fails with
// errOverLimit when the result would be larger than most bytes; 0 is no limit.
func encodeJPEG(m image.Image, profile []byte, quality, most int) ([]byte, error) {
	segments := profileSegments(profile)
	if most > 0 && most <= len(segments) {
		return nil, errOverLimit
	}
	out := limited{most: most}
	if most > 0 {
		out.most = most - len(segments)
	}
	if err := jpeg.Encode(&out, m, &jpeg.Options{Quality: quality}); err != nil {
		if errors.Is(err, errOverLimit) {
			return nil, errOverLimit
		}
		return nil, fmt.Errorf("encode JPEG: %w", err)
	}
	if len(segments) == 0 {
		return out.Bytes(), nil
	}
	b := out.Bytes()
	whole := append(make([]byte, 0, len(b)+len(segments)), b[:2]...) // SOI
	whole = append(whole, segments...)
	return append(whole, b[2:]...), nil
}
