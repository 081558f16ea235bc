package directory

import (
	"fmt"
	"iter"
	"strings"
	"unicode/utf8"
)

// Rights is a set of RFC 4314 rights, one bit for each letter.
type Rights uint32

// The rights by letter. RightUser0 to RightUser0<<9 are the digits.
const (
	RightLookup     Rights = 1 << iota // l: the mailbox shows in LIST
	RightRead                          // r: SELECT, STATUS
	RightSeen                          // s: keep \Seen
	RightWrite                         // w: other flags
	RightInsert                        // i: APPEND, COPY into
	RightPost                          // p: mail to its address
	RightCreate                        // k: mailboxes below it
	RightDeleteMbox                    // x: delete, rename
	RightDeleteMsg                     // t: \Deleted
	RightExpunge                       // e
	RightAdmin                         // a: GETACL, SETACL
	RightAnnotate                      // n: message annotations (RFC 5257)
	RightUser0                         // 0, then 1 to 9: the site's own
)

const (
	rightLetters = "lrswipkxtean0123456789" // by bit

	// RightsImplicitOwner is what MYRIGHTS gives the owner beyond the ACL.
	RightsImplicitOwner = RightLookup | RightCreate | RightDeleteMbox | RightAdmin | RightAnnotate
	// RightsImplicitAdmin is what MYRIGHTS gives an administrator beyond it.
	RightsImplicitAdmin = RightLookup | RightAdmin
	// RightsAll is every right there is.
	RightsAll Rights = 1<<len(rightLetters) - 1

	// RightsPosted are those that a mailbox is posted under an identifier for.
	RightsPosted = RightLookup | RightRead

	legacyCreate Rights = 1 << 30 // the letters c and d while a string is read
	legacyDelete Rights = 1 << 31

	rightsCreateLegacy = RightCreate | RightDeleteMbox // c of RFC 2086
	rightsDeleteLegacy = RightDeleteMsg | RightExpunge // d of RFC 2086
	rightsBeforeLegacy = RightAdmin - 1                // printed before c and d
	rightsKnowing      = RightLookup | RightRead | RightInsert | RightCreate | RightDeleteMbox | RightAdmin
)

var rightOf = func() (t [256]Rights) {
	for i, c := range []byte(rightLetters) {
		t[c] = 1 << i
	}
	t['c'] = legacyCreate
	t['d'] = legacyDelete
	return t
}()

// foldLegacy replaces c and d by what they stand for.
func foldLegacy(r Rights) Rights {
	if r&legacyCreate != 0 && r&rightsCreateLegacy == 0 {
		r |= rightsCreateLegacy
	}
	if r&legacyDelete != 0 && r&rightsDeleteLegacy == 0 {
		r |= rightsDeleteLegacy
	}
	return r &^ (legacyCreate | legacyDelete)
}

// ParseRights reads right letters in any order, repeated or none. The legacy c
// stands for k and x, and d for t and e, unless one of the two is there as
// well: so "kc", which is how k alone is printed, is read back as k alone.
//
// Errors: ErrInvalidACL for any other octet.
//
// RFC 4314 2.1.1; the exception is Cyrus's.
func ParseRights(s string) (Rights, error) {
	var r Rights
	for i := range len(s) {
		right := rightOf[s[i]]
		if right == 0 {
			return 0, fmt.Errorf("%w: %q is no right", ErrInvalidACL, s[i])
		}
		r |= right
	}
	return foldLegacy(r), nil
}

// String returns the letters in the order lrswipkxtecdan0-9, as Cyrus prints
// them: with the legacy c where k or x is there, and d where t or e is.
func (r Rights) String() string {
	var buf [len(rightLetters) + 2]byte
	return string(r.AppendTo(buf[:0]))
}

// AppendTo appends what String returns.
func (r Rights) AppendTo(dst []byte) []byte {
	dst = appendRights(dst, r&rightsBeforeLegacy)
	if r&rightsCreateLegacy != 0 {
		dst = append(dst, 'c')
	}
	if r&rightsDeleteLegacy != 0 {
		dst = append(dst, 'd')
	}
	return appendRights(dst, r&^rightsBeforeLegacy)
}

func appendRights(dst []byte, r Rights) []byte {
	for i := range len(rightLetters) {
		if r&(1<<i) != 0 {
			dst = append(dst, rightLetters[i])
		}
	}
	return dst
}

// Has says whether r has all of want.
func (r Rights) Has(want Rights) bool { return r&want == want }

// HasAny says whether r has one of want.
func (r Rights) HasAny(want Rights) bool { return r&want != 0 }

// MayMyRights says whether r is enough to be told one's rights, and so that
// the mailbox exists: one of l r i k x a. p alone is not.
func (r Rights) MayMyRights() bool { return r&rightsKnowing != 0 }

// MyRights returns what MYRIGHTS answers for stored, the effective rights of
// the ACL: the owner has l k x a n besides, an administrator l and a. LIST
// does not add them: it reads the stored ACL alone.
func MyRights(stored Rights, isOwner, isAdmin bool) Rights {
	if isOwner {
		stored |= RightsImplicitOwner
	}
	if isAdmin {
		stored |= RightsImplicitAdmin
	}
	return stored
}

// The identifiers of an ACL that are not a user's id.
const (
	Anyone      = "anyone"    // everybody, the anonymous login too
	Anonymous   = "anonymous" // the anonymous login alone
	GroupPrefix = "group:"    // an ACL group
)

// The limits of one ACL.
const (
	MaxACL            = 64 << 10 // octets
	MaxACLIdentifiers = 1000     // entries
	MaxIdentifier     = 512      // octets of one identifier
)

// An ACL is a mailbox's access control list, in the order it was written.
// An identifier may occur twice: what its entries grant adds up, and so does
// what they take away, as in Cyrus. Nil and empty grant nothing to anyone.
type ACL []ACLEntry

// An ACLEntry gives rights to an identifier, or with Negative takes them from
// it whoever else gives them. Identifier has no '-' before it then.
type ACLEntry struct {
	Identifier string
	Negative   bool
	Rights     Rights
}

// Written returns the identifier as the ACL has it, with its '-'.
func (e ACLEntry) Written() string {
	if e.Negative {
		return "-" + e.Identifier
	}
	return e.Identifier
}

// ParseACL reads "identifier TAB rights TAB" repeated. The last TAB may be
// missing, as in text dumps. An identifier is any text without control octets;
// rights may be none.
//
// Callers that must keep an ACL octet for octet keep the string: String writes
// rights in their usual order.
//
// Errors: ErrTooLarge over MaxACL or MaxACLIdentifiers, else ErrInvalidACL.
//
// RFC 4314 sections 2 and 3; the TABs are Cyrus's and RFC 3656's.
func ParseACL(s string) (ACL, error) {
	if err := aclTooLarge(s); err != nil {
		return nil, err
	}
	var acl ACL
	for s != "" {
		if len(acl) == MaxACLIdentifiers {
			return nil, errACLEntries()
		}
		entry, rest, err := cutACLEntry(s)
		if err != nil {
			return nil, err
		}
		if acl == nil {
			acl = make(ACL, 0, min(strings.Count(s, "\t")/2+1, MaxACLIdentifiers))
		}
		acl = append(acl, entry)
		s = rest
	}
	return acl, nil
}

// CheckACL says whether s parses, without building anything. Errors as ParseACL.
func CheckACL(s string) error {
	for _, err := range scanACL(s) {
		if err != nil {
			return err
		}
	}
	return nil
}

func aclTooLarge(s string) error {
	if len(s) > MaxACL {
		return fmt.Errorf("%w: ACL of %d octets, the limit is %d", ErrTooLarge, len(s), MaxACL)
	}
	return nil
}

func errACLEntries() error {
	return fmt.Errorf("%w: ACL of more than %d identifiers", ErrTooLarge, MaxACLIdentifiers)
}

// scanACL yields the entries of s, or one error and then nothing.
func scanACL(s string) iter.Seq2[ACLEntry, error] {
	return func(yield func(ACLEntry, error) bool) {
		if err := aclTooLarge(s); err != nil {
			yield(ACLEntry{}, err)
			return
		}
		for n := 0; s != ""; n++ {
			if n == MaxACLIdentifiers {
				yield(ACLEntry{}, errACLEntries())
				return
			}
			entry, rest, err := cutACLEntry(s)
			if !yield(entry, err) || err != nil {
				return
			}
			s = rest
		}
	}
}

// cutACLEntry reads the first entry of s and returns what follows it.
func cutACLEntry(s string) (e ACLEntry, rest string, err error) {
	tab := strings.IndexByte(s, '\t')
	if tab < 0 {
		return e, "", fmt.Errorf("%w: identifier %q without rights", ErrInvalidACL, clip(s))
	}
	e.Identifier, rest = s[:tab], s[tab+1:]
	if strings.HasPrefix(e.Identifier, "-") {
		e.Identifier, e.Negative = e.Identifier[1:], true
	}
	if reason := identifierFault(e.Identifier); reason != "" {
		return e, "", fmt.Errorf("%w: identifier %q: %s", ErrInvalidACL, clip(s[:tab]), reason)
	}
	for i := range len(rest) {
		c := rest[i]
		if c == '\t' {
			e.Rights = foldLegacy(e.Rights)
			return e, rest[i+1:], nil
		}
		right := rightOf[c]
		if right == 0 {
			return e, "", fmt.Errorf("%w: %q is no right, for identifier %q", ErrInvalidACL, c, clip(s[:tab]))
		}
		e.Rights |= right
	}
	e.Rights = foldLegacy(e.Rights)
	return e, "", nil
}

// ValidIdentifier says whether an ACL can grant rights to s: some text without
// control octets that does not begin with '-'.
func ValidIdentifier(s string) bool {
	return identifierFault(s) == "" && s[0] != '-'
}

func identifierFault(s string) string {
	if s == "" {
		return "it is empty"
	}
	if len(s) > MaxIdentifier {
		return fmt.Sprintf("it is longer than %d octets", MaxIdentifier)
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7F {
			return "it has a control octet"
		}
	}
	if !utf8.ValidString(s) {
		return "it is not UTF-8"
	}
	return ""
}

// String writes the ACL as ParseACL reads it, with its last TAB; "" if empty.
func (a ACL) String() string {
	var b strings.Builder
	var letters [len(rightLetters) + 2]byte
	for _, e := range a {
		if e.Negative {
			b.WriteByte('-')
		}
		b.WriteString(e.Identifier)
		b.WriteByte('\t')
		b.Write(e.Rights.AppendTo(letters[:0]))
		b.WriteByte('\t')
	}
	return b.String()
}

// HasNegative says whether an entry takes rights away.
func (a ACL) HasNegative() bool {
	for _, e := range a {
		if e.Negative {
			return true
		}
	}
	return false
}

// MaxGroups is how many ACL groups a principal may be in.
const MaxGroups = 1000

// A Principal is who asks.
type Principal struct {
	User   UserID   // "" is the anonymous login
	Groups []string // ACL groups without "group:", resolved by the caller; any order
	Admin  bool     // an administrator of the site: sees names in the admin form
}

// ParsePrincipal makes a Principal of what a request says: user is a user id,
// or "" or "anonymous" for the anonymous login; groups may be written with or
// without "group:".
//
// Errors: ErrInvalidName, ErrTooLarge.
func ParsePrincipal(user string, groups []string, admin bool) (Principal, error) {
	p := Principal{Admin: admin}
	if user != "" && user != Anonymous {
		u, err := ParseUser(user)
		if err != nil {
			return Principal{}, err
		}
		p.User = u
	}
	if len(groups) > MaxGroups {
		return Principal{}, fmt.Errorf("%w: %d ACL groups, the limit is %d", ErrTooLarge, len(groups), MaxGroups)
	}
	seen := make(map[string]bool, len(groups))
	for _, g := range groups {
		g = strings.TrimPrefix(g, GroupPrefix)
		if seen[g] {
			continue
		}
		seen[g] = true
		if reason := identifierFault(g); reason != "" {
			return Principal{}, fmt.Errorf("%w: ACL group %q: %s", ErrInvalidName, clip(g), reason)
		}
		p.Groups = append(p.Groups, g)
	}
	return p, nil
}

// Identifiers yields the ACL identifiers that mean p, each once and as ACLs
// write them: the user or "anonymous", "anyone", and "group:" with each group.
// An administrator has no others.
func (p Principal) Identifiers() iter.Seq[string] {
	return func(yield func(string) bool) {
		first := Anonymous
		if p.User != "" {
			first = string(p.User)
		}
		if !yield(first) || !yield(Anyone) {
			return
		}
	groups:
		for i, g := range p.Groups {
			for _, before := range p.Groups[:i] {
				if g == before {
					continue groups
				}
			}
			if !yield(GroupPrefix + g) {
				return
			}
		}
	}
}

// Matches says whether an ACL entry for identifier, without its '-', means p.
func (p Principal) Matches(identifier string) bool {
	switch identifier {
	case string(p.User):
		return p.User != "" && !reservedIdentifier(identifier)
	case Anyone:
		return true
	case Anonymous:
		return p.User == ""
	}
	if len(p.Groups) == 0 || !strings.HasPrefix(identifier, GroupPrefix) {
		return false
	}
	identifier = identifier[len(GroupPrefix):]
	for _, g := range p.Groups {
		if g == identifier {
			return true
		}
	}
	return false
}

// Effective returns the rights that a gives p: what all entries that match
// grant, less what all negative ones that match take, in whatever order. It is
// the stored ACL alone, which LIST reads; MyRights adds what is implicit.
func (a ACL) Effective(p Principal) Rights {
	var granted, taken Rights
	for _, e := range a {
		switch {
		case !p.Matches(e.Identifier):
		case e.Negative:
			taken |= e.Rights
		default:
			granted |= e.Rights
		}
	}
	return granted &^ taken
}

// EffectiveOf is ParseACL and Effective in one, without building the ACL.
// Errors as ParseACL.
func EffectiveOf(acl string, p Principal) (Rights, error) {
	var granted, taken Rights
	for e, err := range scanACL(acl) {
		switch {
		case err != nil:
			return 0, err
		case !p.Matches(e.Identifier):
		case e.Negative:
			taken |= e.Rights
		default:
			granted |= e.Rights
		}
	}
	return granted &^ taken, nil
}
