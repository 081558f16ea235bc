package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// clusterService is ClusterService of the API.
type clusterService struct {
	apiv1.UnimplementedClusterServiceServer
	s *Server
}

// How many items the paged and limited answers have.
const (
	usualPage  = 256
	maxPage    = 1000
	usualLimit = 100
	maxLimit   = 1000
)

func orUsual(asked uint32, usual, most int) int {
	if asked == 0 {
		return usual
	}
	return pageSize(asked, most)
}

func (c *clusterService) ListBackends(ctx context.Context, req *apiv1.ListBackendsRequest) (*apiv1.ListBackendsResponse, error) {
	s := c.s
	if req.GetServer() != "" {
		if _, err := directory.ParseBackend(req.GetServer()); err != nil {
			return nil, err
		}
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	st, err := s.machine.Status(r)
	if err != nil {
		return nil, err
	}
	list, err := s.machine.Backends(r, directory.BackendName(req.GetServer()))
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListBackendsResponse{Header: s.header(new(apiv1.ResponseHeader), &r, st.Revision)}
	for i := range list {
		out.Backends = append(out.Backends, backendTo(&list[i], st.Time))
	}
	return out, nil
}

func backendTo(b *machine.BackendInfo, now directory.Time) *apiv1.Backend {
	out := &apiv1.Backend{
		Name:              string(b.Name),
		Id:                uint32(b.ID),
		Group:             string(b.GroupName),
		Primary:           b.Primary,
		Addresses:         addressesTo(b.Addresses),
		Weight:            b.Weight,
		Admitted:          b.Admitted,
		State:             apiv1.BackendState(b.State),
		StateAgeMs:        uint64(since(now, b.Since)),
		DrainApproved:     b.DrainApproved,
		ConfirmedBy:       apiv1.ConfirmedBy(b.Confirmed),
		Confirmed:         b.Confirm,
		ConfirmedRevision: uint64(b.ConfirmedRevision),
		Facts:             b.Facts,
		Counted:           b.Counted,
		Held:              b.Held,
	}
	if b.Confirmed != directory.ByNobody {
		out.ConfirmedAgeMs = uint64(since(now, b.ConfirmedTime))
	}
	return out
}

func (c *clusterService) SetBackend(ctx context.Context, req *apiv1.SetBackendRequest) (*apiv1.SetBackendResponse, error) {
	server, err := directory.ParseBackend(req.GetServer())
	if err != nil {
		return nil, err
	}
	if err := known(req.GetState(), apiv1.BackendState_name, true); err != nil {
		return nil, err
	}
	op := machine.SetBackend{Server: server, Weight: req.Weight, DrainApproved: req.DrainApproved, Create: req.GetCreate()}
	if req.Addresses != nil {
		addresses, err := addressesOf(req.GetAddresses().GetAddresses())
		if err != nil {
			return nil, err
		}
		op.Addresses = &addresses
	}
	if state := req.GetState(); state != apiv1.BackendState_BACKEND_STATE_UNSPECIFIED {
		op.State = new(directory.BackendState(state))
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), op)
	return &apiv1.SetBackendResponse{Header: header, Result: result}, err
}

func (c *clusterService) PreviewAdmission(ctx context.Context, req *apiv1.PreviewAdmissionRequest) (*apiv1.PreviewAdmissionResponse, error) {
	s := c.s
	server, err := directory.ParseBackend(req.GetServer())
	if err != nil {
		return nil, err
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	facts, overlapping, list, err := s.machine.PreviewAdmission(r, server, orUsual(req.GetLimit(), usualLimit, maxLimit))
	if err != nil {
		return nil, err
	}
	out := &apiv1.PreviewAdmissionResponse{Facts: facts, Overlapping: overlapping}
	for _, o := range list {
		out.Overlaps = append(out.Overlaps, &apiv1.Overlap{Mailbox: string(o.Name), Group: string(o.Group), Server: string(o.Server), SameCopy: o.SameCopy})
	}
	out.Header, err = s.headerOf(&r)
	return out, err
}

func (c *clusterService) AdmitBackend(ctx context.Context, req *apiv1.AdmitBackendRequest) (*apiv1.AdmitBackendResponse, error) {
	server, err := directory.ParseBackend(req.GetServer())
	if err != nil {
		return nil, err
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), machine.Admit{Server: server})
	return &apiv1.AdmitBackendResponse{Header: header, Result: result}, err
}

func (c *clusterService) ConfirmBackend(ctx context.Context, req *apiv1.ConfirmBackendRequest) (*apiv1.ConfirmBackendResponse, error) {
	server, err := directory.ParseBackend(req.GetServer())
	if err != nil {
		return nil, err
	}
	caller := callerOf(ctx)
	if err := caller.mayState(server); err != nil {
		return nil, err
	}
	how := directory.ByOperator
	if caller.Role == RoleBackend {
		how = directory.ByResync
	}
	if err := known(req.GetHow(), apiv1.ConfirmedBy_name, true); err != nil {
		return nil, err
	}
	if h := req.GetHow(); h != apiv1.ConfirmedBy_CONFIRMED_BY_UNSPECIFIED {
		how = directory.ConfirmedBy(h)
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), machine.Confirm{
		Server: server, How: how, Incarnation: directory.Incarnation(req.GetIncarnation()),
	})
	return &apiv1.ConfirmBackendResponse{Header: header, Result: result}, err
}

func (c *clusterService) RenameBackend(ctx context.Context, req *apiv1.RenameBackendRequest) (*apiv1.RenameBackendResponse, error) {
	from, err := directory.ParseBackend(req.GetFrom())
	if err != nil {
		return nil, err
	}
	to, err := directory.ParseBackend(req.GetTo())
	if err != nil {
		return nil, err
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), machine.RenameBackend{From: from, To: to})
	return &apiv1.RenameBackendResponse{Header: header, Result: result}, err
}

func (c *clusterService) ListGroups(ctx context.Context, req *apiv1.ListGroupsRequest) (*apiv1.ListGroupsResponse, error) {
	s := c.s
	if req.GetGroup() != "" {
		if _, err := directory.ParseGroup(req.GetGroup()); err != nil {
			return nil, err
		}
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	st, err := s.machine.Status(r)
	if err != nil {
		return nil, err
	}
	list, err := s.machine.Groups(r, directory.GroupName(req.GetGroup()))
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListGroupsResponse{Header: s.header(new(apiv1.ResponseHeader), &r, st.Revision)}
	for i := range list {
		out.Groups = append(out.Groups, groupTo(&list[i], st.Time))
	}
	return out, nil
}

func groupTo(g *machine.GroupInfo, now directory.Time) *apiv1.Group {
	out := &apiv1.Group{
		Name:    string(g.Name),
		Id:      uint32(g.ID),
		Members: names(g.MemberNames, len(g.MemberNames)),
		Primary: string(g.PrimaryName),
		Epoch:   g.Epoch,
		Mode:    apiv1.GroupMode(g.Mode),
		Own:     g.Own,
	}
	for _, sw := range g.History {
		out.History = append(out.History, &apiv1.Switchover{
			Epoch:         sw.Epoch,
			From:          string(g.NameOf(sw.From)),
			To:            string(g.NameOf(sw.To)),
			By:            sw.By,
			Reason:        sw.Reason,
			Revision:      uint64(sw.Revision),
			AgeMs:         uint64(since(now, sw.Time)),
			WallMs:        sw.Wall,
			AcceptMissing: sw.AcceptMissing,
		})
	}
	if g.Hold != nil {
		out.Hold = holdTo(g.Hold, now)
	}
	return out
}

func (c *clusterService) SetGroup(ctx context.Context, req *apiv1.SetGroupRequest) (*apiv1.SetGroupResponse, error) {
	group, err := directory.ParseGroup(req.GetGroup())
	if err != nil {
		return nil, err
	}
	if err := known(req.GetMode(), apiv1.GroupMode_name, true); err != nil {
		return nil, err
	}
	op := machine.SetGroup{Group: group, Mode: directory.GroupMode(req.GetMode()), AcceptMissing: req.GetAcceptMissing()}
	for _, member := range req.GetMembers() {
		server, err := directory.ParseBackend(member)
		if err != nil {
			return nil, err
		}
		op.Members = append(op.Members, server)
	}
	if len(op.Members) == 0 {
		return nil, missing("member")
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), op)
	return &apiv1.SetGroupResponse{Header: header, Result: result}, err
}

func groupAndServer(group, server string) (directory.GroupName, directory.BackendName, error) {
	g, err := directory.ParseGroup(group)
	if err != nil {
		return "", "", err
	}
	b, err := directory.ParseBackend(server)
	return g, b, err
}

func (c *clusterService) PlanSwitchover(ctx context.Context, req *apiv1.PlanSwitchoverRequest) (*apiv1.PlanSwitchoverResponse, error) {
	s := c.s
	group, to, err := groupAndServer(req.GetGroup(), req.GetTo())
	if err != nil {
		return nil, err
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	p, err := s.machine.PlanSwitchover(r, group, to, orUsual(req.GetLimit(), usualLimit, maxLimit))
	if err != nil {
		return nil, err
	}
	out := &apiv1.PlanSwitchoverResponse{
		Group:        string(p.Group),
		From:         string(p.From),
		To:           string(p.To),
		Epoch:        p.Epoch,
		FromCount:    p.FromCount,
		ToCount:      p.ToCount,
		Equal:        p.Equal,
		MissingCount: p.MissingCount,
		ExtraCount:   p.MoreCount,
		Missing:      mailboxNames(p.Missing),
		Extra:        mailboxNames(p.More),
	}
	if p.Refusal != nil && !errors.Is(p.Refusal, directory.ErrMissingAtTarget) {
		out.Refusal = p.Refusal.Error()
	}
	out.Header, err = s.headerOf(&r)
	return out, err
}

func mailboxNames(list []directory.MailboxName) []string {
	out := make([]string, len(list))
	for i, name := range list {
		out[i] = string(name)
	}
	return out
}

func (c *clusterService) SetPrimary(ctx context.Context, req *apiv1.SetPrimaryRequest) (*apiv1.SetPrimaryResponse, error) {
	group, to, err := groupAndServer(req.GetGroup(), req.GetTo())
	if err != nil {
		return nil, err
	}
	if err := text("reason", req.GetReason()); err != nil {
		return nil, err
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), machine.SetPrimary{
		Group: group, To: to, Epoch: req.GetEpoch(), Reason: req.GetReason(), AcceptMissing: req.GetAcceptMissing(),
	})
	return &apiv1.SetPrimaryResponse{Header: header, Result: result}, err
}

func (c *clusterService) ListHolds(ctx context.Context, req *apiv1.ListHoldsRequest) (*apiv1.ListHoldsResponse, error) {
	s := c.s
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	holds, now, err := s.machine.Holds(r)
	if err != nil {
		return nil, err
	}
	out := new(apiv1.ListHoldsResponse)
	for i := range holds {
		out.Holds = append(out.Holds, holdTo(&holds[i], now))
	}
	out.Header, err = s.headerOf(&r)
	return out, err
}

func (c *clusterService) PutHold(ctx context.Context, req *apiv1.PutHoldRequest) (*apiv1.PutHoldResponse, error) {
	kind, err := holdOf(req.GetKind(), req.GetKey())
	if err != nil {
		return nil, err
	}
	if err := text("reason", req.GetWhy()); err != nil {
		return nil, err
	}
	if req.GetForMs() == 0 {
		return nil, missing("length of the hold")
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), machine.Hold{
		Kind: kind, Key: req.GetKey(), For: directory.Time(req.GetForMs()), Why: req.GetWhy(),
	})
	return &apiv1.PutHoldResponse{Header: header, Result: result}, err
}

func (c *clusterService) ReleaseHold(ctx context.Context, req *apiv1.ReleaseHoldRequest) (*apiv1.ReleaseHoldResponse, error) {
	kind, err := holdOf(req.GetKind(), req.GetKey())
	if err != nil {
		return nil, err
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), machine.ReleaseHold{Kind: kind, Key: req.GetKey()})
	return &apiv1.ReleaseHoldResponse{Header: header, Result: result}, err
}

// holdOf checks what a hold covers.
func holdOf(kind apiv1.HoldKind, key string) (directory.HoldKind, error) {
	if err := known(kind, apiv1.HoldKind_name, false); err != nil {
		return 0, err
	}
	var err error
	switch k := directory.HoldKind(kind); k {
	case directory.HoldUser:
		_, err = directory.ParseUser(key)
	case directory.HoldMailbox:
		_, err = directory.ParseName(key)
	case directory.HoldBackend:
		_, err = directory.ParseBackend(key)
	case directory.HoldGroup:
		_, err = directory.ParseGroup(key)
	}
	return directory.HoldKind(kind), err
}

func (c *clusterService) ListHeld(ctx context.Context, req *apiv1.ListHeldRequest) (*apiv1.ListHeldResponse, error) {
	s := c.s
	only, err := optionalServer(req.GetServer())
	if err != nil {
		return nil, err
	}
	// The token carries the server that the page ended in, and the name.
	at, token, _ := strings.Cut(req.GetPageToken(), "~")
	if token == "" && at != "" {
		return nil, fmt.Errorf("%w: that is no page token", errInvalidToken)
	}
	after, err := openPage(token, "held", string(only), at)
	if err != nil {
		return nil, err
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	servers, err := s.machine.Backends(r, only)
	if err != nil {
		return nil, err
	}
	out := new(apiv1.ListHeldResponse)
	limit := orUsual(req.GetPageSize(), usualPage, maxPage)
	for _, b := range servers {
		name := string(b.Name)
		if !b.Held || name < at {
			continue
		}
		if name > at {
			after = ""
		}
		held, more, err := s.machine.Held(r, b.Name, after, limit-len(out.Held))
		if err != nil {
			return nil, err
		}
		for _, h := range held {
			out.Held = append(out.Held, &apiv1.HeldFact{Mailbox: string(h.Name), Server: name, State: apiv1.FactState(h.State), AgeMs: uint64(h.Age)})
		}
		if more || len(out.Held) == limit {
			last := out.Held[len(out.Held)-1]
			out.NextPageToken = last.Server + "~" + page(directory.MailboxName(last.Mailbox), "held", string(only), last.Server)
			break
		}
	}
	out.Header, err = s.headerOf(&r)
	return out, err
}

func optionalServer(name string) (directory.BackendName, error) {
	if name == "" {
		return "", nil
	}
	return directory.ParseBackend(name)
}

func (c *clusterService) DecideHeld(ctx context.Context, req *apiv1.DecideHeldRequest) (*apiv1.DecideHeldResponse, error) {
	server, err := directory.ParseBackend(req.GetServer())
	if err != nil {
		return nil, err
	}
	if err := known(req.GetDecision(), apiv1.Decision_name, false); err != nil {
		return nil, err
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), machine.DecideHeld{
		Server: server, Approve: req.GetDecision() == apiv1.Decision_DECISION_APPROVE,
	})
	return &apiv1.DecideHeldResponse{Header: header, Result: result}, err
}

func (c *clusterService) ListForks(ctx context.Context, req *apiv1.ListForksRequest) (*apiv1.ListForksResponse, error) {
	s := c.s
	after, err := openPage(req.GetPageToken(), "forks")
	if err != nil {
		return nil, err
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	list, more, err := s.machine.Forks(r, after, orUsual(req.GetPageSize(), usualPage, maxPage))
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListForksResponse{Forks: s.routes(list)}
	if more {
		out.NextPageToken = page(list[len(list)-1].Name, "forks")
	}
	out.Header, err = s.headerOf(&r)
	return out, err
}

func (c *clusterService) Settle(ctx context.Context, req *apiv1.SettleRequest) (*apiv1.SettleResponse, error) {
	name, err := directory.ParseName(req.GetMailbox())
	if err != nil {
		return nil, err
	}
	keep, err := directory.ParseBackend(req.GetKeep())
	if err != nil {
		return nil, err
	}
	header, result, err := c.s.write(ctx, req.GetRequestId(), machine.Settle{Mailbox: name, Keep: keep})
	return &apiv1.SettleResponse{Header: header, Result: result}, err
}

func (c *clusterService) ListMoves(ctx context.Context, req *apiv1.ListMovesRequest) (*apiv1.ListMovesResponse, error) {
	s := c.s
	after, err := openPage(req.GetPageToken(), "moves")
	if err != nil {
		return nil, err
	}
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	list, more, err := s.machine.Moves(r, after, orUsual(req.GetPageSize(), usualPage, maxPage))
	if err != nil {
		return nil, err
	}
	out := new(apiv1.ListMovesResponse)
	for i := range list {
		a := &list[i]
		for j := range a.Mailbox.Facts {
			f := &a.Mailbox.Facts[j]
			if f.State != directory.Deactivated || f.Standing != directory.InForce {
				continue
			}
			out.Moves = append(out.Moves, &apiv1.Move{
				Mailbox: string(a.Name), Server: string(a.BackendName(f.Server)), AgeMs: uint64(since(a.Now, f.Changed)),
			})
		}
	}
	if more {
		out.NextPageToken = page(list[len(list)-1].Name, "moves")
	}
	out.Header, err = s.headerOf(&r)
	return out, err
}

func (c *clusterService) GetSettings(ctx context.Context, req *apiv1.GetSettingsRequest) (*apiv1.GetSettingsResponse, error) {
	s := c.s
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer r.Release()
	settings, err := s.machine.Settings(r)
	if err != nil {
		return nil, err
	}
	out := &apiv1.GetSettingsResponse{Settings: settingsTo(settings)}
	out.Header, err = s.headerOf(&r)
	return out, err
}

// SetSettings reads the settings linearizably, changes what is stated and proposes
// the whole.
func (c *clusterService) SetSettings(ctx context.Context, req *apiv1.SetSettingsRequest) (*apiv1.SetSettingsResponse, error) {
	s := c.s
	r, err := s.readLinearizable(ctx, token{})
	if err != nil {
		return nil, err
	}
	settings, err := s.machine.Settings(r)
	r.Release()
	if err != nil {
		return nil, err
	}
	changeSettings(&settings, req.GetSettings())
	header, result, err := s.write(ctx, req.GetRequestId(), machine.SetSettings{Settings: settings})
	return &apiv1.SetSettingsResponse{Header: header, Result: result}, err
}

func settingsTo(s directory.Settings) *apiv1.Settings {
	return &apiv1.Settings{
		DefaultDomain:    &s.DefaultDomain,
		VirtDomains:      &s.VirtDomains,
		AdmissionOpen:    &s.AdmissionOpen,
		ReadOnly:         &s.ReadOnly,
		GuardCount:       &s.GuardCount,
		GuardPercent:     &s.GuardPercent,
		GuardWindowMs:    new(uint64(s.GuardWindow)),
		ReserveGraceMs:   new(uint64(s.ReserveGrace)),
		ReserveMaxMs:     new(uint64(s.ReserveMax)),
		DeliveryGraceMs:  new(uint64(s.DeliveryGrace)),
		TombstoneKeepMs:  new(uint64(s.TombstoneKeep)),
		LogKeep:          &s.LogKeep,
		RequestKeepMs:    new(uint64(s.RequestKeep)),
		AutomationPaused: &s.AutomationPaused,
	}
}

// changeSettings puts into s what m states.
func changeSettings(s *directory.Settings, m *apiv1.Settings) {
	set(&s.DefaultDomain, m.GetDefaultDomain(), m != nil && m.DefaultDomain != nil)
	set(&s.VirtDomains, m.GetVirtDomains(), m != nil && m.VirtDomains != nil)
	set(&s.AdmissionOpen, m.GetAdmissionOpen(), m != nil && m.AdmissionOpen != nil)
	set(&s.ReadOnly, m.GetReadOnly(), m != nil && m.ReadOnly != nil)
	set(&s.GuardCount, m.GetGuardCount(), m != nil && m.GuardCount != nil)
	set(&s.GuardPercent, m.GetGuardPercent(), m != nil && m.GuardPercent != nil)
	set(&s.GuardWindow, directory.Time(m.GetGuardWindowMs()), m != nil && m.GuardWindowMs != nil)
	set(&s.ReserveGrace, directory.Time(m.GetReserveGraceMs()), m != nil && m.ReserveGraceMs != nil)
	set(&s.ReserveMax, directory.Time(m.GetReserveMaxMs()), m != nil && m.ReserveMaxMs != nil)
	set(&s.DeliveryGrace, directory.Time(m.GetDeliveryGraceMs()), m != nil && m.DeliveryGraceMs != nil)
	set(&s.TombstoneKeep, directory.Time(m.GetTombstoneKeepMs()), m != nil && m.TombstoneKeepMs != nil)
	set(&s.LogKeep, m.GetLogKeep(), m != nil && m.LogKeep != nil)
	set(&s.RequestKeep, directory.Time(m.GetRequestKeepMs()), m != nil && m.RequestKeepMs != nil)
	set(&s.AutomationPaused, m.GetAutomationPaused(), m != nil && m.AutomationPaused != nil)
}

func set[T any](field *T, value T, stated bool) {
	if stated {
		*field = value
	}
}

// Check sends progress not more often than this.
const progressEvery = 200 * time.Millisecond

// usualFindings is how many findings Check sends if nothing else is asked for.
const usualFindings = 1000

func (c *clusterService) Check(req *apiv1.CheckRequest, stream grpc.ServerStreamingServer[apiv1.CheckResponse]) error {
	s := c.s
	ctx := stream.Context()
	r, err := s.read(ctx, req.GetConsistency())
	if err != nil {
		return err
	}
	defer r.Release()
	st, err := s.machine.Status(r)
	if err != nil {
		return err
	}
	limit := uint64(orUsual(req.GetLimit(), usualFindings, 1<<31-1))
	summary := &apiv1.CheckSummary{
		Header:    s.header(new(apiv1.ResponseHeader), &r, st.Revision),
		Mailboxes: uint64(max(st.Mailboxes, 0)),
		Postings:  uint64(max(st.Postings, 0)),
	}
	backends, err := s.machine.Backends(r, "")
	if err != nil {
		return err
	}
	for _, b := range backends {
		summary.Facts += b.Facts
	}
	var told time.Time
	var failed error // of a stream, where the machine cannot be told
	progress := func(done, total uint64) {
		if now := time.Now(); failed == nil && now.Sub(told) >= progressEvery {
			told = now
			failed = stream.Send(&apiv1.CheckResponse{Part: &apiv1.CheckResponse_Progress{
				Progress: &apiv1.CheckProgress{Phase: "mailboxes", Done: done, Total: total},
			}})
		}
	}
	found := func(f machine.Finding) error {
		if failed != nil {
			return failed
		}
		if f.Advisory {
			summary.Advisories++
		} else {
			summary.Faults++
		}
		if summary.Advisories+summary.Faults > limit {
			return ctx.Err()
		}
		return stream.Send(&apiv1.CheckResponse{Part: &apiv1.CheckResponse_Finding{
			Finding: &apiv1.CheckFinding{Kind: f.Kind, Mailbox: string(f.Mailbox), Detail: f.Detail, Advisory: f.Advisory},
		}})
	}
	if err := errors.Join(s.machine.Check(r, progress, found), failed); err != nil {
		return err
	}
	return stream.Send(&apiv1.CheckResponse{Part: &apiv1.CheckResponse_Summary{Summary: summary}})
}
