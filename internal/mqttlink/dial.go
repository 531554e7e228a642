package mqttlink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"github.com/gorilla/websocket"

	"pairsync/internal/wsconn"
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
	d := &websocket.Dialer{TLSClientConfig: tc, Subprotocols: []string{wsconn.Subprotocol}, Proxy: http.ProxyFromEnvironment}
	return func(ctx context.Context) (net.Conn, error) {
		ws, resp, err := d.DialContext(ctx, target.String(), nil)
		if err != nil {
			if resp != nil {
				return nil, fmt.Errorf("websocket %s: %w (HTTP %s)", &target, err, resp.Status)
			}
			return nil, fmt.Errorf("websocket %s: %w", &target, err)
		}
		if ws.Subprotocol() != wsconn.Subprotocol {
			ws.Close()
			return nil, fmt.Errorf("websocket %s: the server does not speak the mqtt subprotocol", &target)
		}
		ws.SetReadLimit(int64(maxPacket) + 64)
		return wsconn.New(ws), nil
	}
}
