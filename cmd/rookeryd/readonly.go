package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/internal/obs"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/peer"
	"github.com/rookery-mail/rookery/server"
)

// keeper keeps a node up whose disk takes no writes, or whose state is not to be
// used. A write that failed is never tried again in place: the node ends, and
// comes back read-only, to show what it has to whoever can use that. When the
// disk takes writes again it is started anew, and the log tells it what it
// missed. A node whose state differs or is damaged shows nothing; it is started
// anew with another node's.
type keeper struct {
	serve    func(context.Context) error        // a whole node, until ctx ends or it fails
	readOnly func(context.Context, error) error // an old state, until ctx ends
	reseed   func(context.Context, error) error // gets another node's state, unless ctx ends
	try      func(size int64) error             // whether the disk takes so many octets more
	every    time.Duration                      // how often to try
	log      *slog.Logger
}

const (
	// startBytes is what a disk must take for a node to be started on it.
	startBytes = 1 << 20
	// returnBytes is what it must take for one that was full to be tried again. It
	// may take more to open the log; then the node is soon back here.
	returnBytes = 16 << 20
	// returnEvery is how often that is tried.
	returnEvery = 30 * time.Second
)

func newKeeper(s settings, log *slog.Logger) keeper {
	return keeper{
		serve:    func(ctx context.Context) error { return serve(ctx, s, log) },
		readOnly: func(ctx context.Context, why error) error { return serveReadOnly(ctx, s, why, log) },
		reseed:   func(ctx context.Context, why error) error { return reseed(ctx, s, why, log) },
		try: func(size int64) error {
			if _, err := os.Stat(s.data); errors.Is(err, os.ErrNotExist) {
				return nil // the first start; what else is wrong is said before it is made
			}
			return raftstore.TryWrite(s.data, size)
		},
		every: returnEvery,
		log:   log,
	}
}

// run serves until ctx ends, or until the node fails for another reason than
// its disk.
func (k keeper) run(ctx context.Context) error {
	for {
		err := k.try(startBytes)
		if err == nil {
			err = k.serve(ctx)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		// First: a state that differs is not to be shown, also where the mark that
		// says so could not be written.
		if reseedable(err) {
			k.log.Error("this node's state is not to be used; it serves nothing, and gets another node's if that can take its place", "err", err)
			if err := k.reseed(ctx, err); err != nil || ctx.Err() != nil {
				return err
			}
			k.log.Info("this node has another node's state and is started anew")
			continue
		}
		if !raftstore.Unwritable(err) {
			return err
		}
		k.log.Error("the data directory takes no writes; the node goes on read-only", "err", err)
		if err := k.wait(ctx, err); err != nil || ctx.Err() != nil {
			return err
		}
		k.log.Info("the data directory takes writes again; the node is started anew")
	}
}

// wait serves read-only until the disk takes writes again.
func (k keeper) wait(ctx context.Context, why error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- k.readOnly(ctx, why) }()
	t := time.NewTicker(k.every)
	defer t.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				err = fmt.Errorf("%w; and it could not be opened to be read either: %w", why, err)
			}
			return err
		case <-t.C:
		}
		if err := k.try(returnBytes); err != nil {
			k.log.Warn("the data directory still takes no writes", "err", err)
			continue
		}
		cancel()
		return <-ended
	}
}

// serveReadOnly answers from an old state until ctx ends. why is the write that
// failed.
func serveReadOnly(ctx context.Context, s settings, why error, log *slog.Logger) error {
	notify, err := newNotifier()
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer notify.Close()
	files, err := s.certificates(log)
	if err != nil {
		return err
	}
	listeners, err := listen(s)
	if err != nil {
		return err
	}
	defer listeners.close()
	listeners.secure(files, log)
	// It speaks with no node, and they are to find that out at once.
	if err := listeners.peer.Close(); err != nil {
		return err
	}
	registry := obs.NewRegistry()
	files.Register(registry)
	watching, end := context.WithCancel(ctx)
	defer end()
	go files.Watch(watching)
	rules := machine.New()
	shard, err := raftstore.OpenReadOnly(raftstore.Config{
		Dir: s.data, Name: s.name, Token: s.clusterToken, Machine: server.Applied(rules), Log: log, Metrics: registry,
		LowSpace: int64(s.lowSpace),
	}, why.Error())
	if err != nil {
		return err
	}
	api, err := server.New(server.Config{
		Store: server.ReadOnly(shard), Machine: rules, Node: s.name, Version: obs.Version(),
		Identity: shard.Status().Identity,
		Members:  func() server.Members { return oldMembers(shard) }, Health: shard.Health,
		Credentials: mtls.Server(files, mtls.Listening{Proto: "client", Log: log}),
		Log:         log, Metrics: registry,
	})
	if err != nil {
		return errors.Join(err, shard.Close())
	}
	api.SetServing(false)
	socket, err := s.socket(log)
	if err != nil {
		// It may have to be made in the directory that takes no writes. The other
		// ways in are worth more than none.
		log.Warn("there is no unix socket", "err", err)
	}

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return api.Serve(listeners.client) })
	if socket != nil {
		g.Go(func() error { return api.Serve(socket) })
	}
	checks := []check{{"writable", func() error { return shard.Refusal() }, nil}}
	g.Go(func() error {
		return obs.Serve(gctx, listeners.http, web(checks, func() bool { return false }, registry, log), log)
	})
	if listeners.debug != nil {
		g.Go(func() error { return obs.Serve(gctx, listeners.debug, obs.DebugHandler(), log) })
	}
	g.Go(func() error { return beat(gctx, notify, shard) })
	g.Go(func() error {
		<-gctx.Done()
		api.Close(context.Background())
		return nil
	})
	log.Warn("serving read-only", "addr", listeners.client.Addr().String(), "http", listeners.http.Addr().String(), "version", obs.Version(), "err", why)
	if err := notify.tell("READY=1\nSTATUS=read-only, the data directory takes no writes"); err != nil {
		log.Warn("systemd was not told", "err", err)
	}
	return errors.Join(g.Wait(), shard.Close())
}

// oldMembers tells the API who the nodes were when the state was written.
func oldMembers(shard *raftstore.ReadOnly) server.Members {
	st := shard.Status()
	m := server.Members{Self: st.Identity.Node, Applied: st.Applied, Commit: st.Committed, Term: st.Term}
	for _, n := range st.Members {
		info := peer.ParseInfo(n.Context)
		m.Nodes = append(m.Nodes, server.Node{
			Name: n.Name, ID: n.ID, Voter: !n.Learner, Heard: -1,
			PeerAddress: info.PeerAddress, ClientAddress: info.ClientAddress, Site: info.Site,
		})
	}
	return m
}

// beat tells systemd that the node goes round, as watchdog does.
func beat(ctx context.Context, n *notifier, shard *raftstore.ReadOnly) error {
	every, err := n.watchdog()
	if err != nil || every == 0 {
		return err
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if v, err := shard.Read(); err == nil {
			v.Release()
			_ = n.tell("WATCHDOG=1")
		}
	}
}
