// Package obs builds what a program is watched by: its logger, its metrics
// registry, the listener that shows metrics and profiles, and the version that
// it says it is.
//
// It holds no metric of anybody else: those live beside what they count and
// take a prometheus.Registerer.
package obs
