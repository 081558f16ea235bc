package server

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// watchMetrics are what an operator sees of watches.
type watchMetrics struct {
	watchers  prometheus.Gauge
	events    prometheus.Counter
	coalesced prometheus.Counter
	cut       *prometheus.CounterVec
	lag       prometheus.Histogram
}

func newWatchMetrics(r prometheus.Registerer) (*watchMetrics, error) {
	m := &watchMetrics{
		watchers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rookery_watch_watchers",
			Help: "Watches under way on this node.",
		}),
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rookery_watch_events_total",
			Help: "Events sent to watchers, listings included.",
		}),
		coalesced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rookery_watch_coalesced_total",
			Help: "Changes that were not told by themselves, because the thing changed again before.",
		}),
		cut: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rookery_watch_cut_total",
			// reason: "slow", "memory", "behind", "closing": see watchhub.go.
			Help: "Watches that this node ended.",
		}, []string{"reason"}),
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "rookery_watch_lag_seconds",
			Help:    "From the moment a change was applied and seen here until it was sent to a watcher, the oldest of each batch.",
			Buckets: prometheus.ExponentialBuckets(0.25e-3, 3, 12), // to 44 s
		}),
	}
	for _, why := range []string{cutSlow, cutMemory, cutBehind, cutClosing} {
		m.cut.WithLabelValues(why)
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.watchers, m.events, m.coalesced, m.cut, m.lag} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("server: metrics of watches: %w", err)
		}
	}
	return m, nil
}
