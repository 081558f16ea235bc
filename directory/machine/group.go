package machine

import (
	"slices"

	"github.com/rookery-mail/rookery/directory"
)

// group finds a group by name or refuses.
func (a *apply) group(name directory.GroupName) (*directory.Group, error) {
	if _, err := directory.ParseGroup(string(name)); err != nil {
		return nil, err
	}
	g := a.groupBy[name]
	if g == nil {
		return nil, refuse(directory.ErrNotFound, "no group %s; `rookeryctl groups` lists them", name)
	}
	return g, nil
}

// putGroup writes a group's row, its name and the change.
func (a *apply) putGroup(g directory.Group) {
	a.changeTopology()
	t := a.topology
	if was := t.groupByID[g.ID]; was != nil {
		t.groups[slices.Index(t.groups, was)] = &g
		if t.groupBy[was.Name] == was && (was.Name != g.Name || g.MergedInto != 0) {
			delete(t.groupBy, was.Name)
			a.tx.Delete(bucketGroup, nameKey(string(was.Name)))
		}
	} else {
		t.groups = append(t.groups, &g)
	}
	t.groupByID[g.ID] = &g
	if g.MergedInto == 0 {
		t.groupBy[g.Name] = &g
		a.tx.Put(bucketGroup, nameKey(string(g.Name)), idKey(uint32(g.ID))[1:])
	}
	a.put1(bucketGroup, idKey(uint32(g.ID)), encodeGroup(&g))
	a.log(directory.Change{Kind: directory.ChangeGroup, Key: string(g.Name), To: g.ID})
}

// setGroup makes a group or changes its members. Routes follow at once; the
// indexes of what the servers hold follow by a sweep.
func (a *apply) setGroup(op SetGroup) (Result, error) {
	if _, err := directory.ParseGroup(string(op.Group)); err != nil {
		return Result{}, err
	}
	if op.Mode > directory.ModeAutomatic {
		return Result{}, refuse(directory.ErrInvalid, "no such group mode: %d", op.Mode)
	}
	if len(op.Members) == 0 {
		return Result{}, refuse(directory.ErrInvalid, "group %s needs a member", op.Group)
	}
	var members []directory.ServerID
	for _, name := range op.Members {
		b, err := a.backend(name)
		if err != nil {
			return Result{}, err
		}
		if !b.Admitted || b.State == directory.BackendRetired {
			return Result{}, refuse(directory.ErrNotAdmitted, "backend %s cannot join a group before it is admitted", name)
		}
		if slices.Contains(members, b.ID) {
			return Result{}, refuse(directory.ErrInvalid, "member %s stands twice", name)
		}
		members = append(members, b.ID)
	}
	g := a.groupBy[op.Group]
	if g == nil && a.backendBy[directory.BackendName(op.Group)] != nil {
		return Result{}, refuse(directory.ErrExists, "%s is a backend's name; choose another for the group", op.Group)
	}
	if g != nil && g.Own && (len(members) != 1 || g.Primary != members[0]) {
		return Result{}, refuse(directory.ErrExists, "%s is the name of a backend's own group; choose another", op.Group)
	}
	if g != nil && !slices.Contains(members, g.Primary) {
		return Result{}, refuse(directory.ErrBusy, "%s is the primary of %s; switch over before it leaves", a.name(g.Primary), op.Group)
	}
	a.flushDigests()
	if err := a.mayJoin(g, members, op.AcceptMissing); err != nil {
		return Result{}, err
	}
	effect := Changed
	var is directory.Group
	if g == nil {
		c := a.cluster
		is = directory.Group{ID: c.NextGroup, Name: own(op.Group), Primary: members[0], Epoch: 1, Mode: directory.ModeManual}
		c.NextGroup++
		a.putCluster(c)
		effect = Added
	} else {
		is = *g
	}
	left := slices.DeleteFunc(slices.Clone(is.Members), func(s directory.ServerID) bool { return slices.Contains(members, s) })
	joined := slices.DeleteFunc(slices.Clone(members), func(s directory.ServerID) bool { return slices.Contains(is.Members, s) })
	if op.Mode != 0 {
		is.Mode = op.Mode
	}
	if g != nil && slices.Equal(g.Members, members) && is.Mode == g.Mode {
		return Result{Effect: Unchanged, Epoch: is.Epoch}, nil
	}
	is.Members = members
	a.putGroup(is)
	for _, s := range left {
		if err := a.leave(s); err != nil {
			return Result{}, err
		}
	}
	for _, s := range joined {
		a.join(s, is)
	}
	if len(joined) > 0 {
		// Also what only the other members hold may have come home: it was homed
		// in a group that was merged.
		for _, s := range members {
			if err := a.sweepLater(sweep{Kind: sweepRegroup, Server: s}); err != nil {
				return Result{}, err
			}
		}
	}
	return Result{Effect: effect, Epoch: is.Epoch}, nil
}

// mayJoin refuses members that are needed where they are, or that are home to
// mailboxes which the primary may not hold.
func (a *apply) mayJoin(g *directory.Group, members []directory.ServerID, acceptMissing bool) error {
	primary := members[0]
	if g != nil {
		primary = g.Primary
	}
	for _, s := range members {
		b := a.Backend(s)
		from := a.Group(b.Group)
		if g != nil && from.ID == g.ID {
			continue
		}
		if !from.Own && from.Primary == s && len(from.Members) > 1 {
			return refuse(directory.ErrBusy, "%s is the primary of %s; switch over there first", b.Name, from.Name)
		}
		if b.State == directory.BackendDown && s == primary || b.State.Gone() {
			return refuse(directory.ErrNotMember, "%s is %s; it cannot join", b.Name, b.State)
		}
		if s == primary || acceptMissing {
			continue
		}
		total, err := a.state.digest(serverKey(s))
		if err != nil {
			return err
		}
		if total.Counted > 0 {
			return refuse(directory.ErrMissingAtTarget, "%s is home to %d mailboxes that the primary %s may not hold; they would answer NOT_AT_PRIMARY until it does: say so with --accept-missing", b.Name, total.Counted, a.name(primary))
		}
	}
	return nil
}

// leave gives a server that a group let go a group of its own.
func (a *apply) leave(s directory.ServerID) error {
	is := *a.Backend(s)
	is.Group = a.cluster.NextGroup
	a.putBackend(is)
	a.ownGroup(a.Backend(s))
	return a.sweepLater(sweep{Kind: sweepRegroup, Server: s})
}

// join moves a server into group. Its own group is merged into it, so that what
// was homed there is homed here at once, and what was held there is held here.
func (a *apply) join(s directory.ServerID, group directory.Group) {
	b := *a.Backend(s)
	from := *a.Group(b.Group)
	b.Group = group.ID
	a.putBackend(b)
	if from.Own || len(from.Members) == 1 {
		from.MergedInto = group.ID
		from.Members, from.History = nil, nil
		a.moveHold(directory.HoldGroup, string(from.Name), string(group.Name))
	} else {
		from.Members = slices.DeleteFunc(slices.Clone(from.Members), func(m directory.ServerID) bool { return m == s })
	}
	a.putGroup(from)
}

// setPrimary moves a primary: one entry, whatever the size of the group.
func (a *apply) setPrimary(op SetPrimary) (Result, error) {
	g, err := a.group(op.Group)
	if err != nil {
		return Result{}, err
	}
	to, err := a.backend(op.To)
	if err != nil {
		return Result{}, err
	}
	if len(op.Reason) > directory.MaxText {
		return Result{}, refuse(directory.ErrTooLarge, "a reason of %d octets, at most %d", len(op.Reason), directory.MaxText)
	}
	r := Result{Epoch: g.Epoch, Holder: a.name(g.Primary)}
	switch {
	case op.Epoch != g.Epoch:
		return r, refuse(directory.ErrStaleEpoch, "group %s is at epoch %d, not %d: its primary is %s", g.Name, g.Epoch, op.Epoch, a.name(g.Primary))
	case !g.Has(to.ID):
		return r, refuse(directory.ErrNotMember, "%s is no member of %s", to.Name, g.Name)
	case g.Primary == to.ID:
		r.Effect = Unchanged
		return r, nil
	case to.State == directory.BackendDown || to.State.Gone():
		return r, refuse(directory.ErrNotMember, "%s is %s; it cannot take sessions", to.Name, to.State)
	}
	a.flushDigests()
	same, counts, err := a.sameNames(g.Primary, to.ID)
	if err != nil {
		return r, err
	}
	if !same && !op.AcceptMissing {
		return r, refuse(directory.ErrMissingAtTarget, "%s and %s do not hold the same mailboxes (%d and %d); `rookeryctl switchover %s --to %s --dry-run` names what is missing, --accept-missing moves all the same", a.name(g.Primary), to.Name, counts[0], counts[1], g.Name, to.Name)
	}
	is := *g
	is.Epoch++
	is.History = append(slices.Clone(g.History), directory.Switchover{
		Epoch: is.Epoch, From: g.Primary, To: to.ID, By: own(a.by), Reason: own(op.Reason),
		Revision: a.clk.Revision, Time: a.clk.Time, Wall: a.clk.Wall, AcceptMissing: op.AcceptMissing && !same,
	})
	if n := len(is.History); n > directory.MaxHistory {
		is.History = is.History[n-directory.MaxHistory:]
	}
	is.Primary = to.ID
	a.putGroup(is)
	r.Effect, r.Epoch = Changed, is.Epoch
	return r, nil
}

// sameNames compares the digests of the mailboxes that two members hold at
// home, and how many they are.
func (s *state) sameNames(x, y directory.ServerID) (same bool, counts [2]uint64, err error) {
	dx, err := s.digest(serverKey(x))
	if err != nil {
		return false, counts, err
	}
	dy, err := s.digest(serverKey(y))
	if err != nil {
		return false, counts, err
	}
	counts = [2]uint64{dx.Counted, dy.Counted}
	return dx.Counted == dy.Counted && dx.CountedNames == dy.CountedNames, counts, nil
}
