package directory

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// The first levels of the alternative form, Cyrus's defaults.
const (
	altOtherUsers = "Other Users"
	altShared     = "Shared Folders"
	altFolders    = "Alt Folders"
)

// A Namespace says how mailbox names look to clients: Cyrus's altnamespace,
// unixhierarchysep, virtdomains and crossdomains. For user alice, canonical
// names on the left:
//
//	user.alice          INBOX            INBOX
//	user.alice.Work.Q1  INBOX.Work.Q1    Work/Q1
//	user.alice.INBOX.x  INBOX.INBOX.x    INBOX/x
//	user.alice.INBOX    INBOX.INBOX      Alt Folders/INBOX
//	user.bob.Shared     user.bob.Shared  Other Users/bob/Shared
//	shared.pub          shared.pub       Shared Folders/shared/pub
//
// with Alt false and Sep '.', and with Alt true and Sep '/'. Administrators
// are never in the alternative form and have no INBOX: they see
// user.alice.Work.Q1, with the domain last ("user/zoe/Box@other.org").
//
// A user sees the names of the own domain, without it; an administrator those
// of other domains where there are VirtDomains, for elsewhere no form has a
// domain. With CrossDomains every other user and every first shared level
// carries its domain, the default one too: "Other Users/bob@example.com/Shared".
type Namespace struct {
	Alt           bool   // own folders at the top, others below "Other Users"
	Sep           byte   // '.' or '/': between levels
	VirtDomains   bool   // users and mailboxes have domains
	CrossDomains  bool   // users see the mailboxes of other domains
	DefaultDomain string // the one that canonical names leave out; may be ""
}

// Validate checks that the settings make sense together; the other methods
// expect that they do.
//
// Errors: ErrInvalid.
func (ns Namespace) Validate() error {
	switch {
	case ns.Sep != '.' && ns.Sep != '/':
		return fmt.Errorf("%w: hierarchy separator %q: it is '.' or '/'", ErrInvalid, ns.Sep)
	case ns.CrossDomains && !ns.VirtDomains:
		return fmt.Errorf("%w: crossdomains without virtual domains", ErrInvalid)
	case ns.CrossDomains && ns.DefaultDomain == "":
		return fmt.Errorf("%w: crossdomains without a default domain to show", ErrInvalid)
	}
	if ns.DefaultDomain != "" {
		if reason := hostFault(ns.DefaultDomain); reason != "" {
			return fmt.Errorf("%w: default domain %q: %s", ErrInvalid, clip(ns.DefaultDomain), reason)
		}
	}
	return nil
}

// A Class is a part of a LIST answer. Classes are answered in this order, and
// names in each by their order keys.
type Class uint8

const (
	ClassHidden        Class = iota // not shown to that principal at all
	ClassInbox                      // INBOX
	ClassInboxChildren              // alternative form: what is below INBOX there
	ClassOwn                        // the user's other mailboxes
	ClassAltFolders                 // alternative form: own names that others would hide
	ClassOtherUsers
	ClassShared
)

func (c Class) String() string {
	names := [...]string{"hidden", "inbox", "inbox children", "own", "alt folders", "other users", "shared"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// ToClient returns n's client form for p. False if n is not shown to p in this
// namespace, whatever the rights: another domain's mailbox, a deleted one, a
// shared one called INBOX. Rights and hidden trees (IsHiddenTree) are not
// looked at.
func (ns Namespace) ToClient(n MailboxName, p Principal) (string, bool) {
	var buf [MaxName + 64]byte
	dst, class := ns.AppendClient(buf[:0], n, p)
	return string(dst), class != ClassHidden
}

// Class returns the part of p's LIST that n belongs to; ClassHidden where
// ToClient says false.
func (ns Namespace) Class(n MailboxName, p Principal) Class {
	class, _ := ns.classify(n, p)
	return class
}

// classify returns n's class and, if n is p's own, its levels below the inbox.
func (ns Namespace) classify(n MailboxName, p Principal) (class Class, rest string) {
	if p.Admin {
		if !ns.VirtDomains && n.Domain() != "" {
			return ClassHidden, ""
		}
		if _, ok := n.userLevel(); ok || n.Local() == "user" {
			return ClassOtherUsers, ""
		}
		return ClassShared, ""
	}
	rest, own := n.below(p.User)
	switch {
	case own && rest == "":
		return ClassInbox, ""
	case own && !ns.Alt:
		return ClassOwn, rest
	case own:
		return altClass(rest), rest
	case n.IsDeleted(), !ns.CrossDomains && n.Domain() != p.User.Domain():
		return ClassHidden, ""
	}
	local := n.Local()
	if strings.HasPrefix(local, "user.") || local == "user" {
		return ClassOtherUsers, ""
	}
	if first, _, _ := strings.Cut(local, "."); !ns.Alt && strings.EqualFold(first, "INBOX") {
		return ClassHidden, "" // it would look like the own INBOX
	}
	return ClassShared, ""
}

// altClass returns the class of an own mailbox in the alternative form, by its
// levels below the inbox. Names that would look like INBOX or like one of the
// three first levels go below "Alt Folders".
func altClass(rest string) Class {
	first, _, deeper := strings.Cut(rest, ".")
	switch {
	case first == "INBOX" && deeper:
		return ClassInboxChildren
	case strings.EqualFold(first, "INBOX"), first == altOtherUsers, first == altShared, first == altFolders:
		return ClassAltFolders
	}
	return ClassOwn
}

// AppendClient appends what ToClient returns to dst and returns n's class with
// it; dst unchanged for ClassHidden. For rows of LIST, without allocation.
func (ns Namespace) AppendClient(dst []byte, n MailboxName, p Principal) ([]byte, Class) {
	class, rest := ns.classify(n, p)
	switch class {
	case ClassHidden:
	case ClassInbox:
		dst = append(dst, "INBOX"...)
	case ClassInboxChildren:
		dst = ns.appendLevels(dst, rest)
	case ClassOwn:
		if !ns.Alt {
			dst = append(dst, "INBOX"...)
			dst = append(dst, ns.Sep)
		}
		dst = ns.appendLevels(dst, rest)
	case ClassAltFolders:
		dst = append(dst, altFolders...)
		dst = append(dst, ns.Sep)
		dst = ns.appendLevels(dst, rest)
	default:
		if p.Admin {
			return ns.appendAdmin(dst, n, p), class
		}
		dst = ns.appendForeign(dst, n, class)
	}
	return dst, class
}

// appendForeign appends the form of another user's mailbox or a shared one.
func (ns Namespace) appendForeign(dst []byte, n MailboxName, class Class) []byte {
	local := n.Local()
	if class == ClassOtherUsers {
		root := "user"
		if ns.Alt {
			root = altOtherUsers
		}
		dst = append(dst, root...)
		if local == "user" {
			return dst
		}
		dst = append(dst, ns.Sep)
		local = local[len("user."):]
	} else if ns.Alt {
		dst = append(dst, altShared...)
		dst = append(dst, ns.Sep)
	}
	if !ns.CrossDomains {
		return ns.appendLevels(dst, local)
	}
	first, rest, deeper := strings.Cut(local, ".")
	dst = ns.appendLevels(dst, first)
	dst = append(dst, '@')
	domain := n.Domain()
	if domain == "" {
		domain = ns.DefaultDomain
	}
	for i := range len(domain) {
		c := domain[i]
		if c == '.' && ns.Sep == '.' {
			c = '^' // a dot in a level, as everywhere
		}
		dst = append(dst, c)
	}
	if deeper {
		dst = append(dst, ns.Sep)
		dst = ns.appendLevels(dst, rest)
	}
	return dst
}

// appendAdmin appends the administrators' form. The default domain is shown
// only where the name would be read otherwise without it: if it has an '@', or
// if the administrator is of another domain.
func (ns Namespace) appendAdmin(dst []byte, n MailboxName, p Principal) []byte {
	domain := n.Domain()
	local := n.Local()
	if local == "user" {
		return append(dst, local...) // the parent of all users, of every domain
	}
	if domain == "" && ns.VirtDomains && (p.User.Domain() != "" || strings.IndexByte(local, '@') >= 0) {
		domain = ns.DefaultDomain
	}
	dst = ns.appendLevels(dst, local)
	if domain != "" {
		dst = append(dst, '@')
		dst = append(dst, domain...)
	}
	return dst
}

// appendLevels appends canonical levels in client form.
func (ns Namespace) appendLevels(dst []byte, levels string) []byte {
	i := len(dst)
	dst = append(dst, levels...)
	if ns.Sep == '.' {
		return dst
	}
	for ; i < len(dst); i++ {
		switch dst[i] {
		case '.':
			dst[i] = ns.Sep
		case '^':
			dst[i] = '.'
		}
	}
	return dst
}

// CutDomain cuts the domain, with its '@', off an administrator's client form
// where there are virtual domains: client is path and domain. Hierarchy, and
// Pattern.CouldMatchBelow, are about path, since what is below
// "team@other.org" is "team/docs@other.org". All other forms have no domain
// at the end and come back as path.
func (ns Namespace) CutDomain(client string, p Principal) (path, domain string) {
	if !p.Admin || !ns.VirtDomains {
		return client, ""
	}
	i := strings.LastIndexByte(client, '@')
	if i < 0 || hostFault(client[i+1:]) != "" {
		return client, ""
	}
	return client[:i], client[i:]
}

// Parents yields the client forms above client, itself one of p's, from the
// top: for "Other Users/bob/Deep" "Other Users" and "Other Users/bob". Whether
// they are mailboxes is not asked.
func (ns Namespace) Parents(client string, p Principal) iter.Seq[string] {
	return func(yield func(string) bool) {
		path, domain := ns.CutDomain(client, p)
		for i := range len(path) {
			if path[i] != ns.Sep {
				continue
			}
			parent := path[:i]
			if domain != "" && parent != "user" {
				parent += domain
			}
			if !yield(parent) {
				return
			}
		}
	}
}

// FromClient returns the canonical name that s means to p. It accepts more
// than ToClient gives: separators at either end or doubled are dropped, INBOX
// as the first level is read in any case, and one's own mailboxes answer to
// "user.alice.Drafts" too.
//
// Errors: ErrInvalidName, also for a name that can mean nothing to p, such as
// the anonymous login's INBOX; ErrTooLarge.
//
// RFC 3501 5.1.
func (ns Namespace) FromClient(s string, p Principal) (MailboxName, error) {
	if len(s) > 4*MaxName { // whatever its separators
		return "", fmt.Errorf("%w: mailbox of %d octets", ErrTooLarge, len(s))
	}
	n, reason := ns.fromClient(s, p)
	if reason != "" {
		return "", fmt.Errorf("%w: mailbox %q: %s", ErrInvalidName, clip(s), reason)
	}
	return ParseName(n)
}

func (ns Namespace) fromClient(s string, p Principal) (name, reason string) {
	if strings.IndexByte(s, '!') >= 0 {
		return "", "it has a '!'"
	}
	if p.Admin {
		return ns.fromAdmin(s, p)
	}
	levels, reason := ns.clientLevels(s)
	if reason != "" {
		return "", reason
	}
	first, rest := levels, ""
	if i := strings.IndexByte(levels, '.'); i >= 0 {
		first, rest = levels[:i], levels[i+1:]
	}
	inbox := strings.EqualFold(first, "INBOX")
	switch {
	case !ns.Alt && inbox:
		return ownName(rest, p)
	case !ns.Alt && first == "user", ns.Alt && first == altOtherUsers:
		if rest == "" {
			return "", "it is the parent of all users, no mailbox"
		}
		return ns.foreignName("user.", rest, p)
	case !ns.Alt:
		return ns.foreignName("", levels, p)
	case first == altShared && rest == "":
		return "", "it is the parent of all shared mailboxes, no mailbox"
	case first == altShared:
		return ns.foreignName("", rest, p)
	case first == altFolders && rest == "":
		return "", "it is the parent of own mailboxes, no mailbox"
	case first == altFolders:
		return ownName(rest, p)
	case inbox && rest == "":
		return ownName("", p)
	case inbox:
		return ownName("INBOX."+rest, p)
	}
	return ownName(levels, p)
}

// clientLevels turns client-form levels into canonical ones.
func (ns Namespace) clientLevels(s string) (levels, reason string) {
	buf := make([]byte, 0, MaxName)
	for i := range len(s) {
		switch c := s[i]; {
		case c == ns.Sep:
			if len(buf) > 0 && buf[len(buf)-1] != '.' {
				buf = append(buf, '.')
			}
		case c == '/', c == '^' && ns.Sep == '/':
			return "", fmt.Sprintf("it has a %q", c)
		case c == '.':
			buf = append(buf, '^')
		default:
			buf = append(buf, c)
		}
	}
	buf = bytes.TrimSuffix(buf, []byte{'.'})
	if len(buf) == 0 {
		return "", "it is empty"
	}
	return string(buf), ""
}

func domainPrefix(domain string) string {
	if domain == "" {
		return ""
	}
	return domain + "!"
}

// ownName returns p's mailbox with those levels below the inbox.
func ownName(rest string, p Principal) (name, reason string) {
	switch {
	case p.User == "":
		return "", "the anonymous login has no mailboxes"
	case rest == "":
		return string(p.User.inbox()), ""
	}
	return string(p.User.inbox()) + "." + rest, ""
}

// foreignName returns root, "user." or "" for shared mailboxes, and levels in
// the domain that the first of the levels carries, or in p's.
func (ns Namespace) foreignName(root, levels string, p Principal) (name, reason string) {
	domain := p.User.Domain()
	first, rest, deeper := strings.Cut(levels, ".")
	if ns.CrossDomains {
		domain = ""
		if i := strings.LastIndexByte(first, '@'); i >= 0 {
			first, domain = first[:i], strings.ReplaceAll(first[i+1:], "^", ".")
			if reason := hostFault(domain); reason != "" {
				return "", "domain: " + reason
			}
			if domain == ns.DefaultDomain {
				domain = ""
			}
		}
		if levels = first; deeper {
			levels += "." + rest
		}
	}
	if root == "" {
		switch {
		case first == "user":
			return "", "it is no shared mailbox"
		case first == "DELETED" && deeper:
			return "", "deleted mailboxes are for administrators"
		case !ns.Alt && strings.EqualFold(first, "INBOX"):
			return "", "INBOX has no domain"
		}
	}
	return domainPrefix(domain) + root + levels, ""
}

// fromAdmin reads the administrators' form. What stands after the last '@' is
// the domain, if it can be one; without it the administrator's own.
func (ns Namespace) fromAdmin(s string, p Principal) (name, reason string) {
	domain := ""
	if ns.VirtDomains {
		domain = p.User.Domain()
		if i := strings.LastIndexByte(s, '@'); i >= 0 && hostFault(s[i+1:]) == "" {
			s, domain = s[:i], s[i+1:]
			if domain == ns.DefaultDomain {
				domain = ""
			}
		}
	}
	levels, reason := ns.clientLevels(s)
	return domainPrefix(domain) + levels, reason
}

// Interpret joins a LIST reference and pattern into one pattern: one separator
// is dropped if the reference ends and the pattern begins with one. A first
// level without wildcard that spells inbox in any case becomes INBOX.
//
// RFC 3501 6.3.8; the folding is RFC 3501 5.1, where Cyrus 3.6.1 answers nothing.
func Interpret(reference, pattern string, sep byte) string {
	if strings.HasSuffix(reference, string(rune(sep))) && strings.HasPrefix(pattern, string(rune(sep))) {
		pattern = pattern[1:]
	}
	s := reference + pattern
	const inbox = "INBOX"
	if len(s) >= len(inbox) && strings.EqualFold(s[:len(inbox)], inbox) && (len(s) == len(inbox) || s[len(inbox)] == sep) {
		return inbox + s[len(inbox):]
	}
	return s
}

// A KeyRange is the order keys lo <= key < hi; a nil Hi is the end.
type KeyRange struct{ Lo, Hi []byte }

// Contains says whether key lies in r.
func (r KeyRange) Contains(key []byte) bool {
	return bytes.Compare(key, r.Lo) >= 0 && (r.Hi == nil || bytes.Compare(key, r.Hi) < 0)
}

// ListRanges are the order keys to read for one literal prefix, each ascending
// and disjoint. A mailbox whose client form begins with the prefix lies in
// the ranges of its kind. The reverse does not hold where domains are crossed
// or names are folded: look at ToClient, Class and the pattern as well.
type ListRanges struct {
	Own    []KeyRange // ClassInbox to ClassAltFolders; one pass gives all four, mixed
	Others []KeyRange // ClassOtherUsers; the own subtree is left out
	Shared []KeyRange // ClassShared; users' and deleted mailboxes are left out where one range can
}

// KeyRanges returns where p's mailboxes with a client form that begins with
// prefix are, so that a LIST reads no others. A parent that is shown only for
// its children begins with the pattern's prefix, so its children are in the
// ranges too.
//
// Within one domain the ranges are as narrow as the prefix. With CrossDomains,
// and for administrators of virtual domains, domains come in the keys before
// what the prefix says; then a range is everything of its kind, for users with
// CrossDomains until the prefix has the whole first level with its domain. The
// default domain's shared mailboxes have other domains among them in the key
// order: KeyAfterDomain seeks over one.
func (ns Namespace) KeyRanges(prefix string, p Principal) ListRanges {
	if !ns.canBegin(prefix) {
		return ListRanges{}
	}
	if p.Admin {
		return ns.adminRanges(prefix)
	}
	var r ListRanges
	domain := keyDomain(p.User.Domain())
	own := KeyRange{}
	if p.User != "" {
		own.Lo, own.Hi = p.User.inbox().SubtreeKeys()
		r.Own = ns.ownRanges(prefix, own.Lo)
	}
	users := string(ns.Sep)
	if ns.Alt {
		users = altOtherUsers + users
	} else {
		users = "user" + users
	}
	if rest, ok := below(prefix, users); ok {
		r.Others = ns.foreignRanges(domain, userTree, rest)
		if own.Lo != nil {
			r.Others = subtract(r.Others, own)
		}
	}
	shared := ""
	if ns.Alt {
		shared = altShared + string(ns.Sep)
	}
	if rest, ok := below(prefix, shared); ok {
		r.Shared = ns.foreignRanges(domain, "", rest)
		r.Shared = subtract(r.Shared, prefixRange(domain+userTree))
		r.Shared = subtract(r.Shared, prefixRange(domain+deletedTree))
	}
	return r
}

// What the keys of all users' and of all deleted mailboxes begin with, after
// the domain.
const (
	userTree    = "user\x1f"
	deletedTree = "DELETED\x1f"
)

// canBegin says whether a client-form name can begin with prefix.
func (ns Namespace) canBegin(prefix string) bool {
	for i := range len(prefix) {
		switch c := prefix[i]; {
		case c < 0x20, c >= 0x7F, c == '!', c == '/' && ns.Sep != '/', c == '^' && ns.Sep == '/':
			return false
		}
	}
	return true
}

func keyDomain(domain string) string {
	if domain == "" {
		return ""
	}
	return domain + string(rune(KeyDomainSep))
}

// below says whether names below root can begin with prefix, and with what
// they go on after root then.
func below(prefix, root string) (rest string, ok bool) {
	if len(prefix) <= len(root) {
		return "", strings.HasPrefix(root, prefix)
	}
	return strings.CutPrefix(prefix, root)
}

// keyPart returns what client-form octets become in an order key.
func (ns Namespace) keyPart(s string) string {
	b := []byte(s)
	for i, c := range b {
		switch c {
		case ns.Sep:
			b[i] = KeyLevelSep
		case '^':
			b[i] = '.'
		}
	}
	return string(b)
}

func prefixRange(prefix string) KeyRange {
	return KeyRange{[]byte(prefix), keyAfterPrefix([]byte(prefix))}
}

// foreignRanges returns the keys below root, a part of the key after the
// domain, that go on with the client-form octets rest.
func (ns Namespace) foreignRanges(domain, root, rest string) []KeyRange {
	if !ns.CrossDomains {
		return []KeyRange{prefixRange(domain + root + ns.keyPart(rest))}
	}
	first, deeper, whole := strings.Cut(rest, string(ns.Sep))
	if !whole {
		return []KeyRange{{}} // any domain may follow
	}
	domain = ""
	if i := strings.LastIndexByte(first, '@'); i >= 0 {
		domain = strings.ReplaceAll(first[i+1:], "^", ".")
		if first = first[:i]; domain == ns.DefaultDomain {
			domain = ""
		}
	}
	return []KeyRange{prefixRange(keyDomain(domain) + root + ns.keyPart(first) + string(rune(KeyLevelSep)) + ns.keyPart(deeper))}
}

// ownRanges returns where below the inbox's key the own mailboxes are.
func (ns Namespace) ownRanges(prefix string, inbox []byte) []KeyRange {
	root := string(inbox) + string(rune(KeyLevelSep))
	itself := KeyRange{inbox, []byte(root)}
	children := func(s string) KeyRange { return prefixRange(root + ns.keyPart(s)) }
	if !ns.Alt {
		if strings.HasPrefix("INBOX", prefix) {
			return []KeyRange{{inbox, keyAfterPrefix([]byte(root))}}
		}
		if rest, ok := strings.CutPrefix(prefix, "INBOX"+string(ns.Sep)); ok {
			return []KeyRange{children(rest)}
		}
		return nil
	}
	if prefix == "" {
		return []KeyRange{{inbox, keyAfterPrefix([]byte(root))}}
	}
	ranges := []KeyRange{children(prefix)}
	if strings.HasPrefix("INBOX", prefix) {
		ranges = append(ranges, itself)
	}
	if rest, ok := below(prefix, altFolders+string(ns.Sep)); ok {
		if rest != "" {
			ranges = append(ranges, children(rest))
		} else {
			for _, first := range [...]string{"IN", "In", "iN", "in", altOtherUsers, altShared, altFolders} {
				ranges = append(ranges, children(first))
			}
		}
	}
	return union(ranges)
}

// adminRanges: administrators see all names, users' first.
func (ns Namespace) adminRanges(prefix string) ListRanges {
	all := KeyRange{}
	if !ns.VirtDomains {
		all = prefixRange(ns.keyPart(prefix))
	}
	r := ListRanges{Others: []KeyRange{all}, Shared: []KeyRange{all}}
	if !ns.VirtDomains {
		r.Others = intersect(all, prefixRange(userTree))
		r.Shared = subtract(r.Shared, prefixRange(userTree))
	}
	return r
}

// union sorts ranges and joins those that meet.
func union(ranges []KeyRange) []KeyRange {
	slices.SortFunc(ranges, func(a, b KeyRange) int { return bytes.Compare(a.Lo, b.Lo) })
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

// subtract returns ranges without hole.
func subtract(ranges []KeyRange, hole KeyRange) []KeyRange {
	var left []KeyRange
	for _, r := range ranges {
		left = append(left, intersect(r, KeyRange{nil, hole.Lo})...)
		if hole.Hi != nil {
			left = append(left, intersect(r, KeyRange{hole.Hi, nil})...)
		}
	}
	return left
}

// intersect returns what a and b share, none or one range.
func intersect(a, b KeyRange) []KeyRange {
	r := a
	if bytes.Compare(b.Lo, r.Lo) > 0 {
		r.Lo = b.Lo
	}
	if r.Hi == nil || b.Hi != nil && bytes.Compare(b.Hi, r.Hi) < 0 {
		r.Hi = b.Hi
	}
	if r.Hi != nil && bytes.Compare(r.Lo, r.Hi) >= 0 {
		return nil
	}
	return []KeyRange{r}
}

// QuoteAString returns a mailbox name as a LIST answer prints it: as it is if
// it is an astring without quotes, else a quoted string. NIL is quoted, as
// Cyrus does. s has no CR, LF or NUL: no mailbox name has.
//
// RFC 9051 section 9, astring.
func QuoteAString(s string) string {
	if s != "" && s != "NIL" && strings.IndexFunc(s, notAString) < 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 2)
	b.WriteByte('"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

func notAString(c rune) bool {
	return c <= ' ' || c >= 0x7F || strings.IndexByte(`(){%*"\`, byte(c)) >= 0
}

// Response returns the three parts of a NAMESPACE response: personal, other
// users', shared. Administrators and the anonymous login have no personal one.
//
// RFC 2342 section 5.
func (ns Namespace) Response(p Principal) string {
	sep := string(rune(ns.Sep))
	one := func(prefix string) string {
		return `(("` + prefix + `" "` + sep + `"))`
	}
	personal, users, shared := one("INBOX"+sep), one("user"+sep), one("")
	if ns.Alt && !p.Admin {
		personal, users, shared = one(""), one(altOtherUsers+sep), one(altShared+sep)
	}
	if p.Admin || p.User == "" {
		personal = "NIL"
	}
	return personal + " " + users + " " + shared
}
