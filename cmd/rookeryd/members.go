package main

import (
	"github.com/rookery-mail/rookery/internal/obs"
	"github.com/rookery-mail/rookery/raftstore/peer"
	"github.com/rookery-mail/rookery/server"
)

// announcement is what this node tells the others of itself.
func (n *node) announcement() peer.Announcement {
	a := peer.Announcement{Name: n.s.name, ClientAddress: n.info.ClientAddress, Site: n.info.Site, Version: obs.Version()}
	if store := n.store.Load(); store != nil {
		a.Applied, a.Verified = store.Status().Applied, store.Verified()
		a.FileBytes, a.UsedBytes = store.Size()
	}
	return a
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
	m := server.Members{Leader: st.Leader, Applied: st.Applied, Commit: st.Committed, Term: st.Term}
	for _, x := range st.Members {
		info := peer.ParseInfo(x.Context)
		node := server.Node{
			Name: x.Name, ID: x.ID, Voter: !x.Learner,
			PeerAddress: info.PeerAddress, ClientAddress: info.ClientAddress, Site: info.Site,
			Heard: -1,
		}
		h, ok := heard[x.ID]
		if x.ID == st.Identity.Node {
			h, ok = peer.Heard{Announcement: n.announcement()}, true
		}
		if ok {
			// Addresses are what the node says now; the membership has what it
			// said when it was added.
			node.ClientAddress, node.Site = h.ClientAddress, h.Site
			node.Heard, node.Version, node.Applied = h.Since, h.Version, h.Applied
			node.FileBytes, node.UsedBytes, node.FreeBytes = h.FileBytes, h.UsedBytes, h.FreeBytes
			node.Verified, node.Compacting, node.Quarantined = h.Verified, h.Compacting, h.Quarantined
		}
		for _, p := range st.Progress {
			if p.Node == x.ID {
				node.Match, node.Active = p.Match, p.Active
			}
		}
		m.Nodes = append(m.Nodes, node)
	}
	for _, w := range n.transport.Waiting() {
		m.Waiting = append(m.Waiting, server.Node{
			Name: w.Name, ID: w.Birth, PeerAddress: w.Info.PeerAddress, ClientAddress: w.Info.ClientAddress, Site: w.Info.Site,
			Heard: w.Since, Version: w.Version,
		})
	}
	return m
}
