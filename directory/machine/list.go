package machine

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/kv"
)

// ListQuery is a LIST or LSUB command.
//
// RFC 9051 6.3.9; RFC 5258 section 3; RFC 6154 section 5; RFC 8440; LSUB as in
// RFC 3501 6.3.9.
type ListQuery struct {
	Principal directory.Principal
	Namespace directory.Namespace
	// Reference and Patterns are in client form, as the client wrote them.
	Reference string
	Patterns  []string // at least one
	// Extended says that the command had selection options, RETURN or a list of
	// patterns, if only empty ones. Several patterns, a selection and every
	// return option but SpecialUse, which a server may give unasked, imply it.
	Extended bool
	// LSUB answers the subscribed names in LSUB's own form. Nothing may be
	// selected besides.
	LSUB bool
	// InboxOnly makes of a plain "*" an "INBOX*" (Cyrus: foolstupidclients).
	InboxOnly bool
	// DAV shows hidden trees too (selection option VENDOR.CMU-DAV).
	DAV    bool
	Select ListSelect
	Return ListReturn
	// Interrupt, if not nil, is asked now and then; its error ends the listing.
	Interrupt func() error
}

// ListSelect says which names are answered; several must all hold.
type ListSelect struct {
	Subscribed     bool // the user's subscriptions, existing or not
	RecursiveMatch bool // their ancestors too; not without Subscribed or SpecialUse
	SpecialUse     bool // own mailboxes that have a special use
	Remote         bool // changes nothing: there is nothing remote
}

// ListReturn says what is told of each name.
type ListReturn struct {
	Subscribed bool // implied by ListSelect.Subscribed
	Children   bool // told always
	SpecialUse bool // implied by ListSelect.SpecialUse
	MyRights   bool
	// Status says that the caller sends STATUS after each row. A mailbox that
	// the user may not read is \Noselect then, and has none (RFC 5819 section 2).
	Status bool
	// Location asks for Server and Outcome of each row. Without it, what others
	// share is answered from the postings alone.
	Location bool
}

// MaxPatterns is how many patterns one LIST may have.
const MaxPatterns = 100

// ListSummary ends a LIST that answered to its end.
type ListSummary struct {
	// Complete: every backend was heard whole, and all that it states has entered the
	// listing, so that nothing can be missing.
	Complete bool
	Missing  []directory.BackendName // those of which that is not so, by name
}

// List calls emit with each row of the answer: INBOX, own mailboxes, other
// users', shared ones, each class in order of the keys. The row is List's
// again when emit returns; its strings may be kept. It costs what the user
// sees under the patterns' literal beginnings, not what exists.
//
// A mailbox is answered when it is routed or was (not an orphaned fork) and
// its stored ACL gives the user l. An administrator is answered every mailbox.
//
// Errors: ErrInvalidPattern without patterns, ErrTooLarge for more than
// MaxPatterns, ErrInvalid for options or a namespace that make no sense; what
// emit returns; ErrCorrupt, ErrFormat. After an error the rows emitted are not
// the whole answer.
func (m *Machine) List(r kv.Reader, q ListQuery, emit func(*ListRow) error) (ListSummary, error) {
	s, err := m.state(r)
	if err != nil {
		return ListSummary{}, err
	}
	l, err := newLister(s, q, emit)
	if err != nil {
		return ListSummary{}, err
	}
	switch {
	case len(l.patterns) == 0:
		err = l.separator()
	case q.LSUB:
		err = l.lsub()
	case q.Select.Subscribed || q.Select.SpecialUse:
		err = l.selected()
	default:
		err = l.walk()
	}
	if err != nil {
		return ListSummary{}, err
	}
	var sum ListSummary
	sum.Missing, sum.Complete = s.missing()
	entering, err := s.entering()
	if err != nil || len(entering) == 0 {
		return sum, err
	}
	sum.Missing = append(slices.Clone(sum.Missing), entering...)
	slices.Sort(sum.Missing)
	return ListSummary{Missing: slices.Compact(sum.Missing)}, nil
}

// entering returns the servers whose facts a sweep goes over: one that has just come
// to count, or that a group has just taken in, enters the listing in its steps.
func (s *state) entering() (servers []directory.BackendName, err error) {
	return servers, eachRow(s.r, bucketSweep, nil, func(_, b []byte) error {
		w, err := decodeSweep(b)
		if err == nil && w.Server != 0 {
			servers = append(servers, s.name(w.Server))
		}
		return err
	})
}

// lister answers one LIST.
type lister struct {
	visited  int // mailboxes so far
	s        *state
	q        ListQuery
	who      directory.Principal
	ns       directory.Namespace
	alt      bool // the alternative form: never an administrator's
	dav      bool
	extended bool
	patterns []directory.Pattern
	emit     func(*ListRow) error

	weigher weigher
	own     *mailboxScan // of the own classes, one after the other
	posted  *postings    // of the classes after them; nil until needed
	other   *mailboxScan // of single mailboxes that are posted; nil until needed

	// The mailbox visited last, and its row if it is still to be emitted.
	last    shown
	pending bool
	row     ListRow
	// The key of the last mailbox that is a first level without domain.
	lone []byte

	scratch []byte // the present view's form
	goal    []byte // a key to look up
	past    []byte // what pastParent returned
}

// shown is a name as the user sees it.
type shown struct {
	key    []byte // order key
	name   directory.MailboxName
	client string
	base   string // client without the domain that administrators see last
	domain string // for administrators: the names of each domain are a tree
}

func newLister(s *state, q ListQuery, emit func(*ListRow) error) (*lister, error) {
	switch {
	case len(q.Patterns) == 0:
		return nil, refuse(directory.ErrInvalidPattern, "a LIST without patterns")
	case len(q.Patterns) > MaxPatterns:
		return nil, refuse(directory.ErrTooLarge, "%d patterns in a LIST, at most %d", len(q.Patterns), MaxPatterns)
	case q.LSUB && q.Select != ListSelect{Remote: q.Select.Remote}:
		return nil, refuse(directory.ErrInvalid, "LSUB with selection options")
	case q.Select.RecursiveMatch && !q.Select.Subscribed && !q.Select.SpecialUse:
		return nil, refuse(directory.ErrInvalid, "RECURSIVEMATCH without an option that selects")
	}
	if err := q.Namespace.Validate(); err != nil {
		return nil, err
	}
	l := &lister{
		s: s, q: q, who: q.Principal, ns: q.Namespace, dav: q.DAV, emit: emit,
		alt:     q.Namespace.Alt && !q.Principal.Admin,
		weigher: newWeigher(q.Principal),
		own:     newMailboxScan(s),
	}
	l.extended = q.Extended || q.DAV || len(q.Patterns) > 1 || q.Select != ListSelect{} ||
		q.Return.Subscribed || q.Return.Children || q.Return.MyRights || q.Return.Status
	l.q.Return.Subscribed = q.Return.Subscribed || q.Select.Subscribed
	l.q.Return.SpecialUse = q.Return.SpecialUse || q.Select.SpecialUse
	for _, p := range q.Patterns {
		if p == "" {
			continue // a question for the separator, or nothing
		}
		p = directory.Interpret(q.Reference, p, l.ns.Sep)
		if q.InboxOnly && !l.extended && p == "*" {
			p = "INBOX*"
		}
		l.patterns = append(l.patterns, directory.CompilePattern(p, l.ns.Sep))
	}
	return l, nil
}

// separator answers an empty pattern: basic LIST asks by it for the separator
// alone, whatever the reference (RFC 9051 6.3.9); elsewhere it matches nothing.
func (l *lister) separator() error {
	if l.extended || l.q.LSUB {
		return nil
	}
	l.row = ListRow{Attributes: AttrNoselect}
	return l.emit(&l.row)
}

// walk answers a LIST that selects nothing. It visits what the user sees, in
// order, and makes of each visit the rows of parents that are no mailboxes the
// user sees, then the row of the mailbox. That one waits for the next visit,
// for it tells whether there are children.
func (l *lister) walk() error {
	ranges := l.ranges()
	for class := directory.ClassInbox; class <= directory.ClassShared; class++ {
		if len(ranges[class]) == 0 {
			continue
		}
		v := l.view(class, ranges[class])
		err := v.seek(nil)
		for err == nil && v.key != nil {
			if l.visited++; l.visited%256 == 0 && l.q.Interrupt != nil {
				if err = l.q.Interrupt(); err != nil {
					break
				}
			}
			var skip int
			if skip, err = l.visit(v); err != nil {
				break
			}
			switch past := l.pastParent(v, skip); {
			case skip == 0:
				err = v.next()
			case past == nil: // all of the class is below it
				v.key = nil
			default:
				err = v.seek(past)
			}
		}
		if err != nil {
			return err
		}
	}
	return l.flush(false)
}

// visit makes the rows for v's present mailbox. If no pattern can match below
// one of its parents, it returns that parent's depth in client form, and the
// mailbox is of no further interest; else 0.
func (l *lister) visit(v *view) (skip int, err error) {
	now := l.shown(v.key, v.name, v.form)
	if bytes.IndexByte(v.key, directory.KeyLevelSep) < 0 && bytes.IndexByte(v.key, directory.KeyDomainSep) < 0 {
		l.lone = v.key
	}
	known := now.common(l.last, l.ns.Sep)
	if err := l.settleChildren(v, known); err != nil {
		return 0, err
	}
	last := l.last
	l.last = now
	depth := 0
	for i := range len(now.base) {
		if now.base[i] != l.ns.Sep {
			continue
		}
		depth++
		if i > known {
			if err := l.parent(v.class, v.key, l.parentForm(now, i), depth); err != nil {
				return 0, err
			}
		} else if i < len(last.base) {
			continue // looked at before
		}
		if !l.couldMatchBelow(now.base[:i]) {
			return depth, nil
		}
	}
	if !l.matches(now.client) {
		return 0, nil
	}
	l.row = ListRow{Name: now.client, Mailbox: v.name}
	there, err := l.describe(v.class, v.key)
	l.pending = there
	return 0, err
}

// shown returns the name at key with its client form, which it copies.
func (l *lister) shown(key []byte, name directory.MailboxName, form []byte) shown {
	s := shown{key: key, name: name, client: string(form)}
	s.base = s.client
	if l.who.Admin {
		s.base = s.client[:len(name.Local())] // levels keep their length
		s.domain = name.Domain()
	}
	return s
}

// parentForm returns the client form of the parent that ends at base[i].
func (l *lister) parentForm(s shown, i int) string {
	if len(s.base) == len(s.client) {
		return s.client[:i]
	}
	var buf [directory.MaxName]byte
	form, _ := l.ns.AppendClient(buf[:0], s.name[:len(s.name)-len(s.base)+i], l.who)
	return string(form)
}

// common returns the length of the longest text that both s.base and t.base
// are, or are below in the same tree; 0 if there is none.
func (s shown) common(t shown, sep byte) int {
	a, b := s.base, t.base
	if s.domain != t.domain {
		// Administrators see the users of all domains below one "user".
		root := "user" + string(rune(sep))
		if strings.HasPrefix(a, root) && strings.HasPrefix(b, root) {
			return len("user")
		}
		return 0
	}
	n := min(len(a), len(b))
	common := 0
	for i := range n {
		if a[i] != b[i] {
			return common
		}
		if a[i] == sep {
			common = i
		}
	}
	if len(a) > n && a[n] != sep || len(b) > n && b[n] != sep {
		return common
	}
	return n
}

// settleChildren emits the row that waits; v's present mailbox is the next
// visible one and shares known octets of whole levels with it.
func (l *lister) settleChildren(v *view, known int) error {
	if !l.pending {
		return nil
	}
	if known == len(l.last.base) {
		return l.flush(true)
	}
	below, err := l.belowDomain(v.class, l.last.key, v.key)
	if err != nil {
		return err
	}
	return l.flush(below)
}

// belowDomain looks for what is below the mailbox at key where next, the next
// visible one, hides it: the mailboxes of a domain stand between a first level
// that is called like it and what is below that.
func (l *lister) belowDomain(class directory.Class, key, next []byte) (bool, error) {
	if len(next) <= len(key) || next[len(key)] != directory.KeyDomainSep || !hasPrefix(next, key) {
		return false, nil
	}
	probe := *l // the views in use stay where they are
	probe.own, probe.posted, probe.other, probe.scratch = newMailboxScan(l.s), nil, nil, nil
	below := append(bytes.Clone(key), directory.KeyLevelSep)
	v := probe.view(class, []directory.KeyRange{{Lo: below, Hi: pastBelow(key)}})
	err := v.seek(nil)
	return v.key != nil, err
}

// flush emits the row that waits, if one does.
func (l *lister) flush(hasChildren bool) error {
	if !l.pending {
		return nil
	}
	l.pending = false
	if hasChildren || !l.q.LSUB {
		l.row.Attributes |= childAttribute(hasChildren)
	}
	return l.emit(&l.row)
}

func childAttribute(has bool) Attributes {
	if has {
		return AttrHasChildren
	}
	return AttrHasNoChildren
}

// parent emits the row of a parent of the mailbox at below, if a pattern asks
// for it: client is no mailbox that the user sees, depth levels deep. A pattern
// that ends in '*' does not: it would match what is below too.
func (l *lister) parent(class directory.Class, below []byte, client string, depth int) error {
	if !slices.ContainsFunc(l.patterns, func(p directory.Pattern) bool { return !p.EndsInBareStar() && p.Match(client) }) {
		return nil
	}
	key := l.parentKey(class, below, depth)
	if key != nil && bytes.Equal(key, l.lone) {
		return nil // it is a mailbox: a domain's mailboxes came between
	}
	row, err := l.parentRow(client, key)
	if err != nil {
		return err
	}
	row.Attributes |= AttrHasChildren
	return l.emit(&row)
}

// parentRow begins the row of a name that is no mailbox the user sees. key is
// as parentKey returns it.
func (l *lister) parentRow(client string, key []byte) (ListRow, error) {
	row := ListRow{Name: client, Attributes: AttrNoselect}
	if l.extended && !l.q.LSUB {
		row.Attributes = AttrNonExistent // which implies the other
	}
	if key == nil {
		return row, nil
	}
	var err error
	if row.Mailbox, err = directory.NameFromKey(key); err != nil {
		return row, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if l.q.Return.Subscribed && l.subscribed(key) {
		row.Attributes |= AttrSubscribed
	}
	return row, nil
}

// parentKey returns the order key of the parent at depth, counted in levels of
// the client form, of the mailbox at key; nil if that parent stands above the
// whole class and has no name of its own.
func (l *lister) parentKey(class directory.Class, key []byte, depth int) []byte {
	switch class {
	case directory.ClassOwn, directory.ClassAltFolders:
		depth++ // INBOX or "Alt Folders" for "user" and the user's level
		if l.alt && class == directory.ClassOwn {
			depth++
		}
		if class == directory.ClassAltFolders && depth == 2 {
			return nil
		}
	case directory.ClassInboxChildren:
		if depth == 1 {
			return cutKey(key, 2) // INBOX itself
		}
		depth += 2
	case directory.ClassOtherUsers:
		if depth == 1 {
			return nil // "user" of every domain
		}
	case directory.ClassShared:
		if l.alt {
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
	return cutKey(key, depth)
}

// pastParent returns the first key after all those below the parent at depth
// of v's present mailbox; nil if all the class is below it. The result is the
// lister's own and good until the next call.
func (l *lister) pastParent(v *view, depth int) []byte {
	if depth == 0 {
		return nil
	}
	parent := l.parentKey(v.class, v.key, depth)
	if parent == nil {
		return nil
	}
	l.past = append(append(l.past[:0], parent...), directory.KeyLevelSep+1)
	return l.past
}

func (l *lister) matches(client string) bool {
	for i := range l.patterns {
		if l.patterns[i].Match(client) {
			return true
		}
	}
	return false
}

func (l *lister) couldMatchBelow(parent string) bool {
	for i := range l.patterns {
		if l.patterns[i].CouldMatchBelow(parent) {
			return true
		}
	}
	return false
}

// subscribed says whether the user subscribes to the name at that order key.
func (l *lister) subscribed(key []byte) bool {
	if l.who.User == "" {
		return false
	}
	l.goal = append(append(append(l.goal[:0], l.who.User...), 0), key...)
	return l.s.r.Get(bucketSubscription, l.goal) != nil
}

// at moves a scan of single mailboxes to key, unless it is there, and returns it.
func (l *lister) at(key []byte) (*mailboxScan, error) {
	if l.other == nil {
		l.other = newMailboxScan(l.s)
	}
	if !bytes.Equal(l.other.key, key) {
		if err := l.other.seek(key); err != nil {
			return nil, err
		}
	}
	return l.other, nil
}

// weighed returns what the ACL of the routed fact gives the user: nothing if
// the mailbox is not listed.
func (l *lister) weighed(key []byte) (directory.Rights, error) {
	c, err := l.at(key)
	if err != nil || !bytes.Equal(c.key, key) {
		return 0, err
	}
	fact := c.listed()
	if fact == nil {
		return 0, nil
	}
	return l.weigher.weigh(fact.ACL)
}

// describe fills in of the row of a visible mailbox all but its children. It
// returns false if the mailbox is not listed after all: what was posted of it
// is about to go.
func (l *lister) describe(class directory.Class, key []byte) (bool, error) {
	own := class <= directory.ClassAltFolders
	if ret := &l.q.Return; !own && !l.who.Admin && !ret.Location && !ret.MyRights && !ret.Status {
		// It is posted, so it is listed, and nothing else is asked.
		if ret.Subscribed && l.subscribed(key) {
			l.row.Attributes |= AttrSubscribed
		}
		return true, nil
	}
	c := l.own
	if !bytes.Equal(c.key, key) {
		var err error
		if c, err = l.at(key); err != nil || !bytes.Equal(c.key, key) {
			return false, err
		}
	}
	fact := c.listed()
	if fact == nil {
		return false, nil
	}
	row := &l.row
	if l.q.Return.Location {
		row.Server, row.Outcome = l.s.where(row.Mailbox, c.route)
	}
	if own && class != directory.ClassInbox && l.q.Return.SpecialUse {
		row.SpecialUse = string(fact.SpecialUse)
	}
	if class == directory.ClassAltFolders && l.isAltInbox(key) {
		row.Attributes |= AttrNoinferiors
	}
	if l.q.Return.MyRights || l.q.Return.Status {
		// What is posted is not all: entries without l and r are not.
		stored, err := l.weigher.weigh(fact.ACL)
		if err != nil {
			return false, err
		}
		if l.q.Return.MyRights {
			row.Rights = directory.MyRights(stored, own, l.who.Admin)
		}
		if l.q.Return.Status && !stored.Has(directory.RightRead) && !l.who.Admin {
			row.Attributes |= AttrNoselect
		}
	}
	if l.q.Return.Subscribed && l.subscribed(key) {
		row.Attributes |= AttrSubscribed
	}
	return true, nil
}

// isAltInbox says whether the own mailbox at key is the one that is called
// INBOX below the inbox: what is below it shows below INBOX, so below "Alt
// Folders" it has no children and can have none.
func (l *lister) isAltInbox(key []byte) bool {
	return strings.HasSuffix(string(key), "\x1fINBOX") && len(cutKey(key, 2))+len("\x1fINBOX") == len(key)
}

// where is the route of name in two words: the outcome, holds among them, and
// the server that goes with it.
func (s *state) where(name directory.MailboxName, route directory.Route) (directory.BackendName, directory.Outcome) {
	if s.hold(name, route.Home) != nil {
		return "", directory.Held
	}
	if route.Server == 0 {
		return "", route.Outcome
	}
	return s.name(route.Server), route.Outcome
}

// view returns a view of one class, bounded by ranges. It takes the place of
// the view before it, which must not be used again.
func (l *lister) view(class directory.Class, ranges []directory.KeyRange) *view {
	v := &view{l: l, class: class, ranges: ranges}
	switch {
	case l.who.Admin || class < directory.ClassOtherUsers:
		v.scan = l.own
	default:
		if l.posted == nil {
			l.posted = newPostings(l.s, l.who)
		}
		v.posted = l.posted
		if class == directory.ClassOtherUsers {
			v.posted.enter(classOtherUsers)
		} else {
			v.posted.enter(classShared)
		}
	}
	return v
}

// classRanges are the order keys to read, by class.
type classRanges [directory.ClassShared + 1][]directory.KeyRange

// ranges returns where the mailboxes are that the patterns' literal beginnings
// leave over.
func (l *lister) ranges() classRanges {
	prefixes := make([]string, 0, len(l.patterns))
	for _, p := range l.patterns {
		prefixes = append(prefixes, p.LiteralPrefix())
	}
	return l.rangesOf(prefixes...)
}

func (l *lister) rangesOf(prefixes ...string) classRanges {
	var all directory.ListRanges
	for _, p := range prefixes {
		r := l.ns.KeyRanges(p, l.who)
		all.Own = append(all.Own, r.Own...)
		all.Others = append(all.Others, r.Others...)
		all.Shared = append(all.Shared, r.Shared...)
	}
	var by classRanges
	by[directory.ClassOtherUsers] = unite(all.Others)
	by[directory.ClassShared] = unite(all.Shared)
	own := unite(all.Own)
	if len(own) == 0 {
		return by
	}
	inbox, err := l.who.User.Inbox()
	if err != nil {
		return by // there are no own mailboxes of such a user
	}
	root := inbox.AppendKey(nil)
	below := append(bytes.Clone(root), directory.KeyLevelSep)
	by[directory.ClassInbox] = within(own, directory.KeyRange{Lo: root, Hi: below})
	by[directory.ClassOwn] = within(own, directory.KeyRange{Lo: below, Hi: pastBelow(root)})
	if l.alt {
		children := append(bytes.Clone(below), "INBOX\x1f"...)
		by[directory.ClassInboxChildren] = within(own, directory.KeyRange{Lo: children, Hi: pastBelow(children[:len(children)-1])})
		for _, r := range l.altFolders() {
			by[directory.ClassAltFolders] = append(by[directory.ClassAltFolders], within(own, r)...)
		}
	}
	return by
}

// altFolders returns where the own mailboxes are that show below "Alt
// Folders", and few others.
func (l *lister) altFolders() []directory.KeyRange {
	return unite(l.ns.KeyRanges("Alt Folders"+string(rune(l.ns.Sep)), l.who).Own)
}

// unite sorts ranges and joins those that meet.
func unite(ranges []directory.KeyRange) []directory.KeyRange {
	slices.SortFunc(ranges, func(a, b directory.KeyRange) int { return bytes.Compare(a.Lo, b.Lo) })
	joined := ranges[:0]
	for _, r := range ranges {
		if i := len(joined) - 1; i >= 0 && (joined[i].Hi == nil || bytes.Compare(r.Lo, joined[i].Hi) <= 0) {
			if joined[i].Hi != nil && (r.Hi == nil || bytes.Compare(r.Hi, joined[i].Hi) > 0) {
				joined[i].Hi = r.Hi
			}
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// within returns the parts of ranges that lie in bounds, which has an end.
func within(ranges []directory.KeyRange, bounds directory.KeyRange) []directory.KeyRange {
	var in []directory.KeyRange
	for _, r := range ranges {
		if bytes.Compare(r.Lo, bounds.Lo) < 0 {
			r.Lo = bounds.Lo
		}
		if r.Hi == nil || bytes.Compare(r.Hi, bounds.Hi) > 0 {
			r.Hi = bounds.Hi
		}
		if bytes.Compare(r.Lo, r.Hi) < 0 {
			in = append(in, r)
		}
	}
	return in
}
