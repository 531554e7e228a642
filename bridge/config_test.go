package bridge

import (
	"strings"
	"testing"
)

func TestConfig(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatalf("the default: %v", err)
	}
	err := Config{}.Validate()
	if err == nil {
		t.Fatal("an empty configuration is accepted")
	}
	for _, key := range []string{"photo_bytes", "sockets_per_user", "send_timeout", "session_expiry", "drain_timeout"} {
		if !strings.Contains(err.Error(), key+":") {
			t.Errorf("%v: does not name %s", err, key)
		}
	}
	small := Default()
	small.PhotoMemory = small.PhotoBytes - 1
	if err := small.Validate(); err == nil || !strings.Contains(err.Error(), "photo_memory:") {
		t.Errorf("%v: want photo_memory refused", err)
	}
}
