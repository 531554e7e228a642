//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// smallDisk is a file system of its own, and what it takes to mount one.
type smallDisk struct{ dir string }

// newDisk mounts a file system of so many bytes: "tmpfs", or "ext4" on a loop
// device, for which only root will do. Where mounting is not allowed, the
// calling test runs once more in a user and mount namespace of its own.
func newDisk(t *testing.T, kind string, bytes int64) *smallDisk {
	t.Helper()
	d := &smallDisk{dir: shortDir(t)}
	args := []string{"-t", "tmpfs", "-o", fmt.Sprintf("size=%d", bytes), "none", d.dir}
	if kind == "ext4" {
		image := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, bytes); err != nil {
			t.Fatal(err)
		}
		output(t, "mkfs.ext4", "-q", "-m", "0", image)
		args = []string{"-t", "ext4", "-o", "loop", image, d.dir}
	}
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED on %s: mount: %v: %s", kind, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

// mayMount reports whether the test may go on. Without the right to mount it
// runs the test again in a namespace where it has it.
func mayMount(t *testing.T) bool {
	t.Helper()
	const inside = "PAIRSYNC_E2E_NAMESPACE"
	if os.Geteuid() == 0 && exec.Command("unshare", "-m", "true").Run() == nil || os.Getenv(inside) != "" {
		return true
	}
	if err := exec.Command("unshare", "-rm", "true").Run(); err != nil {
		t.Skipf("NOT TESTED: neither root nor user namespaces, so no small disk can be mounted: unshare -rm: %v", err)
	}
	cmd := exec.Command("unshare", "-rm", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("in a namespace of its own:\n%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

// fill is somebody else who uses up the disk, but for leave bytes.
func (d *smallDisk) fill(t testing.TB, leave int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(d.dir, "somebody-else"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for d.free(t) > leave {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func (d *smallDisk) empty(t testing.TB) {
	t.Helper()
	if err := os.Remove(filepath.Join(d.dir, "somebody-else")); err != nil {
		t.Fatal(err)
	}
}

func (d *smallDisk) free(t testing.TB) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// get asks the ops listener.
func (s *server) get(t testing.TB, path string) (status int, body string) {
	t.Helper()
	resp, err := http.Get("http://" + s.ops + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// metric returns the value of a metric without labels.
func (s *server) metric(t testing.TB, name string) float64 {
	t.Helper()
	_, text := s.get(t, "/metrics")
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no metric %s", name)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// sender publishes photos one after the other and knows what was acknowledged.
type sender struct {
	link  *mqttlink.Link
	pair  couple
	next  int
	acked map[string]string // sha256 by id
}

func newSender(t testing.TB, s *server, c couple) *sender {
	t.Helper()
	link := newLink(t, s, c.ann, mqttlink.Config{ClientID: "sender", SessionExpiry: time.Hour, MinBackoff: 50 * time.Millisecond})
	return &sender{link: link, pair: c, acked: map[string]string{}}
}

// photo sends one, and returns nil once it is acknowledged.
func (a *sender) photo(t testing.TB) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	id, image := fmt.Sprintf("p%05d", a.next), newPhoto(200_000)
	a.next++
	err := a.link.Publish(ctx, mqttlink.Publish{Topic: a.pair.photoTopic(a.pair.ann, id), Payload: image, ContentType: "image/jpeg", QoS: 1})
	if err == nil {
		a.acked[id] = sum(image)
	}
	return err
}

// untilRefused sends until the disk is full.
func (a *sender) untilRefused(t testing.TB) {
	t.Helper()
	for range 2000 {
		err := a.photo(t)
		if isFull(err) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the small disk takes 2000 photos")
}

func isFull(err error) bool {
	var re *mqttlink.ReasonError
	return errors.As(err, &re) && re.Code == mqttlink.CodeQuotaExceeded && strings.Contains(re.Reason, "storage full")
}

// wantAll reads everything there is, with a session that nothing is kept of.
// Every acknowledged photo must be there, as it was sent.
func (a *sender) wantAll(t *testing.T, s *server) {
	t.Helper()
	t.Run("everything is read", func(t *testing.T) { a.readAll(t, s) })
}

func (a *sender) readAll(t *testing.T, s *server) {
	got := newRecord[arrival]()
	newLink(t, s, a.pair.ben, mqttlink.Config{
		ClientID: newID("reader"), CleanStart: true, MinBackoff: 50 * time.Millisecond,
		Subscriptions: []mqttlink.Subscription{{Filter: "pairs/" + a.pair.id + "/photos/" + a.pair.ann + "/+", QoS: 1, Backfill: "all"}},
		Receive: func(m *mqttlink.Message) {
			got.add(arrival{path.Base(m.Topic), sum(m.Payload)})
			_ = m.Ack() // on a connection that is gone it comes again
		},
	})
	seen := map[string]string{}
	got.await(t, "all photos that were acknowledged", func(list []arrival) bool {
		for _, p := range list[len(seen):] {
			seen[p.id] = p.sha
		}
		for id := range a.acked {
			if seen[id] == "" {
				return false
			}
		}
		return true
	})
	for id, sha := range a.acked {
		if seen[id] != sha {
			t.Errorf("photo %s arrived with other bytes", id)
		}
	}
}

// TestFullDisk fills a small disk, first with photos, then with somebody
// else's file. What is refused is said to be, what was acknowledged is there
// and can be read, through a kill -9 as well, and room that comes back is used
// without a restart.
func TestFullDisk(t *testing.T) {
	if !mayMount(t) {
		return
	}
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) { testFullDisk(t, newDisk(t, kind, 230<<20)) })
	}
}

func testFullDisk(t *testing.T, d *smallDisk) {
	s := newServerIn(t, filepath.Join(d.dir, "data"))
	c := s.pair(t)
	ann := newSender(t, s, c)
	note := func(id string) error {
		m := moment.Moment{Pair: c.id, User: c.ann, Kind: moment.Note, ID: id}
		return ann.link.Publish(t.Context(), mqttlink.Publish{Topic: m.Topic(), Payload: []byte("a note"), QoS: 1})
	}
	if code, body := s.get(t, "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz of an empty store: %d %s", code, body)
	}
	// As a minute of running leaves it on a disk with room.
	ballast(t, s)

	ann.untilRefused(t)
	s.wantFull(t, true)
	if err := note("n1"); err != nil {
		t.Errorf("a note on a disk that is full for photos: %v", err)
	}
	ann.wantAll(t, s)

	d.fill(t, 0)
	if err := ann.photo(t); !isFull(err) {
		t.Errorf("a photo on a brimful disk: %v, want 0x97 storage full", err)
	}
	if err := note("n2"); !isFull(err) {
		t.Errorf("a note on a brimful disk: %v, want 0x97 storage full", err)
	}
	ann.wantAll(t, s)
	s.crash(t)
	s.wantFull(t, true)
	if err := ann.photo(t); !isFull(err) {
		t.Errorf("a photo after kill -9 on a brimful disk: %v, want 0x97 storage full", err)
	}
	ann.wantAll(t, s)

	d.empty(t)
	eventually(t, "photos to be taken again", func() bool { return ann.photo(t) == nil })
	s.wantFull(t, false)
	if err := note("n2"); err != nil {
		t.Error(err)
	}

	// Full once more, of photos alone: what ben's phone has fetched makes room.
	ann.untilRefused(t)
	phone := newPhone(t, newNode(t, "phone.mjs"), s, c.ben, phoneOptions{})
	phone.await(t, "receive_photo", len(ann.acked))
	eventually(t, "delivered photos to make room", func() bool { return ann.photo(t) == nil })
	phone.await(t, "receive_photo", len(ann.acked))
	if s.proc.ended() {
		t.Error("the server has ended")
	}
}

// wantFull checks what an operator sees.
func (s *server) wantFull(t testing.TB, full bool) {
	t.Helper()
	status, said, value := http.StatusOK, "disk has room again", 0.0
	if full {
		status, said, value = http.StatusServiceUnavailable, "disk nearly full", 1
	}
	s.proc.out.await(t, said, func(lines []string) bool { return strings.Contains(strings.Join(lines, "\n"), said) })
	if code, body := s.get(t, "/readyz"); code != status || full != strings.Contains(body, "storage full") {
		t.Errorf("/readyz: %d %s, want %d", code, body, status)
	}
	if code, _ := s.get(t, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d, want 200", code)
	}
	if got := s.metric(t, "pairsync_store_full"); got != value {
		t.Errorf("pairsync_store_full %v, want %v", got, value)
	}
	if full && s.metric(t, "pairsync_store_disk_free_bytes") > 200<<20 {
		t.Error("pairsync_store_disk_free_bytes says that there is room")
	}
}

// ballast makes the file that the store itself makes when it has been open for
// a minute, on a larger disk than this.
func ballast(t testing.TB, s *server) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, "store", "ballast"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 64<<20); err != nil {
		t.Fatal(err)
	}
}
