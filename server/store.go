package server

import (
	"context"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
)

// Store is what the server needs of the replicated store of one shard. Its errors
// are raftstore's.
type Store interface {
	// Propose puts an encoded command into the log, waits until this node has
	// applied it and returns the machine's encoded result.
	Propose(ctx context.Context, command []byte) (result []byte, err error)
	// Local returns a view of what this node has applied.
	Local() (View, error)
	// Linearizable returns a view that shows everything acknowledged before the call.
	Linearizable(ctx context.Context) (View, error)
	// Verified reports whether the state was found whole since the start: until
	// then, absence is not known.
	Verified() bool
	// When waits for a view to which ready says yes.
	When(ctx context.Context, ready func(kv.Reader) bool) (View, error)
}

// View is the state at one point. It is to be released soon, after which nothing
// that was read from it may be used.
type View interface {
	kv.Reader
	// Age bounds how old the view is; false if nobody can say, because no leader has
	// been heard since the start.
	Age() (time.Duration, bool)
	Release()
}

// Members says who the nodes of the cluster are, as this node knows.
type Members struct {
	Nodes  []Node
	Leader uint64 // 0: none is known
	// Raft's numbers on this node.
	Applied, Commit, Term uint64
}

// Node is a member of the Raft group.
type Node struct {
	Name          string
	ID            uint64
	ClientAddress string // empty if it is not known
	PeerAddress   string
	Voter         bool
}

// leader returns the leading node, or nil.
func (m *Members) leader() *Node {
	for i := range m.Nodes {
		if m.Leader != 0 && m.Nodes[i].ID == m.Leader {
			return &m.Nodes[i]
		}
	}
	return nil
}
