package raftstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// This file is about who leads: how soon a lost leader is replaced, and how the
// leadership is handed over.

// Progress is how far another member is, as the leader sees it.
type Progress struct {
	Node uint64
	// Match is how far its log certainly goes.
	Match uint64
	// State is Raft's word: probe, replicate or snapshot.
	State string
	// Active: it has answered within an election timeout.
	Active bool
}

// succession is a campaign that does not wait for the election timeout, because
// the leader is certainly gone.
type succession struct {
	at    time.Duration // of the next campaign; far: none
	until time.Duration // when Raft's own timeout has taken over
	term  uint64        // the lost leader's
}

const (
	// successionStep is the ticks between the first campaigns of two nodes that
	// lose their leader at the same moment: time for an election, so that they
	// do not split the votes. The jitter is up to one tick.
	successionStep = 3
	// successionAgain is the ticks after which a campaign is repeated: a node
	// that has not noticed yet keeps to its old leader and does not answer.
	successionAgain = 4
)

// takeLost forgets the leader if it was that node, whose process is gone, and
// campaigns soon. PreVote still guards: a node that hears its leader says no,
// and then nothing has changed.
func (c *core) takeLost(now time.Duration, node uint64) error {
	if c.leading || c.leader != node {
		return nil
	}
	c.log.Info("leader lost", "peer", node, "term", c.term)
	if err := c.rn.ForgetLeader(); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	others := slices.DeleteFunc(slices.Clone(c.conf.GetVoters()), func(id uint64) bool { return id == node })
	slices.Sort(others)
	rank := slices.Index(others, c.id)
	if rank < 0 {
		return nil // a learner
	}
	var random [2]byte
	if _, err := rand.Read(random[:]); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	jitter := c.cfg.Tick * time.Duration(binary.BigEndian.Uint16(random[:])) >> 16
	c.succession = succession{
		at:    now + time.Duration(rank*successionStep)*c.cfg.Tick + jitter,
		until: now + time.Duration(c.cfg.ElectionTicks)*c.cfg.Tick,
		term:  c.term,
	}
	return nil
}

// succeed campaigns if it is time, and no other has done so in between: who has
// given a vote in a new term must not disturb it.
func (c *core) succeed(now time.Duration) error {
	s := &c.succession
	if s.at == far {
		return nil
	}
	if c.leading || c.term != s.term || now >= s.until || c.rn.BasicStatus().Lead != raft.None {
		s.at = far
		return nil
	}
	if now < s.at {
		return nil
	}
	s.at = now + successionAgain*c.cfg.Tick
	if err := c.rn.Campaign(); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	return nil
}

// progress returns what the leader knows of the others, by id; nil on others.
func (c *core) progress() (all []Progress) {
	if !c.leading {
		return nil
	}
	now := c.clock.Now()
	if c.lead.heard == nil {
		c.lead.heard = make(map[uint64]time.Duration)
	}
	c.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if id == c.id {
			return
		}
		state := "probe"
		switch p.State {
		case tracker.StateReplicate:
			state = "replicate"
		case tracker.StateSnapshot:
			state = "snapshot"
		}
		// Raft forgets with every election timeout who has answered, to count anew:
		// for an instant nobody has. So who has in the one before counts too.
		if p.RecentActive {
			c.lead.heard[id] = now
		}
		at, heard := c.lead.heard[id]
		active := heard && now-at <= time.Duration(c.cfg.ElectionTicks)*c.cfg.Tick
		all = append(all, Progress{Node: id, Match: p.Match, State: state, Active: active})
	})
	slices.SortFunc(all, func(a, b Progress) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

// Heir returns the voter to hand the leadership to: the one that answers and
// has most of the log. 0: there is none.
func (s Status) Heir() (node uint64) {
	var match uint64
	for _, p := range s.Progress {
		if p.Active && p.State != "snapshot" && slices.Contains(s.Voters, p.Node) && (node == 0 || p.Match > match) {
			node, match = p.Node, p.Match
		}
	}
	return node
}

// Lost says that a node's process is certainly gone: its connection was reset
// and another was refused. If it led, the others need not wait until its
// heartbeats are missed.
func (n *Node) Lost(node uint64) { n.events.put(lost{node}) }

// Lost says that a node's process is certainly gone, see Node.Lost.
func (s *Store) Lost(node uint64) { s.node.Lost(node) }

// ErrNoHeir: there is no other voter that could lead now.
var ErrNoHeir = errors.New("raftstore: no other voter can take over")

// Resign hands the leadership, if this node has it, to the voter that has most
// of the log, and returns when that one leads. A new leader waits for an answer
// from one first. Errors: Transfer's, and ErrNoHeir.
func (s *Store) Resign(ctx context.Context) error {
	began, patience := s.cfg.Clock.Now(), time.Duration(s.cfg.ElectionTicks)*s.cfg.Tick
	for {
		st := s.Status()
		if !st.Leading {
			return nil
		}
		if heir := st.Heir(); heir != 0 {
			return s.Transfer(ctx, heir)
		}
		if len(st.Voters) < 2 || s.cfg.Clock.Now()-began > patience {
			return ErrNoHeir
		}
		select {
		case <-time.After(transferPoll):
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return s.stopped()
		}
	}
}

const (
	// transferPoll is how often Transfer looks whether it has come about.
	transferPoll = 2 * time.Millisecond
	// transferTries is how many election timeouts it has for that.
	transferTries = 6
)

// Transfer hands the leadership to a voter and returns when this node knows
// that it leads. What is proposed in between is refused with ErrNoLeader.
//
// Errors: NotLeaderError and ErrNoLeader if this node does not lead, so that it
// has nothing to hand over; the context's; and a text if node is no voter, or
// does not take over within two election timeouts.
func (s *Store) Transfer(ctx context.Context, node uint64) error {
	if s.stopping() {
		return s.stopped()
	}
	st := s.Status()
	switch {
	case st.Leader == node:
		return nil
	case !st.Leading && st.Leader != raft.None:
		return &NotLeaderError{Leader: st.Leader}
	case !st.Leading:
		return ErrNoLeader
	case !slices.Contains(st.Voters, node):
		return fmt.Errorf("raftstore: node %x is no voter: it cannot lead", node)
	}
	began, term := s.cfg.Clock.Now(), st.Term
	// Raft gives a transfer up after an election timeout: a busy node may need more.
	timeout := time.Duration(s.cfg.ElectionTicks) * s.cfg.Tick
	patience, again := transferTries*timeout, began+timeout
	s.node.Transfer(node)
	poll := time.NewTicker(transferPoll)
	defer poll.Stop()
	for {
		switch st := s.Status(); {
		case st.Leader == node:
			return nil
		case st.Term != term && st.Leader != raft.None:
			return fmt.Errorf("raftstore: node %x took over, not node %x", st.Leader, node)
		case s.cfg.Clock.Now()-began > patience:
			return fmt.Errorf("raftstore: node %x did not take over: it may be down, or its log too far behind", node)
		case st.Leading && s.cfg.Clock.Now() > again:
			again += timeout
			s.node.Transfer(node)
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return s.stopped()
		}
	}
}
