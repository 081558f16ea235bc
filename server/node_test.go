package server

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
	"github.com/rookery-mail/rookery/raftstore/snap"
	"github.com/rookery-mail/rookery/raftstore/wal"
)

func TestMain(m *testing.M) {
	wal.SetSegmentBytes(1 << 20)
	os.Exit(m.Run())
}

// testNode is one node in this process, its store on real files, and a
// connection to it. What the store says can be bent.
type testNode struct {
	*Server
	apiv1.DirectoryServiceClient
	apiv1.ClusterServiceClient
	store   *bentStore
	conn    *grpc.ClientConn
	caller  Caller
	members Members
	saver   *bentReplica
}

// bentStore is a Store that fails or ages as a test wants.
type bentStore struct {
	Store
	propose      error         // instead of proposing
	linearizable error         // instead of a linearizable view
	age          time.Duration // of local views, if not zero; negative: not known
	when         error         // instead of waiting
	late         bool          // Propose waits for its context before it fails
	unverified   bool          // instead of what the store knows
}

func (b *bentStore) Verified() bool { return !b.unverified && b.Store.Verified() }

func (b *bentStore) Propose(ctx context.Context, command []byte) ([]byte, error) {
	if b.late {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if b.propose != nil {
		return nil, b.propose
	}
	return b.Store.Propose(ctx, command)
}

func (b *bentStore) Local() (View, error) {
	v, err := b.Store.Local()
	if err != nil || b.age == 0 {
		return v, err
	}
	return agedView{v, b.age}, nil
}

func (b *bentStore) Linearizable(ctx context.Context) (View, error) {
	if b.linearizable != nil {
		return nil, b.linearizable
	}
	return b.Store.Linearizable(ctx)
}

func (b *bentStore) When(ctx context.Context, ready func(kv.Reader) bool) (View, error) {
	if b.when != nil {
		return nil, b.when
	}
	return b.Store.When(ctx, ready)
}

type agedView struct {
	View
	age time.Duration
}

func (v agedView) Age() (time.Duration, bool) { return max(v.age, 0), v.age > 0 }

// bentReplica is a Replica that only saves snapshots, as a test wants.
type bentReplica struct {
	Replica
	store  *raftstore.Store
	during func() error // called while the snapshot is written
}

func (b *bentReplica) Snapshot(ctx context.Context, w io.Writer) (snap.Header, error) {
	if b.during != nil {
		if _, err := w.Write([]byte("the beginning")); err != nil {
			return snap.Header{}, err
		}
		return snap.Header{}, b.during()
	}
	return b.store.Snapshot(ctx, w)
}

func newTestNode(t testing.TB, change ...func(*Config)) *testNode {
	t.Helper()
	return newTestNodeOf(t, machine.NewestVersion, change...)
}

// newTestNodeOf is newTestNode in a cluster of that version.
func newTestNodeOf(t testing.TB, version uint32, change ...func(*Config)) *testNode {
	t.Helper()
	m := machine.New()
	raft, err := raftstore.Open(raftstore.Config{Dir: t.TempDir(), Name: "n1", Initial: []raftstore.Member{{Name: "n1"}}, Machine: Applied(m), MmapSize: 1 << 30})
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	t.Cleanup(func() {
		if err := raft.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := BeginAs(ctx, raft, m, func() (uint32, bool) { return version, true }); err != nil {
		t.Fatalf("begin the cluster: %v", err)
	}
	n := &testNode{store: &bentStore{Store: Shard(raft, nil)}, saver: &bentReplica{Replica: raft, store: raft}, caller: Caller{Role: RoleOperator, Name: "carol"}}
	cfg := Config{
		Store: n.store, Machine: m, Node: "n1", Version: "test",
		Identify: func(context.Context) (Caller, error) { return n.caller, nil },
		Members:  func() Members { return n.members },
		Replica:  n.saver,
		Identity: raft.Identity(),
		CatchUp:  50 * time.Millisecond, Confirm: 50 * time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	if n.Server, err = New(cfg); err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() { n.Close(context.Background()) })
	n.conn, err = grpc.NewClient("passthrough:///n1", grpc.WithContextDialer(n.DialMemory), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { n.conn.Close() })
	n.DirectoryServiceClient = apiv1.NewDirectoryServiceClient(n.conn)
	n.ClusterServiceClient = apiv1.NewClusterServiceClient(n.conn)
	return n
}

const (
	be1   = "be1.example.com"
	be2   = "be2.example.com"
	alice = "alice\tlrswipkxtecdan\t"
)

// assert states that a server holds mailboxes, each with its owner's ACL.
func (n *testNode) assert(t testing.TB, server string, mailboxes ...string) {
	t.Helper()
	for _, name := range mailboxes {
		acl := "anyone\tlrs\t"
		if owner, ok := directory.MailboxName(name).Owner(); ok {
			acl = string(owner) + "\tlrswipkxtecdan\t"
		}
		_, err := n.Assert(t.Context(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: name, Server: server, Partition: "default", Acl: &acl}})
		if err != nil {
			t.Fatalf("assert %s on %s: %v", name, server, err)
		}
	}
}

// confirm makes the state complete.
func (n *testNode) confirm(t testing.TB, servers ...string) {
	t.Helper()
	for _, server := range servers {
		if _, err := n.ConfirmBackend(t.Context(), &apiv1.ConfirmBackendRequest{Server: server}); err != nil {
			t.Fatalf("confirm %s: %v", server, err)
		}
	}
}

// lookup returns where a mailbox is.
func (n *testNode) lookup(t testing.TB, name string, c *apiv1.Consistency) *apiv1.LookupResponse {
	t.Helper()
	resp, err := n.Lookup(t.Context(), &apiv1.LookupRequest{Consistency: c, Mailbox: name, Details: true})
	if err != nil {
		t.Fatalf("look %s up: %v", name, err)
	}
	return resp
}

// reasonOf is the reason that an error's status carries, "OK" for nil.
func reasonOf(err error) string {
	if err == nil {
		return "OK"
	}
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			return info.GetReason()
		}
	}
	return "without reason: " + err.Error()
}

func metadataOfStatus(err error) map[string]string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetMetadata()
		}
	}
	return nil
}

func wantReason(t testing.TB, what string, err error, want apiv1.Reason) {
	t.Helper()
	if got, want := reasonOf(err), reasonName(want); got != want {
		t.Errorf("%s: got %s (%v), want %s", what, got, err, want)
	}
}

var (
	atLeast      = func(token []byte) *apiv1.Consistency { return &apiv1.Consistency{Token: token} }
	linearizable = &apiv1.Consistency{Mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE}
	stale        = func(ms uint64) *apiv1.Consistency {
		return &apiv1.Consistency{Mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE, MaxAgeMs: ms}
	}
)

func facts(r *apiv1.Route) (servers []string) {
	for _, f := range r.GetFacts() {
		servers = append(servers, f.GetServer())
	}
	slices.Sort(servers)
	return servers
}

var errTest = errors.New("as the test wants it")
