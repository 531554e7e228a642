package socketio_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"testing"

	fastbase64 "github.com/segmentio/asm/base64"

	"pairsync/bridge/socketio"
)

// photoBytes is the size of the photo in the benchmarks: 267 KB of base64.
const photoBytes = 200_000

// benchServer serves on TCP with the hooks of the default namespace.
func benchServer(b *testing.B, connect func(*socketio.Socket)) (addr string) {
	b.Helper()
	server, err := socketio.NewServer(socketio.Config{MaxPayload: 8 << 20}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	server.Of("/").OnConnect(connect)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	front := &http.Server{Handler: server}
	go front.Serve(listener) // ends with front.Close
	b.Cleanup(func() {
		_ = front.Close()
		_ = server.Close(b.Context())
	})
	return listener.Addr().String()
}

// benchClient joins by hand; it costs next to nothing in this process.
func benchClient(b *testing.B, addr string) (net.Conn, *bufio.Reader) {
	b.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	fmt.Fprintf(c, "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	r := bufio.NewReaderSize(c, 512)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		b.Fatalf("handshake: %v, %v", resp, err)
	}
	benchRead(b, r)
	if _, err := c.Write(clientFrame([]byte("40"))); err != nil {
		b.Fatal(err)
	}
	benchRead(b, r)
	return c, r
}

// clientFrame is a masked text frame.
func clientFrame(payload []byte) []byte {
	frame := []byte{0x81}
	switch n := len(payload); {
	case n <= 125:
		frame = append(frame, 0x80|byte(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 0xff), uint64(n))
	}
	key := [4]byte{1, 2, 3, 4}
	frame = append(frame, key[:]...)
	for i, c := range payload {
		frame = append(frame, c^key[i%4])
	}
	return frame
}

// benchRead skips one frame from the server.
func benchRead(b *testing.B, r *bufio.Reader) {
	b.Helper()
	var h [10]byte
	if _, err := io.ReadFull(r, h[:2]); err != nil {
		b.Fatal(err)
	}
	n := int64(h[1])
	switch n {
	case 126:
		_, _ = io.ReadFull(r, h[:2])
		n = int64(binary.BigEndian.Uint16(h[:]))
	case 127:
		_, _ = io.ReadFull(r, h[:8])
		n = int64(binary.BigEndian.Uint64(h[:]))
	}
	if _, err := io.CopyN(io.Discard, r, n); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPhotoIn is the way of a photo from a phone into a handler, which
// decodes it and acknowledges.
func BenchmarkPhotoIn(b *testing.B) {
	field := []byte(`"photoData":"`)
	addr := benchServer(b, func(s *socketio.Socket) {
		s.On("send_photo", func(e *socketio.Event) {
			start := bytes.Index(e.Raw, field) + len(field)
			end := start + bytes.IndexByte(e.Raw[start:], '"')
			photo := make([]byte, fastbase64.StdEncoding.DecodedLen(end-start))
			n, err := fastbase64.StdEncoding.Decode(photo, e.Raw[start:end])
			if err != nil || n != photoBytes {
				b.Errorf("decoded %d bytes, %v", n, err)
			}
			_ = e.Ack(true)
		})
	})
	c, r := benchClient(b, addr)
	frame := clientFrame([]byte(`421["send_photo",{"photoId":"1","photoData":"` +
		base64.StdEncoding.EncodeToString(make([]byte, photoBytes)) + `"}]`))
	b.SetBytes(photoBytes)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(frame); err != nil {
			b.Fatal(err)
		}
		benchRead(b, r)
	}
}

// BenchmarkPhotoOut is the way of a photo from bytes to one phone.
func BenchmarkPhotoOut(b *testing.B) {
	sockets := make(chan *socketio.Socket, 1)
	_, r := benchClient(b, benchServer(b, func(s *socketio.Socket) { sockets <- s }))
	s := <-sockets
	photo := make([]byte, photoBytes)
	b.SetBytes(photoBytes)
	b.ReportAllocs()
	for b.Loop() {
		p, err := socketio.PrepareJSON("receive_photo", []byte(`{"photoId":"1","photoData":"`), photo, []byte(`"}`))
		if err != nil {
			b.Fatal(err)
		}
		if err := s.EmitPrepared(p, nil); err != nil {
			b.Fatal(err)
		}
		benchRead(b, r)
	}
}

// BenchmarkSmallEvent is one small event and its acknowledgement.
func BenchmarkSmallEvent(b *testing.B) {
	addr := benchServer(b, func(s *socketio.Socket) {
		s.On("heartbeat", func(e *socketio.Event) { _ = e.Ack(true) })
	})
	c, r := benchClient(b, addr)
	frame := clientFrame([]byte(`421["heartbeat",{"userId":"user_1"}]`))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(frame); err != nil {
			b.Fatal(err)
		}
		benchRead(b, r)
	}
}

// BenchmarkIdleSockets reports the memory of a connected socket that does
// nothing, the client's end (about 1 KB) included.
func BenchmarkIdleSockets(b *testing.B) {
	const count = 2000
	addr := benchServer(b, func(s *socketio.Socket) { s.OnAny(func(*socketio.Event) {}) })
	benchClient(b, addr)
	for b.Loop() {
		before := memory()
		for range count {
			benchClient(b, addr)
		}
		b.ReportMetric(float64(memory()-before)/count, "B/socket")
	}
}

// memory returns the bytes of heap and stacks in use.
func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
