package agent

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"pairsync/internal/moment"
)

// maxTokenBytes is far above any token we issue and what a broker accepts.
const maxTokenBytes = 16 << 10

// identity is who the device is, from its token's claims. They are not
// verified here: the broker does that, and a forged claim would only fool the
// device that forged it.
type identity struct {
	User   string
	Device string
	Pair   string // empty when the token names none
}

// readToken returns the token in a file, without the line's end.
func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read device token: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return "", fmt.Errorf("read device token: %w", err)
	}
	if len(raw) > maxTokenBytes {
		return "", fmt.Errorf("read device token: %s is larger than %d bytes", path, maxTokenBytes)
	}
	return strings.TrimSpace(string(raw)), nil
}

// parseIdentity reads the claims of a device token without verifying it. Its
// errors never hold token text.
func parseIdentity(raw string) (identity, error) {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return identity{}, errors.New("device token: not a JSON Web Token (issue one with pairsync device add)")
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return identity{}, errors.New("device token: its claims are not base64url")
	}
	var claims struct {
		Sub    string `json:"sub"`
		Device string `json:"device"`
		Pair   string `json:"pair"`
	}
	if err := json.Unmarshal(body, &claims); err != nil {
		return identity{}, errors.New("device token: its claims are not JSON")
	}
	if claims.Device == "" {
		return identity{}, errors.New("device token: it names no device (issue one with pairsync device add)")
	}
	for what, id := range map[string]string{"user": claims.Sub, "device": claims.Device} {
		if err := moment.CheckID(what, id); err != nil {
			return identity{}, fmt.Errorf("device token: %w", err)
		}
	}
	if claims.Pair != "" {
		if err := moment.CheckID("pair", claims.Pair); err != nil {
			return identity{}, fmt.Errorf("device token: %w", err)
		}
	}
	return identity{User: claims.Sub, Device: claims.Device, Pair: claims.Pair}, nil
}

// membership is the pair that the device serves, as last told by the broker
// and kept in the store: the device knows its partner also while offline. The
// two users of a pair never change; a new pairing has a new id.
type membership struct {
	User   string            `json:"user"`
	Device string            `json:"device"`
	Pair   string            `json:"pair"` // empty: not paired
	Users  []moment.PairUser `json:"users,omitempty"`
}

func (m membership) equal(o membership) bool {
	return m.User == o.User && m.Device == o.Device && m.Pair == o.Pair && slices.Equal(m.Users, o.Users)
}

// partner returns the other user of the pair, false when there is no pair or
// it is not known yet who is in it.
func (m membership) partner() (moment.PairUser, bool) {
	for _, u := range m.Users {
		if u.ID != m.User {
			return u, true
		}
	}
	return moment.PairUser{}, false
}

// name returns what to call a user on the page: the name, or else the id.
func (m membership) name(user string) string {
	for _, u := range m.Users {
		if u.ID == user && u.Name != "" {
			return u.Name
		}
	}
	return user
}

// parsePairInfo reads the retained pairs/{pair}/info and checks that it is
// about a pair of user's.
func parsePairInfo(payload []byte, user string) ([]moment.PairUser, error) {
	var info moment.PairInfo
	if err := json.Unmarshal(payload, &info); err != nil {
		return nil, errors.New("pair info: not the JSON of the contract")
	}
	if len(info.Users) != 2 || info.Users[0].ID == info.Users[1].ID {
		return nil, fmt.Errorf("pair info: names %d users, not two", len(info.Users))
	}
	for i, u := range info.Users {
		if err := moment.CheckID("user", u.ID); err != nil {
			return nil, fmt.Errorf("pair info: %w", err)
		}
		info.Users[i].Name = cleanText(u.Name, maxNameBytes)
	}
	if info.Users[0].ID != user && info.Users[1].ID != user {
		return nil, fmt.Errorf("pair info: user %q is not in it", user)
	}
	return info.Users, nil
}
