package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// etcdQuota is how large etcd's state may grow, in octets: more than any run
// makes of it, since at its default of 2 GiB it stops taking writes.
const etcdQuota = 64 << 30

// etcdCluster is some nodes of etcd with its default settings: fsync on, its own
// batching, timing and snapshots. Only the quota is raised, and its log of
// revisions is compacted between the loads, never during one: what a site pays
// for that is left out of its figures.
type etcdCluster struct {
	nodes []*etcdNode
	index map[uint64]int // member id -> index of nodes
}

// An etcdNode is one process of etcd.
type etcdNode struct {
	program string
	name    string
	dir     string // holds the data directory and the log of the program
	client  string
	args    []string
	process *process
	conn    *grpc.ClientConn // for questions beside the load
}

// newEtcdCluster chooses free ports for n nodes with their state below dir.
func newEtcdCluster(program, dir string, n int) (*etcdCluster, error) {
	ports, err := freePorts(2 * n)
	if err != nil {
		return nil, err
	}
	c := &etcdCluster{index: map[uint64]int{}}
	var initial []string
	for i := range n {
		initial = append(initial, fmt.Sprintf("e%d=http://%s", i+1, ports[2*i+1]))
	}
	for i := range n {
		name, client, peer := fmt.Sprintf("e%d", i+1), ports[2*i], ports[2*i+1]
		at := filepath.Join(dir, name)
		node := &etcdNode{
			program: program, name: name, dir: at, client: client,
			args: []string{
				"--name", name, "--data-dir", filepath.Join(at, "data"),
				"--listen-client-urls", "http://" + client, "--advertise-client-urls", "http://" + client,
				"--listen-peer-urls", "http://" + peer, "--initial-advertise-peer-urls", "http://" + peer,
				"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new",
				"--quota-backend-bytes", strconv.Itoa(etcdQuota),
			},
		}
		if node.conn, err = grpc.NewClient("passthrough:///"+client, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, node)
	}
	return c, nil
}

func (n *etcdNode) launch() error {
	log, err := os.OpenFile(filepath.Join(n.dir, "etcd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the program has its own
	n.process = newProcess(n.program, n.args...)
	n.process.cmd.Stdout, n.process.cmd.Stderr = log, log
	return n.process.start()
}

func (c *etcdCluster) start(ctx context.Context) error {
	for _, n := range c.nodes {
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return err
		}
		if err := n.launch(); err != nil {
			return err
		}
	}
	for i, n := range c.nodes {
		st, err := n.await(ctx)
		if err != nil {
			return err
		}
		c.index[st.GetHeader().GetMemberId()] = i
	}
	return nil
}

// await waits until the node answers what only a cluster with a leader can.
func (n *etcdNode) await(ctx context.Context) (*etcdserverpb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		// A refused connection would be tried again by gRPC only after a pause.
		var d net.Dialer
		probe, err := d.DialContext(ctx, "tcp", n.client)
		if err == nil {
			probe.Close()
			if _, err = etcdserverpb.NewKVClient(n.conn).Range(ctx, &etcdserverpb.RangeRequest{Key: []byte("nothing")}); err == nil {
				return etcdserverpb.NewMaintenanceClient(n.conn).Status(ctx, &etcdserverpb.StatusRequest{})
			}
		}
		if n.process.exited() {
			return nil, fmt.Errorf("%s ended: %v; see %s", n.program, n.process.err, filepath.Join(n.dir, "etcd.log"))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: etcd does not answer: %w", ctx.Err(), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c *etcdCluster) members() []member {
	var out []member
	for _, n := range c.nodes {
		out = append(out, member{name: n.name, client: n.client, dir: filepath.Join(n.dir, "data"), state: etcdState, process: n.process})
	}
	return out
}

func (c *etcdCluster) leader(ctx context.Context) (int, uint64, error) {
	st, err := c.status(ctx)
	if err != nil {
		return 0, 0, err
	}
	i, ok := c.index[st.GetLeader()]
	if !ok {
		return 0, 0, fmt.Errorf("etcd has no leader: it names %x", st.GetLeader())
	}
	return i, st.GetRaftTerm(), nil
}

func (c *etcdCluster) status(ctx context.Context) (*etcdserverpb.StatusResponse, error) {
	return etcdserverpb.NewMaintenanceClient(c.nodes[0].conn).Status(ctx, &etcdserverpb.StatusRequest{})
}

func (c *etcdCluster) open(endpoints []string, connections int, w *work) (system, error) {
	return newEtcdStub(endpoints, connections, w)
}

// How etcd is filled: as the comparison's batches are written.
const (
	etcdFillBatch    = 100
	etcdFillInFlight = 16
)

// fill puts every fact in name order by transactions of 100, 16 in flight.
func (c *etcdCluster) fill(ctx context.Context, w *work, progress func(done int)) (importResult, error) {
	at, _, err := c.leader(ctx)
	if err != nil {
		return importResult{}, err
	}
	s, err := newEtcdStub([]string{c.nodes[at].client}, etcdFillInFlight, w)
	if err != nil {
		return importResult{}, err
	}
	defer s.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begin := time.Now()
	var next atomic.Int64
	var mu sync.Mutex // progress is for one at a time
	var wg sync.WaitGroup
	for i := range etcdFillInFlight {
		wg.Go(func() {
			kv, txn := etcdserverpb.NewKVClient(s.conns[i]), newPuts(etcdFillBatch)
			for ctx.Err() == nil {
				first := int(next.Add(etcdFillBatch)) - etcdFillBatch
				if first >= w.pop.mailboxes {
					return
				}
				last := min(first+etcdFillBatch, w.pop.mailboxes)
				for m := first; m < last; m++ {
					txn.set(m-first, w.pop.fact(m))
				}
				if err := txn.send(ctx, kv, last-first); err != nil {
					cancel(err)
					return
				}
				mu.Lock()
				progress(last)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return importResult{}, err
	}
	return importedBy("etcd", w.pop, time.Since(begin)), nil
}

// tidy compacts what the writes have left: every revision but the last of each
// key.
func (c *etcdCluster) tidy(ctx context.Context) error {
	kv := etcdserverpb.NewKVClient(c.nodes[0].conn)
	now, err := kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte("nothing")})
	if err != nil {
		return err
	}
	_, err = kv.Compact(ctx, &etcdserverpb.CompactionRequest{Revision: now.GetHeader().GetRevision(), Physical: true})
	return err
}

func (c *etcdCluster) kill() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.conn.Close())
		if n.process != nil {
			errs = append(errs, n.process.kill())
		}
	}
	return errors.Join(errs...)
}
