package badgerledger

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/ledger"
	"pairsync/internal/moment"
)

// crashDir, in the environment, makes the test binary the program that is
// killed; its value is the store's directory and crashRound a prefix of ids.
const (
	crashDir   = "PAIRSYNC_TEST_CRASH_DIR"
	crashRound = "PAIRSYNC_TEST_CRASH_ROUND"
)

// endedItself is the exit code of the program when nobody killed it.
const endedItself = 17

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		fmt.Fprintln(os.Stderr, appendUntilKilled(dir, os.Getenv(crashRound), os.Stdout))
		os.Exit(endedItself)
	}
	os.Exit(m.Run())
}

// appendUntilKilled appends photos to one log and prints each once it was
// acknowledged, and meanwhile fills and trims another, so that value-log files
// are collected while it is killed. It returns only an error.
func appendUntilKilled(dir, round string, out io.Writer) error {
	db, err := badgerdb.Open(dir, badgerdb.Device, quiet)
	if err != nil {
		return err
	}
	l, err := New(db, Config{}, quiet)
	if err != nil {
		return err
	}
	ctx := context.Background()
	fail := make(chan error, 8)
	var mu sync.Mutex // one line at a time
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				m := crashMoment(fmt.Sprintf("u%d", w), fmt.Sprintf("%s-%d", round, i))
				seq, _, err := ledger.Append(ctx, l, pairLog, m)
				if err != nil {
					fail <- err
					return
				}
				mu.Lock()
				fmt.Fprintln(out, m.User, m.ID, uint64(seq))
				mu.Unlock()
			}
		}()
	}
	go func() {
		for i := 0; ; i++ {
			m := moment.Moment{Pair: "churn", User: "u", Kind: moment.Photo, ID: fmt.Sprintf("%s-%d", round, i), Payload: make([]byte, 400_000)}
			_, _, err := ledger.Append(ctx, l, "pair:churn", m)
			if err == nil && i%10 == 9 {
				_, err = l.Trim(ctx, "pair:churn", ledger.Retention{Before: time.Now().Add(time.Hour)})
			}
			if err != nil {
				fail <- err
				return
			}
		}
	}()
	return <-fail
}

const pairLog = ledger.LogID("pair:p1")

// crashMoment returns the moment of a user and id, always with the same bytes.
func crashMoment(user, id string) moment.Moment {
	n := 500
	if len(id)%2 == 0 {
		n = 30_000
	}
	return moment.Moment{Pair: "p1", User: user, Kind: moment.Photo, ID: id, Payload: bytes.Repeat([]byte(user+id), n/len(user+id))}
}

// acked is one line of the killed program.
type acked struct {
	user, id string
	seq      ledger.Seq
}

// TestKill kills a writing process again and again and expects every moment
// that it acknowledged to be there, in order, each time.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	var all []acked
	for round := range 6 {
		got := runAndKill(t, dir, fmt.Sprint("r", round), time.Duration(200+100*round)*time.Millisecond)
		all = append(all, got...)
		verifyAcked(t, dir, all)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	t.Logf("%d acknowledged appends, none lost", len(all))
}

// runAndKill starts the writing program, kills it when it has acknowledged
// something and the time is over, and returns what it acknowledged.
func runAndKill(t *testing.T, dir, round string, after time.Duration) (all []acked) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashRound+"="+round)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var a acked
		if _, err := fmt.Sscan(lines.Text(), &a.user, &a.id, &a.seq); err != nil || !strings.HasPrefix(a.id, round+"-") {
			break // the line it died in
		}
		if len(all) == 0 {
			timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
		}
		all = append(all, a)
	}
	_ = cmd.Process.Kill()
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() == endedItself {
		t.Fatalf("the program ended by itself: %v", err)
	}
	return all
}

func verifyAcked(t *testing.T, dir string, all []acked) {
	t.Helper()
	db, err := badgerdb.Open(dir, badgerdb.Device, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	l := newLedger(t, db, Config{})
	at := make(map[acked]bool)
	var after ledger.Seq
	var entries int
	var size int64
	for {
		b, err := l.Read(t.Context(), pairLog, after, ledger.Limit{Entries: 500})
		if err != nil {
			t.Fatal(err)
		}
		if len(b.Entries) == 0 {
			break
		}
		for _, e := range b.Entries {
			want := crashMoment(e.User, e.ID)
			if e.Damaged || e.Seq <= after || !bytes.Equal(e.Payload, want.Payload) {
				t.Errorf("entry %d after %d: damaged %v, %d bytes, want %d", e.Seq, after, e.Damaged, len(e.Payload), len(want.Payload))
			}
			at[acked{e.User, e.ID, e.Seq}] = true
			after = e.Seq
			entries++
			size += int64(e.Size)
		}
	}
	lost := slices.DeleteFunc(slices.Clone(all), func(a acked) bool { return at[a] })
	if len(lost) > 0 {
		t.Errorf("%d of %d acknowledged moments are lost, the first %+v", len(lost), len(all), lost[0])
	}
	if st, err := l.Stat(t.Context(), pairLog); err != nil || st.Entries != entries || st.Bytes != size || st.Head != after {
		t.Errorf("stat %+v, %v; want %d entries of %d bytes up to %d", st, err, entries, size, after)
	}
}
