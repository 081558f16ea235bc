package directory

import (
	"bytes"
	"fmt"
	"iter"
	"strings"
)

// MaxName is the length limit of a mailbox name, in octets of its canonical
// form, the domain included.
const MaxName = 490

// The octets of the order key that stand between its parts. Both sort below
// every octet of a name, so a mailbox's descendants follow it at once.
const (
	KeyDomainSep = 0x1D // between domain and first level
	KeyLevelSep  = 0x1F // between levels
)

// A MailboxName is the canonical name of a mailbox, Cyrus's internal form:
//
//	[domain!]level.level...
//
// A dot inside a level is written '^'. "user.<id>" is an inbox, what is below
// it that user's, any other first level is shared. Non-ASCII text is modified
// UTF-7 (RFC 3501 5.1.3), kept octet for octet. The default domain is never
// written. Values come from ParseName, NameFromKey or Namespace.FromClient;
// the methods below expect that and do not check again.
type MailboxName string

// ParseName checks that s is a canonical mailbox name and returns it unchanged.
//
// Refused, with the reason in the error: nothing, more than MaxName octets, an
// empty level, a control or 8-bit octet, malformed modified UTF-7 (also a
// shift that encodes ASCII, has stray bits or half a surrogate pair, or follows
// another shift directly), a second '!', a domain that is no host name, the
// octets % " \ /, which Cyrus never stores, and "user" alone, the root of all
// users. It is tolerant of the rest: a backend's word about a mailbox it holds
// is a fact, not a request.
//
// Whether a domain is the default one is not known here; see
// MailboxName.OmitDomain.
//
// Errors: ErrInvalidName, ErrTooLarge.
func ParseName(s string) (MailboxName, error) {
	if len(s) > MaxName {
		return "", fmt.Errorf("%w: mailbox name of %d octets, the limit is %d", ErrTooLarge, len(s), MaxName)
	}
	if reason := nameFault(s); reason != "" {
		return "", fmt.Errorf("%w: mailbox name %q: %s", ErrInvalidName, s, reason)
	}
	return MailboxName(s), nil
}

// nameFault says what is wrong with a canonical name, or "".
func nameFault(s string) string {
	if s == "" {
		return "it is empty"
	}
	if i := strings.IndexByte(s, '!'); i >= 0 {
		if reason := hostFault(s[:i]); reason != "" {
			return "domain: " + reason
		}
		s = s[i+1:]
	}
	if s == "user" {
		return "it is above all inboxes and no mailbox itself"
	}
	return levelsFault(s)
}

// levelsFault says what is wrong with the levels of a name, or "".
func levelsFault(s string) string {
	start := 0       // of the present level
	shifted := false // the octet before i ended a run of base64
	for i := 0; i < len(s); {
		switch octets[s[i]] {
		case octetPlain:
			shifted = false
			i++
		case octetDot:
			if i == start {
				return "a level is empty"
			}
			shifted = false
			i++
			start = i
		case octetShift:
			n, reason := shiftFault(s[i:], shifted)
			if reason != "" {
				return reason
			}
			shifted = n > len("&-")
			i += n
		case octetBang:
			return "more than one '!'"
		case octetControl:
			return "it has a control octet"
		case octetHigh:
			return "it has an 8-bit octet; names are modified UTF-7"
		default:
			return "it has a percent sign, a quote, a backslash or a slash, which no mailbox name has" // in words: MUPDATE cannot quote two of them
		}
	}
	if start == len(s) {
		return "a level is empty"
	}
	return ""
}

// What an octet of a name's levels may be.
const (
	octetPlain = iota
	octetDot
	octetShift
	octetBang
	octetControl
	octetHigh
	octetNever
)

var octets = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c < 0x20 || c == 0x7F:
			t[c] = octetControl
		case c >= 0x80:
			t[c] = octetHigh
		}
	}
	t['.'] = octetDot
	t['&'] = octetShift
	t['!'] = octetBang
	for _, c := range []byte(`%"\/`) {
		t[c] = octetNever
	}
	return t
}()

// shiftFault reads the shift sequence of modified UTF-7 that s begins with,
// '&' to '-', and returns its length or what is wrong with it. after says that
// another base64 run ended right before, which makes this shift superfluous.
//
// RFC 3501 5.1.3. Cyrus checks the same, except surrogates.
func shiftFault(s string, after bool) (n int, reason string) {
	if len(s) > 1 && s[1] == '-' {
		return 2, "" // "&-" is a plain '&'
	}
	if after {
		return 0, "modified UTF-7: a superfluous shift"
	}
	var acc uint32   // bits not yet part of a whole UTF-16 unit
	var bits int     // how many
	var highSur bool // the last unit was the first half of a pair
	for i := 1; i < len(s); i++ {
		if s[i] == '-' {
			switch {
			case bits >= 6 || acc&(1<<bits-1) != 0:
				return 0, "modified UTF-7: stray bits before '-'"
			case highSur:
				return 0, "modified UTF-7: half a surrogate pair"
			}
			return i + 1, ""
		}
		v := base64Values[s[i]]
		if v < 0 {
			return 0, "modified UTF-7: no base64 after '&'"
		}
		acc = acc<<6 | uint32(v)
		if bits += 6; bits < 16 {
			continue
		}
		bits -= 16
		unit := acc >> bits & 0xFFFF
		acc &= 1<<bits - 1
		low := unit&0xFC00 == 0xDC00
		switch {
		case unit < 0x80:
			return 0, "modified UTF-7: ASCII must stand for itself"
		case low != highSur:
			return 0, "modified UTF-7: half a surrogate pair"
		}
		highSur = unit&0xFC00 == 0xD800
	}
	return 0, "modified UTF-7: a shift without its '-'"
}

// base64Values holds the value of each octet of modified base64, -1 for others.
var base64Values = func() (t [256]int8) {
	for c := range t {
		t[c] = -1
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,"
	for v, c := range []byte(alphabet) {
		t[c] = int8(v)
	}
	return t
}()

// hostFault says what keeps s from being a host name, or "". The case of
// letters is not looked at, and '_' is let pass: real sites use it.
func hostFault(s string) string {
	if s == "" {
		return "it is empty"
	}
	if len(s) > 253 {
		return "it is longer than 253 octets"
	}
	start := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.':
			if i == start {
				return "a label of the host name is empty"
			}
			start = i + 1
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_':
		default:
			return fmt.Sprintf("octet %q is not of a host name", c)
		}
	}
	if start == len(s) {
		return "a label of the host name is empty"
	}
	return ""
}

// AppendKey appends n's order key to dst: the domain and 0x1D if there is one,
// then the levels joined by 0x1F, a '^' turned back into a dot. Names compare
// by their keys as unsigned octets, everywhere; NameFromKey is the inverse.
//
// Cyrus prints the last level of DELETED names anew, as upper-case hex, before
// it compares. Here no octet is touched: the digits are upper case already.
func (n MailboxName) AppendKey(dst []byte) []byte {
	i := len(dst)
	dst = append(dst, n...)
	if d := strings.IndexByte(string(n), '!'); d >= 0 {
		i += d
		dst[i] = KeyDomainSep
	}
	for ; i < len(dst); i++ {
		dst[i] = keyOctets[dst[i]]
	}
	return dst
}

// keyOctets is what each octet of a name's levels becomes in its key.
var keyOctets = func() (t [256]uint8) {
	for c := range t {
		t[c] = uint8(c)
	}
	t['.'] = KeyLevelSep
	t['^'] = '.'
	return t
}()

// NameFromKey returns the name whose order key is key.
//
// Errors: ErrInvalidName if no name has that key, ErrTooLarge.
func NameFromKey(key []byte) (MailboxName, error) {
	if len(key) > MaxName {
		return "", fmt.Errorf("%w: order key of %d octets, the limit is %d", ErrTooLarge, len(key), MaxName)
	}
	var buf [MaxName]byte
	name := buf[:copy(buf[:], key)]
	i := 0
	if d := bytes.IndexByte(name, KeyDomainSep); d >= 0 {
		name[d] = '!'
		i = d + 1
	}
	for ; i < len(name); i++ {
		switch name[i] {
		case KeyLevelSep:
			name[i] = '.'
		case '.':
			name[i] = '^'
		case '^', '!':
			return "", fmt.Errorf("%w: order key %q: octet %q is of no key", ErrInvalidName, key, name[i])
		}
	}
	s := string(name)
	if reason := nameFault(s); reason != "" {
		return "", fmt.Errorf("%w: order key %q: %s", ErrInvalidName, key, reason)
	}
	return MailboxName(s), nil
}

// CompareNames compares two names by their order keys, without building them:
// negative if a comes first, positive if b does, 0 if they are equal.
func CompareNames(a, b MailboxName) int {
	da, db := strings.IndexByte(string(a), '!'), strings.IndexByte(string(b), '!')
	for i := range min(len(a), len(b)) {
		// Where the domains end alike, equal octets have equal keys.
		if a[i] == b[i] && da == db {
			continue
		}
		x, y := keyOctet(a[i], i-da), keyOctet(b[i], i-db)
		if x != y {
			return int(x) - int(y)
		}
	}
	return len(a) - len(b)
}

// keyOctet is what octet c becomes in the key, at that offset from its name's '!'.
// Names without domain have none at -1, so all their offsets are past it.
func keyOctet(c byte, offset int) byte {
	switch {
	case offset > 0:
		return keyOctets[c]
	case offset == 0:
		return KeyDomainSep
	}
	return c
}

// PrefixKeys returns the range of order keys lo <= key < hi of n's proper
// descendants, all of them and nothing else.
func (n MailboxName) PrefixKeys() (lo, hi []byte) {
	lo = append(n.AppendKey(make([]byte, 0, len(n)+1)), KeyLevelSep)
	return lo, keyAfterPrefix(lo)
}

// SubtreeKeys returns the range lo <= key < hi that holds n and its
// descendants. If n is a first level without domain and some domain has the
// same name, that domain's mailboxes lie in the range too: they sort between a
// name and its children. IsBelow tells them apart.
func (n MailboxName) SubtreeKeys() (lo, hi []byte) {
	lo = n.AppendKey(make([]byte, 0, len(n)+1))
	hi = append(bytes.Clone(lo), KeyLevelSep+1)
	return lo, hi
}

// keyAfterPrefix returns the first key after all those that begin with
// prefix; nil, without end, for an empty prefix.
func keyAfterPrefix(prefix []byte) []byte {
	if len(prefix) == 0 {
		return nil
	}
	next := bytes.Clone(prefix)
	next[len(next)-1]++ // keys are ASCII: this never carries
	return next
}

// KeyAfterDomain returns the first order key after all those of the domain
// that key belongs to; false if key has no domain. It lets a reader of one
// domain seek over another.
func KeyAfterDomain(key []byte) ([]byte, bool) {
	d := bytes.IndexByte(key, KeyDomainSep)
	if d < 0 {
		return nil, false
	}
	return keyAfterPrefix(key[:d+1]), true
}

// Domain returns what stands before the '!', "" for the default domain.
func (n MailboxName) Domain() string {
	if i := strings.IndexByte(string(n), '!'); i >= 0 {
		return string(n[:i])
	}
	return ""
}

// Local returns n without its domain.
func (n MailboxName) Local() string {
	return string(n[strings.IndexByte(string(n), '!')+1:])
}

// OmitDomain returns n without its domain if that is def, the default one.
func (n MailboxName) OmitDomain(def string) MailboxName {
	if def != "" && n.Domain() == def {
		return n[len(def)+1:]
	}
	return n
}

// Levels yields the levels of n from the first on, without the domain and as
// they are stored: a '^' stays.
func (n MailboxName) Levels() iter.Seq[string] {
	return strings.SplitSeq(n.Local(), ".")
}

// Parent returns n without its last level; false if n has but one. An inbox's
// parent is "user", which is no mailbox and no name that ParseName takes.
func (n MailboxName) Parent() (MailboxName, bool) {
	i := strings.LastIndexByte(string(n), '.')
	if i <= strings.IndexByte(string(n), '!') { // that dot is the domain's, or there is none
		return "", false
	}
	return n[:i], true
}

// userLevel returns the second level of a name under "user", as stored, and
// whether there is one.
func (n MailboxName) userLevel() (string, bool) {
	rest, ok := strings.CutPrefix(n.Local(), "user.")
	if !ok {
		return "", false
	}
	level, _, _ := strings.Cut(rest, ".")
	return level, true
}

// IsInbox says whether n is a user's inbox, "user.<id>".
func (n MailboxName) IsInbox() bool {
	level, ok := n.userLevel()
	return ok && len(n.Local()) == len("user.")+len(level)
}

// Owner returns the user that n belongs to: "user.<id>" and all below it is
// the user's named id, with the domain if there is one and dots for '^'.
// False for shared and deleted mailboxes, and for the few names below "user"
// that no user id leads to, such as "user.anyone".
func (n MailboxName) Owner() (UserID, bool) {
	level, ok := n.userLevel()
	if !ok {
		return "", false
	}
	s := strings.ReplaceAll(level, "^", ".")
	domain := n.Domain()
	if domain != "" {
		s += "@" + domain
	} else if strings.IndexByte(s, '@') >= 0 {
		return "", false // "a@b" is user a of domain b
	}
	if reservedIdentifier(s) {
		return "", false
	}
	return UserID(s), true
}

// OwnedBy says whether n is u's inbox or below it. It is Owner compared with
// u, without building a string; false for the anonymous user "".
func (n MailboxName) OwnedBy(u UserID) bool {
	_, ok := n.below(u)
	return ok
}

// below returns the levels of n below u's inbox, "" for the inbox itself;
// false if n is not u's.
func (n MailboxName) below(u UserID) (rest string, ok bool) {
	id, domain := u.split()
	local := string(n)
	if domain != "" {
		if len(n) <= len(domain) || n[len(domain)] != '!' || string(n[:len(domain)]) != domain {
			return "", false
		}
		local = local[len(domain)+1:]
	}
	const root = "user."
	if id == "" || len(local) < len(root)+len(id) || local[:len(root)] != root {
		return "", false
	}
	local = local[len(root):]
	for i := range len(id) {
		c := id[i]
		if c == '.' {
			c = '^'
		}
		if local[i] != c {
			return "", false
		}
	}
	switch rest = local[len(id):]; {
	case rest == "":
		return "", true
	case rest[0] == '.':
		return rest[1:], true
	}
	return "", false
}

// Root returns the owner root: [domain!]user.<id>, or [domain!] and the first
// level. It is what a resync bucket is chosen by, so that a user's folders
// share one.
func (n MailboxName) Root() MailboxName {
	start := len(n) - len(n.Local())
	local := n[start:]
	i := strings.IndexByte(string(local), '.')
	if i < 0 {
		return n
	}
	if local[:i] == "user" {
		j := strings.IndexByte(string(local[i+1:]), '.')
		if j < 0 {
			return n
		}
		i += 1 + j
	}
	return n[:start+i]
}

// IsDeleted says whether n is what Cyrus renames a deleted mailbox to:
// DELETED.<name>.<hex>, below its domain. Administrators alone see those.
func (n MailboxName) IsDeleted() bool {
	return strings.HasPrefix(n.Local(), "DELETED.")
}

// IsHiddenTree says whether n is of a tree that is no mail: calendars, address
// books, files, notifications, scripts and JMAP's own. LIST shows them to
// administrators and to clients that ask for them by name only. As in Cyrus
// the first level below the owner root decides, in full; all that begins
// "#jmap" counts.
func (n MailboxName) IsHiddenTree() bool {
	level := n.Local()
	if strings.HasPrefix(level, "user.") {
		_, level, _ = strings.Cut(level[len("user."):], ".")
	}
	if level == "" || level[0] != '#' {
		return false
	}
	level, _, _ = strings.Cut(level, ".")
	switch level {
	case "#calendars", "#addressbooks", "#drive", "#notifications", "#sieve":
		return true
	}
	return strings.HasPrefix(level, "#jmap")
}

// IsBelow says whether n is a proper descendant of ancestor.
func (n MailboxName) IsBelow(ancestor MailboxName) bool {
	return len(n) > len(ancestor) && n[len(ancestor)] == '.' && n[:len(ancestor)] == ancestor &&
		strings.IndexByte(string(n), '!') < len(ancestor) // else that dot is in n's domain
}

// A UserID is the canonical name of a user: id, or id@domain where the domain
// is not the default one. The last '@' divides. It is also what ACLs write.
// Values come from ParseUser or MailboxName.Owner.
type UserID string

// ParseUser checks that s is a user id that an inbox can be made of, and
// returns it unchanged. Folding of case, of domains and of login names is the
// caller's, before; see UserID.OmitDomain for the default domain.
//
// Refused: what ParseName would refuse in the inbox's name, '^' (a dot is
// written as a dot), and what an ACL reads as something else: "anyone",
// "anonymous", "group:..." and a leading '-'. The anonymous login has no
// user id; see ParsePrincipal.
//
// Errors: ErrInvalidName, ErrTooLarge.
func ParseUser(s string) (UserID, error) {
	if reason := userFault(s); reason != "" {
		return "", fmt.Errorf("%w: user id %q: %s", ErrInvalidName, clip(s), reason)
	}
	if n := len("user.") + len(s); n > MaxName { // '@' becomes '!'
		return "", fmt.Errorf("%w: user id %q: its inbox's name has %d octets, the limit is %d", ErrTooLarge, clip(s), n, MaxName)
	}
	return UserID(s), nil
}

func userFault(s string) string {
	id, domain := UserID(s).split()
	switch {
	case id == "":
		return "it is empty"
	case reservedIdentifier(s):
		return "an ACL reads it as something else"
	case strings.IndexByte(id, '!') >= 0, strings.IndexByte(id, '^') >= 0:
		return "it has a '!' or '^'"
	case len(id) < len(s):
		if reason := hostFault(domain); reason != "" {
			return "domain: " + reason
		}
	}
	// Dots are ordinary here, so the id is checked piece by piece as levels
	// are; a piece may be empty.
	for piece := range strings.SplitSeq(id, ".") {
		if piece == "" {
			continue
		}
		if reason := levelsFault(piece); reason != "" {
			return reason
		}
	}
	return ""
}

// reservedIdentifier says whether an ACL entry for s would mean something
// other than the user s.
func reservedIdentifier(s string) bool {
	return s == Anyone || s == Anonymous || strings.HasPrefix(s, GroupPrefix) || strings.HasPrefix(s, "-")
}

// clip shortens what goes into an error.
func clip(s string) string {
	const most = 128
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

// split cuts u at its last '@'; domain is "" if there is none.
func (u UserID) split() (id, domain string) {
	if i := strings.LastIndexByte(string(u), '@'); i >= 0 {
		return string(u[:i]), string(u[i+1:])
	}
	return string(u), ""
}

// Domain returns what stands after the last '@', "" for the default domain.
func (u UserID) Domain() string {
	_, domain := u.split()
	return domain
}

// OmitDomain returns u without its domain if that is def, the default one.
// What is left may hold an '@' and so have got another domain, or be a name
// that ACLs reserve: check it again with ParseUser.
func (u UserID) OmitDomain(def string) UserID {
	if id, domain := u.split(); def != "" && domain == def {
		return UserID(id)
	}
	return u
}

// Inbox returns the name of u's inbox: [domain!]user.<id>, dots as '^'.
//
// Errors: ErrInvalidName, ErrTooLarge if u is not from ParseUser.
func (u UserID) Inbox() (MailboxName, error) {
	if _, err := ParseUser(string(u)); err != nil {
		return "", err
	}
	return u.inbox(), nil
}

func (u UserID) inbox() MailboxName {
	id, domain := u.split()
	id = strings.ReplaceAll(id, ".", "^")
	if domain != "" {
		return MailboxName(domain + "!user." + id)
	}
	return MailboxName("user." + id)
}

// A BackendName is the name an IMAP server goes by in locations, Cyrus's
// servername: a host name. Compared octet by octet.
type BackendName string

// ParseBackend checks that s is 1 to 253 octets of a host name, without '!'
// and empty labels, and returns it unchanged.
//
// Errors: ErrInvalidName.
func ParseBackend(s string) (BackendName, error) {
	if reason := hostFault(s); reason != "" {
		return "", fmt.Errorf("%w: backend name %q: %s", ErrInvalidName, clip(s), reason)
	}
	return BackendName(s), nil
}

// A GroupName is the name of a replica group. It looks like a backend's, whose
// name a group of one takes.
type GroupName string

// ParseGroup checks s as ParseBackend does.
//
// Errors: ErrInvalidName.
func ParseGroup(s string) (GroupName, error) {
	if reason := hostFault(s); reason != "" {
		return "", fmt.Errorf("%w: replica group name %q: %s", ErrInvalidName, clip(s), reason)
	}
	return GroupName(s), nil
}
