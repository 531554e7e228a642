package photo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"image"
	"image/color"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSniff(t *testing.T) {
	for _, test := range []struct {
		b, contentType string
		ok             bool
	}{
		{"\xff\xd8\xff\xe0", JPEG, true},
		{pngSignature, PNG, true},
		{"GIF87a", GIF, true},
		{"GIF89a", GIF, true},
		{"RIFF\x00\x00\x00\x00WEBPVP8 ", WebP, true},
		{"RIFF\x00\x00\x00\x00WAVEfmt ", "", false},
		{"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", heic, false},
		{"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00", heic, false},
		{"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00", "", false},
		{"\x00\x00\x00\x18ftyp", "", false},
		{"\xff\xd8", "", false},
		{"<svg>", "", false},
		{"", "", false},
	} {
		if got, ok := Sniff([]byte(test.b)); got != test.contentType || ok != test.ok {
			t.Errorf("%q: got %q, %v; want %q, %v", test.b, got, ok, test.contentType, test.ok)
		}
	}
}

func TestCheck(t *testing.T) {
	m := quarters(64, 40)
	turned := withSegments(jpegOf(t, m, 90), exifSegment(orientationTIFF(6)))
	vp8x := appendChunk(nil, "VP8X", []byte{flagEXIF, 0, 0, 0, 63, 0, 0, 39, 0, 0})
	vp8l := appendChunk(nil, "VP8L", solidVP8L(64, 40, red))
	for name, test := range map[string]struct {
		b    []byte
		want Info
	}{
		"jpeg":                {jpegOf(t, m, 90), Info{JPEG, 64, 40, 1}},
		"jpeg turned":         {turned, Info{JPEG, 64, 40, 6}},
		"jpeg, bad turn":      {withSegments(jpegOf(t, m, 90), exifSegment(orientationTIFF(9))), Info{JPEG, 64, 40, 1}},
		"jpeg, empty EXIF":    {withSegments(jpegOf(t, m, 90), exifSegment(nil)), Info{JPEG, 64, 40, 1}},
		"jpeg, two EXIFs":     {withSegments(turned, exifSegment(orientationTIFF(3))), Info{JPEG, 64, 40, 3}},
		"jpeg and more":       {append(bytes.Clone(turned), "a film"...), Info{JPEG, 64, 40, 6}},
		"grey":                {jpegOf(t, image.NewGray(m.Rect), 90), Info{JPEG, 64, 40, 1}},
		"png":                 {pngOf(t, m), Info{PNG, 64, 40, 1}},
		"png turned":          {withChunk(pngOf(t, m), "eXIf", string(orientationTIFF(8))), Info{PNG, 64, 40, 8}},
		"gif":                 {gifOf(t, m), Info{GIF, 64, 40, 1}},
		"webp":                {solidWebP(64, 40, red), Info{WebP, 64, 40, 1}},
		"webp turned":         {webpOf(vp8x, vp8l, appendChunk(nil, "EXIF", orientationTIFF(5))), Info{WebP, 64, 40, 5}},
		"webp turned, prefix": {webpOf(vp8x, vp8l, appendChunk(nil, "EXIF", append([]byte(exifPrefix), orientationTIFF(5)...))), Info{WebP, 64, 40, 5}},
	} {
		got, err := Check(test.b, Limits{})
		if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
			t.Errorf("%s: error %v, -want +got:\n%s", name, err, diff)
		}
	}
	if w, h := (Info{Width: 3, Height: 2, Orientation: 8}).Upright(); w != 2 || h != 3 {
		t.Errorf("upright size: got %d×%d, want 2×3", w, h)
	}
}

// claim returns b with another size where a JPEG's frame or a PNG's
// IHDR says its own.
func claim(t *testing.T, b []byte, w, h int) []byte {
	t.Helper()
	b = bytes.Clone(b)
	if contentType, _ := Sniff(b); contentType == PNG {
		binary.BigEndian.PutUint32(b[16:], uint32(w))
		binary.BigEndian.PutUint32(b[20:], uint32(h))
		head := withChunk(b[:len(pngSignature)+25], "IHDR", string(b[16:29]))
		return append(append([]byte(pngSignature), head[len(pngSignature)+25:]...), b[len(pngSignature)+25:]...)
	}
	at := bytes.Index(b, []byte{0xff, markSOF0})
	binary.BigEndian.PutUint16(b[at+5:], uint16(h))
	binary.BigEndian.PutUint16(b[at+7:], uint16(w))
	return b
}

// TestRefused holds what every function must refuse, and that nothing is
// decoded for it: a decoder would need gigabytes for some of these.
func TestRefused(t *testing.T) {
	m := quarters(64, 40)
	jpg, pngs, gifs, web := jpegOf(t, m, 90), pngOf(t, m), gifOf(t, m), solidWebP(64, 40, red)
	noise := make([]byte, 30_000)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	scan := jpg[bytes.Index(jpg, []byte{0xff, markSOS}) : len(jpg)-2]
	bomb := append(append(bytes.Clone(jpg[:len(jpg)-2]), bytes.Repeat(scan, maxScans)...), 0xff, markEOI)
	vp8x := appendChunk(nil, "VP8X", []byte{0, 0, 0, 0, 0x2f, 0x75, 0, 0x2f, 0x75, 0})
	for name, test := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":                  {nil, ErrUnknownFormat},
		"text":                   {[]byte("hello, this is no photo"), ErrUnknownFormat},
		"noise":                  {noise, ErrUnknownFormat},
		"heic":                   {[]byte("\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"), ErrHEIC},
		"too many bytes":         {append(bytes.Clone(jpg), make([]byte, DefaultMaxBytes)...), ErrTooLarge},
		"100 megapixels":         {claim(t, jpg, 10_000, 10_000), ErrTooLarge},
		"biggest JPEG":           {claim(t, jpg, 65_535, 65_535), ErrTooLarge},
		"progressive 48 MP":      {flatProgressive(8000, 6000), ErrTooLarge},
		"JPEG without height":    {claim(t, jpg, 64, 0), ErrBroken},
		"JPEG 1×40,000":          {claim(t, jpg, 1, 40_000), ErrTooLarge},
		"JPEG of many scans":     {bomb, ErrTooLarge},
		"PNG 1×100,000":          {claim(t, pngs, 1, 100_000), ErrTooLarge},
		"PNG bomb":               {claim(t, pngs, 100_000, 100_000), ErrTooLarge},
		"PNG of 2^31":            {claim(t, pngs, 1<<31-1, 1<<31-1), ErrBroken},
		"WebP bomb":              {webpOf(vp8x, web[12:]), ErrTooLarge},
		"VP8L 16384×16384":       {solidWebP(16384, 16384, red), ErrTooLarge},
		"GIF bomb":               {append([]byte("GIF89a\xff\xff\xff\xff"), gifs[10:]...), ErrTooLarge},
		"GIF of 0×0":             {append([]byte("GIF89a\x00\x00\x00\x00"), gifs[10:]...), ErrBroken},
		"six-byte GIF":           {[]byte("GIF89a"), ErrBroken},
		"GIF without a picture":  {append(bytes.Clone(gifs[:13]), gifTrailer), ErrBroken},
		"GIF, unknown block":     {append(bytes.Clone(gifs[:len(gifs)-1]), 0x55), ErrBroken},
		"JPEG header only":       {[]byte("\xff\xd8\xff"), ErrBroken},
		"JPEG without a picture": {append(bytes.Clone(jpg[:len(jpg)-len(scan)-2]), 0xff, markEOI), ErrBroken},
		"JPEG segment too short": {withSegments(jpg, []byte{0xff, markAPP1, 0, 1}), ErrBroken},
		"JPEG, two frames":       {withSegments(jpg, app(markSOF0, "\x08\x00\x08\x00\x08\x01\x01\x11\x00")), ErrBroken},
		"truncated JPEG":         {jpg[:len(jpg)*2/3], ErrBroken},
		"truncated PNG":          {pngs[:len(pngs)*2/3], ErrBroken},
		"truncated GIF":          {gifs[:len(gifs)*2/3], ErrBroken},
		"truncated WebP":         {web[:len(web)-3], ErrBroken},
		"WebP without a picture": {webpOf(appendChunk(nil, "VP8X", []byte{0, 0, 0, 0, 9, 0, 0, 9, 0, 0})), ErrBroken},
		"PNG without a picture":  {append(bytes.Clone(pngs[:33]), pngs[len(pngs)-12:]...), ErrBroken},
		"corrupt PNG":            {corrupted(pngs, 60), ErrBroken},
	} {
		_, checkErr := Check(test.b, Limits{})
		_, _, prepareErr := Prepare(test.b, Default)
		_, renderErr := Render(test.b, 10, 10, Contain)
		_, cleanErr := Clean(withOrientation(test.b, 6))
		for what, err := range map[string]error{"Check": checkErr, "Prepare": prepareErr, "Render": renderErr, "Clean": cleanErr} {
			if what == "Check" && name == "corrupt PNG" {
				continue // found only by decoding
			}
			if !errors.Is(err, test.want) || countSentinels(err) != 1 {
				t.Errorf("%s: %s: got %v, want %v", name, what, err, test.want)
			}
		}
	}
}

func corrupted(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 0x55
	return b
}

// withOrientation makes Clean decode a PNG; other bytes stay as they are.
func withOrientation(b []byte, o int) []byte {
	if contentType, _ := Sniff(b); contentType == PNG && len(b) > 40 {
		return withChunk(b, "eXIf", string(orientationTIFF(o)))
	}
	return b
}

func countSentinels(err error) (n int) {
	for _, s := range []error{ErrUnknownFormat, ErrHEIC, ErrTooLarge, ErrBroken} {
		if errors.Is(err, s) {
			n++
		}
	}
	return n
}

func TestLimits(t *testing.T) {
	b := jpegOf(t, quarters(100, 100), 90)
	for name, test := range map[string]struct {
		lim  Limits
		want error
	}{
		"enough":     {Limits{MaxBytes: len(b), MaxPixels: 10_000, MaxMemory: 64 << 10}, nil},
		"bytes":      {Limits{MaxBytes: len(b) - 1}, ErrTooLarge},
		"pixels":     {Limits{MaxPixels: 9_999}, ErrTooLarge},
		"memory":     {Limits{MaxMemory: 16 << 10}, ErrTooLarge}, // 112×112 samples and half as many again
		"just about": {Limits{MaxMemory: 112 * 112 * 3 / 2}, nil},
	} {
		if _, err := Check(b, test.lim); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
	// The scaling counts too, not only the decoding.
	small := Limits{MaxMemory: 40 << 10}
	if _, err := small.Render(b, 20, 20, Contain); err != nil {
		t.Errorf("small rendition: %v", err)
	}
	if _, err := small.Clean(withSegments(b, exifSegment(orientationTIFF(6)))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("turning in full size: got %v, want %v", err, ErrTooLarge)
	}
}

// TestEstimate compares the estimates with what the decoders allocate.
func TestEstimate(t *testing.T) {
	m := quarters(500, 400)
	paletted := image.NewPaletted(m.Rect, color.Palette{red, green, blue, white})
	nrgba := image.NewNRGBA(m.Rect)
	for name, b := range map[string][]byte{
		"jpeg":          jpegOf(t, m, 90),
		"grey jpeg":     jpegOf(t, image.NewGray(m.Rect), 90),
		"png":           pngOf(t, m),
		"png, alpha":    pngOf(t, nrgba),
		"png, palette":  pngOf(t, paletted),
		"png, 16 bits":  pngOf(t, image.NewRGBA64(m.Rect)),
		"png, grey 16":  pngOf(t, image.NewGray16(m.Rect)),
		"gif":           gifOf(t, paletted),
		"progressive":   flatProgressive(500, 400),
		"lossless webp": solidWebP(500, 400, blue),
	} {
		h, err := Limits{}.inspect(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		decoded(t, b)
		runtime.ReadMemStats(&after)
		const overhead = 256 << 10 // tables and buffers
		if got := int64(after.TotalAlloc - before.TotalAlloc); got > h.pixelBytes+overhead || got < h.pixelBytes/3 {
			t.Errorf("%s: decoding allocates %d bytes, the estimate is %d", name, got, h.pixelBytes)
		}
	}
}

// TestInterlacedCostsTwice: the encoder makes none, and the passes are decoded
// to pictures of their own.
func TestInterlacedCostsTwice(t *testing.T) {
	plain := pngOf(t, quarters(100, 100))
	head := bytes.Clone(plain[16:29])
	head[12] = 1
	interlaced := append(append([]byte(nil), plain[:8]...), withChunk(plain, "IHDR", string(head))[33:]...)
	interlaced = append(interlaced[:8+25], plain[33:]...)
	a, err := Limits{}.inspect(plain)
	b, err2 := Limits{}.inspect(interlaced)
	if err != nil || err2 != nil || b.pixelBytes != 2*a.pixelBytes {
		t.Errorf("plain %d (%v), interlaced %d (%v)", a.pixelBytes, err, b.pixelBytes, err2)
	}
}

func TestDecoderPanicIsAnError(t *testing.T) {
	err := func() (err error) {
		defer guard(&err)
		var none []byte
		_ = none[len(pngSignature)]
		return nil
	}()
	if err == nil {
		t.Error("a panic became no error")
	}
}
