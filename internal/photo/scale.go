package photo

import (
	"image"
	"image/draw"

	xdraw "golang.org/x/image/draw"
)

// resize draws the part crop of src at w×h on white. It shrinks in two steps:
// an average over whole boxes of pixels, row by row, down to less than twice
// the size, and bilinear for the rest. The result is as smooth as a cubic
// filter's for a fraction of its memory.
func resize(src image.Image, crop image.Rectangle, w, h int) *image.RGBA {
	if k := min(crop.Dx()/w, crop.Dy()/h); k > 1 {
		src = boxAverage(src, crop, k)
		crop = src.Bounds()
	}
	dst := image.NewRGBA(image.Rect(0, 0, w, h))
	op := draw.Src
	if !opaque(src) {
		draw.Draw(dst, dst.Bounds(), image.White, image.Point{}, draw.Src)
		op = draw.Over
	}
	if crop.Dx() == w && crop.Dy() == h {
		draw.Draw(dst, dst.Bounds(), src, crop.Min, op)
	} else {
		xdraw.ApproxBiLinear.Scale(dst, dst.Bounds(), src, crop, op, nil)
	}
	return dst
}

// boxAverage returns the part crop of src, on white, with every box of k×k
// pixels made one. Pixels that fill no box are left out on all four sides.
func boxAverage(src image.Image, crop image.Rectangle, k int) *image.RGBA {
	w, h := crop.Dx()/k, crop.Dy()/k
	at := crop.Min.Add(image.Pt(crop.Dx()%k/2, crop.Dy()%k/2))
	dst := image.NewRGBA(image.Rect(0, 0, w, h))
	row := image.NewRGBA(image.Rect(0, 0, w*k, 1))
	sums := make([]uint64, 3*w)
	op, area := draw.Src, uint64(k)*uint64(k)
	if !opaque(src) {
		op = draw.Over
	}
	for y := range h {
		clear(sums)
		for range k {
			if op == draw.Over {
				draw.Draw(row, row.Bounds(), image.White, image.Point{}, draw.Src)
			}
			draw.Draw(row, row.Bounds(), src, at, op)
			addBoxes(sums, row.Pix, k)
			at.Y++
		}
		out := dst.Pix[y*dst.Stride:]
		for x := range w {
			for c := range 3 {
				out[4*x+c] = byte((sums[3*x+c] + area/2) / area)
			}
			out[4*x+3] = 0xff
		}
	}
	return dst
}

// addBoxes adds every k pixels of a row to the sums of red, green and blue.
func addBoxes(sums []uint64, pix []byte, k int) {
	for x := 0; len(sums) > 3*x; x++ {
		var r, g, b uint64
		box := pix[4*x*k : 4*(x+1)*k]
		for i := 0; i+3 < len(box); i += 4 {
			r += uint64(box[i])
			g += uint64(box[i+1])
			b += uint64(box[i+2])
		}
		sums[3*x] += r
		sums[3*x+1] += g
		sums[3*x+2] += b
	}
}

func opaque(m image.Image) bool {
	o, ok := m.(interface{ Opaque() bool })
	return ok && o.Opaque()
}

// turned returns a size after an EXIF orientation.
func turned(w, h, orientation int) (int, int) {
	if orientation >= 5 {
		return h, w
	}
	return w, h
}

// upright returns m as it is shown under an EXIF orientation (EXIF 2.32,
// section 4.6.4, tag 0x0112): m itself for 1.
func upright(m *image.RGBA, orientation int) *image.RGBA {
	if orientation <= 1 || orientation > 8 {
		return m
	}
	w, h := m.Rect.Dx(), m.Rect.Dy()
	dw, dh := turned(w, h, orientation)
	dst := image.NewRGBA(image.Rect(0, 0, dw, dh))
	// The pixel that comes to the upper left, and the steps in m that one step
	// right and one step down make.
	last, bottom, line := 4*(w-1), (h-1)*m.Stride, m.Stride
	from := [9]struct{ start, right, down int }{
		2: {last, -4, line},
		3: {bottom + last, -4, -line},
		4: {bottom, 4, -line},
		5: {0, line, 4},
		6: {bottom, -line, 4},
		7: {bottom + last, -line, -4},
		8: {last, line, -4},
	}[orientation]
	for y := range dh {
		at := from.start + y*from.down
		out := dst.Pix[y*dst.Stride : y*dst.Stride+4*dw]
		for x := 0; x < len(out); x += 4 {
			copy(out[x:x+4], m.Pix[at:at+4])
			at += from.right
		}
	}
	return dst
}

// encodable reports whether the JPEG encoder reads m directly and fast.
func encodable(m image.Image) bool {
	switch m.(type) {
	case *image.YCbCr, *image.Gray, *image.RGBA:
		return true
	}
	return false
}
