package photo

import (
	"bytes"
	"errors"
	"image"
	"math/rand/v2"
	"testing"
)

// noisy is a picture that compresses badly.
func noisy(w, h int) *image.RGBA {
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range m.Pix {
		m.Pix[i] = byte(rnd.Uint32())
	}
	for i := 3; i < len(m.Pix); i += 4 {
		m.Pix[i] = 0xff
	}
	return m
}

func TestPrepareUnchanged(t *testing.T) {
	plain := jpegOf(t, quarters(300, 200), 90)
	taken := withSegments(plain, exifSegment(orientationTIFF(1)), profileSegments(profile("RGB ", 600)))
	private := withSegments(plain, exifSegment(gpsTIFF()))
	for name, test := range map[string]struct{ b, want []byte }{
		"plain":               {plain, plain},
		"without a place":     {taken, taken},
		"with a place":        {private, plain},
		"with a comment":      {withSegments(plain, app(markCOM, secret)), plain},
		"with a film":         {append(bytes.Clone(plain), secret...), plain},
		"fits when cleaned":   {withSegments(plain, app(markAPPF, string(make([]byte, 60_000))), app(markAPPF, string(make([]byte, 60_000)))), plain},
		"unreadable metadata": {withSegments(plain, exifSegment([]byte("?"))), plain},
	} {
		p := Default
		p.MaxBytes = 100_000
		out, contentType, err := Prepare(test.b, p)
		if err != nil || contentType != JPEG || !bytes.Equal(out, test.want) {
			t.Errorf("%s: got %d bytes of %s, error %v; want %d", name, len(out), contentType, err, len(test.want))
		}
		if bytes.Equal(test.b, test.want) && &out[0] != &test.b[0] {
			t.Errorf("%s: it was copied", name)
		}
	}
	// What fits and is broken inside is refused all the same.
	b := bytes.Clone(plain)
	scan := bytes.Index(b, []byte{0xff, markSOS})
	for i := scan + 20; i < len(b)-2; i++ {
		b[i] = 0
	}
	if _, _, err := Prepare(b, Default); !errors.Is(err, ErrBroken) {
		t.Errorf("broken inside: got %v, want %v", err, ErrBroken)
	}
}

func TestPrepareFits(t *testing.T) {
	for name, test := range map[string]struct {
		b    []byte
		p    Preset
		want image.Point
	}{
		"stands":               {jpegOf(t, quarters(600, 1200), 90), Preset{100, 200, 85, 1 << 20}, image.Pt(100, 200)},
		"lies":                 {jpegOf(t, quarters(1200, 600), 90), Preset{100, 200, 85, 1 << 20}, image.Pt(200, 100)},
		"lies, but is turned":  {withSegments(jpegOf(t, stored(quarters(1200, 600), 6), 90), exifSegment(orientationTIFF(6))), Preset{100, 200, 85, 1 << 20}, image.Pt(200, 100)},
		"square":               {jpegOf(t, quarters(600, 600), 90), Preset{100, 200, 85, 1 << 20}, image.Pt(100, 100)},
		"small":                {pngOf(t, quarters(50, 30)), Default, image.Pt(50, 30)},
		"webp":                 {solidWebP(300, 200, red), Preset{150, 150, 85, 1 << 20}, image.Pt(150, 100)},
		"needs lower quality":  {jpegOf(t, noisy(300, 300), 95), Preset{300, 300, 85, 70_000}, image.Pt(300, 300)},
		"needs a smaller size": {jpegOf(t, noisy(300, 300), 95), Preset{300, 300, 85, 20_000}, image.Pt(225, 225)},
		"low quality asked":    {jpegOf(t, noisy(300, 300), 95), Preset{200, 300, 10, 200_000}, image.Pt(200, 200)},
	} {
		out, contentType, err := Prepare(test.b, test.p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		info, err := Check(out, Limits{})
		if err != nil || contentType != JPEG || info != (Info{JPEG, test.want.X, test.want.Y, 1}) || len(out) > test.p.MaxBytes {
			t.Errorf("%s: got %+v in %d bytes, error %v; want %v", name, info, len(out), err, test.want)
		}
	}
	if _, _, err := Prepare(jpegOf(t, noisy(100, 100), 90), Preset{100, 100, 85, 100}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("impossible size: got %v, want %v", err, ErrTooLarge)
	}
	for _, p := range []Preset{{}, {0, 1, 85, 1}, {1, 1, 101, 1}, {1, 1, 0, 1}, {1, 1, 85, 0}} {
		if _, _, err := Prepare(jpegOf(t, quarters(10, 10), 90), p); err == nil || countSentinels(err) != 0 {
			t.Errorf("preset %+v: got %v, want an error about the preset", p, err)
		}
	}
}

// TestPrepareTwice checks that what was prepared is not changed again.
func TestPrepareTwice(t *testing.T) {
	p := Preset{Width: 160, Height: 240, Quality: 85, MaxBytes: 10_000}
	once, _, err := Prepare(jpegOf(t, noisy(400, 240), 90), p)
	if err != nil {
		t.Fatal(err)
	}
	twice, _, err := Prepare(once, p)
	if err != nil || &twice[0] != &once[0] {
		t.Errorf("a prepared photo was changed again (error %v)", err)
	}
}
