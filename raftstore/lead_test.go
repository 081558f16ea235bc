package raftstore

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// three are three nodes of which the first that is asked leads.
func three(t *testing.T) (b *bench, leader *Node) {
	t.Helper()
	b = newBench(t)
	for id := uint64(1); id <= 3; id++ {
		meta := testMeta(id, 1, 2, 3)
		b.add(b.memory(meta), b.disk(meta))
	}
	b.pass(3 * time.Second) // an election may need several tries
	return b, b.leads()
}

// leads returns the node that leads; there must be one.
func (b *bench) leads() *Node {
	b.t.Helper()
	for _, n := range b.nodes {
		if n.Status().Leading {
			return n
		}
	}
	b.t.Fatal("nobody leads")
	return nil
}

// TestLost: when the leader's process is known to be gone, another leads long
// before its heartbeats are missed.
func TestLost(t *testing.T) {
	b, leader := three(t)
	old := leader.Status()
	delete(b.nodes, old.Identity.Node)
	for _, n := range b.nodes {
		n.Lost(old.Identity.Node)
	}
	b.pass(successionStep*25*time.Millisecond + 30*time.Millisecond)
	if st := b.leads().Status(); st.Term != old.Term+1 {
		t.Errorf("the new leader's term is %d, want %d: one campaign, and nobody in its way", st.Term, old.Term+1)
	}
}

// TestLostOnOneSide: the other follower still believes in its leader at first,
// and is asked again.
func TestLostOnOneSide(t *testing.T) {
	b, leader := three(t)
	gone := leader.Status().Identity.Node
	delete(b.nodes, gone)
	ids := slices.Sorted(keysOf(b.nodes))
	b.nodes[ids[1]].Lost(gone)
	b.pass(40 * time.Millisecond)
	b.nodes[ids[0]].Lost(gone)
	b.pass(200 * time.Millisecond)
	b.leads()
}

// TestNotLost: a leader that lives keeps its place, whatever one node believes.
func TestNotLost(t *testing.T) {
	b, leader := three(t)
	old := leader.Status()
	for id, n := range b.nodes {
		if id != old.Identity.Node {
			n.Lost(old.Identity.Node)
			break
		}
	}
	leader.Lost(old.Identity.Node) // nonsense
	b.pass(time.Second)
	if st := leader.Status(); !st.Leading || st.Term != old.Term {
		t.Errorf("after a false alarm: leading %t in term %d, want the leader of term %d", st.Leading, st.Term, old.Term)
	}
}

// TestProgress: the leader says how far the others are, and who should follow it.
func TestProgress(t *testing.T) {
	b, leader := three(t)
	id := leader.Status().Identity.Node
	var others []uint64
	for other := range b.nodes {
		if other != id {
			others = append(others, other)
		}
	}
	slices.Sort(others)
	behind := b.nodes[others[0]]
	delete(b.nodes, others[0])
	o := propose1(leader, "put a 1")
	b.pass(100 * time.Millisecond)
	if o.err != nil || o.done != 1 {
		t.Fatalf("a write on two of three: %v", o.err)
	}
	st := leader.Status()
	if len(st.Progress) != 2 || st.Progress[0].Node != others[0] || st.Progress[1].Match != st.Applied || st.Progress[0].Match >= st.Applied {
		t.Errorf("progress %+v: want node %d behind %d, and node %d there", st.Progress, others[0], st.Applied, others[1])
	}
	if got := st.Heir(); got != others[1] {
		t.Errorf("heir: got node %d, want %d, which has the whole log", got, others[1])
	}
	for _, n := range b.nodes {
		if n != leader && n.Status().Progress != nil {
			t.Errorf("a follower tells of progress: %+v", n.Status().Progress)
		}
	}
	b.nodes[others[0]] = behind
	b.pass(500 * time.Millisecond)
	if st := leader.Status(); st.Progress[0].Match != st.Applied {
		t.Errorf("node %d has not caught up: %+v, applied %d", others[0], st.Progress, st.Applied)
	}
}

// TestProposalDuringTransfer: it is promised not to be done.
func TestProposalDuringTransfer(t *testing.T) {
	b, leader := three(t)
	heir := leader.Status().Heir()
	delete(b.nodes, heir)
	leader.Transfer(heir)
	o := propose1(leader, "put a 1")
	b.pass(50 * time.Millisecond)
	o.want(t, "", ErrNoLeader)
}

// TestResignAlone: a lone voter has nobody to hand over to.
func TestResignAlone(t *testing.T) {
	s := open(t, testConfig(t))
	if err := s.Resign(t.Context()); !errors.Is(err, ErrNoHeir) {
		t.Errorf("Resign: got %v, want ErrNoHeir", err)
	}
	if err := s.Transfer(t.Context(), 7); err == nil || !s.Status().Leading {
		t.Errorf("Transfer to nobody: got %v", err)
	}
}
