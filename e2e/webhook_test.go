package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// hook is a request that the app's own server got.
type hook struct {
	id, Type string
	Data     struct {
		Pair, Recipient, Sender, Moment, Device, User string
		Count                                         int
	}
}

// backend is the app's own server, which checks who speaks to it.
type backend struct {
	url  string
	got  *record[hook]
	down atomic.Bool
}

func newBackend(t *testing.T, key []byte) *backend {
	b := &backend{got: newRecord[hook]()}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b.down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		body, err := io.ReadAll(r.Body)
		h := hook{id: r.Header.Get("webhook-id")}
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(h.id + "." + r.Header.Get("webhook-timestamp") + "." + string(body)))
		want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
		switch {
		case err != nil || json.Unmarshal(body, &h) != nil:
			t.Errorf("webhook %s: %v", body, err)
		case r.Header.Get("webhook-signature") != want:
			t.Errorf("webhook signed with %s, want %s", r.Header.Get("webhook-signature"), want)
		case strings.Contains(string(body), captionMark):
			t.Errorf("a caption in webhook %s", body)
		}
		b.got.add(h)
	}))
	t.Cleanup(srv.Close)
	b.url = srv.URL + "/hooks"
	return b
}

// count returns how many moments the moment.queued for recipient told of; an
// event that came twice counts once.
func (b *backend) count(list []hook, recipient string) int {
	n, seen := 0, map[string]bool{}
	for _, h := range list {
		if h.Type == "moment.queued" && h.Data.Recipient == recipient && !seen[h.id] {
			n += h.Data.Count
			seen[h.id] = true
		}
	}
	return n
}

// TestWebhooks has the server tell the app's own backend, which is away for a
// time in which the server is killed.
func TestWebhooks(t *testing.T) {
	key := []byte("thirty-two bytes for a signature")
	secret := "whsec_" + base64.StdEncoding.EncodeToString(key)
	b := newBackend(t, key)
	s := newServer(t, "PAIRSYNC_WEBHOOK_URL="+b.url, "PAIRSYNC_WEBHOOK_SECRET="+secret, "PAIRSYNC_WEBHOOK_QUEUED_AFTER=1s")
	s.secrets.add("the webhook secret", secret)
	s.secrets.add("the webhook key", string(key))
	n := newNode(t, "phone.mjs")
	c := s.pair(t)
	ann := newPhone(t, n, s, c.ann, phoneOptions{})
	var sent []sendPhoto
	for range 3 {
		sent = append(sent, photoFor(c.ben, newPhoto(1000)))
		ann.send(t, sent[len(sent)-1])
	}
	b.got.await(t, "moment.queued of three photos", func(list []hook) bool { return b.count(list, c.ben) == 3 })

	b.down.Store(true)
	sent = append(sent, photoFor(c.ben, newPhoto(1000)))
	ann.send(t, sent[3])
	f := newFrame(t, s, c.ben)
	other := s.pair(t)
	s.crash(t)
	b.down.Store(false)
	list := b.got.await(t, "what happened while the backend was away", func(list []hook) bool {
		return b.count(list, c.ben) == 4 && count(list, func(h hook) bool {
			return h.Type == "pair.created" && h.Data.Pair == other.id || h.Type == "device.linked" && h.Data.Device == f.id && h.Data.Pair == c.id
		}) >= 2
	})
	if got := b.count(list, c.ann); got != 0 {
		t.Errorf("%d moments wait for ann, who is there", got)
	}

	ben := newPhone(t, n, s, c.ben, phoneOptions{})
	ben.photos(t, 4)
	b.got.await(t, "moment.delivered of all photos", func(list []hook) bool {
		done := map[string]bool{}
		for _, h := range list {
			if h.Type == "moment.delivered" && h.Data.Sender == c.ann && h.Data.Recipient == c.ben {
				done[h.Data.Moment] = true
			}
		}
		for _, o := range sent {
			if !done[o.PhotoID] {
				return false
			}
		}
		return true
	})
	s.cli(t, "pair", "remove", c.id)
	b.got.await(t, "pair.removed", func(list []hook) bool {
		return count(list, func(h hook) bool { return h.Type == "pair.removed" && h.Data.Pair == c.id }) > 0
	})
}
