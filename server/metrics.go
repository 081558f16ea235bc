package server

import (
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// method is one method of one service: who may call it, and how long it took.
type method struct {
	name string
	rule rule
	ok   prometheus.Observer
	// refusals by reason, made when first needed: most never are.
	refusals []atomic.Pointer[prometheus.Observer]
	seconds  prometheus.ObserverVec
}

// methodsOf returns all methods that g serves.
func methodsOf(g *grpc.Server, metrics prometheus.Registerer) (map[string]*method, error) {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "rookery_server_request_seconds",
		// method: "/rookery.api.v1.DirectoryService/Lookup" and so on, the keys of roles;
		// result: "OK", or a Reason without its prefix, "UNSPECIFIED" if it has none.
		Help:    "How long calls took, streams to their end.",
		Buckets: prometheus.ExponentialBuckets(25e-6, 2.5, 14), // to 3.7 s
	}, []string{"method", "result"})
	if metrics != nil {
		if err := metrics.Register(seconds); err != nil {
			return nil, fmt.Errorf("server: metrics: %w", err)
		}
	}
	methods := make(map[string]*method)
	services := g.GetServiceInfo()
	for _, service := range slices.Sorted(maps.Keys(services)) {
		for _, info := range services[service].Methods {
			name := "/" + service + "/" + info.Name
			rule, ok := roles[name]
			if !ok {
				return nil, fmt.Errorf("server: %s has no row in the table of roles", name)
			}
			methods[name] = &method{
				name:     name,
				rule:     rule,
				ok:       seconds.WithLabelValues(name, "OK"),
				refusals: make([]atomic.Pointer[prometheus.Observer], maxReason+1),
				seconds:  seconds,
			}
		}
	}
	return methods, nil
}

// maxReason is the highest number of a Reason.
var maxReason = slices.Max(slices.Collect(maps.Keys(apiv1.Reason_name)))

// refused observes calls that were refused for reason.
func (m *method) refused(reason apiv1.Reason) prometheus.Observer {
	p := &m.refusals[reason]
	if o := p.Load(); o != nil {
		return *o
	}
	o := m.seconds.WithLabelValues(m.name, reasonName(reason))
	p.Store(&o)
	return o
}
