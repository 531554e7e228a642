package broker

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// TestLaterLog: what waits to be sent later is nobody's to trim, and goes with
// its pair.
func TestLaterLog(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.cfg.KeepLast = 1
		later := ledger.LaterLog(w.pair.ID)
		add := func(id string) error {
			_, _, err := ledger.Append(t.Context(), w.ledger, later, moment.Moment{
				Pair: w.pair.ID, User: "ann", Kind: moment.Photo, ID: id, Payload: []byte("x"),
			})
			return err
		}
		for i := range 5 {
			if err := add(fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		waiting := func() int {
			st, err := w.ledger.Stat(t.Context(), later)
			if err != nil {
				t.Fatal(err)
			}
			return st.Entries
		}
		w.restart()
		settle(2 * time.Hour)
		if n := waiting(); n != 5 {
			t.Errorf("%d of 5 still wait", n)
		}
		if _, err := w.reg.RemovePair(t.Context(), w.pair.ID); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if n := waiting(); n != 0 {
			t.Errorf("%d wait after the end of their pair", n)
		}
		if err := add("late"); !errors.Is(err, ledger.ErrDeleted) {
			t.Errorf("one more after the end: %v, want ErrDeleted", err)
		}
	})
}
