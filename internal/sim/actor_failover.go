package sim

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/server"
)

// failover moves the primary of a group to one of its members: mostly as it should be,
// when that holds all that the primary holds; at times however it is; and at times
// boldly, to one that is down.
type failover struct {
	*session           // that moves primaries
	ops      *operator // who sees to the rest
}

func newFailover(x *Workload) *failover {
	return &failover{
		x.session("failover", server.Caller{Role: server.RoleFailover, Name: "failover"}),
		&operator{session: x.session("failover/op", server.Caller{Role: server.RoleOperator, Name: "erin"})},
	}
}

func (f *failover) run(ctx context.Context) {
	x := f.x
	for Sleep(ctx, x.some(6*time.Second, 40*time.Second)) == nil {
		m, _, err := ask(ctx, f.session, atLeast, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.ListGroupsResponse, error) {
			return apiv1.NewClusterServiceClient(c).ListGroups(ctx, &apiv1.ListGroupsRequest{Consistency: at})
		})
		if err != nil {
			continue
		}
		grouped := false
		for _, g := range m.GetGroups() {
			if len(g.GetMembers()) > 1 {
				grouped = true
				f.switchover(ctx, g)
			}
		}
		if !grouped && x.truth.server(x.backends[0].name).counts {
			f.ops.group(ctx, x.plan.grouped, true)
		}
	}
}

func (f *failover) switchover(ctx context.Context, g *apiv1.Group) {
	x := f.x
	name := g.GetMembers()[x.rnd.IntN(len(g.GetMembers()))]
	p, to := x.byName[directory.BackendName(g.GetPrimary())], x.byName[directory.BackendName(name)]
	switch x.rnd.IntN(6) {
	case 0:
		if to != nil && to != p {
			f.ops.forAWhile(ctx, to, directory.BackendDown, func() { f.setPrimary(ctx, g, name, true) })
		}
	case 1, 2:
		if plan, err := f.plan(ctx, g, name); err == nil {
			f.setPrimary(ctx, g, name, !plan.GetEqual() && plan.GetMissingCount() < 5 && x.rnd.IntN(2) == 0)
		}
	default:
		if p != nil && to != nil && to != p && !p.away && !to.away {
			f.prepared(ctx, g, p, to)
		}
	}
}

// prepared has the primary make nothing new and the other catch up before it switches.
func (f *failover) prepared(ctx context.Context, g *apiv1.Group, p, to *backend) {
	x := f.x
	p.still, p.dirty, to.follows, to.primary = true, true, true, ""
	defer func() { p.still, to.follows, p.primary, to.primary = false, false, "", "" }()
	for range 10 {
		if Sleep(ctx, x.some(x.plan.pace, 2*x.plan.pace)) != nil {
			return
		}
		plan, err := f.plan(ctx, g, string(to.name))
		if err != nil {
			return
		}
		if plan.GetEqual() {
			x.did("caught up")
			f.setPrimary(ctx, g, string(to.name), false)
			return
		}
	}
	x.did("not caught up")
}

func (f *failover) plan(ctx context.Context, g *apiv1.Group, to string) (*apiv1.PlanSwitchoverResponse, error) {
	m, _, err := ask(ctx, f.session, linearizable, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.PlanSwitchoverResponse, error) {
		return apiv1.NewClusterServiceClient(c).PlanSwitchover(ctx, &apiv1.PlanSwitchoverRequest{Consistency: at, Group: g.GetName(), To: to, Limit: 10})
	})
	return m, err
}

func (f *failover) setPrimary(ctx context.Context, g *apiv1.Group, to string, acceptMissing bool) {
	epoch := g.GetEpoch()
	if f.x.rnd.IntN(6) == 0 {
		epoch--
	}
	a, err := f.tell(ctx, machine.SetPrimary{Group: directory.GroupName(g.GetName()), To: directory.BackendName(to), Epoch: epoch, Reason: "simulated", AcceptMissing: acceptMissing})
	if err == nil && a.effect() == machine.Changed {
		f.x.did("switched over")
		f.x.w.counts.Switchovers++
	}
}
