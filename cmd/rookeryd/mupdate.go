package main

import (
	"context"
	"fmt"
	"net"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/internal/obs"
	"github.com/rookery-mail/rookery/server"
)

// serveMUPDATE answers Cyrus until ctx ends. The adapter is a client of this node, from
// inside the process, and so writes and reads whatever node leads.
func (n *node) serveMUPDATE(ctx context.Context, api *server.Server) error {
	dir, err := client.Dial([]string{n.s.name}, client.WithConn(api.Conn(server.Caller{Role: server.RoleOperator, Name: "mupdate"})))
	if err != nil {
		return err
	}
	defer dir.Close()
	cfg := mupdate.Config{Client: dir, Version: obs.Version(), Log: n.log, Metrics: n.registry}
	if err := n.s.mupdate.Fill(&cfg); err != nil {
		return fmt.Errorf("--listen-mupdate: %w", err)
	}
	if n.files != nil {
		if cfg.TLS == nil {
			cfg.TLS = mtls.StartTLS(n.files)
		}
		cfg.Holder = n.files.Holder("mupdate", n.log)
	}
	adapter, err := mupdate.New(cfg)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, adapter.Close)
	defer stop()
	defer adapter.Close()
	// Only now: a node that cannot answer refuses connections, and a client of several
	// addresses goes on to the next at once.
	l, err := net.Listen("tcp", n.s.mupdate.Listen)
	if err != nil {
		return fmt.Errorf("--listen-mupdate: %w", err)
	}
	n.log.Info("serving MUPDATE", "addr", l.Addr().String())
	return adapter.Serve(l)
}
