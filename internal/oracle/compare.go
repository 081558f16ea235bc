package oracle

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/directory/machine"
	"github.com/rookery-mail/rookery/internal/kv"
)

// Compare says how the machine's result of op differs from the oracle's, or "".
// How much a Tick got done is left to the machine: it works in bounded steps.
func Compare(op machine.Op, got, want machine.Result) string {
	if _, ok := op.(machine.Tick); ok {
		return ""
	}
	g, w := SentinelName(got.Refused), SentinelName(want.Refused)
	switch {
	case g != w:
		return fmt.Sprintf("got refusal %q (%v), want %q (%v)", g, got.Refused, w, want.Refused)
	case got.Refused == nil && got.Effect != want.Effect:
		return fmt.Sprintf("got %s, want %s", effects[got.Effect], effects[want.Effect])
	case got.Revision != want.Revision:
		return fmt.Sprintf("got revision %d, want %d", got.Revision, want.Revision)
	case got.Count != want.Count:
		return fmt.Sprintf("got count %d, want %d", got.Count, want.Count)
	case got.Epoch != want.Epoch:
		return fmt.Sprintf("got epoch %d, want %d", got.Epoch, want.Epoch)
	case got.Holder != want.Holder && (g == "EXISTS" || g == "RESERVED"):
		return fmt.Sprintf("got holder %q, want %q", got.Holder, want.Holder)
	case got.Deadline != want.Deadline:
		return fmt.Sprintf("got deadline %s, want %s", got.Deadline, want.Deadline)
	case len(got.Items) != len(want.Items):
		return fmt.Sprintf("got %d items, want %d", len(got.Items), len(want.Items))
	}
	for i := range got.Items {
		var item machine.Op = machine.Subscribe{} // a repeat's result may be another command's
		if b, ok := op.(machine.Batch); ok && len(b.Ops) == len(got.Items) {
			item = b.Ops[i]
		}
		if d := Compare(item, got.Items[i], want.Items[i]); d != "" {
			return fmt.Sprintf("item %d, %s: %s", i, FormatOp(item), d)
		}
	}
	return ""
}

// DifferenceOfRoutes asks both where each of names is, and says what differs, or "". It holds
// also while a sweep is open.
func (o *Oracle) DifferenceOfRoutes(m *machine.Machine, r kv.Reader, names []directory.MailboxName) (string, error) {
	answers, err := m.LookupMany(r, names, true)
	if err != nil {
		return "", err
	}
	for i := range answers {
		a := &answers[i]
		got := Place{Outcome: a.Outcome, Forked: a.Route.Forked, Recently: a.RecentlyRetracted}
		if a.Server != nil {
			got.Server = a.Server.Name
		}
		if a.Route.Home != nil {
			got.Home = a.Route.Home.Name
		}
		if a.Route.Fact != nil {
			got.Lister = a.BackendName(a.Route.Fact.Server)
		}
		if want := o.Route(a.Name); got != want {
			return fmt.Sprintf("%s: got %+v, want %+v", a.Name, got, want), nil
		}
		// A copy that is in force is never said not to exist, in whatever life.
		if b := o.boxes[a.Name]; a.Outcome == directory.NotFound && b != nil {
			for s, f := range b.facts {
				if o.backends[s].Admitted && f.Standing == directory.InForce {
					return fmt.Sprintf("%s: NOT_FOUND, though %s has it", a.Name, o.backends[s].Name), nil
				}
			}
		}
		if a.Outcome == directory.Incomplete && !slices.Equal(a.Missing, o.missing()) {
			return fmt.Sprintf("%s: got missing %v, want %v", a.Name, a.Missing, o.missing()), nil
		}
	}
	return "", nil
}

// Difference compares all that is kept and indexed, and the route of every name that either
// knows, and says what differs, or "". No sweep may be open.
func (o *Oracle) Difference(m *machine.Machine, r kv.Reader) (string, error) {
	raw, err := machine.ReadRaw(r)
	if err != nil {
		return "", err
	}
	infos, err := m.Backends(r, "")
	if err != nil {
		return "", err
	}
	groups, err := m.Groups(r, "")
	if err != nil {
		return "", err
	}
	st, err := m.Status(r)
	if err != nil {
		return "", err
	}
	holds, _, err := m.Holds(r)
	if err != nil {
		return "", err
	}
	settings, err := m.Settings(r)
	if err != nil {
		return "", err
	}
	for _, c := range []struct {
		what string
		pair func() (got, want []string)
	}{
		{"facts", func() ([]string, []string) { return rawFacts(raw), o.factLines() }},
		{"forks", func() ([]string, []string) {
			return texts(raw.Forks), o.namesWhere(func(b *box) bool { return len(o.strangers(b)) > 0 })
		}},
		{"moves", func() ([]string, []string) {
			return texts(raw.Moves), o.namesWhere(func(b *box) bool {
				return slices.ContainsFunc(slices.Collect(maps.Values(b.facts)), func(f *directory.Fact) bool {
					return f.State == directory.Deactivated && f.Standing == directory.InForce && o.backends[f.Server].Admitted
				})
			})
		}},
		{"by-server", func() ([]string, []string) {
			return perServer(raw.ByServer), o.perServer(func(*directory.Fact) bool { return true })
		}},
		{"held", func() ([]string, []string) {
			return perServer(raw.Held), o.perServer(func(f *directory.Fact) bool { return f.State.IsHeld() })
		}},
		{"postings", func() (got, want []string) {
			for _, p := range raw.Postings {
				rights := p.Rights
				if p.Weigh {
					rights = "weigh"
				}
				got = append(got, fmt.Sprintf("%s %s %s", p.Identifier, p.Name, rights))
			}
			return got, o.postings()
		}},
		{"reservations", func() (got, want []string) {
			for _, r := range raw.Reservations {
				got = append(got, claimLine(&r))
			}
			for _, n := range slices.SortedFunc(maps.Keys(o.claims), directory.CompareNames) {
				want = append(want, claimLine(o.claims[n]))
			}
			return got, want
		}},
		{"unheard", func() (got, want []string) {
			m := map[directory.ServerID][]directory.MailboxName{}
			for _, n := range slices.SortedFunc(maps.Keys(o.claims), directory.CompareNames) {
				if c := o.claims[n]; !c.Heard {
					m[c.Server] = append(m[c.Server], n)
				}
			}
			return perServer(raw.Unheard), perServer(m)
		}},
		{"tombstones", func() (got, want []string) {
			for _, x := range raw.Tombstones {
				got = append(got, tombLine(o, &x))
			}
			for _, n := range slices.SortedFunc(maps.Keys(o.tombs), directory.CompareNames) {
				want = append(want, tombLine(o, o.tombs[n]))
			}
			return got, want
		}},
		{"digests", func() (got, want []string) {
			for s := range o.backends {
				count, names, facts := o.sums(s)
				want = append(want, fmt.Sprintf("%d: %d %x %x counted %d", s, count, names, facts, len(o.counted(s))))
				d := raw.Totals[s]
				got = append(got, fmt.Sprintf("%d: %d %x %x counted %d", s, d.Count, d.Names, d.Facts, d.Counted))
			}
			slices.Sort(got)
			slices.Sort(want)
			return got, want
		}},
		{"subscriptions", func() (got, want []string) {
			for id := range o.subs {
				want = append(want, fmt.Sprintf("%s %s", id.user, id.name))
			}
			slices.Sort(want)
			got = slices.Clone(raw.Subs)
			slices.Sort(got)
			return got, want
		}},
		{"backends", func() (got, want []string) {
			for _, b := range infos {
				got = append(got, fmt.Sprintf("%d %s group %s %s weight %d admitted %t drain %t confirmed %s in %d at %d",
					b.ID, b.Name, b.GroupName, b.State, b.Weight, b.Admitted, b.DrainApproved, b.Confirmed, b.ConfirmedIn, b.ConfirmedRevision))
			}
			for _, b := range o.backends {
				want = append(want, fmt.Sprintf("%d %s group %s %s weight %d admitted %t drain %t confirmed %s in %d at %d",
					b.ID, b.Name, o.groupOf(b.ID).Name, b.State, b.Weight, b.Admitted, b.DrainApproved, b.Confirmed, b.ConfirmedIn, b.ConfirmedRevision))
			}
			slices.Sort(got)
			slices.Sort(want)
			return got, want
		}},
		{"groups", func() (got, want []string) {
			for _, g := range groups {
				got = append(got, fmt.Sprintf("%s %v primary %d epoch %d own %t mode %d", g.Name, g.Members, g.Primary, g.Epoch, g.Own, g.Mode))
			}
			for _, g := range o.groups {
				if g.MergedInto == 0 {
					want = append(want, fmt.Sprintf("%s %v primary %d epoch %d own %t mode %d", g.Name, g.Members, g.Primary, g.Epoch, g.Own, g.Mode))
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			return got, want
		}},
		{"alarms", func() (got, want []string) {
			for _, a := range st.Alarms {
				got = append(got, fmt.Sprintf("%s %s %q %t of %d", a.Kind, a.Node, a.Why, a.Voter, a.Voters))
			}
			for _, a := range o.alarms {
				want = append(want, fmt.Sprintf("%s %s %q %t of %d", a.Kind, a.Node, a.Why, a.Voter, a.Voters))
			}
			slices.Sort(got)
			slices.Sort(want)
			return append(got, fmt.Sprint("growth refused: ", st.Growth != nil)), append(want, fmt.Sprint("growth refused: ", o.noGrowth()))
		}},
		{"settings", func() ([]string, []string) {
			return []string{fmt.Sprintf("%+v", settings)}, []string{fmt.Sprintf("%+v", o.set)}
		}},
		{"clock", func() ([]string, []string) {
			return []string{fmt.Sprintf("revision %d time %s", st.Revision, raw.Now)}, []string{fmt.Sprintf("revision %d time %s", o.rev, o.now)}
		}},
		{"holds", func() (got, want []string) {
			for _, h := range holds {
				got = append(got, fmt.Sprintf("%s %s %s", h.Kind, h.Key, h.Until))
			}
			for _, h := range o.holds {
				want = append(want, fmt.Sprintf("%s %s %s", h.Kind, h.Key, h.Until))
			}
			slices.Sort(got)
			slices.Sort(want)
			return got, want
		}},
	} {
		got, want := c.pair()
		if d := compareLines(got, want); d != "" {
			return c.what + ":\n" + d, nil
		}
	}
	names := o.names()
	for _, mb := range raw.Mailboxes {
		if o.boxes[mb.Name] == nil {
			names = append(names, mb.Name)
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(o.tombs), directory.CompareNames) {
		if o.boxes[name] == nil {
			names = append(names, name)
		}
	}
	return o.DifferenceOfRoutes(m, r, names)
}

// History is what was there when the change log was last looked at.
type History struct {
	rev   directory.Revision
	facts map[directory.MailboxName]string
}

// Untold names the mailboxes that changed since the last call and are not in the
// change log, which must reach back to it.
func (h *History) Untold(o *Oracle, raw machine.RawIndexes) string {
	now := map[directory.MailboxName]string{}
	for name, b := range o.boxes {
		for _, s := range slices.Sorted(maps.Keys(b.facts)) {
			now[name] += factLine(name, b.facts[s])
		}
	}
	logged := map[directory.MailboxName]bool{}
	for _, c := range raw.Log {
		if c.Revision > h.rev && (c.Kind == directory.ChangeMailbox || c.Kind == directory.ChangeMoved) {
			logged[c.Name] = true
		}
	}
	var missing []string
	names := maps.Clone(now)
	maps.Copy(names, h.facts)
	for _, name := range slices.SortedFunc(maps.Keys(names), directory.CompareNames) {
		if now[name] != h.facts[name] && !logged[name] {
			missing = append(missing, string(name))
		}
	}
	h.facts, h.rev = now, o.rev
	if len(missing) > 0 {
		return "changed, and not in the change log: " + strings.Join(missing, " ")
	}
	return ""
}

func compareLines(got, want []string) string {
	var b strings.Builder
	for _, g := range got {
		if !slices.Contains(want, g) {
			fmt.Fprintf(&b, "  got  %s\n", g)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			fmt.Fprintf(&b, "  want %s\n", w)
		}
	}
	return b.String()
}

func texts(names []directory.MailboxName) (out []string) {
	for _, n := range names {
		out = append(out, string(n))
	}
	return out
}

func perServer(m map[directory.ServerID][]directory.MailboxName) (out []string) {
	for _, s := range slices.Sorted(maps.Keys(m)) {
		for _, n := range m[s] {
			out = append(out, fmt.Sprintf("%d %s", s, n))
		}
	}
	return out
}

func (o *Oracle) perServer(is func(*directory.Fact) bool) (out []string) {
	for name, b := range o.boxes {
		for s, f := range b.facts {
			if is(f) {
				out = append(out, fmt.Sprintf("%d %s", s, name))
			}
		}
	}
	return out
}

func (o *Oracle) namesWhere(is func(*box) bool) (out []string) {
	for name, b := range o.boxes {
		if is(b) {
			out = append(out, string(name))
		}
	}
	return out
}

func factLine(name directory.MailboxName, f *directory.Fact) string {
	return fmt.Sprintf("%s: %d %s was %s %s %q %q %q %d %c %q first %d last %d changed %s life %d", name, f.Server, f.State, f.Was, f.Standing,
		f.Partition, f.ACL, f.MailboxID, f.UIDValidity, f.Type, f.SpecialUse, f.First, f.Last, f.Changed, f.Incarnation)
}

func strayLine(name directory.MailboxName, server directory.ServerID, id string) string {
	return fmt.Sprintf("%s: settled against %d %q", name, server, id)
}

func rawFacts(raw machine.RawIndexes) (out []string) {
	for _, mb := range raw.Mailboxes {
		for i := range mb.Facts {
			out = append(out, factLine(mb.Name, &mb.Facts[i]))
		}
		for _, v := range mb.Stray {
			out = append(out, strayLine(mb.Name, v.Server, v.MailboxID))
		}
	}
	return out
}

func (o *Oracle) factLines() (out []string) {
	for name, b := range o.boxes {
		for _, f := range b.facts {
			out = append(out, factLine(name, f))
		}
		for s, id := range b.stray {
			out = append(out, strayLine(name, s, id))
		}
	}
	return out
}

func claimLine(r *directory.Reservation) string {
	return fmt.Sprintf("%s %d %q made %s grace %s deadline %s heard %t revision %d", r.Name, r.Server, r.Partition, r.Made, r.Grace, r.Deadline, r.Heard, r.Revision)
}

func tombLine(o *Oracle, t *directory.Tombstone) string {
	name := func(id directory.GroupID) directory.GroupName {
		if g := o.follow(id); g != nil {
			return g.Name
		}
		return ""
	}
	return fmt.Sprintf("%s how %d server %d from %q to %q new %q revision %d time %s", t.Name, t.How, t.Server, name(t.From), name(t.To), t.NewName, t.Revision, t.Time)
}
