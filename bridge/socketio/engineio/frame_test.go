package engineio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// maskedFrame is a client's frame.
func maskedFrame(final bool, op byte, key [4]byte, payload []byte) []byte {
	first := op
	if final {
		first |= 0x80
	}
	frame := []byte{first}
	switch n := len(payload); {
	case n <= 125:
		frame = append(frame, 0x80|byte(n))
	case n <= 0xffff:
		frame = binary.BigEndian.AppendUint16(append(frame, 0x80|126), uint16(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 0x80|127), uint64(n))
	}
	frame = append(frame, key[:]...)
	for i, b := range payload {
		frame = append(frame, b^key[i%4])
	}
	return frame
}

// wire is a connection that reads from a buffer, a few bytes a time, and
// keeps what is written.
type wire struct {
	net.Conn
	in    *bytes.Reader
	step  int
	wrote bytes.Buffer
}

func (w *wire) Read(p []byte) (int, error)       { return w.in.Read(p[:min(len(p), w.step)]) }
func (w *wire) Write(p []byte) (int, error)      { return w.wrote.Write(p) }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

func readerOf(input []byte, step, limit int) (*wsConn, *wire) {
	w := &wire{in: bytes.NewReader(input), step: step}
	return newWSConn(w, limit, newBufferPool()), w
}

func TestReadFrames(t *testing.T) {
	key := [4]byte{0xde, 0xad, 0xbe, 0xef}
	big := bytes.Repeat([]byte("0123456789"), 300_000)
	for _, c := range []struct {
		name   string
		frames [][]byte
		binary bool
		want   []byte
		wrote  []byte
	}{
		{"empty", [][]byte{maskedFrame(true, opText, key, nil)}, false, nil, nil},
		{"text", [][]byte{maskedFrame(true, opText, key, []byte("4hello"))}, false, []byte("4hello"), nil},
		{"126 bytes", [][]byte{maskedFrame(true, opBinary, key, big[:126])}, true, big[:126], nil},
		{"70 kB", [][]byte{maskedFrame(true, opBinary, key, big[:70_000])}, true, big[:70_000], nil},
		{"3 MB", [][]byte{maskedFrame(true, opText, key, big)}, false, big, nil},
		{"fragments with a ping between", [][]byte{
			maskedFrame(false, opText, key, []byte("4he")), maskedFrame(true, opPing, key, []byte("hi")),
			maskedFrame(false, opContinuation, key, nil), maskedFrame(true, opContinuation, key, []byte("llo")),
		}, false, []byte("4hello"), []byte{0x8a, 2, 'h', 'i'}},
		{"large fragments", [][]byte{
			maskedFrame(false, opBinary, key, big[:100_000]), maskedFrame(true, opContinuation, key, big[100_000:200_000]),
		}, true, big[:200_000], nil},
		{"pong first", [][]byte{maskedFrame(true, opPong, key, nil), maskedFrame(true, opText, key, []byte("3"))}, false, []byte("3"), nil},
	} {
		for _, step := range []int{1, 1000, 1 << 20} {
			if step == 1 && len(c.want) > 1000 {
				continue
			}
			ws, conn := readerOf(bytes.Join(c.frames, nil), step, 3_000_000)
			isBinary, msg, err := ws.read()
			if err != nil || isBinary != c.binary || !bytes.Equal(msg.B, c.want) {
				t.Errorf("%s: got binary %v, %d bytes, %v, want %v, %d bytes", c.name, isBinary, len(msg.B), err, c.binary, len(c.want))
			}
			if !bytes.Equal(conn.wrote.Bytes(), c.wrote) {
				t.Errorf("%s: wrote %x, want %x", c.name, conn.wrote.Bytes(), c.wrote)
			}
			msg.Release()
		}
	}
}

func TestBadFrames(t *testing.T) {
	key := [4]byte{1, 2, 3, 4}
	text := maskedFrame(true, opText, key, []byte("x"))
	for _, c := range []struct {
		name  string
		input []byte
		code  int // of the breach; 0 for a connection that broke
	}{
		{"unmasked", []byte{0x81, 1, 'x'}, closeProtocol},
		{"reserved bit", append([]byte{text[0] | 0x40}, text[1:]...), closeProtocol},
		{"unknown opcode", maskedFrame(true, 3, key, nil), closeProtocol},
		{"unknown control", maskedFrame(true, 11, key, nil), closeProtocol},
		{"fragmented ping", maskedFrame(false, opPing, key, nil), closeProtocol},
		{"long ping", maskedFrame(true, opPing, key, make([]byte, 126)), closeProtocol},
		{"continuation of nothing", maskedFrame(true, opContinuation, key, nil), closeProtocol},
		{"text within a message", append(maskedFrame(false, opText, key, nil), text...), closeProtocol},
		{"too long", maskedFrame(true, opText, key, make([]byte, 1001)), closeTooBig},
		{"fragments too long", append(maskedFrame(false, opText, key, make([]byte, 600)), maskedFrame(true, opContinuation, key, make([]byte, 401))...), closeTooBig},
		{"absurd length", []byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, closeTooBig},
		{"cut in the header", text[:4], 0},
		{"cut in the payload", maskedFrame(true, opText, key, make([]byte, 900))[:500], 0},
		{"nothing", nil, 0},
	} {
		ws, _ := readerOf(c.input, 100, 1000)
		_, _, err := ws.read()
		var breach *frameError
		switch {
		case err == nil:
			t.Errorf("%s: was read", c.name)
		case errors.As(err, &breach) && breach.code != c.code, !errors.As(err, &breach) && c.code != 0:
			t.Errorf("%s: got %v, want code %d", c.name, err, c.code)
		}
	}
}

func TestCloseFrameIsAnswered(t *testing.T) {
	key := [4]byte{9, 8, 7, 6}
	for _, c := range []struct{ payload, want []byte }{
		{nil, []byte{0x88, 2, 0x03, 0xe8}},
		{[]byte{0x03, 0xe9, 'b', 'y', 'e'}, []byte{0x88, 2, 0x03, 0xe9}},
		{[]byte{0x03, 0xed}, []byte{0x88, 2, 0x03, 0xea}}, // 1005 must not be sent
		{[]byte{0xff, 0xff}, []byte{0x88, 2, 0x03, 0xea}},
	} {
		ws, conn := readerOf(maskedFrame(true, opClose, key, c.payload), 100, 1000)
		if _, _, err := ws.read(); !errors.Is(err, errPeerClosed) {
			t.Errorf("close %x: got %v", c.payload, err)
		}
		if !bytes.Equal(conn.wrote.Bytes(), c.want) {
			t.Errorf("close %x: answered %x, want %x", c.payload, conn.wrote.Bytes(), c.want)
		}
		if err := ws.write([]Message{control(packetPing)}, nil); err == nil {
			t.Error("wrote after the close frame")
		}
	}
}

func TestAnnouncedLengthCostsNothing(t *testing.T) {
	ws, _ := readerOf([]byte("only this arrives"), 100, 64<<20)
	msg, err := ws.readPayload(Buffer{}, 50<<20, [4]byte{})
	if !errors.Is(err, io.ErrUnexpectedEOF) || cap(msg.full) > firstBytes {
		t.Errorf("a frame that never came took %d bytes, error %v", cap(msg.full), err)
	}
}

func TestWriteFrames(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 200_000)
	ws, conn := readerOf(nil, 1, 1)
	packets := []Message{
		control(packetPing), {Head: []byte("42"), Body: []byte(`["a"]`)}, Binary(big), {Head: []byte("4"), Body: big[:126]},
	}
	if err := ws.write(packets, make([]byte, 0, 64)); err != nil {
		t.Fatal(err)
	}
	want := append([]byte{0x81, 1, '2', 0x81, 7}, `42["a"]`...)
	want = append(append(want, 0x82, 127, 0, 0, 0, 0, 0, 3, 0x0d, 0x40), big...)
	want = append(append(want, 0x81, 126, 0, 127, '4'), big[:126]...)
	if !bytes.Equal(conn.wrote.Bytes(), want) {
		t.Errorf("wrote %d bytes %.40q, want %d", conn.wrote.Len(), conn.wrote.Bytes(), len(want))
	}
	if got := ws.out.Load(); got != int64(len(want)) {
		t.Errorf("counted %d bytes, want %d", got, len(want))
	}
}

// FuzzFrames holds the reader to: whatever arrives, a message is within the
// limit and is the concatenation of what the frames carried.
func FuzzFrames(f *testing.F) {
	key := [4]byte{5, 6, 7, 8}
	f.Add(maskedFrame(true, opText, key, []byte("4hello")), 3)
	f.Add(append(maskedFrame(false, opBinary, key, []byte("ab")), maskedFrame(true, opContinuation, key, []byte("c"))...), 1)
	f.Add(maskedFrame(true, opPing, key, []byte("p")), 50)
	f.Add([]byte{0x82, 0xfe, 0xff, 0xff, 1, 2, 3, 4, 5}, 2)
	f.Fuzz(func(t *testing.T, input []byte, step int) {
		const limit = 500
		ws, _ := readerOf(input, max(1, step), limit)
		var again []byte
		for {
			isBinary, msg, err := ws.read()
			if err != nil {
				break
			}
			if len(msg.B) > limit {
				t.Fatalf("message of %d bytes over the limit", len(msg.B))
			}
			op := byte(opText)
			if isBinary {
				op = opBinary
			}
			frame := maskedFrame(true, op, key, msg.B)
			again = append(again, frame...)
			other, _ := readerOf(frame, 7, limit)
			kind, same, err := other.read()
			if err != nil || kind != isBinary || !bytes.Equal(same.B, msg.B) {
				t.Fatalf("round trip of %q: got %q, %v", msg.B, same.B, err)
			}
		}
		if len(again) > len(input)+14*len(input) {
			t.Fatalf("%d bytes came out of %d", len(again), len(input))
		}
	})
}
