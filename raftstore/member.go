package raftstore

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/rookery-mail/rookery/raftstore/wal"
	"go.etcd.io/raft/v3/confchange"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"
)

var errBusy = errors.New("another membership change is under way, or this one makes no sense now")

// Change is one step of a membership change.
type Change struct {
	// Member is who. For a removal the id is enough. A member that is there
	// already becomes a voter or a learner, as Learner says, and takes over
	// name and context unless both are empty.
	Member Member
	Remove bool
	// Describe changes the name and context of a member and nothing else: it stays
	// the voter or the learner that it is when the change enters the log, whatever
	// Learner says. Who is none is refused.
	Describe bool
}

// confProposal is a membership change on its way.
type confProposal struct {
	changes []Change
	placed  bool
	// done is called once. It must not block.
	done func(error)
}

// proposeConf puts a membership change into the log. Several changes at once
// pass through a joint membership, which Raft leaves by itself.
func (c *core) proposeConf(p *confProposal) {
	if !c.leading {
		p.done(c.notLeader())
		return
	}
	// Raft leaves a joint membership by itself, soon after it was entered.
	if c.lead.conf != nil && !c.lead.conf.placed || len(c.conf.GetVotersOutgoing()) > 0 {
		p.done(fmt.Errorf("%w: %w", ErrOverloaded, errBusy))
		return
	}
	cc := &raftpb.ConfChangeV2{Context: marshalChanges(p.changes)}
	for _, ch := range p.changes {
		learner := ch.Member.Learner
		if ch.Describe {
			if !inConf(c.conf, ch.Member.ID) {
				p.done(fmt.Errorf("raftstore: node %x is no member that could be described", ch.Member.ID))
				return
			}
			learner = slices.Contains(c.conf.GetLearners(), ch.Member.ID)
		}
		kind := raftpb.ConfChangeAddNode
		switch {
		case ch.Remove:
			kind = raftpb.ConfChangeRemoveNode
		case learner:
			kind = raftpb.ConfChangeAddLearnerNode
		}
		cc.Changes = append(cc.Changes, &raftpb.ConfChangeSingle{Type: kind.Enum(), NodeId: new(ch.Member.ID)})
	}
	// A change that cannot be applied would stop every node when it is.
	if _, err := changeConf(c.conf, cc, c.entries.last()); err != nil {
		p.done(fmt.Errorf("raftstore: %w", err))
		return
	}
	if err := c.rn.ProposeConfChange(cc); err != nil {
		p.done(fmt.Errorf("%w: %w", ErrOverloaded, err))
		return
	}
	c.lead.conf = p
}

// placeConf notes where in the log the change stands that this leader proposed.
// Raft puts an empty entry in its place if it refuses it.
func (c *core) placeConf(at wal.Position, e *raftpb.Entry) {
	p := c.lead.conf
	if p == nil || p.placed || len(e.GetData()) == 0 {
		return // a joint membership that Raft leaves by itself
	}
	p.placed = true
	c.waiters.add(at, []*proposal{{done: func(_ []byte, err error) { p.done(err) }}})
}

// applyConf works out what an entry does to the membership.
func (a *applier) applyConf(e *raftpb.Entry) (*confApplied, error) {
	cc := &raftpb.ConfChangeV2{}
	if e.GetType() == raftpb.EntryConfChange {
		v1 := &raftpb.ConfChange{}
		if err := proto.Unmarshal(e.GetData(), v1); err != nil {
			return nil, err
		}
		cc = v1.AsV2()
	} else if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return nil, err
	}
	conf, err := changeConf(a.meta.Conf, cc, e.GetIndex())
	if err != nil {
		return nil, err
	}
	changes, err := unmarshalChanges(cc.GetContext())
	if err != nil {
		return nil, err
	}
	a.meta.Conf = conf
	a.meta.Members = changeMembers(a.meta.Members, changes, conf)
	a.log.Info("membership changed", "index", e.GetIndex(), "voters", conf.GetVoters(), "learners", conf.GetLearners())
	return &confApplied{e.GetIndex(), cc, conf, a.meta.Members}, nil
}

// changeConf returns the membership after a change, by Raft's own rules but
// without its state, so that the applier needs none of it.
func changeConf(conf *raftpb.ConfState, cc *raftpb.ConfChangeV2, last uint64) (*raftpb.ConfState, error) {
	changer := confchange.Changer{Tracker: tracker.MakeProgressTracker(1, math.MaxUint64), LastIndex: last}
	cfg, progress, err := confchange.Restore(changer, conf)
	if err != nil {
		return nil, fmt.Errorf("membership: %w", err)
	}
	changer.Tracker.Config, changer.Tracker.Progress = cfg, progress
	if cc.LeaveJoint() {
		cfg, _, err = changer.LeaveJoint()
	} else if auto, joint := cc.EnterJoint(); joint {
		cfg, _, err = changer.EnterJoint(auto, cc.GetChanges()...)
	} else {
		cfg, _, err = changer.Simple(cc.GetChanges()...)
	}
	if err != nil {
		return nil, fmt.Errorf("membership: %w", err)
	}
	changer.Tracker.Config = cfg
	return changer.Tracker.ConfState(), nil
}

// changeMembers keeps names and contexts for those who are in conf, in order of id.
func changeMembers(members []Member, changes []Change, conf *raftpb.ConfState) []Member {
	members = slices.Clone(members)
	for _, ch := range changes {
		m := ch.Member
		i, found := slices.BinarySearchFunc(members, m.ID, func(m Member, id uint64) int { return cmp.Compare(m.ID, id) })
		switch {
		case ch.Remove:
		case !found:
			members = slices.Insert(members, i, Member{ID: m.ID, Name: m.Name, Context: m.Context})
		case m.Name != "" || len(m.Context) > 0:
			members[i] = Member{ID: m.ID, Name: m.Name, Context: m.Context}
		}
	}
	return slices.DeleteFunc(members, func(m Member) bool { return !inConf(conf, m.ID) })
}

func inConf(conf *raftpb.ConfState, id uint64) bool {
	return slices.Contains(conf.GetVoters(), id) || slices.Contains(conf.GetVotersOutgoing(), id) ||
		slices.Contains(conf.GetLearners(), id) || slices.Contains(conf.GetLearnersNext(), id)
}

// marshalChanges encodes names and contexts for the change's context: the
// number of members, then for each its id, name and context.
func marshalChanges(changes []Change) []byte {
	var b []byte
	b = binary.AppendUvarint(b, uint64(len(changes)))
	for _, ch := range changes {
		b = binary.AppendUvarint(b, ch.Member.ID)
		for _, p := range [...][]byte{[]byte(ch.Member.Name), ch.Member.Context} {
			b = binary.AppendUvarint(b, uint64(len(p)))
			b = append(b, p...)
		}
	}
	return b
}

// unmarshalChanges decodes it; the changes say neither Remove nor Learner.
func unmarshalChanges(p []byte) ([]Change, error) {
	if len(p) == 0 {
		return nil, nil
	}
	d := decoder{p: p}
	n := d.uvarint()
	if n > uint64(len(d.p)) {
		return nil, errors.New("malformed membership change")
	}
	var changes []Change
	for range n {
		changes = append(changes, Change{Member: Member{ID: d.uvarint(), Name: string(d.bytes()), Context: slices.Clone(d.bytes())}})
	}
	if d.bad || len(d.p) != 0 {
		return nil, errors.New("malformed membership change")
	}
	return changes, nil
}
