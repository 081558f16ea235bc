package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/rookery-mail/rookery/internal/daemon"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/peer"
	"github.com/rookery-mail/rookery/server"
)

// parseFounders reads --initial-cluster.
func parseFounders(list, self string) ([]peer.Founder, error) {
	if list == "" {
		return nil, nil
	}
	var founders []peer.Founder
	names := map[string]bool{}
	for part := range strings.SplitSeq(list, ",") {
		name, address, ok := strings.Cut(strings.TrimSpace(part), "=")
		switch {
		case !ok || name == "" || address == "":
			return nil, fmt.Errorf("%w: --initial-cluster: %q is no name=peer-address", daemon.ErrUsage, part)
		case names[name]:
			return nil, fmt.Errorf("%w: --initial-cluster names %s twice", daemon.ErrUsage, name)
		}
		names[name] = true
		founders = append(founders, peer.Founder{Name: name, Address: address})
	}
	if !names[self] {
		return nil, fmt.Errorf("%w: --initial-cluster does not name this node, %s", daemon.ErrUsage, self)
	}
	return founders, nil
}

// storeConfig is what the store is opened with.
func (n *node) storeConfig(dir *raftstore.Directory) raftstore.Config {
	cfg := raftstore.Config{
		Dir: n.s.data, Directory: dir, Name: n.s.name, Token: n.s.clusterToken,
		Machine: server.Applied(n.rules), Log: n.log, Metrics: n.registry,
		MaxCommand: server.MaxCommand,
		LogBytes:   int64(n.s.logSize), SegmentBytes: int64(n.s.logSegment),
		LowSpace: int64(n.s.lowSpace), Ballast: int64(n.s.ballast),
		ScrubInterval: n.s.scrubInterval,
	}
	if cfg.ScrubInterval <= 0 {
		cfg.ScrubInterval = -1 // none; to the store 0 is its own default
	}
	return cfg
}

// founding says what to open: the directory as it is or, if it is empty, the
// cluster that the settings name, once the other nodes have been heard.
func (n *node) founding(ctx context.Context, dir *raftstore.Directory) (raftstore.Config, error) {
	cfg := n.storeConfig(dir)
	cfg.Network = n.transport
	told := func([]string) {}
	if dir.Empty() && len(n.s.join)+len(n.s.founders) > 0 {
		w := n.beginWait()
		defer w.end()
		told = w.name
	}
	waiting := func(names []string) {
		told(names)
		_ = n.notify.tell("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=waiting for " + strings.Join(names, ", "))
	}
	switch {
	case !dir.Empty():
	case len(n.s.join) > 0:
		join, err := n.transport.Join(ctx, n.s.join, waiting)
		if err != nil {
			return cfg, err
		}
		cfg.Join = join
	case len(n.s.founders) > 0:
		f, err := n.transport.Found(ctx, n.s.founders, waiting)
		if err != nil {
			return cfg, err
		}
		cfg.Initial, cfg.Join = f.Initial, f.Join
	default:
		cfg.Initial = []raftstore.Member{{ID: dir.Birth(), Name: n.s.name, Context: n.info.Context()}}
	}
	return cfg, nil
}
