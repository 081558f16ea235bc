package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// Bad input is refused with its reason and changes nothing.
func TestBadInput(t *testing.T) {
	n := newTestNode(t)
	n.assert(t, be1, "user.alice", "user.alice.a", "user.alice.b")
	d, c := n.DirectoryServiceClient, n.ClusterServiceClient
	before := n.lookup(t, "user.alice", linearizable).GetHeader().GetRevision()

	long := strings.Repeat("x", directory.MaxName+1)
	wide := make([]string, 101)
	for i := range wide {
		wide[i] = "*"
	}
	lookup := func(name string) func() error {
		return func() error {
			_, err := d.Lookup(t.Context(), &apiv1.LookupRequest{Mailbox: name})
			return err
		}
	}
	assert := func(a *apiv1.Assert) func() error {
		return func() error {
			_, err := d.Assert(t.Context(), &apiv1.AssertRequest{Assert: a})
			return err
		}
	}
	acl := func(acl string) func() error {
		return assert(&apiv1.Assert{Mailbox: "user.alice", Server: be1, Acl: &acl})
	}
	list := func(req *apiv1.ListRequest) func() error {
		return func() error { _, _, _, err := n.listed(t, req); return err }
	}
	id := func(id *apiv1.RequestId) func() error {
		return func() error {
			_, err := d.Release(t.Context(), &apiv1.ReleaseRequest{RequestId: id, Release: &apiv1.Release{Mailbox: "user.x", Server: be1}})
			return err
		}
	}
	find := func(req *apiv1.FindRequest) func() error {
		return func() error { _, err := d.Find(t.Context(), req); return err }
	}
	backend := func(req *apiv1.SetBackendRequest) func() error {
		return func() error { _, err := c.SetBackend(t.Context(), req); return err }
	}
	address := func(a *apiv1.Address) func() error {
		return backend(&apiv1.SetBackendRequest{Server: be1, Addresses: &apiv1.AddressList{Addresses: []*apiv1.Address{a}}})
	}
	disarm := func(req *apiv1.DisarmAlarmRequest) func() error {
		return func() error { _, err := c.DisarmAlarm(t.Context(), req); return err }
	}
	hold := func(req *apiv1.PutHoldRequest) func() error {
		return func() error { _, err := c.PutHold(t.Context(), req); return err }
	}
	first, err := d.Find(t.Context(), &apiv1.FindRequest{Prefix: "user.", PageSize: 1})
	if err != nil || first.GetNextPageToken() == "" {
		t.Fatalf("a first page: %v, %v", first, err)
	}

	for _, test := range []struct {
		name string
		call func() error
		want apiv1.Reason
	}{
		{"no name", lookup(""), apiv1.Reason_REASON_INVALID_NAME},
		{"empty level", lookup("user..x"), apiv1.Reason_REASON_INVALID_NAME},
		{"two domains", lookup("a!b!c"), apiv1.Reason_REASON_INVALID_NAME},
		{"control octet", lookup("user.a\x01"), apiv1.Reason_REASON_INVALID_NAME},
		{"wrong UTF-7", lookup("user.&Jjo"), apiv1.Reason_REASON_INVALID_NAME},
		{"8 bit", lookup("user.é"), apiv1.Reason_REASON_INVALID_NAME},
		{"long name", lookup(long), apiv1.Reason_REASON_TOO_LARGE},
		{"user", func() error {
			_, err := d.LookupUser(t.Context(), &apiv1.LookupUserRequest{User: "a b\n"})
			return err
		}, apiv1.Reason_REASON_INVALID_NAME},
		{"too many names", func() error {
			_, err := d.LookupMany(t.Context(), &apiv1.LookupManyRequest{Mailboxes: make([]string, maxLookups+1)})
			return err
		}, apiv1.Reason_REASON_TOO_LARGE},

		{"nothing asserted", assert(nil), apiv1.Reason_REASON_INVALID},
		{"no server", assert(&apiv1.Assert{Mailbox: "user.alice"}), apiv1.Reason_REASON_INVALID_NAME},
		{"server with a !", assert(&apiv1.Assert{Mailbox: "user.alice", Server: "be1!x"}), apiv1.Reason_REASON_INVALID_NAME},
		{"partition", assert(&apiv1.Assert{Mailbox: "user.alice", Server: be1, Partition: "a b"}), apiv1.Reason_REASON_INVALID_LOCATION},
		{"type", assert(&apiv1.Assert{Mailbox: "user.alice", Server: be1, Type: 77}), apiv1.Reason_REASON_INVALID},
		{"negative type", assert(&apiv1.Assert{Mailbox: "user.alice", Server: be1, Type: -1}), apiv1.Reason_REASON_INVALID},
		{"long mailbox id", assert(&apiv1.Assert{Mailbox: "user.alice", Server: be1, MailboxId: &long}), apiv1.Reason_REASON_INVALID},
		{"half an ACL", acl("alice"), apiv1.Reason_REASON_INVALID_ACL},
		{"unknown right", acl("alice\tlrz\t"), apiv1.Reason_REASON_INVALID_ACL},
		{"long ACL", acl(strings.Repeat("u\tlrs\t", 20_000)), apiv1.Reason_REASON_TOO_LARGE},

		{"no patterns", list(&apiv1.ListRequest{User: "alice"}), apiv1.Reason_REASON_INVALID_PATTERN},
		{"many patterns", list(&apiv1.ListRequest{User: "alice", Patterns: wide}), apiv1.Reason_REASON_TOO_LARGE},
		{"separator", list(&apiv1.ListRequest{User: "alice", Patterns: []string{"*"}, Namespace: &apiv1.Namespace{Separator: "|"}}), apiv1.Reason_REASON_INVALID},
		{"another default domain", list(&apiv1.ListRequest{User: "alice", Patterns: []string{"*"}, Namespace: &apiv1.Namespace{DefaultDomain: "x.org"}}), apiv1.Reason_REASON_INVALID},
		{"virtual domains", list(&apiv1.ListRequest{User: "alice", Patterns: []string{"*"}, Namespace: &apiv1.Namespace{VirtDomains: true}}), apiv1.Reason_REASON_INVALID},
		{"RECURSIVEMATCH alone", list(&apiv1.ListRequest{User: "alice", Patterns: []string{"*"}, Selection: &apiv1.ListSelection{RecursiveMatch: true}}), apiv1.Reason_REASON_INVALID},
		{"LSUB that selects", list(&apiv1.ListRequest{User: "alice", Patterns: []string{"*"}, Lsub: true, Selection: &apiv1.ListSelection{Subscribed: true}}), apiv1.Reason_REASON_INVALID},
		{"ACL group", list(&apiv1.ListRequest{User: "alice", AclGroups: []string{"a\tb"}, Patterns: []string{"*"}}), apiv1.Reason_REASON_INVALID_NAME},
		{"user that is an identifier", list(&apiv1.ListRequest{User: "anyone", Patterns: []string{"*"}}), apiv1.Reason_REASON_INVALID_NAME},
		{"rights of nothing", func() error {
			_, err := d.Rights(t.Context(), &apiv1.RightsRequest{User: "alice"})
			return err
		}, apiv1.Reason_REASON_INVALID},
		{"rights of a name of no form", func() error {
			_, err := d.Rights(t.Context(), &apiv1.RightsRequest{User: "alice", Name: &apiv1.RightsRequest_ClientName{ClientName: "a!b"}})
			return err
		}, apiv1.Reason_REASON_INVALID_NAME},

		{"prefix", find(&apiv1.FindRequest{Prefix: "user.\n"}), apiv1.Reason_REASON_INVALID_NAME},
		{"long prefix", find(&apiv1.FindRequest{Prefix: long}), apiv1.Reason_REASON_TOO_LARGE},
		{"page token", find(&apiv1.FindRequest{Prefix: "user.", PageToken: "????"}), apiv1.Reason_REASON_INVALID_TOKEN},
		{"page token, cut", find(&apiv1.FindRequest{Prefix: "user.", PageToken: first.GetNextPageToken()[:9]}), apiv1.Reason_REASON_INVALID_TOKEN},
		{"page token of another question", find(&apiv1.FindRequest{Prefix: "user", PageToken: first.GetNextPageToken()}), apiv1.Reason_REASON_INVALID_TOKEN},
		{"page token of held facts", func() error {
			_, err := c.ListHeld(t.Context(), &apiv1.ListHeldRequest{PageToken: be1 + "~"})
			return err
		}, apiv1.Reason_REASON_INVALID_TOKEN},

		{"long client id", id(&apiv1.RequestId{ClientId: strings.Repeat("x", 65), Sequence: 1}), apiv1.Reason_REASON_INVALID},
		{"client id alone", id(&apiv1.RequestId{ClientId: "x"}), apiv1.Reason_REASON_INVALID},
		{"sequence alone", id(&apiv1.RequestId{Sequence: 1}), apiv1.Reason_REASON_INVALID},
		{"large batch", func() error {
			_, err := d.Batch(t.Context(), &apiv1.BatchRequest{Items: make([]*apiv1.BatchItem, directory.MaxBatch+1)})
			return err
		}, apiv1.Reason_REASON_TOO_LARGE},
		{"large request", func() error {
			_, err := d.LookupMany(t.Context(), &apiv1.LookupManyRequest{Mailboxes: []string{strings.Repeat("x", maxRequest)}})
			return err
		}, apiv1.Reason_REASON_TOO_LARGE},
		{"large request of a stream", list(&apiv1.ListRequest{User: strings.Repeat("x", maxRequest)}), apiv1.Reason_REASON_TOO_LARGE},

		{"backend state", backend(&apiv1.SetBackendRequest{Server: be1, State: 9}), apiv1.Reason_REASON_INVALID},
		{"backend that is not", backend(&apiv1.SetBackendRequest{Server: "nobody", Weight: proto.Uint32(1)}), apiv1.Reason_REASON_NOT_FOUND},
		{"service", address(&apiv1.Address{Service: "http", Ip: "10.0.0.1", Port: 1}), apiv1.Reason_REASON_INVALID},
		{"address by name", address(&apiv1.Address{Service: "imap", Ip: "localhost", Port: 1}), apiv1.Reason_REASON_INVALID},
		{"address with a zone", address(&apiv1.Address{Service: "imap", Ip: "fe80::1%eth0", Port: 1}), apiv1.Reason_REASON_INVALID},
		{"port 0", address(&apiv1.Address{Service: "imap", Ip: "10.0.0.1"}), apiv1.Reason_REASON_INVALID},
		{"port 65536", address(&apiv1.Address{Service: "imap", Ip: "10.0.0.1", Port: 65536}), apiv1.Reason_REASON_INVALID},
		{"TLS mode", address(&apiv1.Address{Service: "imap", Ip: "10.0.0.1", Port: 1, Tls: 9}), apiv1.Reason_REASON_INVALID},
		{"group without members", func() error {
			_, err := c.SetGroup(t.Context(), &apiv1.SetGroupRequest{Group: "g"})
			return err
		}, apiv1.Reason_REASON_INVALID},
		{"group mode", func() error {
			_, err := c.SetGroup(t.Context(), &apiv1.SetGroupRequest{Group: "g", Members: []string{be1}, Mode: 9})
			return err
		}, apiv1.Reason_REASON_INVALID},
		{"alarm kind missing", disarm(&apiv1.DisarmAlarmRequest{Node: "n1"}), apiv1.Reason_REASON_INVALID},
		{"alarm kind", disarm(&apiv1.DisarmAlarmRequest{Kind: 9, Node: "n1"}), apiv1.Reason_REASON_INVALID},
		{"alarm of no node", disarm(&apiv1.DisarmAlarmRequest{Kind: 1}), apiv1.Reason_REASON_INVALID},
		{"hold kind", hold(&apiv1.PutHoldRequest{Kind: 9, Key: "x", ForMs: 1}), apiv1.Reason_REASON_INVALID},
		{"hold kind missing", hold(&apiv1.PutHoldRequest{Key: "x", ForMs: 1}), apiv1.Reason_REASON_INVALID},
		{"hold without an end", hold(&apiv1.PutHoldRequest{Kind: apiv1.HoldKind_HOLD_KIND_USER, Key: "alice"}), apiv1.Reason_REASON_INVALID},
		{"hold of no mailbox", hold(&apiv1.PutHoldRequest{Kind: apiv1.HoldKind_HOLD_KIND_MAILBOX, Key: "a..b", ForMs: 1}), apiv1.Reason_REASON_INVALID_NAME},
		{"long reason", hold(&apiv1.PutHoldRequest{Kind: apiv1.HoldKind_HOLD_KIND_USER, Key: "alice", ForMs: 1, Why: strings.Repeat("x", 1025)}), apiv1.Reason_REASON_TOO_LARGE},
		{"confirmation", func() error {
			_, err := c.ConfirmBackend(t.Context(), &apiv1.ConfirmBackendRequest{Server: be1, How: 9})
			return err
		}, apiv1.Reason_REASON_INVALID},
		{"decision missing", func() error {
			_, err := c.DecideHeld(t.Context(), &apiv1.DecideHeldRequest{Server: be1})
			return err
		}, apiv1.Reason_REASON_INVALID},
		{"settings", func() error {
			_, err := c.SetSettings(t.Context(), &apiv1.SetSettingsRequest{Settings: &apiv1.Settings{DefaultDomain: proto.String("a b")}})
			return err
		}, apiv1.Reason_REASON_INVALID},
	} {
		t.Run(test.name, func(t *testing.T) { wantReason(t, test.name, test.call(), test.want) })
	}
	// Some of it the machine refuses, and that is a command; no mailbox changed.
	after := n.lookup(t, "user.alice", linearizable)
	if r := after.GetRoute(); r.GetOutcome() != apiv1.Outcome_OUTCOME_SERVING || r.GetRevision() > before || len(r.GetFacts()) != 1 {
		t.Errorf("user.alice afterwards: got %v", after)
	}
	_, err = d.LookupMany(t.Context(), &apiv1.LookupManyRequest{Mailboxes: []string{strings.Repeat("x", maxMessage)}})
	if got := status.Code(err); got != codes.ResourceExhausted {
		t.Errorf("a request beyond the transport's limit: got %v, want ResourceExhausted", err)
	}
	if err := n.conn.Invoke(t.Context(), "/rookery.api.v1.DirectoryService/NoSuch", &apiv1.LookupRequest{}, &apiv1.LookupResponse{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a method that is not: got %v, want Unimplemented", err)
	}
}

// A repeat is answered and not done twice.
func TestRepeat(t *testing.T) {
	n := newTestNode(t)
	do := func(sequence uint64, name string) (*apiv1.AssertResponse, error) {
		return n.Assert(t.Context(), &apiv1.AssertRequest{
			RequestId: &apiv1.RequestId{ClientId: "c.1", Sequence: sequence},
			Assert:    &apiv1.Assert{Mailbox: name, Server: be1},
		})
	}
	first, err := do(1, "user.alice")
	if err != nil || first.GetResult().GetEffect() != apiv1.Effect_EFFECT_ADDED {
		t.Fatalf("first: got %v, %v, want ADDED", first, err)
	}
	again, err := do(1, "user.alice")
	if err != nil || again.GetResult().GetEffect() != apiv1.Effect_EFFECT_ADDED || again.GetHeader().GetRevision() != first.GetHeader().GetRevision() {
		t.Errorf("again: got %v, %v, want the first answer %v", again, err, first)
	}
	if _, err := do(2, "user.bob"); err != nil {
		t.Fatal(err)
	}
	_, err = do(1, "user.alice")
	wantReason(t, "a late repeat", err, apiv1.Reason_REASON_STALE_REQUEST)
	_, err = n.Batch(t.Context(), &apiv1.BatchRequest{
		RequestId: &apiv1.RequestId{ClientId: "c.1", Sequence: 2},
		Items:     []*apiv1.BatchItem{{Op: &apiv1.BatchItem_Release{Release: &apiv1.Release{Mailbox: "user.x", Server: be1}}}},
	})
	wantReason(t, "another request under the same id", err, apiv1.Reason_REASON_INVALID)
}

// What is told of a write that was not done, and of one that may have been.
func TestWriteFails(t *testing.T) {
	n := newTestNode(t, func(c *Config) { c.Timeout = 20 * time.Millisecond })
	n.members = Members{Nodes: []Node{{Name: "n2", ID: 2, ClientAddress: "10.0.0.2:7905"}}}
	write := func() error {
		_, err := n.Assert(t.Context(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: be1}})
		return err
	}
	for _, test := range []struct {
		name string
		err  error
		want apiv1.Reason
	}{
		{"another leads", &raftstore.NotLeaderError{Leader: 2}, apiv1.Reason_REASON_NOT_LEADER},
		{"nobody leads", raftstore.ErrNoLeader, apiv1.Reason_REASON_NO_LEADER},
		{"overload", raftstore.ErrOverloaded, apiv1.Reason_REASON_OVERLOADED},
		{"too large", raftstore.ErrTooLarge, apiv1.Reason_REASON_TOO_LARGE},
		{"lost", raftstore.ErrUnknown, apiv1.Reason_REASON_UNDECIDED},
		{"closed meanwhile", raftstore.ErrClosed, apiv1.Reason_REASON_UNDECIDED},
		{"stopped meanwhile", &raftstore.StoppedError{Cause: errTest}, apiv1.Reason_REASON_UNDECIDED},
		{"anything else", errTest, apiv1.Reason_REASON_BROKEN},
	} {
		n.store.propose = test.err
		err := write()
		wantReason(t, test.name, err, test.want)
		if test.want == apiv1.Reason_REASON_NOT_LEADER && metadataOfStatus(err)["leader_address"] != "10.0.0.2:7905" {
			t.Errorf("%s: got %v, want the leader's address", test.name, metadataOfStatus(err))
		}
	}
	n.store.propose, n.store.late = nil, true
	wantReason(t, "the server's deadline", write(), apiv1.Reason_REASON_UNDECIDED)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := n.Assert(ctx, &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: be1}})
	if got := status.Code(err); got != codes.DeadlineExceeded {
		t.Errorf("the caller's deadline: got %v, want DeadlineExceeded", err)
	}
}

func FuzzPageToken(f *testing.F) {
	f.Add("")
	f.Add(page("user.alice", "find", "user.", ""))
	f.Add("AQAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		name, err := openPage(s, "find", "user.", "")
		if err == nil && page(name, "find", "user.", "") != s {
			t.Errorf("open %q: got %q, whose token is %q", s, name, page(name, "find", "user.", ""))
		}
	})
}
