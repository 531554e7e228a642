package broker

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what an operator asks about. No user, device or topic is a
// label. Nothing is registered until Register.
type metrics struct {
	all []prometheus.Collector

	connects, refusedConnects         prometheus.Counter
	stored, duplicates, refused       prometheus.Counter
	delivered, redelivered, acked     prometheus.Counter
	skipped, dropped, panics, trimmed prometheus.Counter
	undelivered                       prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{}
	counter := func(c *prometheus.Counter, name, help string) {
		*c = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "pairsync", Subsystem: "broker", Name: name, Help: help})
		m.all = append(m.all, *c)
	}
	counter(&m.connects, "connects_total", "Clients that were let in.")
	counter(&m.refusedConnects, "connects_refused_total", "CONNECTs that were refused.")
	counter(&m.stored, "moments_stored_total", "Moments that were stored and acknowledged.")
	counter(&m.duplicates, "moments_duplicate_total", "Repeated publishes of a moment that is stored already.")
	counter(&m.refused, "publishes_refused_total", "Publishes that were refused; nothing was stored.")
	counter(&m.delivered, "deliveries_total", "Moments sent to a client for the first time.")
	counter(&m.redelivered, "redeliveries_total", "Moments sent to a client again.")
	counter(&m.acked, "acks_total", "Moments that a client acknowledged.")
	counter(&m.skipped, "deliveries_skipped_total", "Moments passed over because they are larger than the client takes.")
	counter(&m.dropped, "ephemeral_dropped_total", "Ephemeral messages dropped because the client reads too slowly.")
	counter(&m.panics, "panics_total", "Connections ended because a packet made the decoder panic.")
	counter(&m.trimmed, "moments_trimmed_total", "Moments removed by retention.")
	counter(&m.undelivered, "moments_expired_undelivered_total", "Moments removed by age before every session had them.")
	return m
}

// Register adds the broker's metrics to reg.
func (b *Broker) Register(reg prometheus.Registerer) error {
	for _, c := range b.metrics.all {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}
