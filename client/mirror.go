package client

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/rookery-mail/rookery/directory"
)

// Mirror is a copy of what a watch covers, kept by applying its updates. At a mark it
// is exactly the directory at that revision; routes are derived from it as the
// directory derives them, so a change of a backend, a group or a hold is a change of
// every route that depends on it. It may be used by many goroutines at once.
//
//	mirror := client.NewMirror()
//	for update, err := range session.Watch(ctx, query) {
//		if err != nil { ... }
//		mirror.Apply(update)
//	}
type Mirror struct {
	mu sync.RWMutex

	mark          Answer
	exact         bool // nothing was applied since the mark
	server        directory.ServerID
	incarnation   directory.Incarnation
	settings      directory.Settings
	mailboxes     map[directory.MailboxName]*WatchedMailbox
	reservations  map[directory.MailboxName]*WatchedReservation
	subscriptions map[WatchedSubscription]bool
	backends      map[directory.ServerID]*directory.Backend
	groups        map[directory.GroupID]*directory.Group
	holds         map[heldKey]*directory.Hold
}

type heldKey struct {
	kind directory.HoldKind
	key  string
}

// NewMirror returns a Mirror that knows nothing yet.
func NewMirror() *Mirror {
	m := new(Mirror)
	m.forget()
	return m
}

// forget drops all but the lock. m.mu is held, or nobody else has m.
func (m *Mirror) forget() {
	m.mark, m.exact, m.server, m.incarnation, m.settings = Answer{}, false, 0, 0, directory.Settings{}
	m.mailboxes = make(map[directory.MailboxName]*WatchedMailbox)
	m.reservations = make(map[directory.MailboxName]*WatchedReservation)
	m.subscriptions = make(map[WatchedSubscription]bool)
	m.backends = make(map[directory.ServerID]*directory.Backend)
	m.groups = make(map[directory.GroupID]*directory.Group)
	m.holds = make(map[heldKey]*directory.Hold)
}

// Apply takes an update in. What u points to must not be changed any more.
func (m *Mirror) Apply(u WatchUpdate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.Reset {
		m.forget()
	}
	m.incarnation, m.server = u.Incarnation, u.Server
	for i := range u.Events {
		m.apply(&u.Events[i])
	}
	if len(u.Events) > 0 || u.Reset {
		m.exact = false
	}
	if u.Mark {
		m.mark, m.exact = u.Answer, true
	}
}

func (m *Mirror) apply(e *WatchEvent) {
	switch e.Kind {
	case WatchMailbox:
		// Of one that no longer has a fact of the server watched, nothing more is told.
		if e.Gone || m.server != 0 && e.Mailbox.Fact(m.server) == nil {
			delete(m.mailboxes, e.Mailbox.Name)
			return
		}
		m.mailboxes[e.Mailbox.Name] = e.Mailbox
	case WatchReservation:
		if e.Gone || m.server != 0 && e.Reservation.Server != m.server {
			delete(m.reservations, e.Reservation.Mailbox)
			return
		}
		m.reservations[e.Reservation.Mailbox] = e.Reservation
	case WatchSubscription:
		if e.Gone {
			delete(m.subscriptions, *e.Subscription)
			return
		}
		m.subscriptions[*e.Subscription] = true
	case WatchBackend:
		m.backends[e.Backend.ID] = e.Backend
	case WatchGroup:
		m.groups[e.Group.ID] = e.Group
	case WatchHold:
		key := heldKey{e.Hold.Kind, e.Hold.Key}
		if e.Gone {
			delete(m.holds, key)
			return
		}
		m.holds[key] = e.Hold
	case WatchSettings:
		m.settings = *e.Settings
	}
}

// Mark is the last mark, its Token where a watch can go on, and whether nothing came
// after it, so that the Mirror is the directory at its revision. Its revision is 0 as
// long as the first listing has not ended.
func (m *Mirror) Mark() (mark Answer, exact bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.mark, m.exact
}

// Route says where a mailbox is; false if the Mirror does not have it, which is no
// reason to bounce mail: another node may know more, or the watch not cover it. Ages
// and how long is left are not known.
func (m *Mirror) Route(name directory.MailboxName) (Route, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	mb := m.mailboxes[name]
	if mb == nil {
		return Route{}, false
	}
	v := mirrorView{m}
	found := directory.Resolve(&mb.Mailbox, v)
	r := Route{
		Answer:      m.mark,
		Mailbox:     name,
		Outcome:     found.Outcome,
		Forked:      found.Forked,
		Reservation: m.reservation(name),
	}
	server := found.Server
	if home := found.Home; home != nil {
		r.Group, r.Epoch, r.Primary = home.Name, home.Epoch, m.name(home.Primary)
	}
	if h := m.hold(name, found.Home); h != nil {
		r.Outcome, server = directory.Held, 0
		r.Hold = &Hold{Kind: h.Kind, Key: h.Key, Remaining: AgeUnknown, Why: h.Why, By: h.By}
	}
	if r.Outcome == directory.NotFound {
		r.Outcome, r.Why = directory.Unconfirmed, "no other node was asked"
		if missing, complete := m.missing(); !complete {
			r.Outcome, r.Missing, r.Why = directory.Incomplete, missing, ""
		}
	}
	if b := m.backends[server]; b != nil {
		r.Server = Server{Name: b.Name, Addresses: b.Addresses, State: b.State}
	}
	if found.Fact != nil {
		r.ListedFrom = m.name(found.Fact.Server)
	}
	r.Facts = make([]Fact, len(mb.Facts))
	for i := range mb.Facts {
		f := &mb.Facts[i]
		r.Changed = max(r.Changed, f.Last)
		b := m.backends[f.Server]
		r.Facts[i] = Fact{
			Server: m.name(f.Server), Admitted: b != nil && b.Admitted,
			Partition: f.Partition, ACL: f.ACL, MailboxID: f.MailboxID, UIDValidity: f.UIDValidity, Type: f.Type, SpecialUse: f.SpecialUse,
			State: f.State, Standing: f.Standing, First: f.First, Last: f.Last,
			Confirmed: f.Incarnation == m.incarnation, Age: AgeUnknown,
		}
	}
	return r, true
}

func (m *Mirror) reservation(name directory.MailboxName) *Reservation {
	res := m.reservations[name]
	if res == nil {
		return nil
	}
	return &Reservation{Server: m.name(res.Server), Partition: res.Partition, Age: AgeUnknown, Remaining: AgeUnknown}
}

// Reservation returns the claim to a name, nil if there is none.
func (m *Mirror) Reservation(name directory.MailboxName) *Reservation {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.reservation(name)
}

// Mailboxes returns the names of all mailboxes there are, in name order.
func (m *Mirror) Mailboxes() []directory.MailboxName {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(m.mailboxes), directory.CompareNames)
}

// Reservations returns the names that are claimed, in name order.
func (m *Mirror) Reservations() []directory.MailboxName {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(m.reservations), directory.CompareNames)
}

// Subscriptions returns all subscriptions, by user and name.
func (m *Mirror) Subscriptions() []WatchedSubscription {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(m.subscriptions), func(a, b WatchedSubscription) int {
		return cmp.Or(cmp.Compare(a.User, b.User), directory.CompareNames(a.Mailbox, b.Mailbox))
	})
}

// Backends returns all backends by id. They must not be changed.
func (m *Mirror) Backends() []*directory.Backend {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.SortedFunc(maps.Values(m.backends), func(a, b *directory.Backend) int { return cmp.Compare(a.ID, b.ID) })
}

// Groups returns all groups by id, merged ones too. They must not be changed.
func (m *Mirror) Groups() []*directory.Group {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.SortedFunc(maps.Values(m.groups), func(a, b *directory.Group) int { return cmp.Compare(a.ID, b.ID) })
}

// Holds returns all holds by kind and key. They must not be changed.
func (m *Mirror) Holds() []*directory.Hold {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.SortedFunc(maps.Values(m.holds), func(a, b *directory.Hold) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
}

// Settings returns the cluster's.
func (m *Mirror) Settings() directory.Settings {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.settings
}

// NameOf names a server of the mirror's mailboxes; empty if it is not known.
func (m *Mirror) NameOf(server directory.ServerID) directory.BackendName {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.name(server)
}

func (m *Mirror) name(server directory.ServerID) directory.BackendName {
	if b := m.backends[server]; b != nil {
		return b.Name
	}
	return ""
}

// hold returns the hold that covers name, whose home is given, or nil.
func (m *Mirror) hold(name directory.MailboxName, home *directory.Group) *directory.Hold {
	if len(m.holds) == 0 {
		return nil
	}
	if owner, ok := name.Owner(); ok {
		if h := m.holds[heldKey{directory.HoldUser, string(owner)}]; h != nil {
			return h
		}
	}
	for n, ok := name, true; ok; n, ok = n.Parent() {
		if h := m.holds[heldKey{directory.HoldMailbox, string(n)}]; h != nil {
			return h
		}
	}
	if home == nil {
		return nil
	}
	if h := m.holds[heldKey{directory.HoldGroup, string(home.Name)}]; h != nil {
		return h
	}
	return m.holds[heldKey{directory.HoldBackend, string(m.name(home.Primary))}]
}

// missing lists the backends not heard in this incarnation; while there are some, or
// nobody was admitted, absence is not known.
func (m *Mirror) missing() (names []directory.BackendName, complete bool) {
	admitted := 0
	for _, b := range m.backends {
		if !b.Counts() {
			continue
		}
		admitted++
		if b.ConfirmedIn != m.incarnation || b.Confirmed == directory.ByNobody {
			names = append(names, b.Name)
		}
	}
	slices.Sort(names)
	return names, admitted > 0 && len(names) == 0
}

// mirrorView is what directory.Resolve asks of the rest of the state.
type mirrorView struct{ m *Mirror }

func (v mirrorView) Group(id directory.GroupID) *directory.Group {
	g := v.m.groups[id]
	for g != nil && g.MergedInto != 0 {
		g = v.m.groups[g.MergedInto]
	}
	return g
}

func (v mirrorView) Backend(id directory.ServerID) *directory.Backend { return v.m.backends[id] }

func (v mirrorView) Incarnation() directory.Incarnation { return v.m.incarnation }

// All yields every mailbox with its route, in name order, as Route has it.
func (m *Mirror) All() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		for _, name := range m.Mailboxes() {
			if r, ok := m.Route(name); ok && !yield(r) {
				return
			}
		}
	}
}
