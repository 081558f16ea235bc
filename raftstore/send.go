package raftstore

import (
	"maps"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// sending is a snapshot on its way to a node. While there is one, the log after
// it is kept, and after that until the node has caught up so far that it lives
// on the log that is kept anyway: dropped earlier, the node would need another
// snapshot as soon as it had this one.
type sending struct {
	index uint64 // the log is kept after this entry
	sent  bool   // it has arrived
}

// report: a transfer has ended. It follows every MsgSnap.
type report struct {
	node uint64
	ok   bool
}

// keepTimes is how far over its bounds the log may grow for a snapshot that is
// on its way. A transfer that is slower is given up; the node gets a later one.
const keepTimes = 4

// sends notes that a message with a snapshot leaves this node. Raft may ask for a later
// one while one is on its way, for it has heard meanwhile that the node has come as far as
// the log goes back, and then the log did not. What is on its way stays what the log is
// kept for.
func (c *core) sends(m *raftpb.Message) {
	index := m.GetSnapshot().GetMetadata().GetIndex()
	if s := c.sending[m.GetTo()]; s != nil && !s.sent {
		c.log.Info("snapshot asked for while one is sent", "peer", m.GetTo(), "index", index, "sent", s.index)
		return
	}
	c.sending[m.GetTo()] = &sending{index: index}
	c.log.Info("snapshot is sent", "peer", m.GetTo(), "index", index)
}

func (c *core) takeReport(e report) {
	status := raft.SnapshotFailure
	if s := c.sending[e.node]; s != nil && e.ok {
		s.sent = true
	} else {
		delete(c.sending, e.node)
	}
	if e.ok {
		status = raft.SnapshotFinish
		c.metrics.sent.Inc()
	} else {
		c.log.Warn("a snapshot did not arrive", "peer", e.node)
	}
	c.rn.ReportSnapshot(e.node, status)
}

// keep returns up to which entry, limit at most, the log may be dropped.
func (c *core) keep(limit uint64) uint64 {
	pinned := c.pinned()
	if len(c.sending) == 0 && pinned == 0 {
		return limit
	}
	if len(c.entries.entries) > keepTimes*c.cfg.LogEntries || c.entries.bytes > keepTimes*c.cfg.LogBytes {
		for _, node := range slices.Sorted(maps.Keys(c.sending)) {
			c.log.Warn("a snapshot is too slow on its way, the log cannot be kept for it any longer", "peer", node, "index", c.sending[node].index)
			c.rn.ReportSnapshot(node, raft.SnapshotFailure)
			delete(c.sending, node)
			c.givenUp++
		}
		return limit
	}
	bound := c.entries.bound(limit, c.cfg.LogEntries, c.cfg.LogBytes)
	c.rn.WithProgress(func(node uint64, _ raft.ProgressType, p tracker.Progress) {
		s := c.sending[node]
		if s == nil {
			return
		}
		s.index = max(s.index, p.Match)
		if s.sent && p.Match >= bound {
			delete(c.sending, node)
		}
	})
	for node, s := range c.sending {
		if !inConf(c.conf, node) {
			delete(c.sending, node)
			continue
		}
		limit = min(limit, s.index)
	}
	if pinned != 0 {
		limit = min(limit, pinned)
	}
	return limit
}

// ReportSnapshot says whether a snapshot that a MsgSnap announced to a node has
// arrived and was accepted there. It must follow every MsgSnap.
func (n *Node) ReportSnapshot(node uint64, ok bool) { n.events.put(report{node, ok}) }

// pin keeps the log after an entry, within the bounds of a send; 0 ends that.
// It reports whether the log has all after it.
func (n *Node) pin(index uint64) bool {
	n.pinned.Store(index)
	return n.kept.Load() <= index
}
