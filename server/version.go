package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// This file is the gate of the cluster version: what came with a later one than is
// in force gets into the log on no way, and who stands in the way of raising it.

// ClusterVersion returns the version of the cluster whose state r is, 0 before it
// has begun.
func ClusterVersion(m *machine.Machine, r kv.Reader) (uint32, error) {
	st, err := m.Status(r)
	return st.Version, err
}

// CheckCommand refuses what Applied could not apply, and what is not in force in r:
// for commands that this node did not encode itself.
//
// Errors: raftstore.ErrNotInForce, and what says that it is no command.
func CheckCommand(m *machine.Machine, r kv.Reader, command []byte) error {
	c, err := machine.DecodeCommand(command)
	if err != nil || machine.Requires(c.Op) == machine.OldestVersion {
		return err
	}
	version, err := ClusterVersion(m, r)
	if err == nil {
		err = machine.NotInForce(c.Op, version)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", raftstore.ErrNotInForce, err)
	}
	return nil
}

// inForce refuses an operation that came with a later cluster version than is in
// force. That is looked up here first; this node may be the last to hear of a raise.
func (s *Server) inForce(ctx context.Context, op machine.Op) error {
	if machine.Requires(op) == machine.OldestVersion {
		return nil
	}
	look := func(v View, err error) error {
		if err != nil {
			return err
		}
		defer v.Release()
		version, err := ClusterVersion(s.machine, v)
		if err != nil {
			return err
		}
		if err := machine.NotInForce(op, version); err != nil {
			return withMetadata(err, "version", number(uint64(version)), "needs", number(uint64(machine.Requires(op))))
		}
		return nil
	}
	if err := look(s.store.Local()); err == nil {
		return nil
	}
	return look(s.store.Linearizable(ctx))
}

// versionState is what operators are told of the cluster version.
func (s *Server) versionState(st *machine.Status, members *Members) *apiv1.VersionState {
	out := &apiv1.VersionState{Version: st.Version, Release: st.Release, Oldest: machine.OldestVersion, Newest: machine.NewestVersion}
	for i := range members.Nodes {
		out.Nodes = append(out.Nodes, members.nodeTo(&members.Nodes[i]))
	}
	if st.Version < machine.NewestVersion {
		out.TurnsOn = machine.TurnsOn(st.Version, machine.NewestVersion)
		out.InTheWay = members.inTheWay(machine.NewestVersion)
	}
	return out
}

// inTheWay says which members keep the cluster version from being raised to that
// one, and what to do about each. Learners count: they apply the log too.
func (m *Members) inTheWay(version uint32) (why []string) {
	for i := range m.Nodes {
		n := &m.Nodes[i]
		switch {
		case n.Heard < 0:
			why = append(why, fmt.Sprintf("%s was never heard since %s was started: start it, or remove it", m.titled(n), m.self()))
		case n.ID != m.Self && n.Heard > quiet:
			why = append(why, fmt.Sprintf("%s was last heard %s ago: start it, or remove it", m.titled(n), n.Heard.Truncate(time.Second)))
		case n.NewestVersion < version:
			why = append(why, fmt.Sprintf("%s runs release %s, which supports cluster version %s: upgrade it", m.titled(n), n.Version, rangeOf(n)))
		case n.OldestVersion > version:
			why = append(why, fmt.Sprintf("%s runs release %s, which supports cluster version %s only", m.titled(n), n.Version, rangeOf(n)))
		}
	}
	return why
}

// self is the name of the node that says this.
func (m *Members) self() string {
	if n := m.member(m.Self); n != nil {
		return n.Name
	}
	return "this node"
}

// rangeOf is the cluster versions that n's release supports, in words.
func rangeOf(n *Node) string {
	if n.OldestVersion == n.NewestVersion {
		return fmt.Sprint(n.NewestVersion)
	}
	return fmt.Sprintf("%d to %d", n.OldestVersion, n.NewestVersion)
}

func (c *clusterService) GetClusterVersion(ctx context.Context, req *apiv1.GetClusterVersionRequest) (*apiv1.GetClusterVersionResponse, error) {
	s := c.s
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	st, err := s.machine.Status(r)
	if err != nil {
		return nil, err
	}
	members := s.members()
	return &apiv1.GetClusterVersionResponse{Header: s.header(new(apiv1.ResponseHeader), &r, st.Revision), State: s.versionState(&st, &members)}, nil
}

func (c *clusterService) FinalizeClusterVersion(ctx context.Context, req *apiv1.FinalizeClusterVersionRequest) (*apiv1.FinalizeClusterVersionResponse, error) {
	s := c.s
	// As a change of the membership: on the leader, and no node is added meanwhile.
	ch, end, err := s.change(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	v, err := s.store.Local()
	if err != nil {
		return nil, err
	}
	st, err := s.machine.Status(v)
	v.Release()
	if err != nil {
		return nil, err
	}
	to := req.GetVersion()
	if to == 0 {
		to = machine.NewestVersion
	}
	out := &apiv1.FinalizeClusterVersionResponse{Header: ch.header, Effect: apiv1.Effect_EFFECT_UNCHANGED, From: st.Version, To: st.Version}
	switch {
	case to == st.Version:
		return out, nil
	case to < st.Version:
		return nil, fmt.Errorf("%w: the cluster's version is %d: it is never lowered", directory.ErrInvalid, st.Version)
	case to > machine.NewestVersion:
		return nil, fmt.Errorf("%w: %s, which leads, runs release %s, which supports cluster versions up to %d: upgrade it", directory.ErrVersion, ch.self(), s.version, machine.NewestVersion)
	}
	var why []string
	if err := ch.check(ctx, func() error {
		if why = ch.inTheWay(to); len(why) > 0 {
			return nil // time does not mend it
		}
		for i := range ch.Nodes {
			if n := &ch.Nodes[i]; !ch.answers(n) {
				// It spoke a moment ago and is gone: perhaps to come back as another release.
				why = append(why, ch.titled(n)+" does not answer the leader: start it, or remove it")
				return errLagging
			}
		}
		return nil
	}); err != nil && !errors.Is(err, errLagging) {
		return nil, err
	}
	if len(why) > 0 {
		return nil, fmt.Errorf("%w: cluster version %d has to wait: %s", directory.ErrVersion, to, strings.Join(why, "; "))
	}
	header, result, err := s.write(ctx, nil, machine.Finalize{From: st.Version, To: to, Release: s.version})
	if err != nil {
		return nil, err
	}
	s.log.Info("cluster version raised by an operator", "from", st.Version, "to", to, "by", ch.caller)
	out.Header, out.Effect, out.To, out.TurnedOn = header, result.GetEffect(), to, machine.TurnsOn(st.Version, to)
	return out, nil
}

// Agreed returns the newest cluster version that all members support, which a new
// cluster begins with. Whoever was not heard counts as of the oldest release, and
// known is false.
func (m *Members) Agreed() (version uint32, known bool) {
	version, known = machine.NewestVersion, true
	for i := range m.Nodes {
		n := &m.Nodes[i]
		if n.NewestVersion == 0 {
			return machine.OldestVersion, false
		}
		version = min(version, n.NewestVersion)
	}
	return max(version, machine.OldestVersion), known && len(m.Nodes) > 0
}
