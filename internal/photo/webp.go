package photo

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// riffChunk is one chunk of a WebP (RFC 9649, section 2.3).
type riffChunk struct {
	name string
	data []byte
	raw  []byte // name, length, data and padding
}

// The flags in the first byte of a VP8X chunk (RFC 9649, section 2.7).
const (
	flagXMP   = 1 << 2
	flagEXIF  = 1 << 3
	flagAlpha = 1 << 4
)

const (
	webpHeader = 12 // "RIFF", size, "WEBP"
	anmfHeader = 16 // what comes before the frame in an ANMF chunk
)

// walkRIFF calls fn for every chunk of b until fn returns false.
func walkRIFF(b []byte, fn func(riffChunk) bool) error {
	for len(b) > 0 {
		if len(b) < 8 {
			return errors.New("truncated chunk")
		}
		size := int64(binary.LittleEndian.Uint32(b[4:])) + 8
		if size > int64(len(b)) {
			return errors.New("truncated chunk")
		}
		c := riffChunk{name: string(b[:4]), data: b[8:size]}
		size = min(size+size&1, int64(len(b))) // some writers leave the last padding out
		c.raw = b[:size]
		if !fn(c) {
			return nil
		}
		b = b[size:]
	}
	return nil
}

// webpChunks returns the chunks' bytes and how many bytes follow them.
func webpChunks(b []byte) (chunks []byte, rest int, err error) {
	size := int64(binary.LittleEndian.Uint32(b[4:])) + 8
	if size < webpHeader || size > int64(len(b)) {
		return nil, 0, errors.New("no end of image")
	}
	return b[webpHeader:size], len(b) - int(size), nil
}

// keeps reports whether a clean WebP still has c.
func (c riffChunk) keeps() bool {
	switch c.name {
	case "VP8X", "ICCP", "ANIM", "ANMF", "ALPH", "VP8 ", "VP8L":
		return true
	}
	return false
}

// inspectWebP fills h from the chunks of b.
func inspectWebP(b []byte, h *header) error {
	chunks, rest, err := webpChunks(b)
	if err != nil {
		return broken(err)
	}
	h.metadata = rest > 0
	perPixel, pictures := int64(0), 0
	err = walkRIFF(chunks, func(c riffChunk) bool {
		h.metadata = h.metadata || !c.keeps()
		switch c.name {
		case "EXIF":
			data := c.data
			if len(data) > len(exifPrefix) && string(data[:len(exifPrefix)]) == exifPrefix {
				data = data[len(exifPrefix):] // some writers copy it from a JPEG
			}
			h.Orientation = parseEXIF(data).orientation
		case "ICCP":
			h.profile = rgbProfile(c.data)
		case "VP8 ", "VP8L", "ANMF":
			pictures++
		}
		perPixel = max(perPixel, c.pixelBytes())
		return true
	})
	switch {
	case err != nil:
		return broken(err)
	case pictures == 0:
		return broken(errors.New("no picture in it"))
	}
	h.private = h.metadata
	h.pixelBytes = int64(h.Width) * int64(h.Height) * perPixel
	return nil
}

// pixelBytes returns what the decoder may need for a pixel of c, in bytes:
// planes of 1.5 for VP8, an RGBA copy before and after a transform for VP8L,
// which an alpha plane may be packed with too.
func (c riffChunk) pixelBytes() int64 {
	switch c.name {
	case "VP8 ":
		return 2
	case "VP8L":
		return 8
	case "ALPH", "ANMF":
		return 11
	}
	return 0
}

// firstFrame returns a WebP of the first frame of an animation, which the
// decoder does not read; b itself where there is none. The frame gets a VP8X
// header of its own size, against which the decoder checks the picture's.
func firstFrame(b []byte) ([]byte, error) {
	chunks, _, err := webpChunks(b)
	if err != nil {
		return nil, err
	}
	var canvas, frame []byte
	err = walkRIFF(chunks, func(c riffChunk) bool {
		switch {
		case c.name == "VP8X" && len(c.data) == 10:
			canvas = c.data
		case c.name == "ANMF":
			frame = c.data
		}
		return frame == nil
	})
	if err != nil || frame == nil {
		return b, err
	}
	if len(frame) < anmfHeader || canvas == nil {
		return nil, errors.New("bad animation frame")
	}
	for i := 0; i < 6; i += 3 { // width and height less one, in 24 bits
		if uint24(frame[6+i:]) > uint24(canvas[4+i:]) {
			return nil, fmt.Errorf("animation frame is larger than its canvas")
		}
	}
	flags := byte(0)
	err = walkRIFF(frame[anmfHeader:], func(c riffChunk) bool {
		if c.name == "ALPH" {
			flags = flagAlpha
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	head := append([]byte{flags, 0, 0, 0}, frame[6:12]...)
	return webpOf(appendChunk(nil, "VP8X", head), frame[anmfHeader:]), nil
}

func uint24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

func appendChunk(to []byte, name string, data []byte) []byte {
	to = append(to, name...)
	to = binary.LittleEndian.AppendUint32(to, uint32(len(data)))
	to = append(to, data...)
	if len(data)%2 == 1 {
		to = append(to, 0)
	}
	return to
}

// webpOf returns a WebP of the given chunks.
func webpOf(chunks ...[]byte) []byte {
	out := []byte("RIFF\x00\x00\x00\x00WEBP")
	for _, c := range chunks {
		out = append(out, c...)
	}
	binary.LittleEndian.PutUint32(out[4:], uint32(len(out)-8))
	return out
}

// cleanWebP returns b, which passed inspect, without metadata.
func cleanWebP(b []byte) ([]byte, error) {
	chunks, _, err := webpChunks(b)
	if err != nil {
		return nil, broken(err)
	}
	kept := make([]byte, 0, len(chunks))
	err = walkRIFF(chunks, func(c riffChunk) bool {
		switch {
		case c.name == "VP8X" && len(c.data) > 0:
			data := append([]byte(nil), c.data...)
			data[0] &^= flagEXIF | flagXMP
			kept = appendChunk(kept, c.name, data)
		case c.keeps():
			kept = appendChunk(kept, c.name, c.data)
		}
		return true
	})
	if err != nil {
		return nil, broken(err)
	}
	return webpOf(kept), nil
}
