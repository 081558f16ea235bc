package mupdate

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what an operator watches.
//
// The label command is one of authenticate starttls reserve activate deactivate delete
// find list update noop logout other; result one of ok taken refused unavailable
// undecided bad.
type metrics struct {
	connections prometheus.Gauge
	accepted    prometheus.Counter
	full        prometheus.Counter
	displaced   prometheus.Counter
	commands    *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	logins      *prometheus.CounterVec
	streams     prometheus.GaugeFunc
	lines       prometheus.Counter
	listed      prometheus.Histogram
	again       prometheus.Counter
	ended       prometheus.Counter
	retired     prometheus.Counter
	unbound     prometheus.Counter
	forks       prometheus.Counter
	orphans     prometheus.Counter
	resyncs     *prometheus.CounterVec
	repairs     prometheus.Gauge
	broken      prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, streams func() float64) *metrics {
	m := &metrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Name: "rookery_mupdate_connections", Help: "Connections that are open."}),
		accepted:    prometheus.NewCounter(prometheus.CounterOpts{Name: "rookery_mupdate_connections_total", Help: "Connections that were accepted."}),
		full:        prometheus.NewCounter(prometheus.CounterOpts{Name: "rookery_mupdate_connections_refused_total", Help: "Connections that were answered BYE because there were too many."}),
		displaced: prometheus.NewCounter(prometheus.CounterOpts{Name: "rookery_mupdate_connections_displaced_total",
			Help: "Connections that were ended before they logged in, because others came and there were too many."}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rookery_mupdate_commands_total",
			Help: "Commands that were answered, by command and result."}, []string{"command", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "rookery_mupdate_command_seconds",
			Help: "How long commands took to answer, UPDATE and STARTTLS apart.", Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}}, []string{"command"}),
		logins: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rookery_mupdate_logins_total",
			Help: "Logins, by mechanism and result: ok, refused (wrong name or password), broken (no valid exchange), limited (too many were refused)."}, []string{"mechanism", "result"}),
		streams: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "rookery_mupdate_streams", Help: "UPDATE streams that are open."}, streams),
		lines:   prometheus.NewCounter(prometheus.CounterOpts{Name: "rookery_mupdate_stream_lines_total", Help: "Changes sent by streams."}),
		listed: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "rookery_mupdate_stream_listing_seconds",
			Help: "How long the listing of a stream took to send, once it was there.", Buckets: []float64{.01, .1, .5, 1, 5, 10, 30, 60, 300}}),
		again:   prometheus.NewCounter(prometheus.CounterOpts{Name: "rookery_mupdate_stream_again_total", Help: "Records sent once more after a listing, because a slave loses them in its merge."}),
		ended:   prometheus.NewCounter(prometheus.CounterOpts{Name: "rookery_mupdate_streams_ended_total", Help: "Streams that were ended from this side."}),
		retired: prometheus.NewCounter(prometheus.CounterOpts{Name: "rookery_mupdate_streams_retired_total", Help: "Streams that were ended because more names moved at once than are told one by one."}),
		unbound: prometheus.NewCounter(prometheus.CounterOpts{Name: "rookery_mupdate_delete_unbound_total", Help: "DELETEs refused because several servers hold the name and it is not known which one asks."}),
		forks:   prometheus.NewCounter(prometheus.CounterOpts{Name: "rookery_mupdate_forks_total", Help: "ACTIVATEs of a name that another server holds."}),
		orphans: prometheus.NewCounter(prometheus.CounterOpts{Name: "rookery_mupdate_orphans_total", Help: "Reservations given back because their connection ended and nothing followed."}),
		resyncs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rookery_mupdate_resyncs_total",
			Help: "ctl_mboxlist -m runs, by result: confirmed, unfinished, failed (the end could not be noted)."}, []string{"result"}),
		repairs: prometheus.NewGauge(prometheus.GaugeOpts{Name: "rookery_mupdate_repairs", Help: "What was left half done by a connection or by the loss of the quorum, and is still to be ended."}),
		broken:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "rookery_mupdate_broken_files", Help: "Files of users and certificates that changed and cannot be used, so that what they held before is; and certificates that have expired, or that clients refuse for another reason."}),
	}
	if r != nil {
		r.MustRegister(m.connections, m.accepted, m.full, m.displaced, m.commands, m.seconds, m.logins, m.streams, m.lines, m.listed,
			m.again, m.ended, m.retired, m.unbound, m.forks, m.orphans, m.resyncs, m.repairs, m.broken)
	}
	return m
}
