package machine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// ErrTrimmed: rows of the change log that were asked for are no longer kept.
var ErrTrimmed = errors.New("machine: the change log does not reach back that far")

// LogPosition is a place in the change log: behind the row of that revision and
// ordinal. After(r) is behind all rows of revision r.
type LogPosition struct {
	Revision directory.Revision
	Ordinal  uint32
	whole    bool // behind all rows of Revision
}

// After is the position behind all that revision r changed.
func After(r directory.Revision) LogPosition { return LogPosition{Revision: r, whole: true} }

// Past reports whether nothing that revision r changed lies behind p.
func (p LogPosition) Past(r directory.Revision) bool {
	return p.Revision > r || p.whole && p.Revision == r
}

// Changes calls f for the rows of the change log behind after, in order, and
// returns the position behind the last one, or behind the newest revision when
// there are no more. f returns false to stop behind its row; the change is f's to
// keep.
//
// Errors: ErrTrimmed if a row behind after may have been deleted, and only then;
// ErrCorrupt.
func (m *Machine) Changes(r kv.Reader, after LogPosition, f func(*directory.Change) bool) (LogPosition, error) {
	clk, err := readClock(r)
	if err != nil {
		return after, err
	}
	// The first revision of which a row may be wanted.
	first := after.Revision
	if after.whole {
		first++
	}
	if first < clk.LogFrom {
		return after, fmt.Errorf("%w: revision %d is wanted, it begins with %d", ErrTrimmed, first, clk.LogFrom)
	}
	from := logKey(after.Revision, after.Ordinal)
	if after.whole {
		from = logKey(first, 0)
	} else {
		from = append(from, 0) // the least key behind it
	}
	it := r.Iterate(bucketLog)
	for k, v := it.Seek(from); k != nil; k, v = it.Next() {
		rev, ordinal, err := splitLogKey(k)
		if err != nil {
			return after, err
		}
		b, err := unseal(bucketLog, k, v)
		if err != nil {
			return after, err
		}
		c, err := decodeChange(b)
		if err != nil {
			return after, err
		}
		c.Revision, c.Ordinal = rev, ordinal
		if !f(&c) {
			return LogPosition{Revision: rev, Ordinal: ordinal}, nil
		}
	}
	return After(max(clk.Revision, after.Revision)), nil
}

// Revisions says of which revision the state that r shows is, and from which on
// the change log has the changes.
func (m *Machine) Revisions(r kv.Reader) (at, logFrom directory.Revision, err error) {
	clk, err := readClock(r)
	return clk.Revision, max(clk.LogFrom, 1), err
}

// Sight is one view of the state for many questions, by one goroutine. It is good
// until the Reader it was made from is released.
type Sight struct{ s *state }

// Look makes a Sight of what r shows.
func (m *Machine) Look(r kv.Reader) (*Sight, error) {
	s, err := m.state(r)
	return &Sight{s}, err
}

// Revision is that of the state.
func (v *Sight) Revision() directory.Revision { return v.s.clk.Revision }

// Now is directory time.
func (v *Sight) Now() directory.Time { return v.s.clk.Time }

// Lookup says where a mailbox is, with details, as Machine.Lookup.
func (v *Sight) Lookup(name directory.MailboxName) (Answer, error) { return v.s.lookup(name, true) }

// Reservation returns the claim to name, nil if there is none.
func (v *Sight) Reservation(name directory.MailboxName) (*directory.Reservation, error) {
	return v.s.reservation(name)
}

// Subscribed reports whether user subscribes to name.
func (v *Sight) Subscribed(user directory.UserID, name directory.MailboxName) bool {
	return v.s.r.Get(bucketSubscription, subscriptionKey(user, name)) != nil
}

// Settings are the cluster's.
func (v *Sight) Settings() directory.Settings { return v.s.settings }

// Backends returns all backends, retired ones too, by id. Neither the list nor
// what it points to may be changed.
func (v *Sight) Backends() []*directory.Backend { return v.s.backends }

// Backend returns the backend of id, or nil.
func (v *Sight) Backend(id directory.ServerID) *directory.Backend { return v.s.Backend(id) }

// BackendNamed returns the backend of that name, or nil.
func (v *Sight) BackendNamed(name directory.BackendName) *directory.Backend {
	return v.s.backendBy[name]
}

// Confirmed reports whether b's list is known whole in this incarnation.
func (v *Sight) Confirmed(b *directory.Backend) bool {
	return b.Confirmed != directory.ByNobody && b.ConfirmedIn == v.s.cluster.Incarnation
}

// Groups returns all groups, merged ones too, by id. Neither the list nor what it
// points to may be changed.
func (v *Sight) Groups() []*directory.Group { return v.s.groups }

// Group returns the group of id as it is, a merged one as merged, or nil.
func (v *Sight) Group(id directory.GroupID) *directory.Group { return v.s.groupByID[id] }

// Holds returns all holds, by kind and key. Neither the list nor what it points to
// may be changed.
func (v *Sight) Holds() []*directory.Hold { return v.s.holds }

// Hold returns the hold of that kind and key, or nil.
func (v *Sight) Hold(kind directory.HoldKind, key string) *directory.Hold {
	return v.s.holdBy[string(holdKey(kind, key))]
}

// HoldOf reads the key of a ChangeHold row.
func HoldOf(key string) (directory.HoldKind, string, error) {
	kind, key, _ := strings.Cut(key, ":")
	for _, k := range []directory.HoldKind{directory.HoldUser, directory.HoldMailbox, directory.HoldBackend, directory.HoldGroup} {
		if k.String() == kind {
			return k, key, nil
		}
	}
	return 0, "", fmt.Errorf("%w: a change of a hold on %q", ErrCorrupt, kind)
}

// Reservations lists the claims to names that begin with prefix, in name order,
// behind the name given, at most limit; next is the name to go on behind, empty
// after the last.
func (m *Machine) Reservations(r kv.Reader, prefix string, after directory.MailboxName, limit int) (out []directory.Reservation, next directory.MailboxName, err error) {
	it := r.Iterate(bucketReservation)
	for _, in := range prefixRanges(prefix) {
		from := in.Lo
		if behind := keyAfter(nil, after); after != "" && bytes.Compare(behind, from) > 0 {
			from = behind
		}
		for k, v := it.Seek(from); k != nil && (in.Hi == nil || bytes.Compare(k, in.Hi) < 0); k, v = it.Next() {
			name, err := storedName(k)
			if err != nil {
				return nil, "", err
			}
			if !strings.HasPrefix(string(name), prefix) {
				continue
			}
			if len(out) == limit {
				return out, out[limit-1].Name, nil
			}
			b, err := unseal(bucketReservation, k, v)
			if err != nil {
				return nil, "", err
			}
			res, err := decodeReservation(b, name)
			if err != nil {
				return nil, "", err
			}
			out = append(out, res)
		}
	}
	return out, "", nil
}

// Subscription is one user's to one mailbox.
type Subscription struct {
	User directory.UserID
	Name directory.MailboxName
}

// CompareSubscriptions orders them as AllSubscriptions does.
func CompareSubscriptions(a, b Subscription) int {
	return bytes.Compare(subscriptionKey(a.User, a.Name), subscriptionKey(b.User, b.Name))
}

// AllSubscriptions lists everybody's, by user and name, behind the one given, at
// most limit; more: there are others.
func (m *Machine) AllSubscriptions(r kv.Reader, after Subscription, limit int) (out []Subscription, more bool, err error) {
	var from []byte
	if after != (Subscription{}) {
		from = append(subscriptionKey(after.User, after.Name), 0)
	}
	it := r.Iterate(bucketSubscription)
	for k, _ := it.Seek(from); k != nil; k, _ = it.Next() {
		if len(out) == limit {
			return out, true, nil
		}
		i := bytes.IndexByte(k, 0)
		if i < 0 {
			return nil, false, fmt.Errorf("%w: subscription key %q", ErrCorrupt, k)
		}
		name, err := storedName(k[i+1:])
		if err != nil {
			return nil, false, err
		}
		out = append(out, Subscription{directory.UserID(k[:i]), name})
	}
	return out, false, nil
}

// Vanished lists the names that are no more, while that is remembered, in name order
// behind the one given, at most limit, and what to give as after for the next page,
// empty after the last. A name that was moved never went, and one that is alive
// again is not among them.
//
// Errors: ErrCorrupt, ErrFormat.
func (m *Machine) Vanished(r kv.Reader, after directory.MailboxName, limit int) (out []directory.Tombstone, next directory.MailboxName, err error) {
	limit = pageSize(limit, DefaultVanished, MaxVanished)
	var from []byte
	if after != "" {
		from = append(after.AppendKey(nil), 0)
	}
	it := r.Iterate(bucketTombstone)
	for k, v := it.Seek(from); k != nil; k, v = it.Next() {
		b, err := unseal(bucketTombstone, k, v)
		if err != nil {
			return nil, "", err
		}
		name, err := storedName(k)
		if err != nil {
			return nil, "", err
		}
		t, err := decodeTombstone(b, name)
		if err != nil {
			return nil, "", err
		}
		if t.How == directory.GoneMoved {
			continue
		}
		if len(out) == limit {
			return out, out[limit-1].Name, nil
		}
		out = append(out, t)
	}
	return out, "", nil
}

// How many names a page of Vanished has.
const (
	DefaultVanished = 1000
	MaxVanished     = 10_000
)

// Touches lists the servers whose facts a change of a mailbox, which is now as a
// says, was about or may have been: those that have one, and those that had one
// and lost it by this change. Each once, in no order.
func Touches(c *directory.Change, a *Answer) []directory.ServerID {
	servers := make([]directory.ServerID, 0, 4)
	add := func(s directory.ServerID) {
		if s != 0 && !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	add(c.Server)
	for _, s := range c.Dropped {
		add(s)
	}
	if a.Mailbox != nil {
		for i := range a.Mailbox.Facts {
			add(a.Mailbox.Facts[i].Server)
		}
	}
	return servers
}
