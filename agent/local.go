package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"pairsync/internal/badgerdb"
	"pairsync/internal/photo"
)

// The local API: HTTP over <data_dir>/agent.sock (mode 0600, in a directory of
// mode 0700), for the agent's own commands. It is not a public interface.
//
//	GET  /status                         Status
//	GET  /photos                         array of Photo, newest first
//	GET  /photo?moment=&sender=&clean=1  the photo's bytes
//	POST /outbox?caption=&quality=       a file; Outcome
//	GET  /outbox?moment=&wait=15s        Outcome, when it is settled or wait is over
//
// Ids are in the query, because "." and ".." are legal ids.
const socketName = "agent.sock"

const (
	// maxSocketPath is what every Unix takes as the path of a socket.
	maxSocketPath = 103
	// maxOutcomeWait bounds how long a request may wait for an outcome.
	maxOutcomeWait = time.Minute
	// localTimeout bounds reading and writing of a local request.
	localTimeout = 2 * time.Minute
	// shutdownTimeout bounds the end of an HTTP server.
	shutdownTimeout = 2 * time.Second
)

// ErrRunning is returned by New when an agent already runs on the data
// directory.
var ErrRunning = errors.New("an agent is already running")

// Photo is one line of `pairsync-agent list --json` (contract, section 6).
type Photo struct {
	Sender     string     `json:"sender"`
	Moment     string     `json:"moment"`
	Bytes      int        `json:"bytes"`
	SHA256     string     `json:"sha256"` // hex, of the bytes as received
	Caption    string     `json:"caption"`
	TakenAt    *time.Time `json:"takenAt"` // null when unknown
	ReceivedAt time.Time  `json:"receivedAt"`
	Shown      bool       `json:"shown"`
}

func listed(r record) Photo {
	p := Photo{
		Sender: r.Sender, Moment: r.Moment, Bytes: r.Bytes, SHA256: r.SHA256, Caption: r.Caption,
		ReceivedAt: r.ReceivedAt, Shown: !r.ShownAt.IsZero(),
	}
	if !r.TakenAt.IsZero() {
		p.TakenAt = &r.TakenAt
	}
	return p
}

// localServer serves the local API.
type localServer struct {
	listener net.Listener
	store    *store
	outbox   *outbox
	status   func() (Status, error)
	log      *slog.Logger
}

func socketPath(dataDir string) (string, error) {
	path := filepath.Join(dataDir, socketName)
	if len(path) > maxSocketPath {
		return "", fmt.Errorf("data_dir: %q is too long for a socket in it (at most %d characters)", dataDir, maxSocketPath-len(socketName)-1)
	}
	return path, nil
}

// listenLocal binds the socket, in place of one that a crash left behind.
func listenLocal(dataDir string) (net.Listener, error) {
	path, err := socketPath(dataDir)
	if err != nil {
		return nil, err
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%w on %s", ErrRunning, dataDir)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("local socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("local socket: %w", err), l.Close())
	}
	return l, nil
}

func (s *localServer) close() error { return closeListener(s.listener) }

// closeListener closes l, also where that was done before.
func closeListener(l net.Listener) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *localServer) run(ctx context.Context) error {
	return serveHTTP(ctx, s.listener, &http.Server{
		Handler: s.handler(), ReadTimeout: localTimeout, WriteTimeout: localTimeout,
	}, s.log)
}

// serveHTTP serves until ctx ends, and then gives requests shutdownTimeout.
// They see the end of ctx as theirs.
func serveHTTP(ctx context.Context, l net.Listener, srv *http.Server, log *slog.Logger) error {
	srv.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	srv.BaseContext = func(net.Listener) context.Context { return ctx }
	srv.ReadHeaderTimeout = 5 * time.Second
	srv.IdleTimeout = time.Minute
	srv.MaxHeaderBytes = 16 << 10
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		srv.Close()
	}
	<-ended
	return nil
}

func (s *localServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		st, err := s.status()
		answer(w, st, err)
	})
	mux.HandleFunc("GET /photos", func(w http.ResponseWriter, _ *http.Request) {
		list, err := listPhotos(s.store)
		answer(w, list, err)
	})
	mux.HandleFunc("GET /photo", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		b, err := exported(s.store, q.Get("sender"), q.Get("moment"), q.Has("clean"))
		if err != nil {
			answer(w, nil, err)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		w.Write(b)
	})
	mux.HandleFunc("POST /outbox", s.send)
	mux.HandleFunc("GET /outbox", s.outcome)
	return mux
}

func (s *localServer) send(w http.ResponseWriter, r *http.Request) {
	file, err := readFile(r.Body)
	if err != nil {
		answer(w, nil, err)
		return
	}
	q := r.URL.Query()
	out, err := s.outbox.add(r.Context(), file, q.Get("caption"), Quality(q.Get("quality")))
	answer(w, out, err)
}

func (s *localServer) outcome(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	wait, err := time.ParseDuration(q.Get("wait"))
	if err != nil {
		wait = 0
	}
	ctx, cancel := context.WithTimeout(r.Context(), min(wait, maxOutcomeWait))
	defer cancel()
	out, err := s.outbox.await(ctx, q.Get("moment"))
	answer(w, out, err)
}

// readFile reads a file to be sent, and refuses one that is too large.
func readFile(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSendBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read photo: %w", err)
	}
	if len(b) > maxSendBytes {
		return nil, fmt.Errorf("photo is larger than %d bytes", maxSendBytes)
	}
	return b, nil
}

// answer writes v as JSON, or err as {"error"}.
func answer(w http.ResponseWriter, v any, err error) {
	code := http.StatusOK
	if err != nil {
		code, v = http.StatusBadRequest, map[string]string{"error": err.Error()}
		if errors.Is(err, errNoPhoto) {
			code = http.StatusNotFound
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}

func listPhotos(s *store) ([]Photo, error) {
	list := []Photo{}
	err := s.eachPhoto(func(r record) error {
		list = append(list, listed(r))
		return nil
	})
	return list, err
}

// exported returns the bytes of a photo. Without sender the moment must be one
// of a single sender.
func exported(s *store, sender, id string, clean bool) ([]byte, error) {
	if sender == "" {
		var err error
		if sender, err = senderOf(s, id); err != nil {
			return nil, err
		}
	}
	_, b, err := s.photo(sender, id)
	if err != nil || !clean {
		return b, err
	}
	if b, err = photo.Clean(b); err != nil {
		return nil, fmt.Errorf("clean photo %s: %w", id, err)
	}
	return b, nil
}

func senderOf(s *store, id string) (sender string, err error) {
	several := false
	err = s.eachPhoto(func(r record) error {
		if r.Moment != id {
			return nil
		}
		if several = sender != ""; several {
			return badgerdb.ErrStop
		}
		sender = r.Sender
		return nil
	})
	switch {
	case err != nil:
		return "", err
	case several:
		return "", fmt.Errorf("moment %q is of two senders: name one, as in %s", id, sender+"/"+id)
	case sender == "":
		return "", fmt.Errorf("photo %q: %w", id, errNoPhoto)
	}
	return sender, nil
}
