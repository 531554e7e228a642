package bridge

import "github.com/prometheus/client_golang/prometheus"

// metrics counts what an operator asks about. No user, device or topic is a
// label. Nothing is registered until Register.
type metrics struct {
	all []prometheus.Collector

	admitted, refused                      prometheus.Counter
	sent, sendDuplicate, sendRefused       prometheus.Counter
	emitted, emittedAgain, acked, repeated prometheus.Counter
	dead, foreign, malformed               prometheus.Counter
	sockets, sessions                      prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{}
	counter := func(c *prometheus.Counter, name, help string) {
		*c = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "pairsync", Subsystem: "bridge", Name: name, Help: help})
		m.all = append(m.all, *c)
	}
	gauge := func(g *prometheus.Gauge, name, help string) {
		*g = prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "pairsync", Subsystem: "bridge", Name: name, Help: help})
		m.all = append(m.all, *g)
	}
	counter(&m.admitted, "sockets_admitted_total", "Sockets whose token was accepted.")
	counter(&m.refused, "sockets_refused_total", "Sockets that got a connect error.")
	counter(&m.sent, "moments_sent_total", "Moments of phones that the broker has stored.")
	counter(&m.sendDuplicate, "moments_duplicate_total", "Moments of phones that the broker had stored before.")
	counter(&m.sendRefused, "sends_refused_total", "Sends of phones that were answered with an error.")
	counter(&m.emitted, "photos_emitted_total", "Photos emitted to a user's phones for the first time.")
	counter(&m.emittedAgain, "photos_emitted_again_total", "Photos emitted again because no phone acknowledged them.")
	counter(&m.acked, "photos_acked_total", "Photos that a phone acknowledged.")
	counter(&m.repeated, "photos_repeated_total", "Photos that the broker delivered again after a phone had acknowledged them.")
	counter(&m.dead, "photos_dead_total", "Photos given up because no phone ever acknowledged them.")
	counter(&m.foreign, "moments_foreign_total", "Moments dropped because they are not from the user's partner.")
	counter(&m.malformed, "moments_malformed_total", "Moments dropped because they could not be read.")
	gauge(&m.sockets, "sockets", "Sockets connected now.")
	gauge(&m.sessions, "sessions", "MQTT sessions of users running now.")
	return m
}

// Register adds the bridge's metrics to reg.
func (b *Bridge) Register(reg prometheus.Registerer) error {
	for _, c := range b.metrics.all {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}
