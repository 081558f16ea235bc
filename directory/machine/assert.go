package machine

import (
	"slices"
	"strings"

	"github.com/rookery-mail/rookery/directory"
)

// validAssert checks what does not depend on the state.
func validAssert(op Assert) error {
	if err := validNames(op.Mailbox, op.Server); err != nil {
		return err
	}
	st := op.Statement
	if st.ACL != nil {
		if err := directory.CheckACL(*st.ACL); err != nil {
			return err
		}
	}
	if err := validPartition(st.Partition); err != nil {
		return err
	}
	if st.MailboxID != nil && (len(*st.MailboxID) > directory.MaxMailboxID || hasControl(*st.MailboxID)) {
		return refuse(directory.ErrInvalid, "mailbox id %.40q: at most %d octets, no control characters", *st.MailboxID, directory.MaxMailboxID)
	}
	if st.SpecialUse != nil && !validSpecialUse(*st.SpecialUse) {
		return refuse(directory.ErrInvalid, `special use %.40q: attributes like \Drafts, one space between, at most %d octets`, *st.SpecialUse, directory.MaxSpecialUse)
	}
	if st.Type != nil && !st.Type.Valid() {
		return refuse(directory.ErrInvalid, "mailbox type %q: one of e n b c a s p f", string(*st.Type))
	}
	return nil
}

func validNames(mailbox directory.MailboxName, server directory.BackendName) error {
	if _, err := directory.ParseName(string(mailbox)); err != nil {
		return err
	}
	_, err := directory.ParseBackend(string(server))
	return err
}

// validPartition lets an empty partition pass: it states nothing.
func validPartition(p string) error {
	if p == "" {
		return nil
	}
	_, err := directory.ParsePartition(p)
	return err
}

// validSpecialUse checks a list of use-attr (RFC 6154, section 6): a backslash
// and an atom each. It is printed into LIST answers as it is.
func validSpecialUse(s string) bool {
	if s == "" {
		return true
	}
	if len(s) > directory.MaxSpecialUse {
		return false
	}
	for use := range strings.SplitSeq(s, " ") {
		atom, ok := strings.CutPrefix(use, `\`)
		if !ok || atom == "" {
			return false
		}
		for i := range len(atom) {
			if c := atom[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`(){%*"\]`, c) >= 0 {
				return false
			}
		}
	}
	return true
}

func hasControl(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return true
		}
	}
	return false
}

// assert: facts in. The rule is this package's doc.go, "Assert".
func (a *apply) assert(op Assert) (Result, error) {
	if err := validAssert(op); err != nil {
		return Result{}, err
	}
	b := a.backendBy[op.Server]
	switch {
	case b != nil && b.State == directory.BackendRetired:
		return Result{}, refuse(directory.ErrNotAdmitted, "backend %s was retired; its name is not used again", op.Server)
	case b == nil && len(a.backends) >= directory.MaxBackends:
		return Result{}, refuse(directory.ErrTooLarge, "%d backends are known already", len(a.backends))
	}
	e, err := a.edit(op.Mailbox)
	if err != nil {
		return Result{}, err
	}
	var f *directory.Fact
	if b != nil {
		f = e.mb.Fact(b.ID)
	}
	switch {
	case a.growth() != nil && (f == nil || f.Merge(op.Statement) != *f):
		return Result{}, a.growth()
	case f == nil && len(e.mb.Facts) >= directory.MaxFacts:
		return Result{}, refuse(directory.ErrTooLarge, "%d servers state %s already", len(e.mb.Facts), op.Mailbox)
	}
	if op.Since != 0 {
		if newer, err := a.newerThan(op.Mailbox, f, b, op.Since); newer || err != nil {
			return Result{Effect: NotSince}, err
		}
	}
	if b == nil {
		b = a.newBackend(op.Server, op.Imported || a.settings.AdmissionOpen)
	} else if op.Imported && !b.Admitted {
		if err := a.admitNow(b); err != nil {
			return Result{}, err
		}
		b = a.Backend(b.ID)
	}
	if !op.Imported {
		if err := a.heard(b.ID); err != nil {
			return Result{}, err
		}
	}
	if f == nil {
		return a.assertNew(op, e, b)
	}
	return a.assertAgain(op, e, b, f)
}

// newerThan reports whether what is known of b's fact is younger than since.
func (a *apply) newerThan(name directory.MailboxName, f *directory.Fact, b *directory.Backend, since directory.Revision) (bool, error) {
	if f != nil {
		return f.Last > since, nil
	}
	t, err := a.tombstone(name)
	return t != nil && b != nil && t.Server == b.ID && t.Revision > since, err
}

// assertNew adds a server's first fact of a mailbox.
func (a *apply) assertNew(op Assert, e *edit, b *directory.Backend) (Result, error) {
	f := directory.Fact{
		Server: b.ID, State: directory.Active, First: a.clk.Revision, Last: a.clk.Revision,
		Changed: a.clk.Time, Incarnation: a.cluster.Incarnation,
	}.Merge(op.Statement)
	if op.Deactivated {
		f.State = directory.Deactivated
	}
	effect, entry := a.entry(e.mb, b, &f, asserted{fresh: true})
	if !op.Imported && entry != entryCompletes {
		held, err := a.guardReturn(b, op.Mailbox)
		if err != nil {
			return Result{}, err
		}
		if held {
			f.Was, f.State, f.Standing = f.State, directory.HeldReturn, directory.InForce
			e.add(f)
			return Result{Effect: GuardHeld}, a.save(e, directory.ChangeMailbox, b.ID)
		}
	}
	e.add(f)
	return Result{Effect: effect}, a.enter(e, b, entry)
}

// assertAgain merges what a server says into the fact it has.
func (a *apply) assertAgain(op Assert, e *edit, b *directory.Backend, f *directory.Fact) (Result, error) {
	was := *f
	*f = f.Merge(op.Statement)
	f.Incarnation = a.cluster.Incarnation
	if f.State == directory.HeldReturn {
		if *f != was {
			a.touch(f)
		}
		return Result{Effect: GuardHeld}, a.save(e, directory.ChangeMailbox, b.ID)
	}
	f.State, f.Was = directory.Active, 0
	if op.Deactivated {
		f.State = directory.Deactivated
	}
	if f.Standing != directory.InForce && !was.SameCopy(*f) {
		f.Standing = directory.InForce
	}
	home := a.Group(directory.HomeOf(e.mb, a))
	effect, entry := a.entry(e.mb, b, f, asserted{fresh: true, stranger: a.stranger(&was, b, home)})
	if entry == entryHome && was.State == directory.Deactivated && f.State == directory.Active {
		effect, entry = MoveAborted, entryAborts
	}
	restated := !sameStatement(f, &was) || f.State != was.State || f.Standing != was.Standing
	if restated || a.deciding(b) {
		a.touch(f)
	}
	if effect == Added {
		effect = Unchanged
		if restated || entry == entryTakes {
			effect = Changed
		}
	}
	return Result{Effect: effect}, a.enter(e, b, entry)
}

// deciding reports whether a decision about what the guard holds of b's group is being
// carried out. What is stated meanwhile is later than what is decided about, and shows
// it even if it says nothing new.
func (a *apply) deciding(b *directory.Backend) bool {
	if !a.clk.Sweeping || a.cluster.Version < versionSince {
		return false
	}
	return slices.ContainsFunc(a.Group(b.Group).Members, func(s directory.ServerID) bool {
		return a.tx.Get(bucketSweep, sweepKey(sweepDecide, s)) != nil
	})
}

// touch marks a fact as changed by this command.
func (a *apply) touch(f *directory.Fact) {
	f.Last, f.Changed = a.clk.Revision, a.clk.Time
}

// entry is the way in which an asserted fact comes to count, or not.
type entry uint8

const (
	entryOutside   entry = iota // its backend does not count: nothing else happens
	entryHome                   // inside the mailbox's home
	entryTakes                  // the mailbox has no live home: the server's group becomes it
	entryCompletes              // the home gave the mailbox up: a move is complete
	entryAborts                 // the server that gave it up keeps it
	entryForks                  // outside a live home
	entryOvertaken              // left behind, stale or stray, and it stays so
)

// asserted tells entry how a fact came to be looked at.
type asserted struct {
	fresh    bool // by an assertion now, not by an operator's decision about an old one
	stranger bool // it was a stranger before
}

// stranger reports whether a stored fact of b is a stranger to home. One that is
// counted was inside until the groups changed; one that is still being swept in, for
// its backend was admitted or confirmed, may not have entered yet.
func (a *apply) stranger(f *directory.Fact, b *directory.Backend, home *directory.Group) bool {
	return b.Counts() && home != nil && !home.Has(b.ID) && f.Standing == directory.InForce && f.State != directory.HeldReturn &&
		directory.Confirmed(f, a) && !f.Counted && !a.entering(f)
}

// entering reports whether a sweep has still to let f enter.
func (a *apply) entering(f *directory.Fact) bool {
	open := func(kind byte) bool { return a.tx.Get(bucketSweep, sweepKey(kind, f.Server)) != nil }
	return a.clk.Sweeping && (open(sweepAdmit) || f.Incarnation != a.cluster.Incarnation && open(sweepConfirm))
}

// entry decides how fact f of backend b enters mb. f need not be in mb.Facts
// yet. Changes nothing but f.Standing.
func (a *apply) entry(mb *directory.Mailbox, b *directory.Backend, f *directory.Fact, how asserted) (Effect, entry) {
	if !b.Counts() {
		if b.Admitted {
			return Overtaken, entryOutside
		}
		return NotAdmitted, entryOutside
	}
	group := a.Group(b.Group)
	home := a.Group(directory.HomeOf(mb, a))
	if home == nil {
		f.Standing = directory.InForce
		return Added, entryTakes
	}
	if home == group {
		if f.Standing == directory.StaleCopy && home.Primary != f.Server {
			p := mb.Fact(home.Primary)
			if p == nil || p.Standing != directory.InForce || p.State != directory.Active || p.MailboxID != "" && f.MailboxID != "" && !p.SameCopy(*f) {
				return Overtaken, entryOvertaken
			}
		}
		f.Standing = directory.InForce
		return Added, entryHome
	}
	others := a.others(mb, home, f.Server)
	switch {
	case how.fresh && others.live > 0 && others.givenUp && f.State == directory.Active:
		f.Standing = directory.InForce
		return MoveCompleted, entryCompletes
	case others.live > 0 && others.confirmed == 0 && directory.Confirmed(f, a):
		f.Standing = directory.InForce
		return Added, entryTakes
	}
	if i := strayOf(mb, f.Server); i >= 0 && mb.Stray[i].MailboxID == f.MailboxID {
		f.Standing = directory.Stray
		return Overtaken, entryOvertaken
	}
	if f.Standing != directory.InForce {
		return Overtaken, entryOvertaken
	}
	if others.live > 0 && f.State == directory.Deactivated && mb.Fact(f.Server) == nil {
		// A dump tells of a move whose other end has been heard already.
		f.Standing = directory.LeftBehind
		return Overtaken, entryOvertaken
	}
	if others.live == 0 && others.strangers == 0 && !how.stranger {
		return Added, entryTakes
	}
	return Forked, entryForks
}

// company is what a mailbox's other facts are, seen from its home.
type company struct {
	live      int  // home facts that count
	confirmed int  // of these, confirmed in this incarnation
	givenUp   bool // the primary's is deactivated, or all are
	strangers int  // facts outside the home that count
}

func (a *apply) others(mb *directory.Mailbox, home *directory.Group, but directory.ServerID) company {
	var c company
	deactivated, primaryGave := 0, false
	for i := range mb.Facts {
		f := &mb.Facts[i]
		b := a.Backend(f.Server)
		if b == nil || !b.Counts() || f.Standing != directory.InForce || f.State == directory.HeldReturn {
			continue
		}
		if home == nil || !home.Has(f.Server) {
			if f.Server != but && directory.Confirmed(f, a) {
				c.strangers++
			}
			continue
		}
		c.live++
		if directory.Confirmed(f, a) {
			c.confirmed++
		}
		if f.State == directory.Deactivated {
			deactivated++
			primaryGave = primaryGave || f.Server == home.Primary
		}
	}
	c.givenUp = primaryGave || c.live > 0 && deactivated == c.live
	return c
}

func strayOf(mb *directory.Mailbox, server directory.ServerID) int {
	for i := range mb.Stray {
		if mb.Stray[i].Server == server {
			return i
		}
	}
	return -1
}

// enter carries an entry out for b's fact, which is in e.mb, and saves.
func (a *apply) enter(e *edit, b *directory.Backend, how entry) error {
	mb := e.mb
	group := a.Group(b.Group)
	home := a.Group(directory.HomeOf(mb, a))
	kind := directory.ChangeMailbox
	switch how {
	case entryTakes:
		mb.Home = group.ID
	case entryAborts:
		for i := range mb.Facts {
			f := &mb.Facts[i]
			if !group.Has(f.Server) && a.inForce(f) {
				f.Standing = directory.LeftBehind
				a.touch(f)
			}
		}
	case entryCompletes:
		kind = directory.ChangeMoved
		a.completeMove(e, home, group)
	case entryForks:
		if i := strayOf(mb, b.ID); i >= 0 {
			mb.Stray = append(mb.Stray[:i:i], mb.Stray[i+1:]...)
		}
	}
	if err := a.fulfil(mb.Name, b); err != nil {
		return err
	}
	return a.save(e, kind, b.ID)
}

// inForce reports whether a stored fact is in force and its backend counts.
func (a *apply) inForce(f *directory.Fact) bool {
	b := a.Backend(f.Server)
	return b != nil && b.Counts() && f.Standing == directory.InForce && f.State != directory.HeldReturn
}

// completeMove makes group the home: what the old home gave up goes, its other
// members' facts are left behind, a tombstone remembers the move.
func (a *apply) completeMove(e *edit, from, to *directory.Group) {
	var gave directory.ServerID
	kept := e.mb.Facts[:0]
	for _, f := range e.mb.Facts {
		if from.Has(f.Server) && f.Standing == directory.InForce {
			if f.State == directory.Deactivated {
				if gave == 0 || f.Server == from.Primary {
					gave = f.Server
				}
				continue
			}
			f.Standing = directory.LeftBehind
			a.touch(&f)
		}
		kept = append(kept, f)
	}
	e.mb.Facts = kept
	e.mb.Home = to.ID
	a.bury(directory.Tombstone{Name: e.mb.Name, How: directory.GoneMoved, Server: gave, From: from.ID, To: to.ID})
}

// fulfil drops the reservation that b made of a name it now holds.
func (a *apply) fulfil(name directory.MailboxName, b *directory.Backend) error {
	if a.counts.Reservations == 0 {
		return nil
	}
	res, err := a.reservation(name)
	if err == nil && res != nil && res.Server == b.ID {
		a.dropReservation(res)
	}
	return err
}
