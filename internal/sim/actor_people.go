package sim

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// frontend asks where mailboxes are and what users may LIST; one that delivers asks
// whether there is such a user.
type frontend struct {
	*session
	delivers bool
}

func (f *frontend) run(ctx context.Context) {
	x := f.x
	for Sleep(ctx, x.some(200*time.Millisecond, 1300*time.Millisecond)) == nil {
		mode := atLeast
		switch x.rnd.IntN(5) {
		case 0:
			mode = linearizable
		case 1:
			mode = stale
		}
		user := x.user()
		name := inbox(user)
		if x.rnd.IntN(2) == 0 {
			name += "." + directory.MailboxName(folders[x.rnd.IntN(len(folders))])
		}
		if f.delivers && x.rnd.IntN(3) > 0 {
			f.deliver(ctx, mode, user)
			continue
		}
		switch x.rnd.IntN(10) {
		case 0, 1, 2:
			_, _ = f.lookup(ctx, mode, name)
		case 3:
			all := []directory.MailboxName{name}
			for range x.rnd.IntN(6) {
				all = append(all, inbox(x.user()))
			}
			_, _ = f.lookupMany(ctx, mode, all)
		case 4, 5:
			var groups []string
			if x.rnd.IntN(2) == 0 {
				groups = []string{"staff"}
			}
			if x.rnd.IntN(6) == 0 {
				user = mallory
			}
			_ = f.list(ctx, mode, user, groups)
		case 6, 7:
			m, q, err := ask(ctx, f.session, mode, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.FindResponse, error) {
				return apiv1.NewDirectoryServiceClient(c).Find(ctx, &apiv1.FindRequest{Consistency: at, Prefix: string(inbox(user)), PageSize: 10})
			})
			if err == nil {
				for _, r := range m.GetMailboxes() {
					x.judge.found(&q, r, m.GetHeader())
				}
			}
		case 8:
			_, _, _ = ask(ctx, f.session, mode, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.RightsResponse, error) {
				return apiv1.NewDirectoryServiceClient(c).Rights(ctx, &apiv1.RightsRequest{Consistency: at, User: string(user), Name: &apiv1.RightsRequest_Mailbox{Mailbox: string(name)}})
			})
			_, _, _ = ask(ctx, f.session, mode, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.ListSubscriptionsResponse, error) {
				return apiv1.NewDirectoryServiceClient(c).ListSubscriptions(ctx, &apiv1.ListSubscriptionsRequest{Consistency: at, User: string(user)})
			})
		case 9:
			if x.rnd.IntN(2) == 0 {
				_, _ = f.tell(ctx, machine.Subscribe{User: user, Mailbox: name})
			} else {
				_, _ = f.tell(ctx, machine.Unsubscribe{User: user, Mailbox: name})
			}
		}
	}
}

// deliver asks as a mail transport does: NOT_FOUND would bounce.
func (f *frontend) deliver(ctx context.Context, mode apiv1.ConsistencyMode, user directory.UserID) {
	m, q, err := ask(ctx, f.session, mode, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.LookupUserResponse, error) {
		return apiv1.NewDirectoryServiceClient(c).LookupUser(ctx, &apiv1.LookupUserRequest{Consistency: at, User: string(user)})
	})
	if err == nil {
		f.x.judge.route(&q, inbox(user), m.GetRoute(), m.GetHeader())
	}
}

// operator steers the cluster of backends.
type operator struct {
	*session
	settled uint32 // the incarnation that it has set up
}

func (o *operator) run(ctx context.Context) {
	x := o.x
	for o.settled == 0 {
		if Sleep(ctx, x.w.Unit()) != nil {
			return
		}
		o.begin(ctx)
	}
	for Sleep(ctx, x.some(2*time.Second, 16*time.Second)) == nil {
		if o.life > o.settled {
			o.begin(ctx)
			continue
		}
		if what := x.pick(duty, x.plan.chores); what != "" {
			x.did("operator: " + what)
			o.do(ctx, what)
		}
	}
}

// begin makes the settings those of the seed, and the group.
func (o *operator) begin(ctx context.Context) {
	x := o.x
	p := &x.plan
	a, err := o.tell(ctx, changeSettings{Settings: &apiv1.Settings{
		GuardCount: &p.guardCount, GuardPercent: &p.guardPercent, GuardWindowMs: new(uint64(p.window)),
		ReserveGraceMs: new(uint64(p.grace)), AutomationPaused: new(false), ReadOnly: new(false),
	}})
	if err != nil {
		return
	}
	life := a.header.GetIncarnation()
	if o.settled == 0 {
		for _, b := range x.backends[:p.backends] {
			if x.rnd.IntN(2) == 0 || p.grouped > 0 {
				if _, err := o.tell(ctx, machine.SetBackend{Server: b.name, Create: true}); err != nil {
					return
				}
			}
		}
		if p.grouped > 1 {
			o.group(ctx, p.grouped, x.rnd.IntN(2) == 0)
		}
	}
	o.settled = life
	if p.strangers > 0 {
		// Those who are to be in are in.
		for _, b := range x.backends[:p.backends] {
			for !x.truth.server(b.name).counts {
				if Sleep(ctx, x.w.Unit()) != nil {
					return
				}
			}
		}
		if a, err := o.tell(ctx, changeSettings{Settings: &apiv1.Settings{AdmissionOpen: new(false)}}); err == nil {
			x.truth.closed, x.truth.closedRev = true, a.header.GetRevision()
		} else {
			o.settled = 0
		}
	}
}

func (o *operator) group(ctx context.Context, n int, acceptMissing bool) {
	op := machine.SetGroup{Group: "pair", AcceptMissing: acceptMissing}
	for _, b := range o.x.backends[:n] {
		op.Members = append(op.Members, b.name)
	}
	_, _ = o.tell(ctx, op)
}

func (o *operator) do(ctx context.Context, what string) {
	x := o.x
	b := x.backends[x.rnd.IntN(len(x.backends))]
	k := func(c grpc.ClientConnInterface) apiv1.ClusterServiceClient { return apiv1.NewClusterServiceClient(c) }
	switch what {
	case "admit":
		_, _, _ = ask(ctx, o.session, atLeast, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.PreviewAdmissionResponse, error) {
			return k(c).PreviewAdmission(ctx, &apiv1.PreviewAdmissionRequest{Consistency: at, Server: string(b.name), Limit: 5})
		})
		if b.kind != kindStranger {
			_, _ = o.tell(ctx, machine.Admit{Server: b.name})
		}
	case "group":
		if n := x.plan.grouped; n > 1 && x.truth.server(x.backends[n].name).counts {
			o.group(ctx, n-x.rnd.IntN(2)+x.rnd.IntN(2), x.rnd.IntN(2) == 0)
		}
	case "drain":
		if b.kind == kindBackend {
			o.forAWhile(ctx, b, directory.BackendDraining, nil)
		}
	case "down":
		if b.kind == kindBackend {
			o.forAWhile(ctx, b, directory.BackendDown, nil)
		}
	case "lost":
		if b.kind != kindStranger {
			o.forAWhile(ctx, b, directory.BackendLost, nil)
		}
	case "settle":
		m, q, err := ask(ctx, o.session, atLeast, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.ListForksResponse, error) {
			return k(c).ListForks(ctx, &apiv1.ListForksRequest{Consistency: at, PageSize: 20})
		})
		if err != nil || len(m.GetForks()) == 0 {
			return
		}
		for _, r := range m.GetForks() {
			x.judge.found(&q, r, m.GetHeader())
		}
		r := m.GetForks()[x.rnd.IntN(len(m.GetForks()))]
		if facts := r.GetFacts(); len(facts) > 0 {
			_, _ = o.tell(ctx, machine.Settle{Mailbox: directory.MailboxName(r.GetMailbox()), Keep: directory.BackendName(facts[x.rnd.IntN(len(facts))].GetServer())})
		}
	case "hold":
		user := x.user()
		kind := directory.HoldKind(1 + x.rnd.IntN(4))
		key := map[directory.HoldKind]string{
			directory.HoldUser: string(user), directory.HoldMailbox: string(inbox(user)), directory.HoldBackend: string(b.name), directory.HoldGroup: "pair",
		}[kind]
		if x.rnd.IntN(3) == 0 {
			_, _ = o.tell(ctx, machine.ReleaseHold{Kind: kind, Key: key})
			return
		}
		_, _ = o.tell(ctx, machine.Hold{Kind: kind, Key: key, For: directory.Time(5+x.rnd.IntN(60)) * 1000, Why: "simulated"})
	case "decide":
		o.decide(ctx)
	case "settings":
		_, err := o.tell(ctx, changeSettings{Settings: &apiv1.Settings{ReadOnly: new(true)}})
		for err == nil && Sleep(ctx, x.some(0, 3*x.w.Unit())) == nil {
			if _, e := o.tell(ctx, changeSettings{Settings: &apiv1.Settings{ReadOnly: new(false)}}); e == nil {
				return
			}
		}
	case "confirm":
		if x.rnd.IntN(4) == 0 {
			_, _ = o.tell(ctx, machine.Confirm{Server: b.name, How: directory.ByOperator, Incarnation: directory.Incarnation(o.life)})
		}
	case "rename":
		switch {
		case x.rnd.IntN(3) == 0: // to a name that is taken
			if to := x.backends[0].name; x.truth.server(to).counts {
				_, _ = o.tell(ctx, machine.RenameBackend{From: b.name, To: to})
			}
		case b.kind == kindBackend:
			b.rebaptize = true // when it is idle
		}
	case "look":
		o.look(ctx)
	case "import":
		if b.kind != kindStranger {
			o.importList(ctx, b)
		}
	}
}

// forAWhile puts a backend into a state, does something meanwhile, if there is
// anything to do, and puts it back. A second one waits for that.
func (o *operator) forAWhile(ctx context.Context, b *backend, state directory.BackendState, meanwhile func()) {
	x := o.x
	op := machine.SetBackend{Server: b.name, State: &state}
	if state == directory.BackendDraining {
		op.DrainApproved = new(x.rnd.IntN(2) == 0)
	}
	if _, err := o.tell(ctx, op); err != nil && refused(err) != "" {
		return
	}
	if meanwhile != nil {
		meanwhile()
	}
	for Sleep(ctx, x.some(x.w.Unit(), 8*x.w.Unit())) == nil {
		active := directory.BackendActive
		if _, err := o.tell(ctx, machine.SetBackend{Server: b.name, State: &active}); err == nil || refused(err) != "" {
			return
		}
	}
}

// importList reads a backend's list in, as it was when the directory was at a revision:
// what was stated since is newer. Members of its group hold copies of the same, others
// have forks of it; a list of one backend says nothing of theirs.
func (o *operator) importList(ctx context.Context, b *backend) {
	x := o.x
	b.imports++
	defer func() { b.imports-- }()
	m, _, err := ask(ctx, o.session, linearizable, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.StatusResponse, error) {
		return apiv1.NewClusterServiceClient(c).Status(ctx, &apiv1.StatusRequest{Consistency: at})
	})
	if err != nil {
		return
	}
	since, life := m.GetHeader().GetRevision(), m.GetHeader().GetIncarnation()
	var ops []machine.Op
	for _, name := range names(b.store) {
		if !b.busy[name] {
			op := b.assertion(name)
			op.Imported, op.Since = true, directory.Revision(since)
			ops = append(ops, op)
		}
	}
	if len(ops) == 0 || Sleep(ctx, x.some(0, x.w.Unit())) != nil {
		return
	}
	for len(ops) > 0 && o.life == life {
		n := min(len(ops), 25)
		switch _, err := o.tell(ctx, machine.Batch{Ops: ops[:n:n]}); {
		case errors.Is(err, errUnknown):
			// The same again: who goes on without knowing leaves something behind that
			// may yet come true, when the backend has another name.
		case err != nil:
			return
		default:
			ops = ops[n:]
		}
	}
	if len(ops) > 0 {
		return // the cluster was made anew meanwhile
	}
	if x.rnd.IntN(2) == 0 {
		_, _ = o.tell(ctx, machine.Confirm{Server: b.name, How: directory.ByImport, Incarnation: directory.Incarnation(life)})
	}
	x.did("imported")
	x.w.counts.Imports++
}

// decide settles what the guard holds: mostly the mail is there after all.
func (o *operator) decide(ctx context.Context) {
	m, _, err := ask(ctx, o.session, atLeast, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.ListBackendsResponse, error) {
		return apiv1.NewClusterServiceClient(c).ListBackends(ctx, &apiv1.ListBackendsRequest{Consistency: at})
	})
	if err != nil {
		return
	}
	for _, b := range m.GetBackends() {
		if b.GetHeld() {
			_, _, _ = ask(ctx, o.session, atLeast, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.ListHeldResponse, error) {
				return apiv1.NewClusterServiceClient(c).ListHeld(ctx, &apiv1.ListHeldRequest{Consistency: at, Server: b.GetName(), PageSize: 10})
			})
			_, _ = o.tell(ctx, machine.DecideHeld{Server: directory.BackendName(b.GetName()), Approve: o.x.rnd.IntN(3) == 0})
			o.x.did("decided")
		}
	}
}

// look reads what else there is to read.
func (o *operator) look(ctx context.Context) {
	type client = apiv1.ClusterServiceClient
	c := func(conn grpc.ClientConnInterface) client { return apiv1.NewClusterServiceClient(conn) }
	st, _, err := ask(ctx, o.session, stale, func(conn grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.StatusResponse, error) {
		return c(conn).Status(ctx, &apiv1.StatusRequest{Consistency: at})
	})
	if err == nil && st.GetComplete() && len(st.GetMissing()) > 0 {
		o.x.w.Fail("status says complete, and that %v are missing", st.GetMissing())
	}
	moves, _, err := ask(ctx, o.session, atLeast, func(conn grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.ListMovesResponse, error) {
		return c(conn).ListMoves(ctx, &apiv1.ListMovesRequest{Consistency: at, PageSize: 100})
	})
	if err == nil && !slices.IsSortedFunc(moves.GetMoves(), func(a, b *apiv1.Move) int {
		return directory.CompareNames(directory.MailboxName(a.GetMailbox()), directory.MailboxName(b.GetMailbox()))
	}) {
		o.x.w.Fail("moves are not in the order of their names: %v", moves.GetMoves())
	}
	_, _, _ = ask(ctx, o.session, atLeast, func(conn grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.GetSettingsResponse, error) {
		return c(conn).GetSettings(ctx, &apiv1.GetSettingsRequest{Consistency: at})
	})
	_, _, _ = ask(ctx, o.session, atLeast, func(conn grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.ListHoldsResponse, error) {
		return c(conn).ListHolds(ctx, &apiv1.ListHoldsRequest{Consistency: at})
	})
	_, _, _ = ask(ctx, o.session, atLeast, func(conn grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.ListAlarmsResponse, error) {
		return c(conn).ListAlarms(ctx, &apiv1.ListAlarmsRequest{Consistency: at})
	})
}
