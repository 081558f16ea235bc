package server

import (
	"context"
	"fmt"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/mtls"
)

// callerRoles are what the roles of certificates may do here.
var callerRoles = map[mtls.Role]Role{
	mtls.Backend:  RoleBackend,
	mtls.Frontend: RoleFrontend,
	mtls.Failover: RoleFailover,
	mtls.Operator: RoleOperator,
	mtls.Node:     RolePeer,
}

// Identify tells who makes the call of ctx by the connection it came over, which
// mtls.Server has let in: the holder of a certificate, or root or the node's own
// user, by the unix socket. Who was let in without saying who he is - in plain text
// on loopback, where the node has no certificates, or from inside the process - is
// PlainText's caller.
//
// What changed on disk since the connection began counts: who was refused in the
// map since then makes no more calls.
//
// A caller whom a certificate names and this release has no role for is nobody.
func Identify(ctx context.Context) (Caller, error) {
	info, ok := mtls.InfoOf(ctx)
	if !ok || info.Identity == (mtls.Identity{}) {
		return PlainText(ctx)
	}
	if err := info.Recheck(); err != nil {
		return Caller{}, fmt.Errorf("%w: %w", directory.ErrRole, err)
	}
	role, ok := callerRoles[info.Identity.Role]
	if !ok {
		return Caller{}, fmt.Errorf("%w: %s has no role here", directory.ErrRole, info.Identity)
	}
	return Caller{Role: role, Name: info.Identity.Name}, nil
}
