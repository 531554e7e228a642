package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The protocol versions as mosquitto's programs name them.
const (
	v5   = "mqttv5"
	v311 = "mqttv311"
)

// mosquitto is a user of mosquitto_pub and mosquitto_sub.
type mosquitto struct {
	version     string
	server      *server
	user, token string
}

func newMosquitto(t testing.TB, version string, s *server, user string) mosquitto {
	t.Helper()
	return mosquitto{version, s, user, s.token(t, user)}
}

func (m mosquitto) args(args []string) []string {
	host, port, _ := net.SplitHostPort(m.server.mqtt) // our own address
	all := []string{"-V", m.version, "-h", host, "-p", port, "-u", m.user}
	if m.token != "" {
		all = append(all, "-P", m.token)
	}
	return append(all, args...)
}

// pub runs mosquitto_pub and returns its exit code and what it said.
func (m mosquitto) pub(t testing.TB, topic string, payload []byte, args ...string) (code int, said string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "payload")
	if err := os.WriteFile(file, payload, 0o600); err != nil {
		t.Fatal(err)
	}
	return runs(t, "mosquitto_pub", m.args(append([]string{"-t", topic, "-f", file}, args...))...)
}

// mustPub publishes at QoS 1, which must succeed.
func (m mosquitto) mustPub(t testing.TB, topic string, payload []byte) {
	t.Helper()
	if code, said := m.pub(t, topic, payload, "-q", "1"); code != 0 || said != "" {
		t.Fatalf("mosquitto_pub to %s: exit code %d, %q", topic, code, said)
	}
}

// sub starts mosquitto_sub.
func (m mosquitto) sub(t testing.TB, filter string, args ...string) *process {
	t.Helper()
	args = m.args(append([]string{"-F", "MESSAGE %t %q %r %x", "-t", filter}, args...))
	return start(t, "mosquitto_sub "+m.version, nil, append([]string{"mosquitto_sub"}, args...)...)
}

// queue makes the durable session id, which then is offline.
func (m mosquitto) queue(t testing.TB, id, filter string) {
	t.Helper()
	p := m.sub(t, filter, "-i", id, "-c", "-q", "1", "-E")
	if code := p.wait(t); code != 0 {
		t.Fatalf("mosquitto_sub: exit code %d: %s", code, p.text())
	}
}

// drain connects to the session id, receives n messages, and leaves when the
// server has taken the last PUBACK. (mosquitto_sub -C leaves at once; a SUBACK
// that it has not read yet then resets the connection, PUBACK and all.)
func (m mosquitto) drain(t testing.TB, id, filter string, n int) []message {
	t.Helper()
	p := m.sub(t, filter, "-i", id, "-c", "-q", "1")
	p.out.await(t, fmt.Sprintf("%d messages", n), func(lines []string) bool { return len(messages(t, lines)) >= n })
	eventually(t, "the last PUBACK", func() bool {
		s := m.server.session(t, m.user+"/"+id)
		return s != nil && s.Backlog == 0
	})
	p.signal(t, syscall.SIGTERM)
	p.wait(t)
	return messages(t, p.out.all())
}

// message is a message that a subscriber has received.
type message struct {
	topic   string
	payload []byte
	qos     string
	retain  bool
}

func (m message) String() string {
	return fmt.Sprintf("%s (%d bytes, QoS %s, retain %v)", m.topic, len(m.payload), m.qos, m.retain)
}

// messages reads what mosquitto_sub has printed.
func messages(t testing.TB, lines []string) []message {
	t.Helper()
	var out []message
	for _, line := range lines {
		rest, ok := strings.CutPrefix(line, "MESSAGE ")
		if !ok {
			continue
		}
		f := strings.Split(rest, " ")
		payload, err := hex.DecodeString(f[len(f)-1])
		if err != nil || len(f) != 4 {
			t.Fatalf("mosquitto_sub printed %q: %v", clip(line), err)
		}
		out = append(out, message{f[0], payload, f[1], f[2] == "1"})
	}
	return out
}

// posted is a photo that was published.
type posted struct {
	topic string
	image []byte
}

// checkQueue compares what a durable session has brought with what was
// published.
func checkQueue(t testing.TB, got []message, want []posted) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("received %d messages, want %d: %v", len(got), len(want), got)
	}
	for i := range want {
		if got[i].topic != want[i].topic || !bytes.Equal(got[i].payload, want[i].image) || got[i].qos != "1" || got[i].retain {
			t.Errorf("message %d is %v, want %s (%d bytes) at QoS 1", i, got[i], want[i].topic, len(want[i].image))
		}
	}
}

// TestMosquittoQueue keeps a durable session of a plain client over a stop and
// a kill -9 of the server.
func TestMosquittoQueue(t *testing.T) {
	s := newServer(t)
	for _, version := range []string{v5, v311} {
		t.Run(version, func(t *testing.T) {
			c := s.pair(t)
			ann, ben := newMosquitto(t, version, s, c.ann), newMosquitto(t, version, s, c.ben)
			filter := "pairs/" + c.id + "/photos/#"
			ben.queue(t, "widget", filter)
			var sent []posted
			publish := func(n int) {
				for range n {
					p := posted{c.photoTopic(c.ann, newID("m")), newPhoto(3000)}
					ann.mustPub(t, p.topic, p.image)
					sent = append(sent, p)
				}
			}
			publish(4)
			s.restart(t)
			publish(4)
			s.crash(t)
			publish(4)
			if got := s.session(t, c.ben+"/widget"); got == nil || got.Connected || got.Backlog != len(sent) {
				t.Errorf("session list: %+v, want a backlog of %d", got, len(sent))
			}
			checkQueue(t, ben.drain(t, "widget", filter, len(sent)), sent)

			// What was acknowledged does not come again.
			s.restart(t)
			sent = nil
			publish(1)
			checkQueue(t, ben.drain(t, "widget", filter, 1), sent)
		})
	}
}

// TestMosquittoForeignPair tries to read and write a pair that is not one's own.
func TestMosquittoForeignPair(t *testing.T) {
	s := newServer(t)
	c, other := s.pair(t), s.pair(t)
	watch := newWatcher(t, s, c)
	for version, want := range map[string]struct{ suback, pub string }{
		v5:   {"Subscribed (mid: 1): 135", "Not authorized"},
		v311: {"Subscribed (mid: 1): 128", "The connection was lost"},
	} {
		t.Run(version, func(t *testing.T) {
			eve := newMosquitto(t, version, s, other.ann)
			for _, filter := range []string{"pairs/" + c.id + "/photos/#", "pairs/" + c.id + "/info", "pairs/+/photos/#", "#", "users/" + c.ann + "/events"} {
				p := eve.sub(t, filter, "-q", "1", "-d")
				p.wait(t)
				if !strings.Contains(p.text(), want.suback) {
					t.Errorf("subscribe to %s: want %q, got:\n%s", filter, want.suback, p.text())
				}
			}
			topic := c.photoTopic(c.ann, newID("m"))
			code, said := eve.pub(t, topic, newPhoto(10), "-q", "1")
			if !strings.Contains(said, want.pub) || version == v311 && code == 0 {
				t.Errorf("publish: exit code %d, %q, want %q", code, said, want.pub)
			}
			eve.pub(t, topic, newPhoto(10), "-q", "0") // nobody hears of it, and nothing happens
		})
	}
	watch.expect(t)
}

// TestMosquittoQoS2 publishes at QoS 2, which 3.1.1 clients may insist on: the
// handshake completes, and the moment is there once.
func TestMosquittoQoS2(t *testing.T) {
	s := newServer(t)
	c := s.pair(t)
	watch := newWatcher(t, s, c)
	ann := newMosquitto(t, v311, s, c.ann)
	topic := c.photoTopic(c.ann, newID("m"))
	if code, said := ann.pub(t, topic, newPhoto(100), "-q", "2"); code != 0 || said != "" {
		t.Errorf("publish at QoS 2: exit code %d, %q", code, said)
	}
	watch.expect(t, topic)
}
