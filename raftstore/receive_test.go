package raftstore

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// follower returns a bench of three nodes with some entries applied everywhere,
// its leader's id and a follower.
func follower(t *testing.T) (b *bench, leader uint64, f *Node) {
	t.Helper()
	b, l := three(t)
	for i := range 5 {
		if o := propose1(l, fmt.Sprintf("put k%d 1", i)); o.err != nil {
			t.Fatal(o.err)
		}
		b.pass(b.nodes[1].cfg.Tick)
	}
	b.pass(4 * b.nodes[1].cfg.Tick)
	leader = l.Status().Identity.Node
	for id, n := range b.nodes {
		if id != leader {
			f = n
		}
	}
	return b, leader, f
}

// from is a message of the leader's to a follower.
func from(leader uint64, f *Node, kind raftpb.MessageType) *raftpb.Message {
	st := f.Status()
	return &raftpb.Message{Type: kind.Enum(), From: new(leader), To: new(st.Identity.Node), Term: new(st.Term)}
}

// TestTwoHistories: a leader that has other entries than those applied here, or
// that was told of more than this log has, ends the node with a text that says
// what to do, and not with a panic of Raft's, nor not at all.
func TestTwoHistories(t *testing.T) {
	for name, forge := range map[string]func(*raftpb.Message, Status){
		"told of more than there is": func(m *raftpb.Message, st Status) {
			m.Type, m.Commit = raftpb.MsgHeartbeat.Enum(), new(st.Applied+1)
		},
		"another entry before": func(m *raftpb.Message, st Status) {
			m.Index, m.LogTerm = new(st.Applied), new(st.Term+7)
		},
		"another entry": func(m *raftpb.Message, st Status) {
			m.Index, m.LogTerm = new(uint64(1)), new(uint64(1))
			m.Entries = []*raftpb.Entry{{Index: new(uint64(2)), Term: new(st.Term + 7)}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, leader, f := follower(t)
			m := from(leader, f, raftpb.MsgApp)
			forge(m, f.Status())
			f.Receive(m)
			if err := f.StepCore(); !errors.Is(err, ErrHistory) {
				t.Errorf("got %v, want ErrHistory", err)
			}
		})
	}
}

// TestForgedMessages: what no peer says, or can mean, changes nothing.
func TestForgedMessages(t *testing.T) {
	b, leader, f := follower(t)
	before := f.Status()
	for _, kind := range []raftpb.MessageType{
		raftpb.MsgProp, raftpb.MsgHup, raftpb.MsgBeat, raftpb.MsgUnreachable, raftpb.MsgSnapStatus, raftpb.MsgCheckQuorum,
		raftpb.MsgStorageAppend, raftpb.MsgStorageAppendResp, raftpb.MsgStorageApply, raftpb.MsgStorageApplyResp, raftpb.MsgForgetLeader,
	} {
		for _, to := range b.nodes {
			to.Receive(from(leader, to, kind))
		}
	}
	for _, kind := range []raftpb.MessageType{raftpb.MsgVote, raftpb.MsgPreVote, raftpb.MsgHeartbeat, raftpb.MsgApp} {
		m := from(leader, f, kind)
		m.Term = new(uint64(math.MaxUint64))
		f.Receive(m)
	}
	b.ok(b.settle())
	if st := f.Status(); st.Term != before.Term || st.Leader != before.Leader || st.Applied != before.Applied {
		t.Errorf("got %+v, it was %+v", st, before)
	}
}
