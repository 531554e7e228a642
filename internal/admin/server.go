package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/registry"
	"pairsync/internal/token"
)

// maxBodyBytes bounds a request: ids, a name and a lifetime.
const maxBodyBytes = 16 << 10

// Deps is what the server works on. All are required.
type Deps struct {
	Registry *registry.Registry
	// Sign is token.Signer.Sign.
	Sign func(p token.Principal, ttl time.Duration) (raw string, signed token.Principal, err error)
	// RemovePair ends a pair and deletes its moments; an error that wraps
	// registry.ErrNotFound when there is none.
	RemovePair func(ctx context.Context, id string) error
	Sessions   func(ctx context.Context) ([]Session, error)
	// Kick disconnects a session; an error that wraps registry.ErrNotFound
	// when it is not connected.
	Kick   func(ctx context.Context, id string) error
	Status func(ctx context.Context) (Status, error)
	Log    *slog.Logger
}

// Server answers the client. It has no goroutines of its own; whoever serves
// its Handler owns the listener.
type Server struct{ deps Deps }

// New returns a server on deps.
func New(deps Deps) *Server { return &Server{deps} }

// Handler returns the routes of the package comment.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /pairs", answer(s, s.createPair))
	mux.HandleFunc("GET /pairs", answer(s, s.listPairs))
	mux.HandleFunc("DELETE /pairs/{id}", answer(s, s.removePair))
	mux.HandleFunc("POST /devices", answer(s, s.addDevice))
	mux.HandleFunc("GET /devices", answer(s, s.listDevices))
	mux.HandleFunc("DELETE /devices/{id}", answer(s, s.revokeDevice))
	mux.HandleFunc("POST /tokens", answer(s, s.issueToken))
	mux.HandleFunc("POST /revocations", answer(s, s.revokeToken))
	mux.HandleFunc("GET /sessions", answer(s, func(r *http.Request) ([]Session, error) { return s.deps.Sessions(r.Context()) }))
	mux.HandleFunc("POST /kick", answer(s, s.kick))
	mux.HandleFunc("GET /status", answer(s, func(r *http.Request) (Status, error) { return s.deps.Status(r.Context()) }))
	mux.HandleFunc("/", answer(s, func(r *http.Request) (any, error) {
		return nil, usage("this server does not know %s %s; it may be older than this command", r.Method, r.URL.Path)
	}))
	return mux
}

// answer turns a method into a handler: its value or its error as JSON.
func answer[T any](s *Server, do func(*http.Request) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		v, err := do(r)
		w.Header().Set("Content-Type", "application/json")
		var body any = v
		if err != nil {
			e := errorOf(err)
			body = e
			w.WriteHeader(statusOf(e.Code))
			s.deps.Log.Debug("admin request refused", "method", r.Method, "path", r.URL.Path, "err", err)
		}
		json.NewEncoder(w).Encode(body) // the client's connection is the only thing that can fail
	}
}

// errorOf gives every error its exit code.
func errorOf(err error) *Error {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e
	}
	if errors.Is(err, registry.ErrSameUser) {
		return &Error{err.Error(), CodeUsage}
	}
	return &Error{err.Error(), CodeFailed}
}

func statusOf(code int) int {
	if code == CodeUsage {
		return http.StatusBadRequest
	}
	return http.StatusConflict
}

func usage(format string, a ...any) error { return &Error{fmt.Sprintf(format, a...), CodeUsage} }

// decode reads the request's body into v.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return usage("request: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return usage("request: more than one value")
	}
	return nil
}

func checkID(what, id string) error {
	if err := moment.CheckID(what, id); err != nil {
		return usage("%v", err)
	}
	return nil
}

func (s *Server) createPair(r *http.Request) (Pair, error) {
	var req struct {
		Users [2]string `json:"users"`
	}
	if err := decode(r, &req); err != nil {
		return Pair{}, err
	}
	for _, u := range req.Users {
		if err := checkID("user", u); err != nil {
			return Pair{}, err
		}
	}
	p, err := s.deps.Registry.CreatePair(r.Context(), req.Users[0], req.Users[1])
	return pairOf(p), err
}

func (s *Server) listPairs(*http.Request) ([]Pair, error) {
	out := []Pair{}
	for _, p := range s.deps.Registry.Pairs() {
		out = append(out, pairOf(p))
	}
	return out, nil
}

func (s *Server) removePair(r *http.Request) (Pair, error) {
	id := r.PathValue("id")
	p, ok := s.deps.Registry.Pair(id)
	if !ok {
		return Pair{}, fmt.Errorf("pair %q: %w", id, registry.ErrNotFound)
	}
	return pairOf(p), s.deps.RemovePair(r.Context(), id)
}

func (s *Server) addDevice(r *http.Request) (NewDevice, error) {
	var req DeviceRequest
	if err := decode(r, &req); err != nil {
		return NewDevice{}, err
	}
	if err := checkID("user", req.User); err != nil {
		return NewDevice{}, err
	}
	if err := checkTTL(req.TTL); err != nil {
		return NewDevice{}, err
	}
	d, err := s.deps.Registry.AddDevice(r.Context(), req.User, req.Name)
	if err != nil {
		return NewDevice{}, err
	}
	t, err := s.sign(token.Principal{User: d.User, Device: d.ID, Role: token.RoleDevice, Name: d.Name}, req.TTL)
	if err != nil {
		_, undo := s.deps.Registry.RevokeDevice(r.Context(), d.ID)
		return NewDevice{}, errors.Join(err, undo)
	}
	return NewDevice{Device(d), t}, nil
}

func (s *Server) listDevices(*http.Request) ([]Device, error) {
	out := []Device{}
	for _, d := range s.deps.Registry.Devices() {
		out = append(out, Device(d))
	}
	return out, nil
}

func (s *Server) revokeDevice(r *http.Request) (Device, error) {
	d, err := s.deps.Registry.RevokeDevice(r.Context(), r.PathValue("id"))
	return Device(d), err
}

// roles are the roles a token can be issued for.
var roles = map[string]token.Role{
	"": "", "app": token.RoleApp, "device": token.RoleDevice, "admin": token.RoleAdmin, "bridge": token.RoleBridge,
}

func (s *Server) issueToken(r *http.Request) (Token, error) {
	var req TokenRequest
	if err := decode(r, &req); err != nil {
		return Token{}, err
	}
	if err := checkID("user", req.User); err != nil {
		return Token{}, err
	}
	role, known := roles[req.Role]
	if !known {
		return Token{}, usage("role %q is none of app, device, admin, bridge", req.Role)
	}
	if err := s.checkDevice(req, role); err != nil {
		return Token{}, err
	}
	if err := checkTTL(req.TTL); err != nil {
		return Token{}, err
	}
	if req.TTL == 0 && req.Device == "" {
		return Token{}, usage("only a device's token may live until it is revoked; give a lifetime")
	}
	return s.sign(token.Principal{User: req.User, Device: req.Device, Role: role}, req.TTL)
}

// revokeToken ends tokens and the connections that came with them. Nobody knows
// how long the token with an id lives, so it is kept for good.
func (s *Server) revokeToken(r *http.Request) (struct{}, error) {
	var req Revocation
	if err := decode(r, &req); err != nil {
		return struct{}{}, err
	}
	if (req.JTI == "") == (req.User == "") {
		return struct{}{}, usage("name either a token's id or a user")
	}
	if req.User != "" {
		if err := checkID("user", req.User); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, s.deps.Registry.RevokeUser(r.Context(), req.User, time.Now())
	}
	return struct{}{}, s.deps.Registry.RevokeToken(r.Context(), req.JTI, time.Time{})
}

// checkDevice refuses tokens that no door would accept.
func (s *Server) checkDevice(req TokenRequest, role token.Role) error {
	if req.Device == "" {
		if role == token.RoleDevice {
			return usage("a token of the role device needs the device's id (`pairsync device list`)")
		}
		return nil
	}
	if role != "" && role != token.RoleDevice {
		return usage("a token for a device has the role device, not %s", role)
	}
	d, ok := s.deps.Registry.Device(req.Device)
	if !ok || d.User != req.User {
		return fmt.Errorf("device %q of user %q: %w (`pairsync device add` makes one)", req.Device, req.User, registry.ErrNotFound)
	}
	if d.Revoked {
		return fmt.Errorf("device %q is revoked", req.Device)
	}
	return nil
}

func checkTTL(d Duration) error {
	if d < 0 || d > 0 && time.Duration(d) < time.Second {
		return usage("lifetime %v is shorter than a second", time.Duration(d))
	}
	return nil
}

func (s *Server) sign(p token.Principal, ttl Duration) (Token, error) {
	raw, signed, err := s.deps.Sign(p, time.Duration(ttl))
	if err != nil {
		return Token{}, err
	}
	t := Token{Token: raw, JTI: signed.ID}
	if !signed.Expires.IsZero() {
		t.Expires = &signed.Expires
	}
	return t, nil
}

func (s *Server) kick(r *http.Request) (struct{}, error) {
	var req struct {
		ID string `json:"id"`
	}
	if err := decode(r, &req); err != nil {
		return struct{}{}, err
	}
	return struct{}{}, s.deps.Kick(r.Context(), req.ID)
}
