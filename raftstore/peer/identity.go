package peer

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	peerv1 "github.com/rookery-mail/rookery/proto/peer/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// Info is how a node is reached, and where it stands.
type Info struct {
	PeerAddress   string // host:port, for nodes
	ClientAddress string // host:port, for clients; empty if it is not known
	Site          string
}

// Context encodes the info as the membership keeps it: a raftstore.Member's
// Context.
func (i Info) Context() []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(infoTo(i))
	if err != nil {
		// Three strings of flags that are checked to be UTF-8 always encode.
		return []byte(i.PeerAddress)
	}
	return b
}

// infoTag is the first octet of an encoded NodeInfo with a peer address. An
// address by itself, as earlier releases kept it, cannot begin with it.
const infoTag = 0x0a

// ParseInfo decodes a member's context. Of one that is none it returns nothing.
func ParseInfo(context []byte) Info {
	if len(context) > 0 && context[0] != infoTag {
		return Info{PeerAddress: string(context)}
	}
	var m peerv1.NodeInfo
	if err := proto.Unmarshal(context, &m); err != nil {
		return Info{}
	}
	return infoFrom(&m)
}

func infoTo(i Info) *peerv1.NodeInfo {
	return &peerv1.NodeInfo{PeerAddress: i.PeerAddress, ClientAddress: i.ClientAddress, Site: i.Site}
}

func infoFrom(m *peerv1.NodeInfo) Info {
	return Info{PeerAddress: m.GetPeerAddress(), ClientAddress: m.GetClientAddress(), Site: m.GetSite()}
}

func identityTo(id raftstore.Identity) *peerv1.Identity {
	return &peerv1.Identity{Cluster: id.Cluster[:], Incarnation: id.Incarnation, Shard: id.Shard, Node: id.Node}
}

func identityFrom(m *peerv1.Identity) raftstore.Identity {
	id := raftstore.Identity{Incarnation: m.GetIncarnation(), Shard: m.GetShard(), Node: m.GetNode()}
	copy(id.Cluster[:], m.GetCluster())
	return id
}

// hello introduces this node to another.
func (t *Transport) hello(id raftstore.Identity, to uint64) *peerv1.Hello {
	return &peerv1.Hello{
		Identity: identityTo(id), Name: t.cfg.Name, Info: infoTo(t.cfg.Info), To: to, Process: t.process, Version: t.cfg.Version,
		Versions: versionsTo(t.cfg.Versions),
	}
}

// welcome judges a hello. The store is nil if it is refused.
func (t *Transport) welcome(h *peerv1.Hello) (*attached, *peerv1.Welcome) {
	w := &peerv1.Welcome{Name: t.cfg.Name, Process: t.process}
	a := t.store.Load()
	if a == nil {
		w.Refusal = peerv1.Refusal_REFUSAL_NOT_READY
		return nil, w
	}
	w.Identity = identityTo(a.id)
	theirs := identityFrom(h.GetIdentity())
	text := ""
	switch {
	case !together(theirs, a.id):
		w.Refusal = peerv1.Refusal_REFUSAL_IDENTITY
		text = mismatch(fmt.Sprintf("node %s at %s", h.GetName(), h.GetInfo().GetPeerAddress()), theirs, a.id)
	case h.GetTo() != a.id.Node:
		w.Refusal = peerv1.Refusal_REFUSAL_NODE
		text = fmt.Sprintf("node %s at %s looks for node %x here, this is %s with id %x", h.GetName(), h.GetInfo().GetPeerAddress(), h.GetTo(), t.cfg.Name, a.id.Node)
	}
	t.once(theirs.Node, text)
	if w.Refusal != peerv1.Refusal_REFUSAL_UNSPECIFIED {
		return nil, w
	}
	return a, w
}

// once logs why a node is refused, if that is not what was logged last.
func (t *Transport) once(node uint64, text string) {
	t.mu.Lock()
	said := t.refused[node]
	if text == "" {
		delete(t.refused, node)
	} else if len(t.refused) < 1000 {
		t.refused[node] = text
	}
	t.mu.Unlock()
	if text != "" && text != said {
		t.log.Warn("peer refused", "err", text)
	}
}

// together tells whether two nodes' states may meet.
func together(a, b raftstore.Identity) bool {
	return a.Cluster == b.Cluster && a.Incarnation == b.Incarnation && a.Shard == b.Shard
}

// mismatch says to an operator why two nodes do not talk.
func mismatch(who string, theirs, ours raftstore.Identity) string {
	what := func(id raftstore.Identity) string {
		s := fmt.Sprintf("cluster %s incarnation %d", id.Cluster, id.Incarnation)
		if theirs.Shard != ours.Shard {
			s += fmt.Sprintf(" shard %d", id.Shard)
		}
		return s
	}
	var advice string
	switch {
	case theirs.Incarnation < ours.Incarnation:
		advice = "that node has missed a restore or a recovery (then move its data directory away and let it join anew), or one of the two has the address or the data directory of another cluster"
	case theirs.Incarnation > ours.Incarnation:
		advice = "this node has missed a restore or a recovery (then move its data directory away and let it join anew), or one of the two has the address or the data directory of another cluster"
	case theirs.Cluster != ours.Cluster:
		advice = "one of the two has the address or the data directory of another cluster"
	default:
		advice = "the two do not serve the same shard"
	}
	return fmt.Sprintf("%s belongs to %s, this is %s: %s", who, what(theirs), what(ours), advice)
}
