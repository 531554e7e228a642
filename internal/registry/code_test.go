package registry

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func mustCode(t *testing.T, r *Registry, user string) PairingCode {
	t.Helper()
	c, err := r.NewPairingCode(t.Context(), user)
	if err != nil {
		t.Fatalf("NewPairingCode(%q): %v", user, err)
	}
	return c
}

func TestPairingCode(t *testing.T) {
	r, store := newTest(t)
	c := mustCode(t, r, "ana")
	if len(c.Code) != CodeLength || strings.Trim(c.Code, codeAlphabet) != "" || c.User != "ana" || time.Until(c.Expires) > CodeLife {
		t.Fatalf("code %+v", c)
	}
	r = openTest(t, store) // a restart keeps it
	typed := strings.ToLower(c.Code[:3]) + " - " + c.Code[3:]
	p, err := r.JoinPair(t.Context(), typed, "ben")
	if err != nil || p.Users != [2]string{"ana", "ben"} || !p.ByCode {
		t.Fatalf("JoinPair: %+v, %v", p, err)
	}
	if got, ok := openTest(t, store).PairOf("ben"); !ok || got != p {
		t.Errorf("after a restart: %+v, want %+v", got, p)
	}
	if keys := keysOf(t, store, keyCode); len(keys) != 0 {
		t.Errorf("codes left on disk: %q", keys)
	}
}

func TestPairingCodeRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, store := newTest(t)
		join := func(what, code, user string, want error) {
			t.Helper()
			before := r.Pairs()
			if p, err := r.JoinPair(t.Context(), code, user); !errors.Is(err, want) || len(r.Pairs()) != len(before) {
				t.Errorf("%s: %+v, %v, want %v", what, p, err, want)
			}
		}
		old := mustCode(t, r, "ana")
		ana := mustCode(t, r, "ana")
		join("replaced", old.Code, "ben", ErrCode)
		join("unknown", "AAAAAA", "ben", ErrCode)
		join("none", "", "ben", ErrCode)
		join("endless", strings.Repeat(" ", 1<<20)+ana.Code, "ben", ErrCode)
		join("own", ana.Code, "ana", ErrSameUser)
		mustPair(t, r, "cem", "dan")
		join("joiner is paired", ana.Code, "cem", ErrPaired)
		if _, err := r.NewPairingCode(t.Context(), "cem"); !errors.Is(err, ErrPaired) {
			t.Errorf("code of one who is paired: %v", err)
		}
		p := mustPair(t, r, "ana", "eve")
		join("other is paired", ana.Code, "ben", ErrPartnerPaired)
		if _, err := r.RemovePair(t.Context(), p.ID); err != nil {
			t.Fatal(err)
		}
		join("of before a pair", ana.Code, "ben", ErrCode)

		ana = mustCode(t, r, "ana")
		time.Sleep(CodeLife)
		join("too old", ana.Code, "ben", ErrCode)
		r = openTest(t, store)
		join("too old, after a restart", ana.Code, "ben", ErrCode)
		eve := mustCode(t, r, "eve")
		if keys := keysOf(t, store, keyCode); len(keys) != 1 {
			t.Errorf("old codes stay on disk: %q", keys)
		}
		if _, err := r.JoinPair(t.Context(), eve.Code, "ben"); err != nil {
			t.Fatal(err)
		}
		join("used", eve.Code, "ana", ErrCode)
	})
}

// TestPairingCodeOnce: of many who use one code at a time, one gets in.
func TestPairingCodeOnce(t *testing.T) {
	r, store := newTest(t)
	c := mustCode(t, r, "ana")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { _, _ = r.JoinPair(t.Context(), c.Code, fmt.Sprintf("user-%d", i)) })
	}
	wg.Wait()
	if n := len(r.Pairs()); n != 1 {
		t.Errorf("%d pairs of one code", n)
	}
	// What could not be written did not happen.
	zoe := mustCode(t, r, "zoe")
	store.Break(errors.New("disk gone"))
	if _, err := r.JoinPair(t.Context(), zoe.Code, "yan"); err == nil {
		t.Fatal("joined without a disk")
	}
	store.Break(nil)
	if _, err := r.JoinPair(t.Context(), zoe.Code, "yan"); err != nil {
		t.Errorf("the code after a failure of the disk: %v", err)
	}
}
