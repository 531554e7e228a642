package photo

import (
	"errors"
	"fmt"
)

// The blocks of a GIF (GIF89a, appendix A).
const (
	gifExtension   = 0x21
	gifPicture     = 0x2c
	gifTrailer     = 0x3b
	gifComment     = 0xfe // labels of extensions
	gifApplication = 0xff

	gifHeader       = 13 // signature and screen descriptor
	gifPictureBytes = 10 // separator and picture descriptor
)

var errGIFEnd = errors.New("no end of image")

// gifBlock is one block of a GIF: the header (kind 0), a picture, an
// extension or the trailer.
type gifBlock struct {
	kind, label byte // label is an extension's
	animation   bool // an application's extension that carries the animation
	raw         []byte
}

// keeps reports whether a clean GIF still has g.
func (g gifBlock) keeps() bool {
	return g.kind != gifExtension || g.label != gifComment && (g.label != gifApplication || g.animation)
}

// walkGIF calls fn for every block of b and returns what follows the trailer.
func walkGIF(b []byte, fn func(gifBlock)) (rest []byte, err error) {
	if len(b) < gifHeader {
		return nil, errGIFEnd
	}
	size := gifHeader + colourTable(b[10])
	if size > len(b) {
		return nil, errGIFEnd
	}
	fn(gifBlock{raw: b[:size]})
	for b = b[size:]; len(b) > 0; b = b[size:] {
		block := gifBlock{kind: b[0]}
		data := 0 // where the sub-blocks begin
		switch {
		case block.kind == gifTrailer:
			block.raw = b[:1]
			fn(block)
			return b[1:], nil
		case block.kind == gifExtension:
			data = 2
		case block.kind == gifPicture && len(b) >= gifPictureBytes:
			data = gifPictureBytes + colourTable(b[9]) + 1 // and the code size
		default:
			return nil, fmt.Errorf("block %#x: unknown or cut short", block.kind)
		}
		if size = subBlocksEnd(b, data); size < 0 {
			return nil, errGIFEnd
		}
		if block.kind == gifExtension {
			block.label = b[1]
			name := string(b[min(data+1, size):min(data+12, size)])
			block.animation = name == "NETSCAPE2.0" || name == "ANIMEXTS1.0"
		}
		block.raw = b[:size]
		fn(block)
	}
	return nil, errGIFEnd
}

// subBlocksEnd returns where the sub-blocks at b[at:] end, each a length and
// as many bytes, the last one empty; -1 when b ends first.
func subBlocksEnd(b []byte, at int) int {
	for at < len(b) {
		n := int(b[at])
		at += 1 + n
		if n == 0 {
			return at
		}
	}
	return -1
}

// colourTable returns the size of the colour table that a descriptor's packed
// field announces.
func colourTable(packed byte) int {
	if packed&0x80 == 0 {
		return 0
	}
	return 3 << (packed&7 + 1)
}

// inspectGIF fills h from the blocks of b.
func inspectGIF(b []byte, h *header) error {
	pictures := 0
	rest, err := walkGIF(b, func(g gifBlock) {
		h.metadata = h.metadata || !g.keeps()
		if g.kind == gifPicture {
			pictures++
		}
	})
	switch {
	case err != nil:
		return broken(err)
	case pictures == 0:
		return broken(errors.New("no picture in it"))
	}
	h.metadata = h.metadata || len(rest) > 0
	h.private = h.metadata
	h.pixelBytes = 2 * int64(h.Width) * int64(h.Height) // an interlaced one is copied
	return nil
}

// cleanGIF returns b, which passed inspect, without metadata.
func cleanGIF(b []byte) ([]byte, error) {
	out := make([]byte, 0, len(b))
	_, err := walkGIF(b, func(g gifBlock) {
		if g.keeps() {
			out = append(out, g.raw...)
		}
	})
	if err != nil {
		return nil, broken(err)
	}
	return out, nil
}
