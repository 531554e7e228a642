package engineio

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Opcodes and close codes of RFC 6455, sections 5.2 and 7.4.1.
const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10

	closeNormal    = 1000
	closeGoingAway = 1001
	closeProtocol  = 1002
	closeTooBig    = 1009
)

const (
	// maxHeaderBytes is the longest header of an unmasked frame.
	maxHeaderBytes = 10
	// writeChunk is how much one Write takes: the grain in which the heartbeat
	// sees a large frame advance.
	writeChunk = 64 << 10
	// scratchBytes gathers small frames for one Write.
	scratchBytes = 4 << 10
	// readBytes is the read buffer of an idle connection; larger payloads are
	// read past it, straight into their own buffer.
	readBytes = 1 << 10
	// closeWait bounds the closing handshake of a WebSocket.
	closeWait = time.Second
)

// errPeerClosed says that the client closed the WebSocket by the rules.
var errPeerClosed = errors.New("websocket closed by client")

// A frameError is a breach of RFC 6455 with the close code that answers it.
type frameError struct {
	code   int
	reason string
}

func (e *frameError) Error() string { return "websocket: " + e.reason }

// wsConn is the server's end of a WebSocket after the opening handshake. One
// goroutine reads; writes may come from several. Unlike a general WebSocket
// library it knows a frame's length before it reads it, so a photo is read
// once into a buffer of its size, and it counts the bytes of unfinished
// frames for the heartbeat.
type wsConn struct {
	conn  net.Conn
	br    *bufio.Reader
	limit int
	bufs  *bufferPool

	in  atomic.Int64 // payload bytes read
	out atomic.Int64 // bytes written

	wmu       sync.Mutex // held for whole frames; guards closeSent
	closeSent bool
}

func newWSConn(conn net.Conn, limit int, bufs *bufferPool) *wsConn {
	return &wsConn{conn: conn, br: bufio.NewReaderSize(conn, readBytes), limit: limit, bufs: bufs}
}

// header is a frame's first bytes, read.
type header struct {
	final  bool
	op     byte
	length uint64
	key    [4]byte
}

func (c *wsConn) readHeader() (h header, err error) {
	var b [8]byte
	if _, err = io.ReadFull(c.br, b[:2]); err != nil {
		return h, err
	}
	h.final, h.op, h.length = b[0]&0x80 != 0, b[0]&0x0f, uint64(b[1]&0x7f)
	switch {
	case b[0]&0x70 != 0:
		return h, &frameError{closeProtocol, "reserved bit set"}
	case b[1]&0x80 == 0:
		return h, &frameError{closeProtocol, "frame is not masked"}
	case h.op >= opClose && (!h.final || h.length > 125):
		return h, &frameError{closeProtocol, "control frame fragmented or too long"}
	}
	switch h.length {
	case 126:
		if _, err = io.ReadFull(c.br, b[:2]); err != nil {
			return h, err
		}
		h.length = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		if _, err = io.ReadFull(c.br, b[:8]); err != nil {
			return h, err
		}
		h.length = binary.BigEndian.Uint64(b[:])
	}
	_, err = io.ReadFull(c.br, h.key[:])
	return h, err
}

// read returns the next data message. It answers pings and a close frame.
func (c *wsConn) read() (isBinary bool, msg Buffer, err error) {
	var started bool
	for {
		h, err := c.readHeader()
		if err != nil {
			return false, msg, err
		}
		switch {
		case h.op >= opClose:
			if err := c.control(h); err != nil {
				return false, msg, err
			}
			continue
		case h.op > opBinary:
			return false, msg, &frameError{closeProtocol, fmt.Sprintf("unknown opcode %d", h.op)}
		case started != (h.op == opContinuation):
			return false, msg, &frameError{closeProtocol, "fragments out of order"}
		case h.length > uint64(c.limit-len(msg.B)):
			return false, msg, &frameError{closeTooBig, "message over the limit"}
		}
		if !started {
			started, isBinary = true, h.op == opBinary
		}
		if msg, err = c.readPayload(msg, int(h.length), h.key); err != nil {
			return false, msg, err
		}
		if h.final {
			return isBinary, msg, nil
		}
	}
}

// readPayload appends n payload bytes to msg. The buffer grows with what has
// arrived, not with what was announced.
func (c *wsConn) readPayload(msg Buffer, n int, key [4]byte) (Buffer, error) {
	start := len(msg.B)
	total := start + n
	for step := firstBytes; len(msg.B) < total; {
		used := len(msg.B)
		msg = c.bufs.grow(msg, used, min(total, used+step))
		step = max(trustedBytes-len(msg.B), len(msg.B))
		for used < len(msg.B) {
			k, err := c.br.Read(msg.B[used:])
			used += k
			c.in.Add(int64(k))
			if err != nil {
				return msg, unexpected(err)
			}
		}
	}
	unmask(msg.B[start:], key)
	return msg, nil
}

// unexpected turns the end of the stream within a frame into what it is.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// unmask removes the client's mask (RFC 6455 section 5.3), eight bytes a time.
func unmask(b []byte, key [4]byte) {
	k32 := uint64(binary.LittleEndian.Uint32(key[:]))
	k := k32 | k32<<32
	for len(b) >= 32 {
		w := b[:32:32]
		binary.LittleEndian.PutUint64(w[0:], binary.LittleEndian.Uint64(w[0:])^k)
		binary.LittleEndian.PutUint64(w[8:], binary.LittleEndian.Uint64(w[8:])^k)
		binary.LittleEndian.PutUint64(w[16:], binary.LittleEndian.Uint64(w[16:])^k)
		binary.LittleEndian.PutUint64(w[24:], binary.LittleEndian.Uint64(w[24:])^k)
		b = b[32:]
	}
	for i := range b {
		b[i] ^= key[i&3]
	}
}

// control reads a control frame's payload and acts on it.
func (c *wsConn) control(h header) error {
	var b [125]byte
	payload := b[:h.length]
	if _, err := io.ReadFull(c.br, payload); err != nil {
		return unexpected(err)
	}
	unmask(payload, h.key)
	switch h.op {
	case opPing:
		return c.writeControl(opPong, payload)
	case opPong:
		return nil
	case opClose:
		code := closeNormal
		if len(payload) >= 2 {
			code = int(binary.BigEndian.Uint16(payload))
		}
		if code < 1000 || code == 1005 || code == 1006 || code > 4999 {
			code = closeProtocol
		}
		_ = c.conn.SetWriteDeadline(time.Now().Add(closeWait))
		_ = c.sendClose(code, "") // the connection ends either way
		return errPeerClosed
	default:
		return &frameError{closeProtocol, fmt.Sprintf("unknown opcode %d", h.op)}
	}
}

func (c *wsConn) writeControl(op byte, payload []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.closeSent {
		return nil
	}
	c.closeSent = op == opClose
	frame := append(appendHeader(make([]byte, 0, 2+len(payload)), op, len(payload)), payload...)
	_, err := c.conn.Write(frame)
	return err
}

// sendClose sends a close frame, once.
func (c *wsConn) sendClose(code int, reason string) error {
	payload := binary.BigEndian.AppendUint16(nil, uint16(code))
	return c.writeControl(opClose, append(payload, reason...))
}

// appendHeader appends the header of an unmasked, final frame (section 5.2).
func appendHeader(dst []byte, op byte, n int) []byte {
	dst = append(dst, 0x80|op)
	switch {
	case n <= 125:
		return append(dst, byte(n))
	case n <= 0xffff:
		return binary.BigEndian.AppendUint16(append(dst, 126), uint16(n))
	default:
		return binary.BigEndian.AppendUint64(append(dst, 127), uint64(n))
	}
}

// write sends packets, each as one frame, small ones together. scratch is used
// for headers and small frames. It has no deadline of its own: the session's
// heartbeat closes a connection on which nothing moves.
func (c *wsConn) write(packets []Message, scratch []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.closeSent {
		return net.ErrClosed
	}
	buf := scratch[:0]
	for i := range packets {
		p := &packets[i]
		if len(buf) > 0 && len(buf)+maxHeaderBytes+p.size() > cap(buf) {
			if err := c.flush(buf, nil); err != nil {
				return err
			}
			buf = buf[:0]
		}
		op := byte(opText)
		if p.Binary {
			op = opBinary
		}
		buf = append(appendHeader(buf, op, p.size()), p.Head...)
		if len(buf)+len(p.Body) <= cap(buf) {
			buf = append(buf, p.Body...)
			continue
		}
		if err := c.flush(buf, p.Body); err != nil {
			return err
		}
		buf = buf[:0]
	}
	return c.flush(buf, nil)
}

// flush writes head and body, in chunks so that out grows with the progress.
func (c *wsConn) flush(head, body []byte) error {
	if len(head) > 0 {
		first := body[:min(len(body), writeChunk)]
		body = body[len(first):]
		bufs := net.Buffers{head}
		if len(first) > 0 {
			bufs = append(bufs, first)
		}
		n, err := bufs.WriteTo(c.conn)
		c.out.Add(n)
		if err != nil {
			return err
		}
	}
	for len(body) > 0 {
		n, err := c.conn.Write(body[:min(len(body), writeChunk)])
		c.out.Add(int64(n))
		if err != nil {
			return err
		}
		body = body[n:]
	}
	return nil
}
