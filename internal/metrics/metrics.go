// Package metrics makes a component's Prometheus metrics and keeps them
// together until they are registered. Names are
// pairsync_<component>_<noun>[_unit][_total]; no user, device or topic is ever
// a label, so that what is exported stays small and says nothing of anybody.
package metrics

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Set is the metrics of one component. Make it with New; making metrics is not
// safe for concurrent use, the metrics are.
type Set struct {
	component string
	all       []prometheus.Collector
}

// New returns an empty set for a component ("broker").
func New(component string) *Set { return &Set{component: component} }

// Counter adds a counter; its name ends in _total.
func (s *Set) Counter(name, help string) prometheus.Counter {
	return add(s, prometheus.NewCounter(prometheus.CounterOpts{Namespace: "pairsync", Subsystem: s.component, Name: name, Help: help}))
}

// Gauge adds a gauge.
func (s *Set) Gauge(name, help string) prometheus.Gauge {
	return add(s, prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "pairsync", Subsystem: s.component, Name: name, Help: help}))
}

// GaugeFunc adds a gauge whose value is asked for when it is read.
func (s *Set) GaugeFunc(name, help string, value func() float64) {
	add(s, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "pairsync", Subsystem: s.component, Name: name, Help: help}, value))
}

// CounterFunc adds a counter that is kept elsewhere; its name ends in _total.
func (s *Set) CounterFunc(name, help string, value func() float64) {
	add(s, prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "pairsync", Subsystem: s.component, Name: name, Help: help}, value))
}

func add[C prometheus.Collector](s *Set, c C) C {
	s.all = append(s.all, c)
	return c
}

// Register adds every metric of the set to reg; it fails where a name is taken.
func (s *Set) Register(reg prometheus.Registerer) error {
	var errs []error
	for _, c := range s.all {
		errs = append(errs, reg.Register(c))
	}
	return errors.Join(errs...)
}
