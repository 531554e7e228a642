package mqttlink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// dialer returns the Dial function for a broker's URL.
func dialer(u *url.URL, tc *tls.Config, maxPacket int) (func(context.Context) (net.Conn, error), error) {
	if u == nil {
		return nil, errors.New("neither a broker URL nor a dial function is set")
	}
	if u.User != nil {
		return nil, errors.New("broker URL holds credentials; they belong into the token file")
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("broker URL %q has no host (example: mqtts://home.example:8883)", u)
	}
	if tc == nil {
		tc = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	tc = tc.Clone()
	if tc.ServerName == "" {
		tc.ServerName = u.Hostname()
	}
	switch u.Scheme {
	case "mqtt", "tcp":
		return func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", hostPort(u, "1883"))
		}, nil
	case "mqtts", "tls", "ssl":
		return func(ctx context.Context) (net.Conn, error) {
			return (&tls.Dialer{Config: tc}).DialContext(ctx, "tcp", hostPort(u, "8883"))
		}, nil
	case "ws", "wss":
		return websocketDialer(u, tc, maxPacket), nil
	}
	return nil, fmt.Errorf("broker URL scheme %q is not one of mqtt, mqtts, ws, wss", u.Scheme)
}

func hostPort(u *url.URL, port string) string {
	if p := u.Port(); p != "" {
		port = p
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// websocketDialer dials MQTT over WebSocket (MQTT 5, section 6).
func websocketDialer(u *url.URL, tc *tls.Config, maxPacket int) func(context.Context) (net.Conn, error) {
	target := *u
	if target.Path == "" || target.Path == "/" {
		target.Path = "/mqtt"
	}
	d := &websocket.Dialer{TLSClientConfig: tc, Subprotocols: []string{"mqtt"}, Proxy: http.ProxyFromEnvironment}
	return func(ctx context.Context) (net.Conn, error) {
		ws, resp, err := d.DialContext(ctx, target.String(), nil)
		if err != nil {
			if resp != nil {
				return nil, fmt.Errorf("websocket %s: %w (HTTP %s)", &target, err, resp.Status)
			}
			return nil, fmt.Errorf("websocket %s: %w", &target, err)
		}
		if ws.Subprotocol() != "mqtt" {
			ws.Close()
			return nil, fmt.Errorf("websocket %s: the server does not speak the mqtt subprotocol", &target)
		}
		ws.SetReadLimit(int64(maxPacket) + 64)
		return &webSocket{Conn: ws}, nil
	}
}

// webSocket is the byte stream inside a WebSocket's binary messages. Its one
// reader and one writer are the Link's.
type webSocket struct {
	*websocket.Conn
	message io.Reader // what is left of the current message; nil between two
	closing sync.Once
}

// Read implements net.Conn; packets and messages need not line up (MQTT-6.0.0-2).
func (c *webSocket) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("websocket message is not binary")
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write implements net.Conn: p becomes one binary message.
func (c *webSocket) Write(p []byte) (int, error) {
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetDeadline implements net.Conn.
func (c *webSocket) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Close implements net.Conn.
func (c *webSocket) Close() (err error) {
	c.closing.Do(func() { err = c.Conn.Close() })
	return err
}
