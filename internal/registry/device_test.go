package registry

import (
	"fmt"
	"slices"
	"testing"
)

// TestDevicesInOrder: also those that were added in the same millisecond.
func TestDevicesInOrder(t *testing.T) {
	r, _ := newTest(t)
	var want, got []string
	for i := range 100 {
		d, err := r.AddDevice(t.Context(), "ann", fmt.Sprint("frame ", i))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, d.ID)
	}
	for _, d := range r.Devices() {
		got = append(got, d.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("devices %v, want them as they were added: %v", got, want)
	}
}

func TestDevicesOf(t *testing.T) {
	r, store := newTest(t)
	want := map[string][]string{}
	for i := range 6 {
		user := []string{"ann", "ben", "eve"}[i%3]
		d, err := r.AddDevice(t.Context(), user, fmt.Sprint("frame ", i))
		if err != nil {
			t.Fatal(err)
		}
		want[user] = append(want[user], d.ID)
	}
	if _, err := r.RevokeDevice(t.Context(), want["ann"][0]); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*Registry{"as made": r, "reopened": openTest(t, store)} {
		var got []string
		for _, d := range r.DevicesOf("ann", "ben", "nobody") {
			got = append(got, d.ID)
			if d.Revoked != (d.ID == want["ann"][0]) {
				t.Errorf("%s: device %s revoked: %v", name, d.ID, d.Revoked)
			}
		}
		all := append(slices.Clone(want["ann"]), want["ben"]...)
		slices.Sort(all)
		slices.Sort(got)
		if !slices.Equal(got, all) {
			t.Errorf("%s: devices %v, want %v", name, got, all)
		}
	}
}
