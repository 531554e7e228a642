package photo

import (
	"bytes"
	"image"
	"image/color"
	"testing"
)

func seeds(f *testing.F) {
	m := quarters(24, 16)
	f.Add(withSegments(jpegOf(f, m, 80), exifSegment(orientationTIFF(6)), profileSegments(profile("RGB ", 200))))
	f.Add(append(withSegments(jpegOf(f, m, 80), exifSegment(gpsTIFF()), app(markCOM, secret)), secret...))
	f.Add(jpegOf(f, image.NewGray(m.Rect), 80))
	f.Add(withChunk(pngOf(f, m), "eXIf", string(orientationTIFF(8))))
	f.Add(pngOf(f, image.NewNRGBA(m.Rect)))
	f.Add(gifOf(f, image.NewPaletted(m.Rect, color.Palette{red, blue})))
	f.Add(flatProgressive(24, 16))
	f.Add(solidWebP(24, 16, red))
	vp8l := appendChunk(nil, "VP8L", solidVP8L(24, 16, red))
	head := []byte{0, 0, 0, 0, 0, 0, 23, 0, 0, 15, 0, 0, 0, 0, 0, 0}
	f.Add(webpOf(appendChunk(nil, "VP8X", []byte{flagEXIF, 0, 0, 0, 23, 0, 0, 15, 0, 0}), vp8l, appendChunk(nil, "EXIF", gpsTIFF())))
	f.Add(webpOf(appendChunk(nil, "VP8X", []byte{2, 0, 0, 0, 23, 0, 0, 15, 0, 0}), appendChunk(nil, "ANMF", append(head, vp8l...))))
	f.Add([]byte("GIF89a"))
	f.Add([]byte("\x00\x00\x00\x18ftypheic"))
}

// fuzzLimits keep a fuzz run fast; nothing is allowed to cost more.
var fuzzLimits = Limits{MaxPixels: 1 << 16, MaxMemory: 4 << 20, MaxBytes: 1 << 20}

// FuzzCheck checks the walkers: what passes can be cleaned, what is clean
// stays as it is, and cleaning changes nothing that is shown.
func FuzzCheck(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := fuzzLimits.inspect(b)
		if err != nil {
			if countSentinels(err) != 1 {
				t.Fatalf("error %v wraps %d sentinels, want 1", err, countSentinels(err))
			}
			return
		}
		if h.Width < 1 || h.Height < 1 || h.Orientation < 1 || h.Orientation > 8 || h.pixelBytes < int64(h.Width*h.Height)/2 {
			t.Fatalf("impossible header %+v", h)
		}
		if h.Orientation != 1 {
			return
		}
		out, err := fuzzLimits.Clean(b)
		if err != nil {
			t.Fatalf("what passes cannot be cleaned: %v", err)
		}
		clean, err := fuzzLimits.inspect(out)
		if err != nil {
			t.Fatalf("a cleaned photo is refused: %v", err)
		}
		if clean.metadata || clean.private || clean.Info != h.Info || !bytes.Equal(clean.profile, h.profile) {
			t.Fatalf("before %+v, cleaned %+v", h, clean)
		}
		before, errBefore := decode(b, h)
		after, errAfter := decode(out, clean)
		if errBefore == nil && (errAfter != nil || !samePixels(before, after)) {
			t.Fatalf("cleaning changed the picture (error %v)", errAfter)
		}
	})
}

func samePixels(a, b image.Image) bool {
	if a.Bounds() != b.Bounds() {
		return false
	}
	for y := a.Bounds().Min.Y; y < a.Bounds().Max.Y; y++ {
		for x := a.Bounds().Min.X; x < a.Bounds().Max.X; x++ {
			if a.At(x, y) != b.At(x, y) {
				return false
			}
		}
	}
	return true
}

// FuzzPrepare checks that whatever comes out is a JPEG within the preset.
func FuzzPrepare(f *testing.F) {
	seeds(f)
	p := Preset{Width: 12, Height: 20, Quality: 80, MaxBytes: 4 << 10}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, fit := range []Fit{Contain, Cover} {
			if out, err := fuzzLimits.Render(b, 10, 7, fit); err == nil {
				checkResult(t, out, 10, 7)
			} else if countSentinels(err) != 1 {
				t.Fatalf("render: error %v wraps %d sentinels", err, countSentinels(err))
			}
		}
		out, contentType, err := fuzzLimits.Prepare(b, p)
		if err != nil {
			if countSentinels(err) != 1 {
				t.Fatalf("prepare: error %v wraps %d sentinels", err, countSentinels(err))
			}
			return
		}
		if len(out) > p.MaxBytes || contentType != JPEG {
			t.Fatalf("got %d bytes of %s", len(out), contentType)
		}
		checkResult(t, out, p.Height, p.Height)
	})
}

func checkResult(t *testing.T, out []byte, w, h int) {
	t.Helper()
	head, err := Limits{}.inspect(out)
	if err != nil || head.ContentType != JPEG || head.Width > w || head.Height > h || head.Orientation != 1 || head.private {
		t.Fatalf("got %+v, error %v", head, err)
	}
	if _, err := decode(out, head); err != nil {
		t.Fatal(err)
	}
}

// FuzzEXIF checks that any block gives an orientation, and that one appended
// to stays readable.
func FuzzEXIF(f *testing.F) {
	f.Add(orientationTIFF(6))
	f.Add(gpsTIFF())
	f.Add([]byte("II*\x00\x08\x00\x00\x00\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e := parseEXIF(b)
		if e.orientation < 1 || e.orientation > 8 {
			t.Fatalf("orientation %d", e.orientation)
		}
		if more := parseEXIF(append(bytes.Clone(b), 0)); !e.private && more != e {
			t.Fatalf("got %+v, with a byte more %+v", e, more)
		}
	})
}
