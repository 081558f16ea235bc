package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"log/slog"

	"github.com/rookery-mail/rookery/internal/obs"
)

// check is one thing that must hold for the node to be of use.
type check struct {
	name string
	ok   func() error
	note func() string // what to say beside ok; nil: nothing
}

// web serves what other programs watch a node by: /livez is the process alone,
// since losing the quorum must not make anybody restart nodes; /readyz is "can
// answer", check by check with ?verbose, less those of ?exclude=; /leader is 200
// on the leader only, for load balancers.
func web(checks []check, leading func() bool, metrics prometheus.Gatherer, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", obs.MetricsHandler(metrics, log))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /leader", func(w http.ResponseWriter, _ *http.Request) {
		if !leading() {
			http.Error(w, "not the leader", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "leader")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		excluded := map[string]bool{}
		for _, e := range r.URL.Query()["exclude"] {
			excluded[e] = true
		}
		var text strings.Builder
		ready := true
		for _, c := range checks {
			if excluded[c.name] {
				fmt.Fprintf(&text, "[-] %s: excluded\n", c.name)
				continue
			}
			if err := c.ok(); err != nil {
				ready = false
				fmt.Fprintf(&text, "[!] %s: %v\n", c.name, err)
				continue
			}
			note := ""
			if c.note != nil {
				note = c.note()
			}
			fmt.Fprintf(&text, "[+] %s: ok%s\n", c.name, note)
		}
		if !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		if !ready || r.URL.Query().Has("verbose") {
			fmt.Fprint(w, text.String())
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// staleAfter is how old a node's state may be for the node to be ready: the
// bound that reads have by default.
const staleAfter = 10 * time.Second
