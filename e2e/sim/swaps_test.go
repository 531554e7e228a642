package sim

import (
	"fmt"
	"net/http"
	"slices"
)

// swaps is what changes in a chaos about who may see what: eve is now fay's
// partner and now gil's, and a frame of cat's is revoked. Nobody may see what
// was sent to somebody else, or after they had lost the right.
type swaps struct {
	c             *chaos
	eve, fay, gil *phone
	porch         *frame // fay's
	pair          string
	with          *phone // eve's partner
	paired        int    // photos made before they were paired the last time

	attic   *frame // cat's
	revoked int    // photos made before it was revoked; 0: it is not
}

func newSwaps(c *chaos) *swaps {
	c.w.t.Helper()
	s := &swaps{c: c, pair: c.w.createPair("eve", "fay")}
	on := func(user string) *phone { return c.w.phone(user, "http://server").on() }
	s.eve, s.fay, s.gil = on("eve"), on("fay"), on("gil")
	s.with = s.fay
	s.porch, s.attic = c.w.frame("fay", "porch").on(), c.w.frame("cat", "attic").on()
	return s
}

func (s *swaps) phones() []*phone { return []*phone{s.eve, s.fay, s.gil} }
func (s *swaps) frames() []*frame { return []*frame{s.porch, s.attic} }

// step sends something, or changes something.
func (s *swaps) step() {
	switch n := s.c.random.IntN(10); {
	case n < 4:
		s.c.tell("eve sends %s", s.eve.send(500+s.c.random.IntN(30_000)).id)
	case n < 7:
		s.c.tell("%s sends %s", s.with.host, s.with.send(500+s.c.random.IntN(30_000)).id)
	case n < 9:
		s.swap()
	case s.revoked == 0:
		s.revoke()
	}
}

// swap gives eve the other partner.
func (s *swaps) swap() {
	w := s.c.w
	w.t.Helper()
	w.removePair(s.pair)
	w.book.part("eve", s.with.user)
	if s.with == s.fay {
		s.with = s.gil
	} else {
		s.with = s.fay
	}
	s.pair, s.paired = w.createPair("eve", s.with.user), w.book.made()
	s.c.tell("eve is paired with %s", s.with.user)
}

func (s *swaps) revoke() {
	w := s.c.w
	w.t.Helper()
	w.must(w.ask(http.MethodDelete, "/devices/"+s.attic.id, nil, nil))
	s.revoked = w.book.made()
	s.c.tell("the attic is revoked")
}

// settle makes the changes that the schedule did not, and sends photos that
// everybody of the last pair must see.
func (s *swaps) settle() {
	s.c.w.t.Helper()
	if s.revoked == 0 {
		s.revoke()
	}
	s.swap()
	for range 3 {
		s.eve.send(3000)
		s.with.send(3000)
	}
	s.c.phones[3].send(3000) // dan's: the attic must not get it
}

// missing says what has not come to rest.
func (s *swaps) missing() string {
	for _, p := range s.phones() {
		if !p.idle() {
			return p.host + " has not sent all its photos"
		}
	}
	views := []viewer{s.eve.view(), s.with.view()}
	if s.with == s.fay {
		views = append(views, s.porch.view())
	}
	for _, v := range views {
		for _, ids := range s.c.w.book.of(v.partner) {
			for _, id := range ids {
				p := s.c.w.book.photo(id)
				if p.n > s.paired && !slices.ContainsFunc(v.seen, func(g sighting) bool { return g.id == id }) {
					return fmt.Sprintf("%s misses %s", v.name, id)
				}
			}
		}
	}
	return ""
}

func (s *swaps) check() {
	book, t := s.c.w.book, s.c.w.t
	t.Helper()
	for _, v := range []viewer{s.eve.view(), s.fay.view(), s.gil.view()} {
		book.checkShown(t, v, func(p *photo) bool { return p.to+"-phone" == v.name })
	}
	book.checkShown(t, s.porch.view(), func(p *photo) bool { return p.to == "fay" })
	book.checkShown(t, s.attic.view(), func(p *photo) bool { return p.to == "cat" && p.n <= s.revoked })
	for _, p := range s.phones() {
		for id, code := range p.final() {
			// What an app had queued for a partner it has no more.
			if ph := book.photo(id); code != "not_partner" && code != "not_paired" || ph.n > s.paired {
				t.Errorf("%s of %s for %s was refused: %s", id, p.host, ph.to, code)
			}
		}
	}
	for _, p := range []*phone{s.eve, s.with} {
		if online, known := p.partnerOnline(); !online || !known {
			t.Errorf("%s shows its partner online %t (known %t)", p.host, online, known)
		}
	}
	if st := s.attic.status(); st.Connected {
		t.Error("the attic is connected though it is revoked")
	}
}
