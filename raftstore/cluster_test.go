package raftstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// cluster is some stores on real files in one process, and what a transport
// does between them: it carries messages, and where one announces a snapshot,
// a spooled file.
type cluster struct {
	t    testing.TB
	cfgs []Config
	ids  []uint64
	wg   sync.WaitGroup // snapshots on their way

	mu     sync.Mutex
	stores map[uint64]*Store // those that run
	cut    map[uint64]bool   // those that nobody reaches
	sent   int
	failed []error // what Install said, ErrNotNeeded left out
}

// clusterNode is the Network of one of them.
type clusterNode struct {
	c  *cluster
	id uint64
}

func (n clusterNode) Send(messages []*raftpb.Message) {
	for _, m := range messages {
		from, to := n.c.pair(n.id, m.GetTo())
		switch {
		case from == nil || to == nil:
			if from != nil && m.GetType() == raftpb.MsgSnap {
				from.ReportSnapshot(m.GetTo(), false)
			}
		case m.GetType() == raftpb.MsgSnap:
			n.c.wg.Go(func() { n.c.carry(from, to, m) })
		default:
			to.Step(proto.Clone(m).(*raftpb.Message))
		}
	}
}

func (c *cluster) pair(from, to uint64) (a, b *Store) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut[from] {
		return nil, nil
	}
	if c.cut[to] {
		return c.stores[from], nil
	}
	return c.stores[from], c.stores[to]
}

func (c *cluster) carry(from, to *Store, m *raftpb.Message) {
	err := func() error {
		sp, err := from.Spool(context.Background())
		if err != nil {
			return err
		}
		defer sp.Release()
		path := filepath.Join(to.IncomingDir(), "in.snap")
		if err := copyAll(sp.Path, path); err != nil {
			return err
		}
		c.mu.Lock()
		c.sent++
		c.mu.Unlock()
		return to.Install(path, m.GetFrom(), m.GetTerm())
	}()
	if errors.Is(err, ErrNotNeeded) {
		err = nil
	}
	if err != nil {
		c.mu.Lock()
		c.failed = append(c.failed, err)
		c.mu.Unlock()
	}
	from.ReportSnapshot(m.GetTo(), err == nil)
}

// newCluster starts so many nodes, on directories of their own.
func newCluster(t testing.TB, nodes int, change ...func(*Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, stores: map[uint64]*Store{}, cut: map[uint64]bool{}}
	var members []Member
	for i := range nodes {
		members = append(members, Member{Name: fmt.Sprintf("n%d", i+1)})
	}
	cluster, _, err := initialCluster("test", members)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for i := range nodes {
		cfg := testConfig(t)
		cfg.Dir = filepath.Join(dir, members[i].Name)
		cfg.Name, cfg.Initial, cfg.Token = members[i].Name, members, "test"
		cfg.FlushInterval = 30 * time.Millisecond
		for _, f := range change {
			f(&cfg)
		}
		id := nodeID(cluster, cfg.Name)
		cfg.Network = clusterNode{c, id}
		c.cfgs, c.ids = append(c.cfgs, cfg), append(c.ids, id)
	}
	for i := range nodes {
		c.start(i)
	}
	t.Cleanup(c.close)
	return c
}

func (c *cluster) start(i int) *Store {
	c.t.Helper()
	s, err := Open(c.cfgs[i])
	if err != nil {
		c.t.Fatalf("Open %s: %v", c.cfgs[i].Name, err)
	}
	c.mu.Lock()
	c.stores[c.ids[i]] = s
	c.mu.Unlock()
	return s
}

func (c *cluster) stop(i int) {
	c.t.Helper()
	c.mu.Lock()
	s := c.stores[c.ids[i]]
	delete(c.stores, c.ids[i])
	c.mu.Unlock()
	if s == nil {
		return
	}
	if err := s.Close(); err != nil {
		c.t.Errorf("Close %s: %v", c.cfgs[i].Name, err)
	}
}

func (c *cluster) close() {
	for i := range c.ids {
		c.stop(i)
	}
	c.wg.Wait()
}

func (c *cluster) isolate(i int, yes bool) {
	c.mu.Lock()
	c.cut[c.ids[i]] = yes
	c.mu.Unlock()
}

func (c *cluster) store(i int) *Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stores[c.ids[i]]
}

// leader waits for one and returns which it is.
func (c *cluster) leader() int {
	c.t.Helper()
	for range 1000 {
		for i := range c.ids {
			c.mu.Lock()
			s := c.stores[c.ids[i]]
			cut := c.cut[c.ids[i]]
			c.mu.Unlock()
			if s != nil && !cut && s.Status().Leading {
				return i
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatal("no leader in ten seconds")
	return 0
}

// others returns the leader, and the nodes that do not lead.
func (c *cluster) others() (leader int, rest []int) {
	c.t.Helper()
	leader = c.leader()
	for i := range c.ids {
		if i != leader {
			rest = append(rest, i)
		}
	}
	return leader, rest
}

// propose goes to whoever leads, until it is done.
func (c *cluster) propose(command string) {
	c.t.Helper()
	for range 100 {
		_, err := c.store(c.leader()).Propose(context.Background(), []byte(command))
		if err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	c.t.Fatalf("%q was not done", command)
}

// fill writes so many rows of some size, over and over the same hundred keys.
func (c *cluster) fill(n int) {
	c.t.Helper()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < n; i += 16 {
				c.propose(fmt.Sprintf("put k%d %0200d", i%100, i))
			}
		})
	}
	wg.Wait()
}

// caughtUp waits until a node has applied what the leader has.
func (c *cluster) caughtUp(i int) {
	c.t.Helper()
	for range 1000 {
		leader, s := c.store(c.leader()), c.store(i)
		if a := leader.Status().Applied; a > 1 && s.Status().Applied == a {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatalf("%s is at %d, the leader at %d after ten seconds; transfers failed with %v",
		c.cfgs[i].Name, c.store(i).Status().Applied, c.store(c.leader()).Status().Applied, c.failures())
}

func (c *cluster) failures() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.failed...)
}

// same compares the states of all nodes that run, at one index.
func (c *cluster) same() {
	c.t.Helper()
	for range 100 {
		var views []*View
		applied := map[uint64]bool{}
		for i := range c.ids {
			if s := c.store(i); s != nil {
				c.caughtUp(i)
				v, err := s.Read(context.Background(), Local)
				if err != nil {
					c.t.Fatal(err)
				}
				views = append(views, v)
				applied[v.Applied()] = true
			}
		}
		var dumps []string
		for _, v := range views {
			dumps = append(dumps, dumpView(v))
			v.Release()
		}
		if len(applied) > 1 {
			continue // one was elected in between, or the like
		}
		for i, d := range dumps {
			if d != dumps[0] {
				at := 0
				for at < min(len(d), len(dumps[0])) && d[at] == dumps[0][at] {
					at++
				}
				at = max(0, at-250)
				c.t.Errorf("the states of the first node and of another, %d, differ:\n%.600s\n%.600s", i, dumps[0][at:], d[at:])
			}
		}
		return
	}
	c.t.Error("the nodes are never at one index")
}

func dumpLocal(t testing.TB, s *Store) string {
	t.Helper()
	v, err := s.Read(context.Background(), Local)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Release()
	return dumpView(v)
}

// lag has a follower miss so much that only a snapshot helps.
func (c *cluster) lag(i, entries int) {
	c.t.Helper()
	c.isolate(i, true)
	before := c.store(c.leader()).Status().Applied
	for c.store(c.leader()).Status().Applied < before+uint64(entries) {
		c.fill(200)
	}
	for range 500 {
		if c.store(c.leader()).node.kept.Load() > c.store(i).Status().Committed {
			return
		}
		c.fill(20)
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatal("the log is kept for ever")
}

// left returns the names of files in a shard's directory.
func left(t testing.TB, cfg Config) (names []string) {
	t.Helper()
	err := filepath.WalkDir(mustDefaultTB(t, cfg).shardDir(), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Base(filepath.Dir(path)) != "wal" {
			names = append(names, d.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func mustDefaultTB(t testing.TB, c Config) Config {
	t.Helper()
	c, err := c.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return c
}
