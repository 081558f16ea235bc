package raftstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// Recover makes a new cluster of the one node that is left of another: a cluster
// of the next incarnation with this node, under a new id, as its only voter. It
// keeps all that the node has: its state, and every entry of its log, also those
// of which it cannot know whether they were committed, for what was acknowledged
// may be among them. Entries that changed the membership of the old cluster do
// nothing any more. What only the lost nodes had is lost.
//
// The node must be stopped. Its directory of before stays beside the new one, which
// takes its place in one step.
//
// Errors: ErrLocked (it runs), ErrIdentity, ErrCorrupt.
func Recover(cfg Config) (old, recovered Identity, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return old, recovered, err
	}
	dir := cfg.shardDir()
	if !exists(dir) && !exists(dir+nextSuffix) {
		// None must be made: the lock's file would make the directory above look used.
		return old, recovered, fmt.Errorf("raftstore: recover: there is no %s", dir)
	}
	f, err := openFiles(cfg)
	if err != nil {
		return old, recovered, err
	}
	old = f.state.meta.Identity
	// The lock is held until the new directory stands in the old one's place.
	defer func() { err = errors.Join(err, f.close()) }()
	meta, err := recoveredMeta(f.state.meta)
	if err != nil {
		return old, recovered, fmt.Errorf("raftstore: recover: %w", err)
	}
	if err := f.state.verify(cfg.Log, nil); err != nil {
		return old, recovered, err
	}
	next := dir + nextSuffix
	if err := os.RemoveAll(next); err != nil {
		return old, recovered, fmt.Errorf("raftstore: recover: %w", err)
	}
	if err := recoverInto(next, f, meta, cfg); err != nil {
		return old, recovered, errors.Join(fmt.Errorf("raftstore: recover: %w", err), os.RemoveAll(next))
	}
	// A crash between the two renames leaves the new directory under its first name,
	// where the next start finds it.
	kept := fmt.Sprintf("%s.incarnation-%d", dir, old.Incarnation)
	if err := errors.Join(os.Rename(dir, kept), os.Rename(next, dir), snap.SyncDir(cfg.Dir)); err != nil {
		return old, recovered, fmt.Errorf("raftstore: recover: %w", err)
	}
	return old, meta.Identity, nil
}

// nextSuffix ends the name of a whole directory that is to take another's place.
const nextSuffix = ".next"

// finishRecover puts a recovered directory into its place if a crash kept Recover
// from it.
func finishRecover(cfg Config) error {
	dir := cfg.shardDir()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return nil // there is one; what Open makes of it is told there
	}
	if err := os.Rename(dir+nextSuffix, dir); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("raftstore: %w", err)
	}
	return snap.SyncDir(cfg.Dir)
}

// recoveredMeta is what the recovered state is to say of itself.
func recoveredMeta(was Meta) (Meta, error) {
	var random [24]byte
	if _, err := rand.Read(random[:]); err != nil {
		return Meta{}, err
	}
	m := was
	m.Identity.Cluster = ClusterID(random[:16])
	m.Identity.Incarnation++
	m.Identity.Node = max(1, min(binary.BigEndian.Uint64(random[16:]), math.MaxUint64-2))
	m.Conf = &raftpb.ConfState{Voters: []uint64{m.Identity.Node}}
	m.Members = []Member{{ID: m.Identity.Node, Name: was.Name, Context: ownContext(was)}}
	return m, nil
}

// recoverInto builds the directory: a copy of the state that says meta of itself, and
// the log after its mark, all of it committed. It is durable but for its name.
func recoverInto(dir string, f *files, meta Meta, cfg Config) error {
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	path := filepath.Join(tmp, stateName)
	if err := copyImage(f.state, path); err != nil {
		return err
	}
	s, err := openStateFile(path, cfg.Machine.Buckets(), 0)
	if err != nil {
		return err
	}
	if err := errors.Join(s.Write(meta, nil), s.Close()); err != nil {
		return err
	}
	mark := wal.Mark{Position: meta.Mark, Conf: meta.Conf}
	if err := wal.Create(tmp, meta.Identity.marshal(), mark); err != nil {
		return err
	}
	if err := copyLog(tmp, mark, f.replay, meta); err != nil {
		return err
	}
	if err := snap.SyncDir(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	return snap.SyncDir(cfg.Dir)
}

func copyImage(s *stateFile, path string) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = s.Image(func(_ Meta, write func(io.Writer) error) error { return write(out) })
	return errors.Join(err, out.Sync(), out.Close())
}

// copyLog writes the entries after the mark into the new log.
func copyLog(dir string, mark wal.Mark, r *wal.Replay, meta Meta) error {
	l, _, err := wal.Open(dir, mark)
	if err != nil {
		return err
	}
	entries := make([]*raftpb.Entry, len(r.Entries))
	last := mark.Position
	for i, e := range r.Entries {
		entries[i] = e
		if e.GetType() != raftpb.EntryNormal {
			entries[i] = &raftpb.Entry{Term: new(e.GetTerm()), Index: new(e.GetIndex())}
		}
		last = wal.Position{Term: e.GetTerm(), Index: e.GetIndex()}
	}
	hard := &raftpb.HardState{Term: new(max(r.Hard.GetTerm(), last.Term)), Vote: new(uint64(0)), Commit: new(last.Index)}
	return errors.Join(l.Append(hard, entries), l.Sync(), l.Flushed(meta.Applied.Index), l.Close())
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
