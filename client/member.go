package client

import (
	"context"
	"fmt"
	"io"
	"time"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Node is a member of the Raft group, or asks to become one. What it says of
// itself is zero until it was heard.
type Node struct {
	Name          string
	ID            uint64 // of its disk: an emptied one has another
	ClientAddress string // empty if not known
	PeerAddress   string
	Voter         bool
	Leader        bool
	Learner       bool // gets the log and has no vote yet
	Site          string

	Heard   time.Duration // how long ago it said the following; AgeUnknown: never
	Version string
	// The cluster versions that its release supports; 0: not heard, or not said.
	OldestVersion, NewestVersion uint32
	Applied                      uint64
	FileBytes                    uint64 // of its state file
	UsedBytes                    uint64 // of that
	FreeBytes                    uint64 // of the disk
	// Verified: it has read its state file whole since its start.
	Verified    bool
	Compacting  bool
	Quarantined bool // its state differs from the others'; it serves nothing

	// As the leader sees it, if the leader answered.
	Match  uint64
	Active bool // it has answered the leader within an election timeout
	// Trails is by how many entries it trails the leader, or TrailsUnknown.
	Trails int64
}

// TrailsUnknown is a Node.Trails that nobody knows.
const TrailsUnknown = -1

// MemberResult is what a change of the membership came to.
type MemberResult struct {
	Answer
	Effect Effect // Added, Changed, Removed, Unchanged
	Member Node   // as it is now; a removed one as it was
	Nodes  []Node // all members, as they are now
	Notes  []string
}

// NodeRef says which node is meant. One of the two will do, unless several have
// the name.
type NodeRef struct {
	Name string
	ID   uint64
}

// AddMember makes a node that asks to join a learner: it gets the log and has no
// vote.
//
// The changes of the membership are the leader's, and are found there. Where one
// may have been done before, as after ErrUndecided, make it again with the node's
// id: then it says Unchanged.
//
// Errors: ErrNotWaiting; directory.ErrExists (a member has that name: replace it),
// ErrInvalid, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) AddMember(ctx context.Context, which NodeRef) (MemberResult, error) {
	return steer(ctx, s, func(ctx context.Context, n *node) (*apiv1.AddMemberResponse, error) {
		return n.cluster.AddMember(ctx, &apiv1.AddMemberRequest{Name: which.Name, Id: which.ID})
	})
}

// PromoteMember gives a learner its vote.
//
// Errors: ErrLagging (the *Error says by how much), ErrNoQuorum;
// directory.ErrNotFound, ErrInvalid, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) PromoteMember(ctx context.Context, which NodeRef) (MemberResult, error) {
	return steer(ctx, s, func(ctx context.Context, n *node) (*apiv1.PromoteMemberResponse, error) {
		return n.cluster.PromoteMember(ctx, &apiv1.PromoteMemberRequest{Name: which.Name, Id: which.ID})
	})
}

// RemoveMember takes a member out for good. If it leads, it hands the leadership
// over first.
//
// Errors: ErrNoQuorum, ErrLagging (nobody could lead after it);
// directory.ErrNotFound, ErrInvalid, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) RemoveMember(ctx context.Context, which NodeRef) (MemberResult, error) {
	return steer(ctx, s, func(ctx context.Context, n *node) (*apiv1.RemoveMemberResponse, error) {
		return n.cluster.RemoveMember(ctx, &apiv1.RemoveMemberRequest{Name: which.Name, Id: which.ID})
	})
}

// ReplaceMember puts another disk in a member's place.
type ReplaceMember struct {
	Name   string
	Old    uint64 // the id to go; 0: the only one that can be
	New    uint64 // the id that takes its place; likewise
	Finish bool   // the second step: the old one goes and the new one gets its vote
}

// ReplaceMember makes one of the two steps of a replacement. The first makes the
// new disk a learner; the second is refused with ErrLagging until that has the log.
//
// Errors: ErrNotWaiting, ErrLagging, ErrNoQuorum; directory.ErrNotFound, ErrExists
// (another replacement is under way), ErrInvalid, ErrRole; ErrUnavailable,
// ErrUndecided.
func (s *Session) ReplaceMember(ctx context.Context, r ReplaceMember) (MemberResult, error) {
	step := apiv1.ReplaceStep_REPLACE_STEP_START
	if r.Finish {
		step = apiv1.ReplaceStep_REPLACE_STEP_FINISH
	}
	return steer(ctx, s, func(ctx context.Context, n *node) (*apiv1.ReplaceMemberResponse, error) {
		return n.cluster.ReplaceMember(ctx, &apiv1.ReplaceMemberRequest{Name: r.Name, OldId: r.Old, NewId: r.New, Step: step})
	})
}

// steer makes a change of the membership, at the leader.
func steer[M interface {
	headed
	GetResult() *apiv1.MemberResult
}](ctx context.Context, s *Session, call func(context.Context, *node) (M, error)) (MemberResult, error) {
	m, a, err := lead(ctx, s, call)
	if err != nil {
		return MemberResult{}, err
	}
	r := m.GetResult()
	return MemberResult{Answer: a, Effect: Effect(r.GetEffect()), Member: nodeOf(r.GetMember()), Nodes: nodesOf(r.GetNodes()), Notes: r.GetNotes()}, nil
}

// lead makes a call at the leader. It is repeated like a write; that what was done
// is found done is the call's own affair.
func lead[M headed](ctx context.Context, s *Session, call func(context.Context, *node) (M, error)) (M, Answer, error) {
	ctx, cancel := s.c.deadline(ctx)
	defer cancel()
	var m M
	var a Answer
	err := s.c.try(ctx, writing, func(ctx context.Context, n *node) error {
		var err error
		if m, err = call(ctx, n); err != nil {
			return err
		}
		a, err = s.take(m.GetHeader())
		return err
	})
	return m, a, err
}

// LeaderMove is how a move of the leadership went.
type LeaderMove struct {
	Answer
	Effect   Effect // Changed, Unchanged
	From, To string // names
	Took     time.Duration
}

// MoveLeader hands the leadership to a voter and returns when it leads; with an
// empty ref to the one whose log goes farthest.
//
// Errors: ErrNotVoter, ErrLagging; directory.ErrNotFound, ErrInvalid, ErrRole;
// ErrUnavailable, ErrUndecided.
func (s *Session) MoveLeader(ctx context.Context, to NodeRef) (LeaderMove, error) {
	m, a, err := lead(ctx, s, func(ctx context.Context, n *node) (*apiv1.MoveLeaderResponse, error) {
		return n.cluster.MoveLeader(ctx, &apiv1.MoveLeaderRequest{Name: to.Name, Id: to.ID})
	})
	if err != nil {
		return LeaderMove{}, err
	}
	return LeaderMove{Answer: a, Effect: Effect(m.GetEffect()), From: m.GetFrom(), To: m.GetTo(), Took: millis(m.GetTookMs())}, nil
}

// Compaction is what a compaction came to.
type Compaction struct {
	Answer
	Before, After uint64 // octets of the state file
	Took          time.Duration
}

// Compact has the one node asked rewrite its state file without its holes, while it
// serves. It calls progress meanwhile, in octets; an error of that ends it. It is
// not repeated. Dial that node alone: which of several is asked is chance. node is
// its name, lest another answers; empty for any. With force also if it leads.
//
// Errors: ErrLeading; directory.ErrBusy (a node is compacting), ErrInvalid (another
// node answers), ErrRole; ErrUnavailable.
func (s *Session) Compact(ctx context.Context, node string, force bool, progress func(done, total uint64) error) (Compaction, error) {
	if s.c.isClosed() {
		return Compaction{}, ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n := s.c.nodes.first(false)
	fail := func(err error) (Compaction, error) {
		err = FromStatus(err)
		s.c.observe(n, true, err, false)
		return Compaction{}, err
	}
	stream, err := n.cluster.Compact(ctx, &apiv1.CompactRequest{Node: node, Force: force})
	if err != nil {
		return fail(err)
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return Compaction{}, fmt.Errorf("%w: the compaction broke off", ErrProtocol)
		}
		if err != nil {
			return fail(err)
		}
		switch {
		case m.GetSummary() != nil:
			sum := m.GetSummary()
			a, err := s.take(sum.GetHeader())
			return Compaction{Answer: a, Before: sum.GetBeforeBytes(), After: sum.GetAfterBytes(), Took: millis(sum.GetTookMs())}, err
		case m.GetProgress() != nil:
			if err := progress(m.GetProgress().GetDone(), m.GetProgress().GetTotal()); err != nil {
				return Compaction{}, err
			}
		}
	}
}
