package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/google/go-cmp/cmp"

	"pairsync/internal/moment"
)

// The environment that makes the test binary an agent, to be killed.
const (
	childDir    = "PAIRSYNC_TEST_AGENT_DIR"
	childBroker = "PAIRSYNC_TEST_AGENT_BROKER"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, runChild(dir, os.Getenv(childBroker)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runChild runs an agent until the process is killed.
func runChild(dir, broker string) error {
	cfg := Default()
	cfg.DataDir, cfg.Broker, cfg.Kiosk.Listen = dir, broker, ""
	a, err := New(cfg, Deps{
		Token: func(context.Context) (string, error) { return testToken(deviceClaims), nil },
		Log:   quiet(),
	})
	if err != nil {
		return err
	}
	return a.Run(context.Background())
}

// photoServer is a small MQTT 5 server with one session and a list of photos
// for it. It resends what was not acknowledged, as a ledger's pump does.
type photoServer struct {
	t      *testing.T
	ln     net.Listener
	photos [][]byte

	mu       sync.Mutex // guards the fields below
	session  bool
	cleans   int
	acked    int // the acknowledged prefix of photos
	sends    int // of photos, repeats included
	receipts map[string]int
	onSend   func(sends int) // called after each photo was sent
	done     chan struct{}   // closed when everything is acknowledged and receipted
}

func newPhotoServer(t *testing.T, photos [][]byte) *photoServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &photoServer{t: t, ln: ln, photos: photos, receipts: map[string]int{}, done: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			s.serve(conn) // one client, one connection at a time
		}
	}()
	t.Cleanup(func() { ln.Close(); <-ended })
	return s
}

// serve is one connection, until it breaks.
func (s *photoServer) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	next := -1        // the photo to send next; -1 before photos are subscribed
	var sent []uint16 // packet ids without PUBACK, in order
	for {
		for next >= 0 && next < len(s.photos) && len(sent) < receiveMaximum {
			id := uint16(next + 1)
			sent = append(sent, id)
			if s.send(conn, id, s.photos[next]) != nil {
				return
			}
			next++
		}
		cp, err := packets.ReadPacket(r)
		if err != nil {
			return
		}
		switch p := cp.Content.(type) {
		case *packets.Connect:
			err = s.connect(conn, p)
		case *packets.Subscribe:
			err = s.subscribe(conn, p, &next)
		case *packets.Puback:
			if len(sent) == 0 || p.PacketID != sent[0] {
				s.t.Errorf("PUBACK %d, want %v in order", p.PacketID, sent)
				return
			}
			sent = sent[1:]
			s.settle(func() { s.acked++ })
		case *packets.Publish:
			err = s.published(conn, p)
		case *packets.Pingreq:
			err = write(conn, &packets.Pingresp{})
		case *packets.Disconnect:
			return
		}
		if err != nil {
			return
		}
	}
}

func write(conn net.Conn, p io.WriterTo) error {
	_, err := p.WriteTo(conn)
	return err
}

func (s *photoServer) connect(conn net.Conn, p *packets.Connect) error {
	ack := &packets.Connack{Properties: &packets.Properties{User: []packets.User{{Key: "pair", Value: testPair}}}}
	s.mu.Lock()
	if p.CleanStart {
		s.cleans++
		s.session, s.acked = false, 0
	}
	ack.SessionPresent, s.session = s.session, true
	s.mu.Unlock()
	return write(conn, ack)
}

// subscribe grants everything, tells who is in the pair, and lets the photos
// begin behind what was acknowledged.
func (s *photoServer) subscribe(conn net.Conn, p *packets.Subscribe, next *int) error {
	ack := &packets.Suback{PacketID: p.PacketID, Properties: &packets.Properties{}}
	info := false
	for _, sub := range p.Subscriptions {
		ack.Reasons = append(ack.Reasons, sub.QoS)
		info = info || sub.Topic == moment.InfoTopic(testPair)
		if sub.Topic == moment.KindFilter(testPair, moment.Photo, testPartner) && *next < 0 {
			s.mu.Lock()
			*next = s.acked
			s.mu.Unlock()
		}
	}
	if err := write(conn, ack); err != nil || !info {
		return err
	}
	body, err := json.Marshal(moment.PairInfo{Users: testMember.Users})
	if err != nil {
		return err
	}
	return write(conn, &packets.Publish{Topic: moment.InfoTopic(testPair), Payload: body, Retain: true, Properties: &packets.Properties{}})
}

func photoID(n int) string { return fmt.Sprintf("m%03d", n) }

func (s *photoServer) send(conn net.Conn, id uint16, body []byte) error {
	p := &packets.Publish{Topic: photoTopic(testPartner, photoID(int(id)-1)), Payload: body, QoS: 1, PacketID: id, Properties: &packets.Properties{}}
	if err := write(conn, p); err != nil {
		return err
	}
	s.mu.Lock()
	s.sends++
	sends, onSend := s.sends, s.onSend
	s.mu.Unlock()
	if onSend != nil {
		onSend(sends)
	}
	return nil
}

// published takes a receipt, or the device's state.
func (s *photoServer) published(conn net.Conn, p *packets.Publish) error {
	if p.QoS == 0 {
		return nil
	}
	top, err := moment.ParseTopic(p.Topic)
	if err != nil || top.Kind != moment.Receipt {
		s.t.Errorf("published to %s, %v", p.Topic, err)
	}
	s.settle(func() { s.receipts[top.ID]++ })
	return write(conn, &packets.Puback{PacketID: p.PacketID, Properties: &packets.Properties{}})
}

// settle changes what is settled, and closes done when that is everything.
func (s *photoServer) settle(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	if s.acked == len(s.photos) && len(s.receipts) == len(s.photos) {
		select {
		case <-s.done:
		default:
			close(s.done)
		}
	}
}

// startChild starts an agent in a process of its own. kill ends it at once and
// waits for its end; it may be called again.
func startChild(t *testing.T, dir string, s *photoServer) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childBroker+"=mqtt://"+s.ln.Addr().String())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var once sync.Once
	return func() {
		once.Do(func() {
			cmd.Process.Kill()
			var exit *exec.ExitError
			if err := <-ended; !errors.As(err, &exit) || exit.ExitCode() != -1 {
				t.Errorf("child ended by itself: %v: %s", err, stderr.String())
			}
		})
	}
}

// The promise of the device: a photo is acknowledged only once it is on disk,
// and whatever comes again is not there twice.
func TestKilledBetweenReceiveAndAcknowledge(t *testing.T) {
	const count, rounds = 60, 8
	var photos [][]byte
	for i := range count {
		// Large enough for the value log, which is where tails tear.
		photos = append(photos, append(testJPEG(t, i), []byte(strings.Repeat(strconv.Itoa(i), 20<<10))...))
	}
	s := newPhotoServer(t, photos)
	dir := t.TempDir()
	for round := range rounds {
		kill := startChild(t, dir, s)
		due := make(chan struct{})
		var once sync.Once
		s.mu.Lock()
		after := s.sends + 1 + rand.IntN(6)
		s.onSend = func(sends int) {
			if sends >= after { // the child is receiving, storing or acknowledging it
				once.Do(func() { time.AfterFunc(rand.N(12*time.Millisecond), func() { close(due) }) })
			}
		}
		if round == rounds/2 {
			s.session = false // the server forgets, as after 90 days
			s.acked = 0
		}
		s.mu.Unlock()
		select {
		case <-due:
		case <-s.done:
		case <-time.After(20 * time.Second):
			t.Errorf("round %d: the agent does not take photos", round)
		}
		kill()
	}
	s.mu.Lock()
	s.onSend = nil
	s.mu.Unlock()
	kill := startChild(t, dir, s)
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		s.mu.Lock()
		t.Errorf("%d of %d acknowledged, %d receipts", s.acked, count, len(s.receipts))
		s.mu.Unlock()
	}
	kill()

	cfg := Default()
	cfg.DataDir = dir
	store := openTestStore(t, cfg)
	want := []string{}
	for i := range count {
		want = append(want, photoID(i))
		if _, b, err := store.photo(testPartner, photoID(i)); err != nil || string(b) != string(photos[i]) {
			t.Errorf("%s: %d bytes, %v", photoID(i), len(b), err)
		}
		if id := moment.ReceiptID(testPartner, photoID(i), testDevice, moment.StatusStored); s.receipts[id] == 0 {
			t.Errorf("%s: no receipt", photoID(i))
		}
	}
	slices.Reverse(want)
	if diff := cmp.Diff(want, moments(t, store)); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	t.Logf("%d photos sent %d times in %d runs, %d clean starts", count, s.sends, rounds+1, s.cleans)
}
