package machine

import (
	"slices"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// Status is the whole at a glance. Counts are kept, not counted.
type Status struct {
	ClusterID                                                                                    string
	Version                                                                                      uint32
	Release                                                                                      string // which raised Version; empty: the cluster began with it
	Incarnation                                                                                  directory.Incarnation
	Revision                                                                                     directory.Revision
	LogFrom                                                                                      directory.Revision // the change log reaches back to here
	Time                                                                                         directory.Time
	Wall                                                                                         int64
	Complete                                                                                     bool
	Missing                                                                                      []directory.BackendName // ordered
	Settings                                                                                     directory.Settings
	Mailboxes, Listed, Inboxes, Forked, Reservations, Held, Subscriptions, Postings, Deactivated int64
	Sweeps                                                                                       []Sweep
	Alarms                                                                                       []directory.Alarm // by kind and node
	// Growth is why the cluster takes no growth now, an ErrReadOnly; nil if it does.
	Growth error
}

// Sweep is work over many mailboxes that a small command left to do.
type Sweep struct {
	Kind   string                // "regroup", "admit", "decide", "confirm", "forks", "reservations", "log"
	Server directory.BackendName // empty for the last three, which a restore leaves
	After  directory.MailboxName // the last one gone over; empty at the start
}

// Status reads the whole at a glance.
func (m *Machine) Status(r kv.Reader) (Status, error) {
	s, err := m.state(r)
	if err != nil {
		return Status{}, err
	}
	c, err := s.readCounts()
	if err != nil {
		return Status{}, err
	}
	missing, complete := s.missing()
	out := Status{
		ClusterID: s.cluster.ID, Version: s.cluster.Version, Release: s.cluster.Release, Incarnation: s.cluster.Incarnation,
		Revision: s.clk.Revision, LogFrom: s.clk.LogFrom, Time: s.clk.Time, Wall: s.clk.Wall,
		Complete: complete, Missing: missing, Settings: s.settings,
		Mailboxes: c.Mailboxes, Listed: c.Listed, Inboxes: c.Inboxes, Forked: c.Forked, Reservations: c.Reservations,
		Held: c.Held, Subscriptions: c.Subscriptions, Postings: c.Postings, Deactivated: c.Deactivated,
	}
	for _, x := range s.alarms {
		out.Alarms = append(out.Alarms, *x)
	}
	out.Growth = s.growth()
	err = eachRow(r, bucketSweep, nil, func(_, b []byte) error {
		w, err := decodeSweep(b)
		if err != nil {
			return err
		}
		sw := Sweep{Kind: w.kindName()}
		if w.Server != 0 {
			sw.Server = s.name(w.Server)
		}
		if len(w.After) > 0 {
			if sw.After, err = storedName(w.After); err != nil {
				return err
			}
		}
		out.Sweeps = append(out.Sweeps, sw)
		return nil
	})
	return out, err
}

// BackendInfo is a backend with what is known of its facts.
type BackendInfo struct {
	directory.Backend
	GroupName directory.GroupName
	Primary   bool // of its group
	Confirm   bool // its list is known whole in this incarnation
	Facts     uint64
	Counted   uint64 // of these, in force inside their home
	Held      bool   // the guard holds something of it
}

// Backends lists all backends in name order, or the one named.
func (m *Machine) Backends(r kv.Reader, only directory.BackendName) ([]BackendInfo, error) {
	s, err := m.state(r)
	if err != nil {
		return nil, err
	}
	var out []BackendInfo
	for _, b := range s.backends {
		if only != "" && b.Name != only {
			continue
		}
		total, err := s.digest(serverKey(b.ID))
		if err != nil {
			return nil, err
		}
		info := BackendInfo{
			Backend: *b, Facts: total.Count, Counted: total.Counted,
			Confirm: b.ConfirmedFor(s.cluster.Incarnation),
		}
		if g := s.Group(b.Group); g != nil {
			info.GroupName, info.Primary = g.Name, g.Primary == b.ID
		}
		k, _ := r.Iterate(bucketHeldFact).Seek(serverKey(b.ID))
		info.Held = k != nil && hasPrefix(k, serverKey(b.ID))
		out = append(out, info)
	}
	if only != "" && len(out) == 0 {
		return nil, refuse(directory.ErrNotFound, "no backend %s", only)
	}
	slices.SortFunc(out, func(x, y BackendInfo) int { return slices.Compare([]byte(x.Name), []byte(y.Name)) })
	return out, nil
}

// GroupInfo is a replica group with its members named.
type GroupInfo struct {
	directory.Group
	MemberNames []directory.BackendName // in order of preference
	PrimaryName directory.BackendName
	Hold        *directory.Hold
	names       *topology
}

// Name names a server of the group's history.
func (g *GroupInfo) NameOf(id directory.ServerID) directory.BackendName { return g.names.name(id) }

// Groups lists all groups in name order, or the one named; merged ones are no more.
func (m *Machine) Groups(r kv.Reader, only directory.GroupName) ([]GroupInfo, error) {
	s, err := m.state(r)
	if err != nil {
		return nil, err
	}
	var out []GroupInfo
	for _, g := range s.groups {
		if g.MergedInto != 0 || only != "" && g.Name != only {
			continue
		}
		info := GroupInfo{Group: *g, PrimaryName: s.name(g.Primary), names: s.topology, Hold: s.holdBy[string(holdKey(directory.HoldGroup, string(g.Name)))]}
		for _, id := range g.Members {
			info.MemberNames = append(info.MemberNames, s.name(id))
		}
		out = append(out, info)
	}
	if only != "" && len(out) == 0 {
		return nil, refuse(directory.ErrNotFound, "no group %s", only)
	}
	slices.SortFunc(out, func(x, y GroupInfo) int { return slices.Compare([]byte(x.Group.Name), []byte(y.Group.Name)) })
	return out, nil
}

// Holds lists all holds, ordered by kind and key, and directory time, from
// which they are counted.
func (m *Machine) Holds(r kv.Reader) ([]directory.Hold, directory.Time, error) {
	s, err := m.state(r)
	if err != nil {
		return nil, 0, err
	}
	out := make([]directory.Hold, len(s.holds))
	for i, h := range s.holds {
		out[i] = *h
	}
	return out, s.clk.Time, nil
}

// Settings returns the cluster's.
func (m *Machine) Settings(r kv.Reader) (directory.Settings, error) {
	s, err := m.state(r)
	if err != nil {
		return directory.Settings{}, err
	}
	return s.settings, nil
}

// Forks answers for forked mailboxes in name order, after the one given, at
// most limit. more: there are others.
func (m *Machine) Forks(r kv.Reader, after directory.MailboxName, limit int) (out []Answer, more bool, err error) {
	return m.marked(r, bucketFork, after, limit)
}

// Moves answers for the mailboxes that a server gave up and nobody took yet.
func (m *Machine) Moves(r kv.Reader, after directory.MailboxName, limit int) (out []Answer, more bool, err error) {
	return m.marked(r, bucketMove, after, limit)
}

func (m *Machine) marked(r kv.Reader, b kv.Bucket, after directory.MailboxName, limit int) (out []Answer, more bool, err error) {
	s, err := m.state(r)
	if err != nil {
		return nil, false, err
	}
	it := r.Iterate(b)
	for k, _ := it.Seek(keyAfter(nil, after)); k != nil; k, _ = it.Next() {
		if len(out) == limit {
			return out, true, nil
		}
		name, err := storedName(k)
		if err != nil {
			return nil, false, err
		}
		a, err := s.lookup(name, true)
		if err != nil {
			return nil, false, err
		}
		out = append(out, a)
	}
	return out, false, nil
}

// keyAfter is the least key of prefix after that of name; prefix itself if name
// is empty.
func keyAfter(prefix []byte, name directory.MailboxName) []byte {
	if name == "" {
		return prefix
	}
	return append(name.AppendKey(slices.Clone(prefix)), 0)
}

// HeldFact is a fact that waits for an operator's decision.
type HeldFact struct {
	Name  directory.MailboxName
	State directory.FactState
	Age   directory.Time
}

// Held lists what the guard holds of server, in name order, after the one
// given, at most limit.
func (m *Machine) Held(r kv.Reader, server directory.BackendName, after directory.MailboxName, limit int) (out []HeldFact, more bool, err error) {
	s, err := m.state(r)
	if err != nil {
		return nil, false, err
	}
	b := s.backendBy[server]
	if b == nil {
		return nil, false, refuse(directory.ErrNotFound, "no backend %s", server)
	}
	prefix := serverKey(b.ID)
	it := r.Iterate(bucketHeldFact)
	for k, _ := it.Seek(keyAfter(prefix, after)); k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
		if len(out) == limit {
			return out, true, nil
		}
		name, err := storedName(k[len(prefix):])
		if err != nil {
			return nil, false, err
		}
		mb, err := s.mailbox(name)
		if err != nil {
			return nil, false, err
		}
		if mb == nil || mb.Fact(b.ID) == nil {
			return nil, false, errNoRow(name)
		}
		f := mb.Fact(b.ID)
		out = append(out, HeldFact{Name: name, State: f.State, Age: s.clk.Time - f.Changed})
	}
	return out, false, nil
}

// Overlap is a name that a backend waiting for admission shares with another.
type Overlap struct {
	Name     directory.MailboxName
	Group    directory.GroupName   // the home, "" if there is none
	Server   directory.BackendName // who takes its sessions
	SameCopy bool                  // equal mailbox ids
}

// PreviewAdmission walks what a backend states and tells what is held
// elsewhere already; at most limit of these are listed, all are counted.
func (m *Machine) PreviewAdmission(r kv.Reader, server directory.BackendName, limit int) (facts, overlapping uint64, list []Overlap, err error) {
	s, err := m.state(r)
	if err != nil {
		return 0, 0, nil, err
	}
	b := s.backendBy[server]
	if b == nil {
		return 0, 0, nil, refuse(directory.ErrNotFound, "no backend %s", server)
	}
	err = s.eachOf(b.ID, func(mb *directory.Mailbox, f *directory.Fact) error {
		facts++
		for i := range mb.Facts {
			o := &mb.Facts[i]
			ob := s.Backend(o.Server)
			if o.Server == b.ID || ob == nil || !ob.Counts() || o.Standing != directory.InForce {
				continue
			}
			overlapping++
			if len(list) < limit {
				over := Overlap{Name: mb.Name, Server: ob.Name, SameCopy: o.MailboxID != "" && o.SameCopy(*f)}
				if g := s.Group(directory.HomeOf(mb, s)); g != nil {
					over.Group = g.Name
				}
				list = append(list, over)
			}
			break
		}
		return nil
	})
	return facts, overlapping, list, err
}

// eachOf calls f for every mailbox of which server has a fact, in name order.
func (s *state) eachOf(server directory.ServerID, f func(mb *directory.Mailbox, f *directory.Fact) error) error {
	prefix := serverKey(server)
	rows := s.r.Iterate(bucketMailbox)
	it := s.r.Iterate(bucketByServer)
	for k, _ := it.Seek(prefix); k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
		name, err := storedName(k[len(prefix):])
		if err != nil {
			return err
		}
		mb, err := readMailbox(rows, mailboxKey(name), name)
		if err != nil {
			return err
		}
		if mb == nil || mb.Fact(server) == nil {
			return errNoRow(name)
		}
		if err := f(mb, mb.Fact(server)); err != nil {
			return err
		}
	}
	return nil
}

// SwitchoverPlan is what moving a group's primary would mean.
type SwitchoverPlan struct {
	Group                   directory.GroupName
	From, To                directory.BackendName
	Epoch                   uint64
	FromCount, ToCount      uint64
	Equal                   bool
	MissingCount, MoreCount uint64
	Missing                 []directory.MailboxName // held by From and not by To, at most limit
	More                    []directory.MailboxName // held by To and not by From, at most limit
	Refusal                 error                   // why SetPrimary would refuse, nil if it would not
}

// PlanSwitchover compares what two members hold. Where the digests are equal
// it costs nothing; else it walks both lists.
func (m *Machine) PlanSwitchover(r kv.Reader, group directory.GroupName, to directory.BackendName, limit int) (SwitchoverPlan, error) {
	s, err := m.state(r)
	if err != nil {
		return SwitchoverPlan{}, err
	}
	g, b := s.groupBy[group], s.backendBy[to]
	if g == nil {
		return SwitchoverPlan{}, refuse(directory.ErrNotFound, "no group %s", group)
	}
	if b == nil {
		return SwitchoverPlan{}, refuse(directory.ErrNotFound, "no backend %s", to)
	}
	p := SwitchoverPlan{Group: g.Name, From: s.name(g.Primary), To: b.Name, Epoch: g.Epoch}
	same, counts, err := s.sameNames(g.Primary, b.ID)
	if err != nil {
		return p, err
	}
	p.Equal, p.FromCount, p.ToCount = same, counts[0], counts[1]
	switch {
	case !g.Has(b.ID):
		p.Refusal = refuse(directory.ErrNotMember, "%s is no member of %s", b.Name, g.Name)
	case b.State == directory.BackendDown || b.State.Gone():
		p.Refusal = refuse(directory.ErrNotMember, "%s is %s; it cannot take sessions", b.Name, b.State)
	case !same:
		p.Refusal = refuse(directory.ErrMissingAtTarget, "%s and %s do not hold the same mailboxes", p.From, p.To)
	}
	if same || g.Primary == b.ID || !g.Has(b.ID) {
		return p, nil
	}
	if p.MissingCount, p.Missing, err = s.without(g.Primary, b.ID, limit); err != nil {
		return p, err
	}
	p.MoreCount, p.More, err = s.without(b.ID, g.Primary, limit)
	return p, err
}

// without lists what one member holds at home and another does not.
func (s *state) without(has, lacks directory.ServerID, limit int) (n uint64, names []directory.MailboxName, err error) {
	err = s.eachOf(has, func(mb *directory.Mailbox, f *directory.Fact) error {
		if !present(f) || present(mb.Fact(lacks)) {
			return nil
		}
		n++
		if len(names) < limit {
			names = append(names, mb.Name)
		}
		return nil
	})
	return n, names, err
}
