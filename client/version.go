package client

import (
	"context"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// ClusterVersion is which cluster version is in force, and how far it can be raised.
type ClusterVersion struct {
	Answer
	Version uint32 // in force
	Release string // which raised it; empty: the cluster began with it
	// The cluster versions that the node that answered supports.
	Oldest, Newest uint32
	TurnsOn        []string // what raising it to Newest turns on, a line each
	InTheWay       []string // why it cannot be raised to Newest now, a sentence each
	Nodes          []Node   // all members
}

// GetClusterVersion returns which cluster version is in force, and what raising it would
// turn on.
//
// Errors: ErrUnsupported (a release that knows version 1 alone); ErrUnavailable.
func (s *Session) GetClusterVersion(ctx context.Context, opts ...ReadOption) (ClusterVersion, error) {
	m, a, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.GetClusterVersionResponse, error) {
		return n.cluster.GetClusterVersion(ctx, &apiv1.GetClusterVersionRequest{Consistency: c})
	})
	if err != nil {
		return ClusterVersion{}, err
	}
	v := m.GetState()
	return ClusterVersion{
		Answer: a, Version: v.GetVersion(), Release: v.GetRelease(), Oldest: v.GetOldest(), Newest: v.GetNewest(),
		TurnsOn: v.GetTurnsOn(), InTheWay: v.GetInTheWay(), Nodes: nodesOf(v.GetNodes()),
	}, nil
}

// Finalized is what raising the cluster version came to.
type Finalized struct {
	Answer
	Effect   Effect // Changed, Unchanged
	From, To uint32
	TurnedOn []string
}

// FinalizeClusterVersion raises the cluster version, with 0 to the newest that the
// leader supports: what came with it is in force from then on, and no release that
// does not know it can take part any more. Made again it says Unchanged.
//
// Errors: directory.ErrVersion (a member is too old, or was not heard of late),
// ErrInvalid, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) FinalizeClusterVersion(ctx context.Context, version uint32) (Finalized, error) {
	m, a, err := lead(ctx, s, func(ctx context.Context, n *node) (*apiv1.FinalizeClusterVersionResponse, error) {
		return n.cluster.FinalizeClusterVersion(ctx, &apiv1.FinalizeClusterVersionRequest{Version: version})
	})
	if err != nil {
		return Finalized{}, err
	}
	return Finalized{Answer: a, Effect: Effect(m.GetEffect()), From: m.GetFrom(), To: m.GetTo(), TurnedOn: m.GetTurnedOn()}, nil
}
