package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestSocketIOComesBackWhenItsTokenEnds: the official client reconnects by
// itself when its connection ends with its token, and with the old token gets
// a connect_error that a program can read; after auth:refresh it stays.
func TestSocketIOComesBackWhenItsTokenEnds(t *testing.T) {
	s := newServer(t, "PAIRSYNC_AUTH_EXPIRY=strict")
	n := newNode(t, "phone.mjs")
	for name, transports := range map[string][]string{"websocket": websocketOnly, "polling": pollingOnly} {
		t.Run(name, func(t *testing.T) {
			raw := s.cli(t, "token", "issue", "--user", "ann", "--ttl", "5s")
			s.secrets.add("a short token", raw)
			p := newPhone(t, n, s, "ann", phoneOptions{transports: transports, token: raw})
			gone := p.await(t, "disconnect", 1)
			for _, e := range gone {
				// "io server disconnect" would keep the client away for good.
				if e.Name == "disconnect" && string(e.Args[0]) != `"transport close"` {
					t.Errorf("disconnected with %s, want transport close", e.Args[0])
				}
			}
			for _, e := range p.await(t, "connect_error", 1) {
				if e.Name == "connect_error" && !strings.Contains(string(e.Args[0]), `"code":"token_expired"`) {
					t.Errorf("connect_error %s, want token_expired", e.Args[0])
				}
			}

			raw = s.cli(t, "token", "issue", "--user", "ann", "--ttl", "5s")
			ends := time.Now().Add(6 * time.Second)
			s.secrets.add("another short token", raw)
			p = newPhone(t, n, s, "ann", phoneOptions{transports: transports, token: raw})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			answer, err := p.ask(ctx, patience, "auth:refresh", map[string]any{"token": s.token(t, "ann")})
			var got struct {
				Success   bool
				ExpiresAt int64
			}
			if err != nil || json.Unmarshal(answer, &got) != nil || !got.Success || time.Until(time.UnixMilli(got.ExpiresAt)) < 23*time.Hour {
				t.Fatalf("auth:refresh answered %s, %v", answer, err)
			}
			eventually(t, "the first token's end", func() bool { return time.Now().After(ends) })
			if answer, err := p.ask(ctx, patience, "join_room", map[string]any{"userId": "ann"}); err != nil || !strings.Contains(string(answer), "true") {
				t.Errorf("after the first token's end: %s, %v", answer, err)
			}
			for _, e := range p.events.all() {
				if e.Name == "disconnect" {
					t.Errorf("disconnected with %s after a refresh", e.Args)
				}
			}
		})
	}
}
