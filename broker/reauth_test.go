package broker

import (
	"bytes"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/token"
)

// authBytes is an AUTH with a token.
func authBytes(t *testing.T, reason byte, method, raw string) []byte {
	t.Helper()
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Auth}, ReasonCode: reason,
		Properties: packets.Properties{AuthenticationMethod: method, AuthenticationData: []byte(raw)},
	}
	var b bytes.Buffer
	if err := pk.AuthEncode(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// shortToken is good for d.
func (w *world) shortToken(p token.Principal, d time.Duration) string {
	w.t.Helper()
	raw, _, err := w.signer.Sign(p, d)
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

// read returns what c has to read now.
func read(c net.Conn) []byte {
	synctest.Wait()
	c.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 4096)
	n, _ := c.Read(b)
	c.SetReadDeadline(time.Time{})
	return b[:n]
}

func TestReauthentication(t *testing.T) {
	ann := token.Principal{User: "ann", Role: token.RoleApp}
	for name, tc := range map[string]struct {
		reason byte
		method string
		token  func(w *world) string
		code   byte // of the DISCONNECT; 0: accepted
	}{
		"a newer token":   {0x19, "JWT", func(w *world) string { return w.shortToken(ann, time.Hour) }, 0},
		"somebody else's": {0x19, "JWT", func(w *world) string { return w.token(token.Principal{User: "ben", Role: token.RoleApp}) }, 0x87},
		"another role":    {0x19, "JWT", func(w *world) string { return w.token(token.Principal{User: "ann", Role: token.RoleAdmin}) }, 0x87},
		"nonsense":        {0x19, "JWT", func(*world) string { return "nonsense" }, 0x87},
		"another method":  {0x19, "SCRAM", func(w *world) string { return w.shortToken(ann, time.Hour) }, 0x8C},
		"a continuation":  {0x18, "JWT", func(w *world) string { return w.shortToken(ann, time.Hour) }, 0x82},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				c := w.raw()
				defer c.Close()
				c.Write(w.connectBytes(t, "ann", "x", func(pk *packets.Packet) {
					pk.Connect.Password, pk.Connect.PasswordFlag = nil, false
					pk.Properties.AuthenticationMethod = "JWT"
					pk.Properties.AuthenticationData = []byte(w.shortToken(ann, time.Minute))
				}))
				if got := read(c); len(got) < 4 || got[0] != 0x20 || got[3] != 0 || !bytes.Contains(got, []byte("JWT")) {
					t.Fatalf("CONNACK % x, want success that names the method", got)
				}
				time.Sleep(30 * time.Second)
				c.Write(authBytes(t, tc.reason, tc.method, tc.token(w)))
				got := read(c)
				if tc.code != 0 {
					if len(got) < 3 || got[0] != 0xE0 || got[2] != tc.code {
						t.Errorf("answered % x, want DISCONNECT 0x%02X", got, tc.code)
					}
					return
				}
				if len(got) < 3 || got[0] != 0xF0 || got[2] != 0 {
					t.Fatalf("answered % x, want AUTH with success", got)
				}
				// It outlives the first token, and ends with the second.
				renewed := time.Now()
				got = nil
				for len(got) == 0 || got[0] == 0xD0 {
					time.Sleep(31 * time.Second) // never when the token ends
					c.Write([]byte{0xC0, 0})
					if got = read(c); len(got) == 0 {
						t.Fatal("ended without a word")
					}
				}
				if lived := time.Since(renewed); lived < time.Hour || lived > time.Hour+time.Minute || got[0] != 0xE0 || got[2] != 0xA0 {
					t.Errorf("ended after %v with % x, want DISCONNECT 0xA0 Maximum connect time after an hour", lived, got)
				}
			})
		})
	}
}
