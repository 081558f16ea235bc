package raftstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/rookery-mail/rookery/raftstore/snap"
	"go.etcd.io/raft/v3/raftpb"
)

// stoppable is a Writer that ends with its context, or with the store.
type stoppable struct {
	w    io.Writer
	ctx  context.Context
	stop <-chan struct{}
}

func (s *stoppable) Write(p []byte) (int, error) {
	select {
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	case <-s.stop:
		return 0, ErrClosed
	default:
		return s.w.Write(p)
	}
}

// Restore makes the shard's data directory, which must not exist, from the
// snapshot at path: a new cluster of the next incarnation with this node as
// its only voter. Its id is new: what the old cluster's nodes say is not for it.
// Open it afterwards. On an error no directory is left.
func Restore(cfg Config, path string, opts ...RestoreOption) (Identity, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Identity{}, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return Identity{}, fmt.Errorf("raftstore: restore: %w", err)
	}
	lock, err := lockFile(cfg.shardDir() + ".lock")
	if err != nil {
		return Identity{}, err
	}
	defer lock.Close()
	if _, err := os.Stat(cfg.shardDir()); !errors.Is(err, os.ErrNotExist) {
		return Identity{}, fmt.Errorf("raftstore: restore: %s is there already; move it away", cfg.shardDir())
	}
	f, err := snap.Open(path)
	if err != nil {
		return Identity{}, fmt.Errorf("raftstore: restore: %w", err)
	}
	defer f.Close()
	meta, err := restoredMeta(cfg, f.Header)
	for _, opt := range opts {
		opt(&meta.Identity)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("raftstore: restore %s: %w", path, err)
	}
	err = makeShard(cfg, meta, func(state string) error { return install(cfg, f, state, &meta) })
	if err != nil {
		return Identity{}, errors.Join(err, os.RemoveAll(cfg.shardDir()+".tmp"))
	}
	return meta.Identity, nil
}

// A RestoreOption changes what a restored cluster says of itself.
type RestoreOption func(*Identity)

// MinIncarnation makes the incarnation n at least: where the same snapshot, or an
// older one, was restored before, the new life must not be taken for that one.
func MinIncarnation(n uint64) RestoreOption {
	return func(id *Identity) { id.Incarnation = max(id.Incarnation, n) }
}

// restoredMeta is what the restored state is to say of itself.
func restoredMeta(cfg Config, h snap.Header) (Meta, error) {
	var random [24]byte
	if _, err := rand.Read(random[:]); err != nil {
		return Meta{}, err
	}
	id := Identity{
		Cluster:     ClusterID(random[:16]),
		Incarnation: h.Incarnation + 1,
		Shard:       cfg.Shard,
		Node:        max(1, min(binary.BigEndian.Uint64(random[16:]), math.MaxUint64-2)),
	}
	switch {
	case h.Shard != cfg.Shard:
		return Meta{}, fmt.Errorf("%w: it is of shard %d, not %d", ErrIdentity, h.Shard, cfg.Shard)
	case h.Kind != snap.Image:
		return Meta{}, fmt.Errorf("its payload is of kind %d, not a state file", h.Kind)
	}
	m := Meta{Identity: id, Name: cfg.Name, Conf: &raftpb.ConfState{Voters: []uint64{id.Node}}}
	m.Members = []Member{{ID: id.Node, Name: cfg.Name}}
	m.Applied.Term, m.Applied.Index = h.Term, h.Index
	m.Mark = m.Applied
	return m, nil
}

// install writes the snapshot's image to path, makes sure that it is the state
// that the header says, and has it say meta of itself from now on.
func install(cfg Config, f *snap.File, path string, meta *Meta) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("raftstore: restore: %w", err)
	}
	_, err = io.Copy(out, f)
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("raftstore: restore: %w", err)
	}
	s, err := openStateFile(path, cfg.Machine.Buckets(), 0)
	if err != nil {
		return err
	}
	if s.meta.Applied != meta.Applied {
		err = fmt.Errorf("%w: the snapshot says it is of %v, the state in it of %v", snap.ErrCorrupt, meta.Applied, s.meta.Applied)
	}
	if err == nil {
		err = s.verify(cfg.Log, nil)
	}
	if err == nil {
		meta.Members[0].Context = ownContext(s.meta)
		err = s.Write(*meta, nil)
	}
	return errors.Join(err, s.Close())
}

// ownContext returns how the node that saved the state was to be reached.
func ownContext(m Meta) []byte {
	for _, x := range m.Members {
		if x.ID == m.Identity.Node {
			return x.Context
		}
	}
	return nil
}
