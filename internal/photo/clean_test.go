package photo

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"image"
	"image/color"
	"image/gif"
	"testing"
)

// secret stands for what nobody else may read.
const secret = "48.8584N 2.2945E"

func TestCleanIsLossless(t *testing.T) {
	m := quarters(64, 48)
	icc := profileSegments(profile("RGB ", 600))
	jfif, adobe := app(markAPP0, "JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"), app(markAPPE, "Adobe\x00\x64\x00\x00\x00\x00\x01")
	jpg := withSegments(jpegOf(t, m, 90), jfif, icc, adobe)
	private := withSegments(jpegOf(t, m, 90), jfif, exifSegment(append(gpsTIFF(), secret...)), icc,
		app(markAPP1, "http://ns.adobe.com/xap/1.0/\x00"+secret), app(markAPP2, "MPF\x00"+secret),
		app(0xed, "Photoshop 3.0\x00"+secret), app(markAPP0, "JFXX\x00"+secret), app(markAPPF, secret),
		app(markCOM, secret), []byte("between segments"), adobe)
	pngs := pngOf(t, m)
	var packed bytes.Buffer
	z := zlib.NewWriter(&packed)
	z.Write(profile("RGB ", 600))
	z.Close()
	coloured := withChunk(pngs, "iCCP", "p\x00\x00"+packed.String())
	vp8l := appendChunk(nil, "VP8L", solidVP8L(64, 48, red))
	canvas := func(flags byte) []byte {
		return appendChunk(nil, "VP8X", []byte{flags, 0, 0, 0, 63, 0, 0, 47, 0, 0})
	}
	gifs := animatedGIF(t)
	comment := append([]byte{gifExtension, gifComment, byte(len(secret))}, secret+"\x00"...)
	xmp := append([]byte("\x21\xff\x0bXMP DataXMP"), string(byte(len(secret)))+secret+"\x00"...)
	at := len(gifs) - 1
	for name, test := range map[string]struct{ b, want []byte }{
		"jpeg, nothing in it": {jpg, jpg},
		"jpeg":                {private, jpg},
		"jpeg and a film":     {append(bytes.Clone(private), secret...), jpg},
		"png, nothing in it":  {coloured, coloured},
		"png":                 {withChunk(withChunk(coloured, "tEXt", "Comment\x00"+secret), "eXIf", string(gpsTIFF())), coloured},
		"png and more":        {append(bytes.Clone(pngs), secret...), pngs},
		"webp, simple":        {webpOf(vp8l), webpOf(vp8l)},
		"webp": {webpOf(canvas(flagEXIF|flagXMP|flagAlpha), vp8l, appendChunk(nil, "EXIF", gpsTIFF()), appendChunk(nil, "XMP ", []byte(secret)), appendChunk(nil, "odd ", []byte(secret))),
			webpOf(canvas(flagAlpha), vp8l)},
		"webp and more": {append(webpOf(vp8l), secret...), webpOf(vp8l)},
		"gif":           {append(append(append(bytes.Clone(gifs[:at]), comment...), xmp...), append(gifs[at:], secret...)...), gifs},
	} {
		out, err := Clean(test.b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(out, test.want) {
			t.Errorf("%s: got %d bytes, want %d; they differ", name, len(out), len(test.want))
		}
		again, err := Clean(out)
		if err != nil || &again[0] != &out[0] {
			t.Errorf("%s: cleaning a clean photo made another (error %v)", name, err)
		}
		if bytes.Contains(out, []byte(secret)) {
			t.Errorf("%s: the secret is still in it", name)
		}
	}
	if all, err := gif.DecodeAll(bytes.NewReader(gifs)); err != nil || len(all.Image) != 2 {
		t.Fatalf("the GIF of this test does not move: %v", err)
	}
}

func animatedGIF(t *testing.T) []byte {
	t.Helper()
	frame := func() *image.Paletted {
		return image.NewPaletted(image.Rect(0, 0, 9, 9), color.Palette{red, blue})
	}
	return encode(t, func(w *bytes.Buffer) error {
		return gif.EncodeAll(w, &gif.GIF{Image: []*image.Paletted{frame(), frame()}, Delay: []int{5, 5}})
	})
}

// TestCleanTurned checks the photos that have to be encoded anew.
func TestCleanTurned(t *testing.T) {
	raw := stored(quarters(64, 48), 6)
	private := append(orientationTIFF(6), secret...)
	webp := webpOf(appendChunk(nil, "VP8X", []byte{flagEXIF, 0, 0, 0, 63, 0, 0, 47, 0, 0}),
		appendChunk(nil, "VP8L", solidVP8L(64, 48, red)), appendChunk(nil, "EXIF", private))
	for name, test := range map[string]struct {
		b    []byte
		want Info
	}{
		"jpeg": {withSegments(jpegOf(t, raw, 90), exifSegment(private)), Info{JPEG, 64, 48, 1}},
		"png":  {withChunk(pngOf(t, raw), "eXIf", string(private)), Info{PNG, 64, 48, 1}},
		"webp": {webp, Info{JPEG, 48, 64, 1}},
	} {
		out, err := Clean(test.b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		h, err := Limits{}.inspect(out)
		if err != nil || h.Info != test.want || h.metadata || bytes.Contains(out, []byte(secret)) {
			t.Errorf("%s: got %+v (metadata %v, error %v), want %+v", name, h.Info, h.metadata, err, test.want)
		}
	}
}

func TestEXIF(t *testing.T) {
	big, little := binary.AppendByteOrder(binary.BigEndian), binary.AppendByteOrder(binary.LittleEndian)
	turned := tag{tagOrientation, false, 6}
	for name, test := range map[string]struct {
		b    []byte
		want exif
	}{
		"big":                      {tiff(big, []tag{turned}), exif{6, false}},
		"little":                   {tiff(little, []tag{turned}), exif{6, false}},
		"among others":             {tiff(big, []tag{{0x10f, true, 0}, turned, {0x11a, true, 8}}), exif{6, false}},
		"nothing said":             {tiff(big, []tag{{0x10f, true, 0}}), exif{1, false}},
		"zero":                     {tiff(big, []tag{{tagOrientation, false, 0}}), exif{1, false}},
		"nine":                     {tiff(big, []tag{{tagOrientation, false, 9}}), exif{1, false}},
		"as a LONG":                {tiff(big, []tag{{tagOrientation, true, 6}}), exif{1, false}},
		"with a place":             {tiff(little, []tag{turned, {tagGPS, true, 8}}), exif{6, true}},
		"with a maker's note":      {tiff(big, []tag{turned}, tag{tagMakerNote, true, 8}), exif{6, true}},
		"with a harmless deeper":   {tiff(big, []tag{turned}, tag{0x9000, true, 8}), exif{6, false}},
		"deeper points nowhere":    {tiff(big, []tag{turned, {tagEXIF, true, 1 << 30}}), exif{6, true}},
		"directory cut short":      {tiff(big, []tag{turned, {0x11a, true, 8}})[:30], exif{6, true}},
		"directory points nowhere": {append([]byte("MM\x00*"), 0xff, 0xff, 0xff, 0xff), exif{1, true}},
		"no TIFF":                  {[]byte("XX\x00*\x00\x00\x00\x08\x00\x00"), exif{1, true}},
		"too short":                {[]byte("MM\x00*"), exif{1, true}},
		"empty":                    {nil, exif{1, true}},
	} {
		if got := parseEXIF(test.b); got != test.want {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
}
