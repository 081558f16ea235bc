package server

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
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
	Self   uint64 // this node's id; 0: the one that has this node's name
	Leader uint64 // 0: none is known
	// Waiting are nodes that ask to join and are no members, by name.
	Waiting []Node
	// Raft's numbers on this node.
	Applied, Commit, Term uint64
}

// Node is a member of the Raft group. What a node says of itself is zero until it
// was heard; of the node that answers it is always there.
type Node struct {
	Name          string
	ID            uint64
	ClientAddress string // empty if it is not known
	PeerAddress   string
	Site          string // where it stands; empty if it was not told
	Voter         bool
	// Context is what the membership keeps of it when it joins: of a waiting node.
	// It is opaque here.
	Context []byte

	// Heard is how long ago it last said the following; negative: never.
	Heard   time.Duration
	Version string
	// The cluster versions that its release supports; 0: it was not heard.
	OldestVersion, NewestVersion uint32
	Applied                      uint64
	// Goal is what was committed when it spoke the time before: whoever keeps up
	// had that by the time it said Applied. 0: it has not spoken twice.
	Goal      uint64
	FileBytes int64 // of the state file
	UsedBytes int64 // of it
	FreeBytes int64 // of the disk that it is on
	// Verified: it has read its state file whole since its start.
	Verified   bool
	Compacting bool
	// Quarantined: its state differs from the others', and it serves nothing.
	Quarantined bool

	// As the leader sees it; zero where the answering node does not lead.
	Match  uint64 // how far its log certainly goes
	State  string // Raft's word for how it is sent the log: probe, replicate or snapshot
	Active bool   // it has answered the leader within an election timeout
}

// Replica is what operators do to this node's replica of the shard. Its errors are
// raftstore's.
type Replica interface {
	// ChangeMembers changes who takes part; it returns when that is applied here.
	ChangeMembers(ctx context.Context, changes ...raftstore.Change) error
	// Transfer hands the leadership to a voter and waits until it leads.
	Transfer(ctx context.Context, node uint64) error
	// Snapshot writes a snapshot of at least all that is applied now to w.
	Snapshot(ctx context.Context, w io.Writer) (snap.Header, error)
	// Compact rewrites the state file without its holes while the node serves, and
	// returns its size before and after.
	Compact(ctx context.Context, progress func(done, total int64)) (before, after int64, err error)
}

// leader returns the leading node, or nil.
func (m *Members) leader() *Node { return m.member(m.Leader) }

// member returns the member with that id, or nil.
func (m *Members) member(id uint64) *Node {
	for i := range m.Nodes {
		if id != 0 && m.Nodes[i].ID == id {
			return &m.Nodes[i]
		}
	}
	return nil
}

// stillWaiting returns who waits to join and is no member: who was added a moment
// ago has not been told yet, and asks on.
func (m *Members) stillWaiting() []Node {
	return slices.DeleteFunc(slices.Clone(m.Waiting), func(n Node) bool { return m.member(n.ID) != nil })
}

// leading tells whether the node that says this leads.
func (m *Members) leading() bool { return m.Leader != 0 && m.Leader == m.Self }
