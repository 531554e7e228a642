package socketio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"pairsync/bridge/socketio/engineio"
)

// link is the client's end of an Engine.IO session over WebSocket.
type link struct {
	ws    *websocket.Conn
	parts assembler // only receive uses it

	wmu sync.Mutex // held for all messages of a packet
}

// writeBuffer is the client's frame size: a photo in few writes.
const writeBuffer = 64 << 10

// dialLink opens the WebSocket and takes the server's open packet.
func dialLink(ctx context.Context, address string, o DialOptions) (l *link, namespace string, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, "", err
	}
	namespace = "/" + strings.Trim(u.Path, "/")
	switch u.Scheme {
	case "http", "ws":
		u.Scheme = "ws"
	case "https", "wss":
		u.Scheme = "wss"
	default:
		return nil, "", fmt.Errorf("scheme %q: want http, https, ws or wss", u.Scheme)
	}
	if u.Path = o.Path; u.Path == "" {
		u.Path = DefaultPath
	}
	q := u.Query()
	q.Set("EIO", "4")
	q.Set("transport", "websocket")
	u.RawQuery = q.Encode()

	var moving *movingConn
	dial := o.NetDial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	d := websocket.Dialer{
		TLSClientConfig: o.TLS, WriteBufferSize: writeBuffer, WriteBufferPool: &sync.Pool{},
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			moving = &movingConn{Conn: c}
			return moving, nil
		},
	}
	ws, resp, err := d.DialContext(ctx, u.String(), o.Header)
	if err != nil {
		if resp != nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // what there is of it
			return nil, "", fmt.Errorf("server answered %s %s: %w", resp.Status, body, err)
		}
		return nil, "", err
	}
	if o.MaxMessage == 0 {
		o.MaxMessage = DefaultMaxMessage
	}
	ws.SetReadLimit(o.MaxMessage)
	l = &link{ws: ws, parts: assembler{limit: int(2 * o.MaxMessage)}}
	stop := context.AfterFunc(ctx, func() { _ = ws.Close() })
	defer stop()
	patience, err := l.opened()
	if err != nil {
		_ = ws.Close()
		return nil, "", err
	}
	moving.patience.Store(int64(patience))
	return l, namespace, nil
}

// opened reads the open packet and returns how long the server may be silent.
func (l *link) opened() (patience time.Duration, err error) {
	_, data, err := l.ws.ReadMessage()
	if err != nil {
		return 0, err
	}
	var open struct{ PingInterval, PingTimeout int64 }
	if len(data) == 0 || data[0] != '0' || json.Unmarshal(data[1:], &open) != nil ||
		open.PingInterval <= 0 || open.PingTimeout <= 0 {
		return 0, fmt.Errorf("open packet %.40q is not one", data)
	}
	return time.Duration(open.PingInterval+open.PingTimeout) * time.Millisecond, nil
}

// movingConn gives up when nothing moved for a time, however long a message
// takes as a whole.
type movingConn struct {
	net.Conn
	patience atomic.Int64 // a time.Duration, 0 for no limit
}

func (c *movingConn) Read(p []byte) (int, error) {
	if d := c.patience.Load(); d > 0 {
		if err := c.Conn.SetReadDeadline(time.Now().Add(time.Duration(d))); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

func (c *movingConn) Write(p []byte) (int, error) {
	if d := c.patience.Load(); d > 0 {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(time.Duration(d))); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

// receive returns the next Socket.IO packet and answers pings meanwhile.
func (l *link) receive() (*assembly, error) {
	for {
		kind, data, err := l.ws.ReadMessage()
		if err != nil {
			return nil, err
		}
		binary := kind == websocket.BinaryMessage
		if !binary {
			if len(data) == 0 {
				return nil, errors.New("empty packet")
			}
			switch data[0] {
			case '2':
				if err := l.write(websocket.TextMessage, []byte{'3'}); err != nil {
					return nil, err
				}
				continue
			case '4':
				data = data[1:]
			case '6':
				continue
			case '1':
				return nil, errors.New(engineio.ReasonTransportClose)
			default:
				return nil, fmt.Errorf("unexpected packet %.20q", data)
			}
		}
		a, err := l.parts.take(binary, engineio.Buffer{B: data})
		if a != nil || err != nil {
			return a, err
		}
	}
}

func (l *link) write(kind int, data []byte) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	return l.ws.WriteMessage(kind, data)
}

// send writes the messages of one packet.
func (l *link) send(messages ...engineio.Message) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	for i := range messages {
		m := &messages[i]
		kind := websocket.TextMessage
		if m.Binary {
			kind = websocket.BinaryMessage
		}
		w, err := l.ws.NextWriter(kind)
		if err != nil {
			return err
		}
		for _, part := range [][]byte{m.Head, m.Body} {
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
		if err := w.Close(); err != nil {
			return err
		}
	}
	return nil
}

// close says goodbye if that is possible at once, and closes the connection.
func (l *link) close() {
	if l.wmu.TryLock() {
		_ = l.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
		l.wmu.Unlock()
	}
	_ = l.ws.Close()
}
