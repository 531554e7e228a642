package broker

import (
	"github.com/prometheus/client_golang/prometheus"

	"pairsync/internal/metrics"
)

// counters counts what an operator asks about.
type counters struct {
	set *metrics.Set

	connects, refusedConnects         prometheus.Counter
	stored, duplicates, refused       prometheus.Counter
	delivered, redelivered, acked     prometheus.Counter
	skipped, dropped, panics, trimmed prometheus.Counter
	overLimit, memoryWaits, slowCut   prometheus.Counter
	undelivered                       prometheus.Counter
}

func newCounters() *counters {
	s := metrics.New("broker")
	return &counters{
		set:             s,
		connects:        s.Counter("connects_total", "Clients that were let in."),
		overLimit:       s.Counter("over_limit_total", "Connections, packets, publishes and filters turned away because of a limit."),
		memoryWaits:     s.Counter("memory_waits_total", "Deliveries and publishes that waited because write_memory or read_memory (broker.limits) was used up."),
		slowCut:         s.Counter("slow_clients_cut_total", "Connections ended because others waited for memory that they held too long."),
		refusedConnects: s.Counter("connects_refused_total", "CONNECTs that were refused."),
		stored:          s.Counter("moments_stored_total", "Moments that were stored and acknowledged."),
		duplicates:      s.Counter("moments_duplicate_total", "Repeated publishes of a moment that is stored already."),
		refused:         s.Counter("publishes_refused_total", "Publishes that were refused; nothing was stored."),
		delivered:       s.Counter("deliveries_total", "Moments sent to a client for the first time."),
		redelivered:     s.Counter("redeliveries_total", "Moments sent to a client again."),
		acked:           s.Counter("acks_total", "Moments that a client acknowledged."),
		skipped:         s.Counter("deliveries_skipped_total", "Moments passed over because they are larger than the client takes."),
		dropped:         s.Counter("ephemeral_dropped_total", "Ephemeral messages dropped because the client reads too slowly."),
		panics:          s.Counter("panics_total", "Connections ended because a packet made the decoder panic."),
		trimmed:         s.Counter("moments_trimmed_total", "Moments removed by retention."),
		undelivered:     s.Counter("moments_expired_undelivered_total", "Moments removed by age before every session had them."),
	}
}

// Register adds the broker's metrics to reg.
func (b *Broker) Register(reg prometheus.Registerer) error { return b.metrics.set.Register(reg) }
