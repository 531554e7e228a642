package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"pairsync/internal/kv"
	"pairsync/internal/moment"
)

// The keys of the store; see the package comment.
const (
	keyRoot   = "registry/"
	keyPair   = keyRoot + "pair/"
	keyDevice = keyRoot + "device/"
	keyCode   = keyRoot + "code/"
	keyUser   = keyRoot + "user/"
	keyToken  = keyRoot + "token/"

	keySession = keyRoot + "session/"
)

// recordVersion is the "v" of every record written. Adding a field that an
// older program may ignore does not change it.
const recordVersion = 1

type pairRecord struct {
	V       int       `json:"v"`
	ID      string    `json:"id"`
	Users   [2]string `json:"users"`
	Created time.Time `json:"created"`
	Removed time.Time `json:"removed,omitzero"`
	ByCode  bool      `json:"byCode,omitempty"`
}

func (p pairRecord) pair() Pair {
	return Pair{ID: p.ID, Users: p.Users, Created: p.Created, ByCode: p.ByCode}
}

type deviceRecord struct {
	V       int       `json:"v"`
	ID      string    `json:"id"`
	User    string    `json:"user"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Revoked bool      `json:"revoked,omitempty"`
}

type userRecord struct {
	V     int    `json:"v"`
	ID    string `json:"id"`
	Name  string `json:"name,omitempty"`
	Email string `json:"email,omitempty"`
	// RevokedBefore refuses every token of the user issued before it.
	RevokedBefore time.Time `json:"revokedBefore,omitzero"`
}

type tokenRecord struct {
	V int `json:"v"`
	// Until is when the record may be removed; zero is never.
	Until time.Time `json:"until,omitzero"`
}

type sessionRecord struct {
	V     int       `json:"v"`
	User  string    `json:"user"`
	Seen  time.Time `json:"seen"`
	Until time.Time `json:"until"` // when the record may be removed
}

// put returns the write of a record. The record types above hold nothing that
// JSON cannot, so marshalling them does not fail.
func put(key string, record any) (kv.Op, error) {
	b, err := json.Marshal(record)
	if err != nil {
		return kv.Op{}, fmt.Errorf("encode %q: %w", key, err)
	}
	return kv.Op{Key: key, Value: b}, nil
}

func (p pairRecord) op() (kv.Op, error) {
	p.V = recordVersion
	return put(keyPair+p.ID, p)
}

func (d Device) op() (kv.Op, error) {
	return put(keyDevice+d.ID, deviceRecord{recordVersion, d.ID, d.User, d.Name, d.Created, d.Revoked})
}

func (u userRecord) op() (kv.Op, error) {
	u.V = recordVersion
	return put(keyUser+u.ID, u)
}

// load takes one record at Open.
func (r *Registry) load(key string, value []byte) error {
	err := errors.New("a kind of record that this program does not know: use the newer program that wrote it")
	if id, ok := strings.CutPrefix(key, keyPair); ok {
		err = r.loadPair(id, value)
	} else if id, ok := strings.CutPrefix(key, keyDevice); ok {
		err = r.loadDevice(id, value)
	} else if id, ok := strings.CutPrefix(key, keyCode); ok {
		err = r.loadCode(id, value)
	} else if id, ok := strings.CutPrefix(key, keyUser); ok {
		err = r.loadUser(id, value)
	} else if id, ok := strings.CutPrefix(key, keyToken); ok {
		err = r.loadToken(id, value)
	} else if id, ok := strings.CutPrefix(key, keySession); ok {
		err = r.loadSession(id, value)
	}
	if err != nil {
		return fmt.Errorf("record %q: %w", key, err)
	}
	return nil
}

func (r *Registry) loadPair(id string, value []byte) error {
	var p pairRecord
	if err := decode(value, &p); err != nil {
		return err
	}
	if err := errors.Join(sameID(id, p.ID), moment.CheckID("pair", p.ID), moment.CheckID("user", p.Users[0]), moment.CheckID("user", p.Users[1])); err != nil {
		return damaged(err)
	}
	if p.Removed.IsZero() {
		for _, u := range p.Users {
			if other, ok := r.pairOf[u]; ok {
				return damaged(fmt.Errorf("user %q is in pair %q as well", u, other))
			}
			r.pairOf[u] = id
		}
	}
	r.pairs[id] = p
	return nil
}

func (r *Registry) loadDevice(id string, value []byte) error {
	var d deviceRecord
	if err := decode(value, &d); err != nil {
		return err
	}
	if err := errors.Join(sameID(id, d.ID), moment.CheckID("device", d.ID), moment.CheckID("user", d.User)); err != nil {
		return damaged(err)
	}
	r.setDevice(Device{ID: d.ID, User: d.User, Name: d.Name, Created: d.Created, Revoked: d.Revoked})
	return nil
}

func (r *Registry) loadUser(id string, value []byte) error {
	var u userRecord
	if err := decode(value, &u); err != nil {
		return err
	}
	if err := errors.Join(sameID(id, u.ID), moment.CheckID("user", u.ID)); err != nil {
		return damaged(err)
	}
	r.users[id] = u
	return nil
}

func (r *Registry) loadToken(id string, value []byte) error {
	if id == "" { // it would refuse every token without a jti
		return damaged(errors.New("it names no token"))
	}
	var t tokenRecord
	if err := decode(value, &t); err != nil {
		return err
	}
	r.revoked[id] = t.Until
	return nil
}

func (r *Registry) loadSession(id string, value []byte) error {
	var s sessionRecord
	if err := decode(value, &s); err != nil {
		return err
	}
	r.sessions[id] = seenSession{s.Seen, s.Until}
	return nil
}

// decode reads a record of the present version.
func decode(value []byte, record any) error {
	var head struct {
		V int `json:"v"`
	}
	if err := json.Unmarshal(value, &head); err != nil {
		return damaged(err)
	}
	switch {
	case head.V < 1:
		return damaged(errors.New("it has no version"))
	case head.V > recordVersion:
		return fmt.Errorf("version %d, this program knows %d: use the newer program that wrote it", head.V, recordVersion)
	}
	if err := json.Unmarshal(value, record); err != nil {
		return damaged(err)
	}
	return nil
}

func sameID(key, record string) error {
	if key != record {
		return fmt.Errorf("it is about %q", record)
	}
	return nil
}

func damaged(err error) error {
	return fmt.Errorf("damaged (%w): restore the data directory from a backup", err)
}
