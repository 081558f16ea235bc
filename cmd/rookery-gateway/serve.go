package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/daemon"
	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/internal/obs"
)

// serve answers until ctx ends or something fails.
func serve(ctx context.Context, s settings, log *slog.Logger) error {
	registry := obs.NewRegistry()
	var files *mtls.Files
	if s.tls != (mtls.Paths{}) {
		var err error
		if files, err = mtls.Load(s.tls, nil, log); err != nil {
			return err
		}
	}
	files.Register(registry)
	secured := client.WithCredentials(mtls.Client(files, log))
	dir, err := client.Dial(s.nodes, secured, client.WithObserver((&strangers{log: log}).observe))
	if err != nil {
		return fmt.Errorf("%w: --endpoints: %w", daemon.ErrUsage, err)
	}
	defer dir.Close()
	look := func(ctx context.Context) error {
		return oneCluster(ctx, s.nodes, func(ctx context.Context, endpoint string) (client.Status, error) {
			one, err := client.Dial([]string{endpoint}, secured)
			if err != nil {
				return client.Status{}, err
			}
			defer one.Close()
			return one.Status(ctx, client.Stale(0))
		})
	}
	if err := look(ctx); err != nil {
		return err
	}
	cfg := mupdate.Config{Client: dir, Version: obs.Version(), Log: log, Metrics: registry}
	if err := s.mupdate.Fill(&cfg); err != nil {
		return err
	}
	if files != nil {
		cfg.Holder = files.Holder("mupdate", log)
	}
	adapter, err := mupdate.New(cfg)
	if err != nil {
		return err
	}
	defer adapter.Close()
	l, err := net.Listen("tcp", s.mupdate.Listen)
	if err != nil {
		return fmt.Errorf("--listen-mupdate: %w", err)
	}
	defer l.Close()

	told := ctx // to end
	ctx, cancel := context.WithCancelCause(told)
	defer cancel(nil)
	var work sync.WaitGroup
	defer work.Wait()
	if s.listenHTTP != "" {
		h, err := net.Listen("tcp", s.listenHTTP)
		if err != nil {
			return fmt.Errorf("--listen-http: %w", err)
		}
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", obs.MetricsHandler(registry, log))
		mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
		work.Go(func() {
			if err := obs.Serve(ctx, h, mux, log); err != nil {
				cancel(err)
			}
		})
		log.Info("serving HTTP", "http", h.Addr().String())
	}
	work.Go(func() {
		tellHearing(ctx, func(ctx context.Context) error {
			_, err := dir.Status(ctx, client.Stale(0))
			return err
		}, log)
	})
	work.Go(func() { tellClusters(ctx, look, log) })
	work.Go(func() { files.Watch(ctx) })
	stop := context.AfterFunc(ctx, adapter.Close)
	defer stop()
	log.Info("serving MUPDATE", "addr", l.Addr().String(), "version", obs.Version())
	err = adapter.Serve(l)
	adapter.Close()
	cause := context.Cause(ctx)
	cancel(nil)
	work.Wait()
	if err == nil && told.Err() == nil {
		err = cause
	}
	if err == nil {
		log.Info("closed")
	}
	return err
}
