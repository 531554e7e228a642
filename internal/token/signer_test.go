package token

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pairsync/internal/moment"

	"github.com/google/go-cmp/cmp"
)

// TestSignVerify holds that Verify returns the very principal that Sign said.
func TestSignVerify(t *testing.T) {
	keys := newTestKeys(t)
	signer := NewSigner(keys, testIssuer, testAudience)
	v := newTestVerifier(t, nil, keys.Issuer(testIssuer, testAudience))
	longest := strings.Repeat("x", moment.MaxIDBytes)
	tests := []struct {
		name string
		in   Principal
		ttl  time.Duration
		want Principal // without ID, times and issuer
	}{
		{"app", Principal{User: "ann", Role: RoleApp, Name: "Ann", Email: "a@b.c"}, time.Hour, Principal{User: "ann", Role: RoleApp, Name: "Ann", Email: "a@b.c"}},
		{"role left out", Principal{User: "ann"}, time.Second, Principal{User: "ann", Role: RoleApp}},
		{"device, role left out", Principal{User: "ann", Device: "d"}, time.Hour, Principal{User: "ann", Device: "d", Role: RoleDevice}},
		{"endless device", Principal{User: "ann", Device: "d", Pair: "p"}, 0, Principal{User: "ann", Device: "d", Pair: "p", Role: RoleDevice}},
		{"bridge", Principal{User: "ann", Role: RoleBridge}, time.Minute, Principal{User: "ann", Role: RoleBridge}},
		{"what verifying sets is ignored", Principal{User: "ann", Issuer: "x", ID: "y", Session: "z", External: true, Expires: time.Unix(1, 0)}, time.Hour, Principal{User: "ann", Role: RoleApp, Session: "z"}},
		{"longest ids", Principal{User: longest, Pair: longest, Device: longest, Name: strings.Repeat("n", 300)}, 0, Principal{User: longest, Pair: longest, Device: longest, Role: RoleDevice, Name: strings.Repeat("n", 256)}},
	}
	seen := make(map[string]bool)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := time.Now().Truncate(time.Second)
			raw, signed, err := signer.Sign(tt.in, tt.ttl)
			if err != nil {
				t.Fatalf("Sign: %v", err)
			}
			got, err := v.Verify(t.Context(), raw)
			if err != nil {
				t.Fatalf("Verify: %v", err)
			}
			if got != signed {
				t.Errorf("signed and verified differ:\n%s", cmp.Diff(signed, got))
			}
			if seen[signed.ID] || len(signed.ID) < 26 {
				t.Errorf("token id %q is short or used before", signed.ID)
			}
			seen[signed.ID] = true
			if signed.IssuedAt.Before(before) || time.Since(signed.IssuedAt) > time.Minute {
				t.Errorf("issued at %s", signed.IssuedAt)
			}
			if tt.ttl == 0 && !signed.Expires.IsZero() || tt.ttl > 0 && signed.Expires.Sub(signed.IssuedAt) != tt.ttl {
				t.Errorf("lifetime from %s to %s, want %s", signed.IssuedAt, signed.Expires, tt.ttl)
			}
			want := tt.want
			want.Issuer, want.ID, want.IssuedAt, want.Expires = testIssuer, signed.ID, signed.IssuedAt, signed.Expires
			if diff := cmp.Diff(want, signed); diff != "" {
				t.Errorf("principal (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSignRefuses(t *testing.T) {
	signer := NewSigner(newTestKeys(t), testIssuer, testAudience)
	longest := strings.Repeat("x", moment.MaxIDBytes)
	for _, tt := range []struct {
		name string
		p    Principal
		ttl  time.Duration
		want string
	}{
		{"no user", Principal{}, time.Hour, "user id is empty"},
		{"bad pair", Principal{User: "ann", Pair: "a/b"}, time.Hour, "pair id"},
		{"bad device", Principal{User: "ann", Device: "+"}, time.Hour, "device id"},
		{"device role without device", Principal{User: "ann", Role: RoleDevice}, time.Hour, "device id is empty"},
		{"admin with device", Principal{User: "ann", Role: RoleAdmin, Device: "d"}, time.Hour, "does not go with a device"},
		{"unknown role", Principal{User: "ann", Role: "root"}, time.Hour, "unknown"},
		{"endless app", Principal{User: "ann"}, 0, "only device tokens"},
		{"endless admin", Principal{User: "ann", Role: RoleAdmin}, 0, "only device tokens"},
		{"negative lifetime", Principal{User: "ann"}, -time.Hour, "shorter than a second"},
		{"lifetime below the grain", Principal{User: "ann"}, time.Millisecond, "shorter than a second"},
		{"more than Verify takes", Principal{User: longest, Pair: longest, Device: longest, Name: strings.Repeat("<", 256), Email: strings.Repeat("<", 256)}, 0, "too long"},
	} {
		raw, signed, err := signer.Sign(tt.p, tt.ttl)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want it to say %q", tt.name, err, tt.want)
		}
		if raw != "" || signed != (Principal{}) {
			t.Errorf("%s: a refused token was made: %q for %+v", tt.name, raw, signed)
		}
	}
}

func TestRules(t *testing.T) {
	keys := newTestKeys(t)
	publish := func(pair, user string) []string {
		return []string{
			"subscribe users/" + user + "/#", "subscribe pairs/" + pair + "/#",
			"publish pairs/" + pair + "/photos/" + user + "/+", "publish pairs/" + pair + "/notes/" + user + "/+",
			"publish pairs/" + pair + "/reactions/" + user + "/+", "publish pairs/" + pair + "/receipts/" + user + "/+",
			"publish pairs/" + pair + "/deletes/" + user + "/+", "publish pairs/" + pair + "/live/" + user + "/+",
			"publish pairs/" + pair + "/devices/+/cmd",
		}
	}
	for _, tt := range []struct {
		name string
		p    Principal
		want []string
	}{
		{"app without a pair", Principal{User: "ann"}, []string{"subscribe users/ann/#"}},
		{"app", Principal{User: "ann", Pair: "p"}, publish("p", "ann")},
		{"device", Principal{User: "ann", Pair: "p", Device: "d"}, append(publish("p", "ann"), "publish pairs/p/devices/d/state")},
		{"device without a pair", Principal{User: "ann", Device: "d"}, []string{"subscribe users/ann/#"}},
		{"admin", Principal{User: "root", Role: RoleAdmin}, []string{"all #"}},
		{"bridge", Principal{User: "bridge", Role: RoleBridge}, publish("+", "${username}")},
		{"bridge for one pair", Principal{User: "bridge", Role: RoleBridge, Pair: "p"}, publish("p", "${username}")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw := mustSign(t, NewSigner(keys, testIssuer, testAudience), tt.p)
			b, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
			if err != nil {
				t.Fatal(err)
			}
			var c struct{ ACL []map[string]string }
			if err := json.Unmarshal(b, &c); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range c.ACL {
				if len(r) != 3 || r["permission"] != "allow" {
					t.Errorf("rule %v, want permission allow, action and topic", r)
				}
				got = append(got, r["action"]+" "+r["topic"])
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("acl (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRulesMatchTopics holds the rules against the topics themselves: what a
// user's own device publishes is allowed, what is somebody else's is not.
func TestRulesMatchTopics(t *testing.T) {
	list := rules(Principal{User: "ann", Pair: "p", Device: "d", Role: RoleDevice})
	allowed := func(topic string) bool {
		for _, r := range list {
			if r.Action == "publish" && moment.Match(r.Topic, topic) {
				return true
			}
		}
		return false
	}
	for topic, want := range map[string]bool{
		(&moment.Moment{Pair: "p", User: "ann", Kind: moment.Photo, ID: "m"}).Topic():   true,
		(&moment.Moment{Pair: "p", User: "ann", Kind: moment.Receipt, ID: "m"}).Topic(): true,
		moment.LiveTopic("p", "ann", "heartbeat"):                                       true,
		moment.StateTopic("p", "d"):                                                     true,
		moment.CommandTopic("p", "other"):                                               true,
		(&moment.Moment{Pair: "p", User: "bob", Kind: moment.Photo, ID: "m"}).Topic():   false,
		(&moment.Moment{Pair: "q", User: "ann", Kind: moment.Photo, ID: "m"}).Topic():   false,
		moment.StateTopic("p", "other"):                                                 false,
		moment.LatestTopic("p", "ann"):                                                  false,
		moment.PresenceTopic("p", "ann"):                                                false,
		moment.InfoTopic("p"):                                                           false,
		moment.EventsTopic("ann"):                                                       false,
	} {
		if got := allowed(topic); got != want {
			t.Errorf("publish to %q allowed %t, want %t", topic, got, want)
		}
	}
}
