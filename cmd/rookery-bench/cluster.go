package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// A cluster is some nodes of one system, each a process of its own on loopback,
// that were started here with empty directories.
type cluster interface {
	// start starts every node and waits until each serves.
	start(ctx context.Context) error
	members() []member
	// leader says which of the members leads and in which term of Raft.
	leader(ctx context.Context) (index int, term uint64, err error)
	// open returns the system as callers of those members see it.
	open(endpoints []string, connections int, w *work) (system, error)
	// fill states the whole population to the empty cluster, in name order.
	fill(ctx context.Context, w *work, progress func(done int)) (importResult, error)
	// tidy does what the system leaves to its operator after writes.
	tidy(ctx context.Context) error
	// kill ends every node at once.
	kill() error
}

// A member is one node of a cluster, as it is measured.
type member struct {
	name    string
	client  string // its address for clients
	debug   string // of its debug listener; "" if it has none
	dir     string // its data directory
	state   string // the file in dir that holds its state
	process *process
}

// The states of clusters, below the directory of a node.
const (
	rookeryState = "shard-1/state.db"
	etcdState    = "member/snap/db"
)

// rookeryCluster is some rookeryds, or one.
type rookeryCluster struct{ nodes []*node }

// newRookeryCluster chooses free ports for n nodes with their state below dir.
func newRookeryCluster(program, dir string, n int) (*rookeryCluster, error) {
	ports, err := freePorts(4 * n)
	if err != nil {
		return nil, err
	}
	c := new(rookeryCluster)
	var initial []string
	for i := range n {
		name := fmt.Sprintf("n%d", i+1)
		mine := ports[4*i : 4*i+4]
		c.nodes = append(c.nodes, nodeAt(program, filepath.Join(dir, name), name, mine))
		initial = append(initial, name+"="+mine[1])
	}
	if n > 1 {
		for _, node := range c.nodes {
			node.args = append(node.args, "--initial-cluster", strings.Join(initial, ","))
		}
	}
	return c, nil
}

func (c *rookeryCluster) start(ctx context.Context) error {
	for _, n := range c.nodes {
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return err
		}
		if err := n.launch(); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		if err := n.await(ctx, linearizable); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	return nil
}

func (c *rookeryCluster) members() []member {
	var out []member
	for _, n := range c.nodes {
		out = append(out, member{name: n.name, client: n.client, debug: n.debug, dir: n.dataDir(), state: rookeryState, process: n.process})
	}
	return out
}

func (c *rookeryCluster) leader(ctx context.Context) (int, uint64, error) {
	var last error
	for _, n := range c.nodes {
		st, err := statusOf(ctx, n.client)
		if err != nil {
			last = err
			continue
		}
		if i := slices.IndexFunc(c.nodes, func(n *node) bool { return n.name == st.GetLeader() }); i >= 0 {
			return i, st.GetTerm(), nil
		}
		last = fmt.Errorf("%s knows no leader", n.name)
	}
	return 0, 0, fmt.Errorf("no leader of rookery: %w", last)
}

func statusOf(ctx context.Context, endpoint string) (*apiv1.StatusResponse, error) {
	conn, err := grpc.NewClient("passthrough:///"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return apiv1.NewClusterServiceClient(conn).Status(ctx, &apiv1.StatusRequest{Consistency: &apiv1.Consistency{Mode: stale}})
}

func (c *rookeryCluster) open(endpoints []string, connections int, w *work) (system, error) {
	s, err := newStub(endpoints, connections, w)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (c *rookeryCluster) fill(ctx context.Context, w *work, progress func(done int)) (importResult, error) {
	at, _, err := c.leader(ctx)
	if err != nil {
		return importResult{}, err
	}
	// The library asks the first until it knows better.
	endpoints := []string{c.nodes[at].client}
	for i, n := range c.nodes {
		if i != at {
			endpoints = append(endpoints, n.client)
		}
	}
	return importAll(ctx, endpoints, w.pop, progress)
}

// tidy does nothing: the change log is cut as it grows.
func (c *rookeryCluster) tidy(context.Context) error { return nil }

func (c *rookeryCluster) kill() error {
	var errs []error
	for _, n := range c.nodes {
		if n.process != nil {
			errs = append(errs, n.kill())
		}
	}
	return errors.Join(errs...)
}

// freePorts returns n addresses of loopback that nobody listens on.
func freePorts(n int) ([]string, error) {
	ports := make([]string, n)
	for i := range ports {
		// All are held until the last is known, so that they differ.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports[i] = l.Addr().String()
	}
	return ports, nil
}

// endpointsOf returns whom callers connect to: the leader alone, as a client
// that looks for it does, or everybody.
func endpointsOf(c cluster, leader int, target string) []string {
	members := c.members()
	if target == targetLeader {
		return []string{members[leader].client}
	}
	var out []string
	for _, m := range members {
		out = append(out, m.client)
	}
	return out
}

// sizes returns how many octets a member's directory and its state file have.
func (m member) sizes() (dir, state int64, err error) {
	if dir, err = dirSize(m.dir); err != nil {
		return 0, 0, err
	}
	info, err := os.Stat(filepath.Join(m.dir, m.state))
	if err != nil {
		return dir, 0, err
	}
	return dir, info.Size(), nil
}

// startTogether starts clusters, and ends all if one does not start.
func startTogether(ctx context.Context, clusters ...cluster) error {
	errs := make([]error, len(clusters))
	var wg sync.WaitGroup
	for i, c := range clusters {
		wg.Go(func() { errs[i] = c.start(ctx) })
	}
	wg.Wait()
	err := errors.Join(errs...)
	if err != nil {
		for _, c := range clusters {
			err = errors.Join(err, c.kill())
		}
	}
	return err
}
