package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	"github.com/rookery-mail/rookery/raftstore"
)

// This file is where the rules and the replication meet: neither knows the
// other, and each is given the other through the few lines here.

// Applied returns m as a shard applies it.
func Applied(m *machine.Machine) raftstore.Machine { return applied{m} }

type applied struct{ m *machine.Machine }

var _ raftstore.Verifier = applied{}

func (a applied) Buckets() []kv.Bucket { return a.m.Buckets() }

func (a applied) Apply(tx kv.Tx, s raftstore.Stamp, command []byte) ([]byte, error) {
	return a.m.Apply(tx, directory.Time(s.Elapsed), s.Wall, command)
}

func (a applied) Due(r kv.Reader, elapsed uint64) (wait int64, command []byte) {
	wait, command, err := a.m.Due(r, directory.Time(elapsed))
	if err != nil {
		// A record that cannot be read. The Tick it leads to finds it again and
		// stops the node, which Due cannot.
		return 0, machine.EncodeCommand(machine.Command{By: "directory", Op: machine.Tick{}})
	}
	return wait, command
}

func (a applied) Verify(r kv.Reader) error {
	err := a.m.Verify(r)
	if errors.Is(err, machine.ErrRelease) || errors.Is(err, machine.ErrFormat) {
		return fmt.Errorf("%w: %w", raftstore.ErrNewer, err)
	}
	return err
}

// Forward has another node, which leads, put an encoded command into the log. It
// returns the result and an index by which that node has applied it. Its errors
// are those of raftstore.Store.Propose.
type Forward func(ctx context.Context, leader uint64, command []byte) (result []byte, index uint64, err error)

// Shard returns s as a Store. What is proposed here while another node leads is
// forwarded, if forward is not nil.
func Shard(s *raftstore.Store, forward Forward) Store { return shard{s, forward} }

type shard struct {
	s       *raftstore.Store
	forward Forward
}

// followPatience is how long a forwarded write waits until it shows here too. It
// is done in any case, and its token says what a read has to wait for.
const followPatience = time.Second

// How long a write waits for a leader, and how soon it tries again if nothing
// has changed: the leader that is known may be there and not be connected.
const (
	leaderPatience = time.Second
	leaderAgain    = 50 * time.Millisecond
)

// Propose waits out an election: without a leader nothing was done, and whoever
// is told so at once can only ask again, later than need be.
func (h shard) Propose(ctx context.Context, command []byte) ([]byte, error) {
	if h.forward == nil {
		return h.s.Propose(ctx, command)
	}
	patience := time.Now().Add(leaderPatience)
	for {
		changed := h.s.LeaderChanged() // before the try, lest a change in between is missed
		result, err := h.try(ctx, command)
		if !errors.Is(err, raftstore.ErrNoLeader) || time.Now().After(patience) {
			return result, err
		}
		again := time.NewTimer(leaderAgain)
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
		case <-h.s.Done():
		}
		again.Stop()
		if ctx.Err() != nil {
			return nil, err // which promises more than the context's
		}
	}
}

// try proposes here, or where the leader is.
func (h shard) try(ctx context.Context, command []byte) ([]byte, error) {
	result, err := h.s.Propose(ctx, command)
	other, ok := errors.AsType[*raftstore.NotLeaderError](err)
	if !ok {
		return result, err
	}
	result, index, err := h.forward(ctx, other.Leader, command)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, followPatience)
	defer cancel()
	if v, err := h.s.ReadWhen(ctx, func(r kv.Reader) bool {
		v, ok := r.(*raftstore.View)
		return !ok || v.Applied() >= index
	}); err == nil {
		v.Release()
	}
	return result, nil
}

func (h shard) Local() (View, error) { return view(h.s.Read(context.Background(), raftstore.Local)) }

func (h shard) Linearizable(ctx context.Context) (View, error) {
	return view(h.s.Read(ctx, raftstore.Linearizable))
}

func (h shard) Verified() bool { return h.s.Verified() }

func (h shard) When(ctx context.Context, ready func(kv.Reader) bool) (View, error) {
	return view(h.s.ReadWhen(ctx, ready))
}

// view keeps a nil *raftstore.View from becoming a View that is not nil.
func view(v *raftstore.View, err error) (View, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

// HasBegun reports whether the state in r is of the cluster and life that s is of.
func HasBegun(r kv.Reader, s *raftstore.Store, m *machine.Machine) (bool, error) {
	st, err := m.Status(r)
	return err == nil && livesAs(&st, s.Identity()), err
}

// Begin makes sure that the present life of the shard's cluster has begun: that its
// first command is in the log. Of a new cluster that is Init, with the newest version
// that this release supports; of one that was made
// from a snapshot, or from the node that was left of another, Restore. Every node
// calls it once after its start; it returns when this node has applied that command,
// however long a first leader takes.
func Begin(ctx context.Context, s *raftstore.Store, m *machine.Machine) error {
	return BeginAs(ctx, s, m, func() (uint32, bool) { return machine.NewestVersion, true })
}

// agreePatience is how long a first leader waits until it has heard of every member
// which cluster versions it supports.
const agreePatience = 3 * time.Second

// BeginAs is Begin with a version for a new cluster, which all its nodes have to
// support: what agreed returns once it is known, or after some patience.
func BeginAs(ctx context.Context, s *raftstore.Store, m *machine.Machine, agreed func() (version uint32, known bool)) error {
	const again = 100 * time.Millisecond
	patience := time.Now().Add(agreePatience)
	for {
		v, err := s.Read(ctx, raftstore.Local)
		if err != nil {
			return err
		}
		id := s.Identity()
		version, known := agreed()
		command, err := firstCommandAs(v, id, m, version)
		v.Release()
		if err != nil || command == nil {
			return err
		}
		if !s.Status().Leading {
			patience = time.Now().Add(agreePatience)
		} else if known || time.Now().After(patience) {
			answer, err := s.Propose(ctx, command)
			if err == nil {
				if r, err := machine.DecodeResult(answer); err != nil || r.Refused != nil {
					return fmt.Errorf("server: begin %v: %w", id, errors.Join(err, r.Refused))
				}
				continue
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.Done():
			return s.Err()
		case <-time.After(again):
		}
	}
}

// FirstCommand is the encoded command that begins the life that id names, for a
// leader to propose; nil if the state in r lives it already. A new cluster is of the
// newest version that this release supports.
func FirstCommand(r kv.Reader, id raftstore.Identity, m *machine.Machine) ([]byte, error) {
	return firstCommandAs(r, id, m, machine.NewestVersion)
}

func firstCommandAs(r kv.Reader, id raftstore.Identity, m *machine.Machine, version uint32) ([]byte, error) {
	st, err := m.Status(r)
	if err != nil || livesAs(&st, id) {
		return nil, err
	}
	op, err := firstCommand(&st, id, version)
	if err != nil {
		return nil, err
	}
	return machine.EncodeCommand(machine.Command{By: "directory", Op: op}), nil
}

// firstCommand is what begins the life that id names, after the one in st.
func firstCommand(st *machine.Status, id raftstore.Identity, version uint32) (machine.Op, error) {
	if uint64(directory.Incarnation(id.Incarnation)) != id.Incarnation {
		return nil, fmt.Errorf("server: %v: the incarnation is out of range", id)
	}
	if st.ClusterID != "" {
		return machine.Restore{ClusterID: id.Cluster.String(), Incarnation: directory.Incarnation(id.Incarnation)}, nil
	}
	key := make([]byte, 16)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("server: draw the digests' key: %w", err)
	}
	op := machine.Init{ClusterID: id.Cluster.String(), Incarnation: directory.Incarnation(id.Incarnation), DigestKey: key}
	if version > machine.OldestVersion {
		op.Version = version // a field that the first releases do not know
	}
	return op, nil
}
