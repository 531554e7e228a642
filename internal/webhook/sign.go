package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// secretPrefix begins a signing secret as Standard Webhooks serialises it.
const secretPrefix = "whsec_"

// The length of a secret in bytes, after Standard Webhooks ("between 24 bytes
// and 64 bytes").
const (
	minSecret = 24
	maxSecret = 64
)

// maxKeys bounds the secrets that are in use at once: the new one and those
// that it replaces.
const maxKeys = 4

// parseSecret reads one signing secret, or several apart by white space: every
// request is signed with each of them, so that a receiver can go over from one
// to the next. Its errors never repeat the text.
func parseSecret(text string) ([][]byte, error) {
	var keys [][]byte
	for _, word := range strings.Fields(text) {
		encoded, ok := strings.CutPrefix(word, secretPrefix)
		if !ok {
			return nil, fmt.Errorf("must begin with %s: make one with: echo %s$(head -c 32 /dev/urandom | base64)", secretPrefix, secretPrefix)
		}
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, fmt.Errorf("what follows %s is not base64", secretPrefix)
		}
		if len(key) < minSecret || len(key) > maxSecret {
			return nil, fmt.Errorf("has %d bytes, must have %d to %d", len(key), minSecret, maxSecret)
		}
		keys = append(keys, key)
	}
	switch {
	case len(keys) == 0:
		return nil, errors.New("must be set, in a file or the environment: requests are signed with it")
	case len(keys) > maxKeys:
		return nil, fmt.Errorf("holds %d secrets, at most %d", len(keys), maxKeys)
	}
	return keys, nil
}

// sign sets the headers of Standard Webhooks: the id is the same on every try,
// the time is that of this one, and both are under the signature.
func sign(h http.Header, keys [][]byte, id string, now time.Time, body []byte) {
	stamp := strconv.FormatInt(now.Unix(), 10)
	var signatures []string
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", id, stamp, body)
		signatures = append(signatures, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", stamp)
	h.Set("webhook-signature", strings.Join(signatures, " "))
}
