package raftstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// Suffixes of directories beside the shard's while Recover exchanges them. The
// old one stays, under the last of these, for who finds that he chose the wrong
// survivor.
const (
	recoveredSuffix = ".recovered" // complete, to become the shard's
	beforeSuffix    = ".before-incarnation-"
)

// Recover makes the data directory of a stopped node that of a cluster of one:
// for a cluster that has lost its majority for good. It is a new cluster, of the
// next incarnation, with another node id: what the other nodes say is not for it
// any more, nor can they follow it. Its cluster id is new too, so that two
// survivors that were recovered by mistake, which then have the same incarnation
// and other facts, are never taken for one cluster.
//
// Every entry in this node's log counts, also those that it does not know to be
// committed: an entry that was acknowledged may have been committed by this
// node's own copy without its having heard so, and to drop it would lose a
// fact. The price is that an entry may take effect whose outcome was unknown to
// whoever proposed it, which he must expect anyhow. Membership changes among
// them have no effect. They are applied when the node is opened.
//
// The old directory is kept beside the new one: Recover needs room for a second
// state file. A crash leaves the old directory in its place or the new one, or
// neither and both beside it, which Open and Recover put right.
//
// Errors: ErrLocked, ErrCorrupt, ErrIdentity, ErrReseed, ErrAlone when the node
// is its cluster's only voter already.
func Recover(cfg Config) (before, after Identity, err error) {
	cfg, lock, err := offline(cfg)
	if err != nil {
		return Identity{}, Identity{}, err
	}
	defer lock.Close()
	before, after, err = recoverShard(cfg)
	if err != nil {
		return before, after, fmt.Errorf("raftstore: recover %s: %w", cfg.shardDir(), err)
	}
	cfg.Log.Info("made a cluster of this node alone", "dir", cfg.shardDir(), "before", before, "after", after)
	return before, after, nil
}

func recoverShard(cfg Config) (before, after Identity, err error) {
	dir := cfg.shardDir()
	if err := finishRecovery(cfg); err != nil {
		return before, after, err
	}
	if _, err := os.Stat(dir); err != nil {
		return before, after, err
	}
	if err := checkReseed(dir); err != nil {
		return before, after, err
	}
	meta, replay, err := provenShard(cfg)
	if err != nil {
		return before, after, err
	}
	before = meta.Identity
	if voters := meta.Conf.GetVoters(); len(meta.Conf.GetVotersOutgoing()) == 0 && slices.Equal(voters, []uint64{before.Node}) {
		return before, after, ErrAlone
	}
	if after, err = newIdentity(cfg.Shard, before.Incarnation+1); err != nil {
		return before, after, err
	}
	alone := meta.alone(cfg, after)
	alone.Mark = alone.Applied

	built := dir + recoveredSuffix
	if err := os.RemoveAll(built); err != nil {
		return before, after, err
	}
	tail := replay.Entries[alone.Applied.Index-meta.Mark.Index:]
	if err := buildShard(cfg, built+".tmp", alone, func(path string) error {
		return copyState(cfg, filepath.Join(dir, stateName), path, alone)
	}, func(log *wal.Log) error { return keepEntries(log, replay.Hard, tail) }); err != nil {
		return before, after, errors.Join(err, os.RemoveAll(built+".tmp"))
	}
	cfg.stepped("built")
	if err := errors.Join(os.Rename(built+".tmp", built), snap.SyncDir(cfg.Dir)); err != nil {
		return before, after, err
	}
	cfg.stepped("complete")
	if err := os.Rename(dir, fmt.Sprint(dir, beforeSuffix, after.Incarnation)); err != nil {
		return before, after, err
	}
	cfg.stepped("old one aside")
	return before, after, finishRecovery(cfg)
}

// finishRecovery puts a directory that is complete in its place, if the one
// before it was moved away already.
func finishRecovery(cfg Config) error {
	dir := cfg.shardDir()
	built := dir + recoveredSuffix
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(built); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := errors.Join(os.Rename(built, dir), snap.SyncDir(cfg.Dir)); err != nil {
		return err
	}
	cfg.stepped("in place")
	return nil
}

// provenShard opens a shard as Open does, proves its state, and closes it.
func provenShard(cfg Config) (meta Meta, replay *wal.Replay, err error) {
	f := &files{}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.open(cfg); err != nil {
		return meta, nil, err
	}
	if err := f.state.verifyState(cfg, nil); err != nil {
		return meta, nil, err
	}
	return f.state.Meta(), f.replay, nil
}

// copyState copies a state file and has the copy say meta of itself.
func copyState(cfg Config, from, to string, meta Meta) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	staged, err := stageFile(to, io.Reader(in), cfg.Machine.Buckets(), 0)
	if err != nil {
		return err
	}
	return errors.Join(staged.SetMeta(meta), staged.Close())
}

// keepEntries writes to a new log what the old one holds beyond the state.
// Membership changes become entries that say nothing.
func keepEntries(log LogStore, hard *raftpb.HardState, entries []*raftpb.Entry) error {
	kept := make([]*raftpb.Entry, len(entries))
	for i, e := range entries {
		kept[i] = &raftpb.Entry{Term: e.Term, Index: e.Index, Data: e.GetData()}
		if e.GetType() != raftpb.EntryNormal {
			kept[i].Data = nil
		}
	}
	// Nobody can ask the new node for a vote that the old one gave.
	h := &raftpb.HardState{Term: new(hard.GetTerm()), Vote: new(uint64(0)), Commit: new(hard.GetCommit())}
	if n := len(kept); n > 0 {
		h.Term = new(max(h.GetTerm(), kept[n-1].GetTerm()))
		h.Commit = new(kept[n-1].GetIndex()) // they all count
	}
	return errors.Join(log.Append(h, kept), log.Sync())
}
