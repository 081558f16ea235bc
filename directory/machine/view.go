package machine

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// A LIST is answered from what the user sees: the own mailboxes, one range of
// bucketMailbox, and what is posted under the user's identifiers. All of it is
// read in key order and by seeking, so that what others hold costs nothing and
// a subtree that no pattern can match costs one seek.

// mailboxScan reads bucketMailbox one mailbox after the other, in key order,
// and copies nothing: key and texts belong to the Reader.
type mailboxScan struct {
	s    *state
	it   kv.Iterator
	k, v []byte // the row after the present mailbox
	// key is the order key of the present mailbox, nil at the end.
	key []byte
	// mb is the present mailbox, as far as a route needs it: home and facts
	// without texts.
	mb    directory.Mailbox
	texts []factView // of mb.Facts, by index
	route directory.Route
}

func newMailboxScan(s *state) *mailboxScan {
	return &mailboxScan{s: s, it: s.r.Iterate(bucketMailbox)}
}

// seek moves to the first mailbox whose order key is at or after key.
func (c *mailboxScan) seek(key []byte) error {
	c.k, c.v = c.it.Seek(key)
	return c.next()
}

// next moves to the next mailbox.
func (c *mailboxScan) next() error {
	if c.k == nil {
		c.key = nil
		return nil
	}
	row := c.k
	if n := len(row); n < 2 || row[n-1] != 0 || n > 5 && row[n-5] == 0 {
		return fmt.Errorf("%w: bucket %q, key %q: a fact without its mailbox's row", ErrCorrupt, string(bucketMailbox), row)
	}
	b, err := unseal(bucketMailbox, row, c.v)
	if err != nil {
		return err
	}
	if err := decodeMailboxRow(b, &c.mb); err != nil {
		return err
	}
	c.key = row[:len(row)-1]
	c.mb.Facts, c.texts = c.mb.Facts[:0], c.texts[:0]
	for c.k, c.v = c.it.Next(); len(c.k) == len(row)+4 && hasPrefix(c.k, row); c.k, c.v = c.it.Next() {
		if b, err = unseal(bucketMailbox, c.k, c.v); err != nil {
			return err
		}
		c.texts = append(c.texts, factView{})
		f := &c.texts[len(c.texts)-1]
		if err := f.parse(b); err != nil {
			return err
		}
		c.mb.Facts = append(c.mb.Facts, directory.Fact{
			Server:      directory.ServerID(binary.BigEndian.Uint32(c.k[len(row):])),
			State:       f.State,
			Standing:    f.Standing,
			First:       f.First,
			Last:        f.Last,
			Incarnation: f.Incarnation,
		})
	}
	c.route = directory.Resolve(&c.mb, c.s)
	return nil
}

// whole returns the present mailbox with all that its facts state.
func (c *mailboxScan) whole() *directory.Mailbox {
	for i := range c.mb.Facts {
		c.texts[i].fill(&c.mb.Facts[i])
	}
	return &c.mb
}

// listed returns the texts of the fact that rights and attributes come from,
// nil if the mailbox is not listed.
func (c *mailboxScan) listed() *factView {
	for i := range c.mb.Facts {
		if &c.mb.Facts[i] == c.route.Fact {
			return &c.texts[i]
		}
	}
	return nil
}

// A weigher says what ACLs give one principal. Most mailboxes of a user have
// the same ACL, so the last answer is kept.
type weigher struct {
	who    directory.Principal
	acl    string
	rights directory.Rights
	known  bool
}

// noUser is a user whom no ACL names: an identifier has no control octets. It
// stands for administrators without a user id, since the principal without one
// is the anonymous login, whom ACLs do name.
const noUser directory.UserID = "\x00"

func newWeigher(who directory.Principal) weigher {
	if who.Admin && who.User == "" {
		who.User = noUser
	}
	return weigher{who: who}
}

// weigh returns the effective rights of the stored ACL, nothing implicit.
func (w *weigher) weigh(acl []byte) (directory.Rights, error) {
	if w.known && string(acl) == w.acl {
		return w.rights, nil
	}
	w.acl = string(acl)
	var err error
	w.rights, err = directory.EffectiveOf(w.acl, w.who)
	w.known = err == nil
	if err != nil {
		return 0, fmt.Errorf("%w: a stored ACL: %w", ErrCorrupt, err)
	}
	return w.rights, nil
}

// postings merges what is posted in one class under each of a user's
// identifiers. It can be moved upward only.
type postings struct {
	all   []postingList
	lists []postingList // a heap of those not at their end, least key first
	begun bool
	key   []byte  // order key of the present mailbox, nil at the end
	sum   posting // of all lists that have it
}

// postingList is one identifier's part of bucketPosting.
type postingList struct {
	it     kv.Iterator
	prefix []byte // identifier 0x00 class, with room behind it for a key
	k, v   []byte // k is the whole key; nil at the end
}

func newPostings(s *state, who directory.Principal) *postings {
	p := &postings{all: make([]postingList, 0, 2+len(who.Groups))}
	for id := range who.Identifiers() {
		const room = 64 // for most keys
		prefix := append(make([]byte, 0, len(id)+2+room), id...)
		p.all = append(p.all, postingList{it: s.r.Iterate(bucketPosting), prefix: append(prefix, 0, 0)})
	}
	p.lists = make([]postingList, len(p.all))
	return p
}

// enter begins with another class.
func (p *postings) enter(class byte) {
	p.lists, p.begun, p.key = p.lists[:len(p.all)], false, nil
	copy(p.lists, p.all)
	for _, l := range p.lists {
		l.prefix[len(l.prefix)-1] = class
	}
}

func (l *postingList) name() []byte { return l.k[len(l.prefix):] }

func (l *postingList) seek(key []byte) {
	l.k, l.v = l.it.Seek(append(l.prefix, key...))
	l.check()
}

func (l *postingList) next() {
	l.k, l.v = l.it.Next()
	l.check()
}

func (l *postingList) check() {
	if l.k != nil && !hasPrefix(l.k, l.prefix) {
		l.k = nil
	}
}

// seek moves to the first mailbox at or after key that lies behind the present one.
func (p *postings) seek(key []byte) error {
	if !p.begun {
		p.begun = true
		for i := len(p.lists) - 1; i >= 0; i-- {
			p.lists[i].seek(key)
			p.fix(i)
		}
		return p.next()
	}
	for len(p.lists) > 0 && bytes.Compare(p.lists[0].name(), key) < 0 {
		p.lists[0].seek(key)
		p.fix(0)
	}
	return p.next()
}

// next moves to the next mailbox and adds up what all lists say of it; the
// lists stand behind it then.
func (p *postings) next() error {
	if len(p.lists) == 0 {
		p.key = nil
		return nil
	}
	p.key, p.sum = p.lists[0].name(), posting{}
	for len(p.lists) > 0 && bytes.Equal(p.lists[0].name(), p.key) {
		l := &p.lists[0]
		b, err := unseal(bucketPosting, l.k, l.v)
		if err != nil {
			return err
		}
		one, err := decodePosting(b)
		if err != nil {
			return err
		}
		p.sum.Rights |= one.Rights
		p.sum.Weigh = p.sum.Weigh || one.Weigh
		l.next()
		p.fix(0)
	}
	return nil
}

// fix restores the heap after list i moved upward, and drops it at its end.
func (p *postings) fix(i int) {
	if p.lists[i].k == nil {
		last := len(p.lists) - 1
		p.lists[i] = p.lists[last]
		p.lists = p.lists[:last]
		if i == last {
			return
		}
	}
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(p.lists); child++ {
			if bytes.Compare(p.lists[child].name(), p.lists[least].name()) < 0 {
				least = child
			}
		}
		if least == i {
			return
		}
		p.lists[i], p.lists[least] = p.lists[least], p.lists[i]
		i = least
	}
}

// view yields the mailboxes of one class that a user sees, in key order. It
// can be moved upward only. key is nil before the first seek and at the end.
type view struct {
	l      *lister
	class  directory.Class
	ranges []directory.KeyRange // the first is the present one; those before are passed
	scan   *mailboxScan         // own mailboxes and an administrator's; else nil
	posted *postings            // other users' and shared ones; else nil

	key  []byte // belongs to the Reader
	name directory.MailboxName
	form []byte // name in client form, in the lister's scratch until the next move
}

// seek moves to the first visible mailbox at or after key.
func (v *view) seek(key []byte) error {
	for len(v.ranges) > 0 {
		r := v.ranges[0]
		if r.Hi != nil && bytes.Compare(key, r.Hi) >= 0 {
			v.ranges = v.ranges[1:]
			continue
		}
		if bytes.Compare(key, r.Lo) < 0 {
			key = r.Lo
		}
		if err := v.seekCandidate(key); err != nil {
			return err
		}
		return v.settle()
	}
	v.key = nil
	return nil
}

// reach is seek, but stays where it is if that is not before key.
func (v *view) reach(key []byte) error {
	if v.key != nil && bytes.Compare(v.key, key) >= 0 {
		return nil
	}
	return v.seek(key)
}

// next moves to the next visible mailbox.
func (v *view) next() error {
	if err := v.nextCandidate(); err != nil {
		return err
	}
	return v.settle()
}

func (v *view) seekCandidate(key []byte) error {
	if v.posted != nil {
		return v.posted.seek(key)
	}
	return v.scan.seek(key)
}

func (v *view) nextCandidate() error {
	if v.posted != nil {
		return v.posted.next()
	}
	return v.scan.next()
}

// settle moves on from the present candidate to the first that is in the
// ranges and visible.
func (v *view) settle() error {
	for {
		key := v.candidate()
		for key != nil && len(v.ranges) > 0 {
			if hi := v.ranges[0].Hi; hi == nil || bytes.Compare(key, hi) < 0 {
				break
			}
			v.ranges = v.ranges[1:]
		}
		if key == nil || len(v.ranges) == 0 {
			v.key = nil
			return nil
		}
		past := v.ranges[0].Lo
		if bytes.Compare(key, past) >= 0 {
			visible, over, err := v.look(key)
			if err != nil {
				return err
			}
			if visible {
				v.key = key
				return nil
			}
			past = over
		}
		var err error
		if past != nil {
			err = v.seekCandidate(past)
		} else {
			err = v.nextCandidate()
		}
		if err != nil {
			return err
		}
	}
}

func (v *view) candidate() []byte {
	if v.posted != nil {
		return v.posted.key
	}
	return v.scan.key
}

// look decides whether the candidate at key is visible, and sets name and
// form. If it is not, past may say up to where nothing else is either.
func (v *view) look(key []byte) (visible bool, past []byte, err error) {
	l := v.l
	l.scratch = appendName(l.scratch[:0], key)
	v.name = directory.MailboxName(l.scratch)
	var class directory.Class
	l.scratch, class = l.ns.AppendClient(l.scratch[:0], v.name, l.who)
	if v.form = l.scratch; class != v.class {
		return false, v.pastClass(key), nil
	}
	if !l.who.Admin && !l.dav && v.name.IsHiddenTree() {
		top := 1
		if v.class != directory.ClassShared {
			top = 3 // user, the user's level, the tree
		}
		return false, pastBelow(cutKey(key, top)), nil
	}
	var rights directory.Rights // l, if it is there
	switch {
	case v.scan != nil:
		fact := v.scan.listed()
		if fact == nil {
			return false, nil, nil
		}
		rights, err = l.weigher.weigh(fact.ACL)
	case v.posted.sum.Weigh:
		rights, err = l.weighed(key)
	default:
		rights = v.posted.sum.Rights
	}
	return err == nil && (l.who.Admin || rights.Has(directory.RightLookup)), nil, err
}

// pastClass returns the key after those around key that are not of the view's
// class either, nil where only key itself is known not to be.
func (v *view) pastClass(key []byte) []byte {
	who, ns := v.l.who, v.l.ns
	if !ns.CrossDomains && !(who.Admin && ns.VirtDomains) && v.name.Domain() != who.User.Domain() {
		past, _ := directory.KeyAfterDomain(key)
		return past
	}
	if !who.Admin {
		return nil
	}
	// The first level decides. Below it only: other domains' names may stand
	// between a first level and what is below it.
	if first := cutKey(key, 1); len(first) < len(key) {
		return pastBelow(first)
	}
	return nil
}

// appendName appends to dst, which is empty, the name that has that order key:
// directory.NameFromKey without its checks. The key is known to be one, since
// the checksum of its value covers it.
func appendName(dst, key []byte) []byte {
	dst = append(dst, key...)
	i := 0
	if d := bytes.IndexByte(dst, directory.KeyDomainSep); d >= 0 {
		dst[d] = '!'
		i = d + 1
	}
	for ; i < len(dst); i++ {
		switch dst[i] {
		case directory.KeyLevelSep:
			dst[i] = '.'
		case '.':
			dst[i] = '^'
		}
	}
	return dst
}

// cutKey returns the part of an order key that holds the domain and the first
// n levels; all of it if it has no more.
func cutKey(key []byte, n int) []byte {
	i := bytes.IndexByte(key, directory.KeyDomainSep) + 1
	for ; n > 0; n-- {
		j := bytes.IndexByte(key[i:], directory.KeyLevelSep)
		if j < 0 {
			return key
		}
		i += j + 1
	}
	return key[:i-1]
}

// pastBelow returns the first key after all those below key.
func pastBelow(key []byte) []byte {
	return append(bytes.Clone(key), directory.KeyLevelSep+1)
}

// isBelow says whether order key is below parent.
func isBelow(key, parent []byte) bool {
	return len(key) > len(parent) && key[len(parent)] == directory.KeyLevelSep && hasPrefix(key, parent)
}
