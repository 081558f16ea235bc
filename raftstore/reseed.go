package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
)

// reseedName is a file in the shard's directory that says that the state in it
// is not to be used.
const reseedName = "reseed"

// checkReseed refuses a directory whose state is to be replaced first.
func checkReseed(dir string) error {
	path := filepath.Join(dir, reseedName)
	why, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("raftstore: %w", err)
	}
	return fmt.Errorf("%w: %s: %s", ErrReseed, path, why)
}

// askReseed has the next Open refuse the state of a shard until Reseed has
// replaced it. It is durable when it returns.
func askReseed(dir, why string) error {
	path := filepath.Join(dir, reseedName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	_, err = f.WriteString(why)
	if err := errors.Join(err, f.Sync(), f.Close(), snap.SyncDir(dir)); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	return nil
}

// Reseed replaces the state of a stopped node by that of a peer's snapshot. The
// node stays who it is: the log keeps term, vote and every entry beyond the
// snapshot, for this node has acknowledged them, and a majority may have been
// counted on that. So the state file may be damaged, and the log must not be.
//
// The snapshot must not be older than what this node had applied, as far as its
// files tell. The log need not reach back to an older one; then entries that
// the node acknowledged would be on it no more. And where it does, this node
// would show again a state that it was beyond already. The way on is a snapshot
// from a peer that is further.
//
// It is done like an installation, in place: the new state is proved beside the
// old one, the log is marked at it, the state is renamed over the old one, and
// the file reseed is removed last. A crash before that leaves a directory that
// Open refuses and Reseed accepts.
//
// Errors: ErrLocked, ErrIdentity, snap.ErrCorrupt, ErrCorrupt for a damaged log
// or a state in the snapshot that is none, ErrNotTaken for one that is too old.
func Reseed(cfg Config, path string) error {
	cfg, lock, err := offline(cfg)
	if err != nil {
		return err
	}
	defer lock.Close()
	return cfg.reseed(path)
}

// reseed is Reseed for who has the lock.
func (c Config) reseed(path string) error {
	if err := reseed(c, path); err != nil {
		return fmt.Errorf("raftstore: reseed from %s: %w", path, err)
	}
	c.Log.Info("state replaced by a peer's", "dir", c.shardDir(), "file", path)
	return nil
}

func reseed(cfg Config, path string) (err error) {
	dir := cfg.shardDir()
	// The snapshot may well be in the directory of those that arrive here.
	if err := errors.Join(removeFile(filepath.Join(dir, stagedName)), removeFile(filepath.Join(dir, compactName))); err != nil {
		return err
	}
	f, err := snap.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	at := wal.Position{Term: f.Header.Term, Index: f.Header.Index}
	log, replay, err := openLogFor(cfg, at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	id, err := unmarshalIdentity(replay.Metadata)
	if err != nil {
		return corrupt(dir, "the log's metadata: %w", err)
	}
	if id.Shard != cfg.Shard {
		return fmt.Errorf("%w: the log in %s is of %v", ErrIdentity, dir, id)
	}
	if err := checkHeader(f.Header, id); err != nil {
		return err
	}
	staged, err := stageFile(filepath.Join(dir, stagedName), f, cfg.Machine.Buckets(), 0)
	if err != nil {
		return err
	}
	err = prove(cfg, staged, f.Header, nil)
	meta := staged.Meta().adopt(id, cfg.Name)
	if err == nil {
		err = staged.SetMeta(meta)
	}
	if err := errors.Join(err, staged.Close()); err != nil {
		return errors.Join(err, removeFile(staged.path))
	}
	cfg.stepped("staged")
	mark := wal.Mark{Position: at, Conf: meta.Conf}
	if hasEntry(replay, at) {
		// What follows in the log follows the snapshot.
		err = log.Mark(mark)
	} else {
		// The log ends before it, or holds what was never committed.
		err = log.Install(mark)
	}
	if err != nil {
		return err
	}
	cfg.stepped("marked")
	if err := os.Rename(staged.path, filepath.Join(dir, stateName)); err != nil {
		return err
	}
	cfg.stepped("renamed")
	if err := snap.SyncDir(dir); err != nil {
		return err
	}
	if err := log.Flushed(at.Index); err != nil {
		return err
	}
	cfg.stepped("flushed")
	return errors.Join(removeFile(filepath.Join(dir, reseedName)), snap.SyncDir(dir))
}

// hasEntry tells whether a log that was opened before at holds that entry.
func hasEntry(r *wal.Replay, at wal.Position) bool {
	for _, e := range r.Entries {
		if e.GetIndex() == at.Index {
			return e.GetTerm() == at.Term
		}
	}
	return false
}

// openLogFor opens the log of a shard whose state is to be replaced by one at
// this position. What the state file says is taken if it can be read; without
// it the log's own records say where it can be opened.
func openLogFor(cfg Config, at wal.Position) (*wal.Log, *wal.Replay, error) {
	dir := cfg.shardDir()
	var marks []wal.Position
	old, err := openStateFile(filepath.Join(dir, stateName), cfg.Machine.Buckets(), 0)
	switch {
	case err == nil:
		m := old.Meta()
		if err := old.Close(); err != nil {
			return nil, nil, err
		}
		if m.Identity.Shard == cfg.Shard && m.Name != cfg.Name {
			return nil, nil, fmt.Errorf("%w: %s belongs to node %q, not to %q", ErrIdentity, dir, m.Name, cfg.Name)
		}
		if at.Index < m.Applied.Index {
			return nil, nil, fmt.Errorf("%w: it ends at index %d, this node was at %d", ErrNotTaken, at.Index, m.Applied.Index)
		}
		marks = []wal.Position{m.Mark}
	case errors.Is(err, ErrCorrupt):
		cfg.Log.Warn("the state that is to be replaced cannot be read", "err", err)
		if marks, err = wal.Marks(dir); err != nil {
			return nil, nil, fmt.Errorf("%w: %w; %s", ErrCorrupt, err, cure)
		}
	default:
		return nil, nil, err
	}
	// The latest first: those before it may be of segments that are deleted.
	for i := len(marks) - 1; i >= 0; i-- {
		if marks[i].Index > at.Index {
			continue
		}
		log, replay, err := wal.Open(dir, wal.Mark{Position: marks[i]})
		switch {
		case errors.Is(err, wal.ErrCorrupt):
			return nil, nil, fmt.Errorf("%w: %w; %s", ErrCorrupt, err, cure)
		case err != nil:
			return nil, nil, err
		case replay.Flushed > at.Index:
			err := fmt.Errorf("%w: it ends at index %d, this node's state was written up to %d", ErrNotTaken, at.Index, replay.Flushed)
			return nil, nil, errors.Join(err, log.Close())
		}
		return log, replay, nil
	}
	return nil, nil, fmt.Errorf("%w: it ends at index %d, before anything that the log holds", ErrNotTaken, at.Index)
}
