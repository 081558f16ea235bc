package sim

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// network is what is between the nodes, and between clients and nodes. Each
// direction of each pair is a link of its own.
type network struct {
	w     *World
	links [][]link // by sender and receiver
	cut   []bool   // no client reaches this node
}

// link is one direction between two nodes.
type link struct {
	cut     bool
	last    time.Duration // when what was sent last arrives
	delay   time.Duration // added to what is usual
	loss    float64
	double  float64
	reorder float64 // of messages that are overtaken
	rate    int64   // octets a second of snapshots; 0: any
}

func newNetwork(w *World, nodes int) network {
	n := network{w: w, cut: make([]bool, nodes), links: make([][]link, nodes)}
	for i := range n.links {
		n.links[i] = make([]link, nodes)
	}
	return n
}

// calm takes away all that is bad.
func (n *network) calm() {
	for i := range n.links {
		for j := range n.links[i] {
			n.links[i][j] = link{last: n.links[i][j].last}
		}
		n.cut[i] = false
	}
}

// each calls do for every link of a node, in both directions.
func (n *network) each(slot int, do func(*link)) {
	for i := range n.links {
		if i != slot {
			do(&n.links[slot][i])
			do(&n.links[i][slot])
		}
	}
}

// carry takes something from one node to another, after which arrive is called,
// once, twice or never. It tells whether it was sent at all, for all that the
// sender knows.
func (n *network) carry(from, to int, arrive func()) bool {
	k, w := &n.links[from][to], n.w
	if k.cut {
		w.counts.Lost++
		return false
	}
	copies := 1
	if k.double > 0 && w.rnd.Float64() < k.double {
		copies = 2
		w.counts.Doubled++
	}
	for range copies {
		if k.loss > 0 && w.rnd.Float64() < k.loss {
			w.counts.Lost++
			continue
		}
		at := w.now + w.plan.latency/2 + time.Duration(w.rnd.Int64N(int64(w.plan.latency)))
		if k.delay > 0 {
			at += time.Duration(w.rnd.Int64N(int64(k.delay) + 1))
		}
		if k.reorder > 0 && w.rnd.Float64() < k.reorder {
			at += time.Duration(w.rnd.Int64N(int64(20 * w.plan.latency)))
		} else {
			// One stream after the other, as TCP has it.
			at = max(at, k.last)
			k.last = at
		}
		w.at(at, func() {
			if k.cut {
				w.counts.Lost++
				return
			}
			arrive()
		})
	}
	return true
}

// Send implements raftstore.Network for one process.
func (l *life) Send(messages []*raftpb.Message) {
	for _, m := range messages {
		l.w.ledger.said(l.n, m)
		to := l.w.byID[m.GetTo()]
		switch {
		case to == nil:
			l.raft.Unreachable(m.GetTo())
		case m.GetType() == raftpb.MsgSnap:
			l.sendSnapshot(to, m)
		default:
			l.w.counts.Messages++
			cluster := l.cluster
			if !l.w.net.carry(l.n.slot, to.slot, func() { to.receive(cluster, m) }) && l.w.rnd.IntN(4) == 0 {
				l.raft.Unreachable(m.GetTo())
			}
		}
	}
}

// receive takes a message off the network. A process that is stopped finds it
// when it goes on.
func (n *node) receive(of clusterOf, m *raftpb.Message) {
	l := n.life
	if l == nil || l.cluster != of || n.id != m.GetTo() {
		n.w.counts.Lost++
		return
	}
	l.unpaused(func() {
		n.w.mix(uint64(m.GetType())<<32 ^ m.GetIndex() ^ m.GetTerm()<<16 ^ m.GetFrom())
		l.raft.Receive(m)
		l.poke()
	})
}
