package machine

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// FindQuery asks for mailboxes by name or by server, page by page.
type FindQuery struct {
	// Prefix is what the canonical name begins with, whole levels or not, its
	// domain included: "user.al", "example.com!". Empty: all.
	Prefix string
	// Server: only mailboxes of which this backend has a fact, whatever its
	// standing. Empty: all.
	Server directory.BackendName
	// After is the last name of the page before; empty for the first.
	After directory.MailboxName
	// Limit is how many mailboxes a page has at most; 0 is DefaultFind, and
	// more than MaxFind is MaxFind.
	Limit int
}

// How many mailboxes a page of Find has, and names a page of Subscriptions.
const (
	DefaultFind          = 256
	MaxFind              = 1000
	DefaultSubscriptions = 1000
	MaxSubscriptions     = 10_000
)

// Find returns, in name order, where the mailboxes are that q asks for, as
// Lookup would with details, and what to put into After for the next page,
// empty after the last. It reads what it answers, by server that server's
// names alone; mailboxes with any fact are found, listed or not.
//
// Errors: ErrNotFound for a server nobody has heard of; ErrCorrupt, ErrFormat.
func (m *Machine) Find(r kv.Reader, q FindQuery) (found []Answer, next directory.MailboxName, err error) {
	s, err := m.state(r)
	if err != nil {
		return nil, "", err
	}
	next, err = s.walk(q, func(a *Answer) error {
		keep := *a
		// The walk's own go on.
		keep.Mailbox = &directory.Mailbox{}
		*keep.Mailbox = *a.Mailbox
		keep.Mailbox.Facts = slices.Clone(a.Mailbox.Facts)
		for i := range a.Mailbox.Facts {
			if a.Route.Fact == &a.Mailbox.Facts[i] {
				keep.Route.Fact = &keep.Mailbox.Facts[i]
			}
		}
		var err error
		if keep.Reservation, err = s.reservation(a.Name); err != nil {
			return err
		}
		if keep.Tombstone, err = s.tombstone(a.Name); err != nil {
			return err
		}
		s.remember(&keep)
		found = append(found, keep)
		return nil
	})
	return found, next, err
}

// Walk calls each for the mailboxes that Find would find, in the same order and pages,
// and returns the same next. Of the answers only reservation, tombstone and what follows
// from it are not read. What an answer points to is each's until it returns; its texts stay. An error
// of each ends the walk and is returned.
//
// Errors: ErrNotFound for a server nobody has heard of; ErrCorrupt, ErrFormat.
func (v *Sight) Walk(q FindQuery, each func(*Answer) error) (next directory.MailboxName, err error) {
	return v.s.walk(q, each)
}

func (s *state) walk(q FindQuery, each func(*Answer) error) (next directory.MailboxName, err error) {
	w := walk{s: s, q: q, each: each, limit: pageSize(q.Limit, DefaultFind, MaxFind), scan: newMailboxScan(s)}
	for _, in := range prefixRanges(q.Prefix) {
		if q.After != "" {
			if after := append(q.After.AppendKey(nil), keyAfterName); bytes.Compare(after, in.Lo) > 0 {
				in.Lo = after
			}
		}
		var more bool
		if q.Server == "" {
			more, err = w.all(in)
		} else {
			more, err = w.ofServer(in)
		}
		if err != nil {
			return "", err
		}
		if more {
			return w.last, nil
		}
	}
	return "", nil
}

// walk is one page of mailboxes on its way.
type walk struct {
	s      *state
	q      FindQuery
	each   func(*Answer) error
	limit  int
	scan   *mailboxScan
	count  int
	octets int
	last   directory.MailboxName // told
	answer Answer
}

// all walks the mailboxes themselves and reports whether there are more than the page
// has room for.
func (w *walk) all(in directory.KeyRange) (more bool, err error) {
	for err = w.scan.seek(in.Lo); err == nil && w.scan.key != nil; err = w.scan.next() {
		if in.Hi != nil && bytes.Compare(w.scan.key, in.Hi) >= 0 {
			return false, nil
		}
		if more, err = w.tell(); more || err != nil {
			return more, err
		}
	}
	return false, err
}

// ofServer walks the names that a server has facts of.
func (w *walk) ofServer(in directory.KeyRange) (more bool, err error) {
	b := w.s.backendBy[w.q.Server]
	if b == nil {
		return false, refuse(directory.ErrNotFound, "no backend %s", w.q.Server)
	}
	prefix := serverKey(b.ID)
	it := w.s.r.Iterate(bucketByServer)
	var row []byte
	for k, _ := it.Seek(slices.Concat(prefix, in.Lo)); k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
		key := k[len(prefix):]
		if in.Hi != nil && bytes.Compare(key, in.Hi) >= 0 {
			return false, nil
		}
		row = append(append(row[:0], key...), 0)
		if err := w.scan.seek(row); err != nil {
			return false, err
		}
		if !bytes.Equal(w.scan.key, key) {
			return false, fmt.Errorf("%w: server %d has a row of %q, which is no mailbox", ErrCorrupt, b.ID, key)
		}
		if more, err := w.tell(); more || err != nil {
			return more, err
		}
	}
	return false, nil
}

// tell tells of the mailbox that the scan is at, if it is one that is asked for, and
// reports whether there is no room for it.
func (w *walk) tell() (full bool, err error) {
	name, err := storedName(w.scan.key)
	if err != nil {
		return false, err
	}
	if !strings.HasPrefix(string(name), w.q.Prefix) {
		return false, nil
	}
	if w.count == w.limit || w.octets > maxFindOctets {
		return true, nil
	}
	a := &w.answer
	*a = Answer{Name: name, Revision: w.s.clk.Revision, Now: w.s.clk.Time, view: w.s.topology, Route: w.scan.route, Mailbox: w.scan.whole()}
	a.Mailbox.Name, a.Changed = name, newest(a.Mailbox)
	w.s.conclude(a)
	w.count++
	w.octets += a.octets()
	w.last = name
	return false, w.each(a)
}

// maxFindOctets ends a page of large mailboxes early.
const maxFindOctets = 1 << 20

// keyAfterName follows an order key in the least key behind that name's rows:
// more than the 0x00 that they go on with, less than any separator.
const keyAfterName = 0x01

// prefixRanges returns where the order keys lie of the names that begin with
// prefix, in key order, and of few others: text without '!' may be the
// beginning of a domain, in whose key dots stay dots, or of a first level.
func prefixRanges(prefix string) []directory.KeyRange {
	begin := func(key []byte) directory.KeyRange {
		if len(key) == 0 {
			return directory.KeyRange{}
		}
		hi := bytes.Clone(key)
		hi[len(hi)-1]++
		return directory.KeyRange{Lo: key, Hi: hi}
	}
	ranges := []directory.KeyRange{begin(directory.MailboxName(prefix).AppendKey(nil))}
	if strings.IndexByte(prefix, '!') < 0 {
		ranges = append(ranges, begin([]byte(prefix)))
	}
	return unite(ranges)
}

func pageSize(asked, usual, most int) int {
	if asked <= 0 {
		return usual
	}
	return min(asked, most)
}

// Subscriptions returns the names that user subscribes to, in name order,
// existing or not, and the one to give as after for the next page, empty after
// the last. limit 0 is DefaultSubscriptions, more than MaxSubscriptions is that.
//
// Errors: ErrCorrupt.
func (m *Machine) Subscriptions(r kv.Reader, user directory.UserID, after directory.MailboxName, limit int) (names []directory.MailboxName, next directory.MailboxName, err error) {
	limit = pageSize(limit, DefaultSubscriptions, MaxSubscriptions)
	prefix := subscriptionPrefix(user)
	from := prefix
	if after != "" {
		from = append(subscriptionKey(user, after), keyAfterName)
	}
	it := r.Iterate(bucketSubscription)
	for k, _ := it.Seek(from); k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
		if len(names) == limit {
			return names, names[limit-1], nil
		}
		name, err := directory.NameFromKey(k[len(prefix):])
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		names = append(names, name)
	}
	return names, "", nil
}
