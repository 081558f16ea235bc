package raftstore

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

// ClusterID names a cluster. It is random, or drawn from the initial list.
type ClusterID [16]byte

func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// Identity says whose a file is. It is in the metadata of every log segment,
// in the state file and in every snapshot; files whose identities differ are
// not used together.
type Identity struct {
	Cluster ClusterID
	// Incarnation counts restores from a backup, from 1. Indexes and revisions
	// of different incarnations must not be compared.
	Incarnation uint64
	Shard       uint32
	// Node is the Raft id of this node, never reused for another disk.
	Node uint64
}

func (id Identity) String() string {
	return fmt.Sprintf("cluster %s incarnation %d shard %d node %x", id.Cluster, id.Incarnation, id.Shard, id.Node)
}

const (
	identityVersion = 1
	identitySize    = 1 + 16 + 8 + 4 + 8
)

// marshal encodes the identity: version, cluster, incarnation, shard, node,
// numbers big-endian.
func (id Identity) marshal() []byte {
	b := append(make([]byte, 0, identitySize), identityVersion)
	b = append(b, id.Cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, id.Incarnation)
	b = binary.BigEndian.AppendUint32(b, id.Shard)
	return binary.BigEndian.AppendUint64(b, id.Node)
}

func unmarshalIdentity(b []byte) (Identity, error) {
	if len(b) != identitySize || b[0] != identityVersion {
		return Identity{}, fmt.Errorf("no identity of version %d: %x", identityVersion, b)
	}
	return Identity{
		Cluster:     ClusterID(b[1:17]),
		Incarnation: binary.BigEndian.Uint64(b[17:]),
		Shard:       binary.BigEndian.Uint32(b[25:]),
		Node:        binary.BigEndian.Uint64(b[29:]),
	}, nil
}

// Member is a node of the cluster.
type Member struct {
	ID      uint64 // 0 in an initial list: drawn from it
	Name    string
	Learner bool
	// Context is what the transport needs to reach the node, opaque here.
	Context []byte
}

// initialCluster returns the cluster id that the nodes of an initial list
// agree on without talking, and the list with every node's id, in order of
// name. A token makes the id independent of the list; a list of one without a
// token needs to agree with nobody and gets a random id, so that a node that
// was wiped is not taken for the one it was. Ids that the list has are kept,
// and without a token the cluster's id depends on them.
func initialCluster(token string, members []Member) (ClusterID, []Member, error) {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	h := sha256.New()
	hash := func(b []byte) {
		h.Write(binary.AppendUvarint(nil, uint64(len(b))))
		h.Write(b)
	}
	hash([]byte("rookery cluster"))
	hash([]byte(token))
	for i, m := range members {
		if m.Name == "" {
			return ClusterID{}, nil, errors.New("raftstore: a member of the initial cluster has no name")
		}
		if i > 0 && members[i-1].Name == m.Name {
			return ClusterID{}, nil, fmt.Errorf("raftstore: the initial cluster names %q twice", m.Name)
		}
		if token == "" {
			hash([]byte(m.Name))
			hash(m.Context)
			if m.ID != 0 {
				hash(binary.BigEndian.AppendUint64(nil, m.ID))
			}
		}
	}
	if len(members) == 0 {
		return ClusterID{}, nil, errors.New("raftstore: the initial cluster has no members")
	}
	if token == "" && len(members) == 1 {
		random := make([]byte, sha256.Size)
		if _, err := rand.Read(random); err != nil {
			return ClusterID{}, nil, fmt.Errorf("raftstore: draw a cluster id: %w", err)
		}
		hash(random)
	}
	cluster := ClusterID(h.Sum(nil))
	for i := range members {
		if members[i].ID == 0 {
			members[i].ID = nodeID(cluster, members[i].Name)
		}
	}
	return cluster, members, nil
}

// nodeID draws a node's id from its cluster and name.
func nodeID(cluster ClusterID, name string) uint64 {
	sum := sha256.Sum256(append(cluster[:], name...))
	id := binary.BigEndian.Uint64(sum[:])
	// Raft takes 0 for nobody and the two highest for its local threads.
	return max(1, min(id, maxNodeID))
}
