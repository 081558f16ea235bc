package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/rookery-mail/rookery/directory"
	apiv1 "github.com/rookery-mail/rookery/proto/api/v1"
	"github.com/rookery-mail/rookery/raftstore"
)

// defaultSettle is how long a refusal is looked at again before it is given: Raft
// forgets who answered once in every election timeout, so that for some
// milliseconds a node that is well has not been heard.
const defaultSettle = 400 * time.Millisecond

const settleStep = 20 * time.Millisecond

// knowSelf fills in Members.Self where it is not told: by name, of two with one
// name by whoever leads.
func knowSelf(members func() Members, node string) func() Members {
	return func() Members {
		m := members()
		if m.Self != 0 {
			return m
		}
		for _, n := range m.Nodes {
			if n.Name == node && (m.Self == 0 || n.ID == m.Leader) {
				m.Self = n.ID
			}
		}
		return m
	}
}

// change is one call of an operator to the leader, and what it sees: the members,
// and who of them answered while it looked.
type change struct {
	s *Server
	Members
	header *apiv1.ResponseHeader
	active map[uint64]bool
	caller Caller
}

// change begins one: on the leader, alone, and with everything applied that was
// committed before. The caller calls end.
func (s *Server) change(ctx context.Context) (_ *change, end func(), err error) {
	select {
	case s.changing <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	defer func() {
		if err != nil {
			<-s.changing
		}
	}()
	c := &change{s: s, active: make(map[uint64]bool), caller: callerOf(ctx)}
	if err := c.look(); err != nil {
		return nil, nil, err
	}
	r, err := s.readLinearizable(ctx, token{})
	if err != nil {
		return nil, nil, err
	}
	defer r.Release()
	if c.header, err = s.headerOf(&r); err != nil {
		return nil, nil, err
	}
	return c, func() { <-s.changing }, c.look()
}

// look asks anew who there is; an error if this node does not lead.
func (c *change) look() error {
	c.Members = c.s.members()
	switch {
	case c.Leader == 0:
		return raftstore.ErrNoLeader
	case !c.leading():
		return anotherLeads(&c.Members)
	}
	for _, n := range c.Nodes {
		if n.Active || n.ID == c.Self {
			c.active[n.ID] = true
		}
	}
	return nil
}

// answers tells whether the leader has heard n of late.
func (c *change) answers(n *Node) bool { return c.active[n.ID] }

// check returns what may says, after some patience with what time may mend.
func (c *change) check(ctx context.Context, may func() error) error {
	until := time.Now().Add(c.s.settleFor)
	for {
		err := may()
		if !errors.Is(err, errNoQuorum) && !errors.Is(err, errLagging) || time.Now().After(until) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settleStep):
		}
		if err := c.look(); err != nil {
			return err
		}
	}
}

// find returns the member that a request means.
func (c *change) find(name string, id uint64) (*Node, error) {
	if name == "" && id == 0 {
		return nil, missing("member")
	}
	var found []*Node
	for i := range c.Nodes {
		if n := &c.Nodes[i]; (name == "" || n.Name == name) && (id == 0 || n.ID == id) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		what := name
		if id != 0 {
			what = called(&Node{Name: name, ID: id})
		}
		return nil, fmt.Errorf("%w: no member is %s; there are %s", directory.ErrNotFound, what, namesOf(c.Nodes, "and"))
	}
	return nil, fmt.Errorf("%w: %s is the name of %d members: say which by its id, %x or %x", directory.ErrInvalid, name, len(found), found[0].ID, found[1].ID)
}

// howToJoin says what makes a node wait.
const howToJoin = "start it with --join naming every member and an empty data directory, and leave it running"

// waiting returns the node that a request to join means.
func (c *change) waiting(name string, id uint64) (*Node, error) {
	if name == "" && id == 0 {
		return nil, missing("node")
	}
	var found []*Node
	for i := range c.Waiting {
		if n := &c.Waiting[i]; (name == "" || n.Name == name) && (id == 0 || n.ID == id) {
			found = append(found, n)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("%w: %d nodes named %s wait to join: say which by its id, %x or %x", directory.ErrInvalid, len(found), name, found[0].ID, found[1].ID)
	case len(c.Waiting) == 0:
		return nil, fmt.Errorf("%w: no node asks %s, which leads, to join; %s", errNotWaiting, c.leader().Name, howToJoin)
	}
	what := name
	if id != 0 {
		what = called(&Node{Name: name, ID: id})
	}
	return nil, fmt.Errorf("%w: %s does not ask %s, which leads, to join, only %s; %s", errNotWaiting, what, c.leader().Name, namesOf(c.Waiting, "and"), howToJoin)
}

// caughtUp refuses a node that does not answer, or that lacks too much of the log. Of
// a learner more is asked: that it was heard to have applied it.
func (c *change) caughtUp(n *Node) error {
	if !c.answers(n) {
		return fmt.Errorf("%w: %s does not answer the leader: start it, or look at its log", errLagging, called(n))
	}
	if !n.Voter {
		why, trails, _ := c.lacks(n)
		if why == "" {
			return nil
		}
		err := fmt.Errorf("%w: %s %s, and %d entries at most may be missing: it catches up by itself, ask again later", errLagging, n.Name, why, maxTrail)
		if trails == 0 {
			return err
		}
		return withMetadata(err, "trails", number(trails))
	}
	if trails, _ := c.trails(n); trails > maxTrail {
		err := fmt.Errorf("%w: %s trails the leader by %s (it has %d of %d), and %d at most are allowed: it catches up by itself, ask again later",
			errLagging, n.Name, entries(trails), n.Match, c.Commit, maxTrail)
		return withMetadata(err, "trails", number(trails))
	}
	return nil
}

// reconfigure carries a change out.
func (c *change) reconfigure(ctx context.Context, what string, n *Node, changes ...raftstore.Change) error {
	if c.s.replica == nil {
		return fmt.Errorf("%w: this node cannot change the membership", errUnsupported)
	}
	ctx, cancel := c.s.bound(ctx)
	defer cancel()
	if err := c.s.replica.ChangeMembers(ctx, changes...); err != nil {
		return err
	}
	c.s.log.Info("membership changed by an operator", "what", what, "member", n.Name, "id", fmt.Sprintf("%x", n.ID), "by", c.caller)
	// What this node tells of its members comes a moment after the change; and what
	// needs a joint membership is over when Raft has left it.
	for range 100 {
		if err := c.look(); err != nil {
			return nil // it is done all the same; the next leader has it too
		}
		pending := false
		for _, ch := range changes {
			m := c.member(ch.Member.ID)
			pending = pending || ch.Remove != (m == nil) || m != nil && m.Voter == ch.Member.Learner
		}
		if !pending {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settleStep):
		}
	}
	return nil
}

// result says what a change came to.
func (c *change) result(effect apiv1.Effect, about *Node, notes ...string) *apiv1.MemberResult {
	out := &apiv1.MemberResult{Effect: effect}
	for _, note := range notes {
		if note != "" {
			out.Notes = append(out.Notes, note)
		}
	}
	if now := c.member(about.ID); now != nil {
		about = now
	}
	out.Member = c.nodeTo(about)
	for i := range c.Nodes {
		out.Nodes = append(out.Nodes, c.nodeTo(&c.Nodes[i]))
	}
	return out
}

// outlook is what an operator should know of the voters that there are now.
func (c *change) outlook() (notes []string) {
	return []string{tolerance(voters(c.Nodes), c.answers), siteMajority(c.Nodes)}
}

func (s *clusterService) AddMember(ctx context.Context, req *apiv1.AddMemberRequest) (*apiv1.AddMemberResponse, error) {
	c, end, err := s.s.change(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	n, err := c.waiting(req.GetName(), req.GetId())
	if errors.Is(err, errNotWaiting) {
		if m, _ := c.find(req.GetName(), req.GetId()); m != nil {
			return &apiv1.AddMemberResponse{Header: c.header, Result: c.result(apiv1.Effect_EFFECT_UNCHANGED, m, m.Name+" is a member already")}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if m := c.member(n.ID); m != nil {
		return &apiv1.AddMemberResponse{Header: c.header, Result: c.result(apiv1.Effect_EFFECT_UNCHANGED, m, m.Name+" is a member already")}, nil
	}
	if i := slices.IndexFunc(c.Nodes, func(m Node) bool { return m.Name == n.Name }); i >= 0 {
		return nil, fmt.Errorf("%w: %s is a member already, and this is another disk (id %x): `rookeryctl member replace %s` puts it in the other's place",
			directory.ErrExists, called(&c.Nodes[i]), n.ID, n.Name)
	}
	if err := c.learn(ctx, n); err != nil {
		return nil, err
	}
	return &apiv1.AddMemberResponse{Header: c.header, Result: c.result(apiv1.Effect_EFFECT_ADDED, n,
		fmt.Sprintf("%s gets the log now; once it has it, `rookeryctl member promote %s` gives it its vote", n.Name, n.Name))}, nil
}

// learn makes a node that waits a learner.
func (c *change) learn(ctx context.Context, n *Node) error {
	return c.reconfigure(ctx, "learner added", n, raftstore.Change{Member: raftstore.Member{ID: n.ID, Name: n.Name, Learner: true, Context: n.Context}})
}

func (s *clusterService) PromoteMember(ctx context.Context, req *apiv1.PromoteMemberRequest) (*apiv1.PromoteMemberResponse, error) {
	c, end, err := s.s.change(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	n, err := c.find(req.GetName(), req.GetId())
	if err != nil {
		return nil, err
	}
	if n.Voter {
		return &apiv1.PromoteMemberResponse{Header: c.header, Result: c.result(apiv1.Effect_EFFECT_UNCHANGED, n, n.Name+" is a voter already")}, nil
	}
	id := n.ID
	if err := c.check(ctx, func() error {
		if n = c.member(id); n == nil {
			return fmt.Errorf("%w: the member was removed meanwhile", directory.ErrNotFound)
		}
		if err := c.caughtUp(n); err != nil {
			return err
		}
		return checkQuorum("promoting "+n.Name, append(voters(c.Nodes), *n), nil, c.answers)
	}); err != nil {
		return nil, err
	}
	if err := c.reconfigure(ctx, "promoted", n, raftstore.Change{Member: raftstore.Member{ID: n.ID}}); err != nil {
		return nil, err
	}
	return &apiv1.PromoteMemberResponse{Header: c.header, Result: c.result(apiv1.Effect_EFFECT_CHANGED, n, c.outlook()...)}, nil
}

func (s *clusterService) RemoveMember(ctx context.Context, req *apiv1.RemoveMemberRequest) (*apiv1.RemoveMemberResponse, error) {
	c, end, err := s.s.change(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	n, err := c.find(req.GetName(), req.GetId())
	if errors.Is(err, directory.ErrNotFound) && req.GetId() != 0 {
		gone := &Node{Name: req.GetName(), ID: req.GetId()}
		return &apiv1.RemoveMemberResponse{Header: c.header, Result: c.result(apiv1.Effect_EFFECT_UNCHANGED, gone, fmt.Sprintf("no member has the id %x", req.GetId()))}, nil
	}
	if err != nil {
		return nil, err
	}
	gone := *n
	if gone.Voter {
		if err := c.check(ctx, func() error {
			return checkQuorum("removing "+gone.Name, without(voters(c.Nodes), gone.ID), &gone, c.answers)
		}); err != nil {
			return nil, err
		}
	}
	if err := c.giveWay(ctx, gone.ID); err != nil {
		return nil, err
	}
	if err := c.reconfigure(ctx, "removed", &gone, raftstore.Change{Member: raftstore.Member{ID: gone.ID}, Remove: true}); err != nil {
		return nil, err
	}
	notes := append(c.outlook(), fmt.Sprintf("the id %x is never used again: stop %s if it runs; to come back it starts with --join and an empty data directory", gone.ID, gone.Name))
	return &apiv1.RemoveMemberResponse{Header: c.header, Result: c.result(apiv1.Effect_EFFECT_REMOVED, &gone, notes...)}, nil
}

// giveWay hands the leadership over if the node that is about to go leads, and
// sends the caller to the new leader.
func (c *change) giveWay(ctx context.Context, going uint64) error {
	if going != c.Self {
		return nil
	}
	var to *Node
	if err := c.check(ctx, func() (err error) {
		to, err = c.successor()
		return err
	}); err != nil {
		return err
	}
	if err := c.transfer(ctx, to); err != nil {
		return err
	}
	m := c.s.members()
	if m.Leader == c.Self {
		m.Leader = to.ID
	}
	return anotherLeads(&m)
}

// successor is the voter that should lead after this node: it answers, and its
// log goes farthest.
func (c *change) successor() (*Node, error) {
	var best *Node
	for i := range c.Nodes {
		n := &c.Nodes[i]
		if n.Voter && n.ID != c.Self && c.answers(n) && (best == nil || n.Match > best.Match) {
			best = n
		}
	}
	others := without(voters(c.Nodes), c.Self)
	switch {
	case len(others) == 0:
		return nil, fmt.Errorf("%w: %s is the only voter: there is nobody to hand the leadership to", errNotVoter, c.leader().Name)
	case best == nil:
		return nil, fmt.Errorf("%w: no other voter answers: start %s", errLagging, namesOf(others, "or"))
	}
	return best, c.caughtUp(best)
}

func (c *change) transfer(ctx context.Context, to *Node) error {
	if c.s.replica == nil {
		return fmt.Errorf("%w: this node cannot hand the leadership over", errUnsupported)
	}
	ctx, cancel := c.s.bound(ctx)
	defer cancel()
	from := c.leader().Name
	if err := c.s.replica.Transfer(ctx, to.ID); err != nil {
		if findStatus(err) == broken {
			// The node is well; the other one did not take over in time.
			err = fmt.Errorf("%w: %w", errLagging, err)
		}
		return fmt.Errorf("handing the leadership to %s: %w", to.Name, err)
	}
	c.s.log.Info("leadership handed over by an operator", "from", from, "to", to.Name, "by", c.caller)
	return nil
}

func (s *clusterService) ReplaceMember(ctx context.Context, req *apiv1.ReplaceMemberRequest) (*apiv1.ReplaceMemberResponse, error) {
	if err := known(req.GetStep(), apiv1.ReplaceStep_name, false); err != nil {
		return nil, err
	}
	if req.GetName() == "" {
		return nil, missing("member")
	}
	if req.GetOldId() != 0 && req.GetOldId() == req.GetNewId() {
		return nil, fmt.Errorf("%w: the id %x cannot take its own place", directory.ErrInvalid, req.GetOldId())
	}
	c, end, err := s.s.change(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	step := c.startReplacement
	if req.GetStep() == apiv1.ReplaceStep_REPLACE_STEP_FINISH {
		step = c.finishReplacement
	}
	result, err := step(ctx, req)
	if err != nil {
		return nil, err
	}
	return &apiv1.ReplaceMemberResponse{Header: c.header, Result: result}, nil
}

// named returns the members with that name.
func (c *change) named(name string) (found []*Node) {
	for i := range c.Nodes {
		if c.Nodes[i].Name == name {
			found = append(found, &c.Nodes[i])
		}
	}
	return found
}

func (c *change) startReplacement(ctx context.Context, req *apiv1.ReplaceMemberRequest) (*apiv1.MemberResult, error) {
	name := req.GetName()
	members := c.named(name)
	if len(members) == 0 {
		return nil, fmt.Errorf("%w: no member is %s, so there is nothing to replace; `rookeryctl member add %s` takes it in", directory.ErrNotFound, name, name)
	}
	for _, m := range members {
		if m.ID == req.GetNewId() {
			return c.result(apiv1.Effect_EFFECT_UNCHANGED, m, name+"'s new disk is a member already"), nil
		}
	}
	if req.GetOldId() != 0 && c.member(req.GetOldId()) == nil {
		return nil, fmt.Errorf("%w: no member is %s", directory.ErrNotFound, called(&Node{Name: name, ID: req.GetOldId()}))
	}
	n, err := c.waiting(name, req.GetNewId())
	if err != nil {
		return nil, err
	}
	if m := c.member(n.ID); m != nil {
		return c.result(apiv1.Effect_EFFECT_UNCHANGED, m, name+"'s new disk is a member already"), nil
	}
	if len(members) > 1 {
		var learner *Node
		for _, m := range members {
			if !m.Voter {
				learner = m
			}
		}
		if learner == nil {
			return nil, fmt.Errorf("%w: %s is the name of %d voters: `rookeryctl member remove %s --id %x` takes one of them out", directory.ErrExists, name, len(members), name, members[0].ID)
		}
		return nil, fmt.Errorf("%w: %s is being replaced by another disk already (id %x): `rookeryctl member replace %s` goes on with that, or `rookeryctl member remove %s --id %x` gives it up",
			directory.ErrExists, name, learner.ID, name, name, learner.ID)
	}
	if err := c.learn(ctx, n); err != nil {
		return nil, err
	}
	return c.result(apiv1.Effect_EFFECT_ADDED, n), nil
}

func (c *change) finishReplacement(ctx context.Context, req *apiv1.ReplaceMemberRequest) (*apiv1.MemberResult, error) {
	name, oldID, newID := req.GetName(), req.GetOldId(), req.GetNewId()
	members := c.named(name)
	if oldID != 0 && newID != 0 && c.member(oldID) == nil {
		if m := c.member(newID); m != nil {
			return c.result(apiv1.Effect_EFFECT_UNCHANGED, m, name+" was replaced already"), nil
		}
	}
	var before, after *Node
	for _, m := range members {
		switch {
		case m.ID == newID || newID == 0 && !m.Voter && m.ID != oldID && after == nil:
			after = m
		case m.ID == oldID || oldID == 0 && before == nil:
			before = m
		}
	}
	if before == nil || after == nil || oldID != 0 && before.ID != oldID || newID != 0 && after.ID != newID {
		return nil, fmt.Errorf("%w: no replacement of %s is under way; members of that name: %s", directory.ErrNotFound, name, orNone(members))
	}
	old, next := *before, *after
	if err := c.check(ctx, func() error {
		m := c.member(next.ID)
		if m == nil {
			return fmt.Errorf("%w: the new disk was removed meanwhile", directory.ErrNotFound)
		}
		next = *m
		if err := c.caughtUp(m); err != nil {
			return err
		}
		if !old.Voter {
			return nil // a learner gives way to a learner: no vote changes
		}
		// A joint membership needs both majorities.
		vote := voters(c.Nodes)
		doing := "replacing " + name
		if err := checkQuorum(doing+", until it is done,", vote, nil, c.answers); err != nil {
			return err
		}
		return checkQuorum(doing, append(without(without(vote, old.ID), next.ID), next), nil, c.answers)
	}); err != nil {
		return nil, err
	}
	if err := c.giveWay(ctx, old.ID); err != nil {
		return nil, err
	}
	changes := []raftstore.Change{{Member: raftstore.Member{ID: old.ID}, Remove: true}}
	if old.Voter && !next.Voter {
		changes = append(changes, raftstore.Change{Member: raftstore.Member{ID: next.ID}})
	}
	if err := c.reconfigure(ctx, "replaced", &next, changes...); err != nil {
		return nil, err
	}
	notes := append(c.outlook(), fmt.Sprintf("the id %x is never used again: see to it that the old disk is not started", old.ID))
	return c.result(apiv1.Effect_EFFECT_CHANGED, &next, notes...), nil
}

func orNone(nodes []*Node) string {
	var words []string
	for _, n := range nodes {
		words = append(words, called(n))
	}
	return cmp.Or(strings.Join(words, ", "), "none")
}

func (s *clusterService) MoveLeader(ctx context.Context, req *apiv1.MoveLeaderRequest) (*apiv1.MoveLeaderResponse, error) {
	c, end, err := s.s.change(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var to uint64 // 0: whoever is best
	if req.GetName() != "" || req.GetId() != 0 {
		n, err := c.find(req.GetName(), req.GetId())
		if err != nil {
			return nil, err
		}
		to = n.ID
	}
	out := &apiv1.MoveLeaderResponse{Header: c.header, Effect: apiv1.Effect_EFFECT_CHANGED, From: c.leader().Name}
	if to == c.Self {
		out.Effect, out.To = apiv1.Effect_EFFECT_UNCHANGED, out.From
		return out, nil
	}
	var n *Node
	if err := c.check(ctx, func() (err error) {
		if to == 0 {
			n, err = c.successor()
			return err
		}
		switch n = c.member(to); {
		case n == nil:
			return fmt.Errorf("%w: the member was removed meanwhile", directory.ErrNotFound)
		case !n.Voter:
			return fmt.Errorf("%w: %s is a learner and cannot lead; `rookeryctl member promote %s` gives it its vote", errNotVoter, n.Name, n.Name)
		}
		return c.caughtUp(n)
	}); err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := c.transfer(ctx, n); err != nil {
		return nil, err
	}
	out.To, out.TookMs = n.Name, uint64(time.Since(begun).Milliseconds())
	return out, nil
}

// Compact rewrites this node's own state file, whoever leads.
func (c *clusterService) Compact(req *apiv1.CompactRequest, stream grpc.ServerStreamingServer[apiv1.CompactResponse]) error {
	s := c.s
	ctx := stream.Context()
	if node := req.GetNode(); node != "" && node != s.node {
		return fmt.Errorf("%w: this is %s, not %s: ask that one itself", directory.ErrInvalid, s.node, node)
	}
	r, err := s.read(ctx, &apiv1.Consistency{Mode: apiv1.ConsistencyMode_CONSISTENCY_MODE_STALE})
	if err != nil {
		return err
	}
	header, err := s.headerOf(&r)
	r.Release() // a view that is kept keeps what compaction is to free
	if err != nil {
		return err
	}
	m := s.members()
	for _, n := range m.Nodes {
		if n.Compacting && n.ID != m.Self {
			return fmt.Errorf("%w: %s is compacting, and one node does at a time: ask again when it is done", directory.ErrBusy, n.Name)
		}
	}
	if m.leading() && len(voters(m.Nodes)) > 1 && !req.GetForce() {
		return fmt.Errorf("%w: %s leads, and compacting would slow the writes down: `rookeryctl move-leader` first", errLeading, s.node)
	}
	if !s.compacting.CompareAndSwap(false, true) {
		return fmt.Errorf("%w: %s is compacting already", directory.ErrBusy, s.node)
	}
	defer s.compacting.Store(false)
	if s.replica == nil {
		return fmt.Errorf("%w: this node cannot compact its state file", errUnsupported)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var told time.Time
	var failed error
	begun := time.Now()
	before, after, err := s.replica.Compact(ctx, func(done, total int64) {
		if now := time.Now(); failed == nil && now.Sub(told) >= progressEvery {
			told = now
			failed = stream.Send(&apiv1.CompactResponse{Part: &apiv1.CompactResponse_Progress{
				Progress: &apiv1.CompactProgress{Done: octets(done), Total: octets(total)},
			}})
			if failed != nil {
				cancel()
			}
		}
	})
	if err := errors.Join(failed, err); err != nil {
		return err
	}
	s.log.Info("state file compacted for an operator", "before", before, "after", after, "dur", time.Since(begun), "by", callerOf(ctx))
	return stream.Send(&apiv1.CompactResponse{Part: &apiv1.CompactResponse_Summary{Summary: &apiv1.CompactSummary{
		Header: header, BeforeBytes: octets(before), AfterBytes: octets(after), TookMs: uint64(time.Since(begun).Milliseconds()),
	}}})
}

func octets(n int64) uint64 { return uint64(max(n, 0)) }

// nodeTo says of a member, or of a node that waits, what m knows.
func (m *Members) nodeTo(n *Node) *apiv1.Node {
	out := &apiv1.Node{
		Name: n.Name, Id: n.ID, ClientAddress: n.ClientAddress, PeerAddress: n.PeerAddress,
		Voter: n.Voter, Leader: n.ID == m.Leader && m.Leader != 0, Learner: !n.Voter && m.member(n.ID) != nil, Site: n.Site,
		HeardMs: never, Version: n.Version, OldestVersion: n.OldestVersion, NewestVersion: n.NewestVersion, Applied: n.Applied,
		FileBytes: octets(n.FileBytes), UsedBytes: octets(n.UsedBytes), FreeBytes: octets(n.FreeBytes),
		Verified: n.Verified, Compacting: n.Compacting, Quarantined: n.Quarantined, Match: n.Match, Active: n.Active,
	}
	if n.Heard >= 0 {
		out.HeardMs = ageMillis(n.Heard)
	}
	if trails, known := m.trails(n); known && m.member(n.ID) != nil {
		out.Trails = &trails
	}
	return out
}

// never is the API's word for what was not heard of.
const never = 1<<64 - 1
