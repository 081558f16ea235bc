package server

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// story calls methods in turn, and notes which.
type story struct {
	t      *testing.T
	called map[string]bool
}

// ok makes a call that must succeed.
func ok[Req, Resp any](s *story, call func(*testing.T, Req) (Resp, error), req Req) Resp {
	s.t.Helper()
	resp, err := call(s.t, req)
	s.called[methodName(req)] = true
	if err != nil {
		s.t.Fatalf("%s: %v", methodName(req), err)
	}
	if h, ok := any(resp).(interface{ GetHeader() *apiv1.ResponseHeader }); ok {
		if h := h.GetHeader(); len(h.GetToken()) == 0 || h.GetRevision() == 0 || h.GetNode() != "n1" || h.GetIncarnation() != 1 {
			s.t.Errorf("%s: the header is not filled in: %v", methodName(req), h)
		}
	}
	return resp
}

// effect makes a write that must have that effect.
func effect[Req any, Resp interface{ GetResult() *apiv1.WriteResult }](s *story, want apiv1.Effect, call func(*testing.T, Req) (Resp, error), req Req) *apiv1.WriteResult {
	s.t.Helper()
	result := ok(s, call, req).GetResult()
	if got := result.GetEffect(); got != want {
		s.t.Errorf("%s %v: got %v, want %v", methodName(req), req, got, want)
	}
	return result
}

// refuse makes a call that must be refused.
func refuse[Req, Resp any](s *story, want apiv1.Reason, call func(*testing.T, Req) (Resp, error), req Req) error {
	s.t.Helper()
	_, err := call(s.t, req)
	wantReason(s.t, fmt.Sprintf("%s %v", methodName(req), req), err, want)
	return err
}

func methodName(req any) string {
	return strings.TrimSuffix(reflect.TypeOf(req).Elem().Name(), "Request")
}

// bound binds a generated client's method to the test's context.
func bound[Req, Resp, Opt any](call func(ctx context.Context, req Req, opts ...Opt) (Resp, error)) func(*testing.T, Req) (Resp, error) {
	return func(t *testing.T, req Req) (Resp, error) { return call(t.Context(), req) }
}

// listed reads a listing whole.
func (n *testNode) listed(t *testing.T, req *apiv1.ListRequest) (rows []*apiv1.ListRow, summary *apiv1.ListSummary, messages int, err error) {
	stream, err := n.List(t.Context(), req)
	if err != nil {
		return nil, nil, 0, err
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return rows, summary, messages, nil
		}
		if err != nil {
			return nil, nil, 0, err
		}
		messages++
		if (messages == 1) != (m.GetHeader() != nil) || summary != nil {
			t.Errorf("message %d: has a header: %v; comes after the summary: %v", messages, m.GetHeader() != nil, summary != nil)
		}
		rows = append(rows, m.GetRows()...)
		summary = m.GetSummary()
	}
}

func (n *testNode) checked(t *testing.T, req *apiv1.CheckRequest) (findings []*apiv1.CheckFinding, summary *apiv1.CheckSummary, err error) {
	stream, err := n.Check(t.Context(), req)
	if err != nil {
		return nil, nil, err
	}
	for {
		m, err := stream.Recv()
		switch {
		case err == io.EOF:
			return findings, summary, nil
		case err != nil:
			return nil, nil, err
		case m.GetFinding() != nil:
			findings = append(findings, m.GetFinding())
		case m.GetSummary() != nil:
			summary = m.GetSummary()
		}
	}
}

// Every method of both services, in the order of a murder's life.
func TestEveryMethod(t *testing.T) {
	n := newTestNode(t)
	n.members = Members{Nodes: []Node{{Name: "n1", ID: 1, ClientAddress: "127.0.0.1:7905", Voter: true}}, Leader: 1, Applied: 5}
	s := &story{t: t, called: map[string]bool{"List": true, "Check": true, "SaveSnapshot": true}}
	d, c := n.DirectoryServiceClient, n.ClusterServiceClient

	// Two backends, one with addresses.
	effect(s, apiv1.Effect_EFFECT_ADDED, bound(c.SetBackend), &apiv1.SetBackendRequest{
		Server: be1, Create: true, Addresses: &apiv1.AddressList{Addresses: []*apiv1.Address{
			{Service: "lmtp", Ip: "10.0.0.1", Port: 24},
			{Service: "imap", Ip: "2001:db8::1", Port: 993, Tls: apiv1.TlsMode_TLS_MODE_IMPLICIT},
		}},
	})
	acl := alice
	assert := &apiv1.Assert{Mailbox: "user.alice", Server: be1, Partition: "default", Acl: &acl, MailboxId: proto.String("id1"), UidValidity: proto.Uint32(7), Type: apiv1.MailboxType_MAILBOX_TYPE_EMAIL}
	effect(s, apiv1.Effect_EFFECT_ADDED, bound(d.Assert), &apiv1.AssertRequest{Assert: assert})
	effect(s, apiv1.Effect_EFFECT_UNCHANGED, bound(d.Assert), &apiv1.AssertRequest{Assert: assert})
	n.assert(t, be1, "user.alice.Drafts", "user.alice.Work", "shared.pub", "user.carl")
	n.assert(t, be2, "user.bob")

	err := refuse(s, apiv1.Reason_REASON_INCOMPLETE, bound(d.Reserve), &apiv1.ReserveRequest{Reserve: &apiv1.Reserve{Mailbox: "user.new", Server: be1}})
	if got, want := metadataOfStatus(err)["missing"], be1+" "+be2; got != want {
		t.Errorf("missing: got %q, want %q", got, want)
	}
	effect(s, apiv1.Effect_EFFECT_CHANGED, bound(c.ConfirmBackend), &apiv1.ConfirmBackendRequest{Server: be1})
	effect(s, apiv1.Effect_EFFECT_CHANGED, bound(c.ConfirmBackend), &apiv1.ConfirmBackendRequest{Server: be2, How: apiv1.ConfirmedBy_CONFIRMED_BY_IMPORT})

	// Where things are.
	route := ok(s, bound(d.Lookup), &apiv1.LookupRequest{Mailbox: "user.alice", Details: true}).GetRoute()
	fact := route.GetFacts()[0]
	if route.GetOutcome() != apiv1.Outcome_OUTCOME_SERVING || route.GetServer().GetName() != be1 || len(route.GetServer().GetAddresses()) != 2 ||
		route.GetServer().GetAddresses()[0].GetService() != "imap" || route.GetPrimary() != be1 || route.GetEpoch() != 1 || route.GetListedFrom() != be1 ||
		fact.GetAcl() != alice || fact.GetMailboxId() != "id1" || fact.GetUidValidity() != 7 || fact.GetPartition() != "default" ||
		fact.GetType() != apiv1.MailboxType_MAILBOX_TYPE_EMAIL || fact.GetStanding() != apiv1.Standing_STANDING_IN_FORCE || !fact.GetConfirmed() || !fact.GetAdmitted() {
		t.Errorf("Lookup: got %v", route)
	}
	if brief := ok(s, bound(d.Lookup), &apiv1.LookupRequest{Mailbox: "user.alice"}).GetRoute(); brief.GetFacts() != nil || brief.GetMailbox() != "" || brief.GetServer() == nil {
		t.Errorf("Lookup without details: got %v", brief)
	}
	many := ok(s, bound(d.LookupMany), &apiv1.LookupManyRequest{Mailboxes: []string{"user.bob", "no..name", "user.nobody", "user.alice"}})
	if got := many.GetErrors(); len(got) != 1 || got[0].GetIndex() != 1 || got[0].GetReason() != apiv1.Reason_REASON_INVALID_NAME {
		t.Errorf("LookupMany: errors: got %v", got)
	}
	var outcomes []apiv1.Outcome
	for _, r := range many.GetRoutes() {
		outcomes = append(outcomes, r.GetOutcome())
	}
	if want := []apiv1.Outcome{1, 0, 9, 1}; !slices.Equal(outcomes, want) {
		t.Errorf("LookupMany: got %v, want %v", outcomes, want)
	}
	if r := ok(s, bound(d.LookupUser), &apiv1.LookupUserRequest{User: "bob"}).GetRoute(); r.GetMailbox() != "user.bob" || r.GetServer().GetName() != be2 {
		t.Errorf("LookupUser: got %v", r)
	}

	// What a user sees.
	rows, summary, _, err := n.listed(t, &apiv1.ListRequest{User: "alice", Patterns: []string{"*"}, Return: &apiv1.ListReturn{MyRights: true, Location: true}})
	if err != nil || len(rows) != 4 || rows[0].GetClientName() != "INBOX" || rows[0].GetRights() != "lrswipkxtecdan" || rows[3].GetClientName() != "shared.pub" ||
		rows[3].GetMailbox() != "shared.pub" || rows[3].GetServer() != be1 || rows[3].GetOutcome() != apiv1.Outcome_OUTCOME_SERVING ||
		!slices.Equal(rows[0].GetAttributes(), []apiv1.Attribute{apiv1.Attribute_ATTRIBUTE_HAS_CHILDREN}) {
		t.Errorf("List: got %v, %v", rows, err)
	}
	if !summary.GetComplete() || summary.GetRows() != 4 || summary.GetSeparator() != "." {
		t.Errorf("List: summary: got %v", summary)
	}
	for _, test := range []struct {
		req     *apiv1.RightsRequest
		rights  string
		visible bool
	}{
		{&apiv1.RightsRequest{User: "alice", Name: &apiv1.RightsRequest_ClientName{ClientName: "inbox"}}, "lrswipkxtecdan", true},
		{&apiv1.RightsRequest{User: "alice", Name: &apiv1.RightsRequest_Mailbox{Mailbox: "shared.pub"}}, "lrs", true},
		{&apiv1.RightsRequest{User: "alice", Name: &apiv1.RightsRequest_Mailbox{Mailbox: "user.bob"}}, "", false},
		{&apiv1.RightsRequest{AsAdmin: true, Name: &apiv1.RightsRequest_Mailbox{Mailbox: "user.bob"}}, "la", true},
		{&apiv1.RightsRequest{User: "alice", Namespace: &apiv1.Namespace{Alt: true, Separator: "/"}, Name: &apiv1.RightsRequest_ClientName{ClientName: "Work"}}, "lrswipkxtecdan", true},
	} {
		if r := ok(s, bound(d.Rights), test.req); r.GetRights() != test.rights || r.GetVisible() != test.visible {
			t.Errorf("Rights %v: got %v, want %q, %v", test.req, r, test.rights, test.visible)
		}
	}
	effect(s, apiv1.Effect_EFFECT_ADDED, bound(d.Subscribe), &apiv1.SubscribeRequest{Subscribe: &apiv1.Subscribe{User: "alice", Mailbox: "user.alice.Work"}})
	effect(s, apiv1.Effect_EFFECT_ADDED, bound(d.Subscribe), &apiv1.SubscribeRequest{Subscribe: &apiv1.Subscribe{User: "alice", Mailbox: "gone"}})
	effect(s, apiv1.Effect_EFFECT_REMOVED, bound(d.Unsubscribe), &apiv1.UnsubscribeRequest{Unsubscribe: &apiv1.Unsubscribe{User: "alice", Mailbox: "gone"}})
	if got := ok(s, bound(d.ListSubscriptions), &apiv1.ListSubscriptionsRequest{User: "alice"}).GetMailboxes(); !slices.Equal(got, []string{"user.alice.Work"}) {
		t.Errorf("ListSubscriptions: got %v", got)
	}
	if got := ok(s, bound(d.ListVanished), &apiv1.ListVanishedRequest{PageSize: 1}).GetVanished(); len(got) != 0 {
		t.Errorf("ListVanished: got %v", got)
	}
	rows, _, _, err = n.listed(t, &apiv1.ListRequest{User: "alice", Patterns: []string{"%"}, Selection: &apiv1.ListSelection{Subscribed: true, RecursiveMatch: true}})
	if err != nil || len(rows) != 1 || rows[0].GetClientName() != "INBOX" || !rows[0].GetChildSubscribed() {
		t.Errorf("List of what is subscribed: got %v, %v", rows, err)
	}

	// Page by page.
	var found []string
	for req := (&apiv1.FindRequest{Prefix: "user.", PageSize: 2}); ; {
		page := ok(s, bound(d.Find), req)
		for _, r := range page.GetMailboxes() {
			found = append(found, r.GetMailbox())
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if want := []string{"user.alice", "user.alice.Drafts", "user.alice.Work", "user.bob", "user.carl"}; !slices.Equal(found, want) {
		t.Errorf("Find: got %v, want %v", found, want)
	}
	if got := ok(s, bound(d.Find), &apiv1.FindRequest{Server: be2}).GetMailboxes(); len(got) != 1 || got[0].GetMailbox() != "user.bob" || got[0].GetFacts()[0].GetServer() != be2 {
		t.Errorf("Find by server: got %v", got)
	}

	// Claims, moves, renames.
	result := effect(s, apiv1.Effect_EFFECT_ADDED, bound(d.Reserve), &apiv1.ReserveRequest{Reserve: &apiv1.Reserve{Mailbox: "user.new", Server: be1}})
	if result.GetLapsesInMs() == 0 {
		t.Error("Reserve: no word of when it lapses")
	}
	err = refuse(s, apiv1.Reason_REASON_RESERVED, bound(d.Reserve), &apiv1.ReserveRequest{Reserve: &apiv1.Reserve{Mailbox: "user.new", Server: be2}})
	if got := metadataOfStatus(err)["holder"]; got != be1 {
		t.Errorf("holder of a reservation: got %q, want %q", got, be1)
	}
	if r := ok(s, bound(d.Lookup), &apiv1.LookupRequest{Mailbox: "user.new"}).GetRoute(); r.GetReservation().GetServer() != be1 {
		t.Errorf("Lookup of a reserved name: got %v", r)
	}
	effect(s, apiv1.Effect_EFFECT_REMOVED, bound(d.Release), &apiv1.ReleaseRequest{Release: &apiv1.Release{Mailbox: "user.new", Server: be1}})
	effect(s, apiv1.Effect_EFFECT_NOT_HELD, bound(d.Release), &apiv1.ReleaseRequest{Release: &apiv1.Release{Mailbox: "user.new", Server: be1}})
	refuse(s, apiv1.Reason_REASON_EXISTS, bound(d.Reserve), &apiv1.ReserveRequest{Reserve: &apiv1.Reserve{Mailbox: "user.bob", Server: be1}})
	effect(s, apiv1.Effect_EFFECT_ALREADY_YOURS, bound(d.Reserve), &apiv1.ReserveRequest{Reserve: &apiv1.Reserve{Mailbox: "user.bob", Server: be2}})
	effect(s, apiv1.Effect_EFFECT_CHANGED, bound(d.Deactivate), &apiv1.DeactivateRequest{Deactivate: &apiv1.Deactivate{Mailbox: "user.carl", Server: be1}})
	if got := ok(s, bound(c.ListMoves), &apiv1.ListMovesRequest{}).GetMoves(); len(got) != 1 || got[0].GetMailbox() != "user.carl" || got[0].GetServer() != be1 {
		t.Errorf("ListMoves: got %v", got)
	}
	effect(s, apiv1.Effect_EFFECT_MOVE_COMPLETED, bound(d.Assert), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.carl", Server: be2}})
	if r := ok(s, bound(d.Lookup), &apiv1.LookupRequest{Mailbox: "user.carl", Details: true}).GetRoute(); r.GetMovedFrom() != be1 || r.GetServer().GetName() != be2 {
		t.Errorf("Lookup of what moved: got %v", r)
	}
	if got := effect(s, apiv1.Effect_EFFECT_CHANGED, bound(d.Rename), &apiv1.RenameRequest{Rename: &apiv1.Rename{From: "user.alice.Work", To: "user.alice.Job", Server: be1, Recursive: true}}); got.GetCount() != 1 {
		t.Errorf("Rename: count: got %d, want 1", got.GetCount())
	}
	effect(s, apiv1.Effect_EFFECT_REMOVED, bound(d.Retract), &apiv1.RetractRequest{Retract: &apiv1.Retract{Mailbox: "user.alice.Job", Server: be1}})
	effect(s, apiv1.Effect_EFFECT_NOT_HELD, bound(d.Retract), &apiv1.RetractRequest{Retract: &apiv1.Retract{Mailbox: "user.alice.Job", Server: be1}})
	batch := ok(s, bound(d.Batch), &apiv1.BatchRequest{Items: []*apiv1.BatchItem{
		{Op: &apiv1.BatchItem_Assert{Assert: &apiv1.Assert{Mailbox: "user.dave", Server: be1}}},
		{Op: &apiv1.BatchItem_Assert{Assert: &apiv1.Assert{Mailbox: "no..name", Server: be1}}},
		{Op: &apiv1.BatchItem_Reserve{Reserve: &apiv1.Reserve{Mailbox: "user.bob", Server: be1}}},
		{},
		{Op: &apiv1.BatchItem_Release{Release: &apiv1.Release{Mailbox: "user.bob", Server: be1}}},
		{Op: &apiv1.BatchItem_Deactivate{Deactivate: &apiv1.Deactivate{Mailbox: "user.dave", Server: be1}}},
		{Op: &apiv1.BatchItem_Rename{Rename: &apiv1.Rename{From: "user.dave", To: "user.dan", Server: be1}}},
		{Op: &apiv1.BatchItem_Retract{Retract: &apiv1.Retract{Mailbox: "user.dan", Server: be1}}},
		{Op: &apiv1.BatchItem_Subscribe{Subscribe: &apiv1.Subscribe{User: "bob", Mailbox: "x"}}},
		{Op: &apiv1.BatchItem_Unsubscribe{Unsubscribe: &apiv1.Unsubscribe{User: "bob", Mailbox: "x"}}},
	}})
	var got []string
	for i, r := range batch.GetResults() {
		switch {
		case r.GetError() == nil:
			got = append(got, strings.TrimPrefix(r.GetResult().GetEffect().String(), "EFFECT_"))
		case r.GetError().GetIndex() != uint32(i):
			t.Errorf("Batch: the error of item %d says it is of %d", i, r.GetError().GetIndex())
		default:
			got = append(got, reasonName(r.GetError().GetReason()))
			if i == 2 && r.GetError().GetMetadata()["holder"] != be2 {
				t.Errorf("Batch: metadata: got %v", r.GetError())
			}
		}
	}
	if want := []string{"ADDED", "INVALID_NAME", "EXISTS", "INVALID", "NOT_HELD", "CHANGED", "CHANGED", "REMOVED", "ADDED", "REMOVED"}; !slices.Equal(got, want) {
		t.Errorf("Batch: got %v, want %v", got, want)
	}

	// Forks.
	effect(s, apiv1.Effect_EFFECT_FORKED, bound(d.Assert), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.bob", Server: be1}})
	forks := ok(s, bound(c.ListForks), &apiv1.ListForksRequest{}).GetForks()
	if len(forks) != 1 || forks[0].GetMailbox() != "user.bob" || !forks[0].GetForked() || !slices.Equal(facts(forks[0]), []string{be1, be2}) {
		t.Errorf("ListForks: got %v", forks)
	}
	effect(s, apiv1.Effect_EFFECT_CHANGED, bound(c.Settle), &apiv1.SettleRequest{Mailbox: "user.bob", Keep: be2})
	refuse(s, apiv1.Reason_REASON_NOT_FOUND, bound(c.Settle), &apiv1.SettleRequest{Mailbox: "user.bob", Keep: be2})

	// Replica groups.
	effect(s, apiv1.Effect_EFFECT_ADDED, bound(c.SetBackend), &apiv1.SetBackendRequest{Server: "be3", Create: true})
	effect(s, apiv1.Effect_EFFECT_ADDED, bound(c.SetGroup), &apiv1.SetGroupRequest{Group: "g1", Members: []string{be2, "be3"}})
	groups := ok(s, bound(c.ListGroups), &apiv1.ListGroupsRequest{Group: "g1"}).GetGroups()
	if len(groups) != 1 || groups[0].GetPrimary() != be2 || !slices.Equal(groups[0].GetMembers(), []string{be2, "be3"}) {
		t.Errorf("ListGroups: got %v", groups)
	}
	plan := ok(s, bound(c.PlanSwitchover), &apiv1.PlanSwitchoverRequest{Group: "g1", To: "be3"})
	if plan.GetEqual() || plan.GetMissingCount() != 2 || !slices.Equal(plan.GetMissing(), []string{"user.bob", "user.carl"}) || plan.GetRefusal() != "" || plan.GetFrom() != be2 {
		t.Errorf("PlanSwitchover: got %v", plan)
	}
	refuse(s, apiv1.Reason_REASON_MISSING_AT_TARGET, bound(c.SetPrimary), &apiv1.SetPrimaryRequest{Group: "g1", To: "be3", Epoch: plan.GetEpoch()})
	err = refuse(s, apiv1.Reason_REASON_STALE_EPOCH, bound(c.SetPrimary), &apiv1.SetPrimaryRequest{Group: "g1", To: "be3", Epoch: plan.GetEpoch() + 5})
	if got, want := metadataOfStatus(err)["epoch"], fmt.Sprint(plan.GetEpoch()); got != want {
		t.Errorf("the epoch of a STALE_EPOCH: got %q, want %q", got, want)
	}
	result = effect(s, apiv1.Effect_EFFECT_CHANGED, bound(c.SetPrimary), &apiv1.SetPrimaryRequest{Group: "g1", To: "be3", Epoch: plan.GetEpoch(), Reason: "test", AcceptMissing: true})
	if result.GetEpoch() != plan.GetEpoch()+1 {
		t.Errorf("SetPrimary: epoch: got %d, want %d", result.GetEpoch(), plan.GetEpoch()+1)
	}
	if h := ok(s, bound(c.ListGroups), &apiv1.ListGroupsRequest{Group: "g1"}).GetGroups()[0].GetHistory(); len(h) == 0 || h[len(h)-1].GetReason() != "test" || h[len(h)-1].GetBy() != "operator:carol" {
		t.Errorf("the history of g1: got %v", h)
	}
	if r := ok(s, bound(d.Lookup), &apiv1.LookupRequest{Mailbox: "user.bob"}).GetRoute(); r.GetOutcome() != apiv1.Outcome_OUTCOME_NOT_AT_PRIMARY || r.GetServer().GetName() != be2 || r.GetPrimary() != "be3" {
		t.Errorf("Lookup after the switchover: got %v", r)
	}

	// Holds.
	effect(s, apiv1.Effect_EFFECT_ADDED, bound(c.PutHold), &apiv1.PutHoldRequest{Kind: apiv1.HoldKind_HOLD_KIND_USER, Key: "alice", ForMs: 60_000, Why: "because"})
	if r := ok(s, bound(d.Lookup), &apiv1.LookupRequest{Mailbox: "user.alice"}).GetRoute(); r.GetOutcome() != apiv1.Outcome_OUTCOME_HELD || r.GetHold().GetWhy() != "because" || r.GetHold().GetRemainingMs() == 0 || r.GetServer() != nil {
		t.Errorf("Lookup of what is held: got %v", r)
	}
	if got := ok(s, bound(c.ListHolds), &apiv1.ListHoldsRequest{}).GetHolds(); len(got) != 1 || got[0].GetKey() != "alice" || got[0].GetBy() != "operator:carol" {
		t.Errorf("ListHolds: got %v", got)
	}
	effect(s, apiv1.Effect_EFFECT_REMOVED, bound(c.ReleaseHold), &apiv1.ReleaseHoldRequest{Kind: apiv1.HoldKind_HOLD_KIND_USER, Key: "alice"})

	// Alarms; there are none here.
	if got := ok(s, bound(c.ListAlarms), &apiv1.ListAlarmsRequest{}); len(got.GetAlarms()) != 0 || got.GetGrowthRefused() != "" {
		t.Errorf("ListAlarms: got %v", got)
	}
	if got := ok(s, bound(c.GetClusterVersion), &apiv1.GetClusterVersionRequest{}); got.GetState().GetVersion() != machine.NewestVersion {
		t.Errorf("GetClusterVersion: got %v", got)
	}
	effect(s, apiv1.Effect_EFFECT_UNCHANGED, bound(c.DisarmAlarm), &apiv1.DisarmAlarmRequest{Kind: apiv1.AlarmKind_ALARM_KIND_NO_SPACE, Node: "n1"})

	// The guard, made strict.
	ok(s, bound(c.SetSettings), &apiv1.SetSettingsRequest{Settings: &apiv1.Settings{GuardCount: proto.Uint32(1), GuardPercent: proto.Uint32(0), AdmissionOpen: proto.Bool(false)}})
	settings := ok(s, bound(c.GetSettings), &apiv1.GetSettingsRequest{}).GetSettings()
	if settings.GetGuardCount() != 1 || settings.GuardPercent == nil || settings.GetAdmissionOpen() || settings.GetReserveGraceMs() != uint64(directory.DefaultSettings().ReserveGrace) {
		t.Errorf("GetSettings: got %v", settings)
	}
	n.assert(t, be1, "user.x1", "user.x2", "user.x3", "user.x4")
	for _, name := range []string{"user.x1", "user.x2", "user.x3", "user.x4"} {
		ok(s, bound(d.Retract), &apiv1.RetractRequest{Retract: &apiv1.Retract{Mailbox: name, Server: be1}})
	}
	var held []string
	for req := (&apiv1.ListHeldRequest{PageSize: 1}); ; {
		page := ok(s, bound(c.ListHeld), req)
		for _, h := range page.GetHeld() {
			held = append(held, h.GetMailbox())
			if h.GetServer() != be1 || h.GetState() != apiv1.FactState_FACT_STATE_HELD_WITHDRAWAL {
				t.Errorf("ListHeld: got %v", h)
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if len(held) < 2 || !slices.IsSorted(held) {
		t.Errorf("ListHeld: got %v, want some in order", held)
	}
	if one := ok(s, bound(c.ListHeld), &apiv1.ListHeldRequest{Server: be1}).GetHeld(); len(one) != len(held) {
		t.Errorf("ListHeld of one server: got %v, want %v", one, held)
	}
	ok(s, bound(c.DecideHeld), &apiv1.DecideHeldRequest{Server: be1, Decision: apiv1.Decision_DECISION_APPROVE})

	// A stranger.
	effect(s, apiv1.Effect_EFFECT_NOT_ADMITTED, bound(d.Assert), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: "stranger"}})
	preview := ok(s, bound(c.PreviewAdmission), &apiv1.PreviewAdmissionRequest{Server: "stranger"})
	if preview.GetFacts() != 1 || preview.GetOverlapping() != 1 || preview.GetOverlaps()[0].GetMailbox() != "user.alice" || preview.GetOverlaps()[0].GetServer() != be1 {
		t.Errorf("PreviewAdmission: got %v", preview)
	}
	st := ok(s, bound(c.Status), &apiv1.StatusRequest{})
	if st.GetClusterId() == "" || st.GetLeader() != "n1" || st.GetNode() != "n1" || st.GetVersion() != "test" || st.GetAppliedIndex() != 5 ||
		!slices.Equal(st.GetNotAdmitted(), []string{"stranger"}) || st.GetCounts().GetMailboxes() == 0 || len(st.GetNodes()) != 1 || !st.GetNodes()[0].GetLeader() {
		t.Errorf("Status: got %v", st)
	}
	if !slices.ContainsFunc(st.GetWarnings(), func(w string) bool { return strings.Contains(w, "wait for admission") }) {
		t.Errorf("Status: warnings: got %q", st.GetWarnings())
	}
	ok(s, bound(c.AdmitBackend), &apiv1.AdmitBackendRequest{Server: "stranger"})
	effect(s, apiv1.Effect_EFFECT_CHANGED, bound(c.RenameBackend), &apiv1.RenameBackendRequest{From: "stranger", To: "friend"})
	backends := ok(s, bound(c.ListBackends), &apiv1.ListBackendsRequest{}).GetBackends()
	var list []string
	for _, b := range backends {
		list = append(list, b.GetName())
	}
	if want := []string{be1, be2, "be3", "friend"}; !slices.Equal(list, want) {
		t.Errorf("ListBackends: got %v, want %v", list, want)
	}
	if b := backends[0]; !b.GetConfirmed() || !b.GetAdmitted() || b.GetState() != apiv1.BackendState_BACKEND_STATE_ACTIVE || b.GetFacts() == 0 || !b.GetPrimary() || len(b.GetAddresses()) != 2 {
		t.Errorf("ListBackends: %s: got %v", be1, b)
	}
	refuse(s, apiv1.Reason_REASON_NOT_FOUND, bound(c.ListBackends), &apiv1.ListBackendsRequest{Server: "nobody"})
	refuse(s, apiv1.Reason_REASON_NOT_FOUND, bound(c.ListGroups), &apiv1.ListGroupsRequest{Group: "nobody"})
	refuse(s, apiv1.Reason_REASON_NOT_FOUND, bound(d.Find), &apiv1.FindRequest{Server: "nobody"})

	findings, sum, err := n.checked(t, &apiv1.CheckRequest{})
	if err != nil || sum.GetFaults() != 0 || sum.GetMailboxes() == 0 || sum.GetFacts() == 0 || uint64(len(findings)) != sum.GetAdvisories() {
		t.Errorf("Check: got %v, %v, %v, want no fault", findings, sum, err)
	}

	// The nodes, one of which waits.
	r := &fakeReplica{n: n}
	n.replica = r
	n.members.Waiting = []Node{{Name: "n2", ID: 2}}
	n.members.Commit = 5
	ok(s, bound(c.AddMember), &apiv1.AddMemberRequest{Name: "n2"})
	learner := &n.members.Nodes[1]
	learner.Active, learner.Match, learner.Applied, learner.State = true, 5, 5, "replicate"
	ok(s, bound(c.PromoteMember), &apiv1.PromoteMemberRequest{Name: "n2"})
	n.members.Waiting = []Node{{Name: "n2", ID: 3}}
	ok(s, bound(c.ReplaceMember), &apiv1.ReplaceMemberRequest{Name: "n2", Step: apiv1.ReplaceStep_REPLACE_STEP_START})
	ok(s, bound(c.RemoveMember), &apiv1.RemoveMemberRequest{Name: "n2", Id: 3})
	if r := ok(s, bound(c.FinalizeClusterVersion), &apiv1.FinalizeClusterVersionRequest{}); r.GetEffect() != apiv1.Effect_EFFECT_UNCHANGED || r.GetTo() != machine.NewestVersion {
		t.Errorf("FinalizeClusterVersion: got %v", r)
	}
	ok(s, bound(c.MoveLeader), &apiv1.MoveLeaderRequest{Name: "n1"})
	if _, sum, err := n.compacted(t, &apiv1.CompactRequest{Force: true}); err != nil || sum.GetBeforeBytes() != 100 || sum.GetAfterBytes() != 60 {
		t.Errorf("Compact: got %v, %v", sum, err)
	}
	s.called["Compact"] = true
	updates, err := n.watched(t, &apiv1.WatchRequest{Filter: &apiv1.WatchRequest_User{User: "alice"}})
	if err != nil || !updates[0].GetListing() || !updates[len(updates)-1].GetMark() || len(updates[0].GetEvents()) == 0 {
		t.Errorf("Watch: got %v, %v", updates, err)
	}
	s.called["Watch"] = true

	for _, service := range []string{"rookery.api.v1.DirectoryService", "rookery.api.v1.ClusterService"} {
		for _, m := range n.grpc.GetServiceInfo()[service].Methods {
			if !s.called[m.Name] {
				t.Errorf("%s was not called", m.Name)
			}
		}
	}
}

// A listing longer than a message, and what is asked for in every form.
func TestLongList(t *testing.T) {
	n := newTestNode(t)
	const mailboxes = 3*rowsPerMessage + 7
	items := make([]*apiv1.BatchItem, mailboxes)
	for i := range items {
		acl := alice
		items[i] = &apiv1.BatchItem{Op: &apiv1.BatchItem_Assert{Assert: &apiv1.Assert{Mailbox: fmt.Sprintf("user.alice.f%04d", i), Server: be1, Acl: &acl}}}
	}
	if _, err := n.Batch(t.Context(), &apiv1.BatchRequest{Items: items}); err != nil {
		t.Fatal(err)
	}
	for range 3 { // the buffer is used again
		rows, summary, messages, err := n.listed(t, &apiv1.ListRequest{User: "alice", Patterns: []string{"*"}})
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) != mailboxes || summary.GetRows() != mailboxes || messages != 4 {
			t.Errorf("got %d rows in %d messages, the summary says %d, want %d in 4", len(rows), messages, summary.GetRows(), mailboxes)
		}
		for i, row := range rows {
			if want := fmt.Sprintf("INBOX.f%04d", i); row.GetClientName() != want || row.GetRights() != "" {
				t.Fatalf("row %d: got %v, want %s", i, row, want)
			}
		}
		if summary.GetComplete() || !slices.Equal(summary.GetMissing(), []string{be1}) {
			t.Errorf("completeness: got %v, want that %s is missing", summary, be1)
		}
	}
	rows, _, _, err := n.listed(t, &apiv1.ListRequest{User: "alice", Patterns: []string{""}, Namespace: &apiv1.Namespace{Separator: "/"}})
	if err != nil || len(rows) != 1 || rows[0].GetClientName() != "" || !slices.Equal(rows[0].GetAttributes(), []apiv1.Attribute{apiv1.Attribute_ATTRIBUTE_NOSELECT}) {
		t.Errorf("the empty pattern: got %v, %v", rows, err)
	}
	rows, _, _, err = n.listed(t, &apiv1.ListRequest{AsAdmin: true, Patterns: []string{"user/alice/f0000"}, Namespace: &apiv1.Namespace{Separator: "/"}})
	if err != nil || len(rows) != 1 || rows[0].GetMailbox() != "user.alice.f0000" {
		t.Errorf("an administrator's: got %v, %v", rows, err)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	n := newTestNode(t, func(c *Config) { c.Metrics = registry })
	n.assert(t, be1, "user.alice")
	n.lookup(t, "user.alice", nil)
	n.lookup(t, "user.alice", nil)
	for range 3 {
		_, err := n.Lookup(t.Context(), &apiv1.LookupRequest{Mailbox: "no..name"})
		wantReason(t, "Lookup", err, apiv1.Reason_REASON_INVALID_NAME)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := make(map[string]uint64)
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "rookery_watch_") {
			continue // TestWatchMetrics
		}
		if f.GetName() != "rookery_server_request_seconds" {
			t.Errorf("unexpected metric %s", f.GetName())
		}
		for _, m := range f.GetMetric() {
			counted[label(m, "method")+" "+label(m, "result")] = m.GetHistogram().GetSampleCount()
		}
	}
	const lookup = apiv1.DirectoryService_Lookup_FullMethodName
	for key, want := range map[string]uint64{lookup + " OK": 2, lookup + " INVALID_NAME": 3, apiv1.DirectoryService_Assert_FullMethodName + " OK": 1} {
		if counted[key] != want {
			t.Errorf("%s: got %d, want %d", key, counted[key], want)
		}
	}
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}
