package broker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/ledger"
	"pairsync/internal/moment"
	"pairsync/internal/mqttlink"
	"pairsync/internal/token"
)

// raw is a connection on which a test writes what it likes.
func (w *world) raw() net.Conn {
	c, err := w.dial(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// encode returns the bytes of a packet that a client may send.
func encode(tb testing.TB, pk packets.Packet) []byte {
	tb.Helper()
	by := map[byte]func(*packets.Packet, *bytes.Buffer) error{
		packets.Connect: (*packets.Packet).ConnectEncode, packets.Publish: (*packets.Packet).PublishEncode,
		packets.Puback: (*packets.Packet).PubackEncode, packets.Pubrec: (*packets.Packet).PubrecEncode,
		packets.Pubrel: (*packets.Packet).PubrelEncode, packets.Pubcomp: (*packets.Packet).PubcompEncode,
		packets.Subscribe: (*packets.Packet).SubscribeEncode, packets.Unsubscribe: (*packets.Packet).UnsubscribeEncode,
		packets.Pingreq: (*packets.Packet).PingreqEncode, packets.Disconnect: (*packets.Packet).DisconnectEncode,
		packets.Auth: (*packets.Packet).AuthEncode,
	}
	var b bytes.Buffer
	if err := by[pk.FixedHeader.Type](&pk, &b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// connectBytes is a CONNECT of user, MQTT 5.
func (w *world) connectBytes(t *testing.T, user, id string, change func(*packets.Packet)) []byte {
	pk := w.connectPacket(user, id)
	if change != nil {
		change(&pk)
	}
	return encode(t, pk)
}

// subscribeBytes is a SUBSCRIBE of one short filter at QoS 1, MQTT 5.
func subscribeBytes(filter string) []byte {
	sub := []byte{0x82, 0, 0, 1, 0, 0, byte(len(filter))} // id 1, no properties
	sub = append(append(sub, filter...), 1)
	sub[1] = byte(len(sub) - 2)
	return sub
}

// ended waits for the server to close c, at most d of fake time, and returns
// what it sent.
func ended(t *testing.T, c net.Conn, d time.Duration) []byte {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(d))
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Fatalf("the connection is still open after %v (%v)", d, err)
	}
	return b
}

func TestHostileBeforeConnect(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for name, bytes := range map[string][]byte{ // those in capitals are closed at once
			"silence":               nil,
			"half a header":         {0x10},
			"not MQTT":              []byte("GET / HTTP/1.1\r\n\r\n"),
			"PINGREQ FIRST":         {0xC0, 0x00},
			"A CONNECT OF 200 MB":   {0x10, 0xFF, 0xFF, 0xFF, 0x5F},
			"A CONNECT OF 17 KB":    {0x10, 0x81, 0x88, 0x01},
			"AN ENDLESS LENGTH":     {0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF},
			"a CONNECT that stalls": w.connectBytes(t, "ann", "x", nil)[:40],
			"a CONNECT of nonsense": append([]byte{0x10, 20}, make([]byte, 20)...),
			"no protocol we know":   {0x10, 0x0C, 0, 4, 'M', 'Q', 'T', 'T', 9, 2, 0, 10, 0, 0},
		} {
			c := w.raw()
			c.Write(bytes)
			start := time.Now()
			ended(t, c, time.Minute)
			most := connectWait
			if name == strings.ToUpper(name) {
				most = 0
			}
			if took := time.Since(start); took > most {
				t.Errorf("%s: closed after %v, want within %v", name, took, most)
			}
			c.Close()
		}
		if got := counted(t, w.broker.metrics.overLimit); got != 3 {
			t.Errorf("%v packets over the limit were counted, want 3", got)
		}
	})
}

// TestEmptyPassword: a client that sends one is told what it lacks, in the
// codes of its version.
func TestEmptyPassword(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for version, want := range map[byte]byte{4: 0x04, 5: 0x86} {
			c := w.raw()
			connect := []byte{0x10, 0, 0, 4, 'M', 'Q', 'T', 'T', version, 0xC2, 0, 60}
			if version == 5 {
				connect = append(connect, 0) // no properties
			}
			connect = append(connect, 0, 1, 'x', 0, 3, 'a', 'n', 'n', 0, 0)
			connect[1] = byte(len(connect) - 2)
			c.Write(connect)
			if got := ended(t, c, time.Minute); len(got) < 4 || got[0] != 0x20 || got[3] != want {
				t.Errorf("version %d: answered % x, want CONNACK 0x%02X", version, got, want)
			}
			c.Close()
		}
	})
}

// TestDecoderPanic: the packet that panics in mochi's decoder ends its own
// connection and nothing else, and leaves nothing of it behind.
func TestDecoderPanic(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ben := w.connect("ben", func(c *mqttlink.Config) { c.Subscriptions = w.photosOf("ann") })
		defer ben.end()
		live := moment.LiveTopic(w.pair.ID, "ann", "gone")
		if err := ben.Subscribe(t.Context(), mqttlink.Subscription{Filter: live}); err != nil {
			t.Fatal(err)
		}
		admin := w.token(token.Principal{User: "ann", Role: token.RoleAdmin})
		for _, role := range []string{"user", "user", "admin"} {
			c := w.raw()
			c.Write(w.connectBytes(t, "ann", "x", func(pk *packets.Packet) {
				if role == "admin" {
					pk.Connect.Password = []byte(admin)
				}
				pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, live, []byte(role)
			}))
			c.Write([]byte{0x82, 0x06, 0x12, 0x34, 0x00, 0x00, 0x01, 0x70})
			ended(t, c, time.Minute)
			c.Close()
			settle(time.Second)
			if m := ben.last(live); m == nil || string(m.Payload) != role {
				t.Errorf("the will of a %s: %v", role, m)
			}
		}
		if n := w.broker.mq.Clients.Len(); n != 2 { // ben's, and the inline client
			t.Errorf("mochi keeps %d clients, want 2", n)
		}
		ben.mu.Lock()
		ben.got = nil
		ben.mu.Unlock()
		if n := w.broker.Connections(); n != 1 {
			t.Errorf("%d connections are left, want ben's", n)
		}
		ann := w.connect("ann", nil)
		defer ann.end()
		ann.sendN(t, 0, 1)
		settle(time.Second)
		if len(ben.topics()) != 1 {
			t.Error("the broker delivers no more")
		}
	})
}

// TestPublisherThatNeverReads: its PUBACKs back up, then its publishes; when
// it is gone, so is everything of it.
func TestPublisherThatNeverReads(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		c := w.raw()
		c.Write(w.connectBytes(t, "ann", "x", nil))
		c.SetWriteDeadline(time.Now().Add(time.Minute))
		for i := range 20000 { // their PUBACKs are more than the link holds
			topic := moment.LiveTopic(w.pair.ID, "ann", "typing")
			_, err := c.Write(encode(t, packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 5,
				PacketID: uint16(i%60000 + 1), TopicName: topic, Payload: make([]byte, 512),
			}))
			if err != nil {
				break
			}
		}
		synctest.Wait()
		if n := w.broker.Connections(); n > 1 {
			t.Errorf("%d connections", n)
		}
		c.Close()
		settle(2 * time.Minute)
		if n := w.broker.Connections(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

// TestTrickle: a packet that comes one byte a second is cut; one that comes
// slowly but at a rate that a bad link has is taken.
func TestTrickle(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		photo := func() []byte {
			return encode(t, packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, ProtocolVersion: 5, PacketID: 1,
				TopicName: "pairs/" + w.pair.ID + "/photos/ann/slow", Payload: make([]byte, 2<<20),
			})
		}
		publish := func(c net.Conn, chunk int, pause time.Duration) error {
			pk := photo()
			for len(pk) > 0 {
				n := min(chunk, len(pk))
				if _, err := c.Write(pk[:n]); err != nil {
					return err
				}
				pk = pk[n:]
				time.Sleep(pause)
			}
			return nil
		}
		slow := func(pk *packets.Packet) { pk.Connect.Keepalive = 10 }
		c := w.raw()
		c.Write(w.connectBytes(t, "ann", "x", slow))
		err := publish(c, 1, time.Second)
		if err == nil {
			t.Error("a byte a second was read to the end")
		}
		c.Close()
		// Bytes that came fast buy no right to dawdle afterwards, nor does a
		// keepalive of a day.
		c = w.raw()
		c.Write(w.connectBytes(t, "ann", "x", func(pk *packets.Packet) { pk.Connect.Keepalive = 65535 }))
		pk := photo()
		c.Write(pk[:1<<20])
		start := time.Now()
		err = nil
		for i := 1 << 20; i < len(pk) && err == nil; i++ {
			time.Sleep(10 * time.Second)
			_, err = c.Write(pk[i : i+1])
		}
		if took := time.Since(start); took > 2*packetWait {
			t.Errorf("a photo that stands still was cut after %v", took)
		}
		c.Close()
		c = w.raw()
		c.Write(w.connectBytes(t, "ann", "x", slow))
		if err := publish(c, 32<<10, time.Second); err != nil {
			t.Errorf("2 MB at 32 KB/s: %v", err)
		}
		settle(time.Second)
		if st, err := w.broker.deps.Ledger.Stat(t.Context(), ledger.PairLog(w.pair.ID)); err != nil || st.Bytes != 2<<20 {
			t.Errorf("stored %d bytes (%v), want the photo of 2 MB", st.Bytes, err)
		}
		c.Close()
	})
}

func TestWillStaysInside(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for topic, ok := range map[string]bool{
			moment.LiveTopic(w.pair.ID, "ann", "gone"): true,
			moment.LiveTopic(w.pair.ID, "ben", "gone"): false,
			"pairs/" + w.pair.ID + "/photos/ann/will":  false,
			moment.PresenceTopic(w.pair.ID, "ann"):     false,
			"somewhere/else":                           false,
			moment.LiveTopic("another", "ann", "gone"): false,
		} {
			c := w.raw()
			c.Write(w.connectBytes(t, "ann", "x", func(pk *packets.Packet) {
				pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload, pk.Connect.WillQos = true, topic, []byte("bye"), 1
			}))
			settle(time.Second)
			if got := w.broker.Connections() == 1; got != ok {
				t.Errorf("a will on %s: let in %v, want %v", topic, got, ok)
			}
			c.Close()
			settle(time.Second)
		}
		ben := w.connect("ben", func(c *mqttlink.Config) {
			c.Subscriptions = []mqttlink.Subscription{{Filter: "pairs/" + w.pair.ID + "/live/#", QoS: 1}}
		})
		defer ben.end()
		c := w.raw()
		c.Write(w.connectBytes(t, "ann", "x", func(pk *packets.Packet) {
			pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload, pk.Connect.WillQos = true, moment.LiveTopic(w.pair.ID, "ann", "gone"), []byte("bye"), 1
		}))
		settle(time.Second)
		c.Close()
		settle(time.Second)
		if m := ben.last(moment.LiveTopic(w.pair.ID, "ann", "gone")); m == nil || m.QoS != 0 {
			t.Errorf("the will: %+v, want it at QoS 0", m)
		}
	})
}

// TestStuckReader: a takeover does not wait for a client that reads nothing.
func TestStuckReader(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		stuck := w.raw()
		stuck.Write(w.connectBytes(t, "ben", "phone", nil))
		stuck.Write(subscribeBytes(w.photosOf("ann")[0].Filter))
		settle(time.Second)
		ann := w.connect("ann", nil)
		defer ann.end()
		big := string(make([]byte, 1<<20))
		for _, id := range []string{"a", "b", "c"} {
			if err := ann.send(moment.Photo, id, big); err != nil {
				t.Fatal(err)
			}
		}
		settle(time.Second) // the pump is stuck in the middle of a photo
		start := time.Now()
		ben := w.connect("ben", func(c *mqttlink.Config) { c.ClientID = "phone" })
		defer ben.end()
		if took := time.Since(start); took > time.Second || !ben.Connected() {
			t.Errorf("connected %v after %v, want within 1s", ben.Connected(), took)
		}
		stuck.Close()
	})
}

// TestNothingStaysBehind: connections leave no goroutine.
func TestNothingStaysBehind(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		settle(time.Second)
		before := runtime.NumGoroutine()
		for range 20 {
			p := w.connect("ann", nil)
			if err := p.Publish(context.Background(), mqttlink.Publish{Topic: moment.LiveTopic(w.pair.ID, "ann", "x"), Payload: []byte("x"), QoS: 1}); err != nil {
				t.Fatal(err)
			}
			p.end()
		}
		settle(time.Minute)
		if after := runtime.NumGoroutine(); after > before {
			t.Errorf("%d goroutines, %d before", after, before)
		}
	})
}
