package server

import (
	"context"
	"fmt"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Role is what a caller is allowed by its certificate.
type Role uint8

// The roles. An operator may do everything.
const (
	RoleNone     Role = 0
	RoleBackend  Role = 1 // reads, and states its own facts
	RoleFrontend Role = 2 // reads and subscribes
	RoleFailover Role = 3 // reads, holds, moves primaries
	RoleOperator Role = 4
	RolePeer     Role = 5 // a node
)

func (r Role) String() string {
	switch r {
	case RoleBackend:
		return "backend"
	case RoleFrontend:
		return "frontend"
	case RoleFailover:
		return "failover"
	case RoleOperator:
		return "operator"
	case RolePeer:
		return "peer"
	}
	return "none"
}

// Caller is who makes a call.
type Caller struct {
	Role Role
	Name string // of a backend: its backend name
}

// String is how a history names the caller: "operator:carol".
func (c Caller) String() string { return c.Role.String() + ":" + c.Name }

// PlainText is the caller of every call that came without a certificate: such are
// taken on loopback only, where whoever can connect is an operator.
func PlainText(context.Context) (Caller, error) {
	return Caller{Role: RoleOperator, Name: "local"}, nil
}

// access is how far a role may call a method.
type access uint8

const (
	no   access = iota
	yes         // all of it
	own         // about itself: as the server that a write names
	free        // whoever can connect, also without a role
)

// rule is who may call one method. Operators may call all of them.
type rule struct{ backend, frontend, failover, peer access }

// What most methods are: reads for everybody who serves mail, statements of
// backends about themselves, and what is an operator's alone.
var (
	ruleRead     = rule{backend: yes, frontend: yes, failover: yes}
	ruleState    = rule{backend: own}
	ruleSub      = rule{backend: yes, frontend: yes}
	ruleFailover = rule{failover: yes}
	ruleOperator = rule{}
	ruleFree     = rule{free, free, free, free}
)

// roles is the whole policy: every method of every service, and who may call it.
// A method that is not in it may be called by nobody.
var roles = map[string]rule{
	apiv1.DirectoryService_Lookup_FullMethodName:            ruleRead,
	apiv1.DirectoryService_LookupMany_FullMethodName:        ruleRead,
	apiv1.DirectoryService_LookupUser_FullMethodName:        ruleRead,
	apiv1.DirectoryService_List_FullMethodName:              ruleRead,
	apiv1.DirectoryService_Rights_FullMethodName:            ruleRead,
	apiv1.DirectoryService_Find_FullMethodName:              ruleRead,
	apiv1.DirectoryService_ListSubscriptions_FullMethodName: ruleRead,
	apiv1.DirectoryService_ListVanished_FullMethodName:      ruleRead,
	apiv1.DirectoryService_Assert_FullMethodName:            ruleState,
	apiv1.DirectoryService_Retract_FullMethodName:           ruleState,
	apiv1.DirectoryService_Reserve_FullMethodName:           ruleState,
	apiv1.DirectoryService_Release_FullMethodName:           ruleState,
	apiv1.DirectoryService_Deactivate_FullMethodName:        ruleState,
	apiv1.DirectoryService_Rename_FullMethodName:            ruleState,
	apiv1.DirectoryService_Batch_FullMethodName:             {backend: own, frontend: own},
	apiv1.DirectoryService_Subscribe_FullMethodName:         ruleSub,
	apiv1.DirectoryService_Unsubscribe_FullMethodName:       ruleSub,
	apiv1.DirectoryService_Watch_FullMethodName:             ruleRead,

	apiv1.ResyncService_Totals_FullMethodName:  ruleState,
	apiv1.ResyncService_Compare_FullMethodName: ruleState,

	apiv1.ClusterService_Status_FullMethodName:                 {backend: yes, frontend: yes, failover: yes, peer: yes},
	apiv1.ClusterService_ListBackends_FullMethodName:           ruleRead,
	apiv1.ClusterService_ListGroups_FullMethodName:             ruleRead,
	apiv1.ClusterService_ListHolds_FullMethodName:              ruleRead,
	apiv1.ClusterService_ListHeld_FullMethodName:               ruleRead,
	apiv1.ClusterService_ListForks_FullMethodName:              ruleRead,
	apiv1.ClusterService_ListMoves_FullMethodName:              ruleRead,
	apiv1.ClusterService_GetSettings_FullMethodName:            ruleRead,
	apiv1.ClusterService_ListAlarms_FullMethodName:             ruleRead,
	apiv1.ClusterService_DisarmAlarm_FullMethodName:            ruleOperator,
	apiv1.ClusterService_PlanSwitchover_FullMethodName:         ruleFailover,
	apiv1.ClusterService_SetPrimary_FullMethodName:             ruleFailover,
	apiv1.ClusterService_PutHold_FullMethodName:                ruleFailover,
	apiv1.ClusterService_ReleaseHold_FullMethodName:            ruleFailover,
	apiv1.ClusterService_ConfirmBackend_FullMethodName:         ruleState,
	apiv1.ClusterService_SetBackend_FullMethodName:             ruleOperator,
	apiv1.ClusterService_PreviewAdmission_FullMethodName:       ruleOperator,
	apiv1.ClusterService_AdmitBackend_FullMethodName:           ruleOperator,
	apiv1.ClusterService_RenameBackend_FullMethodName:          ruleOperator,
	apiv1.ClusterService_SetGroup_FullMethodName:               ruleOperator,
	apiv1.ClusterService_DecideHeld_FullMethodName:             ruleOperator,
	apiv1.ClusterService_Settle_FullMethodName:                 ruleOperator,
	apiv1.ClusterService_SetSettings_FullMethodName:            ruleOperator,
	apiv1.ClusterService_Check_FullMethodName:                  ruleOperator,
	apiv1.ClusterService_AddMember_FullMethodName:              ruleOperator,
	apiv1.ClusterService_PromoteMember_FullMethodName:          ruleOperator,
	apiv1.ClusterService_RemoveMember_FullMethodName:           ruleOperator,
	apiv1.ClusterService_ReplaceMember_FullMethodName:          ruleOperator,
	apiv1.ClusterService_MoveLeader_FullMethodName:             ruleOperator,
	apiv1.ClusterService_Compact_FullMethodName:                ruleOperator,
	apiv1.ClusterService_GetClusterVersion_FullMethodName:      ruleRead,
	apiv1.ClusterService_FinalizeClusterVersion_FullMethodName: ruleOperator,
	apiv1.ClusterService_SaveSnapshot_FullMethodName:           ruleOperator,

	healthv1.Health_Check_FullMethodName: ruleFree,
	healthv1.Health_List_FullMethodName:  ruleFree,
	healthv1.Health_Watch_FullMethodName: ruleFree,

	reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName:      ruleFree,
	reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: ruleFree,
}

// allows says how far c may call a method with this rule.
func (r rule) allows(c Caller) access {
	switch c.Role {
	case RoleOperator:
		return yes
	case RoleBackend:
		return r.backend
	case RoleFrontend:
		return r.frontend
	case RoleFailover:
		return r.failover
	case RolePeer:
		return r.peer
	}
	if r == ruleFree {
		return free
	}
	return no
}

// errMayNot is the refusal of a method.
func errMayNot(c Caller, method string) error {
	return withMetadata(fmt.Errorf("%w: %s may not call %s", directory.ErrRole, c, method), "role", c.Role.String(), "method", method)
}

// mayState checks that c speaks for server: a backend does for itself alone.
func (c Caller) mayState(server directory.BackendName) error {
	if c.Role == RoleOperator || c.Role == RoleBackend && c.Name == string(server) {
		return nil
	}
	return withMetadata(fmt.Errorf("%w: %s does not speak for %s", directory.ErrRole, c, server), "role", c.Role.String())
}

// mayImport checks that c may say what a dump says.
func (c Caller) mayImport() error {
	if c.Role == RoleOperator {
		return nil
	}
	return withMetadata(fmt.Errorf("%w: %s may not import", directory.ErrRole, c), "role", c.Role.String())
}

type callerKey struct{}

// callerOf returns who makes the call of ctx; nobody, who may do nothing, outside
// of one.
func callerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
