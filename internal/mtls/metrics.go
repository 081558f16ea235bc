package mtls

import "github.com/prometheus/client_golang/prometheus"

// Register shows in metrics when the program's own certificate ends. f may be nil: the
// program has none.
func (f *Files) Register(metrics prometheus.Registerer) {
	if f == nil {
		return
	}
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "rookery_mtls_certificate_end_timestamp_seconds",
		Help: "When this program's own certificate ends, in seconds since 1970.",
	}, func() float64 { return float64(f.Leaf().NotAfter.Unix()) }))
}
