package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/raftstore"
)

// raftCluster is three nodes with their stores in this process, and what passes
// between them.
type raftCluster struct {
	servers map[string]*Server
	stores  map[string]*raftstore.Store

	mu   sync.Mutex
	byID map[uint64]*raftstore.Store
	cut  uint64 // its messages are lost

	forwarded   atomic.Int64
	loseAnswers atomic.Bool // of what is forwarded
}

// forward is what a transport does.
func (c *raftCluster) forward(ctx context.Context, leader uint64, command []byte) ([]byte, uint64, error) {
	c.mu.Lock()
	s := c.byID[leader]
	c.mu.Unlock()
	c.forwarded.Add(1)
	result, err := s.Propose(ctx, command)
	switch {
	case err != nil:
		return nil, 0, err
	case c.loseAnswers.Load():
		return nil, 0, raftstore.ErrUnknown
	}
	return result, s.Status().Committed, nil
}

func (c *raftCluster) Send(messages []*raftpb.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range messages {
		if s := c.byID[m.GetTo()]; s != nil && m.GetTo() != c.cut && m.GetFrom() != c.cut {
			s.Step(m)
		}
	}
}

// isolate loses the messages of a node; of none with 0.
func (c *raftCluster) isolate(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = id
}

// raftReplica is a store's, without what these tests do not ask for.
type raftReplica struct {
	fakeReplica
	store *raftstore.Store
}

func (r *raftReplica) ChangeMembers(ctx context.Context, changes ...raftstore.Change) error {
	return r.store.ChangeMembers(ctx, changes...)
}

func (r *raftReplica) Transfer(ctx context.Context, node uint64) error {
	return r.store.Transfer(ctx, node)
}

// members is what a node with a transport would tell: of the others, what they
// announce.
func (c *raftCluster) members(s *raftstore.Store) Members {
	st := s.Status()
	m := Members{Self: st.Identity.Node, Leader: st.Leader, Applied: st.Applied, Commit: st.Committed, Term: st.Term}
	for _, n := range st.Members {
		node := Node{Name: n.Name, ID: n.ID, ClientAddress: n.Name, Voter: slices.Contains(st.Voters, n.ID), Heard: -1}
		for _, p := range st.Progress {
			if p.Node == n.ID {
				node.Match, node.State, node.Active = p.Match, p.State, p.Active
			}
		}
		c.mu.Lock()
		if other := c.byID[n.ID]; other != nil && n.ID != c.cut {
			node.Heard, node.Applied = 0, other.Status().Applied
		}
		c.mu.Unlock()
		m.Nodes = append(m.Nodes, node)
	}
	return m
}

func newRaftCluster(t *testing.T) (*raftCluster, *client.Client) {
	t.Helper()
	c := &raftCluster{servers: make(map[string]*Server), stores: make(map[string]*raftstore.Store), byID: make(map[uint64]*raftstore.Store)}
	names := []string{"n1", "n2", "n3"}
	var initial []raftstore.Member
	for _, name := range names {
		initial = append(initial, raftstore.Member{Name: name})
	}
	for _, name := range names {
		rules := machine.New()
		store, err := raftstore.Open(raftstore.Config{Dir: t.TempDir(), Name: name, Initial: initial, Machine: Applied(rules), Network: c, MmapSize: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(Config{Store: Shard(store, c.forward), Machine: rules, Node: name, Version: "test", Members: func() Members { return c.members(store) }, Replica: &raftReplica{store: store}})
		if err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		c.byID[store.Status().Identity.Node] = store
		c.mu.Unlock()
		c.servers[name], c.stores[name] = s, store
		begun := make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			defer close(begun)
			_ = Begin(ctx, store, rules) // ends with the store, at the latest
		}()
		t.Cleanup(func() {
			cancel()
			s.Close(context.Background())
			if err := store.Close(); err != nil {
				t.Errorf("close %s: %v", name, err)
			}
			<-begun
		})
	}
	cl, err := client.Dial(names, client.WithTimeout(time.Minute), client.WithDialer(func(ctx context.Context, name string) (net.Conn, error) {
		return c.servers[name].DialMemory(ctx, name)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return c, cl
}

// leader waits until one of the nodes leads.
func (c *raftCluster) leader(t *testing.T) (name string, id uint64) {
	t.Helper()
	for range 1500 {
		for name, s := range c.stores {
			if st := s.Status(); st.Leading {
				return name, st.Identity.Node
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("nobody leads")
	return "", 0
}

// The membership of a real Raft group, changed under load, from any node.
func TestMembersOfRaft(t *testing.T) {
	c, cl := newRaftCluster(t)
	ctx := t.Context()
	c.leader(t)

	// A line of writes that goes on through all that follows.
	stop, written := make(chan struct{}), make(chan error, 1)
	count := 0
	go func() {
		for ; ; count++ {
			select {
			case <-stop:
				written <- nil
				return
			default:
			}
			name := directory.MailboxName(fmt.Sprintf("user.u%d", count))
			if _, err := cl.Assert(ctx, client.Assert{Mailbox: name, Server: be1}); err != nil {
				written <- err
				return
			}
		}
	}()

	// Nobody is ever taken for one that does not answer, though Raft forgets every
	// 300 ms who did.
	for i := range 12 {
		from, _ := c.leader(t)
		to := client.NodeRef{}
		if i%2 == 0 {
			to.Name = map[string]string{"n1": "n2", "n2": "n3", "n3": "n1"}[from]
		}
		if m, err := cl.MoveLeader(ctx, to); err != nil || m.To == "" || to.Name != "" && m.To != to.Name {
			t.Fatalf("move %d from %s to %q: got %+v, %v", i, from, to.Name, m, err)
		}
		time.Sleep(37 * time.Millisecond)
	}

	// One is cut off: no other may go.
	leading, _ := c.leader(t)
	var others []string
	for name := range c.stores {
		if name != leading {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	away, stays := others[0], others[1]
	awayID := c.stores[away].Status().Identity.Node
	c.isolate(awayID)
	var err error
	for range 100 { // Raft hears of it within two election timeouts, if nobody is slow
		time.Sleep(50 * time.Millisecond)
		if !slices.ContainsFunc(c.stores[leading].Status().Progress, func(p raftstore.Progress) bool { return p.Node == awayID && p.Active }) {
			break
		}
	}
	for _, going := range []string{stays, leading} {
		_, err = cl.RemoveMember(ctx, client.NodeRef{Name: going})
		want := fmt.Sprintf("removing %s leaves 2 voters, of which 2 must answer; %s alone answers: start %s first, or remove %s instead", going, map[string]string{stays: leading, leading: stays}[going], away, away)
		if !errors.Is(err, client.ErrNoQuorum) || !strings.Contains(err.Error(), want) {
			t.Fatalf("remove %s while %s is away: got %v\nwant %s", going, away, err, want)
		}
	}
	if now, _ := c.leader(t); now != leading {
		t.Errorf("%s leads after a refusal, want %s", now, leading)
	}
	c.isolate(0)

	// Without its vote a node is a learner, and gets its vote back when it has the log.
	for range 100 {
		err = c.stores[leading].ChangeMembers(ctx, raftstore.Change{Member: raftstore.Member{ID: awayID, Learner: true}})
		if !errors.Is(err, raftstore.ErrOverloaded) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	var r client.MemberResult
	for range 1000 {
		if r, err = cl.PromoteMember(ctx, client.NodeRef{Name: away}); !errors.Is(err, client.ErrLagging) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil || r.Effect != client.Changed || !r.Member.Voter || len(r.Nodes) != 3 {
		t.Fatalf("promote %s: got %+v, %v", away, r, err)
	}

	// The leader goes: by handing over, and for good.
	leading, leaderID := c.leader(t)
	if r, err = cl.RemoveMember(ctx, client.NodeRef{Name: leading, ID: leaderID}); err != nil || r.Effect != client.Removed || len(r.Nodes) != 2 {
		t.Fatalf("remove %s, which leads: got %+v, %v", leading, r, err)
	}
	if len(r.Notes) == 0 || !strings.HasPrefix(r.Notes[0], "2 voters, and both must answer") {
		t.Errorf("notes: got %q", r.Notes)
	}
	if r, err = cl.RemoveMember(ctx, client.NodeRef{Name: leading, ID: leaderID}); err != nil || r.Effect != client.Unchanged {
		t.Errorf("remove it again: got %+v, %v", r, err)
	}
	close(stop)
	if err := <-written; err != nil {
		t.Errorf("a write failed: %v", err)
	}
	st, err := cl.Status(ctx, client.Linearizable())
	if err != nil || st.Counts.Mailboxes < uint64(count) || len(st.Nodes) != 2 || count == 0 {
		t.Errorf("after %d writes: %d mailboxes, nodes %+v, %v", count, st.Counts.Mailboxes, st.Nodes, err)
	}
}
