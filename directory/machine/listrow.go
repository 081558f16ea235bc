package machine

import (
	"iter"
	"strings"

	"github.com/rookery-mail/rookery/directory"
)

// Attributes is a set of mailbox attributes of LIST, special use apart.
//
// RFC 9051 7.3.1, RFC 5258 section 5.
type Attributes uint8

// The attributes in the order in which Cyrus prints them. \Remote is never
// sent: nothing here is remote. \Marked and \Unmarked are not known here.
const (
	AttrNoinferiors   Attributes = 1 << iota // a name that can have no children
	AttrNoselect                             // basic LIST: the name is only a parent
	AttrNonExistent                          // extended LIST: there is no such mailbox, for this user
	AttrSubscribed                           // the user subscribes to the name
	AttrHasChildren                          // the user sees a mailbox below it
	AttrHasNoChildren                        // the user sees none
)

var attributeNames = [...]string{`\Noinferiors`, `\Noselect`, `\NonExistent`, `\Subscribed`, `\HasChildren`, `\HasNoChildren`}

// Has says whether all of want are in a.
func (a Attributes) Has(want Attributes) bool { return a&want == want }

// Each yields the attributes of a one by one, in the order of printing.
func (a Attributes) Each() iter.Seq[Attributes] {
	return func(yield func(Attributes) bool) {
		for one := AttrNoinferiors; one <= AttrHasNoChildren; one <<= 1 {
			if a.Has(one) && !yield(one) {
				return
			}
		}
	}
}

// String returns the attributes as LIST prints them, a space between two.
func (a Attributes) String() string {
	var names []string
	for i, name := range attributeNames {
		if a&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// ListRow is one answer of a LIST.
type ListRow struct {
	// Name is the client form. Empty only in the answer to an empty pattern.
	Name string
	// Mailbox is the canonical form; empty where there is none: the answer to
	// an empty pattern, and parents above all mailboxes of a kind ("user",
	// "Other Users").
	Mailbox    directory.MailboxName
	Attributes Attributes
	// SpecialUse is, of an own mailbox and if it was asked for, its special-use
	// attributes with a space between two, in the order of the annotation.
	SpecialUse string
	// Rights is what MYRIGHTS says, if it was asked for; none for a name that
	// is no mailbox.
	Rights directory.Rights
	// ChildInfo is the selection option by which a name below this one is
	// selected that is not in the answer itself: "SUBSCRIBED" or
	// "SPECIAL-USE"; else "".
	ChildInfo string
	// Server and Outcome are where a mailbox is routed, as Lookup says: Server
	// is "" where the outcome names none. Both are zero for a name that is no
	// mailbox.
	Server  directory.BackendName
	Outcome directory.Outcome
}

// IMAP returns what an IMAP server prints after "* LIST ":
//
//	(\HasChildren) "." INBOX
//
// with the extended data item CHILDINFO where there is one. Rights are not in
// it: MYRIGHTS is a response of its own.
//
// RFC 9051 7.3.1; RFC 5258 sections 3.5 and 6; RFC 6154 section 3.
func (r *ListRow) IMAP(sep byte) string {
	var b strings.Builder
	b.Grow(len(r.Name) + 64)
	b.WriteByte('(')
	for i, name := range attributeNames {
		if r.Attributes&(1<<i) == 0 {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte(' ')
		}
		b.WriteString(name)
	}
	if r.SpecialUse != "" {
		if b.Len() > 1 {
			b.WriteByte(' ')
		}
		b.WriteString(r.SpecialUse)
	}
	b.WriteString(`) "`)
	b.WriteByte(sep)
	b.WriteString(`" `)
	b.WriteString(directory.QuoteAString(r.Name))
	if r.ChildInfo != "" {
		b.WriteString(` (CHILDINFO ("`)
		b.WriteString(r.ChildInfo)
		b.WriteString(`"))`)
	}
	return b.String()
}
