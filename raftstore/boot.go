package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

const stateName = "state.db"

// shardDir returns the shard's directory.
func (c Config) shardDir() string { return filepath.Join(c.Dir, fmt.Sprintf("shard-%d", c.Shard)) }

// files is a shard's open files.
type files struct {
	lock   *os.File
	log    *wal.Log
	replay *wal.Replay
	state  *stateFile
	held   bool // a reader has the state file for ever: it cannot be closed
}

// openFiles locks the shard, makes it if it is new, and opens it, refusing
// whatever is not as it was left.
func openFiles(cfg Config) (f *files, err error) {
	f = &files{}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if cfg.SegmentBytes > 0 {
		wal.SetSegmentBytes(cfg.SegmentBytes)
	}
	if err := makeDir(cfg.Dir); err != nil {
		return f, err
	}
	dir := cfg.shardDir()
	if cfg.Directory != nil {
		f.lock = cfg.Directory.lock
	} else if f.lock, err = lockFile(dir + ".lock"); err != nil {
		return f, err
	}
	if err := finishRecovery(cfg); err != nil {
		return f, fmt.Errorf("raftstore: %w", err)
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		create := bootstrap
		if cfg.Join != nil && !founds(cfg) {
			create = join
		}
		if err := create(cfg); err != nil {
			return f, err
		}
	} else if err != nil {
		return f, fmt.Errorf("raftstore: %w", err)
	} else if err := useBirth(cfg.Dir); err != nil {
		return f, err
	}
	if err := checkReseed(dir); err != nil {
		return f, err
	}
	if err := errors.Join(tidy(dir), makeIncoming(dir)); err != nil {
		return f, fmt.Errorf("raftstore: %w", err)
	}
	return f, f.open(cfg)
}

// open opens state and log of a shard that is locked.
func (f *files) open(cfg Config) (err error) {
	dir := cfg.shardDir()
	if f.state, err = openStateFile(filepath.Join(dir, stateName), cfg.Machine.Buckets(), cfg.MmapSize); err != nil {
		return err
	}
	if err := checkIdentity(cfg, f.state.meta); err != nil {
		return err
	}
	if f.log, f.replay, err = wal.Open(dir, wal.Mark{Position: f.state.meta.Mark}); errors.Is(err, wal.ErrCorrupt) {
		return fmt.Errorf("%w: %w; %s", ErrCorrupt, err, cure)
	} else if err != nil {
		return fmt.Errorf("raftstore: open the log in %s: %w", dir, err)
	}
	if err := checkReplay(f.state.meta, f.replay); errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%s: %w; %s", dir, err, cure)
	} else if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	f.state.step = cfg.step
	return nil
}

// close closes what is open. The disk must have no readers.
func (f *files) close() error {
	var errs []error
	if f.log != nil {
		errs = append(errs, f.log.Close())
	}
	if f.state != nil && !f.held {
		errs = append(errs, f.state.Close())
	}
	if f.lock != nil {
		errs = append(errs, f.lock.Close())
	}
	return errors.Join(errs...)
}

// start is where a new cluster's log starts: after an entry that is in no log,
// but whose effect, the membership, every node of the list begins with.
var start = wal.Position{Term: 1, Index: 1}

// bootstrap makes the shard's directory for a new cluster.
func bootstrap(cfg Config) error {
	meta, err := Founding(cfg.Token, cfg.Initial, cfg.Name, cfg.Shard)
	if err != nil {
		return err
	}
	cfg.Log.Info("new data directory", "dir", cfg.shardDir(), "cluster", meta.Identity.Cluster, "node", cfg.Name)
	return makeShard(cfg, meta, func(path string) error {
		return createStateFile(path, cfg.Machine.Buckets(), meta)
	})
}

// Founding returns what a new cluster of these members begins with on the node
// of that name: the meta of a state without rows.
func Founding(token string, members []Member, name string, shard uint32) (Meta, error) {
	cluster, members, err := initialCluster(token, members)
	if err != nil {
		return Meta{}, err
	}
	self := slices.IndexFunc(members, func(m Member) bool { return m.Name == name })
	if self < 0 {
		return Meta{}, fmt.Errorf("raftstore: this node, %q, is not in the initial cluster", name)
	}
	conf := &raftpb.ConfState{}
	var changes []Change
	for _, m := range members {
		if m.Learner {
			conf.Learners = append(conf.Learners, m.ID)
		} else {
			conf.Voters = append(conf.Voters, m.ID)
		}
		changes = append(changes, Change{Member: m})
	}
	slices.Sort(conf.Voters)
	slices.Sort(conf.Learners)
	return Meta{
		Identity: Identity{Cluster: cluster, Incarnation: 1, Shard: shard, Node: members[self].ID},
		Name:     name,
		Applied:  start,
		Conf:     conf,
		Members:  changeMembers(nil, changes, conf),
		Mark:     start,
	}, nil
}

// founds tells whether the cluster to be joined is the one that the initial list
// makes, so that this node can begin where all have begun.
func founds(cfg Config) bool {
	cluster, members, err := initialCluster(cfg.Token, cfg.Initial)
	return err == nil && len(members) > 1 && cluster == cfg.Join.Cluster && cfg.Join.Incarnation == 1 &&
		slices.ContainsFunc(members, func(m Member) bool { return m.Name == cfg.Name && m.ID == cfg.Join.Node })
}

// join makes the shard's directory for a node that joins: no state, no
// membership, and a log that starts before the first entry there ever was, so
// that the leader has to send a snapshot.
func join(cfg Config) error {
	meta := cfg.Join.Meta(cfg.Name, cfg.Shard)
	cfg.Log.Info("new data directory, to be filled by the leader", "dir", cfg.shardDir(), "cluster", cfg.Join.Cluster, "node", cfg.Name)
	return makeShard(cfg, meta, func(path string) error {
		return createStateFile(path, cfg.Machine.Buckets(), meta)
	})
}

// Meta returns what a node that joins begins with: no state, no membership, and
// a log that starts before the first entry there ever was, so that the leader
// has to send a snapshot.
func (j Joining) Meta(name string, shard uint32) Meta {
	return Meta{
		Identity: Identity{Cluster: j.Cluster, Incarnation: j.Incarnation, Shard: shard, Node: j.Node},
		Name:     name,
		Conf:     &raftpb.ConfState{},
	}
}

// makeShard makes the shard's directory with a log that starts at meta's mark,
// and the state file that create puts at the path it is given. The directory
// is built beside its place and moved there when all of it is on disk: a crash
// leaves all or nothing, so a file that is missing later was lost.
func makeShard(cfg Config, meta Meta, create func(path string) error) error {
	dir := cfg.shardDir()
	tmp := dir + ".tmp"
	if err := buildShard(cfg, tmp, meta, create, nil); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	if err := snap.SyncDir(cfg.Dir); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	if err := useBirth(cfg.Dir); err != nil {
		return err
	}
	// Who made the data directory may have been killed before it was on disk.
	return syncAbove(cfg.Dir)
}

// buildShard makes a shard's directory at tmp, all of it on disk. fill, which
// may be nil, writes to its log.
func buildShard(cfg Config, tmp string, meta Meta, create func(path string) error, fill func(*wal.Log) error) error {
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	if err := create(filepath.Join(tmp, stateName)); err != nil {
		return err
	}
	mark := wal.Mark{Position: meta.Mark, Conf: meta.Conf}
	if err := wal.Create(tmp, meta.Identity.marshal(), mark); err != nil {
		return err
	}
	if fill != nil {
		log, _, err := wal.Open(tmp, mark)
		if err != nil {
			return err
		}
		if err := errors.Join(fill(log), log.Close()); err != nil {
			return err
		}
	}
	if err := snap.SyncDir(tmp); err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	return nil
}

// checkIdentity holds the directory against what the caller takes it for.
func checkIdentity(cfg Config, meta Meta) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s %s; check the data directory and the name of the node", ErrIdentity, cfg.shardDir(), fmt.Sprintf(format, args...))
	}
	id := meta.Identity
	switch {
	case id.Shard != cfg.Shard:
		return wrong("holds shard %d, not %d", id.Shard, cfg.Shard)
	case meta.Name != cfg.Name:
		return wrong("belongs to node %q, not to %q", meta.Name, cfg.Name)
	case cfg.Token == "" && len(cfg.Initial) < 2, id.Incarnation > 1:
		return nil // there is nothing to hold it against
	}
	cluster, _, err := initialCluster(cfg.Token, cfg.Initial)
	if err != nil {
		return err
	}
	if cluster != id.Cluster {
		return wrong("belongs to cluster %s, but the initial cluster given is %s; give the list it was made from, or none", id.Cluster, cluster)
	}
	return nil
}
