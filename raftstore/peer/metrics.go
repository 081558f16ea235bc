package peer

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what an operator watches. Every name starts with rookery_peer_.
// Label values: class is control, bulk or snapshot; direction is out or in;
// result is ok or failed, of forwarded commands ok, refused or unknown.
type metrics struct {
	connected                      prometheus.Gauge
	lost                           prometheus.Counter
	sent, received, dropped, bytes *prometheus.CounterVec // class
	forwarded                      *prometheus.CounterVec // result
	snapshots                      *prometheus.CounterVec // direction, result
	snapshotBytes                  *prometheus.CounterVec // direction

	reg        prometheus.Registerer
	registered []prometheus.Collector
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{reg: reg}
	var errs []error
	add := func(c prometheus.Collector) {
		if err := reg.Register(c); err != nil {
			errs = append(errs, err)
			return
		}
		m.registered = append(m.registered, c)
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "rookery", Subsystem: "peer", Name: name, Help: help}, labels)
		add(c)
		return c
	}
	m.connected = prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "rookery", Subsystem: "peer", Name: "connected", Help: "Other members that this node is connected to."})
	add(m.connected)
	m.lost = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "rookery", Subsystem: "peer", Name: "lost_total", Help: "Peers whose process was found to be gone."})
	add(m.lost)
	m.sent = counters("sent_messages_total", "Raft messages sent, by class: control, bulk.", "class")
	m.received = counters("received_messages_total", "Raft messages received, by class: control, bulk.", "class")
	m.dropped = counters("dropped_messages_total", "Raft messages dropped because the peer was not reached or too slow, by class: control, bulk, snapshot.", "class")
	m.bytes = counters("sent_bytes_total", "Octets of Raft messages sent, by class: control, bulk.", "class")
	m.forwarded = counters("forwarded_commands_total", "Commands forwarded to the leader, by result: ok, refused, unknown.", "result")
	m.snapshots = counters("snapshots_total", "Snapshots by direction, out or in, and result: ok, failed.", "direction", "result")
	m.snapshotBytes = counters("snapshot_bytes_total", "Octets of snapshots by direction: out, in.", "direction")
	return m, errors.Join(errs...)
}

// unregister takes the metrics away.
func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.reg.Unregister(c)
	}
}
