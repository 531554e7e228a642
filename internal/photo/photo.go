// Package photo looks at, shrinks and cleans the photos that people send each
// other: JPEG, PNG, WebP and GIF. The bytes are from outside and may be
// hostile; what they would cost is worked out from their headers before
// anything is decoded.
//
// It does no I/O and keeps no state, so every function is safe for concurrent
// use. A decoded photo is large all the same (about 40 MB while a 12-megapixel
// JPEG is made ready, up to Limits.MaxMemory in the worst case): callers
// that care about memory run one Prepare, Render or Clean at a time.
//
// It does not edit or convert colours: a colour profile travels with the
// pixels. It shows the first frame of an animation only, and reads no HEIC.
package photo

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/gif"
	"image/jpeg"
	"image/png"

	"golang.org/x/image/webp"
)

// The content types of the formats that are read.
const (
	JPEG = "image/jpeg"
	PNG  = "image/png"
	WebP = "image/webp"
	GIF  = "image/gif"
	heic = "image/heic"
)

// Why a photo is refused. Every error about a photo's bytes wraps exactly one
// of them; none is worth a retry with the same bytes.
var (
	// ErrUnknownFormat: the bytes do not begin like any format that is read.
	ErrUnknownFormat = errors.New("not a photo that can be read (JPEG, PNG, WebP and GIF can)")
	// ErrHEIC: it is an HEIC photo, which the phone has to convert.
	ErrHEIC = errors.New("HEIC photos cannot be read: send it as JPEG")
	// ErrTooLarge: more bytes, pixels or memory than the limits allow, or
	// impossible to bring under the preset's size.
	ErrTooLarge = errors.New("photo is too large")
	// ErrBroken: it begins like a photo and cannot be read to its end.
	ErrBroken = errors.New("photo is damaged")
)

// The limits where a Limits names none.
const (
	DefaultMaxBytes  = 32 << 20
	DefaultMaxPixels = 50_000_000
	// DefaultMaxMemory is what decoding and scaling may allocate. It admits 50
	// megapixels of ordinary JPEG, and 24 of progressive JPEG, which costs
	// five times as much.
	DefaultMaxMemory = 256 << 20
)

// maxSide refuses what has few pixels but no sensible shape (1×100,000).
const maxSide = 30_000

// Limits bound what a photo may cost. A zero field means its default. Its
// methods do what the functions of the same name do with the defaults.
type Limits struct {
	MaxBytes  int // of the photo as it came
	MaxPixels int
	MaxMemory int // bytes allocated at once for the pixels, estimated from above
}

func (l Limits) withDefaults() Limits {
	if l.MaxBytes == 0 {
		l.MaxBytes = DefaultMaxBytes
	}
	if l.MaxPixels == 0 {
		l.MaxPixels = DefaultMaxPixels
	}
	if l.MaxMemory == 0 {
		l.MaxMemory = DefaultMaxMemory
	}
	return l
}

// Info is what a photo says of itself.
type Info struct {
	ContentType string // JPEG, PNG, WebP or GIF
	// Width and Height are in pixels as stored, before Orientation. Of a GIF
	// they are the canvas, which may be larger than its first frame.
	Width, Height int
	Orientation   int // EXIF 1..8; 1 is upright, also where nothing is said
}

// Upright returns the size as it is shown, after Orientation.
func (i Info) Upright() (width, height int) { return turned(i.Width, i.Height, i.Orientation) }

// Sniff tells the content type by the first bytes. ok is false for everything
// that is not read; the type is then empty, or "image/heic" for HEIC.
func Sniff(b []byte) (contentType string, ok bool) {
	has := func(at int, s string) bool { return len(b) >= at+len(s) && string(b[at:at+len(s)]) == s }
	switch {
	case has(0, "\xff\xd8\xff"):
		return JPEG, true
	case has(0, pngSignature):
		return PNG, true
	case has(0, "RIFF") && has(8, "WEBP"):
		return WebP, true
	case has(0, "GIF87a"), has(0, "GIF89a"):
		return GIF, true
	case has(4, "ftyp"):
		for _, brand := range []string{"heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1"} {
			if has(8, brand) {
				return heic, false
			}
		}
	}
	return "", false
}

// Check reads a photo's headers and structure, decodes nothing, and costs
// next to no memory. It fails with ErrUnknownFormat, ErrHEIC, ErrTooLarge or
// ErrBroken. A photo that passes can still turn out to be broken when it is
// decoded.
func Check(b []byte, lim Limits) (Info, error) { return lim.Check(b) }

// Check is the function Check with the limits l.
func (l Limits) Check(b []byte) (Info, error) {
	h, err := l.inspect(b)
	return h.Info, err
}

// header is everything that is known without decoding.
type header struct {
	Info
	pixelBytes int64  // what decoding allocates, estimated from above
	profile    []byte // the RGB colour profile (ICC); nil if there is none
	private    bool   // holds, or may hold, a location
	metadata   bool   // holds anything that Clean drops
}

func (l Limits) inspect(b []byte) (header, error) {
	l = l.withDefaults()
	contentType, ok := Sniff(b)
	switch {
	case contentType == heic:
		return header{}, ErrHEIC
	case !ok:
		return header{}, ErrUnknownFormat
	case len(b) > l.MaxBytes:
		return header{}, fmt.Errorf("%w: %d bytes (at most %d)", ErrTooLarge, len(b), l.MaxBytes)
	}
	// The decoder's own view of the size comes first: it is the one that counts.
	c, err := decodeConfig(b, contentType)
	if err != nil {
		return header{}, broken(err)
	}
	if err := l.checkSize(c.Width, c.Height); err != nil {
		return header{}, err
	}
	h := header{Info: Info{ContentType: contentType, Width: c.Width, Height: c.Height, Orientation: 1}}
	switch contentType {
	case JPEG:
		err = inspectJPEG(b, &h)
	case PNG:
		err = inspectPNG(b, &h)
	case WebP:
		err = inspectWebP(b, &h)
	case GIF:
		err = inspectGIF(b, &h)
	}
	if err != nil {
		return header{}, err
	}
	return h, l.checkMemory(h.pixelBytes)
}

func (l Limits) checkSize(w, h int) error {
	switch {
	case w <= 0 || h <= 0:
		return broken(fmt.Errorf("size %d×%d", w, h))
	case w > maxSide || h > maxSide:
		return fmt.Errorf("%w: %d×%d pixels (at most %d on a side)", ErrTooLarge, w, h, maxSide)
	case int64(w)*int64(h) > int64(l.MaxPixels):
		return fmt.Errorf("%w: %d×%d pixels (at most %d in all)", ErrTooLarge, w, h, l.MaxPixels)
	}
	return nil
}

func (l Limits) checkMemory(need int64) error {
	if limit := l.withDefaults().MaxMemory; need > int64(limit) {
		return fmt.Errorf("%w: it needs %d MiB of memory (at most %d)", ErrTooLarge, need>>20, limit>>20)
	}
	return nil
}

func broken(err error) error { return fmt.Errorf("%w: %w", ErrBroken, err) }

// guard turns a panic of a decoder into an error: a photo from outside must
// not end the process, whatever bug of a decoder it finds.
func guard(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("decoder: %v", r)
	}
}

func decodeConfig(b []byte, contentType string) (c image.Config, err error) {
	defer guard(&err)
	r := bytes.NewReader(b)
	switch contentType {
	case JPEG:
		return jpeg.DecodeConfig(r)
	case PNG:
		return png.DecodeConfig(r)
	case GIF:
		return gif.DecodeConfig(r)
	}
	return webp.DecodeConfig(r)
}

// decode decodes b, whose header passed inspect: the first frame only.
func decode(b []byte, h header) (image.Image, error) {
	m, err := decodeFrame(b, h.ContentType)
	if err != nil {
		return nil, broken(err)
	}
	if s := m.Bounds().Size(); s.X > h.Width || s.Y > h.Height || s.X < 1 || s.Y < 1 {
		return nil, broken(fmt.Errorf("decoded to %v, the header says %d×%d", s, h.Width, h.Height))
	}
	return m, nil
}

func decodeFrame(b []byte, contentType string) (m image.Image, err error) {
	defer guard(&err)
	switch contentType {
	case JPEG:
		return jpeg.Decode(bytes.NewReader(b))
	case PNG:
		return png.Decode(bytes.NewReader(b))
	case GIF:
		return gif.Decode(bytes.NewReader(b))
	}
	if b, err = firstFrame(b); err != nil {
		return nil, err
	}
	return webp.Decode(bytes.NewReader(b))
}
