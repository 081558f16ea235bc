package client_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/client"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// steeredNode is a node that notes what it is asked to change, and sends callers
// to the leader if it is none.
type steeredNode struct {
	apiv1.UnimplementedClusterServiceServer
	leader string // another's address; empty: this one leads
	asked  []string
}

func reason(code codes.Code, reason string, metadata map[string]string) error {
	st, err := status.New(code, "in words").WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "rookery.api.v1", Metadata: metadata})
	if err != nil {
		return err
	}
	return st.Err()
}

func (f *steeredNode) take(name string, req proto.Message) error {
	f.asked = append(f.asked, fmt.Sprintf("%s %v", name, req))
	if f.leader != "" {
		return reason(codes.Unavailable, "NOT_LEADER", map[string]string{"leader_address": f.leader})
	}
	return nil
}

var (
	steeredHeader = &apiv1.ResponseHeader{Token: []byte("t"), Revision: 3, Incarnation: 1, Node: "n2"}
	steeredResult = &apiv1.MemberResult{
		Effect: apiv1.Effect_EFFECT_CHANGED, Member: &apiv1.Node{Name: "n3", Id: 5, Learner: true, HeardMs: 1<<64 - 1},
		Nodes: []*apiv1.Node{{
			Name: "n1", Id: 1, ClientAddress: "c", PeerAddress: "p", Voter: true, Leader: true, Site: "s", HeardMs: 40, Version: "v", Applied: 7, FileBytes: 9,
			UsedBytes: 8, FreeBytes: 6, Verified: true, Compacting: true, Quarantined: true, Match: 5, Active: true, Trails: proto.Uint64(2),
		}},
		Notes: []string{"note"},
	}
)

func (f *steeredNode) AddMember(_ context.Context, req *apiv1.AddMemberRequest) (*apiv1.AddMemberResponse, error) {
	return &apiv1.AddMemberResponse{Header: steeredHeader, Result: steeredResult}, f.take("add", req)
}

func (f *steeredNode) PromoteMember(_ context.Context, req *apiv1.PromoteMemberRequest) (*apiv1.PromoteMemberResponse, error) {
	if req.GetId() == 99 {
		return nil, reason(codes.FailedPrecondition, "LAGGING", map[string]string{"trails": "4000"})
	}
	return &apiv1.PromoteMemberResponse{Header: steeredHeader, Result: steeredResult}, f.take("promote", req)
}

func (f *steeredNode) RemoveMember(_ context.Context, req *apiv1.RemoveMemberRequest) (*apiv1.RemoveMemberResponse, error) {
	return &apiv1.RemoveMemberResponse{Header: steeredHeader, Result: steeredResult}, f.take("remove", req)
}

func (f *steeredNode) ReplaceMember(_ context.Context, req *apiv1.ReplaceMemberRequest) (*apiv1.ReplaceMemberResponse, error) {
	return &apiv1.ReplaceMemberResponse{Header: steeredHeader, Result: steeredResult}, f.take("replace", req)
}

func (f *steeredNode) MoveLeader(_ context.Context, req *apiv1.MoveLeaderRequest) (*apiv1.MoveLeaderResponse, error) {
	return &apiv1.MoveLeaderResponse{Header: steeredHeader, Effect: apiv1.Effect_EFFECT_CHANGED, From: "n1", To: "n2", TookMs: 12}, f.take("move", req)
}

func (f *steeredNode) Compact(req *apiv1.CompactRequest, stream grpc.ServerStreamingServer[apiv1.CompactResponse]) error {
	f.asked = append(f.asked, fmt.Sprintf("compact %v", req))
	for i := range uint64(2) {
		if err := stream.Send(&apiv1.CompactResponse{Part: &apiv1.CompactResponse_Progress{Progress: &apiv1.CompactProgress{Done: i, Total: 2}}}); err != nil {
			return err
		}
	}
	switch req.GetNode() {
	case "broken":
		return nil
	case "busy":
		return reason(codes.FailedPrecondition, "LEADING", nil)
	}
	return stream.Send(&apiv1.CompactResponse{Part: &apiv1.CompactResponse_Summary{Summary: &apiv1.CompactSummary{Header: steeredHeader, BeforeBytes: 100, AfterBytes: 60, TookMs: 1500}}})
}

// newSteered returns a client that is told of n1 alone, where n2 leads.
func newSteered(t *testing.T) (c *client.Client, follower, leader *steeredNode) {
	t.Helper()
	nodes := make(fakeCluster)
	follower, leader = &steeredNode{leader: "n2"}, &steeredNode{}
	for address, n := range map[string]*steeredNode{"n1": follower, "n2": leader} {
		f := &fakeNode{listener: bufconn.Listen(64 << 10), server: grpc.NewServer()}
		apiv1.RegisterClusterServiceServer(f.server, n)
		served := make(chan struct{})
		go func() {
			defer close(served)
			f.server.Serve(f.listener)
		}()
		t.Cleanup(func() {
			f.server.Stop()
			<-served
		})
		nodes[address] = f
	}
	return nodes.client(t, []string{"n1"}), follower, leader
}

// A change of the membership is made at the leader, wherever it is asked first.
func TestMembersAtTheLeader(t *testing.T) {
	c, follower, leader := newSteered(t)
	ctx := t.Context()
	n3 := client.NodeRef{Name: "n3", ID: 5}
	want := client.MemberResult{
		Effect: client.Changed, Member: client.Node{Name: "n3", ID: 5, Learner: true, Heard: client.AgeUnknown, Trails: client.TrailsUnknown},
		Nodes: []client.Node{{
			Name: "n1", ID: 1, ClientAddress: "c", PeerAddress: "p", Voter: true, Leader: true, Site: "s", Heard: 40 * time.Millisecond, Version: "v", Applied: 7,
			FileBytes: 9, UsedBytes: 8, FreeBytes: 6, Verified: true, Compacting: true, Quarantined: true, Match: 5, Active: true, Trails: 2,
		}},
		Notes: []string{"note"},
	}
	for what, call := range map[string]func() (client.MemberResult, error){
		"add":     func() (client.MemberResult, error) { return c.AddMember(ctx, n3) },
		"promote": func() (client.MemberResult, error) { return c.PromoteMember(ctx, n3) },
		"remove":  func() (client.MemberResult, error) { return c.RemoveMember(ctx, n3) },
		"replace": func() (client.MemberResult, error) { return c.ReplaceMember(ctx, client.ReplaceMember{Name: "n3"}) },
		"replace finish": func() (client.MemberResult, error) {
			return c.ReplaceMember(ctx, client.ReplaceMember{Name: "n3", Old: 4, New: 5, Finish: true})
		},
	} {
		got, err := call()
		if err != nil || got.Revision != 3 || got.Node != "n2" {
			t.Errorf("%s: got %+v, %v", what, got, err)
		}
		got.Answer = client.Answer{}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got\n%+v\nwant\n%+v", what, got, want)
		}
	}
	move, err := c.MoveLeader(ctx, client.NodeRef{Name: "n2"})
	if err != nil || move.From != "n1" || move.To != "n2" || move.Took != 12*time.Millisecond || move.Effect != client.Changed {
		t.Errorf("MoveLeader: got %+v, %v", move, err)
	}
	if len(follower.asked) != 1 || len(leader.asked) != 6 {
		t.Errorf("asked %q of the follower and %q of the leader; want one call, and all", follower.asked, leader.asked)
	}
	for _, asked := range []string{
		(&apiv1.ReplaceMemberRequest{Name: "n3", Step: apiv1.ReplaceStep_REPLACE_STEP_START}).String(),
		(&apiv1.ReplaceMemberRequest{Name: "n3", OldId: 4, NewId: 5, Step: apiv1.ReplaceStep_REPLACE_STEP_FINISH}).String(),
	} {
		if !slices.Contains(leader.asked, "replace "+asked) {
			t.Errorf("asked %q, want %q among it", leader.asked, asked)
		}
	}
	_, err = c.PromoteMember(ctx, client.NodeRef{ID: 99})
	if e, ok := errors.AsType[*client.Error](err); !ok || !errors.Is(err, client.ErrLagging) || errors.Is(err, client.ErrUnavailable) || e.Trails != 4000 {
		t.Errorf("a learner that lags: got %#v", err)
	}
}

func TestCompact(t *testing.T) {
	c, follower, leader := newSteered(t)
	var progress []uint64
	note := func(done, total uint64) error {
		progress = append(progress, done, total)
		return nil
	}
	got, err := c.Compact(t.Context(), "n1", true, note)
	if err != nil || got.Before != 100 || got.After != 60 || got.Took != 1500*time.Millisecond || got.Revision != 3 || !slices.Equal(progress, []uint64{0, 2, 1, 2}) {
		t.Errorf("got %+v, %v, progress %v", got, err, progress)
	}
	if want := []string{"compact " + (&apiv1.CompactRequest{Node: "n1", Force: true}).String()}; !slices.Equal(follower.asked, want) || len(leader.asked) != 0 {
		t.Errorf("asked %q and of the leader %q, want %q of the node dialed alone", follower.asked, leader.asked, want)
	}
	if _, err := c.Compact(t.Context(), "broken", false, note); !errors.Is(err, client.ErrProtocol) {
		t.Errorf("without a summary: got %v, want ErrProtocol", err)
	}
	if _, err := c.Compact(t.Context(), "busy", false, note); !errors.Is(err, client.ErrLeading) {
		t.Errorf("a refusal: got %v, want ErrLeading", err)
	}
	enough := errors.New("enough")
	if _, err := c.Compact(t.Context(), "n1", false, func(uint64, uint64) error { return enough }); err != enough {
		t.Errorf("ended: got %v, want %v", err, enough)
	}
	c.Close()
	if _, err := c.Compact(t.Context(), "n1", false, note); !errors.Is(err, client.ErrClosed) {
		t.Errorf("after Close: got %v, want ErrClosed", err)
	}
}
