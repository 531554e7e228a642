package registry

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pairsync/internal/kv"
	"pairsync/internal/kv/kvtest"
	"pairsync/internal/moment"
	"pairsync/internal/token"

	"github.com/google/go-cmp/cmp"
)

func TestPairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, store := newTest(t)
		first := mustPair(t, r, "ann", "bob")
		time.Sleep(1500 * time.Microsecond)
		second := mustPair(t, r, "cat", "dan")

		if first.ID != strings.ToLower(first.ID) || len(first.ID) != 26 || strings.Contains(first.ID, ".") {
			t.Errorf("pair id %q is not a lower-case ULID", first.ID)
		}
		if err := moment.CheckID("pair", first.ID); err != nil {
			t.Error(err)
		}
		if want := [2]string{"ann", "bob"}; first.Users != want {
			t.Errorf("users %q, want %q", first.Users, want)
		}
		if !first.Created.Before(second.Created) || first.Created.Location() != time.UTC {
			t.Errorf("created %s and %s", first.Created, second.Created)
		}
		for _, open := range []*Registry{r, openTest(t, store)} {
			if diff := cmp.Diff([]Pair{first, second}, open.Pairs()); diff != "" {
				t.Errorf("pairs (-want +got):\n%s", diff)
			}
			if p, ok := open.PairOf("bob"); !ok || p != first {
				t.Errorf("PairOf(bob) = %+v, %t, want %+v", p, ok, first)
			}
			if p, ok := open.Pair(second.ID); !ok || p != second {
				t.Errorf("Pair = %+v, %t, want %+v", p, ok, second)
			}
			if p, ok := open.PairOf("eve"); ok {
				t.Errorf("PairOf of somebody unknown = %+v", p)
			}
		}

		removed, err := r.RemovePair(t.Context(), first.ID)
		if err != nil || removed != first {
			t.Fatalf("RemovePair = %+v, %v, want %+v", removed, err, first)
		}
		again := mustPair(t, r, "bob", "ann")
		if again.ID == first.ID {
			t.Errorf("pairing again gave the old id %q", again.ID)
		}
		for _, open := range []*Registry{r, openTest(t, store)} {
			if p, ok := open.Pair(first.ID); ok {
				t.Errorf("the removed pair is there: %+v", p)
			}
			if diff := cmp.Diff([]Pair{first}, open.RemovedPairs()); diff != "" {
				t.Errorf("removed pairs (-want +got):\n%s", diff)
			}
			if p, _ := open.PairOf("ann"); p != again {
				t.Errorf("PairOf(ann) = %+v, want %+v", p, again)
			}
			if _, err := open.RemovePair(t.Context(), first.ID); !errors.Is(err, ErrNotFound) {
				t.Errorf("RemovePair again: %v, want %v", err, ErrNotFound)
			}
		}
	})
}

func TestCreatePairRefuses(t *testing.T) {
	r, store := newTest(t)
	p := mustPair(t, r, "ann", "bob")
	for _, tt := range []struct {
		a, b string
		want error
		says string
	}{
		{"ann", "ann", ErrSameUser, `"ann"`},
		{"ann", "cat", ErrPaired, `user "ann" is in pair "` + p.ID + `"`},
		{"cat", "bob", ErrPaired, `user "bob"`},
		{"bob", "ann", ErrPaired, `user "bob"`},
		{"", "cat", nil, "user id is empty"},
		{"cat", "a/b", nil, `"a/b"`},
	} {
		_, err := r.CreatePair(t.Context(), tt.a, tt.b)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("CreatePair(%q, %q): %v, want %v and %q", tt.a, tt.b, err, tt.want, tt.says)
		}
	}
	if _, ok := r.PairOf("cat"); ok || len(keysOf(t, store, "")) != 1 {
		t.Errorf("a refused pair left something: %q", keysOf(t, store, ""))
	}
	if _, err := r.RemovePair(t.Context(), "nope"); !errors.Is(err, ErrNotFound) {
		t.Errorf("RemovePair of an unknown id: %v, want %v", err, ErrNotFound)
	}
}

func TestPartner(t *testing.T) {
	p := Pair{Users: [2]string{"ann", "bob"}}
	for user, want := range map[string]string{"ann": "bob", "bob": "ann", "eve": "", "": ""} {
		if got, ok := p.Partner(user); got != want || ok != (want != "") {
			t.Errorf("Partner(%q) = %q, %t, want %q", user, got, ok, want)
		}
	}
	if got, ok := (Pair{}).Partner(""); ok {
		t.Errorf("the zero pair has partner %q", got)
	}
}

func TestDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, store := newTest(t)
		kitchen := mustDevice(t, r, "ann", "Küche 1")
		time.Sleep(2 * time.Millisecond)
		hall := mustDevice(t, r, "bob", strings.Repeat("𝄞", MaxDeviceName))
		if err := moment.CheckID("device", kitchen.ID); err != nil || strings.Contains(kitchen.ID, ".") || len(kitchen.ID) != 26 {
			t.Errorf("device id %q: %v", kitchen.ID, err)
		}
		revoked, err := r.RevokeDevice(t.Context(), hall.ID)
		hall.Revoked = true
		if err != nil || revoked != hall {
			t.Errorf("RevokeDevice = %+v, %v, want %+v", revoked, err, hall)
		}
		if again, err := r.RevokeDevice(t.Context(), hall.ID); err != nil || again != hall {
			t.Errorf("RevokeDevice again = %+v, %v, want %+v", again, err, hall)
		}
		for _, open := range []*Registry{r, openTest(t, store)} {
			if diff := cmp.Diff([]Device{kitchen, hall}, open.Devices()); diff != "" {
				t.Errorf("devices (-want +got):\n%s", diff)
			}
			if d, ok := open.Device(kitchen.ID); !ok || d != kitchen {
				t.Errorf("Device = %+v, %t, want %+v", d, ok, kitchen)
			}
		}
		if _, err := r.RevokeDevice(t.Context(), "nope"); !errors.Is(err, ErrNotFound) {
			t.Errorf("RevokeDevice of an unknown id: %v, want %v", err, ErrNotFound)
		}
	})
}

func TestAddDeviceRefuses(t *testing.T) {
	r, store := newTest(t)
	for _, tt := range []struct{ user, name, want string }{
		{"", "x", "user id is empty"},
		{"a/b", "x", "user id"},
		{"ann", "", "0 characters"},
		{"ann", strings.Repeat("x", MaxDeviceName+1), "65 characters"},
		{"ann", "a\nb", "printable characters"},
		{"ann", "a\u202eb", "printable characters"},
		{"ann", "a\xff", "printable characters"},
		{"ann", " x", "printable characters"},
		{"ann", "\u200d", "printable characters"},
		{"ann", " ", "printable characters"},
	} {
		if _, err := r.AddDevice(t.Context(), tt.user, tt.name); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("AddDevice(%q, %q): %v, want it to say %q", tt.user, tt.name, err, tt.want)
		}
	}
	if keys := keysOf(t, store, ""); len(keys) != 0 {
		t.Errorf("refused devices left %q", keys)
	}
}

func TestAddDeviceLimit(t *testing.T) {
	r, store := newTest(t)
	var devices []Device
	for range MaxDevicesPerUser {
		devices = append(devices, mustDevice(t, r, "ann", "frame"))
	}
	if _, err := r.AddDevice(t.Context(), "ann", "one more"); !errors.Is(err, ErrTooManyDevices) {
		t.Fatalf("device %d: %v, want %v", MaxDevicesPerUser+1, err, ErrTooManyDevices)
	}
	mustDevice(t, r, "bob", "frame")
	if _, err := r.RevokeDevice(t.Context(), devices[7].ID); err != nil {
		t.Fatal(err)
	}
	mustDevice(t, r, "ann", "one more")
	for _, open := range []*Registry{r, openTest(t, store)} {
		if _, ok := open.Device(devices[7].ID); ok {
			t.Error("the revoked device did not make room")
		}
		if !open.Revoked(token.Principal{User: "ann", Device: devices[7].ID, Role: token.RoleDevice, IssuedAt: time.Now()}) {
			t.Error("the device that made room may come back")
		}
		if got := len(open.Devices()); got != MaxDevicesPerUser+1 {
			t.Errorf("%d devices, want %d", got, MaxDevicesPerUser+1)
		}
	}
}

// TestStoreFails holds that a change the store refuses happens nowhere.
func TestStoreFails(t *testing.T) {
	r, store := newTest(t)
	pair, device := mustPair(t, r, "ann", "bob"), mustDevice(t, r, "ann", "frame")
	told := new(changes)
	defer r.Watch(told.add)()
	broken := errors.New("disk on fire")
	store.Break(broken)
	ctx := t.Context()
	for name, do := range map[string]func() error{
		"CreatePair":   func() error { _, err := r.CreatePair(ctx, "cat", "dan"); return err },
		"RemovePair":   func() error { _, err := r.RemovePair(ctx, pair.ID); return err },
		"AddDevice":    func() error { _, err := r.AddDevice(ctx, "ann", "x"); return err },
		"RevokeDevice": func() error { _, err := r.RevokeDevice(ctx, device.ID); return err },
		"RevokeToken":  func() error { return r.RevokeToken(ctx, "j", time.Now()) },
		"RevokeUser":   func() error { return r.RevokeUser(ctx, "ann", time.Now().Add(time.Hour)) },
		"SeeUser":      func() error { return r.SeeUser(ctx, "ann", "Ann", "a@b.c") },
	} {
		if err := do(); !errors.Is(err, broken) {
			t.Errorf("%s: %v, want %v", name, err, broken)
		}
	}
	if _, err := Open(ctx, store); !errors.Is(err, broken) {
		t.Errorf("Open: %v, want %v", err, broken)
	}
	store.Break(nil)
	for _, open := range []*Registry{r, openTest(t, store)} {
		if diff := cmp.Diff([]Pair{pair}, open.Pairs()); diff != "" {
			t.Errorf("pairs (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]Device{device}, open.Devices()); diff != "" {
			t.Errorf("devices (-want +got):\n%s", diff)
		}
		if open.Revoked(token.Principal{User: "ann", ID: "j", IssuedAt: time.Now()}) || open.Name("ann") != "ann" {
			t.Error("a failed change is visible")
		}
	}
	if got := told.all(); len(got) != 0 {
		t.Errorf("watchers were told of %v", got)
	}
	mustPair(t, r, "cat", "dan")
}

// TestEndedContext holds that whoever gave up changes nothing, and that
// nobody gives up half-way.
func TestEndedContext(t *testing.T) {
	store := &slowStore{Memory: new(kvtest.Memory), entered: make(chan struct{}), leave: make(chan struct{})}
	r := openTest(t, store)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := r.CreatePair(ctx, "ann", "bob")
		result <- err
	}()
	<-store.entered
	waiting, giveUp := context.WithCancel(t.Context())
	giveUp()
	if _, err := r.CreatePair(waiting, "cat", "dan"); !errors.Is(err, context.Canceled) {
		t.Errorf("CreatePair behind a slow one: %v, want %v", err, context.Canceled)
	}
	cancel()
	close(store.leave)
	if err := <-result; err != nil {
		t.Errorf("CreatePair given up while it was written: %v, want it done", err)
	}
	if _, ok := r.PairOf("ann"); !ok {
		t.Error("the pair on disk is not in memory")
	}
	for range 30 { // a free lock must never win by chance
		if err := r.RevokeToken(ctx, "j", time.Now()); !errors.Is(err, context.Canceled) {
			t.Fatalf("RevokeToken with an ended context: %v, want %v", err, context.Canceled)
		}
	}
}

// slowStore holds its first Apply until leave is closed.
type slowStore struct {
	*kvtest.Memory
	entered, leave chan struct{}
}

func (s *slowStore) Apply(ctx context.Context, ops ...kv.Op) error {
	close(s.entered)
	<-s.leave
	return s.Memory.Apply(ctx, ops...)
}

func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct{ name, key, value, want string }{
		{"newer version", "registry/pair/p", `{"v":2,"id":"p","users":["a","b"]}`, "version 2, this program knows 1"},
		{"newer kind", "registry/house/h", `{"v":1}`, "does not know"},
		{"no version", "registry/pair/p", `{"id":"p","users":["a","b"]}`, "damaged"},
		{"no JSON", "registry/device/d", `{"v":1,"id":`, "damaged"},
		{"empty", "registry/token/t", ``, "damaged"},
		{"no token", "registry/token/", `{"v":1}`, "damaged"},
		{"wrong type", "registry/user/u", `{"v":1,"id":7}`, "damaged"},
		{"null", "registry/user/u", `null`, "damaged"},
		{"pair under another id", "registry/pair/p", `{"v":1,"id":"q","users":["a","b"]}`, `about "q"`},
		{"pair of nobody", "registry/pair/p", `{"v":1,"id":"p","users":["a"]}`, "user id is empty"},
		{"pair of one", "registry/pair/p", `{"v":1,"id":"p","users":["a","a"]}`, "damaged"},
		{"device under another id", "registry/device/d", `{"v":1,"id":"e","user":"a"}`, `about "e"`},
		{"device of nobody", "registry/device/d", `{"v":1,"id":"d"}`, "user id is empty"},
		{"user under another id", "registry/user/u", `{"v":1,"id":"w"}`, `about "w"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			store := new(kvtest.Memory)
			must(t, store.Apply(t.Context(), kv.Op{Key: tt.key, Value: []byte(tt.value)}))
			_, err := Open(t.Context(), store)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.key) {
				t.Errorf("Open: %v, want it to name %q and say %q", err, tt.key, tt.want)
			}
		})
	}
	t.Run("user in two pairs", func(t *testing.T) {
		store := new(kvtest.Memory)
		must(t, store.Apply(t.Context(),
			kv.Op{Key: "registry/pair/p", Value: []byte(`{"v":1,"id":"p","users":["a","b"]}`)},
			kv.Op{Key: "registry/pair/q", Value: []byte(`{"v":1,"id":"q","users":["c","b"]}`)}))
		if _, err := Open(t.Context(), store); err == nil || !strings.Contains(err.Error(), `user "b" is in pair "p" as well`) {
			t.Errorf("Open: %v", err)
		}
	})
	t.Run("other people's keys", func(t *testing.T) {
		store := new(kvtest.Memory)
		must(t, store.Apply(t.Context(), kv.Op{Key: "session/x", Value: []byte("?")}, kv.Op{Key: "registry", Value: []byte("?")}))
		openTest(t, store)
	})
}

// TestRecords pins what is on disk: a change here needs a new version.
func TestRecords(t *testing.T) {
	store := new(kvtest.Memory)
	in := map[string]string{
		"registry/device/d": `{"v":1,"id":"d","user":"ann","name":"Frame","created":"2026-01-02T03:04:05.006Z","revoked":true}`,
		"registry/pair/p":   `{"v":1,"id":"p","users":["ann","bob"],"created":"2026-01-02T03:04:05.006Z"}`,
		"registry/pair/q":   `{"v":1,"id":"q","users":["ann","cat"],"created":"2026-01-02T03:04:05.006Z","removed":"2026-02-02T03:04:05.006Z"}`,
		"registry/token/j":  `{"v":1}`,
		"registry/user/ann": `{"v":1,"id":"ann","name":"Ann","email":"a@b.c","revokedBefore":"2026-01-02T03:04:05.006007Z"}`,
	}
	for k, v := range in {
		must(t, store.Apply(t.Context(), kv.Op{Key: k, Value: []byte(v)}))
	}
	r := openTest(t, store)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	wantPair := Pair{ID: "p", Users: [2]string{"ann", "bob"}, Created: at}
	if diff := cmp.Diff([]Pair{wantPair}, r.Pairs()); diff != "" {
		t.Errorf("pairs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Device{{ID: "d", User: "ann", Name: "Frame", Created: at, Revoked: true}}, r.Devices()); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	if r.Name("ann") != "Ann" || r.Email("ann") != "a@b.c" || !r.Revoked(token.Principal{User: "x", ID: "j"}) {
		t.Errorf("user or token were not read: %q %q", r.Name("ann"), r.Email("ann"))
	}

	// Written again, the records are the same bytes.
	var ops []kv.Op
	for _, write := range []interface{ op() (kv.Op, error) }{r.pairs["p"], r.pairs["q"], r.devices["d"], r.users["ann"]} {
		op, err := write.op()
		must(t, err)
		ops = append(ops, op)
	}
	for _, op := range ops {
		if diff := cmp.Diff(in[op.Key], string(op.Value)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", op.Key, diff)
		}
	}
}
