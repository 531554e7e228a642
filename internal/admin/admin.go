// Package admin is how an operator talks to a running server: HTTP with JSON
// over the unix socket <data_dir>/admin.sock, its server side and the typed
// client that the commands of pairsync use.
//
// Who may open the socket may do everything; its mode (0600) and the data
// directory are the only guard, so it is never served on a network. It holds
// no state of its own.
//
//	POST   /pairs        {"users":[a,b]}             Pair
//	GET    /pairs                                    [Pair]
//	DELETE /pairs/{id}                               Pair
//	POST   /devices      {"user","name","ttl"}       Device and Token
//	GET    /devices                                  [Device]
//	DELETE /devices/{id}                             Device
//	POST   /tokens       {"user","device","role","ttl"}  Token
//	POST   /revocations  {"jti"} or {"user"}         {}
//	GET    /sessions                                 [Session]
//	POST   /kick         {"id"}                      {}
//	GET    /status                                   Status
//
// An answer other than 2xx is {"error","code"}, code being the exit code of
// the contract (section 6).
package admin

import (
	"time"

	"pairsync/internal/registry"
)

// The exit codes of the contract (section 6) that an Error carries.
const (
	CodeFailed      = 1
	CodeUsage       = 2
	CodeUnreachable = 3
)

// Error is an operation that the server refused or could not do, or, with
// CodeUnreachable, a server that does not answer.
type Error struct {
	Message string `json:"error"`
	Code    int    `json:"code"`
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Pair is a pair as it is printed.
type Pair struct {
	ID      string    `json:"id"`
	Users   [2]string `json:"users"`
	Created time.Time `json:"created"`
}

func pairOf(p registry.Pair) Pair { return Pair{p.ID, p.Users, p.Created} }

// Device is a device as it is printed.
type Device struct {
	ID      string    `json:"id"`
	User    string    `json:"user"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Revoked bool      `json:"revoked"`
}

// Token is a signed token.
type Token struct {
	Token   string     `json:"token"`
	JTI     string     `json:"jti"`     // its id, to revoke it by
	Expires *time.Time `json:"expires"` // null: lives until revoked
}

// NewDevice is a device and the token it connects with.
type NewDevice struct {
	Device
	Token
}

// TokenRequest says whom to sign a token for.
type TokenRequest struct {
	User   string   `json:"user"`
	Device string   `json:"device,omitempty"`
	Role   string   `json:"role,omitempty"` // empty: device where Device is set, else app
	TTL    Duration `json:"ttl,omitempty"`  // zero: until revoked, for device tokens only
}

// Revocation says which tokens count no more: one (or those of one session of
// an external issuer), or all that a user has. Exactly one field is set.
type Revocation struct {
	JTI  string `json:"jti,omitempty"` // jti or sid
	User string `json:"user,omitempty"`
}

// DeviceRequest says which device to add.
type DeviceRequest struct {
	User string   `json:"user"`
	Name string   `json:"name"`
	TTL  Duration `json:"ttl,omitempty"` // of its token; zero: until revoked
}

// Session is an MQTT session as it is printed.
type Session struct {
	ID           string     `json:"id"` // "<user>/<client id>"
	User         string     `json:"user"`
	Device       string     `json:"device"`
	Connected    bool       `json:"connected"`
	Backlog      int        `json:"backlog"`      // moments not acknowledged
	BacklogBytes int64      `json:"backlogBytes"` // and their payloads
	Oldest       *time.Time `json:"oldest"`       // when the oldest of them was stored; null without a backlog
}

// Status is what a running server says of itself.
type Status struct {
	Version     string            `json:"version"`
	Started     time.Time         `json:"started"`
	DataDir     string            `json:"dataDir"`
	Listeners   map[string]string `json:"listeners"` // "mqtt": "[::]:1883"
	Pairs       int               `json:"pairs"`
	Devices     int               `json:"devices"` // not revoked
	Connections int               `json:"connections"`
	StoreBytes  int64             `json:"storeBytes"`
	Problem     string            `json:"problem,omitempty"` // why it does not take moments now
}

// Duration is a time.Duration that travels as text ("1h30m0s").
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}
