// Command echo is a server for the official protocol suites and for trying
// clients: Socket.IO at /socket.io/ with the namespaces "/" and "/custom", and
// bare Engine.IO at /engine.io/.
//
//	go run ./bridge/socketio/echo -addr 127.0.0.1:3000
//
// The timings are those that the suites of socket.io-protocol and
// engine.io-protocol expect. They are far too short for real use.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"pairsync/bridge/socketio"
	"pairsync/bridge/socketio/engineio"
)

const (
	pingInterval   = 300 * time.Millisecond
	pingTimeout    = 200 * time.Millisecond
	connectTimeout = time.Second
	maxPayload     = 1_000_000
	authDelay      = 25 * time.Millisecond
)

func main() {
	addr := flag.String("addr", "127.0.0.1:3000", "address to listen on")
	verbose := flag.Bool("v", false, "log what clients do wrong")
	flag.Parse()
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, log); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, addr string, log *slog.Logger) error {
	sockets, err := socketio.NewServer(socketio.Config{
		PingInterval: pingInterval, PingTimeout: pingTimeout, ConnectTimeout: connectTimeout,
		MaxPayload: maxPayload, Origins: []string{"*"}, CORS: true,
	}, log)
	if err != nil {
		return err
	}
	for _, name := range []string{"/", "/custom"} {
		sockets.Of(name).OnConnect(serve)
	}
	sockets.Of("/refused").Use(func(*socketio.Socket) error {
		return &socketio.ConnectError{Message: "not authorized", Data: map[string]any{"code": "token_invalid", "retryable": false}}
	})
	raw, err := engineio.NewServer(engineio.Config{
		PingInterval: pingInterval, PingTimeout: pingTimeout, MaxPayload: maxPayload, Origins: []string{"*"}, CORS: true,
	}, func(s *engineio.Session) engineio.Receiver { return mirror{s} }, log)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(socketio.DefaultPath, sockets)
	mux.Handle("/engine.io/", raw)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	log.Info("listening", "addr", listener.Addr().String())
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		stopped <- errors.Join(sockets.Close(grace), raw.Close(grace), server.Shutdown(grace))
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// serve gives a socket the handlers of the suite.
func serve(s *socketio.Socket) {
	auth := s.Handshake().Auth
	if auth == nil {
		auth = []byte("{}")
	}
	// The suite listens for one message at a time and misses a second one that
	// arrives in the same read: a busy machine needs time between them. But one
	// of its cases joins a second namespace with 200 ms left to live.
	time.Sleep(authDelay)
	_ = s.Emit("auth", auth) // a socket that is gone needs nothing
	s.On("message", func(e *socketio.Event) {
		if args, err := arguments(e); err == nil {
			_ = s.Emit("message-back", args...)
		}
	})
	s.On("message-with-ack", func(e *socketio.Event) {
		if args, err := arguments(e); err == nil {
			_ = e.Ack(args...)
		}
	})
	s.On("leave", func(*socketio.Event) { s.Disconnect(false) })
	s.On("close", func(*socketio.Event) { s.Disconnect(true) })
	s.On("ask", func(e *socketio.Event) { // asks the client and says what it answered
		p, err := socketio.Prepare("question", 1)
		if err != nil {
			return
		}
		_ = s.EmitPrepared(p, func(args []rawMessage, err error) {
			if err == nil {
				_ = s.Emit("answer", args)
			}
		})
	})
}

// arguments returns e's arguments in a form that Emit sends back as they were.
func arguments(e *socketio.Event) ([]any, error) {
	list, err := e.Args()
	if err != nil {
		return nil, err
	}
	values := make([]any, len(list))
	for i, raw := range list {
		if values[i], err = restore(e, raw); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// mirror sends every Engine.IO message back.
type mirror struct{ session *engineio.Session }

func (m mirror) Message(binary bool, data engineio.Buffer) error {
	if binary {
		_ = m.session.Send(engineio.Binary(data.B))
	} else {
		_ = m.session.Send(engineio.Text(data.B))
	}
	return nil // the buffer is still being sent: it is left to the garbage collector
}

func (mirror) Closed(string) {}
