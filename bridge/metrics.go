package bridge

import (
	"github.com/prometheus/client_golang/prometheus"

	"pairsync/internal/metrics"
)

// counters counts what an operator asks about.
type counters struct {
	set *metrics.Set

	admitted, refused                      prometheus.Counter
	limited, returned, refreshed, expired  prometheus.Counter
	exchanged, guessed                     prometheus.Counter
	scheduled                              prometheus.Counter
	sent, sendDuplicate, sendRefused       prometheus.Counter
	emitted, emittedAgain, acked, repeated prometheus.Counter
	dead, foreign, malformed               prometheus.Counter
	sockets, sessions                      prometheus.Gauge
}

func newCounters() *counters {
	s := metrics.New("bridge")
	return &counters{
		set:           s,
		admitted:      s.Counter("sockets_admitted_total", "Sockets whose token was accepted."),
		refused:       s.Counter("sockets_refused_total", "Sockets that got a connect error."),
		limited:       s.Counter("logins_limited_total", "Tokens that were not looked at because of too many failures or attempts of one address."),
		returned:      s.Counter("sockets_returned_total", "Sockets let in with an expired token within the reconnect window."),
		refreshed:     s.Counter("tokens_refreshed_total", "Tokens of live sockets replaced by a newer one."),
		expired:       s.Counter("sockets_expired_total", "Sockets ended with their token or at the longest session."),
		exchanged:     s.Counter("tokens_exchanged_total", "External tokens exchanged for one of ours over HTTP."),
		guessed:       s.Counter("pairing_codes_refused_total", "Pairing codes that did not work."),
		scheduled:     s.Counter("photos_scheduled_total", "Photos of phones that were stored to be sent later."),
		sent:          s.Counter("moments_sent_total", "Moments of phones that the broker has stored."),
		sendDuplicate: s.Counter("moments_duplicate_total", "Moments of phones that the broker had stored before."),
		sendRefused:   s.Counter("sends_refused_total", "Sends of phones that were answered with an error."),
		emitted:       s.Counter("photos_emitted_total", "Photos emitted to a user's phones for the first time."),
		emittedAgain:  s.Counter("photos_emitted_again_total", "Photos emitted again because no phone acknowledged them."),
		acked:         s.Counter("photos_acked_total", "Photos that a phone acknowledged."),
		repeated:      s.Counter("photos_repeated_total", "Photos that the broker delivered again after a phone had acknowledged them."),
		dead:          s.Counter("photos_dead_total", "Photos given up because no phone ever acknowledged them."),
		foreign:       s.Counter("moments_foreign_total", "Moments dropped because they are not from the user's partner."),
		malformed:     s.Counter("moments_malformed_total", "Moments dropped because they could not be read."),
		sockets:       s.Gauge("sockets", "Sockets connected now."),
		sessions:      s.Gauge("sessions", "MQTT sessions of users running now."),
	}
}

// Register adds the bridge's metrics to reg.
func (b *Bridge) Register(reg prometheus.Registerer) error { return b.metrics.set.Register(reg) }
