package registry

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"pairsync/internal/kv"
	"pairsync/internal/moment"
	"pairsync/internal/token"
)

const (
	// MaxDeviceName is the longest name of a device, in characters.
	MaxDeviceName = 64
	// MaxDevicesPerUser bounds what one signed-in user can make us keep. When
	// it is reached the oldest revoked device makes room.
	MaxDevicesPerUser = 128
)

// Device is a frame, kiosk or widget of one user. It acts in whatever pair
// its user is in at the time.
type Device struct {
	ID      string
	User    string
	Name    string
	Created time.Time // UTC, whole milliseconds
	Revoked bool
}

// AddDevice registers a device of user under a new id. The name has 1 to
// MaxDeviceName printable characters, without spaces around it; several
// devices may share one. The user does not need to have been seen. It fails
// with ErrTooManyDevices when the user has MaxDevicesPerUser.
func (r *Registry) AddDevice(ctx context.Context, user, name string) (Device, error) {
	if err := moment.CheckID("user", user); err != nil {
		return Device{}, fmt.Errorf("add device: %w", err)
	}
	if err := checkDeviceName(name); err != nil {
		return Device{}, fmt.Errorf("add device: %w", err)
	}
	if err := r.lock(ctx); err != nil {
		return Device{}, fmt.Errorf("add device: %w", err)
	}
	defer r.unlock()
	evicted, err := r.roomFor(user)
	if err != nil {
		return Device{}, fmt.Errorf("add device: %w", err)
	}
	d := Device{User: user, Name: name, Created: now()}
	if d.ID, err = r.newID(d.Created); err != nil {
		return Device{}, fmt.Errorf("add device: %w", err)
	}
	op, err := d.op()
	if err != nil {
		return Device{}, fmt.Errorf("add device: %w", err)
	}
	ops := []kv.Op{op}
	if evicted != "" {
		ops = append(ops, kv.Op{Key: keyDevice + evicted, Delete: true})
	}
	err = r.commit(ctx, func() {
		delete(r.devices, evicted)
		delete(r.owned[user], evicted)
		r.setDevice(d)
	}, Change{Kind: DeviceAdded, Device: d, User: user}, ops...)
	if err != nil {
		return Device{}, fmt.Errorf("add device: %w", err)
	}
	return d, nil
}

// roomFor returns the revoked device, if any, that must go so that user can
// have one more. Without its record its tokens are still refused.
func (r *Registry) roomFor(user string) (evicted string, err error) {
	own := len(r.owned[user])
	for id := range r.owned[user] {
		if r.devices[id].Revoked && (evicted == "" || id < evicted) {
			evicted = id
		}
	}
	switch {
	case own < MaxDevicesPerUser:
		return "", nil
	case evicted == "":
		return "", fmt.Errorf("user %q has %d devices: %w: revoke one first", user, own, ErrTooManyDevices)
	}
	return evicted, nil
}

func checkDeviceName(name string) error {
	if n := utf8.RuneCountInString(name); n < 1 || n > MaxDeviceName {
		return fmt.Errorf("device name of %d characters: give 1 to %d", n, MaxDeviceName)
	}
	if token.CleanName(name) != name {
		return fmt.Errorf("device name %q: give printable characters, and no spaces around them", name)
	}
	return nil
}

// Device returns a device by its id, also a revoked one.
func (r *Registry) Device(id string) (Device, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	d, ok := r.devices[id]
	return d, ok
}

// setDevice adds or replaces a device in memory; mu is held, or nobody else
// knows r yet.
func (r *Registry) setDevice(d Device) {
	r.devices[d.ID] = d
	if r.owned[d.User] == nil {
		r.owned[d.User] = make(map[string]bool)
	}
	r.owned[d.User][d.ID] = true
}

// DevicesOf returns the devices of users, revoked ones too, oldest first. Its
// cost does not grow with the devices of others.
func (r *Registry) DevicesOf(users ...string) []Device {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []Device
	for _, user := range users {
		for id := range r.owned[user] {
			out = append(out, r.devices[id])
		}
	}
	return byAge(out)
}

// Devices returns all devices, revoked ones too, oldest first.
func (r *Registry) Devices() []Device {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]Device, 0, len(r.devices))
	for _, d := range r.devices {
		out = append(out, d)
	}
	return byAge(out)
}

func byAge(list []Device) []Device {
	slices.SortFunc(list, func(a, b Device) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// RevokeDevice refuses all tokens of a device from now on, for good, and
// returns the device, or ErrNotFound. Revoking it again changes nothing.
func (r *Registry) RevokeDevice(ctx context.Context, id string) (Device, error) {
	if err := r.lock(ctx); err != nil {
		return Device{}, fmt.Errorf("revoke device %q: %w", id, err)
	}
	defer r.unlock()
	d, ok := r.devices[id]
	if !ok {
		return Device{}, fmt.Errorf("revoke device %q: %w", id, ErrNotFound)
	}
	if d.Revoked {
		return d, nil
	}
	d.Revoked = true
	op, err := d.op()
	if err != nil {
		return Device{}, fmt.Errorf("revoke device: %w", err)
	}
	err = r.commit(ctx, func() { r.devices[id] = d }, Change{Kind: DeviceRevoked, Device: d, User: d.User}, op)
	if err != nil {
		return Device{}, fmt.Errorf("revoke device %q: %w", id, err)
	}
	return d, nil
}
