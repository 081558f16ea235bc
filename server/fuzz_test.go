package server

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// apiMethods are all of the API, in the order of the contract.
func apiMethods(t testing.TB) (all []protoreflect.MethodDescriptor) {
	t.Helper()
	file, err := protoregistry.GlobalFiles.FindDescriptorByName("rookery.api.v1.DirectoryService")
	if err != nil {
		t.Fatal(err)
	}
	other, err := protoregistry.GlobalFiles.FindDescriptorByName("rookery.api.v1.ClusterService")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []protoreflect.Descriptor{file, other} {
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			all = append(all, methods.Get(i))
		}
	}
	return all
}

func newMessage(t testing.TB, d protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return kind.New().Interface()
}

// FuzzRequest has a node answer whatever a request of any method may say, by a
// caller of any role. It is answered, or refused with a reason; the node is never
// at fault, and its indexes follow from its facts.
func FuzzRequest(f *testing.F) {
	methods := apiMethods(f)
	acl := alice
	seeds := []proto.Message{
		&apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: be1, Partition: "default", Acl: &acl, MailboxId: proto.String("id"), Type: apiv1.MailboxType_MAILBOX_TYPE_EMAIL}},
		&apiv1.RetractRequest{Retract: &apiv1.Retract{Mailbox: "user.alice", Server: be1, Epoch: 1}},
		&apiv1.ReserveRequest{Reserve: &apiv1.Reserve{Mailbox: "user.new", Server: be1, GraceMs: 5}},
		&apiv1.RenameRequest{Rename: &apiv1.Rename{From: "user.alice", To: "user.al", Server: be1, Recursive: true}},
		&apiv1.BatchRequest{Items: []*apiv1.BatchItem{{Op: &apiv1.BatchItem_Assert{Assert: &apiv1.Assert{Mailbox: "user.bob", Server: be2}}}, {}}},
		&apiv1.LookupManyRequest{Mailboxes: []string{"user.alice", "x", ""}, Consistency: &apiv1.Consistency{MaxAgeMs: 1}},
		&apiv1.ListRequest{Patterns: []string{"*", "INBOX.%"}, Reference: "a", User: "alice", AclGroups: []string{"g"}},
		&apiv1.WatchRequest{Details: true},
		&apiv1.SetBackendRequest{Server: be1, Create: true, Addresses: &apiv1.AddressList{Addresses: []*apiv1.Address{{Service: "imap", Ip: "::1", Port: 143}}}},
		&apiv1.SetGroupRequest{Group: "g", Members: []string{be1, be2}, AcceptMissing: true},
		&apiv1.SetPrimaryRequest{Group: "g", To: be2, Epoch: 1},
		&apiv1.PutHoldRequest{Kind: apiv1.HoldKind_HOLD_KIND_USER, Key: "alice", ForMs: 1 << 40},
		&apiv1.SetSettingsRequest{Settings: &apiv1.Settings{DefaultDomain: proto.String("example.com")}},
		&apiv1.DecideHeldRequest{Server: be1, Decision: apiv1.Decision_DECISION_REJECT},
	}
	for i, m := range methods {
		f.Add(uint8(i), uint8(0), []byte{})
		for _, seed := range seeds {
			if seed.ProtoReflect().Descriptor().FullName() == m.Input().FullName() {
				b, err := proto.Marshal(seed)
				if err != nil {
					f.Fatal(err)
				}
				f.Add(uint8(i), uint8(len(b)), b)
			}
		}
	}
	n := newTestNode(f)
	n.assert(f, be1, "user.alice", "user.alice.Drafts", "shared.pub")
	n.assert(f, be2, "user.bob")
	callers := []Caller{{Role: RoleOperator, Name: "carol"}, {Role: RoleBackend, Name: be1}, {Role: RoleFrontend, Name: "f1"}, {Role: RoleFailover, Name: "x"}, {}}
	calls := 0
	f.Fuzz(func(t *testing.T, which, who uint8, b []byte) {
		m := methods[int(which)%len(methods)]
		req := newMessage(t, m.Input())
		if proto.Unmarshal(b, req) != nil {
			return
		}
		n.caller = callers[int(who)%len(callers)]
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
		var err error
		if !m.IsStreamingServer() {
			err = n.conn.Invoke(ctx, path, req, newMessage(t, m.Output()))
		} else {
			err = n.drain(ctx, cancel, path, req, newMessage(t, m.Output()))
		}
		switch code := status.Code(err); code {
		case codes.OK, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.FailedPrecondition,
			codes.OutOfRange, codes.Unimplemented, codes.Unauthenticated, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		default:
			t.Errorf("%s by %v: %v", m.Name(), n.caller, err)
		}
		if err != nil && strings.HasPrefix(reasonOf(err), "without") {
			t.Errorf("%s by %v: refused without a reason: %v", m.Name(), n.caller, err)
		}
		if calls++; calls%200 == 1 {
			n.caller = callers[0]
			if findings, _, err := n.checked(t, &apiv1.CheckRequest{}); err != nil || len(findings) > 0 && !findings[0].GetAdvisory() {
				t.Errorf("check: %v, %v", findings, err)
			}
		}
	})
}

// drain reads a stream to its end, or to the second message of one that has none.
func (n *testNode) drain(ctx context.Context, cancel func(), path string, req, resp proto.Message) error {
	stream, err := n.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
	if err != nil {
		return err
	}
	if err := errors.Join(stream.SendMsg(req), stream.CloseSend()); err != nil {
		return err
	}
	_, endless := req.(*apiv1.WatchRequest)
	for count := 0; ; count++ {
		if endless && count == 2 {
			cancel()
			return nil
		}
		if err := stream.RecvMsg(resp); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// FuzzAddresses: what a backend's addresses are taken for goes over the wire and
// back unchanged.
func FuzzAddresses(f *testing.F) {
	f.Add("imap", "10.0.0.1", uint32(143), int32(1))
	f.Add("lmtp", "2001:db8:0::1", uint32(65535), int32(3))
	f.Add("sieve", "::ffff:1.2.3.4", uint32(4190), int32(0))
	f.Fuzz(func(t *testing.T, service, ip string, port uint32, tls int32) {
		got, err := addressesOf([]*apiv1.Address{{Service: service, Ip: ip, Port: port, Tls: apiv1.TlsMode(tls)}})
		if err != nil {
			if !errors.Is(err, directory.ErrInvalid) && !errors.Is(err, errUnsupported) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
			return
		}
		again, err := addressesOf(addressesTo(got))
		if err != nil || len(again) != 1 || again[0] != got[0] {
			t.Errorf("%+v comes back as %+v, %v", got, again, err)
		}
	})
}
