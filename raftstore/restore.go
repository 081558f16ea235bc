package raftstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/rookery-mail/rookery/raftstore/snap"
	"go.etcd.io/raft/v3/raftpb"
)

// Restore makes the shard's data directory, which must not exist, from the
// snapshot at path: a new cluster with this node as its only voter, of the
// incarnation after the snapshot's, or least if that is higher. Its ids are
// new: what the old cluster's nodes say is not for it. The snapshot is proved
// before anything is made. Open the directory afterwards. On an error none is
// left.
//
// Errors: ErrLocked, ErrIdentity for a snapshot of another shard,
// snap.ErrCorrupt, ErrCorrupt for a state in it that is none.
func Restore(cfg Config, path string, least uint64) (Identity, error) {
	cfg, lock, err := offline(cfg)
	if err != nil {
		return Identity{}, err
	}
	defer lock.Close()
	if _, err := os.Stat(cfg.shardDir()); !errors.Is(err, os.ErrNotExist) {
		return Identity{}, fmt.Errorf("raftstore: restore: %s is there already; move it away", cfg.shardDir())
	}
	h, err := snap.Verify(path)
	if err != nil {
		return Identity{}, fmt.Errorf("raftstore: restore: %w", err)
	}
	switch {
	case h.Shard != cfg.Shard:
		return Identity{}, fmt.Errorf("raftstore: restore %s: %w: it is of shard %d, not %d", path, ErrIdentity, h.Shard, cfg.Shard)
	case h.Kind != snap.Image:
		return Identity{}, fmt.Errorf("raftstore: restore %s: its payload is of kind %d, not a state file", path, h.Kind)
	}
	id, err := newIdentity(cfg.Shard, max(h.Incarnation+1, least))
	if err != nil {
		return Identity{}, err
	}
	meta := Meta{Identity: id, Conf: &raftpb.ConfState{Voters: []uint64{id.Node}}}
	meta.Applied.Term, meta.Applied.Index = h.Term, h.Index
	meta.Mark = meta.Applied
	err = makeShard(cfg, meta, func(state string) error { return restoreState(cfg, path, state, id) })
	if err != nil {
		return Identity{}, fmt.Errorf("raftstore: restore %s: %w", path, errors.Join(err, os.RemoveAll(cfg.shardDir()+".tmp")))
	}
	return id, nil
}

// offline locks a shard for work on its files while no node runs on them.
func offline(cfg Config) (Config, *os.File, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return cfg, nil, err
	}
	if err := makeDir(cfg.Dir); err != nil {
		return cfg, nil, err
	}
	lock, err := lockFile(cfg.shardDir() + ".lock")
	return cfg, lock, err
}

// newIdentity draws a cluster and a node.
func newIdentity(shard uint32, incarnation uint64) (Identity, error) {
	var random [24]byte
	if _, err := rand.Read(random[:]); err != nil {
		return Identity{}, err
	}
	return Identity{
		Cluster:     ClusterID(random[:16]),
		Incarnation: incarnation,
		Shard:       shard,
		Node:        max(1, min(binary.BigEndian.Uint64(random[16:]), math.MaxUint64-2)),
	}, nil
}

// restoreState puts the state of a snapshot to a path, as that of a node which
// is alone.
func restoreState(cfg Config, path, state string, id Identity) error {
	f, err := snap.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	staged, err := stageFile(state, f, cfg.Machine.Buckets(), 0)
	if err != nil {
		return err
	}
	err = prove(cfg, staged, f.Header, nil)
	if err == nil {
		err = staged.SetMeta(staged.Meta().alone(cfg, id))
	}
	return errors.Join(err, staged.Close())
}

// alone returns the meta of the same state in a cluster of one: this node. How
// to reach it stands in the initial list, or else is how the node was reached
// whose state it was.
func (m Meta) alone(cfg Config, id Identity) Meta {
	self := Member{ID: id.Node, Name: cfg.Name}
	for _, x := range m.Members {
		if x.ID == m.Identity.Node {
			self.Context = x.Context
		}
	}
	for _, x := range cfg.Initial {
		if x.Name == cfg.Name && len(x.Context) > 0 {
			self.Context = x.Context
		}
	}
	m = m.adopt(id, cfg.Name)
	m.Conf = &raftpb.ConfState{Voters: []uint64{id.Node}}
	m.Members = []Member{self}
	return m
}
