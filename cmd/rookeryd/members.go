package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/obs"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/peer"
	"github.com/rookery-mail/rookery/server"
)

// announcement is what this node tells the others of itself.
func (n *node) announcement() peer.Announcement {
	a := n.self()
	if store := n.store.Load(); store != nil {
		a.SumIndex, a.Sum = store.SumAfter(n.summed.Load())
		n.summed.Store(a.SumIndex)
	}
	return a
}

// self is what is known of this node itself.
func (n *node) self() peer.Announcement {
	a := peer.Announcement{Name: n.s.name, ClientAddress: n.info.ClientAddress, Site: n.info.Site, Version: obs.Version()}
	if store := n.store.Load(); store != nil {
		a.Applied, a.Verified = store.Status().Applied, store.Verified()
		a.FileBytes, a.UsedBytes = store.Size()
		a.FreeBytes = store.Health().FreeBytes
	}
	return a
}

// hear is told what another node says.
func (n *node) hear(from uint64, a peer.Announcement) {
	if store := n.store.Load(); store != nil {
		n.goals.heard(from, store.Status().Committed)
	}
	n.compare(from, a)
}

// goals keep what was committed when each node spoke: what it says is up to a second
// old, in which much may have been written that it could not count in.
type goals struct {
	mu    sync.Mutex
	nodes map[uint64]*goal
}

type goal struct{ before, last uint64 }

func (g *goals) heard(node, committed uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.nodes == nil {
		g.nodes = make(map[uint64]*goal)
	}
	of := g.nodes[node]
	if of == nil {
		of = new(goal)
		g.nodes[node] = of
	}
	of.before, of.last = of.last, committed
}

// of is what was committed when that node spoke the time before; 0 if it did not.
func (g *goals) of(node uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if of := g.nodes[node]; of != nil {
		return of.before
	}
	return 0
}

// compare holds this node's state against what another says of its own.
func (n *node) compare(from uint64, a peer.Announcement) {
	if store := n.store.Load(); store != nil && a.SumIndex > 0 {
		store.CompareSum(from, a.SumIndex, a.Sum)
	}
}

// members tells the API who the nodes are: who belongs to the cluster, as the
// state says, and what each said of itself last.
func (n *node) members() server.Members {
	store := n.store.Load()
	if store == nil {
		return server.Members{}
	}
	st := store.Status()
	heard := n.transport.Heard()
	m := server.Members{Self: st.Identity.Node, Leader: st.Leader, Applied: st.Applied, Commit: st.Committed, Term: st.Term}
	for _, x := range st.Members {
		info := peer.ParseInfo(x.Context)
		node := server.Node{
			Name: x.Name, ID: x.ID, Voter: !x.Learner,
			PeerAddress: info.PeerAddress, ClientAddress: info.ClientAddress, Site: info.Site,
			Heard: -1,
		}
		h, ok := heard[x.ID]
		if x.ID == st.Identity.Node {
			h, ok = peer.Heard{Announcement: n.self()}, true
		}
		if x.ID == st.Identity.Node {
			node.OldestVersion, node.NewestVersion = machine.OldestVersion, machine.NewestVersion
		} else if v, ok := n.transport.VersionsOf(x.ID); ok {
			node.OldestVersion, node.NewestVersion = v.Oldest, v.Newest
		}
		if ok {
			// Addresses are what the node says now; the membership has what it
			// said when it was added.
			node.ClientAddress, node.Site = h.ClientAddress, h.Site
			node.Heard, node.Version, node.Applied, node.Goal = h.Since, h.Version, h.Applied, n.goals.of(x.ID)
			node.FileBytes, node.UsedBytes, node.FreeBytes = h.FileBytes, h.UsedBytes, h.FreeBytes
			node.Verified, node.Compacting, node.Quarantined = h.Verified, h.Compacting, h.Quarantined
		}
		for _, p := range st.Progress {
			if p.Node == x.ID {
				// Raft forgets who answered once in an election timeout: too late for
				// who gives a vote to a node that was killed a moment ago.
				node.Match, node.State, node.Active = p.Match, p.State, p.Active && (x.ID == st.Identity.Node || n.transport.Connected(x.ID))
			}
		}
		m.Nodes = append(m.Nodes, node)
	}
	for _, w := range n.transport.Waiting() {
		m.Waiting = append(m.Waiting, server.Node{
			Name: w.Name, ID: w.Birth, PeerAddress: w.Info.PeerAddress, ClientAddress: w.Info.ClientAddress, Site: w.Info.Site,
			Context: w.Info.Context(), Heard: w.Since, Version: w.Version,
			OldestVersion: w.Versions.Oldest, NewestVersion: w.Versions.Newest,
		})
	}
	return m
}

// How often the leader looks for members that were moved, and how long it tries to
// note it.
const (
	movedEvery    = time.Second
	movedPatience = 10 * time.Second
)

// keepAddresses has the leader put in the membership what a node, itself too, says
// of how it is reached, when that is something new: it was started with other
// addresses, or its directory was restored elsewhere.
func (n *node) keepAddresses(ctx context.Context, store *raftstore.Store) {
	tick := time.NewTicker(movedEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !store.Status().Leading {
			continue
		}
		for _, m := range n.transport.Moved() {
			trying, cancel := context.WithTimeout(ctx, movedPatience)
			err := store.ChangeMembers(trying, raftstore.Change{Member: m, Describe: true})
			cancel()
			address := peer.ParseInfo(m.Context).PeerAddress
			switch {
			case err == nil:
				n.log.Info("a member is reached elsewhere now", "peer", m.Name, "addr", address)
			case ctx.Err() == nil && !errors.Is(err, raftstore.ErrStopped):
				n.log.Info("a member's addresses could not be noted yet", "peer", m.Name, "addr", address, "err", err)
			}
		}
	}
}
