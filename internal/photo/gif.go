package photo

import (
	"errors"
	"strings"
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

// walkGIF calls fn with the header, and then with every block and the kind it
// begins with; for an extension also its label and whether it is an
// application's that carries the animation. It returns what follows the end.
func walkGIF(b []byte, fn func(kind, label byte, animation bool, raw []byte)) (rest []byte, err error) {
	if len(b) < gifHeader {
		return nil, errGIFEnd
	}
	size := gifHeader + colourTable(b[10])
	if size > len(b) {
		return nil, errGIFEnd
	}
	fn(0, 0, false, b[:size])
	b = b[size:]
	for len(b) > 0 {
		kind, label, data := b[0], byte(0), 0
		switch kind {
		case gifTrailer:
			fn(kind, 0, false, b[:1])
			return b[1:], nil
		case gifExtension:
			data = 2
		case gifPicture:
			if len(b) < gifPictureBytes {
				return nil, errGIFEnd
			}
			data = gifPictureBytes + colourTable(b[9]) + 1 // and the code size
		default:
			return nil, errors.New("unknown block")
		}
		end := data
		for { // sub-blocks: a length and as many bytes, ended by a zero
			if end >= len(b) {
				return nil, errGIFEnd
			}
			n := int(b[end])
			end += 1 + n
			if n == 0 {
				break
			}
		}
		animation := false
		if kind == gifExtension {
			label = b[1]
			name := string(b[data+1 : min(data+12, end)])
			animation = label == gifApplication &&
				(strings.HasPrefix(name, "NETSCAPE2.0") || strings.HasPrefix(name, "ANIMEXTS1.0"))
		}
		fn(kind, label, animation, b[:end])
		b = b[end:]
	}
	return nil, errGIFEnd
}

// colourTable returns the size of the colour table that a descriptor's packed
// field announces.
func colourTable(packed byte) int {
	if packed&0x80 == 0 {
		return 0
	}
	return 3 << (packed&7 + 1)
}

// gifKeeps reports whether a clean GIF still has a block.
func gifKeeps(kind, label byte, animation bool) bool {
	return kind != gifExtension || label != gifComment && (label != gifApplication || animation)
}

// inspectGIF fills h from the blocks of b.
func inspectGIF(b []byte, h *header) error {
	pictures := 0
	rest, err := walkGIF(b, func(kind, label byte, animation bool, _ []byte) {
		h.metadata = h.metadata || !gifKeeps(kind, label, animation)
		if kind == gifPicture {
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
	_, err := walkGIF(b, func(kind, label byte, animation bool, raw []byte) {
		if gifKeeps(kind, label, animation) {
			out = append(out, raw...)
		}
	})
	if err != nil {
		return nil, broken(err)
	}
	return out, nil
}
