package broker

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mochi-mqtt/server/v2/packets"

	"pairsync/internal/loginlimit"
	"pairsync/internal/token"
)

// LimitsConfig bounds what clients may ask of the broker. Links inside the
// process (the bridge's) are not counted: the bridge has limits of its own.
type LimitsConfig struct {
	Connections        int     `yaml:"connections"`         // open at once, in total
	AddressConnections int     `yaml:"address_connections"` // from one address; a home shares one
	UserConnections    int     `yaml:"user_connections"`    // of one user
	AddressConnects    float64 `yaml:"address_connects"`    // CONNECTs per second from one address
	LoginFailures      int     `yaml:"login_failures"`      // from one address before it has to wait
	UserPublishes      float64 `yaml:"user_publishes"`      // per second, of one user
	UserPublishBytes   int     `yaml:"user_publish_bytes"`  // per second, of one user
	ConnectBytes       int     `yaml:"connect_bytes"`       // of a CONNECT, and of other packets without topics and payload
	SessionFilters     int     `yaml:"session_filters"`     // subscriptions of one session
	TopicBytes         int     `yaml:"topic_bytes"`         // of a topic or a filter
	TopicLevels        int     `yaml:"topic_levels"`        // of a topic or a filter
	RetainedTopics     int     `yaml:"retained_topics"`     // outside of pairs, by admins; they are in memory
	WriteMemory        int     `yaml:"write_memory"`        // bytes of payloads that are being written, of all connections
	ReadMemory         int     `yaml:"read_memory"`         // bytes of packets that are being received, of all connections
}

// burst is how many seconds' worth of a rate may come at once: a phone empties
// its queue when it comes back.
const burst = 30

// maxPublishWait is how long a publisher over its rate is slowed down; one that
// would have to wait longer is disconnected.
const maxPublishWait = 2 * time.Second

// What the contract's own packets and topics need.
const (
	minConnectBytes = 10 << 10
	minTopicBytes   = 512 // three ids
	minTopicLevels  = 5
)

// tooSlow ends a connection that others wait for.
var tooSlow = packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: "too slow while memory is short"}

// maxAddresses bounds the memory of addresses; the least recently seen idle
// ones are dropped first.
const maxAddresses = 65536

func defaultLimits() LimitsConfig {
	return LimitsConfig{
		Connections: 20_000, AddressConnections: 2_000, UserConnections: 64,
		AddressConnects: 100, LoginFailures: 10,
		UserPublishes: 200, UserPublishBytes: 32 << 20,
		ConnectBytes: 16 << 10, SessionFilters: 64, TopicBytes: 1 << 10, TopicLevels: 16,
		RetainedTopics: 1000, WriteMemory: 64 << 20, ReadMemory: 64 << 20,
	}
}

func (c LimitsConfig) validate(photoBytes int) error {
	var errs []error
	for key, v := range map[string]float64{
		"connections": float64(c.Connections), "address_connections": float64(c.AddressConnections),
		"user_connections": float64(c.UserConnections), "address_connects": c.AddressConnects,
		"login_failures": float64(c.LoginFailures), "user_publishes": c.UserPublishes,
		"session_filters": float64(c.SessionFilters), "retained_topics": float64(c.RetainedTopics),
	} {
		if v < 1 {
			errs = append(errs, fmt.Errorf("limits.%s: must be at least 1", key))
		}
	}
	if c.UserPublishBytes < photoBytes/burst {
		errs = append(errs, errors.New("limits.user_publish_bytes: one photo must fit into 30 seconds' worth"))
	}
	if c.ConnectBytes < minConnectBytes {
		errs = append(errs, fmt.Errorf("limits.connect_bytes: must be at least %d: a token is up to 8 KiB", minConnectBytes))
	}
	if c.TopicBytes < minTopicBytes || c.TopicBytes > math.MaxUint16 || c.TopicLevels < minTopicLevels {
		errs = append(errs, fmt.Errorf("limits: topic_bytes must be %d to %d and topic_levels at least %d: our own topics have as many",
			minTopicBytes, math.MaxUint16, minTopicLevels))
	}
	if least := userShare * (photoBytes + readBytes); c.WriteMemory < least || c.ReadMemory < least {
		errs = append(errs, fmt.Errorf("limits: write_memory and read_memory must be at least %d: %d of the largest photos", least, userShare))
	}
	return errors.Join(errs...)
}

// limiter counts connections and rates. It is safe for concurrent use.
type limiter struct {
	cfg    LimitsConfig
	logins *loginlimit.Limiter

	mu    sync.Mutex // guards the fields below
	open  int
	from  map[netip.Addr]int // connections open, by address
	users map[string]*publisher
}

// publisher is one user's rates, while connected.
type publisher struct {
	open     int
	messages *rate.Limiter
	bytes    *rate.Limiter
}

func newLimiter(cfg LimitsConfig) *limiter {
	return &limiter{
		cfg: cfg, logins: loginlimit.New(cfg.AddressConnects, cfg.LoginFailures),
		from: map[netip.Addr]int{}, users: map[string]*publisher{},
	}
}

// addrOf returns the address that nc is counted under; false for links inside
// the process.
func addrOf(nc net.Conn) (netip.Addr, bool) {
	tcp, ok := nc.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	return loginlimit.Normal(tcp.AddrPort().Addr()), true
}

// accept counts a new connection; false when there are so many that it is not
// even to be read from. release must follow either way it was true.
func (l *limiter) accept(nc net.Conn) bool {
	a, ok := addrOf(nc)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ok {
		return true
	}
	// Some headroom above the limits, so that a client over them can be told
	// why; beyond it memory counts more than courtesy.
	if l.open >= l.cfg.Connections+l.cfg.Connections/10+16 || l.from[a] >= 2*l.cfg.AddressConnections {
		return false
	}
	l.open++
	l.from[a]++
	return true
}

// release ends what accept counted.
func (l *limiter) release(nc net.Conn) {
	a, ok := addrOf(nc)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.from[a]--; l.from[a] <= 0 {
		delete(l.from, a)
	}
}

// topic returns nil for a topic or filter of allowed length and depth.
func (l *limiter) topic(name string) error {
	if len(name) > l.cfg.TopicBytes {
		return fmt.Errorf("topic of %d bytes is too long (at most %d)", len(name), l.cfg.TopicBytes)
	}
	if n := strings.Count(name, "/") + 1; n > l.cfg.TopicLevels {
		return fmt.Errorf("topic of %d levels is too deep (at most %d)", n, l.cfg.TopicLevels)
	}
	return nil
}

// connect decides about a CONNECT before its token is looked at.
func (l *limiter) connect(nc net.Conn) (packets.Code, bool) {
	a, ok := addrOf(nc)
	if !ok {
		return packets.Code{}, true
	}
	l.mu.Lock()
	open, from := l.open, l.from[a]
	l.mu.Unlock()
	switch {
	case open > l.cfg.Connections:
		return packets.Code{Code: packets.ErrServerBusy.Code, Reason: "too many connections, try again later"}, false
	case from > l.cfg.AddressConnections:
		return packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: "too many connections from this address"}, false
	}
	if no := l.logins.Allow(a); no != nil {
		return packets.Code{Code: packets.ErrConnectionRateExceeded.Code, Reason: no.Error()}, false
	}
	return packets.Code{}, true
}

// loginFailed notes that a token was refused with err, unless it may be good
// and could only not be checked now.
func (l *limiter) loginFailed(nc net.Conn, err error) {
	var te *token.Error
	if a, ok := addrOf(nc); ok && !(errors.As(err, &te) && te.Retryable()) {
		l.logins.Failed(a)
	}
}

// join counts a connection of user; false when it has too many.
func (l *limiter) join(user string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.users[user]
	if p == nil {
		p = &publisher{
			messages: rate.NewLimiter(rate.Limit(l.cfg.UserPublishes), int(l.cfg.UserPublishes*burst)),
			bytes:    rate.NewLimiter(rate.Limit(l.cfg.UserPublishBytes), l.cfg.UserPublishBytes*burst),
		}
		l.users[user] = p
	}
	if p.open >= l.cfg.UserConnections {
		return false
	}
	p.open++
	return true
}

// leave ends what join counted. A user's rates are kept while any connection
// is open; to come back at once with a full burst costs a CONNECT each time.
func (l *limiter) leave(user string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.users[user]; p != nil {
		if p.open--; p.open <= 0 {
			delete(l.users, user)
		}
	}
}

// publish returns how long a publish of user has to wait, and false when that
// is too long to wait for.
func (l *limiter) publish(user string, bytes int) (wait time.Duration, ok bool) {
	l.mu.Lock()
	p := l.users[user]
	l.mu.Unlock()
	if p == nil {
		return 0, true
	}
	now := time.Now()
	m := p.messages.ReserveN(now, 1)
	b := p.bytes.ReserveN(now, bytes)
	wait = max(m.DelayFrom(now), b.DelayFrom(now))
	if wait > maxPublishWait || !b.OK() {
		m.CancelAt(now)
		b.CancelAt(now)
		return 0, false
	}
	return wait, true
}
