package engineio_test

import (
	"log/slog"
	"testing"
	"time"

	"pairsync/bridge/socketio/engineio"
	"pairsync/bridge/socketio/internal/rawtest"
)

// suiteConfig has the timings of the official suite.
func suiteConfig() engineio.Config {
	return engineio.Config{PingInterval: 300 * time.Millisecond, PingTimeout: 200 * time.Millisecond, MaxPayload: 1_000_000}
}

// peer is the receiver of the tests: it sends everything back.
type peer struct {
	session *engineio.Session
	closed  chan string // the reason, buffered
}

func (p *peer) Message(binary bool, data engineio.Buffer) error {
	if binary {
		_ = p.session.Send(engineio.Binary(data.B)) // fails when the session has ended
	} else {
		_ = p.session.Send(engineio.Text(data.B))
	}
	return nil
}

func (p *peer) Closed(reason string) { p.closed <- reason }

// start runs an echo server; its sessions appear in the channel.
func start(t *testing.T, cfg engineio.Config) (*rawtest.World, *engineio.Server, <-chan *peer) {
	t.Helper()
	peers := make(chan *peer, 100)
	s, err := engineio.NewServer(cfg, func(sess *engineio.Session) engineio.Receiver {
		p := &peer{sess, make(chan string, 1)}
		peers <- p
		return p
	}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return rawtest.Start(t, s, "/engine.io/"), s, peers
}
