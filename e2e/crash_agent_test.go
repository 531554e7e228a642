package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
)

// TestAgentCrash kills the agent again and again, half of the time between
// storing photos and acknowledging them. Every photo is on the frame once, in
// order, with one receipt; what the frame was to send goes out once.
func TestAgentCrash(t *testing.T) {
	rng := seeded(t)
	s := newServer(t)
	c := s.pair(t)
	g := newGate(t, s.mqtt)
	f := newFrame(t, s, c.ben)
	f.broker = "mqtt://" + g.addr
	f.connect(t)
	ann := newTeller(t, s, c)
	var outgoing []string
	for i := range rounds(t) {
		if i%2 == 0 {
			// Stored but not acknowledged: the server hears nothing more.
			// Its window must be empty before, or nothing new would come.
			eventually(t, "the frame to have acknowledged all", func() bool {
				session := s.session(t, c.ben+"/"+f.id)
				return session.Connected && session.Backlog == 0
			})
			g.mute()
			fresh := ann.publish(t, 1+rng.IntN(20))
			eventually(t, "the first of them to be stored", func() bool {
				list := f.list(t)
				return len(list) > 0 && list[0].Moment >= fresh[0].id
			})
		} else {
			ann.publish(t, 10+rng.IntN(20))
			pass(t, time.Duration(rng.IntN(50))*time.Millisecond)
		}
		outgoing = append(outgoing, queuePhoto(t, f))
		f.proc.kill(t)
		g.open()
		f.start(t)
	}
	ann.publish(t, 1)

	sent := ann.sent
	f.has(t, sent[len(sent)-1].id)
	var got []arrival
	for _, p := range slices.Backward(f.list(t)) {
		got = append(got, arrival{p.Moment, p.SHA256})
	}
	if !slices.Equal(got, sent) {
		t.Errorf("the frame has %v\nwant %v", got, sent)
	}
	checkTold(t, ann.seen, f.id, sent, outgoing)
}

// teller is ann, who sends photos and hears what becomes of them.
type teller struct {
	pair couple
	link *mqttlink.Link
	sent []arrival
	seen *record[*mqttlink.Message] // ben's receipts and photos
}

func newTeller(t *testing.T, s *server, c couple) *teller {
	t.Helper()
	ann := &teller{pair: c, seen: newRecord[*mqttlink.Message]()}
	ann.link = newLink(t, s, c.ann, mqttlink.Config{
		ClientID: "ann", SessionExpiry: time.Hour,
		Subscriptions: []mqttlink.Subscription{
			{Filter: moment.KindFilter(c.id, moment.Receipt, c.ben), QoS: 1},
			{Filter: moment.KindFilter(c.id, moment.Photo, c.ben), QoS: 1},
		},
		Receive: func(m *mqttlink.Message) {
			ann.seen.add(m)
			if err := m.Ack(); err != nil {
				t.Errorf("ann: %v", err)
			}
		},
	})
	return ann
}

// publish sends n photos and returns them.
func (ann *teller) publish(t *testing.T, n int) []arrival {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range n {
		id, image := fmt.Sprintf("m-%06d", len(ann.sent)), newPhoto(2000)
		if err := ann.link.Publish(ctx, mqttlink.Publish{Topic: ann.pair.photoTopic(ann.pair.ann, id), Payload: image, QoS: 1}); err != nil {
			t.Fatal(err)
		}
		ann.sent = append(ann.sent, arrival{id, sum(image)})
	}
	return ann.sent[len(ann.sent)-n:]
}

// queuePhoto has the frame send a photo and does not wait for it.
func queuePhoto(t *testing.T, f *frame) (id string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "photo.jpg")
	if err := os.WriteFile(file, plainPhoto(), 0o600); err != nil {
		t.Fatal(err)
	}
	var sent []struct{ Moment string }
	if err := json.Unmarshal([]byte(f.cli(t, "send", "--json", "--wait", "0s", file)), &sent); err != nil || len(sent) != 1 {
		t.Fatalf("send from the frame: %v, %v", sent, err)
	}
	return sent[0].Moment
}

// checkTold waits until ann has a receipt for every photo and every photo of
// the frame, and checks that each came as one moment.
func checkTold(t *testing.T, seen *record[*mqttlink.Message], device string, sent []arrival, outgoing []string) {
	t.Helper()
	topics := map[string]map[string]bool{} // by what they are about
	all := seen.await(t, "all receipts and all photos of the frame", func(list []*mqttlink.Message) bool {
		clear(topics)
		for _, m := range list {
			about := path.Base(m.Topic)
			var r moment.ReceiptBody
			if m.ContentType == "application/json" && json.Unmarshal(m.Payload, &r) == nil {
				if r.Status != moment.StatusStored || r.Device != device {
					continue
				}
				about = r.Moment
			}
			if topics[about] == nil {
				topics[about] = map[string]bool{}
			}
			topics[about][m.Topic] = true
		}
		return len(topics) >= len(sent)+len(outgoing)
	})
	for about, from := range topics {
		if len(from) != 1 {
			t.Errorf("%s came as %d moments", about, len(from))
		}
	}
	for _, id := range outgoing {
		if topics[id] == nil {
			t.Errorf("photo %s of the frame did not arrive", id)
		}
	}
	t.Logf("%d photos to the frame, %d from it, %d messages to ann", len(sent), len(outgoing), len(all))
}

// gate is a way to the server on which a client can be made to fall silent:
// what it sends is lost, though its connection stands.
type gate struct {
	addr  string
	muted atomic.Bool
}

func newGate(t testing.TB, target string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{addr: l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			running.Go(func() { g.pass(client, target) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		running.Wait() // both ends are dead by now: they were started later
	})
	return g
}

// mute loses what clients send until they connect anew after open.
func (g *gate) mute() { g.muted.Store(true) }
func (g *gate) open() { g.muted.Store(false) }

// pass carries one connection.
func (g *gate) pass(client net.Conn, target string) {
	defer client.Close()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return // the client tries again
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(client, server) // until either end is gone
		client.Close()
	}()
	buffer, lost := make([]byte, 64<<10), false
	for {
		n, err := client.Read(buffer)
		if lost = lost || g.muted.Load(); err != nil {
			return
		}
		if lost {
			continue
		}
		if _, err := server.Write(buffer[:n]); err != nil {
			return
		}
	}
}
