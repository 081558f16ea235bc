package raftstore

import (
	"errors"
	"fmt"

	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// ErrHistory: what this node's disk holds and what its leader says cannot both be
// true. One of the two has been put back to an older copy of itself, and with it
// went what others had counted on. Nothing here can tell which is right, and this
// node's may be the last copy of what was acknowledged: so it stops, keeps what it
// has, and people decide.
var ErrHistory = errors.New("raftstore: two histories")

const historyCure = "a data directory was put back to an older copy, here or there. Save this one before anything else: it may hold what the others lack. Then let this node take part again as a new one: an empty directory, --join, and `rookeryctl member replace`"

// maxTermStep bounds how far one message may raise the term. Elections come one by
// one; a node takes no peer's word for the last term there could ever be.
const maxTermStep = 1 << 40

// receive steps a message from a peer. What only this node's own parts may say is
// dropped.
func (c *core) receive(m *raftpb.Message) error {
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat:
		if err := c.compare(m); err != nil {
			return err
		}
	case raftpb.MsgSnap:
		// It carries no state. The transport fetches that, and offers it here
		// with what stands inside it.
		c.log.Warn("a snapshot without a state was dropped", "peer", m.GetFrom())
		return nil
	case raftpb.MsgReadIndex:
		// A leader that is the only voter would answer at once, also while it
		// does not know yet what was committed before it restarted.
		if c.leading && !c.lead.confirmed {
			return nil
		}
	case raftpb.MsgAppResp, raftpb.MsgHeartbeatResp, raftpb.MsgReadIndexResp, raftpb.MsgTransferLeader, raftpb.MsgTimeoutNow,
		raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp:
	default:
		c.log.Debug("raft message dropped", "peer", m.GetFrom(), "type", m.GetType())
		return nil
	}
	if m.GetTerm() > c.term+maxTermStep {
		c.log.Warn("a message of a term that cannot be was dropped", "peer", m.GetFrom(), "term", m.GetTerm())
		return nil
	}
	c.stepRaft(m)
	return nil
}

// compare holds what a leader says of the log against this node's.
func (c *core) compare(m *raftpb.Message) error {
	if m.GetTerm() < c.term {
		return nil // it leads no more
	}
	if m.GetType() == raftpb.MsgHeartbeat {
		// A leader commits no further than it was told that this log goes.
		if last := max(c.entries.last(), c.restored); m.GetCommit() > last {
			return fmt.Errorf("%w: this log ends at entry %d, and node %x was told that it goes to %d at least; %s",
				ErrHistory, last, m.GetFrom(), m.GetCommit(), historyCure)
		}
		return nil
	}
	if err := c.contradicts(m.GetFrom(), wal.Position{Term: m.GetLogTerm(), Index: m.GetIndex()}); err != nil {
		return err
	}
	for _, e := range m.GetEntries() {
		if e.GetIndex() > c.applied.Index {
			break
		}
		if err := c.contradicts(m.GetFrom(), wal.Position{Term: e.GetTerm(), Index: e.GetIndex()}); err != nil {
			return err
		}
	}
	return nil
}

// contradicts tells whether a leader has another entry where this node's is
// applied. While a snapshot is installed the log here is still the one before it,
// whose end may never have been committed.
func (c *core) contradicts(from uint64, at wal.Position) error {
	if at.Index > c.applied.Index || c.taken != nil {
		return nil
	}
	if term, err := c.entries.Term(at.Index); err != nil || term == at.Term {
		return nil // not kept any more, or the same
	} else {
		return fmt.Errorf("%w: entry %d is applied here with term %d, and node %x has it with term %d; %s",
			ErrHistory, at.Index, term, from, at.Term, historyCure)
	}
}
