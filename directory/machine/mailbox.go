package machine

import (
	"bytes"
	"slices"
	"strings"

	"github.com/rookery-mail/rookery/directory"
)

// edit is a mailbox being changed by a command: what it was, what it is to be.
type edit struct {
	was *directory.Mailbox // nil if there was none
	mb  *directory.Mailbox // is
	is  directory.Mailbox
}

// edit reads name for changing; a mailbox that is not there yet has no facts.
func (a *apply) edit(name directory.MailboxName) (*edit, error) {
	was, err := a.mailbox(name)
	if err != nil {
		return nil, err
	}
	e := &edit{was: was}
	e.mb, e.is.Name = &e.is, name
	if was != nil {
		e.is = *was
		e.is.Facts, e.is.Stray = slices.Clone(was.Facts), slices.Clone(was.Stray)
	}
	return e, nil
}

// add puts a fact in its place in server order and returns it.
func (e *edit) add(f directory.Fact) *directory.Fact {
	i, _ := slices.BinarySearchFunc(e.mb.Facts, f.Server, func(g directory.Fact, s directory.ServerID) int { return int(int64(g.Server) - int64(s)) })
	e.mb.Facts = slices.Insert(e.mb.Facts, i, f)
	return &e.mb.Facts[i]
}

// remove drops server's fact.
func (e *edit) remove(server directory.ServerID) {
	e.mb.Facts = slices.DeleteFunc(e.mb.Facts, func(f directory.Fact) bool { return f.Server == server })
}

// save writes e.mb and all that is derived from it: rows, indexes, postings,
// digests, counts, and a row in the change log if anything a reader sees
// changed. server is whose fact it was about, kind how to log it. Saving what
// did not change mends the derived rows after groups changed.
func (a *apply) save(e *edit, kind directory.ChangeKind, server directory.ServerID) error {
	mb := e.mb
	if len(mb.Facts) == 0 {
		mb.Home, mb.Stray, mb.Forked, mb.Listed = 0, nil, false, false
	} else {
		mb.Home = a.settledHome(mb)
		for i := range mb.Facts {
			mb.Facts[i].Counted = directory.InHome(mb, &mb.Facts[i], a)
		}
		route := directory.Resolve(mb, a)
		mb.Forked, mb.Listed = route.Forked, listedRow(&route)
	}
	if err := a.revive(e); err != nil {
		return err
	}
	changed := a.saveRow(e)
	var dropped []directory.ServerID
	err := eachServer(e.was, mb, func(was, is *directory.Fact) error {
		if is == nil && was.Server != server {
			dropped = append(dropped, was.Server)
		}
		touched, err := a.saveFact(mb.Name, was, is)
		changed = changed || touched
		return err
	})
	if err != nil {
		return err
	}
	if changed || a.sweeping {
		if err := a.mendPostings(e.was, mb); err != nil {
			return err
		}
		a.mendMarks(e.was, mb)
	}
	if !changed {
		return nil
	}
	c := directory.Change{Kind: kind, Name: mb.Name, Server: server, Dropped: dropped}
	if kind == directory.ChangeMoved && e.was != nil {
		c.From, c.To = e.was.Home, mb.Home
	}
	a.log(c)
	return nil
}

// listedRow is what the row says of a mailbox with that route: it is listed, or a member
// of its home was lost before anybody had decided whether to believe its return. Such
// a one is in no LIST; that the row has it is the octets of cluster version 1.
func listedRow(r *directory.Route) bool {
	return r.Fact != nil || r.Outcome == directory.BackendIsDown && r.Home != nil && r.Home.Has(r.Server)
}

// revive clears the way for a name that comes alive: it has no tombstone, and
// nobody outside its home has a claim to it.
func (a *apply) revive(e *edit) error {
	if !directory.HasLive(e.mb, a) || !a.sweeping && e.was != nil && e.was.Home == e.mb.Home && directory.HasLive(e.was, a) {
		return nil
	}
	if err := a.exhume(e.mb.Name); err != nil {
		return err
	}
	if a.counts.Reservations == 0 {
		return nil
	}
	res, err := a.reservation(e.mb.Name)
	if res == nil || err != nil {
		return err
	}
	if holder := a.Backend(res.Server); holder == nil || a.Group(holder.Group) != a.Group(e.mb.Home) {
		a.dropReservation(res)
	}
	return nil
}

// saveRow writes the mailbox's own row if it differs.
func (a *apply) saveRow(e *edit) (changed bool) {
	mb := e.mb
	switch {
	case len(mb.Facts) == 0:
		if e.was == nil {
			return false
		}
		a.tx.Delete(bucketMailbox, mailboxKey(mb.Name))
		return true
	case e.was != nil && mb.Home == e.was.Home && mb.Forked == e.was.Forked && mb.Listed == e.was.Listed && slices.Equal(mb.Stray, e.was.Stray):
		return false
	}
	a.put1(bucketMailbox, mailboxKey(mb.Name), encodeMailboxRow(mb))
	return true
}

// settledHome is the home to store: mergers followed, and found from the facts
// while none is stored. A mailbox whose only holder left the home's group goes
// with it: its fact was counted, so it was inside until groups changed, which an
// orphaned fork never was.
func (a *apply) settledHome(mb *directory.Mailbox) directory.GroupID {
	home := a.Group(directory.HomeOf(mb, a))
	if home == nil {
		return 0
	}
	var left *directory.Fact
	for i := range mb.Facts {
		f := &mb.Facts[i]
		switch {
		case !a.inForce(f) || !directory.Confirmed(f, a) && !home.Has(f.Server):
		case home.Has(f.Server) || left != nil || !f.Counted:
			return home.ID
		default:
			left = f
		}
	}
	if left == nil {
		return home.ID
	}
	return a.Group(a.Backend(left.Server).Group).ID
}

// eachServer calls f with each server's fact in was and in is, nil where there
// is none, in server order.
func eachServer(was, is *directory.Mailbox, f func(was, is *directory.Fact) error) error {
	var w, n []directory.Fact
	if was != nil {
		w = was.Facts
	}
	n = is.Facts
	for len(w) > 0 || len(n) > 0 {
		var a, b *directory.Fact
		switch {
		case len(n) == 0 || len(w) > 0 && w[0].Server < n[0].Server:
			a, w = &w[0], w[1:]
		case len(w) == 0 || n[0].Server < w[0].Server:
			b, n = &n[0], n[1:]
		default:
			a, b, w, n = &w[0], &n[0], w[1:], n[1:]
		}
		if err := f(a, b); err != nil {
			return err
		}
	}
	return nil
}

// saveFact writes one fact's row, its by-server row, its server's sums, and
// its place among the facts the guard holds.
func (a *apply) saveFact(name directory.MailboxName, was, is *directory.Fact) (touched bool, err error) {
	switch {
	case is == nil:
		a.tx.Delete(bucketMailbox, factKey(name, was.Server))
		a.tx.Delete(bucketByServer, serverNameKey(was.Server, name))
		touched = true
	case was == nil:
		a.putFact(name, is)
		a.mark(bucketByServer, serverNameKey(is.Server, name))
		touched = true
	case *was != *is:
		a.putFact(name, is)
		touched = true
	}
	if !touched {
		return false, nil
	}
	server := directory.ServerID(0)
	if is != nil {
		server = is.Server
	} else {
		server = was.Server
	}
	wasHeld, isHeld := was != nil && was.State.IsHeld(), is != nil && is.State.IsHeld()
	switch {
	case isHeld && !wasHeld:
		a.mark(bucketHeldFact, serverNameKey(server, name))
		a.counts.Held++
	case wasHeld && !isHeld:
		a.tx.Delete(bucketHeldFact, serverNameKey(server, name))
		a.counts.Held--
	}
	return true, a.mendDigest(server, name, was, is)
}

func (a *apply) putFact(name directory.MailboxName, f *directory.Fact) {
	s := a.room()
	s.message = appendFact(s.message[:0], f)
	a.put1(bucketMailbox, factKey(name, f.Server), s.message)
}

// mendMarks keeps the indexes of forks and moves and the counts.
func (a *apply) mendMarks(was, mb *directory.Mailbox) {
	w, n := a.facets(was), a.facets(mb)
	if w == n && !n.moving {
		return
	}
	key := mb.Name.AppendKey(nil)
	if w.moving || n.moving {
		// Whom the index counts changes with an admission.
		w.moving = a.tx.Get(bucketMove, key) != nil
	}
	if n.forked && !w.forked {
		a.mark(bucketFork, key)
	}
	if w.forked && !n.forked {
		a.tx.Delete(bucketFork, key)
	}
	if n.moving && !w.moving {
		a.mark(bucketMove, key)
	}
	if w.moving && !n.moving {
		a.tx.Delete(bucketMove, key)
	}
	a.counts.Mailboxes += count(n.there) - count(w.there)
	a.counts.Listed += count(n.listed) - count(w.listed)
	a.counts.Forked += count(n.forked) - count(w.forked)
	a.counts.Deactivated += count(n.moving) - count(w.moving)
	if mb.Name.IsInbox() {
		a.counts.Inboxes += count(n.listed) - count(w.listed)
	}
}

type mailboxFacets struct{ there, listed, forked, moving bool }

func (s *state) facets(m *directory.Mailbox) mailboxFacets {
	if m == nil || len(m.Facts) == 0 {
		return mailboxFacets{}
	}
	f := mailboxFacets{there: true, listed: m.Listed, forked: m.Forked}
	for i := range m.Facts {
		g := &m.Facts[i]
		if b := s.Backend(g.Server); g.State == directory.Deactivated && g.Standing == directory.InForce && b != nil && b.Admitted {
			f.moving = true
		}
	}
	return f
}

func count(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// mendPostings makes the postings of mb what its counted facts grant. Only the
// identifiers that an ACL names before or after are looked at, and none if no
// counted ACL changed.
func (a *apply) mendPostings(was, mb *directory.Mailbox) error {
	if was != nil && was.Listed == mb.Listed && samePostingACLs(was, mb) && !a.sweeping {
		return nil
	}
	owner, _ := mb.Name.Owner()
	if !a.sweeping && onlyOwner(was, string(owner)) && onlyOwner(mb, string(owner)) {
		return nil
	}
	want, err := postingsOf(mb)
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	var order []string
	note := func(id string) {
		if !ids[id] {
			ids[id] = true
			order = append(order, id)
		}
	}
	for _, m := range []*directory.Mailbox{was, mb} {
		if m == nil {
			continue
		}
		for i := range m.Facts {
			acl, err := storedACL(m.Facts[i].ACL)
			if err != nil {
				return err
			}
			for _, entry := range acl {
				if !entry.Negative {
					note(entry.Identifier)
				}
			}
		}
	}
	for _, id := range order {
		p, posted := want[id]
		key := postingKey(id, mb.Name)
		old := a.tx.Get(bucketPosting, key)
		switch {
		case !posted && old != nil:
			a.tx.Delete(bucketPosting, key)
			a.counts.Postings--
		case posted:
			row := seal(bucketPosting, key, encodePosting(p))
			if bytes.Equal(row, old) {
				continue
			}
			if old == nil {
				a.counts.Postings++
			}
			a.tx.Put(bucketPosting, key, row)
		}
	}
	return nil
}

// onlyOwner reports whether no ACL of m names anybody but owner, as most do:
// nothing was posted then and nothing is to be.
func onlyOwner(m *directory.Mailbox, owner string) bool {
	if m == nil {
		return true
	}
	for i := range m.Facts {
		id, rest, _ := strings.Cut(m.Facts[i].ACL, "\t")
		if id != owner && m.Facts[i].ACL != "" {
			return false
		}
		if _, rest, _ = strings.Cut(rest, "\t"); rest != "" {
			return false
		}
	}
	return true
}

// samePostingACLs reports whether postingACLs of both are equal.
func samePostingACLs(m, n *directory.Mailbox) bool {
	j := 0
	for i := range m.Facts {
		if !m.Facts[i].Counted {
			continue
		}
		for j < len(n.Facts) && !n.Facts[j].Counted {
			j++
		}
		if j == len(n.Facts) || n.Facts[j].ACL != m.Facts[i].ACL {
			return false
		}
		j++
	}
	for ; j < len(n.Facts); j++ {
		if n.Facts[j].Counted {
			return false
		}
	}
	return true
}

// postingACLs lists the ACLs that post, in server order.
func postingACLs(m *directory.Mailbox) []string {
	var acls []string
	for i := range m.Facts {
		if m.Facts[i].Counted {
			acls = append(acls, m.Facts[i].ACL)
		}
	}
	return acls
}

// postingsOf derives what mb posts: every identifier, as written, to which some
// counted ACL grants l or r, but for the owner, whose mailboxes are a range,
// and for mailboxes that are deleted or not listed, which no user is shown. Where the ACLs differ, or
// take rights away, the reader has to weigh them.
func postingsOf(mb *directory.Mailbox) (map[string]posting, error) {
	owner, _ := mb.Name.Owner()
	out := map[string]posting{}
	if mb.Name.IsDeleted() || !mb.Listed {
		return out, nil
	}
	acls := postingACLs(mb)
	weigh := false
	for _, acl := range acls {
		weigh = weigh || acl != acls[0]
	}
	for i, text := range acls {
		if i > 0 && text == acls[0] {
			continue
		}
		acl, err := storedACL(text)
		if err != nil {
			return nil, err
		}
		weigh = weigh || acl.HasNegative()
		for _, entry := range acl {
			if entry.Negative || entry.Identifier == string(owner) {
				continue
			}
			p := out[entry.Identifier]
			p.Rights |= entry.Rights
			out[entry.Identifier] = p
		}
	}
	for id, p := range out {
		if !p.Rights.HasAny(directory.RightsPosted) {
			delete(out, id)
			continue
		}
		if weigh {
			out[id] = posting{Weigh: true}
		}
	}
	return out, nil
}
