package server

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Every method of every service has its row, and no row is of a method that is not.
func TestRolesAreWhole(t *testing.T) {
	n := newTestNode(t)
	served := make(map[string]bool)
	for service, info := range n.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			served["/"+service+"/"+m.Name] = true
		}
	}
	for name := range served {
		if _, ok := roles[name]; !ok {
			t.Errorf("%s has no row", name)
		}
	}
	for name := range roles {
		if !served[name] {
			t.Errorf("%s has a row and is not served", name)
		}
	}
}

// The policy, once more and the other way round: by role.
func TestPolicy(t *testing.T) {
	const reads = "Lookup LookupMany LookupUser List Rights Find ListSubscriptions ListVanished Watch Status ListBackends ListGroups ListHolds ListHeld ListForks ListMoves GetSettings ListAlarms GetClusterVersion"
	const states = "Assert Retract Reserve Release Deactivate Rename ConfirmBackend Totals Compare"
	for _, test := range []struct {
		role Role
		may  string // all of it
		own  string // about itself
	}{
		{RoleNone, "", ""},
		{RoleBackend, reads + " Subscribe Unsubscribe", states + " Batch"},
		{RoleFrontend, reads + " Subscribe Unsubscribe", "Batch"},
		{RoleFailover, reads + " PlanSwitchover SetPrimary PutHold ReleaseHold", ""},
		{RolePeer, "Status", ""},
		{RoleOperator, reads + " " + states + " Batch Subscribe Unsubscribe PlanSwitchover SetPrimary PutHold ReleaseHold SetBackend PreviewAdmission " +
			"AdmitBackend RenameBackend SetGroup DecideHeld Settle SetSettings Check DisarmAlarm FinalizeClusterVersion " +
			"AddMember PromoteMember RemoveMember ReplaceMember MoveLeader Compact SaveSnapshot", ""},
	} {
		for _, name := range slices.Sorted(maps.Keys(roles)) {
			want := no
			short := name[strings.LastIndexByte(name, '/')+1:]
			switch {
			case !strings.HasPrefix(name, "/rookery.api."):
				want = free
				if test.role == RoleOperator {
					want = yes
				}
			case slices.Contains(strings.Fields(test.may), short):
				want = yes
			case slices.Contains(strings.Fields(test.own), short):
				want = own
			}
			if got := roles[name].allows(Caller{Role: test.role}); got != want {
				t.Errorf("%s, %s: got %d, want %d", test.role, name, got, want)
			}
		}
	}
}

func TestRoleOfCall(t *testing.T) {
	n := newTestNode(t)
	n.assert(t, be1, "user.alice")
	acl := alice
	assertOn := func(server string, imported bool) error {
		_, err := n.Assert(t.Context(), &apiv1.AssertRequest{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: server, Acl: &acl, Imported: imported}})
		return err
	}
	lookup := func() error {
		_, err := n.Lookup(t.Context(), &apiv1.LookupRequest{Mailbox: "user.alice"})
		return err
	}
	list := func() error {
		stream, err := n.DirectoryServiceClient.List(t.Context(), &apiv1.ListRequest{User: "alice", Patterns: []string{"*"}})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	check := func() error {
		stream, err := n.ClusterServiceClient.Check(t.Context(), &apiv1.CheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	for _, test := range []struct {
		name   string
		caller Caller
		call   func() error
		want   bool
	}{
		{"a backend states its own", Caller{RoleBackend, be1}, func() error { return assertOn(be1, false) }, true},
		{"a backend states another's", Caller{RoleBackend, be1}, func() error { return assertOn(be2, false) }, false},
		{"a backend imports", Caller{RoleBackend, be1}, func() error { return assertOn(be1, true) }, false},
		{"a frontend states", Caller{RoleFrontend, be1}, func() error { return assertOn(be1, false) }, false},
		{"an operator imports", Caller{RoleOperator, "carol"}, func() error { return assertOn(be2, true) }, true},
		{"a backend confirms itself", Caller{RoleBackend, be1}, func() error {
			_, err := n.ConfirmBackend(t.Context(), &apiv1.ConfirmBackendRequest{Server: be1})
			return err
		}, true},
		{"a backend confirms another", Caller{RoleBackend, be1}, func() error {
			_, err := n.ConfirmBackend(t.Context(), &apiv1.ConfirmBackendRequest{Server: be2})
			return err
		}, false},
		{"a frontend reads", Caller{RoleFrontend, "fe1"}, lookup, true},
		{"a frontend lists", Caller{RoleFrontend, "fe1"}, list, true},
		{"a frontend checks", Caller{RoleFrontend, "fe1"}, check, false},
		{"an operator checks", Caller{RoleOperator, "carol"}, check, true},
		{"nobody reads", Caller{}, lookup, false},
		{"nobody lists", Caller{}, list, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			n.caller = test.caller
			want := "OK"
			if !test.want {
				want = "ROLE"
			}
			if got := reasonOf(test.call()); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

// Inside a batch each item is allowed as its single call would be.
func TestRoleInsideBatch(t *testing.T) {
	n := newTestNode(t)
	n.assert(t, be2, "user.other")
	items := []*apiv1.BatchItem{
		{Op: &apiv1.BatchItem_Assert{Assert: &apiv1.Assert{Mailbox: "user.alice", Server: be1}}},
		{Op: &apiv1.BatchItem_Retract{Retract: &apiv1.Retract{Mailbox: "user.other", Server: be2}}},
		{Op: &apiv1.BatchItem_Subscribe{Subscribe: &apiv1.Subscribe{User: "alice", Mailbox: "user.other"}}},
	}
	for _, test := range []struct {
		caller Caller
		want   []string
	}{
		{Caller{RoleBackend, be1}, []string{"OK", "ROLE", "OK"}},
		{Caller{RoleFrontend, "fe1"}, []string{"ROLE", "ROLE", "OK"}},
		{Caller{RoleOperator, "carol"}, []string{"OK", "OK", "OK"}},
	} {
		n.caller = test.caller
		resp, err := n.Batch(t.Context(), &apiv1.BatchRequest{Items: items})
		if err != nil {
			t.Fatalf("%s: %v", test.caller, err)
		}
		var got []string
		for _, r := range resp.GetResults() {
			reason := "OK"
			if e := r.GetError(); e != nil {
				reason = reasonName(e.GetReason())
			}
			got = append(got, reason)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.caller, got, test.want)
		}
	}
	if _, err := itemOf(Caller{RoleFailover, "ha"}, items[2]); findStatus(err).reason != apiv1.Reason_REASON_ROLE {
		t.Errorf("failover tooling subscribes: got %v, want ErrRole", err)
	}
	n.caller = Caller{RoleFailover, "ha"}
	_, err := n.Batch(t.Context(), &apiv1.BatchRequest{Items: items})
	wantReason(t, "a batch of failover tooling", err, apiv1.Reason_REASON_ROLE)
}

func TestHealth(t *testing.T) {
	n := newTestNode(t)
	n.caller = Caller{} // health is told to everybody
	h := healthv1.NewHealthClient(n.conn)
	check := func(service string) string {
		resp, err := h.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil {
			return status.Code(err).String()
		}
		return resp.GetStatus().String()
	}
	for _, service := range []string{"", "rookery.api.v1.DirectoryService", "rookery.api.v1.ClusterService"} {
		if got := check(service); got != "SERVING" {
			t.Errorf("%q: got %s, want SERVING", service, got)
		}
	}
	if got := check("no.such"); got != codes.NotFound.String() {
		t.Errorf("a service that is not: got %s, want NotFound", got)
	}
	n.SetServing(false)
	if got := check(""); got != "NOT_SERVING" {
		t.Errorf("after SetServing(false): got %s", got)
	}
}
