package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
)

// saved reads a snapshot to its summary.
func (n *testNode) saved(t *testing.T) ([]byte, *apiv1.SnapshotSummary, error) {
	t.Helper()
	stream, err := n.SaveSnapshot(t.Context(), &apiv1.SaveSnapshotRequest{})
	if err != nil {
		return nil, nil, err
	}
	var all bytes.Buffer
	var summary *apiv1.SnapshotSummary
	for {
		m, err := stream.Recv()
		switch {
		case err == io.EOF:
			return all.Bytes(), summary, nil
		case err != nil:
			return nil, nil, err
		case summary != nil:
			t.Errorf("after the summary: %v", m)
		case m.GetSummary() != nil:
			summary = m.GetSummary()
		default:
			all.Write(m.GetChunk())
		}
	}
}

func TestSaveSnapshot(t *testing.T) {
	n := newTestNode(t)
	n.assert(t, be1, "user.alice", "user.bob")
	seen := n.lookup(t, "user.alice", nil).GetHeader()
	all, sum, err := n.saved(t)
	if err != nil {
		t.Fatalf("SaveSnapshot: %v", err)
	}
	hash := sha256.Sum256(all)
	id := n.saver.store.Identity()
	if sum.GetSize() != uint64(len(all)) || !bytes.Equal(sum.GetSha256(), hash[:]) || sum.GetNode() != "n1" || sum.GetClusterId() != id.Cluster.String() ||
		sum.GetIncarnation() != 1 || sum.GetShard() != 1 || sum.GetRevision() < seen.GetRevision() || sum.GetIndex() == 0 || sum.GetTerm() == 0 {
		t.Errorf("summary of %d octets: %v", len(all), sum)
	}
	r, err := snap.NewReader(bytes.NewReader(all))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil || r.Header.Index != sum.GetIndex() {
		t.Errorf("the snapshot: %v, index %d, want %d", err, r.Header.Index, sum.GetIndex())
	}

	// One at a time; what breaks off has no summary.
	n.saver.during = func() error {
		_, _, err := n.saved(t)
		wantReason(t, "a second one", err, apiv1.Reason_REASON_BUSY)
		return errTest
	}
	if _, sum, err := n.saved(t); err == nil || sum != nil {
		t.Errorf("one that failed: got %v, %v", sum, err)
	}
	n.saver.during = nil
	if _, _, err := n.saved(t); err != nil {
		t.Errorf("after one that failed: %v", err)
	}
	bare := newTestNode(t, func(c *Config) { c.Replica = nil })
	_, _, err = bare.saved(t)
	wantReason(t, "without a replica", err, apiv1.Reason_REASON_UNSUPPORTED)
}

// restored is a node on a directory that was restored from n's snapshot, whose life
// has not begun.
func restored(t *testing.T, n *testNode) *testNode {
	t.Helper()
	all, _, err := n.saved(t)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "night.snap")
	if err := os.WriteFile(path, all, 0o600); err != nil {
		t.Fatal(err)
	}
	m := machine.New()
	cfg := raftstore.Config{Dir: t.TempDir(), Name: "n1", Machine: Applied(m), MmapSize: 1 << 30}
	if _, err := raftstore.Restore(cfg, path, 0); err != nil {
		t.Fatalf("Restore: %v", err)
	}
	raft, err := raftstore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := raft.Close(); err != nil {
			t.Errorf("close the restored store: %v", err)
		}
	})
	return newTestNode(t, func(c *Config) {
		c.Store, c.Machine, c.Identity, c.Replica = Shard(raft, nil), m, raft.Identity(), &bentReplica{store: raft}
	})
}

// A restored node answers nothing before its own life has begun, and nothing of the
// life before afterwards.
func TestRestoredNode(t *testing.T) {
	before := newTestNode(t)
	before.assert(t, be1, "user.alice")
	before.confirm(t, be1)
	old := before.lookup(t, "user.alice", nil)
	n := restored(t, before)
	acl := alice
	assert := func(incarnation uint32) (*apiv1.AssertResponse, error) {
		return n.Assert(t.Context(), &apiv1.AssertRequest{
			RequestId: &apiv1.RequestId{Incarnation: incarnation},
			Assert:    &apiv1.Assert{Mailbox: "user.bob", Server: be1, Acl: &acl},
		})
	}
	lookup := func(c *apiv1.Consistency) (*apiv1.LookupResponse, error) {
		return n.Lookup(t.Context(), &apiv1.LookupRequest{Consistency: c, Mailbox: "user.alice"})
	}
	for _, c := range []*apiv1.Consistency{nil, linearizable, stale(0), atLeast(old.GetHeader().GetToken())} {
		_, err := lookup(c)
		wantReason(t, "Lookup before the life has begun", err, apiv1.Reason_REASON_BEHIND)
	}
	_, err := assert(0)
	wantReason(t, "Assert before the life has begun", err, apiv1.Reason_REASON_NO_LEADER)
	_, _, err = n.saved(t)
	wantReason(t, "a snapshot of a life that has not begun", err, apiv1.Reason_REASON_BEHIND)

	raft := n.Server.replica.(*bentReplica).store
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 2 { // once is enough
		if err := Begin(ctx, raft, n.machine); err != nil {
			t.Fatalf("Begin: %v", err)
		}
	}
	r, err := lookup(linearizable)
	if err != nil {
		t.Fatal(err)
	}
	h := r.GetHeader()
	if h.GetIncarnation() != 2 || h.GetRevision() < old.GetHeader().GetRevision()+1<<32 || r.GetRoute().GetOutcome() != apiv1.Outcome_OUTCOME_UNCONFIRMED ||
		r.GetRoute().GetServer().GetName() != be1 || r.GetRoute().GetEpoch() != 1+1<<32 {
		t.Errorf("got %v", r)
	}
	_, err = lookup(atLeast(old.GetHeader().GetToken()))
	wantReason(t, "an old token", err, apiv1.Reason_REASON_WRONG_INCARNATION)
	if m := metadataOfStatus(err); m["incarnation"] != "2" || m["seen"] != "1" {
		t.Errorf("an old token: metadata %v", m)
	}
	_, err = before.Lookup(t.Context(), &apiv1.LookupRequest{Consistency: atLeast(h.GetToken()), Mailbox: "user.alice"})
	wantReason(t, "a new token at an old node", err, apiv1.Reason_REASON_WRONG_INCARNATION)

	st, err := n.Status(t.Context(), &apiv1.StatusRequest{})
	if err != nil || !st.GetRecovering() || !st.GetAutomationPaused() || st.GetBackendsConfirmed() != 0 || st.GetBackendsCounted() != 1 {
		t.Errorf("Status: got %v, %v", st, err)
	}

	// A write of who has seen a later life is not done; of who has seen an earlier one
	// it is, but for saying that a list is whole which was told to another.
	_, err = assert(3)
	wantReason(t, "a write from a later life", err, apiv1.Reason_REASON_WRONG_INCARNATION)
	if r := n.lookup(t, "user.bob", linearizable).GetRoute(); len(r.GetFacts()) != 0 {
		t.Errorf("it was done all the same: %v", r)
	}
	if _, err = assert(1); err != nil {
		t.Errorf("a write from an earlier life: %v", err)
	}
	_, err = n.ConfirmBackend(t.Context(), &apiv1.ConfirmBackendRequest{Server: be1, Incarnation: 1})
	wantReason(t, "a list stated in an earlier life", err, apiv1.Reason_REASON_INVALID)
	n.confirm(t, be1)
	if r := n.lookup(t, "user.alice", nil).GetRoute(); r.GetOutcome() != apiv1.Outcome_OUTCOME_SERVING || !r.GetFacts()[0].GetConfirmed() {
		t.Errorf("confirmed: got %v", r)
	}
	if r := n.lookup(t, "user.nobody", nil).GetRoute(); r.GetOutcome() != apiv1.Outcome_OUTCOME_NOT_FOUND {
		t.Errorf("when all are confirmed: got %v", r)
	}
	if st, err := n.Status(t.Context(), &apiv1.StatusRequest{}); err != nil || st.GetRecovering() {
		t.Errorf("Status: got %v, %v", st, err)
	}
}

// A state that cannot follow what the store says stops the node.
func TestBeginRefused(t *testing.T) {
	_, err := firstCommand(&machine.Status{}, raftstore.Identity{Incarnation: 1 << 32}, 1)
	if err == nil {
		t.Error("an incarnation out of range passed")
	}
	if _, err := firstCommand(&machine.Status{ClusterID: "c"}, raftstore.Identity{Incarnation: 2}, 1); err != nil {
		t.Errorf("got %v", err)
	}
}
