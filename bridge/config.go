package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"pairsync/bridge/socketio"
)

// The defaults of Config.
const (
	// DefaultPhotoBytes is the largest photo taken from a phone; the app's own
	// were seen up to 3.7 MB.
	DefaultPhotoBytes = 4 << 20
	// DefaultSocketsPerUser is twice what the contract promises at least; the
	// app itself opens two.
	DefaultSocketsPerUser = 16
	// DefaultPhotoMemory bounds the photos on their way from phones to the
	// broker, of all phones together: at 300 KB each about 200 at once.
	DefaultPhotoMemory = 64 << 20
	// DefaultSocketPhotoMemory bounds the same for one socket; the app empties
	// its whole queue at once.
	DefaultSocketPhotoMemory = 16 << 20
	// DefaultSendTimeout bounds the time from a send_photo to its answer. The
	// app gives up after 10 s over everything, so a later answer helps nobody.
	DefaultSendTimeout = 8 * time.Second
	// DefaultSessionExpiry is how long the broker keeps a user's place after
	// the last phone went away: the longest that it allows (architecture, 5).
	DefaultSessionExpiry = 90 * 24 * time.Hour
	// DefaultDrainTimeout bounds how long a user's session outlives its last
	// socket to finish receipts that are on the way, and the whole shutdown.
	DefaultDrainTimeout = 5 * time.Second
	// DefaultAddressConnects and DefaultLoginFailures are the broker's.
	DefaultAddressConnects = 100
	DefaultLoginFailures   = 10
	// DefaultMaxSession is the life of an app token of ours: no connection
	// outlives what it could have been given.
	DefaultMaxSession = appTokenLife
)

// Config is the bridge's configuration.
type Config struct {
	// PhotoBytes is the largest decoded photo that is taken; the daemon sets it
	// from limits.photo_bytes, which the broker shares.
	PhotoBytes int `yaml:"-"`

	SocketsPerUser    int           `yaml:"sockets_per_user"`
	PhotoMemory       int           `yaml:"photo_memory"`        // bytes
	SocketPhotoMemory int           `yaml:"socket_photo_memory"` // bytes
	SendTimeout       time.Duration `yaml:"send_timeout"`
	SessionExpiry     time.Duration `yaml:"session_expiry"`
	DrainTimeout      time.Duration `yaml:"drain_timeout"`

	// AddressConnects and LoginFailures bound what one address may try: tokens
	// shown per second, and failures before it has to wait.
	AddressConnects float64 `yaml:"address_connects"`
	LoginFailures   int     `yaml:"login_failures"`

	// Auth and TrustedProxies, whose X-Forwarded-For counts, are set by the
	// daemon from auth and http.trusted_proxies.
	Auth           AuthConfig     `yaml:"-"`
	TrustedProxies []netip.Prefix `yaml:"-"`

	// SocketIO is the transport below. A MaxPayload of 0 is derived from
	// PhotoBytes.
	SocketIO socketio.Config `yaml:"-"`
}

// Default returns the configuration that is right for most.
func Default() Config {
	return Config{
		PhotoBytes:        DefaultPhotoBytes,
		SocketsPerUser:    DefaultSocketsPerUser,
		PhotoMemory:       DefaultPhotoMemory,
		SocketPhotoMemory: DefaultSocketPhotoMemory,
		SendTimeout:       DefaultSendTimeout,
		SessionExpiry:     DefaultSessionExpiry,
		DrainTimeout:      DefaultDrainTimeout,
		AddressConnects:   DefaultAddressConnects,
		LoginFailures:     DefaultLoginFailures,
		Auth:              AuthConfig{Expiry: ExpirySession, MaxSession: DefaultMaxSession},
	}
}

// minSocketsPerUser is what the contract promises (section 4).
const minSocketsPerUser = 8

// Validate reports every problem of c, each with its key.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.PhotoBytes > 0, "photo_bytes: %d is not a size", c.PhotoBytes)
	check(c.SocketsPerUser >= minSocketsPerUser, "sockets_per_user: %d is less than the %d that every user may have", c.SocketsPerUser, minSocketsPerUser)
	check(c.PhotoMemory >= c.PhotoBytes, "photo_memory: %d bytes cannot hold one photo of %d", c.PhotoMemory, c.PhotoBytes)
	check(c.SocketPhotoMemory >= c.PhotoBytes, "socket_photo_memory: %d bytes cannot hold one photo of %d", c.SocketPhotoMemory, c.PhotoBytes)
	check(c.SendTimeout > 0, "send_timeout: %v is not a time to wait", c.SendTimeout)
	check(c.SessionExpiry >= time.Second, "session_expiry: %v would lose what arrives while the phone is away", c.SessionExpiry)
	check(c.DrainTimeout > 0, "drain_timeout: %v is not a time to wait", c.DrainTimeout)
	check(c.AddressConnects >= 1, "address_connects: %v, at least 1 is needed", c.AddressConnects)
	check(c.LoginFailures >= 1, "login_failures: %d, at least 1 is needed", c.LoginFailures)
	return errors.Join(errs...)
}

// maxPayload is the largest Engine.IO message that a phone may need to send: a
// photo as base64 and the rest of its event (facts-socketio.md, 2).
func (c Config) maxPayload() int { return c.PhotoBytes/3*4 + 4 + 64<<10 }

// queueBytes is what may wait to be sent to one phone: the outstanding photo
// twice (a phone that joins again before the first has left) and small events.
func (c Config) queueBytes() int { return 2*c.maxPayload() + 1<<20 }
