package directory

// Outcome is the kind of answer a route is. A failure to answer is never one
// of these.
type Outcome uint8

const (
	// Serving: Server takes the sessions.
	Serving Outcome = 1
	// Moving: the copy that takes sessions is being moved or renamed; ask again.
	Moving Outcome = 2
	// Held: an operator, a switchover or the withdrawal guard says "not now".
	Held Outcome = 3
	// NotAtPrimary: a member of the home group has it, its primary never had.
	NotAtPrimary Outcome = 4
	// BackendIsDown: the server that has it is down, or lost with all it had.
	BackendIsDown Outcome = 5
	// OrphanedFork: its home holds nothing while servers outside it do.
	OrphanedFork Outcome = 6
	// Unconfirmed: Server, if there is one, held it before the cluster was
	// restored and has not been heard since; without a server: nothing is known
	// of the name, and this answer could not be confirmed.
	Unconfirmed Outcome = 7
	// Incomplete: nothing is known of the name, but not every backend has been heard.
	Incomplete Outcome = 8
	// NotFound is a claim about the world: no backend holds it. It bounces mail.
	NotFound Outcome = 9
)

func (o Outcome) String() string {
	switch o {
	case Serving:
		return "SERVING"
	case Moving:
		return "MOVING"
	case Held:
		return "HELD"
	case NotAtPrimary:
		return "NOT_AT_PRIMARY"
	case BackendIsDown:
		return "BACKEND_DOWN"
	case OrphanedFork:
		return "ORPHANED_FORK"
	case Unconfirmed:
		return "UNCONFIRMED"
	case Incomplete:
		return "INCOMPLETE"
	case NotFound:
		return "NOT_FOUND"
	}
	return "UNKNOWN"
}

// View is what Resolve asks of the rest of the state.
type View interface {
	// Group returns the group of id with mergers followed, or nil.
	Group(id GroupID) *Group
	// Backend returns the backend of id, or nil.
	Backend(id ServerID) *Backend
	// Incarnation is the cluster's present one.
	Incarnation() Incarnation
}

// Route is where a mailbox is.
type Route struct {
	Outcome Outcome
	// Server is the one chosen: set for Serving, Unconfirmed (if known),
	// BackendIsDown, Moving and NotAtPrimary (the member that has it); else zero.
	Server ServerID
	Home   *Group // nil if the mailbox has none
	Forked bool   // a fact that counts is outside the home
	Fact   *Fact  // the fact that rights, attributes and listing come from; nil: not listed
}

// Resolve routes m, leaving holds and completeness to its caller: it returns
// NotFound where nothing that counts, or is held back, holds the name. It is a pure function of
// what it is given; m is not changed, and Route.Fact points into it.
func Resolve(m *Mailbox, v View) Route {
	home := v.Group(HomeOf(m, v))
	r := Route{Outcome: NotFound, Home: home}
	var primary, member, stranger, lost, returned *Fact
	for i := range m.Facts {
		f := &m.Facts[i]
		switch place(f, home, v) {
		case placeHome:
			if home.Primary == f.Server {
				primary = f
			}
			if member == nil || better(f, member, v) {
				member = f
			}
		case placeStranger:
			r.Forked = true
			stranger = f
		case placeLost:
			if lost == nil || worth(f, home) > worth(lost, home) {
				lost = f
			}
		case placeReturned:
			returned = f
		}
	}
	switch {
	case primary != nil:
		r.Server, r.Fact = primary.Server, primary
		switch {
		case primary.State == HeldWithdrawal:
			r.Outcome, r.Server = Held, 0
		case primary.State != Active:
			r.Outcome = Moving
		case v.Backend(primary.Server).State == BackendDown:
			r.Outcome = BackendIsDown
		case !Confirmed(primary, v):
			r.Outcome = Unconfirmed
		default:
			r.Outcome = Serving
		}
	case member != nil:
		r.Outcome, r.Server, r.Fact = NotAtPrimary, member.Server, member
	case stranger != nil:
		r.Outcome = OrphanedFork
	case lost != nil:
		r.Outcome, r.Server = BackendIsDown, lost.Server
		if home != nil && home.Has(lost.Server) && lost.State != HeldReturn {
			r.Fact = lost
		}
	case returned != nil:
		// Its server says that it holds it, or does not any more, and nobody has
		// decided whether that is to be believed: no reason to bounce mail.
		r.Outcome = Held
	}
	return r
}

// worth orders facts of lost servers: a member's tells more than another's, and of
// those one that was believed more than a return that was not.
func worth(f *Fact, home *Group) (n int) {
	if home != nil && home.Has(f.Server) {
		n += 2
	}
	if f.State != HeldReturn {
		n++
	}
	return n
}

// HomeOf returns the group a mailbox belongs to: the one stored, or, while a
// newly admitted backend's facts are still being gone over, the group of the
// earliest fact that counts. Zero if there is none.
func HomeOf(m *Mailbox, v View) GroupID {
	if m.Home != 0 {
		return m.Home
	}
	var first *Fact
	for i := range m.Facts {
		f := &m.Facts[i]
		b := v.Backend(f.Server)
		if b == nil || !b.Counts() || f.Standing != InForce || f.State == HeldReturn {
			continue
		}
		if first == nil || f.First < first.First {
			first = f
		}
	}
	if first == nil {
		return 0
	}
	return v.Backend(first.Server).Group
}

// places of a fact seen from its mailbox's home.
type factPlace uint8

const (
	placeNowhere  factPlace = iota // overtaken, not admitted, or not believed
	placeHome                      // in force, its server a member of the home
	placeStranger                  // in force and confirmed, outside the home: a fork
	placeLost                      // its server is lost: history
	placeReturned                  // the guard holds it back, or its end in another life
)

func place(f *Fact, home *Group, v View) factPlace {
	b := v.Backend(f.Server)
	switch {
	case b == nil || !b.Admitted || f.Standing != InForce:
		return placeNowhere
	case b.State.Gone():
		return placeLost
	case f.State == HeldReturn:
		return placeReturned
	case home != nil && home.Has(f.Server):
		return placeHome
	case !Confirmed(f, v) && f.State == HeldWithdrawal:
		return placeReturned
	case !Confirmed(f, v):
		return placeNowhere
	}
	return placeStranger
}

// Confirmed reports whether f is known to be so in the cluster's present life: it
// was asserted in it, or its server's list was known whole in it and has f still. A
// withdrawal that is held is of what the list has not.
func Confirmed(f *Fact, v View) bool {
	if f.Incarnation == v.Incarnation() {
		return true
	}
	b := v.Backend(f.Server)
	return b != nil && b.ConfirmedFor(v.Incarnation()) && f.State != HeldWithdrawal
}

// InHome reports whether f, a fact of m, is in force inside m's home: it can be
// listed, it posts, and it counts when two members are compared. A lost
// member's fact still does: its mailboxes stay listed.
func InHome(m *Mailbox, f *Fact, v View) bool {
	b := v.Backend(f.Server)
	home := v.Group(HomeOf(m, v))
	return home != nil && b != nil && b.Admitted && f.Standing == InForce && f.State != HeldReturn && home.Has(f.Server)
}

// HasLive reports whether m's home holds a copy that counts.
func HasLive(m *Mailbox, v View) bool {
	home := v.Group(HomeOf(m, v))
	for i := range m.Facts {
		if place(&m.Facts[i], home, v) == placeHome {
			return true
		}
	}
	return false
}

// better orders home members' facts for listing: active before the rest, then
// the newest, then the lower server.
func better(f, than *Fact, v View) bool {
	if (f.State == Active) != (than.State == Active) {
		return f.State == Active
	}
	if f.Last != than.Last {
		return f.Last > than.Last
	}
	return f.Server < than.Server
}
