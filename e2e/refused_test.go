package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"pairsync/internal/moment"
)

// badToken is a token that must not open any door.
type badToken struct {
	raw    string
	code   string // of CONNECT_ERROR
	reason string // a part of its message
}

// badTokens makes one of each kind, for a user who exists and has a pair.
func badTokens(t *testing.T, s *server, c couple) map[string]badToken {
	t.Helper()
	id, private := serverKey(t, s)
	// The public key is no secret: whoever has it must not be able to sign.
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	sign := func(method jwt.SigningMethod, key any, changes jwt.MapClaims) string {
		claims := jwt.MapClaims{
			"iss": "pairsync", "aud": "pairsync", "sub": c.ann, "pair": c.id, "role": "app",
			"iat": time.Now().Add(-2 * time.Hour).Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		}
		maps.Copy(claims, changes)
		made := jwt.NewWithClaims(method, claims)
		made.Header["kid"] = id
		raw, err := made.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	own := func(changes jwt.MapClaims) string { return sign(jwt.SigningMethodEdDSA, private, changes) }
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	mine, other := strings.Split(own(nil), "."), strings.Split(own(jwt.MapClaims{"sub": c.ben}), ".")
	return map[string]badToken{
		"missing":          {"", "token_missing", "no token"}, // no password at all
		"not a token":      {"secret-but-no-token", "token_invalid", "not a JWT"},
		"expired":          {own(jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()}), "token_expired", "expired"},
		"wrong audience":   {own(jwt.MapClaims{"aud": "elsewhere"}), "token_invalid", "audience"},
		"wrong issuer":     {own(jwt.MapClaims{"iss": "elsewhere"}), "token_invalid", "issuer"},
		"without an end":   {own(jwt.MapClaims{"exp": nil}), "token_invalid", "exp"},
		"foreign key":      {sign(jwt.SigningMethodEdDSA, stranger, nil), "token_invalid", "signature"},
		"algorithm none":   {sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil), "token_invalid", "algorithm"},
		"algorithm HS256":  {sign(jwt.SigningMethodHS256, public, nil), "token_invalid", "algorithm"},
		"claims exchanged": {mine[0] + "." + other[1] + "." + mine[2], "token_invalid", "signature"},
	}
}

// serverKey reads the key that the server signs with.
func serverKey(t *testing.T, s *server) (id string, private ed25519.PrivateKey) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "keys", "eddsa-*.pem"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the server's keys: %v, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(strings.TrimPrefix(filepath.Base(files[0]), "eddsa-"), ".pem"), key.(ed25519.PrivateKey)
}

// TestBadTokens tries every kind of bad token at every door.
func TestBadTokens(t *testing.T) {
	// By default both doors make an address wait after ten of them.
	s := newServer(t, "PAIRSYNC_BROKER_LIMITS_LOGIN_FAILURES=1000", "PAIRSYNC_BRIDGE_LOGIN_FAILURES=1000")
	phones, js := newNode(t, "phone.mjs"), newNode(t, "mqttjs.mjs")
	c := s.pair(t)
	watch := newWatcher(t, s, c)
	for name, bad := range badTokens(t, s, c) {
		t.Run(name, func(t *testing.T) {
			if bad.raw != "" {
				s.secrets.add("a bad token", bad.raw)
			}
			checkBadHandshake(t, s, phones, c.ann, bad)
			for version, want := range map[string]struct {
				code int
				text string
			}{v5: {0x86, "Bad User Name or Password"}, v311: {4, "bad user name or password"}} {
				m := mosquitto{version, s, c.ann, bad.raw}
				code, said := m.pub(t, c.photoTopic(c.ann, newID("m")), newPhoto(10), "-q", "1")
				if code != want.code || !strings.Contains(said, want.text) {
					t.Errorf("mosquitto_pub %s: exit code %d, %q, want %d and %q", version, code, said, want.code, want.text)
				}
			}
			for version, want := range map[int]int{5: 0x86, 4: 4} {
				client := openJS(t, js, "mqtt://"+s.mqtt, version, bad.raw, map[string]any{"username": c.ann})
				e := named[nodeError](t, client.await(t, "error", 1), "error")[0]
				if errorCode(&e) != want {
					t.Errorf("mqtt.js, version %d: %v, want code %d", version, &e, want)
				}
				client.do(t, "abandon")
			}
		})
	}
	watch.expect(t)
}

// checkBadHandshake has a phone connect with a bad token.
func checkBadHandshake(t *testing.T, s *server, n *node, user string, bad badToken) {
	t.Helper()
	p := openPhone(t, n, s, user, phoneOptions{auth: map[string]any{"token": bad.raw}})
	var e struct {
		Message string
		Data    struct {
			Code       string
			Retryable  bool
			ServerTime int64
		}
	}
	refused := p.await(t, "connect_error", 1)
	if err := json.Unmarshal(refused[len(refused)-1].Args[0], &e); err != nil {
		t.Fatal(err)
	}
	if e.Data.Code != bad.code || !strings.Contains(e.Message, bad.reason) || e.Data.Retryable || e.Data.ServerTime == 0 {
		t.Errorf("Socket.IO: %+v, want code %s and a message about %q", e, bad.code, bad.reason)
	}
}

// photoLimit is what TestBadSends allows a photo.
const photoLimit = 64 << 10

// TestBadSends sends with good tokens what must not be sent: each client gets
// a clear answer, and nothing is stored.
func TestBadSends(t *testing.T) {
	s := newServer(t, "PAIRSYNC_LIMITS_PHOTO_BYTES=64KiB")
	phones, js := newNode(t, "phone.mjs"), newNode(t, "mqttjs.mjs")
	c, other := s.pair(t), s.pair(t)
	watch, watchOther := newWatcher(t, s, c), newWatcher(t, s, other)
	t.Run("socket.io", func(t *testing.T) { checkBadPhones(t, s, phones, c, other) })
	var refusals []func()
	for name, bad := range badPublishes(c, other) {
		t.Run(name, func(t *testing.T) { checkBadPublish(t, s, js, c, bad) })
		refusals = append(refusals, startBadPublish(t, s, js, c, bad))
	}
	for _, awaitRefusal := range refusals {
		awaitRefusal()
	}
	watch.expect(t)
	watchOther.expect(t)
}

// checkBadPhones sends what the app never should.
func checkBadPhones(t *testing.T, s *server, n *node, c, other couple) {
	ann := newPhone(t, n, s, c.ann, phoneOptions{})
	errors := 0
	send := func(what, code string, p *phone, change func(*sendPhoto)) {
		t.Helper()
		o := photoFor(c.ben, newPhoto(100))
		change(&o)
		a := p.send(t, o)
		if a.Success || a.Code != code || a.Error == "" || a.Retryable || strings.Contains(a.Error, captionMark) {
			t.Errorf("%s: %+v, want code %s", what, a, code)
		}
		if p == ann {
			errors++
		}
	}
	data := func(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
	send("too large", "too_large", ann, func(o *sendPhoto) { o.PhotoData = data(newPhoto(photoLimit)) })
	send("a bad id", "invalid_request", ann, func(o *sendPhoto) { o.PhotoID = "../" + o.PhotoID })
	send("no id", "invalid_request", ann, func(o *sendPhoto) { o.PhotoID = "" })
	send("an id that is too long", "invalid_request", ann, func(o *sendPhoto) { o.PhotoID = strings.Repeat("a", 129) })
	send("to a stranger", "not_partner", ann, func(o *sendPhoto) { o.PartnerID = other.ann })
	send("to oneself", "not_partner", ann, func(o *sendPhoto) { o.PartnerID = c.ann })
	send("to nobody", "invalid_request", ann, func(o *sendPhoto) { o.PartnerID = "" })
	send("no picture", "invalid_photo", ann, func(o *sendPhoto) { o.PhotoData = "" })
	send("not a picture", "invalid_photo", ann, func(o *sendPhoto) { o.PhotoData = data([]byte("<script>alert(1)</script>")) })
	send("not base64", "invalid_photo", ann, func(o *sendPhoto) { o.PhotoData = "/9j/*" })
	send("a long caption", "invalid_request", ann, func(o *sendPhoto) { o.Caption = strings.Repeat("x", 5000) })
	ann.await(t, "send_photo_error", errors)

	single := newPhone(t, n, s, "single-"+c.id, phoneOptions{})
	send("without a partner", "not_paired", single, func(o *sendPhoto) {})
	checkSpoofing(t, s, n, ann, c)

	// Beyond what any photo needs the connection ends, and a good one follows.
	ann.emit(t, "send_photo", sendPhoto{PhotoID: newID("huge"), PhotoData: data(newPhoto(1 << 20)), PartnerID: c.ben})
	ann.await(t, "disconnect", 1)
	ann.await(t, "room_joined", 2)
}

// checkSpoofing has ann's phone say that it is ben's.
func checkSpoofing(t *testing.T, s *server, n *node, ann *phone, c couple) {
	t.Helper()
	var answer struct {
		Success bool
		Code    string
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	raw, err := ann.ask(ctx, patience, "join_room", map[string]string{"userId": c.ben})
	if err == nil {
		err = json.Unmarshal(raw, &answer)
	}
	if err != nil || answer.Success || answer.Code != "not_allowed" {
		t.Errorf("joining another's room: %s, %v", raw, err)
	}
	spoof := openPhone(t, n, s, c.ann, phoneOptions{auth: map[string]any{"token": s.token(t, c.ann), "userId": c.ben}})
	spoof.await(t, "connect_error", 1)
}

// badPublish is a PUBLISH that must be refused.
type badPublish struct {
	topic   string
	payload []byte
	code    int    // in the PUBACK of MQTT 5
	reason  string // a part of its reason string
}

func badPublishes(c, other couple) map[string]badPublish {
	const refused, notAuthorized, badPayload = 0x83, 0x87, 0x99
	own := func(kind moment.Kind, id string) string {
		m := moment.Moment{Pair: c.id, User: c.ann, Kind: kind, ID: id}
		return m.Topic()
	}
	small := newPhoto(100)
	return map[string]badPublish{
		"too large":          {own(moment.Photo, "big"), newPhoto(photoLimit), refused, "too large"},
		"empty":              {own(moment.Photo, "empty"), nil, refused, "empty"},
		"bad id":             {own(moment.Photo, "bad id"), small, notAuthorized, "bad id"},
		"long id":            {own(moment.Photo, strings.Repeat("a", 129)), small, notAuthorized, "129"},
		"as the partner":     {c.photoTopic(c.ben, "spoof"), small, notAuthorized, "may not publish as"},
		"to another pair":    {other.photoTopic(other.ann, "spoof"), small, notAuthorized, "not the pair"},
		"no such kind":       {"pairs/" + c.id + "/videos/" + c.ann + "/m", small, notAuthorized, ""},
		"outside":            {"home/kitchen/light", []byte("on"), notAuthorized, "only topics of your pair"},
		"the broker's own":   {moment.InfoTopic(c.id), []byte("{}"), notAuthorized, "only the broker"},
		"note not UTF-8":     {own(moment.Note, "latin1"), []byte("caf\xe9"), badPayload, "UTF-8"},
		"receipt to oneself": {own(moment.Receipt, "r"), []byte(`{"moment":"m","sender":"` + c.ann + `","status":"stored"}`), notAuthorized, "receipts"},
	}
}

// checkBadPublish publishes it with MQTT 5, which has words for a refusal.
func checkBadPublish(t *testing.T, s *server, js *node, c couple, bad badPublish) {
	words := map[int]string{0x83: "Implementation specific error", 0x87: "Not authorized", 0x99: "Payload format invalid"}
	code, said := newMosquitto(t, v5, s, c.ann).pub(t, bad.topic, bad.payload, "-q", "1")
	if !strings.Contains(said, words[bad.code]) || !strings.Contains(said, bad.reason) {
		t.Errorf("mosquitto_pub: exit code %d, %q, want %q with %q", code, said, words[bad.code], bad.reason)
	}
	client := newJS(t, js, "ws://"+s.http+"/mqtt", 5, s.token(t, c.ann), nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := client.publish(ctx, bad.topic, bad.payload, map[string]any{"qos": 1}); errorCode(err) != bad.code {
		t.Errorf("mqtt.js: %v, want code %d", err, bad.code)
	}
	client.do(t, "abandon")
}

// startBadPublish publishes it with MQTT 3.1.1 and returns what waits for the
// refusal, which takes two seconds.
func startBadPublish(t *testing.T, s *server, js *node, c couple, bad badPublish) (awaitRefusal func()) {
	file := filepath.Join(t.TempDir(), "payload")
	if err := os.WriteFile(file, bad.payload, 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMosquitto(t, v311, s, c.ann)
	p := start(t, "mosquitto_pub", nil, append([]string{"mosquitto_pub"}, m.args([]string{"-t", bad.topic, "-f", file, "-q", "1"})...)...)
	closed := startRefused(t, newJS(t, js, "mqtt://"+s.mqtt, 4, s.token(t, c.ann), nil), bad.topic, bad.payload)
	return func() {
		if code := p.wait(t); code == 0 || !strings.Contains(p.text(), "The connection was lost") {
			t.Errorf("mosquitto_pub, MQTT 3.1.1, to %s: exit code %d, %q, want a lost connection", bad.topic, code, p.text())
		}
		closed()
	}
}

// TestBadClients connects with good tokens as somebody else.
func TestBadClients(t *testing.T) {
	s := newServer(t)
	c := s.pair(t)
	f := newFrame(t, s, c.ann)
	f.connect(t)
	for version, codes := range map[string]struct{ badID, badUser int }{v5: {0x85, 0x86}, v311: {2, 4}} {
		ann := newMosquitto(t, version, s, c.ann)
		for _, id := range []string{"app", "app-kitchen", f.id, strings.Repeat("x", 129)} {
			if code, said := ann.pub(t, moment.LiveTopic(c.id, c.ann, "x"), nil, "-q", "1", "-i", id); code != codes.badID {
				t.Errorf("%s with client id %.20s: exit code %d, %q, want %d", version, id, code, said, codes.badID)
			}
		}
		ann.user = c.ben
		if code, said := ann.pub(t, moment.LiveTopic(c.id, c.ann, "x"), nil, "-q", "1"); code != codes.badUser {
			t.Errorf("%s with another's name: exit code %d, %q, want %d", version, code, said, codes.badUser)
		}
	}
}
