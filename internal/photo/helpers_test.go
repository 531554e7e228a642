package photo

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"testing"
)

// The corners of quarters: what it looks like upright.
var (
	red   = color.RGBA{200, 30, 30, 255}
	green = color.RGBA{30, 180, 30, 255}
	blue  = color.RGBA{30, 30, 200, 255}
	white = color.RGBA{255, 255, 255, 255}
)

// quarters is a picture of four plain quarters: red and green above, blue and
// white below.
func quarters(w, h int) *image.RGBA {
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			c := red
			switch {
			case 2*x >= w && 2*y >= h:
				c = white
			case 2*y >= h:
				c = blue
			case 2*x >= w:
				c = green
			}
			m.SetRGBA(x, y, c)
		}
	}
	return m
}

// stored returns m as a camera held in another way stores it: shown under the
// orientation it looks like m. It is written after the words of the EXIF
// standard, pixel by pixel, and shares no code with upright.
func stored(m *image.RGBA, orientation int) *image.RGBA {
	w, h := m.Rect.Dx(), m.Rect.Dy()
	sw, sh := w, h
	if orientation >= 5 {
		sw, sh = h, w
	}
	out := image.NewRGBA(image.Rect(0, 0, sw, sh))
	for row := range sh { // "the 0th row is the visual … of the image"
		for col := range sw {
			var x, y int
			switch orientation {
			case 1: // row top, column left
				x, y = col, row
			case 2: // top, right
				x, y = w-1-col, row
			case 3: // bottom, right
				x, y = w-1-col, h-1-row
			case 4: // bottom, left
				x, y = col, h-1-row
			case 5: // row left, column top
				x, y = row, col
			case 6: // right, top
				x, y = w-1-row, col
			case 7: // right, bottom
				x, y = w-1-row, h-1-col
			case 8: // left, bottom
				x, y = row, h-1-col
			}
			out.SetRGBA(col, row, m.RGBAAt(x, y))
		}
	}
	return out
}

// near reports whether two colours are the same but for what JPEG does.
func near(a, b color.Color) bool {
	ar, ag, ab, _ := a.RGBA()
	br, bg, bb, _ := b.RGBA()
	diff := func(x, y uint32) bool { return max(x, y)-min(x, y) < 30<<8 }
	return diff(ar, br) && diff(ag, bg) && diff(ab, bb)
}

// checkQuarters fails t unless m looks like quarters.
func checkQuarters(t *testing.T, m image.Image) {
	t.Helper()
	b := m.Bounds()
	for i, want := range []color.RGBA{red, green, blue, white} {
		x, y := b.Min.X+b.Dx()*(1+2*(i%2))/4, b.Min.Y+b.Dy()*(1+2*(i/2))/4
		if got := m.At(x, y); !near(got, want) {
			t.Errorf("quarter %d: got %v, want %v", i, got, want)
		}
	}
}

func encode(t testing.TB, write func(*bytes.Buffer) error) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func jpegOf(t testing.TB, m image.Image, quality int) []byte {
	t.Helper()
	return encode(t, func(w *bytes.Buffer) error { return jpeg.Encode(w, m, &jpeg.Options{Quality: quality}) })
}

func pngOf(t testing.TB, m image.Image) []byte {
	t.Helper()
	return encode(t, func(w *bytes.Buffer) error { return png.Encode(w, m) })
}

func gifOf(t testing.TB, m image.Image) []byte {
	t.Helper()
	return encode(t, func(w *bytes.Buffer) error { return gif.Encode(w, m, nil) })
}

func decoded(t testing.TB, b []byte) image.Image {
	t.Helper()
	contentType, _ := Sniff(b)
	m, err := decodeFrame(b, contentType)
	if err != nil {
		t.Fatalf("decode the result: %v", err)
	}
	return m
}

// tag is one entry of an EXIF directory: a SHORT or a LONG.
type tag struct {
	id    uint16
	long  bool
	value uint32
}

// tiff returns an EXIF block with one directory, and a second one after it if
// there are deeper tags.
func tiff(order binary.AppendByteOrder, tags []tag, deeper ...tag) []byte {
	mark := "MM\x00*"
	if order == binary.AppendByteOrder(binary.LittleEndian) {
		mark = "II*\x00"
	}
	out := order.AppendUint32([]byte(mark), 8)
	if len(deeper) > 0 {
		tags = append(tags, tag{tagEXIF, true, uint32(8 + 2 + 12*(len(tags)+1) + 4)})
	}
	for _, dir := range [][]tag{tags, deeper} {
		if len(dir) == 0 {
			continue
		}
		out = order.AppendUint16(out, uint16(len(dir)))
		for _, e := range dir {
			out = order.AppendUint16(out, e.id)
			if e.long {
				out = order.AppendUint32(order.AppendUint16(out, 4), 1)
				out = order.AppendUint32(out, e.value)
			} else {
				out = order.AppendUint32(order.AppendUint16(out, typeShort), 1)
				out = append(order.AppendUint16(out, uint16(e.value)), 0, 0)
			}
		}
		out = order.AppendUint32(out, 0)
	}
	return out
}

func orientationTIFF(o int) []byte {
	return tiff(binary.BigEndian, []tag{{tagOrientation, false, uint32(o)}})
}

// gpsTIFF says where it was taken.
func gpsTIFF() []byte {
	return tiff(binary.LittleEndian, []tag{{tagOrientation, false, 1}, {tagGPS, true, 26}})
}

// app returns a JPEG segment.
func app(marker byte, data string) []byte {
	return append([]byte{0xff, marker, byte((len(data) + 2) >> 8), byte(len(data) + 2)}, data...)
}

func exifSegment(block []byte) []byte { return app(markAPP1, exifPrefix+string(block)) }

// withSegments returns a JPEG with segments after its SOI.
func withSegments(b []byte, segments ...[]byte) []byte {
	out := append([]byte(nil), b[:2]...)
	return append(append(out, bytes.Join(segments, nil)...), b[2:]...)
}

// withChunk returns a PNG with a chunk after its header.
func withChunk(b []byte, name, data string) []byte {
	const head = len(pngSignature) + 25
	chunk := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	chunk = append(chunk, name+data...)
	chunk = binary.BigEndian.AppendUint32(chunk, crc32.ChecksumIEEE(chunk[4:]))
	return append(append(append([]byte(nil), b[:head]...), chunk...), b[head:]...)
}

// profile returns an ICC profile's shape: nothing of it is read but the
// colour space and the signature.
func profile(space string, size int) []byte {
	p := make([]byte, size)
	copy(p[16:], space)
	copy(p[36:], "acsp")
	for i := 128; i < size; i++ {
		p[i] = byte(i * 7)
	}
	return p
}

// solidWebP is a lossless WebP of one colour and at most 16384×16384 pixels,
// made by hand because no encoder is at hand (WebP Lossless Bitstream
// Specification, sections 3 and 5).
func solidWebP(w, h int, c color.RGBA) []byte {
	return webpOf(appendChunk(nil, "VP8L", solidVP8L(w, h, c)))
}

func solidVP8L(w, h int, c color.RGBA) []byte {
	var bits []byte
	n := 0
	put := func(v, count int) {
		for i := range count {
			if n%8 == 0 {
				bits = append(bits, 0)
			}
			bits[n/8] |= byte(v>>i&1) << (n % 8)
			n++
		}
	}
	put(0x2f, 8)
	put(w-1, 14)
	put(h-1, 14)
	put(0, 1+3)                                             // no alpha, version 0
	put(0, 1)                                               // no transform
	put(0, 1)                                               // no colour cache
	put(0, 1)                                               // one set of prefix codes
	for _, symbol := range []uint8{c.G, c.R, c.B, 255, 0} { // each a code of one symbol
		put(1, 1) // simple
		put(0, 1) // one symbol
		put(1, 1) // of eight bits
		put(int(symbol), 8)
	}
	return append(bits, 0, 0, 0, 0)
}

// flatProgressive is a progressive JPEG of one grey, 4:2:0, made by hand
// because the encoder makes none: a single scan of DC coefficients, each
// coded as "no difference" in one bit (ITU-T T.81, annex G).
func flatProgressive(w, h int) []byte {
	frame := string([]byte{8, byte(h >> 8), byte(h), byte(w >> 8), byte(w), 3, 1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0})
	codes := "\x00\x01" + string(make([]byte, 15)) + "\x00" // one code of one bit, for category 0
	blocks := (w + 15) / 16 * ((h + 15) / 16) * 6
	return bytes.Join([][]byte{
		{0xff, markSOI},
		app(0xdb, "\x00"+string(bytes.Repeat([]byte{1}, 64))),
		app(markSOF2, frame),
		app(0xc4, codes),
		app(markSOS, "\x03\x01\x00\x02\x00\x03\x00\x00\x00\x00"),
		make([]byte, (blocks+7)/8),
		{0xff, markEOI},
	}, nil)
}
