package server

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// ask returns the API of one node, without a client library that would go to
// another.
func (c *raftCluster) ask(t *testing.T, name string) apiv1.DirectoryServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+name, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.servers[name].DialMemory(ctx, name) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return apiv1.NewDirectoryServiceClient(conn)
}

// followers returns the nodes that do not lead, once they know who does and have
// seen the cluster begin.
func (c *raftCluster) followers(t *testing.T) (names []string) {
	t.Helper()
	leader, id := c.leader(t)
	for _, name := range []string{"n1", "n2", "n3"} {
		if name == leader {
			continue
		}
		names = append(names, name)
		for range 1500 {
			if c.stores[name].Status().Leader == id && c.servers[name].begun(nil) == nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return names
}

func assertACL(acl string, sequence uint64) *apiv1.AssertRequest {
	return &apiv1.AssertRequest{
		RequestId: &apiv1.RequestId{ClientId: "a client", Sequence: sequence},
		Assert:    &apiv1.Assert{Mailbox: "user.a", Server: "be1.forward.test", Partition: "default", Acl: &acl},
	}
}

// TestForward: a follower takes a write, shows it at once, and answers a retry,
// at whichever node, with what came of the first; a late one changes nothing.
func TestForward(t *testing.T) {
	c, _ := newRaftCluster(t)
	f := c.followers(t)
	a, b := c.ask(t, f[0]), c.ask(t, f[1])
	ctx := t.Context()

	first, err := a.Assert(ctx, assertACL("a\tlrs\t", 1))
	if err != nil {
		t.Fatal(err)
	}
	if c.forwarded.Load() == 0 {
		t.Fatal("nothing was forwarded: this tests nothing")
	}
	for _, mode := range []*apiv1.Consistency{linearizable, atLeast(first.GetHeader().GetToken()), stale(0)} {
		r, err := a.Lookup(ctx, &apiv1.LookupRequest{Mailbox: "user.a", Consistency: mode, Details: true})
		if err != nil || len(r.GetRoute().GetFacts()) != 1 {
			t.Errorf("%v on the follower that took the write: %d facts, %v; want 1", mode.GetMode(), len(r.GetRoute().GetFacts()), err)
		}
	}
	again, err := b.Assert(ctx, assertACL("a\tlrs\t", 1))
	if err != nil || again.GetHeader().GetRevision() != first.GetHeader().GetRevision() || again.GetResult().GetEffect() != first.GetResult().GetEffect() {
		t.Errorf("a retry at another follower: got %v, %v; want the first answer, %v", again, err, first)
	}

	// The answer is lost on its way to the follower: the client is told that nobody
	// knows, and asks again.
	c.loseAnswers.Store(true)
	_, err = a.Assert(ctx, assertACL("a\tlrsp\t", 2))
	wantReason(t, "an answer that was lost", err, apiv1.Reason_REASON_UNDECIDED)
	c.loseAnswers.Store(false)
	if second, err := b.Assert(ctx, assertACL("a\tlrsp\t", 2)); err != nil || second.GetResult().GetEffect() != apiv1.Effect_EFFECT_CHANGED {
		t.Errorf("the retry: got %v, %v; want the answer that was lost: changed", second, err)
	}
	// Long after, the first one arrives once more.
	_, err = a.Assert(ctx, assertACL("a\tlrs\t", 1))
	wantReason(t, "a late retry", err, apiv1.Reason_REASON_STALE_REQUEST)
	r, err := b.Lookup(ctx, &apiv1.LookupRequest{Mailbox: "user.a", Consistency: linearizable, Details: true})
	if err != nil || r.GetRoute().GetFacts()[0].GetAcl() != "a\tlrsp\t" {
		t.Errorf("after a late retry of the older ACL: got %v, %v; want the newer", r.GetRoute().GetFacts(), err)
	}
}

// TestForwardThroughElection: a write that finds no leader waits for one.
func TestForwardThroughElection(t *testing.T) {
	c, _ := newRaftCluster(t)
	f := c.followers(t)
	_, id := c.leader(t)
	c.isolate(id)
	for _, name := range f {
		c.stores[name].Lost(id)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		// On a busy machine an election may take longer than a write waits.
		_, err := c.ask(t, f[0]).Assert(ctx, assertACL("a\tlrs\t", 1))
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// TestFollowerAlone: a node that is started without a majority says what it has
// to whoever takes that, and nothing to others.
func TestFollowerAlone(t *testing.T) {
	c, _ := newRaftCluster(t)
	f := c.followers(t)
	a := c.ask(t, f[0])
	if _, err := a.Assert(t.Context(), assertACL("a\tlrs\t", 1)); err != nil {
		t.Fatal(err)
	}
	c.isolate(c.stores[f[0]].Identity().Node)
	r, err := a.Lookup(t.Context(), &apiv1.LookupRequest{Mailbox: "user.a", Consistency: stale(0), Details: true})
	if err != nil || len(r.GetRoute().GetFacts()) != 1 {
		t.Errorf("STALE: %d facts, %v; want 1", len(r.GetRoute().GetFacts()), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := a.Lookup(ctx, &apiv1.LookupRequest{Mailbox: "user.a", Consistency: linearizable}); err == nil {
		t.Error("a linearizable read was answered without a majority")
	}
}
