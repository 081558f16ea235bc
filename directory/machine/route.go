package machine

import (
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// Answer is where a mailbox is, with what there is to say about it.
type Answer struct {
	Name     directory.MailboxName
	Revision directory.Revision // of the state that was read
	Now      directory.Time
	// Outcome is the route's with holds and completeness weighed. NotFound is
	// true of this state; whether this state may be trusted to say so is the
	// caller's to confirm.
	Outcome directory.Outcome
	Route   directory.Route    // its Fact with details only
	Server  *directory.Backend // the one chosen, nil if none
	Changed directory.Revision // the newest that changed any of the facts, 0 if there are none
	Mailbox *directory.Mailbox // with details; nil if nothing is known of the name
	Hold    *directory.Hold    // for Held, unless the withdrawal guard holds it
	// Read for names that nothing holds, and with details.
	Reservation *directory.Reservation
	Tombstone   *directory.Tombstone
	Missing     []directory.BackendName // for Incomplete
	// RecentlyRetracted: an inbox that went so recently that delivery should
	// answer "later".
	RecentlyRetracted bool
	view              *topology
}

// BackendName names a server of the answer's facts.
func (a *Answer) BackendName(id directory.ServerID) directory.BackendName { return a.view.name(id) }

// Backend returns a backend as it was at the answer's revision, or nil.
func (a *Answer) Backend(id directory.ServerID) *directory.Backend { return a.view.Backend(id) }

// Group returns a group as it was at the answer's revision, mergers followed, or nil.
func (a *Answer) Group(id directory.GroupID) *directory.Group { return a.view.Group(id) }

// Confirmed reports whether a fact is confirmed in the present incarnation.
func (a *Answer) Confirmed(f *directory.Fact) bool { return directory.Confirmed(f, a.view) }

// Lookup says where name, canonical, is. details also reads what the facts
// state, and reservation and tombstone of a name that is held.
func (m *Machine) Lookup(r kv.Reader, name directory.MailboxName, details bool) (Answer, error) {
	s, err := m.state(r)
	if err != nil {
		return Answer{}, err
	}
	return s.lookup(name, details)
}

// LookupMany looks names up at one revision, in their order. With details, what
// would be more than MaxAnswer is refused, ErrTooLarge.
func (m *Machine) LookupMany(r kv.Reader, names []directory.MailboxName, details bool) ([]Answer, error) {
	s, err := m.state(r)
	if err != nil {
		return nil, err
	}
	out := make([]Answer, len(names))
	octets := 0
	for i, n := range names {
		if out[i], err = s.lookup(n, details); err != nil {
			return nil, err
		}
		if octets += out[i].octets(); octets > MaxAnswer {
			return nil, refuse(directory.ErrTooLarge, "the answer to %d names has more than %d octets; split them", len(names), MaxAnswer)
		}
	}
	return out, nil
}

// MaxAnswer bounds, in octets, what one answer tells of facts.
const MaxAnswer = 8 << 20

// octets is about how large the answer's facts are.
func (a *Answer) octets() (n int) {
	if a.Mailbox == nil {
		return 0
	}
	for i := range a.Mailbox.Facts {
		f := &a.Mailbox.Facts[i]
		n += 100 + len(f.ACL) + len(f.Partition) + len(f.MailboxID) + len(f.SpecialUse)
	}
	return n
}

func (s *state) lookup(name directory.MailboxName, details bool) (Answer, error) {
	a := Answer{Name: name, Revision: s.clk.Revision, Now: s.clk.Time, view: s.topology}
	a.Route.Outcome = directory.NotFound
	var err error
	if details {
		if a.Mailbox, err = s.mailbox(name); err != nil {
			return a, err
		}
		if a.Mailbox != nil {
			a.Route = directory.Resolve(a.Mailbox, s)
			a.Changed = newest(a.Mailbox)
		}
	} else if err = s.glance(name, &a); err != nil {
		return a, err
	}
	if details || a.Route.Outcome == directory.NotFound {
		if a.Reservation, err = s.reservation(name); err != nil {
			return a, err
		}
		if a.Tombstone, err = s.tombstone(name); err != nil {
			return a, err
		}
	}
	s.conclude(&a)
	s.remember(&a)
	return a, nil
}

// remember weighs the tombstone of a name that is not to be found.
func (s *state) remember(a *Answer) {
	if t := a.Tombstone; a.Outcome == directory.NotFound || a.Outcome == directory.Incomplete {
		a.RecentlyRetracted = t != nil && t.How != directory.GoneMoved && a.Name.IsInbox() && a.Now-t.Time < s.settings.DeliveryGrace
	}
}

// conclude weighs holds and completeness, once the facts have been.
func (s *state) conclude(a *Answer) {
	a.Outcome = a.Route.Outcome
	if h := s.hold(a.Name, a.Route.Home); h != nil {
		a.Outcome, a.Hold, a.Route.Server = directory.Held, h, 0
	}
	if a.Outcome == directory.NotFound {
		if missing, complete := s.missing(); !complete {
			a.Outcome, a.Missing = directory.Incomplete, missing
		}
	}
	a.Server = s.Backend(a.Route.Server)
}

// glance routes name without copying what its facts state.
func (s *state) glance(name directory.MailboxName, a *Answer) error {
	var scratch [128]byte
	key := append(name.AppendKey(scratch[:0]), 0)
	if s.scan == nil {
		s.scan = newMailboxScan(s)
	}
	c := s.scan
	if err := c.seek(key); err != nil {
		return err
	}
	if c.key != nil && string(c.key) == string(key[:len(key)-1]) {
		a.Route, a.Changed = c.route, newest(&c.mb)
		a.Route.Fact = nil // the scan's own
	}
	return nil
}

func newest(m *directory.Mailbox) (rev directory.Revision) {
	for i := range m.Facts {
		rev = max(rev, m.Facts[i].Last)
	}
	return rev
}

// Revision is that of the state r shows.
func (m *Machine) Revision(r kv.Reader) (directory.Revision, error) {
	clk, err := readClock(r)
	return clk.Revision, err
}
