package engineio

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// A refusal is an answer of the reference server to a request it does not
// take: clients show its message.
type refusal struct {
	status  int
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// refusals returns the answers in the order in which requests are checked.
func unknownTransport() *refusal { return &refusal{400, 0, "Transport unknown"} }
func unknownSession() *refusal   { return &refusal{400, 1, "Session ID unknown"} }
func badMethod() *refusal        { return &refusal{400, 2, "Bad handshake method"} }
func badRequest() *refusal       { return &refusal{400, 3, "Bad request"} }
func forbidden() *refusal        { return &refusal{403, 4, "Forbidden"} }
func badVersion() *refusal       { return &refusal{400, 5, "Unsupported protocol version"} }

// ServeHTTP takes every request of the protocol: handshakes, polls, posts and
// WebSockets.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.allowOrigin(w.Header(), r)
	if r.Method == http.MethodOptions && s.cfg.CORS {
		s.preflight(w, r)
		return
	}
	query := r.URL.Query()
	upgrade := websocket.IsWebSocketUpgrade(r)
	sess, no := s.check(r, query, upgrade)
	switch {
	case no != nil:
		refuse(w, no)
	case sess == nil && upgrade:
		s.openWebSocket(w, r)
	case sess == nil:
		s.openPolling(w, r)
	case upgrade:
		s.upgrade(w, r, sess)
	case r.Method == http.MethodGet:
		sess.servePoll(w, r)
	case r.Method == http.MethodPost:
		sess.servePost(w, r)
	default:
		http.Error(w, "method not allowed on a session", http.StatusInternalServerError)
	}
}

// check judges a request, in the reference server's order, and finds its session.
func (s *Server) check(r *http.Request, query url.Values, upgrade bool) (*Session, *refusal) {
	transport := query.Get("transport")
	if transport != "polling" && transport != "websocket" {
		return nil, unknownTransport()
	}
	var sess *Session
	if id := query.Get("sid"); id != "" {
		if sess = s.session(id); sess != nil {
			sess.tick() // in case its time is over and the timer is late
			sess = s.session(id)
		}
		if sess == nil {
			return nil, unknownSession()
		}
		if !upgrade && sess.Transport() != transport {
			return nil, badRequest()
		}
	} else if r.Method != http.MethodGet {
		return nil, badMethod()
	}
	switch {
	case upgrade != (transport == "websocket"):
		return nil, badRequest()
	case !s.originAllowed(r):
		return nil, forbidden()
	case sess == nil && query.Get("EIO") != "4":
		return nil, badVersion()
	}
	return sess, nil
}

// refuse answers with the protocol's JSON. The connection of a refused
// WebSocket is of no further use.
func refuse(w http.ResponseWriter, no *refusal) {
	body, err := json.Marshal(no)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Connection", "close")
	w.WriteHeader(no.status)
	_, _ = w.Write(body) // a client that is gone needs no answer
}

// originAllowed reports whether the web page that sent r may use the server.
// CORS does not protect WebSockets, so the server has to.
func (s *Server) originAllowed(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || slices.Contains(s.cfg.Origins, "*") {
		return true
	}
	if slices.ContainsFunc(s.cfg.Origins, func(o string) bool { return strings.EqualFold(o, origin) }) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && strings.EqualFold(withPort(u.Host, u.Scheme), withPort(r.Host, u.Scheme))
}

// withPort adds the scheme's default port to a host that has none.
func withPort(host, scheme string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	port := "80"
	if scheme == "https" || scheme == "wss" {
		port = "443"
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port)
}

// allowOrigin sets the CORS headers, also for answers that refuse: without
// them a page cannot read why.
func (s *Server) allowOrigin(h http.Header, r *http.Request) {
	origin := r.Header.Get("Origin")
	if !s.cfg.CORS || origin == "" || !s.originAllowed(r) {
		return
	}
	if slices.Contains(s.cfg.Origins, "*") {
		h.Set("Access-Control-Allow-Origin", "*")
		return
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Allow-Credentials", "true")
	h.Add("Vary", "Origin")
}

// AllowOrigins wraps next so that web pages may use it as they may use s: with
// the same CORS headers, or none.
func (s *Server) AllowOrigins(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.allowOrigin(w.Header(), r)
		if r.Method == http.MethodOptions && s.cfg.CORS {
			s.preflight(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// preflight answers OPTIONS.
func (s *Server) preflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	if h.Get("Access-Control-Allow-Origin") != "" {
		h.Set("Access-Control-Allow-Methods", "GET,HEAD,PUT,PATCH,POST,DELETE")
		if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
			h.Set("Access-Control-Allow-Headers", asked)
			h.Add("Vary", "Access-Control-Request-Headers")
		}
	}
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusNoContent)
}

// newSession returns a session that is not yet known to anybody.
func (s *Server) newSession(r *http.Request) *Session {
	var id [15]byte
	rand.Read(id[:]) // never fails
	return &Session{
		srv: s,
		id:  base64.URLEncoding.EncodeToString(id[:]),
		req: Request{Query: r.URL.Query(), Header: r.Header, RemoteAddr: r.RemoteAddr},
	}
}

// handshake is the body of the open packet.
type handshake struct {
	SID          string   `json:"sid"`
	Upgrades     []string `json:"upgrades"`
	PingInterval int64    `json:"pingInterval"` // milliseconds
	PingTimeout  int64    `json:"pingTimeout"`  // milliseconds
	MaxPayload   int      `json:"maxPayload"`   // bytes
}

// start makes sess known, queues its open packet and starts the heartbeat; ws
// is nil for a polling session. A false return means that the server takes no
// more sessions.
func (s *Server) start(sess *Session, ws *wsConn) bool {
	upgrades := []string{}
	if ws == nil {
		upgrades = append(upgrades, "websocket")
	}
	body, err := json.Marshal(handshake{
		sess.id, upgrades, s.cfg.PingInterval.Milliseconds(), s.cfg.PingTimeout.Milliseconds(), s.cfg.MaxPayload,
	})
	if err != nil {
		return false
	}
	sess.push(Message{Head: []byte{packetOpen}, Body: body})
	sess.recv = s.open(sess)
	sess.mu.Lock()
	if !s.add(sess) {
		sess.state = stateClosed
		sess.mu.Unlock()
		sess.recv.Closed(ReasonShutdown)
		return false
	}
	sess.ws = ws
	sess.beat.due = time.Now().Add(s.cfg.PingInterval)
	sess.beat.timer = time.AfterFunc(s.cfg.PingInterval, sess.tick)
	sess.wake()
	sess.mu.Unlock()
	return true
}
