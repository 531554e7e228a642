package sim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"image"
	"image/jpeg"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// photo is one photo that was given to a sender.
type photo struct {
	n      int // how many were made before it, and this one
	id     string
	sender string // the user
	to     string // their partner when it was made
	source string // the program that sends it, which keeps it in order
	bytes  []byte
	sum    [32]byte
}

// book knows every photo of a world, in the order in which each source was
// given them. It is safe for concurrent use.
type book struct {
	mu     sync.Mutex // guards the fields below
	next   int
	photos map[string]*photo
	order  []*photo
	pairs  map[string]string // user to partner
}

func newBook() *book { return &book{photos: map[string]*photo{}, pairs: map[string]string{}} }

// pair notes whose photos a user is to see.
func (b *book) pair(a, other string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pairs[a], b.pairs[other] = other, a
}

// part notes that a user is in no pair.
func (b *book) part(users ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, user := range users {
		delete(b.pairs, user)
	}
}

func (b *book) partner(user string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pairs[user]
}

// make enters a new photo of about size bytes.
func (b *book) make(sender, source string, size int) *photo {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	p := &photo{n: b.next, id: fmt.Sprintf("%s-%04d", source, b.next), sender: sender, to: b.pairs[sender], source: source}
	p.bytes = newJPEG(uint64(b.next), size)
	b.enter(p)
	return p
}

// enter takes a photo in; b.mu is held.
func (b *book) enter(p *photo) {
	p.sum = sha256.Sum256(p.bytes)
	b.photos[p.id] = p
	b.order = append(b.order, p)
}

// name gives a photo whose sender chose the id itself (an agent) that id.
func (b *book) name(p *photo, id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.photos, p.id)
	p.id = id
	b.photos[id] = p
}

func (b *book) photo(id string) *photo {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.photos[id]
}

// of returns the ids of sender's photos, by source and in order.
func (b *book) of(sender string) map[string][]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string][]string{}
	for _, p := range b.order {
		if p.sender == sender {
			out[p.source] = append(out[p.source], p.id)
		}
	}
	return out
}

// made is how many photos there are.
func (b *book) made() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.next
}

// sighting is one photo that became visible to somebody.
type sighting struct {
	id     string
	sender string // as the message said
	sum    [32]byte
}

// viewer is one screen: what it has shown, in order.
type viewer struct {
	name    string
	partner string // whose photos it is to show
	seen    []sighting
}

// check is the promise: v has shown every photo that its partner sent, each
// once, byte for byte and in the order of its source, and nothing else. All
// senders must have had their acknowledgements.
func (b *book) check(t testing.TB, v viewer) {
	t.Helper()
	got := b.checkShown(t, v, func(p *photo) bool { return p.sender == v.partner && p.sender != "" })
	for source, want := range b.of(v.partner) {
		if !slices.Equal(got[source], want) {
			t.Errorf("%s: photos of %s\n got %v\nwant %v", v.name, source, got[source], want)
		}
	}
}

// checkShown is check without the promise that everything has come: what v has
// shown is what it may show, each photo once, byte for byte and in the order of
// its source. It returns the ids by source.
func (b *book) checkShown(t testing.TB, v viewer, may func(*photo) bool) map[string][]string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	got := map[string][]string{}
	times, place := map[string]int{}, map[string]int{}
	for _, s := range v.seen {
		p := b.photos[s.id]
		switch times[s.id]++; {
		case p == nil:
			t.Errorf("%s shows %q, which nobody sent", v.name, s.id)
			continue
		case !may(p) || s.sender != p.sender:
			t.Errorf("%s shows %q of %q for %q (it says %q), which is not for it to show", v.name, s.id, p.sender, p.to, s.sender)
		case p.sum != s.sum:
			t.Errorf("%s shows %q with other bytes than were sent", v.name, s.id)
		case times[s.id] > 1:
			t.Errorf("%s shows %q for the %d. time", v.name, s.id, times[s.id])
			continue
		}
		at := slices.Index(b.order, p)
		if at < place[p.source] {
			t.Errorf("%s shows %q after a later one of %s", v.name, s.id, p.source)
		}
		place[p.source] = at
		got[p.source] = append(got[p.source], s.id)
	}
	return got
}

// newJPEG returns a picture of noise of about size bytes, which no other seed
// has. An agent sends it as it is.
func newJPEG(seed uint64, size int) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	side := max(4, int(math.Sqrt(float64(max(0, size-500)))))
	picture := image.NewGray(image.Rect(0, 0, side, side))
	for i := range picture.Pix {
		picture.Pix[i] = byte(random.Uint32())
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, picture, &jpeg.Options{Quality: 90}); err != nil {
		panic(err) // into memory: cannot be
	}
	return out.Bytes()
}
