package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/server"
)

// session is one client: it carries its token, asks another node when one does not
// answer, and sends a write again under its number until it knows what became of it.
type session struct {
	x      *Workload
	name   string
	caller server.Caller
	slot   int // the node that answered last

	token []byte
	seen  uint64 // the token's revision
	life  uint32 // the highest incarnation seen

	client string
	seq    uint64
}

func (x *Workload) session(name string, caller server.Caller) *session {
	return &session{x: x, name: name, caller: caller, slot: x.rnd.IntN(x.w.Nodes()), client: name}
}

// errUnknown: a write was given up, and may be done or not.
var errUnknown = errors.New("sim: outcome unknown")

// refusal is an answer that says no.
type refusal struct {
	reason   string
	metadata map[string]string
	err      error
}

func (r *refusal) Error() string { return r.err.Error() }

// refused returns the reason of a refusal; "" if err is none.
func refused(err error) string {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.reason
	}
	return ""
}

// answer is what a write came to.
type answer struct {
	header *apiv1.ResponseHeader
	result *apiv1.WriteResult   // of one operation
	items  []*apiv1.BatchResult // of a batch
}

func (a answer) effect() machine.Effect { return machine.Effect(a.result.GetEffect()) }

// reasonOf takes a status apart.
func reasonOf(err error) (code codes.Code, reason string, metadata map[string]string) {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return st.Code(), info.GetReason(), info.GetMetadata()
		}
	}
	return st.Code(), "", nil
}

// passing tells whether another node, or the same one later, may answer.
func passing(code codes.Code, reason string) bool {
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Canceled:
		return true
	}
	return reason == "WRONG_INCARNATION"
}

// again waits until it is worth asking another node. It fails when the world ends.
func (s *session) again(ctx context.Context, try int) error {
	s.slot = (s.slot + 1) % s.x.w.Nodes()
	wait := s.x.w.Unit() / 16
	if try >= s.x.w.Nodes() {
		wait = s.x.w.Unit() / 4
	}
	return Sleep(ctx, s.x.some(wait/2, wait))
}

// tell makes a write, and everybody who keeps books hears of it.
func (s *session) tell(ctx context.Context, op machine.Op) (a answer, err error) {
	x := s.x
	s.seq++
	q := request{s.client, s.seq}
	for _, one := range opsOf(op) {
		x.truth.sent(s, one)
	}
	least, began := x.judge.acked, x.w.now
	patience := 16
	if x.rnd.IntN(20) == 0 {
		patience = 1 // it is cut short
	}
	for try := 0; ; try++ {
		if try == patience {
			x.counts.unknown++
			return a, errUnknown
		}
		id := &apiv1.RequestId{ClientId: s.client, Sequence: s.seq, Incarnation: s.life}
		a, err = send(ctx, x.w.Conn(ctx, s.slot, s.caller), id, op)
		if over(ctx) {
			return a, errEnded
		}
		if err == nil {
			x.judge.wrote(s, q, op, a, least)
			s.take(a.header)
			break
		}
		code, reason, metadata := reasonOf(err)
		if !passing(code, reason) {
			err = &refusal{reason, metadata, err}
			x.judge.refused(q, op, reason, err)
			count(&x.counts.refused, reason)
			break
		}
		if e := s.again(ctx, try); e != nil {
			return a, e
		}
	}
	count(&x.counts.commands, strings.TrimPrefix(fmt.Sprintf("%T", op), "machine."))
	// A refused request, too, ends whatever an earlier one of this client may still do.
	x.truth.ended(s)
	if err == nil {
		for i, one := range opsOf(op) {
			result := a.result
			if a.items != nil {
				result = a.items[i].GetResult()
			}
			if result != nil {
				count(&x.counts.effects, result.GetEffect().String()[len("EFFECT_"):])
				x.truth.acked(s, one, machine.Effect(result.GetEffect()), a.header.GetRevision(), began)
			}
		}
	}
	return a, err
}

// take remembers what an answer has shown.
func (s *session) take(h *apiv1.ResponseHeader) {
	if h.GetIncarnation() > s.life || h.GetRevision() >= s.seen {
		s.token, s.seen = h.GetToken(), h.GetRevision()
	}
	s.life = max(s.life, h.GetIncarnation())
}

// Consistencies, as the API has them.
const (
	atLeast      = apiv1.ConsistencyMode_CONSISTENCY_MODE_AT_LEAST
	linearizable = apiv1.ConsistencyMode_CONSISTENCY_MODE_LINEARIZABLE
	stale        = apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE
)

// headed is an answer with a header.
type headed interface{ GetHeader() *apiv1.ResponseHeader }

// query is a read under way, for those who judge its answer.
type query struct {
	s     *session
	mode  apiv1.ConsistencyMode
	least uint64 // was acknowledged before it was asked
	truth uint64 // what truth had noted by then
}

// ask makes a read. Its answer has been judged for its age, not for what it says.
func ask[M headed](ctx context.Context, s *session, mode apiv1.ConsistencyMode, call func(grpc.ClientConnInterface, *apiv1.Consistency) (M, error)) (m M, q query, err error) {
	x := s.x
	for try := 0; ; try++ {
		if try == 8 {
			x.counts.failed++
			return m, q, err
		}
		q = query{s: s, mode: mode, least: x.judge.acked, truth: x.truth.mark()}
		c := &apiv1.Consistency{Mode: mode, Token: s.token}
		if mode != linearizable && x.rnd.IntN(4) == 0 {
			c.MaxAgeMs = uint64((2 * x.w.Unit()).Milliseconds())
		}
		if m, err = call(x.w.Conn(ctx, s.slot, s.caller), c); over(ctx) {
			return m, q, errEnded
		}
		if err == nil {
			x.counts.reads++
			x.judge.read(&q, m.GetHeader())
			s.take(m.GetHeader())
			return m, q, nil
		}
		code, reason, metadata := reasonOf(err)
		if reason == "WRONG_INCARNATION" {
			var of uint32
			fmt.Sscan(metadata["incarnation"], &of)
			if of >= s.life {
				s.token, s.seen, s.life = nil, 0, of
			}
		} else if !passing(code, reason) {
			count(&x.counts.refused, "read "+reason)
			return m, q, &refusal{reason, metadata, err}
		}
		if e := s.again(ctx, try); e != nil {
			return m, q, e
		}
	}
}

// lookup asks where a mailbox is.
func (s *session) lookup(ctx context.Context, mode apiv1.ConsistencyMode, name directory.MailboxName) (*apiv1.Route, error) {
	m, q, err := ask(ctx, s, mode, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.LookupResponse, error) {
		return apiv1.NewDirectoryServiceClient(c).Lookup(ctx, &apiv1.LookupRequest{Consistency: at, Mailbox: string(name), Details: s.x.rnd.IntN(2) == 0})
	})
	if err != nil {
		return nil, err
	}
	s.x.judge.route(&q, name, m.GetRoute(), m.GetHeader())
	return m.GetRoute(), nil
}

// lookupMany asks where several are.
func (s *session) lookupMany(ctx context.Context, mode apiv1.ConsistencyMode, names []directory.MailboxName) ([]*apiv1.Route, error) {
	text := make([]string, len(names))
	for i, name := range names {
		text[i] = string(name)
	}
	m, q, err := ask(ctx, s, mode, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*apiv1.LookupManyResponse, error) {
		return apiv1.NewDirectoryServiceClient(c).LookupMany(ctx, &apiv1.LookupManyRequest{Consistency: at, Mailboxes: text})
	})
	if err != nil {
		return nil, err
	}
	for i, r := range m.GetRoutes() {
		s.x.judge.route(&q, names[i], r, m.GetHeader())
	}
	return m.GetRoutes(), nil
}

// listing is the whole of a LIST.
type listing struct {
	header  *apiv1.ResponseHeader
	rows    []*apiv1.ListRow
	summary *apiv1.ListSummary
}

func (l *listing) GetHeader() *apiv1.ResponseHeader { return l.header }

// list asks what a user may LIST, who is in those groups.
func (s *session) list(ctx context.Context, mode apiv1.ConsistencyMode, user directory.UserID, groups []string) error {
	l, q, err := ask(ctx, s, mode, func(c grpc.ClientConnInterface, at *apiv1.Consistency) (*listing, error) {
		stream, err := apiv1.NewDirectoryServiceClient(c).List(ctx, &apiv1.ListRequest{Consistency: at, User: string(user), AclGroups: groups, Patterns: []string{"*"}, Return: &apiv1.ListReturn{Location: true}})
		if err != nil {
			return nil, err
		}
		l := &listing{}
		for {
			m, err := stream.Recv()
			if err == io.EOF {
				return l, nil
			}
			if err != nil {
				return nil, err
			}
			if m.GetHeader() != nil {
				l.header = m.GetHeader()
			}
			l.rows = append(l.rows, m.GetRows()...)
			if m.GetSummary() != nil {
				l.summary = m.GetSummary()
			}
		}
	})
	if err != nil {
		return err
	}
	s.x.judge.listed(&q, user, groups, l)
	return nil
}

// send makes the call of the API that op is.
func send(ctx context.Context, c grpc.ClientConnInterface, id *apiv1.RequestId, op machine.Op) (a answer, err error) {
	d, k := apiv1.NewDirectoryServiceClient(c), apiv1.NewClusterServiceClient(c)
	switch op := op.(type) {
	case machine.Assert:
		m, err := d.Assert(ctx, &apiv1.AssertRequest{RequestId: id, Assert: assertTo(op)})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Retract:
		m, err := d.Retract(ctx, &apiv1.RetractRequest{RequestId: id, Retract: retractTo(op)})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Reserve:
		m, err := d.Reserve(ctx, &apiv1.ReserveRequest{RequestId: id, Reserve: reserveTo(op)})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Release:
		m, err := d.Release(ctx, &apiv1.ReleaseRequest{RequestId: id, Release: &apiv1.Release{Mailbox: string(op.Mailbox), Server: string(op.Server), SinceRevision: uint64(op.Since)}})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Deactivate:
		m, err := d.Deactivate(ctx, &apiv1.DeactivateRequest{RequestId: id, Deactivate: &apiv1.Deactivate{Mailbox: string(op.Mailbox), Server: string(op.Server)}})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Rename:
		m, err := d.Rename(ctx, &apiv1.RenameRequest{RequestId: id, Rename: &apiv1.Rename{From: string(op.From), To: string(op.To), Recursive: op.Recursive, Server: string(op.Server)}})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Subscribe:
		m, err := d.Subscribe(ctx, &apiv1.SubscribeRequest{RequestId: id, Subscribe: &apiv1.Subscribe{User: string(op.User), Mailbox: string(op.Mailbox)}})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Unsubscribe:
		m, err := d.Unsubscribe(ctx, &apiv1.UnsubscribeRequest{RequestId: id, Unsubscribe: &apiv1.Unsubscribe{User: string(op.User), Mailbox: string(op.Mailbox)}})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Batch:
		items := make([]*apiv1.BatchItem, len(op.Ops))
		for i, one := range op.Ops {
			switch one := one.(type) {
			case machine.Assert:
				items[i] = &apiv1.BatchItem{Op: &apiv1.BatchItem_Assert{Assert: assertTo(one)}}
			case machine.Retract:
				items[i] = &apiv1.BatchItem{Op: &apiv1.BatchItem_Retract{Retract: retractTo(one)}}
			case machine.Reserve:
				items[i] = &apiv1.BatchItem{Op: &apiv1.BatchItem_Reserve{Reserve: reserveTo(one)}}
			default:
				return a, fmt.Errorf("sim: %T in a batch", one)
			}
		}
		m, err := d.Batch(ctx, &apiv1.BatchRequest{RequestId: id, Items: items})
		return answer{m.GetHeader(), nil, m.GetResults()}, err
	case machine.SetPrimary:
		m, err := k.SetPrimary(ctx, &apiv1.SetPrimaryRequest{RequestId: id, Group: string(op.Group), To: string(op.To), Epoch: op.Epoch, Reason: op.Reason, AcceptMissing: op.AcceptMissing})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.SetGroup:
		r := &apiv1.SetGroupRequest{RequestId: id, Group: string(op.Group), Mode: apiv1.GroupMode(op.Mode), AcceptMissing: op.AcceptMissing}
		for _, m := range op.Members {
			r.Members = append(r.Members, string(m))
		}
		m, err := k.SetGroup(ctx, r)
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.SetBackend:
		r := &apiv1.SetBackendRequest{RequestId: id, Server: string(op.Server), Weight: op.Weight, DrainApproved: op.DrainApproved, Create: op.Create}
		if op.State != nil {
			r.State = apiv1.BackendState(*op.State)
		}
		m, err := k.SetBackend(ctx, r)
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Admit:
		m, err := k.AdmitBackend(ctx, &apiv1.AdmitBackendRequest{RequestId: id, Server: string(op.Server)})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Confirm:
		m, err := k.ConfirmBackend(ctx, &apiv1.ConfirmBackendRequest{RequestId: id, Server: string(op.Server), How: apiv1.ConfirmedBy(op.How), Incarnation: uint32(op.Incarnation)})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.RenameBackend:
		m, err := k.RenameBackend(ctx, &apiv1.RenameBackendRequest{RequestId: id, From: string(op.From), To: string(op.To)})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Settle:
		m, err := k.Settle(ctx, &apiv1.SettleRequest{RequestId: id, Mailbox: string(op.Mailbox), Keep: string(op.Keep)})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.Hold:
		m, err := k.PutHold(ctx, &apiv1.PutHoldRequest{RequestId: id, Kind: apiv1.HoldKind(op.Kind), Key: op.Key, ForMs: uint64(op.For), Why: op.Why})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.ReleaseHold:
		m, err := k.ReleaseHold(ctx, &apiv1.ReleaseHoldRequest{RequestId: id, Kind: apiv1.HoldKind(op.Kind), Key: op.Key})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case machine.DecideHeld:
		r := &apiv1.DecideHeldRequest{RequestId: id, Server: string(op.Server), Decision: apiv1.Decision_DECISION_REJECT}
		if op.Approve {
			r.Decision = apiv1.Decision_DECISION_APPROVE
		}
		m, err := k.DecideHeld(ctx, r)
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	case changeSettings:
		m, err := k.SetSettings(ctx, &apiv1.SetSettingsRequest{RequestId: id, Settings: op.Settings})
		return answer{m.GetHeader(), m.GetResult(), nil}, err
	}
	return a, fmt.Errorf("sim: no call for %T", op)
}

// changeSettings is what an operator asks for; the server makes of it the whole.
type changeSettings struct {
	machine.Op
	*apiv1.Settings
}

func assertTo(op machine.Assert) *apiv1.Assert {
	return &apiv1.Assert{
		Mailbox: string(op.Mailbox), Server: string(op.Server), Partition: op.Statement.Partition, Acl: op.Statement.ACL,
		MailboxId: op.Statement.MailboxID, UidValidity: op.Statement.UIDValidity, SpecialUse: op.Statement.SpecialUse,
		Imported: op.Imported, Deactivated: op.Deactivated, SinceRevision: uint64(op.Since),
	}
}

func retractTo(op machine.Retract) *apiv1.Retract {
	return &apiv1.Retract{Mailbox: string(op.Mailbox), Server: string(op.Server), Epoch: op.Epoch, Tentative: op.Tentative, SinceRevision: uint64(op.Since)}
}

func reserveTo(op machine.Reserve) *apiv1.Reserve {
	return &apiv1.Reserve{Mailbox: string(op.Mailbox), Server: string(op.Server), Partition: op.Partition, GraceMs: uint64(op.Grace)}
}
