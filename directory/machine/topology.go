package machine

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// topology is the small part of the state that every question needs: cluster
// row, settings, backends, groups and holds, decoded. It never changes once it
// is shared; the clock row tells at which revision it was last true, so one
// decoded topology serves all reads until a command changes it.
type topology struct {
	revision    directory.Revision
	cluster     cluster
	settings    directory.Settings
	backends    []*directory.Backend // ordered by ID
	groups      []*directory.Group   // ordered by ID
	holds       []*directory.Hold    // ordered by key
	alarms      []*directory.Alarm   // ordered by key
	backendByID map[directory.ServerID]*directory.Backend
	groupByID   map[directory.GroupID]*directory.Group
	backendBy   map[directory.BackendName]*directory.Backend
	groupBy     map[directory.GroupName]*directory.Group
	holdBy      map[string]*directory.Hold // by key of bucketHold

	// Derived by derive, when all else is in place.
	absent   []directory.BackendName // not heard whole in this incarnation, in name order
	complete bool
	full     string // why there is no space for growth; "" if there is
}

// readTopology decodes the topology from r.
func readTopology(r kv.Reader, at directory.Revision) (*topology, error) {
	t := &topology{
		revision:    at,
		settings:    directory.DefaultSettings(),
		backendByID: map[directory.ServerID]*directory.Backend{},
		groupByID:   map[directory.GroupID]*directory.Group{},
		backendBy:   map[directory.BackendName]*directory.Backend{},
		groupBy:     map[directory.GroupName]*directory.Group{},
		holdBy:      map[string]*directory.Hold{},
	}
	var err error
	if t.cluster, err = readCluster(r); err != nil {
		return nil, err
	}
	if v := r.Get(bucketMeta, keySettings); v != nil {
		b, err := unseal(bucketMeta, keySettings, v)
		if err != nil {
			return nil, err
		}
		if t.settings, err = decodeSettings(b); err != nil {
			return nil, err
		}
	}
	err = eachRow(r, bucketBackend, []byte{'i'}, func(_, b []byte) error {
		row, err := decodeBackend(b)
		if err == nil {
			t.addBackend(&row)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	err = eachRow(r, bucketGroup, []byte{'i'}, func(_, b []byte) error {
		row, err := decodeGroup(b)
		if err == nil {
			t.addGroup(&row)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	err = eachRow(r, bucketHold, nil, func(k, b []byte) error {
		row, err := decodeHold(b)
		if err == nil {
			t.holds = append(t.holds, &row)
			t.holdBy[string(k)] = &row
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	err = eachRow(r, bucketAlarm, nil, func(_, b []byte) error {
		row, err := decodeAlarm(b)
		if err == nil {
			t.alarms = append(t.alarms, &row)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := t.whole(); err != nil {
		return nil, err
	}
	t.derive()
	return t, nil
}

// whole makes sure that what rows name is there: all that follows relies on it.
func (t *topology) whole() error {
	for _, g := range t.groups {
		to := g
		for range t.groups {
			if to != nil && to.MergedInto != 0 {
				to = t.groupByID[to.MergedInto]
			}
		}
		if to == nil || to.MergedInto != 0 {
			return fmt.Errorf("%w: group %d was merged into %d, which is none", ErrCorrupt, g.ID, g.MergedInto)
		}
		if g.MergedInto != 0 {
			continue
		}
		for _, m := range append([]directory.ServerID{g.Primary}, g.Members...) {
			if t.backendByID[m] == nil {
				return fmt.Errorf("%w: backend %d is of group %s and has no row", ErrCorrupt, m, g.Name)
			}
		}
	}
	for _, b := range t.backends {
		if t.Group(b.Group) == nil {
			return fmt.Errorf("%w: backend %s is of group %d, which has no row", ErrCorrupt, b.Name, b.Group)
		}
	}
	return nil
}

// eachRow calls f with the key and the message of every row of b whose key
// begins with prefix, in key order.
func eachRow(r kv.Reader, b kv.Bucket, prefix []byte, f func(k, message []byte) error) error {
	it := r.Iterate(b)
	for k, v := it.Seek(prefix); k != nil && hasPrefix(k, prefix); k, v = it.Next() {
		m, err := unseal(b, k, v)
		if err != nil {
			return err
		}
		if err := f(k, m); err != nil {
			return err
		}
	}
	return nil
}

func hasPrefix(k, prefix []byte) bool {
	return len(k) >= len(prefix) && string(k[:len(prefix)]) == string(prefix)
}

func (t *topology) addBackend(b *directory.Backend) {
	t.backends = append(t.backends, b)
	t.backendByID[b.ID] = b
	t.backendBy[b.Name] = b
}

func (t *topology) addGroup(g *directory.Group) {
	t.groups = append(t.groups, g)
	t.groupByID[g.ID] = g
	if g.MergedInto == 0 {
		t.groupBy[g.Name] = g
	}
}

// Group returns the group of id with mergers followed, or nil.
func (t *topology) Group(id directory.GroupID) *directory.Group {
	g := t.groupByID[id]
	for g != nil && g.MergedInto != 0 {
		g = t.groupByID[g.MergedInto]
	}
	return g
}

// Backend returns the backend of id, or nil.
func (t *topology) Backend(id directory.ServerID) *directory.Backend { return t.backendByID[id] }

// Incarnation is the cluster's present one.
func (t *topology) Incarnation() directory.Incarnation { return t.cluster.Incarnation }

// clone returns a topology that may be changed by replacing its members; the
// rows themselves are shared and must be replaced, not changed.
func (t *topology) clone() *topology {
	c := *t
	c.backends, c.groups, c.holds = slices.Clone(t.backends), slices.Clone(t.groups), slices.Clone(t.holds)
	c.alarms = slices.Clone(t.alarms)
	c.backendByID, c.groupByID = maps.Clone(t.backendByID), maps.Clone(t.groupByID)
	c.backendBy, c.groupBy, c.holdBy = maps.Clone(t.backendBy), maps.Clone(t.groupBy), maps.Clone(t.holdBy)
	return &c
}

// name names server for people, also where its row is missing.
func (t *topology) name(server directory.ServerID) directory.BackendName {
	if b := t.backendByID[server]; b != nil {
		return b.Name
	}
	return directory.BackendName(fmt.Sprintf("#%d", server))
}

// missing lists, by name, the backends that were not heard whole in this
// incarnation; while it is not empty, or nobody was ever admitted, absence is
// not known. The list must not be changed.
func (t *topology) missing() (names []directory.BackendName, complete bool) {
	return t.absent, t.complete
}

func (t *topology) derive() {
	admitted := 0
	var names []directory.BackendName
	for _, b := range t.backends {
		if !b.Counts() {
			continue
		}
		admitted++
		if !b.ConfirmedFor(t.cluster.Incarnation) {
			names = append(names, b.Name)
		}
	}
	slices.SortFunc(names, cmp.Compare)
	t.absent, t.complete = names, admitted > 0 && len(names) == 0
	t.full = fullDisks(t.alarms)
}

// hold returns the hold that covers name, whose route is given, or nil.
func (t *topology) hold(name directory.MailboxName, home *directory.Group) *directory.Hold {
	if len(t.holds) == 0 {
		return nil
	}
	if owner, ok := name.Owner(); ok {
		if h := t.holdBy[string(holdKey(directory.HoldUser, string(owner)))]; h != nil {
			return h
		}
	}
	for n, ok := name, true; ok; n, ok = n.Parent() {
		if h := t.holdBy[string(holdKey(directory.HoldMailbox, string(n)))]; h != nil {
			return h
		}
	}
	if home == nil {
		return nil
	}
	if h := t.holdBy[string(holdKey(directory.HoldGroup, string(home.Name)))]; h != nil {
		return h
	}
	return t.holdBy[string(holdKey(directory.HoldBackend, string(t.name(home.Primary))))]
}

// state is one reader's view of the directory: rows through r, the rest from
// the topology of the same point. It may be used by one goroutine.
type state struct {
	*topology
	r    kv.Reader
	clk  clock
	scan *mailboxScan // of glance, kept for the next name
	rows kv.Iterator  // of mailbox, kept for the next name
}

// state returns a view of r, reusing the last topology while it is true.
func (m *Machine) state(r kv.Reader) (*state, error) {
	clk, err := readClock(r)
	if err != nil {
		return nil, err
	}
	known := m.top.Load()
	if known != nil && known.revision == clk.Topology && clk.Topology != 0 {
		return &state{topology: known, r: r, clk: clk}, nil
	}
	t, err := readTopology(r, clk.Topology)
	if err != nil {
		return nil, err
	}
	if known == nil || known.revision < t.revision {
		// An older view than the newest must not push it out: others would read
		// it again and again.
		m.top.CompareAndSwap(known, t)
	}
	return &state{topology: t, r: r, clk: clk}, nil
}

func readClock(r kv.Reader) (clock, error) {
	v := r.Get(bucketMeta, keyClock)
	if v == nil {
		return clock{}, nil
	}
	b, err := unseal(bucketMeta, keyClock, v)
	if err != nil {
		return clock{}, err
	}
	return decodeClock(b)
}

// mailbox reads the row and the facts of name, nil if there are none.
func (s *state) mailbox(name directory.MailboxName) (*directory.Mailbox, error) {
	if s.rows == nil {
		s.rows = s.r.Iterate(bucketMailbox)
	}
	return readMailbox(s.rows, mailboxKey(name), name)
}

// readMailbox reads the mailbox whose row's key is key; it leaves it at the row
// after.
func readMailbox(it kv.Iterator, key []byte, name directory.MailboxName) (*directory.Mailbox, error) {
	k, v := it.Seek(key)
	if k == nil || !hasPrefix(k, key) {
		return nil, nil
	}
	m := &directory.Mailbox{Name: name}
	if len(k) != len(key) {
		return nil, fmt.Errorf("%w: mailbox %s has facts and no row", ErrCorrupt, name)
	}
	b, err := unseal(bucketMailbox, k, v)
	if err != nil {
		return nil, err
	}
	if err := decodeMailboxRow(b, m); err != nil {
		return nil, err
	}
	m.Facts = make([]directory.Fact, 0, 2)
	for k, v = it.Next(); len(k) == len(key)+4 && hasPrefix(k, key); k, v = it.Next() {
		if b, err = unseal(bucketMailbox, k, v); err != nil {
			return nil, err
		}
		m.Facts = append(m.Facts, directory.Fact{Server: directory.ServerID(binary.BigEndian.Uint32(k[len(key):]))})
		if err := decodeFact(b, &m.Facts[len(m.Facts)-1]); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// reservation reads the reservation of name, nil if there is none. One of an
// earlier life is none, though its row may still be there.
func (s *state) reservation(name directory.MailboxName) (*directory.Reservation, error) {
	res, err := s.storedReservation(name)
	if err != nil || res == nil || res.Revision < s.cluster.Began {
		return nil, err
	}
	return res, nil
}

// storedReservation reads the row of a reservation, of whatever life.
func (s *state) storedReservation(name directory.MailboxName) (*directory.Reservation, error) {
	k := name.AppendKey(nil)
	v := s.r.Get(bucketReservation, k)
	if v == nil {
		return nil, nil
	}
	b, err := unseal(bucketReservation, k, v)
	if err != nil {
		return nil, err
	}
	res, err := decodeReservation(b, name)
	return &res, err
}

// tombstone reads the tombstone of name, nil if there is none.
func (s *state) tombstone(name directory.MailboxName) (*directory.Tombstone, error) {
	k := name.AppendKey(nil)
	v := s.r.Get(bucketTombstone, k)
	if v == nil {
		return nil, nil
	}
	b, err := unseal(bucketTombstone, k, v)
	if err != nil {
		return nil, err
	}
	t, err := decodeTombstone(b, name)
	return &t, err
}

// digest reads one row of sums, zero if there is none.
func (s *state) digest(key []byte) (digest, error) {
	v := s.r.Get(bucketDigest, key)
	if v == nil {
		return digest{}, nil
	}
	b, err := unseal(bucketDigest, key, v)
	if err != nil {
		return digest{}, err
	}
	return decodeDigest(b)
}

func (s *state) readCounts() (counts, error) {
	v := s.r.Get(bucketMeta, keyCounts)
	if v == nil {
		return counts{}, nil
	}
	b, err := unseal(bucketMeta, keyCounts, v)
	if err != nil {
		return counts{}, err
	}
	return decodeCounts(b)
}
