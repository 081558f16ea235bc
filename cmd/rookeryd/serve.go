package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/daemon"
	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/internal/obs"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/peer"
	"github.com/rookery-mail/rookery/server"
)

// node is the parts of one rookeryd.
type node struct {
	s         settings
	log       *slog.Logger
	notify    *notifier
	listeners listeners
	registry  *prometheus.Registry
	rules     *machine.Machine
	info      peer.Info
	files     *mtls.Files // nil: plain text
	transport *peer.Transport
	store     atomic.Pointer[raftstore.Store] // nil until the cluster is there
	summed    atomic.Uint64                   // the index of the sum that was told last
	goals     goals
}

// resignPatience is how long a node that is told to end tries to hand over the
// leadership.
const resignPatience = time.Second

// serve makes a node, answers until ctx ends or the node fails, and closes in
// the order that loses nothing: leadership, new calls, calls under way,
// connections, state, log.
func serve(ctx context.Context, s settings, log *slog.Logger) (err error) {
	begun := time.Now()
	n := &node{s: s, log: log, registry: obs.NewRegistry(), rules: machine.New()}
	if n.notify, err = newNotifier(); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer n.notify.Close()
	if n.files, err = s.certificates(log); err != nil {
		return err
	}
	n.files.Register(n.registry)
	if s.mupdate.Listen != "" {
		// Before anything is made or served.
		if err := s.mupdate.Readable(); err != nil {
			return fmt.Errorf("--listen-mupdate: %w", err)
		}
	}
	if n.listeners, err = listen(s); err != nil {
		return err
	}
	defer n.listeners.close()
	if s.mupdate.Listen != "" {
		if err := free(s.mupdate.Listen); err != nil {
			return fmt.Errorf("--listen-mupdate: %w", err)
		}
	}
	n.listeners.secure(n.files, log)
	if n.info, err = n.advertised(); err != nil {
		return err
	}
	dir, err := raftstore.Lock(s.data, 0)
	if err != nil {
		return err
	}
	if n.transport, err = n.newTransport(dir.Birth(), n.announcement, n.hear); err != nil {
		return errors.Join(err, dir.Close())
	}
	defer n.transport.Close()
	if n.listeners.unix, err = s.socket(log); err != nil {
		return errors.Join(err, dir.Close())
	}
	defer func() { n.listeners.close() }() // with the socket

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.transport.Serve(n.listeners.peer) })
	g.Go(func() error {
		return obs.Serve(gctx, n.listeners.http, web(n.readiness(), n.leading, n.registry, log), log)
	})
	if n.listeners.debug != nil {
		g.Go(func() error { return obs.Serve(gctx, n.listeners.debug, obs.DebugHandler(), log) })
	}
	g.Go(func() error {
		select {
		case <-n.transport.Failed():
			return n.transport.Err()
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		cfg, err := n.founding(gctx, dir)
		if err != nil {
			n.transport.Close() // for Serve to return
			if err := errors.Join(err, dir.Close()); gctx.Err() == nil {
				return err
			}
			return nil
		}
		return n.serveStore(gctx, cfg, begun)
	})
	err = g.Wait()
	if store := n.store.Load(); store != nil {
		if closeErr := store.Close(); err == nil {
			err = closeErr
		}
	}
	if err == nil {
		log.Info("closed")
	}
	return err
}

// newTransport makes the way to the other nodes. announce says what to tell
// them of this one, hear is told what they say.
func (n *node) newTransport(birth uint64, announce func() peer.Announcement, hear func(uint64, peer.Announcement)) (*peer.Transport, error) {
	var names []string
	for _, f := range n.s.founders {
		names = append(names, f.Name)
	}
	return peer.New(peer.Config{
		Name: n.s.name, Info: n.info, Version: obs.Version(),
		Birth: birth, Initial: names,
		SnapshotRate:      n.s.snapshotRate,
		Announce:          announce,
		OnAnnounce:        hear,
		ServerCredentials: mtls.PeerServer(n.files, n.log),
		ClientCredentials: n.dialing(),
		Authorize:         authorize,
		Check:             n.check,
		Versions:          peer.Versions{Oldest: machine.OldestVersion, Newest: machine.NewestVersion},
		ClusterVersion:    n.clusterVersion,
		Log:               n.log, Metrics: n.registry,
	})
}

// check refuses a command of another node that this one could not apply, or that is
// not in force yet.
func (n *node) check(command []byte) error {
	store := n.store.Load()
	if store == nil {
		return raftstore.ErrNoLeader
	}
	v, err := store.Read(context.Background(), raftstore.Local)
	if err != nil {
		return err
	}
	defer v.Release()
	return server.CheckCommand(n.rules, v, command)
}

// clusterVersion is the version of the cluster, 0 if there is no state to tell.
func (n *node) clusterVersion() uint32 {
	store := n.store.Load()
	if store == nil {
		return 0
	}
	v, err := store.Read(context.Background(), raftstore.Local)
	if err != nil {
		return 0
	}
	defer v.Release()
	version, err := server.ClusterVersion(n.rules, v)
	if err != nil {
		return 0
	}
	return version
}

// agreed is the version that a new cluster is to begin with.
func (n *node) agreed() (version uint32, known bool) {
	m := n.members()
	return m.Agreed()
}

// dialing returns what gives the credentials for a node: the same for every
// attempt, as they remember what they have complained of.
func (n *node) dialing() func(name string) credentials.TransportCredentials {
	var mu sync.Mutex
	made := make(map[string]credentials.TransportCredentials)
	return func(name string) credentials.TransportCredentials {
		mu.Lock()
		defer mu.Unlock()
		if made[name] == nil {
			made[name] = mtls.PeerClient(n.files, name, n.log)
		}
		return made[name].Clone()
	}
}

// authorize refuses a node that gives another name than its certificate does.
func authorize(ctx context.Context, name string) error {
	info, ok := mtls.InfoOf(ctx)
	if !ok || info.Identity == (mtls.Identity{}) {
		return nil // plain text on loopback
	}
	if err := info.Recheck(); err != nil {
		return err
	}
	if info.Identity.Name != name {
		return fmt.Errorf("the certificate is that of %s, and the caller says that it is node %s", info.Identity, name)
	}
	return nil
}

// serveStore opens the store and serves until ctx ends or the store fails. When
// it returns, nothing uses the store any more; it is not closed.
func (n *node) serveStore(ctx context.Context, cfg raftstore.Config, begun time.Time) error {
	defer n.transport.Close()
	store, err := raftstore.Open(cfg)
	if err != nil {
		return err
	}
	n.store.Store(store)
	n.transport.Attach(store, peer.SnapshotsOf(store))
	shard := server.Shard(store, n.transport.Propose)
	api, err := server.New(server.Config{
		Store: shard, Machine: n.rules, Node: n.s.name, Version: obs.Version(),
		Identity: store.Identity(), Members: n.members, Health: store.Health, Replica: store,
		Credentials: mtls.Server(n.files, mtls.Listening{Proto: "client", Log: n.log}),
		Log:         n.log, Metrics: n.registry,
	})
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return api.Serve(n.listeners.client) })
	if n.listeners.unix != nil {
		g.Go(func() error { return api.Serve(n.listeners.unix) })
	}
	adapters, actx := errgroup.WithContext(gctx)
	if s := n.s.mupdate; s.Listen != "" {
		adapters.Go(func() error { return n.serveMUPDATE(actx, api) })
	}
	g.Go(adapters.Wait)
	g.Go(func() error {
		if err := server.BeginAs(gctx, store, n.rules, n.agreed); err != nil && gctx.Err() == nil && !errors.Is(err, raftstore.ErrStopped) {
			return err
		}
		return nil
	})
	g.Go(func() error { return watchdog(gctx, n.notify, store) })
	g.Go(func() error {
		n.files.Watch(gctx)
		return nil
	})
	g.Go(func() error {
		server.KeepAlarms(gctx, store, n.rules, shard.Propose, n.log)
		return nil
	})
	g.Go(func() error {
		n.keepAddresses(gctx, store)
		return nil
	})
	g.Go(func() error {
		var failed error
		select {
		case <-store.Done():
			failed = fmt.Errorf("the node stopped: %w", store.Err())
		case <-gctx.Done():
			_ = n.notify.tell("STOPPING=1\nSTATUS=closing")
			_ = adapters.Wait() // they are clients of this node: what they have begun ends first
			n.resign(store)
		}
		api.Close(context.Background())
		return failed
	})
	n.log.Info("serving", "addr", n.listeners.client.Addr().String(), "peer_addr", n.listeners.peer.Addr().String(),
		"http", n.listeners.http.Addr().String(), "version", obs.Version(), "dur", time.Since(begun))
	if err := n.notify.tell("READY=1\nSTATUS=serving"); err != nil {
		n.log.Warn("systemd was not told", "err", err)
	}
	return g.Wait()
}

// resign hands the leadership over, so that nobody has to find out that this
// node is gone.
func (n *node) resign(store *raftstore.Store) {
	ctx, cancel := context.WithTimeout(context.Background(), resignPatience)
	defer cancel()
	switch err := store.Resign(ctx); {
	case err == nil, errors.Is(err, raftstore.ErrNoHeir), errors.Is(err, raftstore.ErrStopped):
	default:
		n.log.Warn("the leadership was not handed over", "err", err)
	}
}

// listeners are the sockets of a node, bound before anything is opened, so that
// a taken port costs nothing; and the unix socket, which is made in the data
// directory once that is locked.
type listeners struct{ client, peer, http, debug, unix net.Listener }

func listen(s settings) (l listeners, err error) {
	for _, want := range []struct {
		flag, address string
		into          *net.Listener
	}{
		{"listen-client", s.listenClient, &l.client},
		{"listen-peer", s.listenPeer, &l.peer},
		{"listen-http", s.listenHTTP, &l.http},
		{"listen-debug", s.listenDebug, &l.debug},
	} {
		if want.address == "" {
			continue
		}
		if *want.into, err = net.Listen("tcp", want.address); err != nil {
			l.close()
			return l, fmt.Errorf("--%s: %w", want.flag, err)
		}
	}
	return l, nil
}

// free reports why nothing can listen at address. What is to listen there does so later:
// see serveMUPDATE.
func free(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}

func (l listeners) close() {
	for _, x := range []net.Listener{l.client, l.peer, l.http, l.debug, l.unix} {
		if x != nil {
			_ = x.Close() // again, if it was served; that error says nothing
		}
	}
}

// advertised is how others reach this node: as told, or else where it listens.
func (n *node) advertised() (peer.Info, error) {
	i := peer.Info{PeerAddress: n.s.advertisePeer, ClientAddress: n.s.advertiseClient, Site: n.s.site}
	for _, f := range n.s.founders {
		if f.Name == n.s.name && i.PeerAddress == "" {
			i.PeerAddress = f.Address
		}
	}
	for _, a := range []struct {
		address *string
		l       net.Listener
		flag    string
	}{{&i.PeerAddress, n.listeners.peer, "peer"}, {&i.ClientAddress, n.listeners.client, "client"}} {
		if *a.address != "" {
			continue
		}
		*a.address = a.l.Addr().String()
		if at, err := netip.ParseAddrPort(*a.address); err == nil && at.Addr().IsUnspecified() {
			return i, fmt.Errorf("%w: --listen-%s %s is every address of this machine: say with --advertise-%s which one the others can reach", daemon.ErrUsage, a.flag, *a.address, a.flag)
		}
	}
	return i, nil
}
