package photo

import "encoding/binary"

// The EXIF tags that are read (EXIF 2.32, section 4.6).
const (
	tagOrientation = 0x0112
	tagEXIF        = 0x8769 // where the EXIF directory is
	tagGPS         = 0x8825 // where the GPS directory is
	tagMakerNote   = 0x927c // the maker's own data, which may hold anything
)

const typeShort = 3 // a 16-bit number

// exif is what matters of an EXIF block.
type exif struct {
	orientation int
	private     bool // it holds a location, or something that may hide one
}

// parseEXIF reads a TIFF block, as it stands in a JPEG after "Exif\0\0", in a
// PNG's eXIf and a WebP's EXIF chunk. What it cannot follow is private and
// upright.
func parseEXIF(b []byte) exif {
	unreadable := exif{orientation: 1, private: true}
	if len(b) < 8 {
		return unreadable
	}
	var order binary.ByteOrder
	switch string(b[:4]) {
	case "II*\x00":
		order = binary.LittleEndian
	case "MM\x00*":
		order = binary.BigEndian
	default:
		return unreadable
	}
	out := exif{orientation: 1}
	deeper := uint32(0)
	ok := eachTag(b, order, order.Uint32(b[4:]), func(tag, kind uint16, value []byte) {
		switch tag {
		case tagOrientation:
			if o := order.Uint16(value); kind == typeShort && 1 <= o && o <= 8 {
				out.orientation = int(o)
			}
		case tagEXIF:
			deeper = order.Uint32(value)
		case tagGPS, tagMakerNote:
			out.private = true
		}
	})
	if ok && deeper != 0 {
		ok = eachTag(b, order, deeper, func(tag, _ uint16, _ []byte) {
			if tag == tagMakerNote || tag == tagGPS {
				out.private = true
			}
		})
	}
	out.private = out.private || !ok
	return out
}

// eachTag calls fn for each entry of the directory at offset, with its four
// bytes of value. It reports whether the whole directory lies inside b.
func eachTag(b []byte, order binary.ByteOrder, offset uint32, fn func(tag, kind uint16, value []byte)) bool {
	if uint64(offset)+2 > uint64(len(b)) {
		return false
	}
	count := int(order.Uint16(b[offset:]))
	entries := b[offset+2:]
	for range count {
		if len(entries) < 12 {
			return false
		}
		fn(order.Uint16(entries), order.Uint16(entries[2:]), entries[8:12])
		entries = entries[12:]
	}
	return true
}
