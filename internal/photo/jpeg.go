package photo

import (
	"bytes"
	"errors"
	"fmt"
)

// The JPEG markers that are told apart (ITU-T T.81, table B.1).
const (
	markSOF0 = 0xc0 // baseline; SOF1 is extended, SOF2 progressive
	markSOF2 = 0xc2
	markRST0 = 0xd0
	markRST7 = 0xd7
	markSOI  = 0xd8
	markEOI  = 0xd9
	markSOS  = 0xda
	markAPP0 = 0xe0
	markAPP1 = 0xe1
	markAPP2 = 0xe2
	markAPPE = 0xee // Adobe's colour transform
	markAPPF = 0xef
	markCOM  = 0xfe
)

// maxScans bounds the passes over the whole photo that a few bytes can ask
// for. Progressive photos have about ten.
const maxScans = 64

// maxProfileBytes is the largest colour profile that is carried over. Those
// of cameras and screens are below 4 KiB.
const maxProfileBytes = 64 << 10

const (
	iccPrefix  = "ICC_PROFILE\x00" // then chunk number and count, one byte each
	exifPrefix = "Exif\x00\x00"
)

// segment is one marker segment of a JPEG.
type segment struct {
	marker byte
	data   []byte // what follows the length
	raw    []byte // the whole of it: marker, length, data and, after SOS, the scan
}

// walkJPEG calls fn for every segment between SOI and EOI and returns what
// follows EOI. Bytes between segments belong to none and are passed over, as
// decoders do.
func walkJPEG(b []byte, fn func(segment) error) (rest []byte, err error) {
	b = b[2:] // SOI, which Sniff has seen
	for {
		at := bytes.IndexByte(b, 0xff)
		if at < 0 || at+1 >= len(b) {
			return nil, errors.New("no end of image")
		}
		b = b[at:]
		switch mark := b[1]; {
		case mark == 0 || markRST0 <= mark && mark <= markRST7:
			b = b[2:]
			continue
		case mark == 0xff: // fill bytes
			b = b[1:]
			continue
		case mark == markEOI:
			return b[2:], nil
		case mark < markSOF0 || mark == markSOI:
			return nil, fmt.Errorf("unknown marker %#x", mark)
		}
		if len(b) < 4 {
			return nil, errors.New("truncated segment")
		}
		size := 2 + int(b[2])<<8 + int(b[3])
		if size < 4 || size > len(b) {
			return nil, errors.New("truncated segment")
		}
		s := segment{marker: b[1], data: b[4:size]}
		if s.marker == markSOS {
			size += scanLen(b[size:])
		}
		s.raw = b[:size]
		if err := fn(s); err != nil {
			return nil, err
		}
		b = b[size:]
	}
}

// scanLen returns the length of the entropy-coded data that b begins with: up
// to the first marker that is neither stuffing nor a restart.
func scanLen(b []byte) int {
	at := 0
	for {
		i := bytes.IndexByte(b[at:], 0xff)
		if i < 0 || at+i+1 >= len(b) {
			return len(b)
		}
		at += i
		if next := b[at+1]; next != 0 && (next < markRST0 || next > markRST7) {
			return at
		}
		at += 2
	}
}

// inspectJPEG fills h from the segments of b.
func inspectJPEG(b []byte, h *header) error {
	scans, exifs := 0, 0
	var profile []byte
	var frame segment
	rest, err := walkJPEG(b, func(s segment) error {
		if !keepsSegment(s) {
			h.metadata = true
		}
		switch {
		case s.marker == markSOS:
			if scans++; scans > maxScans {
				return fmt.Errorf("%w: more than %d scans", ErrTooLarge, maxScans)
			}
		case markSOF0 <= s.marker && s.marker <= markSOF2:
			frame = s
		case s.marker == markAPP1 && bytes.HasPrefix(s.data, []byte(exifPrefix)):
			e := parseEXIF(s.data[len(exifPrefix):])
			if exifs++; exifs == 1 {
				h.Orientation = e.orientation
			}
			h.private = h.private || e.private
		case isProfile(s):
			if len(profile) <= maxProfileBytes {
				profile = append(profile, s.data[len(iccPrefix)+2:]...)
			}
		case !keepsSegment(s): // XMP, IPTC, a comment, a second picture, …
			h.private = true
		}
		return nil
	})
	switch {
	case errors.Is(err, ErrTooLarge):
		return err
	case err != nil:
		return broken(err)
	case scans == 0:
		return broken(errors.New("no picture in it"))
	case len(rest) > 0: // a film, a second picture with its own metadata, …
		h.private, h.metadata = true, true
	}
	if h.pixelBytes, err = jpegBytes(frame, h.Width, h.Height); err != nil {
		return broken(err)
	}
	if components := frame.data[5]; components == 3 { // other profiles fit no JPEG of ours
		h.profile = rgbProfile(profile)
	}
	return nil
}

// jpegBytes returns what image/jpeg allocates for the frame: a byte for every
// sample, in whole blocks; four more for the coefficients of a progressive
// photo, which are kept to the end; and a converted copy for CMYK and RGB.
func jpegBytes(frame segment, w, h int) (int64, error) {
	d := frame.data
	if len(d) < 6 || len(d) != 6+3*int(d[5]) || d[5] == 0 {
		return 0, errors.New("bad frame header")
	}
	if int(d[1])<<8+int(d[2]) != h || int(d[3])<<8+int(d[4]) != w {
		return 0, errors.New("two frame headers")
	}
	components := int(d[5])
	sampling := func(i int) (h, v int64) {
		if components == 1 {
			return 1, 1 // T.81, section A.2.2
		}
		return int64(d[7+3*i] >> 4), int64(d[7+3*i] & 15)
	}
	h0, v0 := sampling(0)
	if h0 == 0 || v0 == 0 {
		return 0, errors.New("bad frame header")
	}
	across, down := (int64(w)+8*h0-1)/(8*h0), (int64(h)+8*v0-1)/(8*v0)
	samples := int64(0)
	for i := range components {
		hi, vi := sampling(i)
		samples += across * down * 64 * hi * vi
	}
	total := samples
	if frame.marker == markSOF2 {
		total += 4 * samples
	}
	if components == 4 || components == 3 && d[6] == 'R' && d[9] == 'G' && d[12] == 'B' {
		total += 4 * int64(w) * int64(h)
	}
	return total, nil
}

// keepsSegment reports whether a clean photo still has s: what is needed to
// show it right, and nothing else.
func keepsSegment(s segment) bool {
	switch {
	case s.marker == markAPP0:
		return bytes.HasPrefix(s.data, []byte("JFIF\x00"))
	case s.marker == markAPPE:
		return bytes.HasPrefix(s.data, []byte("Adobe"))
	case isProfile(s):
		return true
	}
	return s.marker < markAPP0 || s.marker > markAPPF && s.marker != markCOM
}

func isProfile(s segment) bool {
	return s.marker == markAPP2 && len(s.data) >= len(iccPrefix)+2 && string(s.data[:len(iccPrefix)]) == iccPrefix
}

// cleanJPEG returns b, which passed inspect, without metadata; the picture's
// own bytes stay as they are.
func cleanJPEG(b []byte) ([]byte, error) {
	out := append(make([]byte, 0, len(b)), 0xff, markSOI)
	_, err := walkJPEG(b, func(s segment) error {
		if keepsSegment(s) {
			out = append(out, s.raw...)
		}
		return nil
	})
	if err != nil {
		return nil, broken(err)
	}
	return append(out, 0xff, markEOI), nil
}

// rgbProfile returns an ICC profile if it is whole, small and about RGB (ICC.1,
// section 7.2), else nil.
func rgbProfile(p []byte) []byte {
	if len(p) < 128 || len(p) > maxProfileBytes || string(p[16:20]) != "RGB " || string(p[36:40]) != "acsp" {
		return nil
	}
	return p
}

// profileSegments returns the APP2 segment of a profile that rgbProfile let
// through, none for nil, or two of them where it is too large for one (ICC.1, annex B.4).
func profileSegments(p []byte) []byte {
	const most = 65535 - 2 - len(iccPrefix) - 2
	count := (len(p) + most - 1) / most
	var out []byte
	for i := range count {
		part := p[i*most : min((i+1)*most, len(p))]
		size := 2 + len(iccPrefix) + 2 + len(part)
		out = append(out, 0xff, markAPP2, byte(size>>8), byte(size))
		out = append(append(out, iccPrefix...), byte(i+1), byte(count))
		out = append(out, part...)
	}
	return out
}
