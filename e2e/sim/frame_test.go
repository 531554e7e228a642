package sim

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"pairsync/agent"
	"pairsync/internal/memnet"
)

// frame is an agent on one host of the network, with somebody who looks at its
// page all the time.
type frame struct {
	w     *world
	user  string
	id    string
	host  string
	token string
	dir   string
	wires wires
	runner

	local *memnet.Listener
	http  *http.Client // to the local API

	mu     sync.Mutex // guards the fields below
	screen []string   // photos that became the page's newest, "sender/id"
}

// frame registers a device of user's and makes its agent; on starts it.
func (w *world) frame(user, name string) *frame {
	w.t.Helper()
	id, token := w.device(user, name)
	return w.frameWith(user, name, id, token)
}

func (w *world) frameWith(user, name, id, token string) *frame {
	return &frame{w: w, user: user, id: id, host: name, token: token, dir: w.newDir(name)}
}

// on starts the agent and the page; stop ends both in good order.
func (f *frame) on() *frame {
	f.w.t.Helper()
	cfg := agent.Default()
	cfg.DataDir, cfg.Kiosk.Listen = f.dir, ""
	f.local = memnet.Listen("agent:80")
	kiosk := memnet.Listen("localhost:80")
	a, err := agent.New(cfg, agent.Deps{
		Dial: f.dial, Token: func(context.Context) (string, error) { return f.token, nil },
		Local: f.local, Kiosk: kiosk, Version: "sim", Log: f.w.log.With("who", f.host),
	})
	f.w.must(err)
	f.http = clientOf(f.local)
	f.start(f.w.t, func(ctx context.Context) {
		var page sync.WaitGroup
		page.Go(func() { f.look(ctx, clientOf(kiosk)) })
		if err := a.Run(ctx); err != nil {
			f.w.t.Errorf("%s: %v", f.host, err)
		}
		page.Wait()
	})
	return f
}

func (f *frame) dial(ctx context.Context) (net.Conn, error) {
	return f.wires.dial(ctx, f.w.net, f.host, hostMQTT)
}

// crash is a power cut: the agent goes on with what was on disk.
func (f *frame) crash() {
	f.w.t.Helper()
	f.dir = f.w.snapshot(f.dir, f.host)
	f.w.net.Refuse(f.host, hostMQTT, true)
	f.w.net.Cut(f.host, hostMQTT)
	f.stop()
	f.w.net.Refuse(f.host, hostMQTT, false)
	f.on()
}

// clientOf returns an HTTP client of an in-memory listener.
func clientOf(l *memnet.Listener) *http.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return l.Dial(ctx, "local") }
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

// look keeps the page open and notes which photo it shows.
func (f *frame) look(ctx context.Context, client *http.Client) {
	for ctx.Err() == nil {
		if err := f.lookOnce(ctx, client); err != nil && !pause(ctx, time.Second) {
			return
		}
	}
}

func (f *frame) lookOnce(ctx context.Context, client *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/events", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var screen struct {
			Photo *struct{ Sender, Moment string }
		}
		if err := json.Unmarshal([]byte(data), &screen); err != nil {
			return err
		}
		if screen.Photo != nil {
			f.noteScreen(screen.Photo.Sender + "/" + screen.Photo.Moment)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.EOF
}

func (f *frame) noteScreen(photo string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.screen) == 0 || f.screen[len(f.screen)-1] != photo {
		f.screen = append(f.screen, photo)
	}
}

// checkScreen checks that the page never went back to an older photo.
func (f *frame) checkScreen() {
	f.w.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, p := range f.screen {
		if slices.Contains(f.screen[:i], p) {
			f.w.t.Errorf("%s: the page shows %s a second time: %v", f.host, p, f.screen)
			return
		}
	}
}

// photos returns what the agent keeps, oldest first.
func (f *frame) photos() (list []agent.Photo) {
	f.w.t.Helper()
	f.w.must(call(f.http, http.MethodGet, "http://agent/photos", nil, &list))
	slices.Reverse(list)
	return list
}

// status returns the agent's status.
func (f *frame) status() (s agent.Status) {
	f.w.t.Helper()
	f.w.must(call(f.http, http.MethodGet, "http://agent/status", nil, &s))
	return s
}

// view is what the frame keeps.
func (f *frame) view() viewer {
	f.w.t.Helper()
	v := viewer{name: f.host, partner: f.w.book.partner(f.user)}
	for _, p := range f.photos() {
		s := sighting{id: p.Moment, sender: p.Sender}
		if b, err := hex.DecodeString(p.SHA256); err == nil && len(b) == sha256.Size {
			s.sum = [32]byte(b)
		}
		v.seen = append(v.seen, s)
	}
	return v
}

// send gives the agent a photo for the partner; it is on its disk then.
func (f *frame) send(size int) *photo {
	f.w.t.Helper()
	p := f.w.book.make(f.user, f.host, size)
	resp, err := f.http.Post("http://agent/outbox", "application/octet-stream", bytes.NewReader(p.bytes))
	f.w.must(err)
	defer resp.Body.Close()
	var out agent.Outcome
	body, err := io.ReadAll(resp.Body)
	f.w.must(err)
	if err := json.Unmarshal(body, &out); err != nil || out.Moment == "" {
		f.w.t.Fatalf("%s: outbox answered %s %s", f.host, resp.Status, body)
	}
	f.w.book.name(p, out.Moment)
	return p
}

// idle reports whether the agent has nothing left to send.
func (f *frame) idle() bool {
	s := f.status()
	return s.Connected && len(s.Outbox) == 0 && s.Receipts == 0
}
