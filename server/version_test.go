package server

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// newOldFleet leads nodes of this release in a cluster of version 1.
func newOldFleet(t *testing.T, words string) *testNode {
	t.Helper()
	n := newTestNodeOf(t, 1)
	n.lead(words)
	for i := range n.members.Nodes {
		n.members.Nodes[i].OldestVersion, n.members.Nodes[i].NewestVersion = machine.OldestVersion, machine.NewestVersion
	}
	return n
}

func (n *testNode) full(t *testing.T) error {
	t.Helper()
	_, err := n.SetBackend(t.Context(), &apiv1.SetBackendRequest{Server: be1, Create: true, State: apiv1.BackendState_BACKEND_STATE_FULL})
	return err
}

// What came with version 2 is refused with words before it gets into the log, and
// taken once the version is raised.
func TestFinalize(t *testing.T) {
	n := newOldFleet(t, "n1 n2 n3")
	before, err := n.store.Local()
	if err != nil {
		t.Fatal(err)
	}
	was := before.(*raftstore.View).Applied()
	before.Release()
	err = n.full(t)
	wantReason(t, "full under version 1", err, apiv1.Reason_REASON_VERSION)
	if got := metadataOfStatus(err); got["version"] != "1" || got["needs"] != "2" {
		t.Errorf("metadata: got %v, want version 1, needs 2", got)
	}
	if !strings.Contains(err.Error(), "rookeryctl cluster-version finalize") {
		t.Errorf("got %v, want what to do in it", err)
	}
	after, err := n.store.Local()
	if err != nil {
		t.Fatal(err)
	}
	defer after.Release()
	if got := after.(*raftstore.View).Applied(); got != was {
		t.Errorf("the log went from %d to %d with a command that is not in force", was, got)
	}

	v, err := n.GetClusterVersion(t.Context(), &apiv1.GetClusterVersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st := v.GetState(); st.GetVersion() != 1 || st.GetNewest() != machine.NewestVersion || len(st.GetTurnsOn()) == 0 || len(st.GetInTheWay()) != 0 || len(st.GetNodes()) != 3 {
		t.Errorf("before: got %v", st)
	}
	st, err := n.Status(t.Context(), &apiv1.StatusRequest{})
	if err != nil || !strings.Contains(strings.Join(st.GetWarnings(), "\n"), "cluster-version finalize") {
		t.Errorf("status: got warnings %q, %v, want the upgrade's end among them", st.GetWarnings(), err)
	}
	r, err := n.FinalizeClusterVersion(t.Context(), &apiv1.FinalizeClusterVersionRequest{})
	if err != nil || r.GetEffect() != apiv1.Effect_EFFECT_CHANGED || r.GetFrom() != 1 || r.GetTo() != machine.NewestVersion || len(r.GetTurnedOn()) == 0 {
		t.Fatalf("finalize: got %v, %v", r, err)
	}
	if r, err := n.FinalizeClusterVersion(t.Context(), &apiv1.FinalizeClusterVersionRequest{}); err != nil || r.GetEffect() != apiv1.Effect_EFFECT_UNCHANGED || r.GetTo() != machine.NewestVersion {
		t.Errorf("again: got %v, %v, want UNCHANGED", r, err)
	}
	if err := n.full(t); err != nil {
		t.Errorf("full under version 2: %v", err)
	}
	v, err = n.GetClusterVersion(t.Context(), &apiv1.GetClusterVersionRequest{})
	if st := v.GetState(); err != nil || st.GetVersion() != machine.NewestVersion || st.GetRelease() != "test" || len(st.GetTurnsOn()) != 0 {
		t.Errorf("after: got %v, %v", st, err)
	}
}

func TestFinalizeRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		fleet  string
		change func(n *testNode)
		to     uint32
		reason apiv1.Reason
		want   string
	}{
		{"a member of an older release", "n1 n2 n3", func(n *testNode) {
			n.members.Nodes[2].OldestVersion, n.members.Nodes[2].NewestVersion, n.members.Nodes[2].Version = 1, 1, "v0.3.0"
		}, 0, apiv1.Reason_REASON_VERSION, "n3 runs release v0.3.0, which supports cluster version 1: upgrade it"},
		{"a learner of an older release", "n1 n2 n3?", func(n *testNode) { n.members.Nodes[2].NewestVersion = 1 }, 0, apiv1.Reason_REASON_VERSION, "n3, a learner, runs"},
		{"a member that was never heard", "n1 n2 n3-", nil, 0, apiv1.Reason_REASON_VERSION, "n3 was never heard since n1 was started: start it, or remove it"},
		{"a member that is quiet", "n1 n2 n3", func(n *testNode) { n.members.Nodes[1].Heard = time.Minute }, 0, apiv1.Reason_REASON_VERSION, "n2 was last heard 1m0s ago"},
		{"a member that is gone since a moment", "n1 n2 n3", func(n *testNode) { n.members.Nodes[1].Active = false }, 0, apiv1.Reason_REASON_VERSION, "n2 does not answer the leader"},
		{"further than the leader knows", "n1", nil, machine.NewestVersion + 1, apiv1.Reason_REASON_VERSION, "supports cluster versions up to 2"},
		{"another node leads", "n1 n2 n3", func(n *testNode) { n.members.Leader = 2 }, 0, apiv1.Reason_REASON_NOT_LEADER, "n2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newOldFleet(t, test.fleet)
			if test.change != nil {
				test.change(n)
			}
			_, err := n.FinalizeClusterVersion(t.Context(), &apiv1.FinalizeClusterVersionRequest{Version: test.to})
			wantReason(t, "finalize", err, test.reason)
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q in it", err, test.want)
			}
			v, err := n.store.Local()
			if err != nil {
				t.Fatal(err)
			}
			defer v.Release()
			if got, err := ClusterVersion(n.machine, v); got != 1 || err != nil {
				t.Errorf("afterwards version %d, %v, want 1", got, err)
			}
		})
	}
	n := newTestNode(t)
	n.lead("n1")
	_, err := n.FinalizeClusterVersion(t.Context(), &apiv1.FinalizeClusterVersionRequest{Version: 1})
	wantReason(t, "lowering", err, apiv1.Reason_REASON_INVALID)
}

// What another node forwards is held against the same gate.
func TestCheckCommand(t *testing.T) {
	full := machine.EncodeCommand(machine.Command{Op: machine.SetBackend{Server: be1, State: new(directory.BackendFull)}})
	for version, want := range map[uint32]error{1: raftstore.ErrNotInForce, 2: nil} {
		n := newTestNodeOf(t, version)
		v, err := n.store.Local()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Release()
		if err := CheckCommand(n.machine, v, full); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("version %d: got %v, want %v", version, err, want)
		}
		if err := CheckCommand(n.machine, v, []byte{0x22, 0x03, 0xd2, 0x0f, 0x00}); !errors.Is(err, machine.ErrUnknownCommand) {
			t.Errorf("version %d, a command of nobody: got %v", version, err)
		}
	}
}

// A new cluster begins with what all its nodes support; whoever was not heard may be
// of any release.
func TestAgreed(t *testing.T) {
	for _, test := range []struct {
		newest  []uint32
		version uint32
		known   bool
	}{
		{[]uint32{2, 2, 2}, 2, true},
		{[]uint32{2, 1, 2}, 1, true},
		{[]uint32{2, 0, 2}, 1, false},
		{[]uint32{2, 9}, machine.NewestVersion, true},
		{nil, machine.NewestVersion, false},
	} {
		var m Members
		for _, v := range test.newest {
			m.Nodes = append(m.Nodes, Node{NewestVersion: v})
		}
		if version, known := m.Agreed(); version != test.version || known != test.known {
			t.Errorf("%v: got %d, %t, want %d, %t", test.newest, version, known, test.version, test.known)
		}
	}
}
