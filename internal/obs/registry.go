package obs

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a registry that holds the metrics of the process
// (process_*), of the Go runtime (go_*), and rookery_build_info, a constant 1
// whose labels say what runs:
//
//	version    of the program, as in [Version]
//	goversion  of the Go release that built it
//
// A process has one; tests have as many as they have nodes.
func NewRegistry() *prometheus.Registry {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "rookery_build_info",
		Help: "Constant 1; the labels say which version runs.",
		ConstLabels: prometheus.Labels{
			"version":   Version(),
			"goversion": runtime.Version(),
		},
	})
	build.Set(1)

	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewGoCollector(),
		build,
	)
	return r
}
