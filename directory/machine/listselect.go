package machine

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/rookery-mail/rookery/directory"
)

// LSUB and LIST with selection options start from the names selected, which
// are the user's own few, and look each up among what the user sees.

// chosen is a name that an answer may have a row for.
type chosen struct {
	shown // of a parent key and client alone, of one above its whole class no key
	class directory.Class

	selected bool // subscribed, or of special use, as was asked
	matched  bool
	child    bool // a name below is selected and not in the answer itself
}

func compareChosen(a, b *chosen) int {
	return cmp.Or(cmp.Compare(a.class, b.class), bytes.Compare(a.key, b.key))
}

// choose returns the name at that order key as the user sees it, nil if that
// name is never shown to the user. key is kept.
func (l *lister) choose(key []byte) (*chosen, error) {
	name, err := directory.NameFromKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	var class directory.Class
	l.scratch, class = l.ns.AppendClient(l.scratch[:0], name, l.who)
	if class == directory.ClassHidden || !l.who.Admin && !l.dav && name.IsHiddenTree() {
		return nil, nil
	}
	s := l.shown(key, name, l.scratch)
	return &chosen{shown: s, class: class, matched: l.matches(s.client)}, nil
}

// subscriptions returns the user's subscribed names that can be shown, in
// answer order.
func (l *lister) subscriptions() ([]*chosen, error) {
	if l.who.User == "" {
		return nil, nil
	}
	var subs []*chosen
	prefix := subscriptionPrefix(l.who.User)
	it := l.s.r.Iterate(bucketSubscription)
	for k, _ := it.Seek(prefix); k != nil && hasPrefix(k, prefix); k, _ = it.Next() {
		c, err := l.choose(k[len(prefix):])
		if err != nil {
			return nil, err
		}
		if c != nil {
			c.selected = true
			subs = append(subs, c)
		}
	}
	slices.SortStableFunc(subs, compareChosen)
	return subs, nil
}

// specialUse returns the own mailboxes that have a special use, in answer
// order. INBOX has none: it is what it is.
func (l *lister) specialUse() ([]*chosen, error) {
	var found []*chosen
	ranges := l.rangesOf("")
	for class := directory.ClassInboxChildren; class <= directory.ClassAltFolders; class++ {
		if len(ranges[class]) == 0 {
			continue
		}
		v := l.view(class, ranges[class])
		err := v.seek(nil)
		for ; err == nil && v.key != nil; err = v.next() {
			if len(v.scan.listed().SpecialUse) == 0 {
				continue
			}
			c, err := l.choose(v.key)
			if err != nil {
				return nil, err
			}
			if c != nil {
				c.selected = true
				found = append(found, c)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// selected answers a LIST that selects subscribed names, or those of special
// use, or what is both.
func (l *lister) selected() error {
	var names []*chosen
	var err error
	option := "SUBSCRIBED"
	if l.q.Select.SpecialUse {
		names, err = l.specialUse()
		if l.q.Select.Subscribed {
			names = slices.DeleteFunc(names, func(c *chosen) bool { return !l.subscribed(c.key) })
		} else {
			option = "SPECIAL-USE"
		}
	} else {
		names, err = l.subscriptions()
	}
	if err != nil {
		return err
	}
	if l.q.Select.RecursiveMatch {
		names = l.withParents(names)
	}
	seen := l.sight()
	for _, c := range names {
		if c.selected && !c.matched {
			continue
		}
		there, err := seen.find(c)
		if err != nil {
			return err
		}
		if there {
			if there, err = l.describeChosen(c, seen.view.name); err != nil {
				return err
			}
		}
		if !there {
			if l.row, err = l.parentRow(c.client, c.key); err != nil {
				return err
			}
		}
		if c.child {
			l.row.ChildInfo = option
		}
		hasChildren, err := seen.hasChildren(c)
		if err != nil {
			return err
		}
		l.row.Attributes |= childAttribute(hasChildren)
		if err := l.emit(&l.row); err != nil {
			return err
		}
	}
	return nil
}

// describeChosen begins the row of c, a mailbox of that name which the user
// sees, as describe does.
func (l *lister) describeChosen(c *chosen, name directory.MailboxName) (bool, error) {
	l.row = ListRow{Name: c.client, Mailbox: name}
	return l.describe(c.class, c.key)
}

// withParents adds to the selected names, in their order, the parents that
// RECURSIVEMATCH asks for: those that match a pattern and have a selected name
// below that is not in the answer itself. Selected names that are such parents
// are marked.
//
// RFC 5258 sections 3.1 and 5.
func (l *lister) withParents(names []*chosen) []*chosen {
	by := make(map[string]*chosen, len(names))
	for _, c := range names {
		by[c.client] = c
	}
	for _, c := range slices.Clone(names) {
		if c.matched {
			continue
		}
		depth := 0
		for i := range len(c.base) {
			if c.base[i] != l.ns.Sep {
				continue
			}
			depth++
			client := l.parentForm(c.shown, i)
			parent := by[client]
			if parent == nil {
				key := l.parentKey(c.class, c.key, depth)
				parent = &chosen{shown: shown{key: key, client: client}, class: c.class, matched: l.matches(client)}
				if client == "INBOX" && c.class < directory.ClassOtherUsers {
					parent.class = directory.ClassInbox
				}
				by[client] = parent
				if parent.matched {
					names = append(names, parent)
				}
			}
			parent.child = true
		}
	}
	slices.SortStableFunc(names, compareChosen)
	return names
}

// lsub answers LSUB: the subscribed names that the user sees, and the parents
// of such that a pattern asks for. Those are \Noselect, mailboxes or not, and
// \HasChildren is said of what has a subscribed name below and of nothing else.
//
// RFC 3501 6.3.9; the attributes are Cyrus's.
func (l *lister) lsub() error {
	subs, err := l.subscriptions()
	if err != nil {
		return err
	}
	seen := l.sight()
	for _, c := range subs {
		if there, err := seen.find(c); err != nil {
			return err
		} else if !there {
			continue
		}
		known := c.common(l.last, l.ns.Sep)
		if err := l.flush(known > 0 && known == len(l.last.base)); err != nil {
			return err
		}
		l.last = c.shown
		depth := 0
		for i := range len(c.base) {
			if c.base[i] != l.ns.Sep {
				continue
			}
			depth++
			if i <= known {
				continue
			}
			if err := l.parent(c.class, c.key, l.parentForm(c.shown, i), depth); err != nil {
				return err
			}
		}
		if !c.matched {
			continue
		}
		if l.pending, err = l.describeChosen(c, seen.view.name); err != nil {
			return err
		}
	}
	return l.flush(false)
}

// sight looks names up among what the user sees. They must be asked for in
// answer order.
type sight struct {
	l      *lister
	ranges classRanges
	view   *view // of the class asked for last
}

func (l *lister) sight() *sight { return &sight{l: l, ranges: l.rangesOf("")} }

// enter makes view one of that class, at the first visible mailbox.
func (s *sight) enter(class directory.Class) error {
	if s.view != nil && s.view.class == class {
		return nil
	}
	s.view = s.l.view(class, s.ranges[class])
	return s.view.seek(nil)
}

// find says whether the user sees c. If so, view stands at it.
func (s *sight) find(c *chosen) (bool, error) {
	if err := s.enter(c.class); err != nil {
		return false, err
	}
	if c.key == nil {
		return false, nil
	}
	err := s.view.reach(c.key)
	return err == nil && s.view.key != nil && bytes.Equal(s.view.key, c.key), err
}

// hasChildren says whether the user sees anything below c, after find. It
// moves view on.
func (s *sight) hasChildren(c *chosen) (bool, error) {
	if c.class == directory.ClassInbox {
		below := directory.ClassOwn
		if s.l.alt {
			below = directory.ClassInboxChildren
		}
		err := s.enter(below)
		return s.view.key != nil, err
	}
	v := s.view
	if v.key != nil && c.key != nil && bytes.Equal(v.key, c.key) {
		if err := v.next(); err != nil {
			return false, err
		}
	}
	switch {
	case v.key == nil:
		return false, nil
	case c.key == nil || isBelow(v.key, c.key):
		return true, nil
	}
	return s.l.belowDomain(c.class, c.key, v.key)
}
