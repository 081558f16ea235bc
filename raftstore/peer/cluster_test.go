package peer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/raftstore"
)

// whole is a node with a transport and a store.
type whole struct {
	*end
	cfg   raftstore.Config
	store *raftstore.Store
}

// newCluster starts nodes n1, n2, ... on loopback, with real files.
func newCluster(t *testing.T, count int) (nodes []*whole) {
	t.Helper()
	var initial []raftstore.Member
	for i := range count {
		n := &whole{end: newEnd(t, Config{Name: fmt.Sprintf("n%d", i+1), Birth: uint64(i + 1)})}
		n.cfg = raftstore.Config{
			Dir: filepath.Join(t.TempDir(), n.Transport.cfg.Name), Name: n.Transport.cfg.Name,
			Machine: testMachine{}, Network: n.Transport, MmapSize: 1 << 30,
			// The machine that tests run on is busy.
			ElectionTicks: 40,
		}
		initial = append(initial, member(uint64(i+1), n.end))
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.cfg.Initial = initial
		n.open(t)
	}
	return nodes
}

func (n *whole) open(t *testing.T) {
	t.Helper()
	var err error
	if n.store, err = raftstore.Open(n.cfg); err != nil {
		t.Fatal(err)
	}
	store := n.store
	t.Cleanup(func() { store.Close() })
	n.Attach(n.store, nil)
}

// again is the node after a restart, at the same address.
func (n *whole) again(t *testing.T) *whole {
	t.Helper()
	m := &whole{end: newEndAt(t, Config{Name: n.Transport.cfg.Name}, relisten(t, n.address)), cfg: n.cfg}
	m.cfg.Network = m.Transport
	m.open(t)
	return m
}

func leaderOf(t *testing.T, nodes []*whole) (leader *whole, others []*whole) {
	t.Helper()
	until(t, "a leader that all know", func() bool {
		leader, others = nil, nil
		known := 0
		for _, n := range nodes {
			st := n.store.Status()
			if st.Leading {
				leader = n
			} else {
				others = append(others, n)
			}
			if leader != nil && st.Leader == leader.store.Status().Leader {
				known++
			}
		}
		return leader != nil && len(others) == len(nodes)-1 && !slices.ContainsFunc(nodes, func(n *whole) bool {
			return n.store.Status().Leader != leader.store.Identity().Node
		})
	})
	return leader, others
}

func (n *whole) number(t *testing.T) int {
	t.Helper()
	v, err := n.store.Read(t.Context(), raftstore.Local)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Release()
	return number(v)
}

// TestThreeStores: what is proposed anywhere is applied everywhere; the
// leadership is handed over; a leader that goes is replaced.
func TestThreeStores(t *testing.T) {
	nodes := newCluster(t, 3)
	leader, others := leaderOf(t, nodes)
	if _, err := leader.store.Propose(t.Context(), []byte("a")); err != nil {
		t.Fatal(err)
	}
	id := leader.store.Identity().Node
	_, err := others[0].store.Propose(t.Context(), []byte("b"))
	if e, ok := errors.AsType[*raftstore.NotLeaderError](err); !ok || e.Leader != id {
		t.Fatalf("a proposal to a follower: got %v, want node %x named", err, id)
	}
	// There may be no connection yet, and a forwarded command waits only briefly for one.
	var result []byte
	var index uint64
	until(t, "a connection to the leader", func() bool {
		result, index, err = others[0].Propose(t.Context(), id, []byte("b"))
		return !errors.Is(err, raftstore.ErrNoLeader)
	})
	if err != nil || string(result) != "b 2" {
		t.Fatalf("forwarded: got %q, %v", result, err)
	}
	until(t, "the forwarded command at the follower", func() bool { return others[0].number(t) == 2 })
	if st := others[0].store.Status(); st.Committed < index {
		t.Errorf("index %d was told, committed is %d", index, st.Committed)
	}
	for _, n := range others {
		v, err := n.store.Read(t.Context(), raftstore.Linearizable)
		if err != nil {
			t.Fatal(err)
		}
		if number(v) != 2 {
			t.Errorf("a linearizable read on %s: got %d, want 2", n.Transport.cfg.Name, number(v))
		}
		v.Release()
	}

	heir := others[1]
	if err := leader.store.Transfer(t.Context(), heir.store.Identity().Node); err != nil {
		t.Fatalf("Transfer: %v", err)
	}
	if l, _ := leaderOf(t, nodes); l != heir {
		t.Errorf("after the transfer %s leads, want %s", l.Transport.cfg.Name, heir.Transport.cfg.Name)
	}
	if err := heir.store.Resign(t.Context()); err != nil {
		t.Fatalf("Resign: %v", err)
	}
	leader, others = leaderOf(t, nodes)
	if leader == heir {
		t.Error("the node that resigned leads")
	}
	if err := others[0].store.Resign(t.Context()); err != nil {
		t.Errorf("Resign of a follower: %v", err)
	}

	began := time.Now()
	leader.Close()
	leader.store.Close()
	next, _ := leaderOf(t, others)
	t.Logf("another leader after %v", time.Since(began))
	if _, err := next.store.Propose(t.Context(), []byte("c")); err != nil {
		t.Errorf("a proposal to the next leader: %v", err)
	}
	back := leader.again(t)
	until(t, "the old leader to catch up", func() bool { return back.number(t) == 3 })
}

// TestMoved: a follower comes back at another address, where nobody looks for it.
// It finds the others, and what the membership says is mended.
func TestMoved(t *testing.T) {
	nodes := newCluster(t, 3)
	leader, _ := leaderOf(t, nodes)
	if _, err := leader.store.Propose(t.Context(), []byte("a")); err != nil {
		t.Fatal(err)
	}
	moved := slices.IndexFunc(nodes, func(n *whole) bool { return n != leader })
	n := nodes[moved]
	n.Close()
	n.store.Close()
	m := &whole{end: newEnd(t, Config{Name: n.Transport.cfg.Name}), cfg: n.cfg}
	m.cfg.Network = m.Transport
	m.open(t)
	nodes[moved] = m
	if _, err := leader.store.Propose(t.Context(), []byte("b")); err != nil {
		t.Fatal(err)
	}
	until(t, "the leader to know who was moved", func() bool { return len(leader.Moved()) == 1 })
	for _, m := range leader.Moved() {
		if err := leader.store.ChangeMembers(t.Context(), raftstore.Change{Member: m, Describe: true}); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the membership to be mended everywhere", func() bool {
		return !slices.ContainsFunc(nodes, func(n *whole) bool { return len(n.Moved()) > 0 })
	})
	// The third has learnt it from the membership alone.
	third := slices.IndexFunc(nodes, func(n *whole) bool { return n != leader && n != m })
	leader.Close()
	leader.store.Close()
	leader, _ = leaderOf(t, []*whole{m, nodes[third]})
	if _, err := leader.store.Propose(t.Context(), []byte("c")); err != nil {
		t.Fatal(err)
	}
	for _, m := range leader.store.Status().Members {
		if got, want := ParseInfo(m.Context).PeerAddress, nodes[m.ID-1].address; got != want {
			t.Errorf("%s is at %s, the membership says %s", m.Name, want, got)
		}
	}
}

// TestRemoved: a member that was removed while it was away is told so when it
// comes back; one that is there finds out by itself.
func TestRemoved(t *testing.T) {
	nodes := newCluster(t, 3)
	leader, others := leaderOf(t, nodes)
	away := others[0]
	away.Close()
	away.store.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := leader.store.ChangeMembers(ctx, raftstore.Change{Member: raftstore.Member{ID: away.store.Identity().Node}, Remove: true}); err != nil {
		t.Fatal(err)
	}
	back := away.again(t)
	select {
	case <-back.Failed():
	case <-time.After(20 * time.Second):
		t.Fatalf("a removed member was not told:\n%s", back.log)
	}
	if err := back.Err(); !strings.Contains(err.Error(), "was removed from the cluster") || back.log.count("level=ERROR") != 1 {
		t.Errorf("got %v, log\n%s", err, back.log)
	}
	there := others[1]
	if there.Err() != nil {
		t.Errorf("%s: %v", there.Transport.cfg.Name, there.Err())
	}
	if err := leader.store.ChangeMembers(ctx, raftstore.Change{Member: raftstore.Member{ID: there.store.Identity().Node}, Remove: true}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-there.Failed():
	case <-time.After(20 * time.Second):
		t.Fatalf("a removed member did not find out:\n%s", there.log)
	}
	if leader.Err() != nil {
		t.Errorf("the one left: %v", leader.Err())
	}
}
