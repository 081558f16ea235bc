package server

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/status"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
)

// fakeReplica does to a test node's members what raftstore would.
type fakeReplica struct {
	n       *testNode
	changes [][]raftstore.Change
	moved   []uint64
	fail    error
	steps   int // of progress that a compaction tells
}

func (f *fakeReplica) ChangeMembers(_ context.Context, changes ...raftstore.Change) error {
	if f.fail != nil {
		return f.fail
	}
	f.changes = append(f.changes, changes)
	m := &f.n.members
	nodes := slices.Clone(m.Nodes)
	for _, ch := range changes {
		i := slices.IndexFunc(nodes, func(n Node) bool { return n.ID == ch.Member.ID })
		switch {
		case ch.Remove:
			nodes = slices.Delete(nodes, i, i+1)
		case i >= 0:
			nodes[i].Voter = !ch.Member.Learner
		default:
			nodes = append(nodes, Node{Name: ch.Member.Name, ID: ch.Member.ID, Voter: !ch.Member.Learner, Context: ch.Member.Context})
		}
	}
	m.Nodes = nodes
	return nil
}

func (f *fakeReplica) Transfer(_ context.Context, node uint64) error {
	if f.fail != nil {
		return f.fail
	}
	f.moved = append(f.moved, node)
	f.n.members.Leader = node
	return nil
}

func (f *fakeReplica) Snapshot(context.Context, io.Writer) (snap.Header, error) {
	return snap.Header{}, errTest
}

func (f *fakeReplica) Compact(_ context.Context, progress func(done, total int64)) (before, after int64, err error) {
	for i := range f.steps {
		progress(int64(i), int64(f.steps))
	}
	return 100, 60, f.fail
}

// compacted makes a compaction and takes all it says.
func (n *testNode) compacted(t *testing.T, req *apiv1.CompactRequest) (progress []*apiv1.CompactProgress, sum *apiv1.CompactSummary, err error) {
	t.Helper()
	stream, err := n.Compact(t.Context(), req)
	if err != nil {
		return nil, nil, err
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return progress, sum, nil
		}
		if err != nil {
			return progress, sum, err
		}
		if p := m.GetProgress(); p != nil {
			progress = append(progress, p)
		}
		if s := m.GetSummary(); s != nil {
			sum = s
		}
	}
}

const commitIndex = 50_000

// fleet is a cluster seen by its leader, n1. Each word is a node: its name, then
// "-" if it does not answer, "?" if it is a learner, "@SITE", and "<N" if it trails
// by N entries. Ids count from 1.
func fleet(words string) Members {
	m := Members{Leader: 1, Self: 1, Commit: commitIndex, Applied: commitIndex}
	for i, w := range strings.Fields(words) {
		n := Node{ID: uint64(i + 1), Voter: true, Active: true, Match: commitIndex, State: "replicate", Applied: commitIndex, Version: "v1", ClientAddress: "10.0.0." + number(uint64(i+1)) + ":7905"}
		if w, behind, ok := strings.Cut(w, "<"); ok {
			n.Match -= uint64(len(behind)) * 1500
			n.Name = w
		}
		w, _, _ = strings.Cut(w, "<")
		w, n.Site, _ = strings.Cut(w, "@")
		if strings.Contains(w, "-") {
			n.Active, n.Heard = false, -1
		}
		n.Voter = !strings.Contains(w, "?")
		n.Name = strings.Trim(w, "-?")
		m.Nodes = append(m.Nodes, n)
	}
	return m
}

// newFleet is a test node that leads such a cluster.
func newFleet(t *testing.T, words string, waiting ...Node) (*testNode, *fakeReplica) {
	t.Helper()
	n := newTestNode(t)
	return n, n.lead(words, waiting...)
}

// lead makes n the leader of such a cluster.
func (n *testNode) lead(words string, waiting ...Node) *fakeReplica {
	r := &fakeReplica{n: n}
	n.replica, n.settleFor = r, time.Millisecond
	n.members = fleet(words)
	n.members.Waiting = waiting
	return r
}

// What is refused, and with which numbers.
func TestMemberRefusals(t *testing.T) {
	const (
		noQuorum   = "NO_QUORUM"
		lagging    = "LAGGING"
		notWaiting = "NOT_WAITING"
		notFound   = "NOT_FOUND"
		invalid    = "INVALID"
		exists     = "EXISTS"
		notVoter   = "NOT_VOTER"
	)
	add := func(name string, id uint64) func(*testNode) error {
		return func(n *testNode) error {
			_, err := n.AddMember(t.Context(), &apiv1.AddMemberRequest{Name: name, Id: id})
			return err
		}
	}
	promote := func(name string, id uint64) func(*testNode) error {
		return func(n *testNode) error {
			_, err := n.PromoteMember(t.Context(), &apiv1.PromoteMemberRequest{Name: name, Id: id})
			return err
		}
	}
	remove := func(name string, id uint64) func(*testNode) error {
		return func(n *testNode) error {
			_, err := n.RemoveMember(t.Context(), &apiv1.RemoveMemberRequest{Name: name, Id: id})
			return err
		}
	}
	replace := func(step apiv1.ReplaceStep, name string, before, after uint64) func(*testNode) error {
		return func(n *testNode) error {
			_, err := n.ReplaceMember(t.Context(), &apiv1.ReplaceMemberRequest{Name: name, OldId: before, NewId: after, Step: step})
			return err
		}
	}
	move := func(name string) func(*testNode) error {
		return func(n *testNode) error {
			_, err := n.MoveLeader(t.Context(), &apiv1.MoveLeaderRequest{Name: name})
			return err
		}
	}
	const start, finish = apiv1.ReplaceStep_REPLACE_STEP_START, apiv1.ReplaceStep_REPLACE_STEP_FINISH
	n := newTestNode(t)
	n4, n4b, n3b := Node{Name: "n4", ID: 0x44}, Node{Name: "n4", ID: 0x45}, Node{Name: "n3", ID: 0x33}
	for _, tt := range []struct {
		name    string
		fleet   string
		waiting []Node
		call    func(*testNode) error
		reason  string
		text    string
	}{
		{"add, nobody waits", "n1", nil, add("n4", 0), notWaiting, "no node asks n1, which leads, to join; start it with --join"},
		{"add another than waits", "n1", []Node{n4}, add("n5", 0), notWaiting, "n5 does not ask n1, which leads, to join, only n4"},
		{"add another disk than waits", "n1", []Node{n4}, add("n4", 0x99), notWaiting, "n4 (id 99) does not ask n1, which leads, to join, only n4"},
		{"add one of two", "n1", []Node{n4, n4b}, add("n4", 0), invalid, "2 nodes named n4 wait to join: say which by its id, 44 or 45"},
		{"add what has a member's name", "n1 n2 n3-", []Node{n3b}, add("n3", 0), exists, "n3 (id 3) is a member already, and this is another disk (id 33): `rookeryctl member replace n3`"},
		{"add nobody", "n1", nil, add("", 0), invalid, "no node stated"},

		{"promote who is not there", "n1 n2?", nil, promote("n9", 0), notFound, "no member is n9; there are n1 and n2"},
		{"promote who lags", "n1 n2?<xx", nil, promote("n2", 0), lagging, "n2 trails the leader by 3000 entries (it has 47000 of 50000), and 1000 entries at most may be missing"},
		{"promote who does not answer", "n1 n2?-", nil, promote("n2", 0), lagging, "n2 (id 2) does not answer the leader"},
		{"promote where it would not help", "n1 n2- n3- n4?", nil, promote("n4", 0), noQuorum, "promoting n4 leaves 4 voters, of which 3 must answer; n1 and n4 answer: start n2 or n3 first"},
		{"promote one of two names", "n1 n2 n2?", nil, promote("n2", 0), invalid, "n2 is the name of 2 members: say which by its id, 2 or 3"},

		{"remove who is not there", "n1 n2 n3", nil, remove("n9", 0), notFound, "no member is n9; there are n1, n2 and n3"},
		{"remove nobody", "n1 n2 n3", nil, remove("", 0), invalid, "no member stated"},
		{"remove the last voter", "n1", nil, remove("n1", 0), noQuorum, "removing n1 leaves no voter, and nothing could be read or written any more: add and promote another node first"},
		{"remove the last voter beside a learner", "n1 n2?", nil, remove("n1", 0), noQuorum, "removing n1 leaves no voter"},
		{"remove one of two that answer", "n1 n2- n3", nil, remove("n3", 0), noQuorum, "removing n3 leaves 2 voters, of which 2 must answer; n1 alone answers: start n2 first, or remove n2 instead"},
		{"remove the leader, of two that answer", "n1 n2- n3", nil, remove("n1", 0), noQuorum, "removing n1 leaves 2 voters, of which 2 must answer; n3 alone answers: start n2 first, or remove n2 instead"},
		{"remove the other of two", "n1 n2-", nil, remove("n1", 0), noQuorum, "removing n1 leaves 1 voter, of which 1 must answer; none of them answers: start n2 first, or remove n2 instead"},
		{"remove one of five", "n1 n2- n3- n4 n5", nil, remove("n5", 0), noQuorum, "removing n5 leaves 4 voters, of which 3 must answer; n1 and n4 answer: start n2 or n3 first, or remove n2 or n3 instead"},
		{"remove the leader, nobody has its log", "n1 n2<x n3<x", nil, remove("n1", 0), lagging, "n2 trails the leader by 1500 entries"},

		{"replace, nobody waits", "n1 n2 n3-", nil, replace(start, "n3", 0, 0), notWaiting, "no node asks n1, which leads, to join"},
		{"replace, another waits", "n1 n2 n3-", []Node{n4}, replace(start, "n3", 0, 0), notWaiting, "n3 does not ask n1, which leads, to join, only n4"},
		{"replace who is no member", "n1 n2", []Node{n3b}, replace(start, "n3", 0, 0), notFound, "nothing to replace; `rookeryctl member add n3`"},
		{"replace an id that is none", "n1 n2 n3-", []Node{n3b}, replace(start, "n3", 0x77, 0), notFound, "no member is n3 (id 77)"},
		{"replace twice", "n1 n2 n3- n3?", []Node{n3b}, replace(start, "n3", 0, 0), exists, "n3 is being replaced by another disk already (id 4)"},
		{"replace without a step", "n1 n2 n3", nil, replace(0, "n3", 0, 0), invalid, "is missing"},
		{"replace nobody", "n1 n2 n3", nil, replace(start, "", 0, 0), invalid, "no member stated"},
		{"replace by itself", "n1 n2 n3", nil, replace(start, "n3", 3, 3), invalid, "cannot take its own place"},
		{"finish what was not begun", "n1 n2 n3-", nil, replace(finish, "n3", 0, 0), notFound, "no replacement of n3 is under way; members of that name: n3 (id 3)"},
		{"finish with who lags", "n1 n2 n3- n3?<x", nil, replace(finish, "n3", 0, 0), lagging, "n3 trails the leader by 1500 entries"},
		{"finish with who does not answer", "n1 n2 n3- n3?-", nil, replace(finish, "n3", 0, 0), lagging, "n3 (id 4) does not answer"},
		{"finish without the old majority", "n1 n2- n3- n3?", nil, replace(finish, "n3", 0, 0), noQuorum, "replacing n3, until it is done, leaves 3 voters, of which 2 must answer; n1 alone answers"},
		{"finish without the new majority", "n1 n2 n3- n4- n2?", nil, replace(finish, "n5", 0, 0), notFound, "no replacement of n5"},

		{"move to who is not there", "n1 n2 n3", nil, move("n9"), notFound, "no member is n9"},
		{"move to a learner", "n1 n2?", nil, move("n2"), notVoter, "n2 is a learner and cannot lead"},
		{"move to who does not answer", "n1 n2- n3", nil, move("n2"), lagging, "n2 (id 2) does not answer the leader"},
		{"move to who lags", "n1 n2<x n3", nil, move("n2"), lagging, "n2 trails the leader by 1500 entries"},
		{"move from the only voter", "n1 n2?", nil, move(""), notVoter, "n1 is the only voter"},
		{"move, nobody answers", "n1 n2- n3-", nil, move(""), lagging, "no other voter answers: start n2 or n3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := n.lead(tt.fleet, tt.waiting...)
			err := tt.call(n)
			if got := reasonOf(err); got != tt.reason || !strings.Contains(status.Convert(err).Message(), tt.text) {
				t.Errorf("got %s: %v\nwant %s: %s", got, err, tt.reason, tt.text)
			}
			if len(r.changes) > 0 || len(r.moved) > 0 {
				t.Errorf("it was refused, but %v and moves to %v were made", r.changes, r.moved)
			}
		})
	}
}

// What is done, what it says, and that the same again says UNCHANGED.
func TestMembers(t *testing.T) {
	n, r := newFleet(t, "n1", Node{Name: "n2", ID: 0x22, Context: []byte("addresses")})
	ctx := t.Context()
	last := func() []raftstore.Change {
		if len(r.changes) == 0 {
			return nil
		}
		return r.changes[len(r.changes)-1]
	}
	expect := func(what string, got *apiv1.MemberResult, err error, effect apiv1.Effect, nodes int, note string) {
		t.Helper()
		if err != nil || got.GetEffect() != effect || len(got.GetNodes()) != nodes || !strings.Contains(strings.Join(got.GetNotes(), "; "), note) {
			t.Fatalf("%s: got %v, %v; want %v, %d nodes and %q", what, got, err, effect, nodes, note)
		}
	}
	const added, changed, removed, unchanged = apiv1.Effect_EFFECT_ADDED, apiv1.Effect_EFFECT_CHANGED, apiv1.Effect_EFFECT_REMOVED, apiv1.Effect_EFFECT_UNCHANGED

	a, err := n.AddMember(ctx, &apiv1.AddMemberRequest{Name: "n2"})
	expect("add", a.GetResult(), err, added, 2, "`rookeryctl member promote n2`")
	if c := last(); len(c) != 1 || c[0].Member.ID != 0x22 || c[0].Member.Name != "n2" || !c[0].Member.Learner || string(c[0].Member.Context) != "addresses" || c[0].Remove {
		t.Errorf("add: got %+v", c)
	}
	if m := a.GetResult().GetMember(); !m.GetLearner() || m.GetVoter() || m.GetId() != 0x22 {
		t.Errorf("add: the member: got %v, want a learner", m)
	}
	for _, id := range []uint64{0, 0x22} {
		a, err = n.AddMember(ctx, &apiv1.AddMemberRequest{Name: "n2", Id: id})
		expect("add again", a.GetResult(), err, unchanged, 2, "a member already")
	}
	n.members.Waiting = nil
	a, err = n.AddMember(ctx, &apiv1.AddMemberRequest{Name: "n2"})
	expect("add again, when it asks no more", a.GetResult(), err, unchanged, 2, "a member already")

	learner := &n.members.Nodes[1]
	learner.Active, learner.Match, learner.Applied, learner.State = true, commitIndex-maxTrail, commitIndex-maxTrail, "replicate"
	p, err := n.PromoteMember(ctx, &apiv1.PromoteMemberRequest{Name: "n2"})
	expect("promote", p.GetResult(), err, changed, 2, "2 voters, and both must answer: the loss of either stops writes")
	if c := last(); len(c) != 1 || c[0].Member.ID != 0x22 || c[0].Member.Learner || c[0].Member.Name != "" || c[0].Remove {
		t.Errorf("promote: got %+v; want the vote and nothing else", c)
	}
	p, err = n.PromoteMember(ctx, &apiv1.PromoteMemberRequest{Name: "n2"})
	expect("promote again", p.GetResult(), err, unchanged, 2, "a voter already")

	rm, err := n.RemoveMember(ctx, &apiv1.RemoveMemberRequest{Name: "n2"})
	expect("remove", rm.GetResult(), err, removed, 1, "the id 22 is never used again")
	if m := rm.GetResult().GetMember(); m.GetName() != "n2" || !m.GetVoter() {
		t.Errorf("remove: the member: got %v, want n2 as it was", m)
	}
	rm, err = n.RemoveMember(ctx, &apiv1.RemoveMemberRequest{Name: "n2", Id: 0x22})
	expect("remove again, with the id", rm.GetResult(), err, unchanged, 1, "no member has the id 22")
	_, err = n.RemoveMember(ctx, &apiv1.RemoveMemberRequest{Name: "n2"})
	wantReason(t, "remove again, by name alone", err, apiv1.Reason_REASON_NOT_FOUND)
}

// An emptied disk: a learner first, then one joint change.
func TestReplaceMember(t *testing.T) {
	n, r := newFleet(t, "n1 n2 n3-", Node{Name: "n3", ID: 0x33})
	ctx := t.Context()
	step := func(step apiv1.ReplaceStep, before, after uint64) (*apiv1.MemberResult, error) {
		resp, err := n.ReplaceMember(ctx, &apiv1.ReplaceMemberRequest{Name: "n3", OldId: before, NewId: after, Step: step})
		return resp.GetResult(), err
	}
	const start, finish = apiv1.ReplaceStep_REPLACE_STEP_START, apiv1.ReplaceStep_REPLACE_STEP_FINISH
	got, err := step(start, 0, 0)
	if err != nil || got.GetEffect() != apiv1.Effect_EFFECT_ADDED || len(got.GetNodes()) != 4 || got.GetMember().GetId() != 0x33 || !got.GetMember().GetLearner() {
		t.Fatalf("start: got %v, %v", got, err)
	}
	for _, id := range []uint64{0, 0x33} {
		if got, err = step(start, 0, id); err != nil || got.GetEffect() != apiv1.Effect_EFFECT_UNCHANGED {
			t.Errorf("start again: got %v, %v", got, err)
		}
	}
	if _, err = step(finish, 0, 0); reasonOf(err) != "LAGGING" {
		t.Errorf("finish at once: got %v", err)
	}
	learner := &n.members.Nodes[3]
	learner.Active, learner.Match, learner.Applied, learner.State = true, commitIndex, commitIndex, "replicate"
	if got, err = step(finish, 0, 0); err != nil || got.GetEffect() != apiv1.Effect_EFFECT_CHANGED || len(got.GetNodes()) != 3 || !got.GetMember().GetVoter() {
		t.Fatalf("finish: got %v, %v", got, err)
	}
	c := r.changes[len(r.changes)-1]
	if len(r.changes) != 2 || len(c) != 2 || !c[0].Remove || c[0].Member.ID != 3 || c[1].Remove || c[1].Member.ID != 0x33 || c[1].Member.Learner {
		t.Errorf("finish: got %+v; want one change that removes 3 and promotes 33", r.changes)
	}
	if got, err = step(finish, 3, 0x33); err != nil || got.GetEffect() != apiv1.Effect_EFFECT_UNCHANGED {
		t.Errorf("finish again: got %v, %v", got, err)
	}

	// With the new majority: of four voters three must answer, and n4 is away too.
	n.lead("n1 n2 n3 n4- n3?")
	n.members.Nodes[4].Active = false
	if _, err = step(finish, 3, 5); reasonOf(err) != "LAGGING" {
		t.Errorf("finish with a disk that is gone again: got %v", err)
	}
	n.members.Nodes[4].Active = true
	if got, err = step(finish, 3, 5); err != nil || !slices.ContainsFunc(got.GetNotes(), func(s string) bool {
		return s == "3 of 4 voters answer, and 3 must: the loss of one more stops writes"
	}) {
		t.Errorf("finish beside a node that is down: got %v, %v", got, err)
	}
	// A learner gives way to a learner, once that has the log too.
	n.lead("n1 n2 n3? n3?-")
	if _, err = step(finish, 3, 4); reasonOf(err) != "LAGGING" {
		t.Errorf("a learner's replacement that is empty: got %v", err)
	}
	r = n.lead("n1 n2 n3?- n3?")
	if got, err = step(finish, 3, 4); err != nil || got.GetMember().GetVoter() || len(r.changes[0]) != 1 {
		t.Errorf("a learner's replacement: got %v, %v, %v", got, err, r.changes)
	}
}

// A learner has the log when it said so itself, lately, and Raft says so too.
func TestCaughtUp(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Members, *Node)
		text   string // of the refusal; empty: it is promoted
	}{
		{"it has all", func(*Members, *Node) {}, ""},
		{"just near enough", func(_ *Members, n *Node) { n.Match, n.Applied = commitIndex-maxTrail, commitIndex-maxTrail }, ""},
		{"it is empty, and so is the cluster nearly", func(m *Members, n *Node) { m.Commit, n.Match, n.Applied, n.State = 60, 0, 0, "probe" }, "n3 trails the leader by 60 entries (it has applied 0 of 60)"},
		{"it was never heard", func(m *Members, n *Node) { m.Commit, n.Match, n.Applied, n.Heard = 60, 0, 0, -1 }, "n3 has not said yet how far it is (the leader is at 60)"},
		{"it has the log and was never heard", func(_ *Members, n *Node) { n.Heard = -1 }, "n3 has not said yet how far it is (the leader is at 50000)"},
		{"it is silent", func(_ *Members, n *Node) { n.Heard = 7 * time.Second }, "n3 has not said for 7s how far it is"},
		{"it has the log and has not applied it", func(_ *Members, n *Node) { n.Applied = 1200 }, "n3 trails the leader by 48800 entries (it has applied 1200 of 50000)"},
		{"much was written since it spoke", func(_ *Members, n *Node) { n.Applied, n.Goal = commitIndex-5000, commitIndex-4500 }, ""},
		{"it did not keep up with what was", func(_ *Members, n *Node) { n.Applied, n.Goal = commitIndex-9000, commitIndex-4500 }, "n3 trails the leader by 9000 entries (it has applied 41000 of 50000)"},
		{"it gets a snapshot", func(_ *Members, n *Node) { n.State = "snapshot" }, "n3 gets a snapshot (it has 50000 of 50000)"},
		{"it is asked what it has", func(_ *Members, n *Node) { n.State = "probe" }, "n3 is not sent the log yet"},
		{"it is cut off", func(_ *Members, n *Node) { n.Active = false }, "n3 (id 3) does not answer the leader"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, r := newFleet(t, "n1 n2 n3?")
			tt.change(&n.members, &n.members.Nodes[2])
			if has := slices.ContainsFunc(n.members.problems(), func(s string) bool { return strings.Contains(s, "has the log") }); has != (tt.text == "") {
				t.Errorf("status: got %q", n.members.problems())
			}
			_, err := n.PromoteMember(t.Context(), &apiv1.PromoteMemberRequest{Name: "n3"})
			if tt.text == "" {
				if err != nil {
					t.Errorf("got %v", err)
				}
				return
			}
			if reasonOf(err) != "LAGGING" || !strings.Contains(status.Convert(err).Message(), tt.text) || len(r.changes) > 0 {
				t.Errorf("got %v, changes %v; want %s", err, r.changes, tt.text)
			}
		})
	}
}

// Whoever leads hands the leadership over before it goes, and the caller goes on
// with the new leader.
func TestLeaderGoes(t *testing.T) {
	n, r := newFleet(t, "n1 n2<x n3")
	_, err := n.RemoveMember(t.Context(), &apiv1.RemoveMemberRequest{Name: "n1"})
	wantReason(t, "removing the leader", err, apiv1.Reason_REASON_NOT_LEADER)
	if !slices.Equal(r.moved, []uint64{3}) || len(r.changes) != 0 {
		t.Errorf("got moves to %v and changes %v, want one move to n3, whose log goes farthest", r.moved, r.changes)
	}
	if m := metadataOfStatus(err); m["leader"] != "n3" || m["leader_address"] != "10.0.0.3:7905" {
		t.Errorf("the caller is sent to %v, want n3", m)
	}
	_, err = n.MoveLeader(t.Context(), &apiv1.MoveLeaderRequest{Name: "n1"})
	wantReason(t, "a follower is asked", err, apiv1.Reason_REASON_NOT_LEADER)
	n.members.Leader = 0
	_, err = n.MoveLeader(t.Context(), &apiv1.MoveLeaderRequest{})
	wantReason(t, "nobody leads", err, apiv1.Reason_REASON_NO_LEADER)

	// Likewise when its disk is replaced.
	r = n.lead("n1 n2 n1?")
	_, err = n.ReplaceMember(t.Context(), &apiv1.ReplaceMemberRequest{Name: "n1", OldId: 1, NewId: 3, Step: apiv1.ReplaceStep_REPLACE_STEP_FINISH})
	wantReason(t, "replacing the leader", err, apiv1.Reason_REASON_NOT_LEADER)
	if !slices.Equal(r.moved, []uint64{2}) || len(r.changes) != 0 {
		t.Errorf("got moves to %v and changes %v, want one move to n2", r.moved, r.changes)
	}
}

func TestMoveLeader(t *testing.T) {
	n, r := newFleet(t, "n1 n2 n3")
	got, err := n.MoveLeader(t.Context(), &apiv1.MoveLeaderRequest{Name: "n1"})
	if err != nil || got.GetEffect() != apiv1.Effect_EFFECT_UNCHANGED || got.GetTo() != "n1" || len(r.moved) != 0 {
		t.Errorf("to itself: got %v, %v", got, err)
	}
	got, err = n.MoveLeader(t.Context(), &apiv1.MoveLeaderRequest{Name: "n3"})
	if err != nil || got.GetEffect() != apiv1.Effect_EFFECT_CHANGED || got.GetFrom() != "n1" || got.GetTo() != "n3" || !slices.Equal(r.moved, []uint64{3}) {
		t.Errorf("to n3: got %v, %v, moves %v", got, err, r.moved)
	}
	n.lead("n1 n2 n3")
	n.members.Nodes[1].Match--
	if got, err = n.MoveLeader(t.Context(), &apiv1.MoveLeaderRequest{}); err != nil || got.GetTo() != "n3" {
		t.Errorf("to the best: got %v, %v, want n3", got, err)
	}
	r = n.lead("n1 n2 n3")
	r.fail = raftstore.ErrNoLeader
	_, err = n.MoveLeader(t.Context(), &apiv1.MoveLeaderRequest{Name: "n2"})
	wantReason(t, "a move that fails", err, apiv1.Reason_REASON_NO_LEADER)
	r.fail = errTest
	_, err = n.MoveLeader(t.Context(), &apiv1.MoveLeaderRequest{Name: "n2"})
	wantReason(t, "a move that does not come about", err, apiv1.Reason_REASON_LAGGING)
	n.store.linearizable = raftstore.ErrNoLeader
	_, err = n.MoveLeader(t.Context(), &apiv1.MoveLeaderRequest{Name: "n2"})
	wantReason(t, "without a majority", err, apiv1.Reason_REASON_NO_LEADER)
	n.store.linearizable = nil
	n.replica = nil
	_, err = n.MoveLeader(t.Context(), &apiv1.MoveLeaderRequest{Name: "n2"})
	wantReason(t, "without a replica", err, apiv1.Reason_REASON_UNSUPPORTED)
}

// Raft forgets once in every election timeout who answered: a node that is heard a
// moment later was there all the time.
func TestRefusalIsLookedAtAgain(t *testing.T) {
	asked := 0
	n := newTestNode(t, func(cfg *Config) {
		cfg.Members = func() Members {
			asked++
			m := fleet("n1 n2 n3")
			m.Nodes[1].Active, m.Nodes[2].Active = asked == 4, asked == 6
			return m
		}
	})
	r := &fakeReplica{n: n}
	n.replica = r
	n.members = fleet("n1 n2 n3")
	if _, err := n.RemoveMember(t.Context(), &apiv1.RemoveMemberRequest{Name: "n3", Id: 3}); err != nil || len(r.changes) != 1 {
		t.Errorf("got %v, %v", r.changes, err)
	}
}

// What a node tells of its members comes a moment after the change; the answer
// shows the members with it.
func TestAnswerShowsTheChange(t *testing.T) {
	var r *fakeReplica
	late := 3
	n := newTestNode(t, func(cfg *Config) {
		cfg.Members = func() Members {
			m := r.n.members
			if len(r.changes) > 0 && late > 0 {
				late--
				m = fleet("n1 n2 n3?")
			}
			return m
		}
	})
	r = n.lead("n1 n2 n3?")
	got, err := n.PromoteMember(t.Context(), &apiv1.PromoteMemberRequest{Name: "n3"})
	if err != nil || !got.GetResult().GetMember().GetVoter() || len(got.GetResult().GetNotes()) != 0 {
		t.Errorf("got %v, %v; want n3 with its vote", got, err)
	}
}

func TestCompact(t *testing.T) {
	n, r := newFleet(t, "n1 n2 n3")
	r.steps = 3
	n.members.Leader = 2
	progress, sum, err := n.compacted(t, &apiv1.CompactRequest{Node: "n1"})
	if err != nil || len(progress) == 0 || progress[0].GetTotal() != 3 || sum.GetBeforeBytes() != 100 || sum.GetAfterBytes() != 60 || sum.GetHeader().GetNode() != "n1" {
		t.Errorf("got %v, %v, %v", progress, sum, err)
	}
	for _, tt := range []struct {
		name   string
		change func()
		req    *apiv1.CompactRequest
		reason string
		text   string
	}{
		{"another node is meant", func() {}, &apiv1.CompactRequest{Node: "n2"}, "INVALID", "this is n1, not n2"},
		{"another compacts", func() { n.members.Nodes[2].Compacting = true }, &apiv1.CompactRequest{Force: true}, "BUSY", "n3 is compacting, and one node does at a time"},
		{"it compacts", func() { n.compacting.Store(true) }, &apiv1.CompactRequest{Force: true}, "BUSY", "n1 is compacting already"},
		{"it leads", func() { n.members.Leader = 1 }, &apiv1.CompactRequest{}, "LEADING", "n1 leads"},
		{"it leads, and all the same", func() { n.members.Leader = 1 }, &apiv1.CompactRequest{Force: true}, "OK", ""},
		{"it is the only voter", func() { n.members = fleet("n1 n2?") }, &apiv1.CompactRequest{}, "OK", ""},
		{"it fails", func() { r.fail = errTest }, &apiv1.CompactRequest{}, "BROKEN", "as the test wants it"},
		{"there is no replica", func() { n.replica = nil }, &apiv1.CompactRequest{}, "UNSUPPORTED", "cannot compact"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n.members, n.replica, r.fail = fleet("n1 n2 n3"), r, nil
			n.members.Leader = 2
			n.compacting.Store(false)
			tt.change()
			_, sum, err := n.compacted(t, tt.req)
			if got := reasonOf(err); got != tt.reason || !strings.Contains(status.Convert(err).Message(), tt.text) || (err == nil) != (sum != nil) {
				t.Errorf("got %s: %v, %v; want %s: %s", got, err, sum, tt.reason, tt.text)
			}
		})
	}
}

// What status says is wrong, and what not.
func TestNodeProblems(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fleet  string
		change func(*Members)
		want   []string
	}{
		{"one", "n1", nil, nil},
		{"three", "n1 n2 n3", nil, nil},
		{"three, each at its site", "n1@a n2@b n3@c", nil, nil},
		{"two", "n1 n2", nil, []string{"2 voters, and both must answer: the loss of either stops writes; a third voter would end that"}},
		{"one of three is away", "n1 n2 n3-", nil, []string{"n3 was never heard since this node was started", "2 of 3 voters answer, and 2 must: the loss of one more stops writes"}},
		{"one of three was heard", "n1 n2 n3-", func(m *Members) { m.Nodes[2].Heard = 12*time.Second + 5 }, []string{"n3 was last heard 12s ago", "2 of 3 voters answer, and 2 must: the loss of one more stops writes"}},
		{"a follower says it", "n1 n2 n3", func(m *Members) {
			m.Self = 2
			for i := range m.Nodes {
				m.Nodes[i].Active, m.Nodes[i].Match, m.Nodes[i].Heard = false, 0, 900*time.Millisecond
			}
		}, nil},
		{"two of three are away", "n1 n2- n3-", nil, []string{"no majority: of 3 voters 2 must answer; n1 alone answers", "n2 was never heard since this node was started", "n3 was never heard since this node was started"}},
		{"one of five is away", "n1 n2 n3 n4 n5-", nil, []string{"n5 was never heard since this node was started"}},
		{"quarantined", "n1 n2 n3", func(m *Members) { m.Nodes[1].Quarantined = true }, []string{
			"n2 is quarantined: its state differs from the others', and it serves nothing",
			"2 of 3 voters answer, and 2 must: the loss of one more stops writes",
		}},
		{"a learner", "n1 n2 n3 n4?<x", nil, []string{"n4 is a learner and trails the leader by 1500 entries (it has 48500 of 50000)"}},
		{"a learner that has the log", "n1 n2 n3 n4?", nil, []string{"n4 is a learner and has the log: `rookeryctl member promote n4` gives it its vote"}},
		{"a learner that is away", "n1 n2 n3 n4?-", nil, []string{"n4, a learner, was never heard since this node was started"}},
		{"a replacement", "n1 n2 n3- n3?", nil, []string{
			"n3 (id 3) was never heard since this node was started", "2 of 3 voters answer, and 2 must: the loss of one more stops writes",
			"n3 is a learner and has the log: `rookeryctl member replace n3` gives it its vote",
		}},
		{"who waits", "n1 n2 n3", func(m *Members) { m.Waiting = []Node{{Name: "n3", ID: 9}, {Name: "n4", ID: 8}} },
			[]string{"n3 waits to join: `rookeryctl member replace n3`", "n4 waits to join: `rookeryctl member add n4`"}},
		{"who was added and asks on", "n1 n2 n3", func(m *Members) { m.Waiting = []Node{{Name: "n3", ID: 3}} }, nil},
		{"a learner that is empty", "n1 n2 n3 n4?", func(m *Members) { m.Commit, m.Nodes[3].Match, m.Nodes[3].Applied = 60, 0, 0 },
			[]string{"n4 is a learner and trails the leader by 60 entries (it has applied 0 of 60)"}},
		{"a learner that was not heard", "n1 n2 n3 n4?", func(m *Members) { m.Nodes[3].Heard = -1 },
			[]string{"n4 is a learner and has not said yet how far it is (the leader is at 50000)"}},
		{"a learner, says a follower", "n1 n2 n3 n4?", func(m *Members) { m.Self, m.Nodes[3].Applied, m.Nodes[3].Match = 2, 0, 0 },
			[]string{"n4 is a learner and trails the leader by 50000 entries (it has applied 0 of 50000)"}},
		{"a learner that has the log, says a follower", "n1 n2 n3 n4?", func(m *Members) { m.Self, m.Nodes[3].State, m.Nodes[3].Active, m.Nodes[3].Match = 2, "", false, 0 },
			[]string{"n4 is a learner and has the log: `rookeryctl member promote n4` gives it its vote"}},
		{"releases", "n1 n2 n3", func(m *Members) { m.Nodes[2].Version = "v2" }, []string{"releases differ: n1 and n2 v1, n3 v2"}},
		{"a site with two of three", "n1@a n2@a n3@b", nil, []string{"site a holds 2 of 3 voters: its loss stops writes"}},
		{"a site with all", "n1@a n2@a n3@a", nil, []string{"site a holds 3 of 3 voters: its loss stops writes"}},
		{"two sites with two each", "n1@a n2@a n3@b n4@b", nil, []string{"site a holds 2 of 4 voters: its loss stops writes"}},
		{"a site with two of five", "n1@a n2@a n3@b n4@b n5@c", nil, nil},
		{"one, at a site", "n1@a", nil, nil},
		{"one, and a learner elsewhere", "n1@a n2@b?<x", nil, []string{"site a holds 1 of 1 voter: its loss stops writes", "n2 is a learner and trails the leader by 1500 entries (it has 48500 of 50000)"}},
		{"a site with two of three, the third unknown", "n1@a n2@a n3", nil, []string{"site a holds 2 of 3 voters: its loss stops writes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := fleet(tt.fleet)
			if strings.Contains(tt.fleet, "@b?") {
				m.Nodes[1].Voter, m.Nodes[1].Site = false, "b"
			}
			if tt.change != nil {
				tt.change(&m)
			}
			if got := m.problems(); !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

// What the answering node says of each node.
func TestStatusOfNodes(t *testing.T) {
	n, _ := newFleet(t, "n1@a n2 n3?<x", Node{Name: "n4", ID: 9, PeerAddress: "10.0.0.4:7906", Heard: time.Second})
	m := &n.members.Nodes[1]
	m.Heard, m.FileBytes, m.UsedBytes, m.FreeBytes, m.Verified, m.Compacting, m.Quarantined = 300*time.Millisecond, 100, 60, 7000, true, true, true
	st, err := n.Status(t.Context(), &apiv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	nodes := st.GetNodes()
	if len(nodes) != 3 || st.GetNodeId() != 1 || len(st.GetNodeProblems()) == 0 || st.GetLeader() != "n1" {
		t.Fatalf("got %v", st)
	}
	if a := nodes[0]; a.GetSite() != "a" || a.GetHeardMs() != 0 || !a.GetLeader() || a.Trails == nil || a.GetTrails() != 0 || a.GetApplied() != commitIndex || a.GetLearner() {
		t.Errorf("n1: got %v", a)
	}
	if b := nodes[1]; b.GetHeardMs() != 300 || b.GetFileBytes() != 100 || b.GetUsedBytes() != 60 || b.GetFreeBytes() != 7000 || !b.GetVerified() || !b.GetCompacting() || !b.GetQuarantined() || !b.GetActive() || b.GetMatch() != commitIndex || b.GetVersion() != "v1" {
		t.Errorf("n2: got %v", b)
	}
	if c := nodes[2]; !c.GetLearner() || c.GetVoter() || c.GetTrails() != 1500 {
		t.Errorf("n3: got %v", c)
	}
	if w := st.GetWaiting(); len(w) != 1 || w[0].GetLearner() || w[0].GetVoter() || w[0].GetLeader() || w[0].Trails != nil || w[0].GetPeerAddress() != "10.0.0.4:7906" || w[0].GetHeardMs() != 1000 {
		t.Errorf("waiting: got %v", w)
	}
	// Who is a member by now waits no more, though it asks on.
	n.members.Waiting = append(n.members.Waiting, Node{Name: "n3", ID: 3})
	if st, err = n.Status(t.Context(), &apiv1.StatusRequest{}); err != nil || len(st.GetWaiting()) != 1 || st.GetWaiting()[0].GetId() != 9 {
		t.Errorf("waiting beside a member that asks on: got %v, %v", st.GetWaiting(), err)
	}
	// A follower knows of the others what they told it.
	n.members.Self, n.members.Leader = 1, 2
	n.members.Nodes[2].Applied, n.members.Nodes[0].Heard = commitIndex-7, -1
	st, err = n.Status(t.Context(), &apiv1.StatusRequest{})
	if nodes = st.GetNodes(); err != nil || nodes[2].GetTrails() != 7 || nodes[0].GetHeardMs() != never {
		t.Errorf("by a follower: got %v, %v", nodes, err)
	}
	n.members.Leader = 0
	st, err = n.Status(t.Context(), &apiv1.StatusRequest{Consistency: stale(0)})
	if nodes = st.GetNodes(); err != nil || nodes[2].Trails != nil || nodes[2].GetLeader() {
		t.Errorf("without a leader: got %v, %v", nodes, err)
	}
}

// A node that is not told its id finds it by its name.
func TestKnowSelf(t *testing.T) {
	for _, tt := range []struct {
		m    Members
		want uint64
	}{
		{Members{Nodes: []Node{{Name: "n2", ID: 2}, {Name: "n1", ID: 5}}}, 5},
		{Members{Nodes: []Node{{Name: "n1", ID: 2}, {Name: "n1", ID: 5}}, Leader: 5}, 5},
		{Members{Nodes: []Node{{Name: "n1", ID: 2}}, Self: 7}, 7},
		{Members{Nodes: []Node{{Name: "n2", ID: 2}}}, 0},
	} {
		if got := knowSelf(func() Members { return tt.m }, "n1")().Self; got != tt.want {
			t.Errorf("%+v: got %d, want %d", tt.m, got, tt.want)
		}
	}
}
