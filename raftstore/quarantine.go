package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/raftpb"
)

// Quarantined is a stopped shard whose state is not to be used: it was marked
// so, or found damaged. It shows nothing and takes no part in Raft, but it knows
// who it is and who the others are, so that another's state can be asked for.
// Towards a transport it is a store that takes and does nothing: its node is
// heard and counts for nothing.
type Quarantined struct {
	cfg     Config
	lock    *os.File
	metrics *metrics
	status  Status
	leader  atomic.Uint64
	closed  sync.Once
}

// OpenQuarantined locks a shard's directory and makes sure that Reseed can go
// to work: what names the node and its peers can be read in the state file, and
// the log is whole and of the same node. The rest of the state file may be
// damaged.
//
// Errors: ErrLocked, ErrIdentity, ErrCorrupt where too much is damaged, and what
// the system says.
func OpenQuarantined(cfg Config) (_ *Quarantined, err error) {
	cfg, lock, err := offline(cfg)
	if err != nil {
		return nil, err
	}
	q := &Quarantined{cfg: cfg, lock: lock}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.Close())
		}
	}()
	dir := cfg.shardDir()
	old, err := readStateFile(filepath.Join(dir, stateName), cfg)
	if err != nil {
		return nil, err
	}
	meta := old.Meta()
	if err := old.Close(); err != nil {
		return nil, fmt.Errorf("raftstore: %w", err)
	}
	if err := checkIdentity(cfg, meta); err != nil {
		return nil, err
	}
	// Whatever the snapshot will be of: the end of what the log holds.
	log, replay, err := openLogFor(cfg, wal.Position{Index: math.MaxUint64})
	if err != nil {
		return nil, err
	}
	if err := log.Close(); err != nil {
		return nil, fmt.Errorf("raftstore: %w", err)
	}
	id, err := unmarshalIdentity(replay.Metadata)
	if err != nil {
		return nil, corrupt(dir, "the log's metadata: %w", err)
	}
	if id != meta.Identity {
		return nil, fmt.Errorf("%w: the log in %s is of %v, the state of %v", ErrIdentity, dir, id, meta.Identity)
	}
	if err := errors.Join(tidy(dir), makeIncoming(dir)); err != nil {
		return nil, fmt.Errorf("raftstore: %w", err)
	}
	q.status = meta.status()
	q.status.Applied = max(q.status.Applied, replay.Flushed)
	cfg.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"shard": fmt.Sprint(cfg.Shard)}, cfg.Metrics)
	if q.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("raftstore: metrics: %w", err)
	}
	q.metrics.quarantined.Set(1)
	q.metrics.appliedIndex.Set(float64(q.status.Applied))
	return q, nil
}

// status is what a state by itself says of its node and the others.
func (m Meta) status() Status {
	m = m.clone()
	for i := range m.Members {
		m.Members[i].Learner = slices.Contains(m.Conf.GetLearners(), m.Members[i].ID)
	}
	return Status{
		Identity: m.Identity, Name: m.Name, Committed: m.Applied.Index, Applied: m.Applied.Index, Flushed: m.Applied.Index,
		Term: m.Applied.Term, Voters: m.Conf.GetVoters(), Learners: m.Conf.GetLearners(), Members: m.Members,
	}
}

// Identity returns whose state it was.
func (q *Quarantined) Identity() Identity { return q.status.Identity }

// Status returns what the state says of the node and the others, and who led
// when a leader was last heard. Applied is what another's state must have
// reached to take the place of this one.
func (q *Quarantined) Status() Status {
	st := q.status
	st.Leader = q.leader.Load()
	return st
}

// Step takes a message from a peer and answers none. It notes who leads.
func (q *Quarantined) Step(m *raftpb.Message) {
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
		q.leader.Store(m.GetFrom())
	default:
	}
}

// Unreachable does nothing.
func (q *Quarantined) Unreachable(uint64) {}

// Lost does nothing.
func (q *Quarantined) Lost(uint64) {}

// Propose refuses the command with ErrNoLeader: it was not done.
func (q *Quarantined) Propose(context.Context, []byte) ([]byte, error) { return nil, q.refusal() }

// Read refuses with ErrNoLeader.
func (q *Quarantined) Read(context.Context, Consistency) (*View, error) { return nil, q.refusal() }

func (q *Quarantined) refusal() error {
	return fmt.Errorf("%w: this node is quarantined", ErrNoLeader)
}

// IncomingDir returns where to put a snapshot: on the disk of the state file.
func (q *Quarantined) IncomingDir() string { return filepath.Join(q.cfg.shardDir(), incomingDir) }

// Reseed is the function of that name, for a directory that is locked already.
func (q *Quarantined) Reseed(path string) error { return q.cfg.reseed(path) }

// Close gives the directory back.
func (q *Quarantined) Close() (err error) {
	q.closed.Do(func() {
		if q.metrics != nil {
			q.metrics.unregister()
		}
		err = q.lock.Close()
	})
	return err
}
