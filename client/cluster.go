package client

import (
	"context"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
)

// Status is how the cluster and the node that answered are.
type Status struct {
	Answer
	ClusterID         string
	Shard             uint32
	DirectoryTime     time.Duration
	Wall              time.Time // of the last command; for people
	Complete          bool      // every backend that counts has been heard in this incarnation
	BackendsConfirmed int
	BackendsCounted   int
	Missing           []directory.BackendName // at most 100
	Counts            Counts
	Nodes             []Node
	Leader            string // a node's name; empty if none is known
	Version           string // the release of the node that answered
	FormatVersion     uint32
	ClusterVersion    uint32
	Sweeps            []Sweep
	Warnings          []string // what an operator should look at
	Problems          []string // what keeps mailboxes from being served
	AdmissionOpen     bool
	ReadOnly          bool
	AutomationPaused  bool                    // the directory moves no primary by itself
	Recovering        bool                    // restored, and not every backend has been heard since
	NotAdmitted       []directory.BackendName // at most 100
	AppliedIndex      uint64                  // Raft's numbers, of the node that answered
	CommitIndex       uint64
	Term              uint64
	Alarms            []Alarm     // by kind and node
	GrowthRefused     string      // why the cluster takes no growth; empty if it does
	Health            *NodeHealth // of the node that answered; nil if it says nothing
	NodeID            uint64      // of the node that answered; 0 if it does not know
	Waiting           []Node      // ask to join
	NodeProblems      []string    // what is wrong with the nodes
}

// Counts are kept by the directory, not counted.
type Counts struct {
	Mailboxes, Listed, Inboxes, Forked, Reservations, Held, Subscriptions, Postings, Deactivated uint64
}

// Sweep is work left over from a small command, going on by itself.
type Sweep struct {
	Kind   string
	Server directory.BackendName
	After  directory.MailboxName
}

// Status says how the cluster is. With Stale it is answered without a majority.
func (s *Session) Status(ctx context.Context, opts ...ReadOption) (Status, error) {
	m, a, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.StatusResponse, error) {
		return n.cluster.Status(ctx, &apiv1.StatusRequest{Consistency: c})
	})
	if err != nil {
		return Status{}, err
	}
	return statusOf(m, a), nil
}

// Backend is an IMAP server that stores mail.
type Backend struct {
	Name              directory.BackendName
	ID                directory.ServerID
	Group             directory.GroupName
	Primary           bool // of its group
	Addresses         []directory.Address
	Weight            uint32
	Admitted          bool
	State             directory.BackendState
	StateAge          time.Duration
	DrainApproved     bool
	ConfirmedBy       directory.ConfirmedBy // how its list was last known whole
	Confirmed         bool                  // in this incarnation
	ConfirmedRevision directory.Revision
	ConfirmedAge      time.Duration
	Facts, Counted    uint64 // how many it has; of those, in force inside their home
	Held              bool   // the withdrawal guard holds some of them
}

// ListBackends returns every backend by name, or only server if it is not empty.
//
// Errors: directory.ErrNotFound; ErrUnavailable.
func (s *Session) ListBackends(ctx context.Context, server directory.BackendName, opts ...ReadOption) ([]Backend, error) {
	m, _, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.ListBackendsResponse, error) {
		return n.cluster.ListBackends(ctx, &apiv1.ListBackendsRequest{Consistency: c, Server: string(server)})
	})
	if err != nil {
		return nil, err
	}
	out := make([]Backend, len(m.GetBackends()))
	for i, b := range m.GetBackends() {
		out[i] = backendOf(b)
	}
	return out, nil
}

// BackendChange is what operators say of a backend; nil fields are unchanged.
type BackendChange struct {
	Addresses     *[]directory.Address
	Weight        *uint32
	State         *directory.BackendState
	DrainApproved *bool
	Create        bool // make it, admitted, if there is none
}

// SetBackend changes a backend.
//
// Errors: directory.ErrNotFound, ErrBusy, ErrInvalidName, ErrInvalid, ErrRole;
// ErrUnavailable, ErrUndecided.
func (s *Session) SetBackend(ctx context.Context, server directory.BackendName, change BackendChange) (Result, error) {
	req := &apiv1.SetBackendRequest{
		Server:        string(server),
		Weight:        change.Weight,
		DrainApproved: change.DrainApproved,
		Create:        change.Create,
	}
	if change.Addresses != nil {
		req.Addresses = &apiv1.AddressList{Addresses: addressesTo(*change.Addresses)}
	}
	if change.State != nil {
		req.State = apiv1.BackendState(*change.State)
	}
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.SetBackendResponse, error) {
		req.RequestId = id
		return n.cluster.SetBackend(ctx, req)
	})
}

// Admission is what admitting a backend would do.
type Admission struct {
	Answer
	Facts       uint64    // how many mailboxes it holds
	Overlapping uint64    // how many of them have a home already
	Overlaps    []Overlap // the first of those, in name order
}

// Overlap is a mailbox that a backend not yet admitted and a home both hold.
type Overlap struct {
	Mailbox  directory.MailboxName
	Group    directory.GroupName
	Server   directory.BackendName // routed to; empty if none
	SameCopy bool                  // the mailbox ids are equal: perhaps a replica
}

// PreviewAdmission says what AdmitBackend would do, naming at most limit overlaps
// (0: 100).
//
// Errors: directory.ErrNotFound; ErrUnavailable.
func (s *Session) PreviewAdmission(ctx context.Context, server directory.BackendName, limit int, opts ...ReadOption) (Admission, error) {
	m, a, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.PreviewAdmissionResponse, error) {
		return n.cluster.PreviewAdmission(ctx, &apiv1.PreviewAdmissionRequest{Consistency: c, Server: string(server), Limit: pageSize(limit)})
	})
	if err != nil {
		return Admission{}, err
	}
	out := Admission{Answer: a, Facts: m.GetFacts(), Overlapping: m.GetOverlapping()}
	for _, o := range m.GetOverlaps() {
		out.Overlaps = append(out.Overlaps, Overlap{
			Mailbox:  directory.MailboxName(o.GetMailbox()),
			Group:    directory.GroupName(o.GetGroup()),
			Server:   directory.BackendName(o.GetServer()),
			SameCopy: o.GetSameCopy(),
		})
	}
	return out, nil
}

// AdmitBackend lets a backend's facts count from now on.
//
// Errors: directory.ErrNotFound, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) AdmitBackend(ctx context.Context, server directory.BackendName) (Result, error) {
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.AdmitBackendResponse, error) {
		return n.cluster.AdmitBackend(ctx, &apiv1.AdmitBackendRequest{RequestId: id, Server: string(server)})
	})
}

// ConfirmBackend says that a backend's list is known whole in this incarnation.
// Errors as AdmitBackend.
func (s *Session) ConfirmBackend(ctx context.Context, server directory.BackendName, how directory.ConfirmedBy) (Result, error) {
	return s.ConfirmBackendIn(ctx, 0, server, how)
}

// ConfirmBackendIn is ConfirmBackend for a list that was stated in that incarnation,
// as the answers to the first statements told: if the cluster was restored meanwhile
// it confirms nothing, for what was stated before is forgotten.
//
// Errors: directory.ErrInvalid (it was), and ConfirmBackend's.
func (s *Session) ConfirmBackendIn(ctx context.Context, life directory.Incarnation, server directory.BackendName, how directory.ConfirmedBy) (Result, error) {
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.ConfirmBackendResponse, error) {
		return n.cluster.ConfirmBackend(ctx, &apiv1.ConfirmBackendRequest{
			RequestId: id, Server: string(server), How: apiv1.ConfirmedBy(how), Incarnation: uint32(life),
		})
	})
}

// RenameBackend gives a backend another name; its facts stay its own.
//
// Errors: directory.ErrNotFound, ErrExists, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) RenameBackend(ctx context.Context, from, to directory.BackendName) (Result, error) {
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.RenameBackendResponse, error) {
		return n.cluster.RenameBackend(ctx, &apiv1.RenameBackendRequest{RequestId: id, From: string(from), To: string(to)})
	})
}

// Group is a replica group.
type Group struct {
	Name    directory.GroupName
	ID      directory.GroupID
	Members []directory.BackendName // in order of preference
	Primary directory.BackendName
	Epoch   uint64
	Mode    directory.GroupMode
	Own     bool // a backend's group of one
	History []Switchover
	Hold    *Hold
}

// Switchover is one move of a group's primary.
type Switchover struct {
	Epoch         uint64
	From, To      directory.BackendName
	By, Reason    string
	Revision      directory.Revision
	Age           time.Duration
	Wall          time.Time // for people
	AcceptMissing bool
}

// ListGroups returns every replica group by name, or only group if it is not empty.
//
// Errors: directory.ErrNotFound; ErrUnavailable.
func (s *Session) ListGroups(ctx context.Context, group directory.GroupName, opts ...ReadOption) ([]Group, error) {
	m, _, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.ListGroupsResponse, error) {
		return n.cluster.ListGroups(ctx, &apiv1.ListGroupsRequest{Consistency: c, Group: string(group)})
	})
	if err != nil {
		return nil, err
	}
	out := make([]Group, len(m.GetGroups()))
	for i, g := range m.GetGroups() {
		out[i] = groupOf(g)
	}
	return out, nil
}

// SetGroup is a replica group as it is to be.
type SetGroup struct {
	Group   directory.GroupName
	Members []directory.BackendName // in order of preference
	Mode    directory.GroupMode     // 0: unchanged, or manual
	// AcceptMissing lets a backend join that is home to mailboxes which the
	// primary may not hold: they would answer NotAtPrimary.
	AcceptMissing bool
}

// SetGroup makes a group or changes its members.
//
// Errors: directory.ErrNotFound, ErrNotMember, ErrNotAdmitted, ErrBusy,
// ErrMissingAtTarget, ErrExists, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) SetGroup(ctx context.Context, g SetGroup) (Result, error) {
	req := &apiv1.SetGroupRequest{Group: string(g.Group), Mode: apiv1.GroupMode(g.Mode), AcceptMissing: g.AcceptMissing}
	for _, name := range g.Members {
		req.Members = append(req.Members, string(name))
	}
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.SetGroupResponse, error) {
		req.RequestId = id
		return n.cluster.SetGroup(ctx, req)
	})
}

// Plan is what a switchover would meet.
type Plan struct {
	Answer
	Group              directory.GroupName
	From, To           directory.BackendName
	Epoch              uint64 // for SetPrimary
	FromCount, ToCount uint64
	Equal              bool // the target holds what the present primary holds
	MissingCount       uint64
	ExtraCount         uint64
	Missing, Extra     []directory.MailboxName // the first of them, in name order
	Truncated          bool                    // the counts are lower bounds
	Refusal            string                  // why else SetPrimary would refuse; empty if it would not
}

// PlanSwitchover says what SetPrimary would meet, naming at most limit differences
// (0: 100).
//
// Errors: directory.ErrNotFound, ErrNotMember; ErrUnavailable.
func (s *Session) PlanSwitchover(ctx context.Context, group directory.GroupName, to directory.BackendName, limit int, opts ...ReadOption) (Plan, error) {
	m, a, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.PlanSwitchoverResponse, error) {
		return n.cluster.PlanSwitchover(ctx, &apiv1.PlanSwitchoverRequest{Consistency: c, Group: string(group), To: string(to), Limit: pageSize(limit)})
	})
	if err != nil {
		return Plan{}, err
	}
	return Plan{
		Answer:       a,
		Group:        directory.GroupName(m.GetGroup()),
		From:         directory.BackendName(m.GetFrom()),
		To:           directory.BackendName(m.GetTo()),
		Epoch:        m.GetEpoch(),
		FromCount:    m.GetFromCount(),
		ToCount:      m.GetToCount(),
		Equal:        m.GetEqual(),
		MissingCount: m.GetMissingCount(),
		ExtraCount:   m.GetExtraCount(),
		Missing:      mailboxes(m.GetMissing()),
		Extra:        mailboxes(m.GetExtra()),
		Truncated:    m.GetTruncated(),
		Refusal:      m.GetRefusal(),
	}, nil
}

// SetPrimary moves a group's primary: epoch is the one the caller saw.
type SetPrimary struct {
	Group         directory.GroupName
	To            directory.BackendName
	Epoch         uint64
	Reason        string
	AcceptMissing bool
}

// SetPrimary moves a group's primary.
//
// Errors: directory.ErrNotFound, ErrStaleEpoch (the *Error has the present one),
// ErrNotMember, ErrMissingAtTarget, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) SetPrimary(ctx context.Context, p SetPrimary) (Result, error) {
	req := &apiv1.SetPrimaryRequest{
		Group: string(p.Group), To: string(p.To), Epoch: p.Epoch, Reason: p.Reason, AcceptMissing: p.AcceptMissing,
	}
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.SetPrimaryResponse, error) {
		req.RequestId = id
		return n.cluster.SetPrimary(ctx, req)
	})
}

// ListHolds returns every hold, by kind and key.
func (s *Session) ListHolds(ctx context.Context, opts ...ReadOption) ([]Hold, error) {
	m, _, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.ListHoldsResponse, error) {
		return n.cluster.ListHolds(ctx, &apiv1.ListHoldsRequest{Consistency: c})
	})
	if err != nil {
		return nil, err
	}
	out := make([]Hold, len(m.GetHolds()))
	for i, h := range m.GetHolds() {
		out[i] = holdOf(h)
	}
	return out, nil
}

// PutHold puts a hold for so long, or replaces the one there.
//
// Errors: directory.ErrInvalidName, ErrInvalid, ErrRole; ErrUnavailable,
// ErrUndecided.
func (s *Session) PutHold(ctx context.Context, kind directory.HoldKind, key string, length time.Duration, why string) (Result, error) {
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.PutHoldResponse, error) {
		return n.cluster.PutHold(ctx, &apiv1.PutHoldRequest{RequestId: id, Kind: apiv1.HoldKind(kind), Key: key, ForMs: millisOf(length), Why: why})
	})
}

// ReleaseHold ends a hold. None there: Unchanged. Errors as PutHold.
func (s *Session) ReleaseHold(ctx context.Context, kind directory.HoldKind, key string) (Result, error) {
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.ReleaseHoldResponse, error) {
		return n.cluster.ReleaseHold(ctx, &apiv1.ReleaseHoldRequest{RequestId: id, Kind: apiv1.HoldKind(kind), Key: key})
	})
}

// HeldFact is one fact that the withdrawal guard holds.
type HeldFact struct {
	Mailbox directory.MailboxName
	Server  directory.BackendName
	State   directory.FactState // HeldWithdrawal or HeldReturn
	Age     time.Duration
}

// ListHeld yields what the withdrawal guard holds, of server or of all. After an
// error, which it yields last, what came before is not all.
func (s *Session) ListHeld(ctx context.Context, server directory.BackendName, opts ...ReadOption) iter.Seq2[HeldFact, error] {
	return pages(func(page string) ([]HeldFact, string, error) {
		m, _, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.ListHeldResponse, error) {
			return n.cluster.ListHeld(ctx, &apiv1.ListHeldRequest{Consistency: c, Server: string(server), PageToken: page})
		})
		out := make([]HeldFact, len(m.GetHeld()))
		for i, h := range m.GetHeld() {
			out[i] = HeldFact{
				Mailbox: directory.MailboxName(h.GetMailbox()),
				Server:  directory.BackendName(h.GetServer()),
				State:   directory.FactState(h.GetState()),
				Age:     millis(h.GetAgeMs()),
			}
		}
		return out, m.GetNextPageToken(), err
	})
}

// DecideHeld approves or rejects all that the guard holds of server.
//
// Errors: directory.ErrNotFound, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) DecideHeld(ctx context.Context, server directory.BackendName, approve bool) (Result, error) {
	decision := apiv1.Decision_DECISION_REJECT
	if approve {
		decision = apiv1.Decision_DECISION_APPROVE
	}
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.DecideHeldResponse, error) {
		return n.cluster.DecideHeld(ctx, &apiv1.DecideHeldRequest{RequestId: id, Server: string(server), Decision: decision})
	})
}

// ListForks yields the forked mailboxes in name order, with all their facts. After
// an error, which it yields last, what came before is not all.
func (s *Session) ListForks(ctx context.Context, opts ...ReadOption) iter.Seq2[Route, error] {
	return pages(func(page string) ([]Route, string, error) {
		m, a, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.ListForksResponse, error) {
			return n.cluster.ListForks(ctx, &apiv1.ListForksRequest{Consistency: c, PageToken: page})
		})
		out := make([]Route, len(m.GetForks()))
		for i, r := range m.GetForks() {
			out[i] = routeOf(r, "", a)
		}
		return out, m.GetNextPageToken(), err
	})
}

// Settle ends a fork in favour of keep's group.
//
// Errors: directory.ErrNotFound, ErrNotHolder, ErrRole; ErrUnavailable,
// ErrUndecided.
func (s *Session) Settle(ctx context.Context, mailbox directory.MailboxName, keep directory.BackendName) (Result, error) {
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.SettleResponse, error) {
		return n.cluster.Settle(ctx, &apiv1.SettleRequest{RequestId: id, Mailbox: string(mailbox), Keep: string(keep)})
	})
}

// Move is a mailbox given up and not yet taken.
type Move struct {
	Mailbox directory.MailboxName
	Server  directory.BackendName // gave it up
	Age     time.Duration
}

// ListMoves yields the mailboxes given up and not yet taken, in name order. After
// an error, which it yields last, what came before is not all.
func (s *Session) ListMoves(ctx context.Context, opts ...ReadOption) iter.Seq2[Move, error] {
	return pages(func(page string) ([]Move, string, error) {
		m, _, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.ListMovesResponse, error) {
			return n.cluster.ListMoves(ctx, &apiv1.ListMovesRequest{Consistency: c, PageToken: page})
		})
		out := make([]Move, len(m.GetMoves()))
		for i, v := range m.GetMoves() {
			out[i] = Move{
				Mailbox: directory.MailboxName(v.GetMailbox()),
				Server:  directory.BackendName(v.GetServer()),
				Age:     millis(v.GetAgeMs()),
			}
		}
		return out, m.GetNextPageToken(), err
	})
}

// GetSettings returns what the whole cluster agrees on.
func (s *Session) GetSettings(ctx context.Context, opts ...ReadOption) (directory.Settings, error) {
	m, _, err := ask(ctx, s, s.read(opts), func(ctx context.Context, n *node, c *apiv1.Consistency) (*apiv1.GetSettingsResponse, error) {
		return n.cluster.GetSettings(ctx, &apiv1.GetSettingsRequest{Consistency: c})
	})
	if err != nil {
		return directory.Settings{}, err
	}
	return settingsOf(m.GetSettings()), nil
}

// SettingsChange is a change of the cluster's settings; nil fields are unchanged.
type SettingsChange struct {
	DefaultDomain *string
	VirtDomains   *bool
	AdmissionOpen *bool
	ReadOnly      *bool
	GuardCount    *uint32
	GuardPercent  *uint32
	GuardWindow   *time.Duration
	ReserveGrace  *time.Duration
	ReserveMax    *time.Duration
	DeliveryGrace *time.Duration
	TombstoneKeep *time.Duration
	LogKeep       *uint64
	RequestKeep   *time.Duration

	AutomationPaused *bool
}

// SetSettings changes the settings stated and keeps the rest.
//
// Errors: directory.ErrInvalid, ErrRole; ErrUnavailable, ErrUndecided.
func (s *Session) SetSettings(ctx context.Context, change SettingsChange) (Result, error) {
	req := &apiv1.SetSettingsRequest{Settings: settingsTo(change)}
	return write(ctx, s, func(ctx context.Context, n *node, id *apiv1.RequestId) (*apiv1.SetSettingsResponse, error) {
		req.RequestId = id
		return n.cluster.SetSettings(ctx, req)
	})
}

// CheckEvent is one thing that Check tells of while it runs: a finding if Kind is
// not empty, else progress.
type CheckEvent struct {
	Phase       string
	Done, Total uint64 // Total is 0 if not known

	Kind     string
	Mailbox  directory.MailboxName
	Detail   string
	Advisory bool // not damage, but a copy that may lie on a disk
}

// CheckSummary is what a check came to.
type CheckSummary struct {
	Answer
	Mailboxes, Facts, Postings uint64 // looked at
	Faults, Advisories         uint64 // findings that are damage; others
}

// Check has one node recompute every index, posting and digest from its facts; it
// calls each for what it tells meanwhile, with at most limit findings (0: 1,000).
// It is asked of one node and not repeated. An error of each ends it.
func (s *Session) Check(ctx context.Context, limit int, each func(CheckEvent) error, opts ...ReadOption) (CheckSummary, error) {
	if s.c.isClosed() {
		return CheckSummary{}, ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := s.read(opts)
	stream, err := s.c.nodes.first(false).cluster.Check(ctx, &apiv1.CheckRequest{Consistency: s.refresh(r), Limit: pageSize(limit)})
	if err != nil {
		return CheckSummary{}, FromStatus(err)
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return CheckSummary{}, fmt.Errorf("%w: the check broke off", ErrProtocol)
		}
		if err != nil {
			return CheckSummary{}, FromStatus(err)
		}
		var event CheckEvent
		switch {
		case m.GetSummary() != nil:
			sum := m.GetSummary()
			a, err := s.take(sum.GetHeader())
			return CheckSummary{
				Answer:     a,
				Mailboxes:  sum.GetMailboxes(),
				Facts:      sum.GetFacts(),
				Postings:   sum.GetPostings(),
				Faults:     sum.GetFaults(),
				Advisories: sum.GetAdvisories(),
			}, err
		case m.GetFinding() != nil:
			f := m.GetFinding()
			event = CheckEvent{Kind: f.GetKind(), Mailbox: directory.MailboxName(f.GetMailbox()), Detail: f.GetDetail(), Advisory: f.GetAdvisory()}
		case m.GetProgress() != nil:
			p := m.GetProgress()
			event = CheckEvent{Phase: p.GetPhase(), Done: p.GetDone(), Total: p.GetTotal()}
		default:
			continue // of a later release
		}
		if err := each(event); err != nil {
			return CheckSummary{}, err
		}
	}
}
