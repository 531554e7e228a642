package photo

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"io"
)

const pngSignature = "\x89PNG\r\n\x1a\n"

// pngChunk is one chunk of a PNG (PNG 3rd edition, section 5.3).
type pngChunk struct {
	name string
	data []byte
	raw  []byte // length, name, data and checksum
}

// walkPNG calls fn for every chunk up to IEND and returns what follows it.
func walkPNG(b []byte, fn func(pngChunk)) (rest []byte, err error) {
	b = b[len(pngSignature):]
	for len(b) >= 12 {
		size := int64(binary.BigEndian.Uint32(b)) + 12
		if size > int64(len(b)) {
			break
		}
		c := pngChunk{name: string(b[4:8]), data: b[8 : size-4], raw: b[:size]}
		fn(c)
		b = b[size:]
		if c.name == "IEND" {
			return b, nil
		}
	}
	return nil, errors.New("no end of image")
}

// keeps reports whether a clean PNG still has c: the picture, its
// animation, and what is needed to show the colours right.
func (c pngChunk) keeps() bool {
	switch c.name {
	case "IHDR", "PLTE", "IDAT", "IEND", "tRNS",
		"cHRM", "gAMA", "iCCP", "sBIT", "sRGB", "cICP", "mDCV", "cLLI", "bKGD", "pHYs",
		"acTL", "fcTL", "fdAT":
		return true
	}
	return false
}

// inspectPNG fills h from the chunks of b.
func inspectPNG(b []byte, h *header) error {
	transparent, pictures := false, 0
	var head []byte
	rest, err := walkPNG(b, func(c pngChunk) {
		h.metadata = h.metadata || !c.keeps()
		switch c.name {
		case "IHDR":
			head = c.data
		case "IDAT":
			pictures++
		case "tRNS":
			transparent = true
		case "iCCP":
			h.profile = pngProfile(c.data)
		case "eXIf":
			h.Orientation = parseEXIF(c.data).orientation
		}
	})
	switch {
	case err != nil:
		return broken(err)
	case len(head) != 13 || pictures == 0:
		return broken(errors.New("no picture in it"))
	}
	h.metadata = h.metadata || len(rest) > 0
	h.private = h.metadata
	h.pixelBytes = int64(h.Width) * int64(h.Height) * pngPixelBytes(head[8], head[9], transparent)
	if interlaced := head[12] != 0; interlaced {
		h.pixelBytes *= 2 // the passes are pictures of their own
	}
	return nil
}

// pngPixelBytes returns how many bytes image/png needs for a pixel.
func pngPixelBytes(depth, colour byte, transparent bool) int64 {
	const grey, palette = 0, 3
	n := int64(4)
	if colour == palette || colour == grey && !transparent {
		n = 1
	}
	if depth == 16 {
		n *= 2
	}
	return n
}

// pngProfile returns the profile of an iCCP chunk: a name, a zero, the method
// (zero, deflate) and the compressed profile.
func pngProfile(data []byte) []byte {
	_, packed, found := bytes.Cut(data, []byte{0})
	if !found || len(packed) < 1 || packed[0] != 0 {
		return nil
	}
	z, err := zlib.NewReader(bytes.NewReader(packed[1:]))
	if err != nil {
		return nil
	}
	p, err := io.ReadAll(io.LimitReader(z, maxProfileBytes+1))
	if err != nil {
		return nil
	}
	return rgbProfile(p)
}

// cleanPNG returns b, which passed inspect, without metadata.
func cleanPNG(b []byte) ([]byte, error) {
	out := append(make([]byte, 0, len(b)), pngSignature...)
	_, err := walkPNG(b, func(c pngChunk) {
		if c.keeps() {
			out = append(out, c.raw...)
		}
	})
	if err != nil {
		return nil, broken(err)
	}
	return out, nil
}
