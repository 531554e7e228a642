package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"image"
	"image/jpeg"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

// What must never be read in a log of a server or an agent. Every photo of
// these tests carries photoMark, every caption holds captionMark.
const (
	photoMark   = "nobody but the two of them may see this picture!"
	captionMark = "a caption between the two of them"
)

// secrets looks through the logs of a test when it ends.
type secrets struct {
	mu    sync.Mutex        // guards the fields below
	texts map[string]string // by what it is
	procs []*process
}

func newSecrets(t testing.TB) *secrets {
	s := &secrets{texts: map[string]string{
		"a caption":         captionMark,
		"a payload":         photoMark,
		"a base64 payload":  base64.StdEncoding.EncodeToString(newPhoto(0))[:64],
		"a payload in hex":  hex.EncodeToString(newPhoto(0)[:24]),
		"a quoted payload":  `\xff\xd8\xff`,
		"a payload as list": "255 216 255",
	}}
	t.Cleanup(func() { s.check(t) })
	return s
}

func (s *secrets) add(what, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts[what] = text
	// The signature alone makes a stolen token; the claims alone tell who.
	if parts := strings.Split(text, "."); len(parts) == 3 && parts[2] != "" {
		s.texts[what+", its claims"], s.texts[what+", its signature"] = parts[1], parts[2]
	}
}

// watch has p's output checked.
func (s *secrets) watch(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.procs = append(s.procs, p)
}

func (s *secrets) check(t testing.TB) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.procs {
		for _, line := range p.out.all() {
			for what, text := range s.texts {
				if strings.Contains(line, text) {
					t.Errorf("the log of %s holds %s: %s", p.name, what, clip(line))
				}
			}
		}
	}
}

// newPhoto makes a JPEG that nobody has seen before, of about n bytes beyond
// the smallest: what is missing goes into comments, so that it costs nothing
// to make or to check.
func newPhoto(n int) []byte {
	plain := plainPhoto()
	var out bytes.Buffer
	out.Write(plain[:2])
	comment := func(b []byte) {
		out.Write([]byte{0xFF, 0xFE, byte((len(b) + 2) >> 8), byte(len(b) + 2)})
		out.Write(b)
	}
	comment([]byte(photoMark))
	noise := make([]byte, max(n, 16))
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	const longest = 65533
	for len(noise) > 0 {
		k := min(longest, len(noise))
		comment(noise[:k])
		noise = noise[k:]
	}
	out.Write(plain[2:])
	return out.Bytes()
}

// plainPhoto makes a small JPEG of random grey.
func plainPhoto() []byte {
	img := image.NewGray(image.Rect(0, 0, 16, 16))
	for i := range img.Pix {
		img.Pix[i] = uint8(rand.Uint32())
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, img, nil); err != nil {
		panic(err) // into memory, an image of 16 × 16: it cannot fail
	}
	return out.Bytes()
}
