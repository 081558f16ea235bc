package obs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// readTimeout bounds how long a client may take to send its request, so
	// that idle scanners hold no connections. The answer has no such bound: a
	// CPU profile takes the time that was asked for.
	readTimeout = 10 * time.Second
	// idleTimeout outlasts the usual minute between two scrapes.
	idleTimeout = 2 * time.Minute
	// drainTimeout is what requests under way are given when the listener
	// stops: a scrape takes far less, a CPU profile may take more and is cut.
	drainTimeout = 2 * time.Second
)

// MetricsHandler serves what g gathers in the Prometheus and OpenMetrics text
// formats. A metric that cannot be gathered costs itself alone and is logged.
func MetricsHandler(g prometheus.Gatherer, logger *slog.Logger) http.Handler {
	return promhttp.HandlerFor(g, promhttp.HandlerOpts{
		ErrorLog:          gatherLog{logger},
		ErrorHandling:     promhttp.ContinueOnError,
		EnableOpenMetrics: true,
	})
}

// gatherLog writes what promhttp has to complain about to a slog.Logger.
type gatherLog struct{ logger *slog.Logger }

func (l gatherLog) Println(v ...any) {
	l.logger.Warn("metrics not gathered", "err", fmt.Sprint(v...))
}

// DebugHandler serves the runtime's profiles below /debug/pprof/. They show
// what the program does and slow it while they are taken: serve it to
// operators only.
func DebugHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol) // how the pprof tool asks for many
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// Serve answers HTTP requests on ln with handler until ctx is done, then stops
// accepting, gives requests under way two seconds, and returns nil. It returns
// an error as soon as ln fails. In either case ln is closed and no goroutine of
// Serve is left when it returns.
func Serve(ctx context.Context, ln net.Listener, handler http.Handler, logger *slog.Logger) error {
	server := &http.Server{
		Handler:     handler,
		ReadTimeout: readTimeout,
		IdleTimeout: idleTimeout,
		ErrorLog:    slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(ln) }()

	select {
	case err := <-failed:
		return errors.Join(fmt.Errorf("obs: serve %s: %w", ln.Addr(), err), server.Close())
	case <-ctx.Done():
	}

	// ctx is done already: the time to drain is counted by one that is not.
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		logger.Debug("http requests cut", "err", err)
		if err := server.Close(); err != nil {
			return fmt.Errorf("obs: close %s: %w", ln.Addr(), err)
		}
	}
	<-failed // http.ErrServerClosed
	return nil
}
