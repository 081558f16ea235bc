// Command rookeryd is one node of a Rookery directory: it keeps the state in its
// data directory, replicates it with its peers, and serves it over gRPC.
//
// Exit codes: 0 after SIGTERM or SIGINT, 1 when the node could not start or
// failed, 2 when it was called wrongly.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/internal/obs"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/server"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "rookeryd:", strings.TrimPrefix(err.Error(), errUsage.Error()+": "))
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "rookeryd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	s, err := parseSettings(args, out)
	if err != nil {
		return err
	}
	if s.version {
		fmt.Fprintln(out, "rookeryd", obs.Version())
		return nil
	}
	log, err := obs.NewLogger(errOut, strings.ToLower(s.logLevel.String()), s.logFormat)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	members, err := initialMembers(s)
	if err != nil {
		return err
	}
	return serve(ctx, s, members, log.With("node", s.name))
}

// initialMembers reads --initial-cluster.
func initialMembers(s settings) ([]raftstore.Member, error) {
	if s.initialCluster == "" {
		return []raftstore.Member{{Name: s.name, Context: []byte(s.listenPeer)}}, nil
	}
	var members []raftstore.Member
	self := false
	for part := range strings.SplitSeq(s.initialCluster, ",") {
		name, address, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" || address == "" {
			return nil, fmt.Errorf("%w: --initial-cluster: %q is no name=peer-address", errUsage, part)
		}
		self = self || name == s.name
		members = append(members, raftstore.Member{Name: name, Context: []byte(address)})
	}
	if !self {
		return nil, fmt.Errorf("%w: --initial-cluster does not name this node, %s", errUsage, s.name)
	}
	if len(members) > 1 {
		return nil, fmt.Errorf("%w: --initial-cluster names %d nodes; this release serves a cluster of one: name %s alone", errUsage, len(members), s.name)
	}
	return members, nil
}

// serve opens the shard, answers until ctx ends or the node fails, and closes
// in the order that loses nothing: no new calls, calls under way, state, log.
func serve(ctx context.Context, s settings, members []raftstore.Member, log *slog.Logger) error {
	begun := time.Now()
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

	registry := obs.NewRegistry()
	countCertificates(files, registry)
	rules := machine.New()
	store, err := raftstore.Open(raftstore.Config{
		Dir: s.data, Name: s.name, Initial: members, Token: s.clusterToken,
		Machine: server.Applied(rules), Log: log, Metrics: registry,
		MaxCommand: server.MaxCommand,
	})
	if err != nil {
		return err
	}
	api, err := server.New(server.Config{
		Store: server.Shard(store), Machine: rules, Node: s.name, Version: obs.Version(), Identity: store.Identity(),
		Replica:     store,
		Members:     func() server.Members { return membersOf(store, s.name, listeners.client.Addr().String()) },
		Credentials: mtls.Server(files, mtls.Listening{Proto: "client", Log: log}),
		Log:         log, Metrics: registry,
	})
	if err != nil {
		return errors.Join(err, store.Close())
	}
	socket, err := s.socket(log)
	if err != nil {
		api.Close(context.Background())
		return errors.Join(err, store.Close())
	}

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return api.Serve(listeners.client) })
	if socket != nil {
		g.Go(func() error { return api.Serve(socket) })
	}
	g.Go(func() error {
		return obs.Serve(gctx, listeners.http, web(readiness(store, rules), func() bool { return store.Status().Leading }, registry, log), log)
	})
	if listeners.debug != nil {
		g.Go(func() error { return obs.Serve(gctx, listeners.debug, obs.DebugHandler(), log) })
	}
	g.Go(func() error {
		if err := server.Begin(gctx, store, rules); err != nil && gctx.Err() == nil {
			return err
		}
		return nil
	})
	g.Go(func() error { return watchdog(gctx, notify, store) })
	g.Go(func() error {
		var failed error
		select {
		case <-store.Done():
			failed = fmt.Errorf("the node stopped: %w", store.Err())
		case <-gctx.Done():
		}
		_ = notify.tell("STOPPING=1\nSTATUS=closing")
		api.Close(context.Background())
		return failed
	})
	log.Info("serving", "addr", listeners.client.Addr().String(), "http", listeners.http.Addr().String(), "version", obs.Version(), "dur", time.Since(begun))
	if err := notify.tell("READY=1\nSTATUS=serving"); err != nil {
		log.Warn("systemd was not told", "err", err)
	}

	err = g.Wait()
	if closeErr := store.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		log.Info("closed")
	}
	return err
}

// listeners are the sockets of a node, bound before anything is opened, so that
// a taken port costs nothing.
type listeners struct{ client, http, debug net.Listener }

func listen(s settings) (l listeners, err error) {
	for _, want := range []struct {
		flag, address string
		into          *net.Listener
	}{
		{"listen-client", s.listenClient, &l.client},
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

func (l listeners) close() {
	for _, x := range []net.Listener{l.client, l.http, l.debug} {
		if x != nil {
			_ = x.Close() // again, if it was served; that error says nothing
		}
	}
}

// membersOf tells the API who the nodes are, and of this one where clients find it.
func membersOf(store *raftstore.Store, name, address string) server.Members {
	st := store.Status()
	m := server.Members{Leader: st.Leader, Applied: st.Applied, Commit: st.Committed, Term: st.Term}
	for _, n := range st.Members {
		node := server.Node{Name: n.Name, ID: n.ID, PeerAddress: string(n.Context), Voter: !n.Learner}
		if n.Name == name {
			node.ClientAddress = address
			node.Version, node.Applied, node.Verified = obs.Version(), st.Applied, store.Verified()
		}
		m.Nodes = append(m.Nodes, node)
	}
	return m
}

// readiness lists what a node needs to answer.
func readiness(store *raftstore.Store, rules *machine.Machine) []check {
	return []check{
		{"state", func() error {
			v, err := store.Read(context.Background(), raftstore.Local)
			if err != nil {
				return err
			}
			defer v.Release()
			begun, err := server.HasBegun(v, store, rules)
			if err == nil && !begun {
				err = errors.New("this life of the cluster has not begun: no leader was ever elected in it")
			}
			return err
		}},
		{"freshness", func() error {
			v, err := store.Read(context.Background(), raftstore.Local)
			if err != nil {
				return err
			}
			defer v.Release()
			age, known := v.Age()
			switch {
			case !known:
				return errors.New("no leader has been heard since the start")
			case age > staleAfter:
				return fmt.Errorf("the state is %s old", age.Round(time.Millisecond))
			}
			return nil
		}},
	}
}

// watchdog tells systemd that the node goes round: each sign of life follows a
// read of the state, not a timer alone.
func watchdog(ctx context.Context, n *notifier, store *raftstore.Store) error {
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
		if v, err := store.Read(ctx, raftstore.Local); err == nil {
			v.Release()
			st := store.Status()
			role := "follower"
			if st.Leading {
				role = "leader"
			}
			_ = n.tell(fmt.Sprintf("WATCHDOG=1\nSTATUS=%s term %d applied %d", role, st.Term, st.Applied))
		}
	}
}
