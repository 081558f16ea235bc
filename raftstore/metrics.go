package raftstore

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what an operator watches. Every name starts with
// rookery_raftstore_ and has the label shard.
type metrics struct {
	leader, term, appliedIndex, commitLag  prometheus.Gauge
	overlayKeys, overlayBytes              prometheus.Gauge
	fileBytes, fileUsed                    prometheus.Gauge
	proposals                              *prometheus.CounterVec // result: ok, refused, unknown
	commands, flushKeys, snapshots, torn   prometheus.Counter
	sent, installs, compactions            prometheus.Counter
	installSeconds, compactSeconds         prometheus.Histogram
	batch, syncSeconds, applySeconds       prometheus.Histogram
	flushSeconds, readSeconds, snapSeconds prometheus.Histogram
	compared, scrubs                       *prometheus.CounterVec // result, see below
	differing, diskFree, diskLow, readOnly prometheus.Gauge
	quarantined                            prometheus.Gauge
	scrubbed                               prometheus.Counter

	reg        prometheus.Registerer
	registered []prometheus.Collector
}

// Results of a proposal, as the label says them.
const (
	resultOK      = "ok"
	resultRefused = "refused" // not done: overload, no leader here, too large
	resultUnknown = "unknown" // lost leadership, closed, stopped
)

// Results of comparing a sum with a peer's, and of a scrub.
const (
	comparedSame    = "same"
	comparedDiffers = "differs"
	comparedUnknown = "unknown" // it could not be compared
	scrubOK         = "ok"
	scrubDamaged    = "damaged"
)

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
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "rookery", Subsystem: "raftstore", Name: name, Help: help})
		add(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "rookery", Subsystem: "raftstore", Name: name, Help: help})
		add(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "rookery", Subsystem: "raftstore", Name: name, Help: help, Buckets: buckets})
		add(h)
		return h
	}
	seconds := prometheus.ExponentialBuckets(0.0001, 2, 18) // 0.1 ms to 13 s
	m.leader = gauge("is_leader", "1 while this node is the leader.")
	m.term = gauge("term", "Raft term.")
	m.appliedIndex = gauge("applied_index", "Raft index of the last entry applied.")
	m.commitLag = gauge("commit_lag_entries", "Committed entries that are not applied yet.")
	m.overlayKeys = gauge("overlay_keys", "Changed keys in memory that are not in the state file yet.")
	m.overlayBytes = gauge("overlay_bytes", "Octets of them and their values.")
	m.fileBytes = gauge("state_file_bytes", "Size of the state file.")
	m.fileUsed = gauge("state_file_used_bytes", "How far the state file has ever been in use.")
	m.proposals = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "rookery", Subsystem: "raftstore", Name: "proposals_total", Help: "Proposals by result: ok, refused, unknown."}, []string{"result"})
	add(m.proposals)
	m.commands = counter("commands_applied_total", "Commands applied.")
	m.flushKeys = counter("flushed_keys_total", "Keys written to the state file.")
	m.snapshots = counter("snapshots_total", "Snapshots saved.")
	m.sent = counter("snapshots_sent_total", "Snapshots that arrived at nodes that lagged.")
	m.installs = counter("snapshots_installed_total", "Snapshots from other nodes that replaced the state.")
	m.compactions = counter("compactions_total", "Compactions of the state file.")
	m.torn = counter("log_torn_tails_total", "Starts that cut an unfinished write off the log.")
	m.batch = histogram("entry_commands", "Commands in an entry.", prometheus.ExponentialBuckets(1, 2, 13))
	m.syncSeconds = histogram("log_sync_seconds", "Time to write and sync the log.", seconds)
	m.applySeconds = histogram("apply_seconds", "Time to apply and publish what was committed together.", seconds)
	m.flushSeconds = histogram("flush_seconds", "Time to write a layer to the state file.", seconds)
	m.readSeconds = histogram("read_index_seconds", "Time until a linearizable read may be served.", seconds)
	m.snapSeconds = histogram("snapshot_seconds", "Time to save a snapshot.", prometheus.ExponentialBuckets(0.01, 2, 16))
	long := prometheus.ExponentialBuckets(0.01, 2, 18) // 10 ms to 22 minutes
	m.installSeconds = histogram("snapshot_install_seconds", "Time to prove a snapshot and to put it in the place of the state.", long)
	m.compactSeconds = histogram("compaction_seconds", "Time of a compaction of the state file.", long)
	m.compared = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "rookery", Subsystem: "raftstore", Name: "sums_compared_total", Help: "Sums of the state compared with another node's, by result: same, differs, unknown."}, []string{"result"})
	add(m.compared)
	m.scrubs = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "rookery", Subsystem: "raftstore", Name: "scrubs_total", Help: "Times the state file was read again whole, by result: ok, damaged."}, []string{"result"})
	add(m.scrubs)
	m.scrubbed = counter("scrubbed_bytes_total", "Octets of rows read again from the state file.")
	m.differing = gauge("sums_differing_nodes", "Nodes whose state is not this node's.")
	m.diskFree = gauge("disk_free_bytes", "Octets free on the disk of the data directory.")
	m.diskLow = gauge("disk_low", "1 while that is below the low-water mark.")
	m.readOnly = gauge("read_only", "1 while the node only shows an old state, for its disk takes no writes.")
	m.quarantined = gauge("quarantined", "1 while the state is not to be used and another node's is fetched.")
	for _, result := range []string{comparedSame, comparedDiffers, comparedUnknown} {
		m.compared.WithLabelValues(result) // an alert on a rate needs a zero to start from
	}
	for _, result := range []string{scrubOK, scrubDamaged} {
		m.scrubs.WithLabelValues(result)
	}
	return m, errors.Join(errs...)
}

// unregister takes the metrics away, so that a store can be opened again.
func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.reg.Unregister(c)
	}
}

func (m *metrics) countProposal(err error) {
	result := resultOK
	switch {
	case err == nil:
	case errors.Is(err, ErrUnknown), errors.Is(err, ErrClosed), errors.Is(err, ErrStopped):
		result = resultUnknown
	default:
		result = resultRefused
	}
	m.proposals.WithLabelValues(result).Inc()
}

// observe sets the core's gauges.
func (c *core) observe() {
	leading := 0.0
	if c.leading {
		leading = 1
	}
	c.metrics.leader.Set(leading)
	c.metrics.term.Set(float64(c.term))
	c.metrics.appliedIndex.Set(float64(c.applied.Index))
	c.metrics.commitLag.Set(float64(max(c.commit, c.applied.Index) - c.applied.Index))
}
