package photo

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/jpeg"
	"runtime"
	"testing"
)

// TestOrientations sends every orientation in every format that can carry one
// through everything that must turn it upright.
func TestOrientations(t *testing.T) {
	m := quarters(96, 64)
	for o := range 9 { // 0 says nothing
		raw := m
		if o > 0 {
			raw = stored(m, o)
		}
		for format, b := range map[string][]byte{
			"jpeg": withSegments(jpegOf(t, raw, 95), exifSegment(orientationTIFF(o))),
			"png":  withChunk(pngOf(t, raw), "eXIf", string(orientationTIFF(o))),
		} {
			results := map[string][]byte{}
			var err [4]error
			results["render"], err[0] = Render(b, 48, 48, Contain)
			results["cover"], err[1] = Render(b, 30, 20, Cover)
			results["clean"], err[2] = Clean(b)
			results["prepare"], _, err[3] = Prepare(b, Default)
			if err != [4]error{} {
				t.Fatalf("%s, orientation %d: %v", format, o, err)
			}
			for what, want := range map[string]image.Point{"render": {48, 32}, "cover": {30, 20}, "clean": {96, 64}, "prepare": {96, 64}} {
				t.Run(fmt.Sprint(format, o, what), func(t *testing.T) {
					info, err := Check(results[what], Limits{})
					if err != nil || info.Orientation != 1 {
						t.Fatalf("result has orientation %d, error %v", info.Orientation, err)
					}
					got := decoded(t, results[what])
					if got.Bounds().Size() != want {
						t.Errorf("got %v, want %v", got.Bounds().Size(), want)
					}
					checkQuarters(t, got)
				})
			}
		}
	}
}

func TestRenderSizes(t *testing.T) {
	b := jpegOf(t, quarters(400, 300), 90)
	for _, test := range []struct {
		w, h, wantW, wantH int
		fit                Fit
	}{
		{200, 200, 200, 150, Contain},
		{200, 60, 80, 60, Contain},
		{0, 150, 200, 150, Contain},
		{100, 0, 100, 75, Contain},
		{0, 0, 400, 300, Contain},
		{0, 0, 400, 300, Cover},
		{1000, 1000, 400, 300, Contain}, // never enlarged
		{399, 299, 399, 299, Contain},
		{1, 1, 1, 1, Contain},
		{100, 100, 100, 100, Cover},
		{50, 200, 50, 200, Cover},
		{800, 400, 400, 200, Cover}, // the shape, not the size
		{300, 400, 225, 300, Cover},
		{1, 0, 1, 1, Cover},
	} {
		out, err := Render(b, test.w, test.h, test.fit)
		if err != nil {
			t.Errorf("%+v: %v", test, err)
			continue
		}
		m := decoded(t, out)
		if got := m.Bounds().Size(); got != image.Pt(test.wantW, test.wantH) {
			t.Errorf("%+v: got %v", test, got)
		}
		if test.wantW > 1 {
			checkQuarters(t, m)
		}
	}
	for _, test := range []struct {
		w, h int
		fit  Fit
	}{{-1, 10, Contain}, {10, -1, Cover}, {10, 10, ""}, {10, 10, "stretch"}} {
		if _, err := Render(b, test.w, test.h, test.fit); err == nil {
			t.Errorf("%+v: no error", test)
		}
	}
}

func TestThinPhotos(t *testing.T) {
	for _, size := range []image.Point{{20_000, 1}, {1, 20_000}, {1, 1}, {7919, 3}} {
		b := jpegOf(t, quarters(size.X, size.Y), 90)
		for _, fit := range []Fit{Contain, Cover} {
			if _, err := Render(b, 100, 100, fit); err != nil {
				t.Errorf("%v, %s: %v", size, fit, err)
			}
		}
		if _, _, err := Prepare(b, Default); err != nil {
			t.Errorf("prepare %v: %v", size, err)
		}
	}
}

// TestAverage checks that shrinking looks at every pixel: a fine pattern
// becomes its mean, in every kind of image that the decoders return.
func TestAverage(t *testing.T) {
	r := image.Rect(3, 5, 3+240, 5+180) // not at the origin, on purpose
	for name, m := range map[string]draw.Image{
		"rgba":     image.NewRGBA(r),
		"nrgba":    image.NewNRGBA(r),
		"gray":     image.NewGray(r),
		"gray16":   image.NewGray16(r),
		"rgba64":   image.NewRGBA64(r),
		"cmyk":     image.NewCMYK(r),
		"paletted": image.NewPaletted(r, color.Palette{color.Black, color.White}),
	} {
		for y := r.Min.Y; y < r.Max.Y; y++ {
			for x := r.Min.X; x < r.Max.X; x++ {
				m.Set(x, y, color.Gray{Y: uint8(255 * ((x + y) % 2))})
			}
		}
		for _, w := range []int{1, 7, 30, 60, 100} {
			got := resize(m, r, w, max(1, w*3/4))
			for i, v := range got.Pix {
				if i%4 == 3 && v != 255 || i%4 != 3 && (v < 100 || v > 155) {
					t.Fatalf("%s to %d: byte %d is %d, want a middle grey", name, w, i, v)
				}
			}
		}
	}
}

func TestTransparentBecomesWhite(t *testing.T) {
	m := image.NewNRGBA(image.Rect(0, 0, 90, 90)) // all transparent
	draw.Draw(m, image.Rect(0, 0, 45, 90), image.NewUniform(red), image.Point{}, draw.Src)
	for _, w := range []int{90, 60, 10} {
		out, err := Render(pngOf(t, m), w, w, Contain)
		if err != nil {
			t.Fatal(err)
		}
		got := decoded(t, out)
		if left, right := got.At(w/4, w/2), got.At(w*3/4, w/2); !near(left, red) || !near(right, white) {
			t.Errorf("at %d: got %v and %v, want red and white", w, left, right)
		}
	}
}

func TestFirstFrames(t *testing.T) {
	frame := func(w, h int, c color.RGBA) []byte {
		head := []byte{0, 0, 0, 0, 0, 0, byte(w - 1), 0, 0, byte(h - 1), 0, 0, 100, 0, 0, 0}
		return appendChunk(nil, "ANMF", append(head, appendChunk(nil, "VP8L", solidVP8L(w, h, c))...))
	}
	vp8x := appendChunk(nil, "VP8X", []byte{1 << 1, 0, 0, 0, 39, 0, 0, 29, 0, 0})
	anim := appendChunk(nil, "ANIM", make([]byte, 6))
	for name, test := range map[string]struct {
		b    []byte
		want image.Point
	}{
		"still":     {solidWebP(40, 30, green), image.Pt(40, 30)},
		"animation": {webpOf(vp8x, anim, frame(40, 30, green), frame(40, 30, red)), image.Pt(40, 30)},
		"part":      {webpOf(vp8x, anim, frame(20, 10, green)), image.Pt(20, 10)},
		"gif":       {gifOf(t, solid(40, 30, green)), image.Pt(40, 30)},
	} {
		out, err := Render(test.b, 0, 0, Contain)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m := decoded(t, out)
		if m.Bounds().Size() != test.want || !near(m.At(5, 5), green) {
			t.Errorf("%s: got %v of %v, want %v of green", name, m.Bounds().Size(), m.At(5, 5), test.want)
		}
	}
	for name, b := range map[string][]byte{
		"frame larger than canvas": webpOf(vp8x, anim, frame(41, 30, green)),
		"huge frame": webpOf(vp8x, anim, appendChunk(nil, "ANMF",
			append([]byte{0, 0, 0, 0, 0, 0, 0xff, 0x3f, 0, 0xff, 0x3f, 0, 0, 0, 0, 0}, appendChunk(nil, "VP8L", solidVP8L(16384, 16384, red))...))),
		"no canvas":       webpOf(anim, frame(40, 30, green)),
		"frame cut short": webpOf(vp8x, anim, appendChunk(nil, "ANMF", make([]byte, 10))),
		"picture larger than frame": webpOf(vp8x, anim, appendChunk(nil, "ANMF",
			append([]byte{0, 0, 0, 0, 0, 0, 9, 0, 0, 9, 0, 0, 0, 0, 0, 0}, appendChunk(nil, "VP8L", solidVP8L(16384, 16384, red))...))),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Render(b, 0, 0, Contain)
		runtime.ReadMemStats(&after)
		if cost := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, ErrBroken) || cost > 1<<20 {
			t.Errorf("%s: got %v for %d bytes of memory, want %v for next to nothing", name, err, cost, ErrBroken)
		}
	}
}

func solid(w, h int, c color.Color) image.Image {
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	draw.Draw(m, m.Rect, image.NewUniform(c), image.Point{}, draw.Src)
	return m
}

// TestProfileIsKept checks that renditions carry an RGB profile, also one
// that needs several segments, and no other.
func TestProfileIsKept(t *testing.T) {
	small, large := profile("RGB ", 548), profile("RGB ", maxProfileBytes)
	plain := jpegOf(t, quarters(64, 48), 90)
	for name, test := range map[string]struct{ profile, want []byte }{
		"small":        {small, small},
		"two segments": {large, large},
		"too large":    {profile("RGB ", maxProfileBytes+1), nil},
		"CMYK":         {profile("CMYK", 548), nil},
		"cut short":    {small[:100], nil},
	} {
		b := withSegments(plain, profileSegments(test.profile))
		rendered, err := Render(b, 32, 32, Contain)
		if err != nil {
			t.Fatal(err)
		}
		prepared, _, err := Prepare(withSegments(b, exifSegment(orientationTIFF(3))), Default)
		if err != nil {
			t.Fatal(err)
		}
		for what, out := range map[string][]byte{"rendered": rendered, "prepared": prepared} {
			h, err := Limits{}.inspect(out)
			if err != nil || !bytes.Equal(h.profile, test.want) {
				t.Errorf("%s, %s: profile of %d bytes, want %d (error %v)", name, what, len(h.profile), len(test.want), err)
			}
			if h.metadata {
				t.Errorf("%s, %s: it has other metadata", name, what)
			}
			if _, err := jpeg.Decode(bytes.NewReader(out)); err != nil {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
}

// TestGreyTakesNoProfile: an RGB profile would be wrong for a grey rendition.
func TestGreyTakesNoProfile(t *testing.T) {
	grey := jpegOf(t, image.NewGray(image.Rect(0, 0, 64, 48)), 90)
	out, err := Render(withSegments(grey, profileSegments(profile("RGB ", 548))), 0, 0, Contain)
	if err != nil || bytes.Contains(out, []byte(iccPrefix)) {
		t.Errorf("the profile was kept (error %v)", err)
	}
}
