package client

import (
	"time"

	"github.com/rookery-mail/rookery/directory"
)

// Route is where a mailbox is.
type Route struct {
	Answer
	// Mailbox is the name asked for; of LookupUser the INBOX.
	Mailbox directory.MailboxName
	Outcome directory.Outcome
	// Server is the backend chosen: set for Serving, Unconfirmed (if known),
	// BackendIsDown, Moving and NotAtPrimary; else its Name is empty.
	Server Server
	// Group is the home, with its epoch and primary; empty if there is none.
	Group   directory.GroupName
	Epoch   uint64
	Primary directory.BackendName
	// Forked: a fact that counts is outside the home. Changes neither route nor LIST.
	Forked bool
	// Changed is the newest revision that changed any of the facts.
	Changed directory.Revision
	// Reservation is the claim to the name, nil if there is none. Known with
	// Details, or when nothing holds the name.
	Reservation *Reservation
	// Missing are the backends not heard yet, at most 100, for Incomplete and an
	// Unconfirmed without server; Why says what else is missing.
	Missing []directory.BackendName
	Why     string
	// Hold is what holds it, for Held by a hold; nil if the withdrawal guard does.
	Hold *Hold
	// RecentlyRetracted: NotFound, but the INBOX was retracted minutes ago, so that
	// delivery answers "later".
	RecentlyRetracted bool
	// MovedFrom is the group it was moved from, and MovedAge how long ago, if that is
	// remembered.
	MovedFrom directory.GroupName
	MovedAge  time.Duration
	// Facts are every server's, by server id, with Details.
	Facts []Fact
	// ListedFrom is the server whose fact gives rights and listing, with Details;
	// empty if the mailbox is not listed.
	ListedFrom directory.BackendName
	// Err is why this name could not be asked, of LookupMany; the rest is zero then.
	Err error
}

// Fact returns the fact of server, or nil. It is known with Details.
func (r *Route) Fact(server directory.BackendName) *Fact {
	for i := range r.Facts {
		if r.Facts[i].Server == server {
			return &r.Facts[i]
		}
	}
	return nil
}

// Server is a backend as a route names it.
type Server struct {
	Name      directory.BackendName
	Addresses []directory.Address // ordered by Service
	State     directory.BackendState
}

// Address returns where the server answers service; false if that is not set.
func (s Server) Address(service directory.Service) (directory.Address, bool) {
	for _, a := range s.Addresses {
		if a.Service == service {
			return a, true
		}
	}
	return directory.Address{}, false
}

// Fact is one server's copy of one mailbox.
type Fact struct {
	Server      directory.BackendName
	Admitted    bool // facts of servers that were not admitted count for nothing
	Partition   string
	ACL         string // "identifier TAB rights TAB ...", octet for octet
	MailboxID   string
	UIDValidity uint32
	Type        directory.MailboxType
	SpecialUse  string
	State       directory.FactState
	Standing    directory.Standing
	First, Last directory.Revision
	Confirmed   bool          // in the cluster's present incarnation
	Age         time.Duration // of directory time, since the last change
}

// Location is where the copy lies, as server!partition.
func (f Fact) Location() directory.Location {
	return directory.Location{Backend: f.Server, Partition: f.Partition}
}

// Reservation is a claim to a name before its mailbox exists.
type Reservation struct {
	Server    directory.BackendName
	Partition string
	Age       time.Duration
	Remaining time.Duration // until it lapses, if nothing more is heard
}

// Vanished is a name that no backend's fact counts for any more.
type Vanished struct {
	Mailbox directory.MailboxName
	NewName directory.MailboxName // what it was renamed to; empty if it was not
	Age     time.Duration
}

// Hold is an operator's or a switchover's "not now".
type Hold struct {
	Kind      directory.HoldKind
	Key       string
	Remaining time.Duration
	Why, By   string
}

// ListQuery asks what a user may LIST.
type ListQuery struct {
	Principal directory.Principal
	// Namespace: the zero value is Cyrus's default form, with separator "."; what it
	// does not say of domains is as the cluster's settings have it.
	Namespace directory.Namespace
	Reference string   // client form
	Patterns  []string // client form, at least one
	Select    ListSelection
	Return    ListReturn
	// Extended: it was an extended LIST (RFC 5258), even if no option is set.
	Extended bool
	// LSUB: it was LSUB; Select must be empty.
	LSUB bool
	// InboxOnly takes a plain "*" for "INBOX*" (Cyrus: foolstupidclients).
	InboxOnly bool
	// DAV shows hidden trees too.
	DAV bool
}

// ListSelection says which names are answered. Several must all hold.
type ListSelection struct {
	Subscribed     bool
	RecursiveMatch bool // only with Subscribed or SpecialUse
	SpecialUse     bool
	Remote         bool
}

// ListReturn says what is told of each name.
type ListReturn struct {
	Subscribed bool
	Children   bool
	SpecialUse bool
	MyRights   bool
	// Status: the caller sends STATUS after each row; what the user may not read is
	// \Noselect then (RFC 5819).
	Status bool
	// Location: where each mailbox is routed.
	Location bool
}

// Attribute is a mailbox attribute of LIST, special use apart.
type Attribute uint8

// The attributes, numbered as in the API.
const (
	AttrNoselect      Attribute = 1
	AttrNonExistent   Attribute = 2
	AttrNoinferiors   Attribute = 3
	AttrSubscribed    Attribute = 4
	AttrHasChildren   Attribute = 5
	AttrHasNoChildren Attribute = 6
)

// String returns the attribute as IMAP writes it: `\HasChildren`.
func (a Attribute) String() string {
	switch a {
	case AttrNoselect:
		return `\Noselect`
	case AttrNonExistent:
		return `\NonExistent`
	case AttrNoinferiors:
		return `\Noinferiors`
	case AttrSubscribed:
		return `\Subscribed`
	case AttrHasChildren:
		return `\HasChildren`
	case AttrHasNoChildren:
		return `\HasNoChildren`
	}
	return ""
}

// ListRow is one LIST response.
type ListRow struct {
	Name            string                // client form
	Mailbox         directory.MailboxName // empty where no canonical name stands for it
	Attributes      []Attribute           // in the order of printing
	SpecialUse      string                // separated by one space, printed after them
	Rights          directory.Rights      // with Return.MyRights
	ChildSubscribed bool                  // CHILDINFO ("SUBSCRIBED")
	ChildSpecialUse bool                  // CHILDINFO ("SPECIAL-USE")
	Server          directory.BackendName // with Return.Location, where it is routed
	Outcome         directory.Outcome
}

// Has reports whether the row has attribute a.
func (r ListRow) Has(a Attribute) bool {
	for _, b := range r.Attributes {
		if a == b {
			return true
		}
	}
	return false
}

// Listing is a whole LIST answer, all of one revision.
type Listing struct {
	Answer
	Rows      []ListRow // nil from ListEach
	Separator string
	// Complete: every backend has been heard, and all that it states has entered the
	// listing, so nothing can be missing from it.
	Complete bool
	Missing  []directory.BackendName // those of which that is not so, at most 100
}

// RightsQuery asks what a user may do with one mailbox.
type RightsQuery struct {
	Principal directory.Principal
	// Mailbox, or if that is empty ClientName as the user sees it in Namespace.
	Mailbox    directory.MailboxName
	ClientName string
	Namespace  directory.Namespace
}

// RightsAnswer is what a user may do with one mailbox.
type RightsAnswer struct {
	Answer
	Mailbox directory.MailboxName
	Outcome directory.Outcome
	Rights  directory.Rights // the owner's implicit ones included
	// Visible: the user may know that it exists. If not, IMAP answers as for a mailbox
	// that does not.
	Visible bool
}

// FindQuery asks for mailboxes by prefix, by server or both.
type FindQuery struct {
	Prefix   string                // of canonical names, whole levels or not
	Server   directory.BackendName // only those of which it has a fact
	PageSize int                   // 0: the server's choice
	Page     string                // FindPage.Next of the page before
}

// FindPage is one page of an answer to Find, in name order, with details.
type FindPage struct {
	Answer
	Mailboxes []Route
	Next      string // empty after the last page
}

// Effect is what a write did, or found.
type Effect uint8

// The effects, numbered as in the API and in the machine.
const (
	Unchanged     Effect = 1  // all was so already
	Added         Effect = 2  // a new fact, reservation, hold, group, backend or subscription
	Changed       Effect = 3  // it was there and is different now
	Removed       Effect = 4  // it is gone
	Forked        Effect = 5  // asserted outside the mailbox's home
	MoveCompleted Effect = 6  // the assertion made its group the home
	MoveAborted   Effect = 7  // the server that had given the mailbox up keeps it
	GuardHeld     Effect = 8  // accepted but not believed; an operator decides
	NotHeld       Effect = 9  // there was nothing of that server's to take back
	AlreadyYours  Effect = 10 // the server holds the name itself
	CopyAllowed   Effect = 11 // the group holds the name; a member may assert its copy
	NotAdmitted   Effect = 12 // stored, but does not count until the backend is admitted
	Overtaken     Effect = 13 // left behind, stale or stray, and stays so
	NotSince      Effect = 14 // the fact changed after the revision stated; nothing was done
)

func (e Effect) String() string {
	names := [...]string{
		"unspecified", "unchanged", "added", "changed", "removed", "forked", "move-completed", "move-aborted", "guard-held",
		"not-held", "already-yours", "copy-allowed", "not-admitted", "overtaken", "not-since",
	}
	if int(e) < len(names) {
		return names[e]
	}
	return "unknown"
}

// Result is what a write came to.
type Result struct {
	Answer
	Effect Effect
	Count  int           // mailboxes that a Rename moved
	Epoch  uint64        // the group's, after SetPrimary and SetGroup
	Lapses time.Duration // of a reservation: in how long, if nothing is heard
	// Err is why an item of a Batch was refused; the rest is zero then.
	Err error
}

// Op is what a Batch consists of: Assert, Retract, Reserve, Release, Deactivate,
// Rename, Subscribe or Unsubscribe.
type Op interface{ op() }

// Assert says that Server holds Mailbox.
type Assert struct {
	Mailbox   directory.MailboxName
	Server    directory.BackendName
	Statement directory.Statement
	// Imported: from a dump or a mirror; operators only.
	Imported bool
	// Deactivated: the dump says that the mailbox is being moved.
	Deactivated bool
	// Since, if not zero, is the revision that a resync compared its list at: a fact
	// that changed after it stays as it is, and the effect is NotSince.
	Since directory.Revision
}

// Retract takes back Server's fact, and only that.
type Retract struct {
	Mailbox directory.MailboxName
	Server  directory.BackendName
	Epoch   uint64 // the group's that the sender believes in; 0: none stated
	// Tentative: a rename may be under way, so the fact only routes as Moving.
	Tentative bool
	Since     directory.Revision // as in Assert
}

// Reserve claims a name for Server before the mailbox exists.
type Reserve struct {
	Mailbox   directory.MailboxName
	Server    directory.BackendName
	Partition string
	Grace     time.Duration // 0: the cluster's setting
}

// Release gives a reservation back.
type Release struct {
	Mailbox directory.MailboxName
	Server  directory.BackendName
	// Since, from cluster version 2 on: NotSince if it was made or renewed after that
	// revision. 0: whenever it was.
	Since directory.Revision
}

// Deactivate gives the mailbox up to whoever asserts it next.
type Deactivate struct {
	Mailbox directory.MailboxName
	Server  directory.BackendName
}

// Rename renames Server's facts in one step, or not at all.
type Rename struct {
	From, To  directory.MailboxName
	Recursive bool // all below it too
	Server    directory.BackendName
}

// Subscribe subscribes User to Mailbox, existing or not.
type Subscribe struct {
	User    directory.UserID
	Mailbox directory.MailboxName
}

// Unsubscribe ends a subscription.
type Unsubscribe struct {
	User    directory.UserID
	Mailbox directory.MailboxName
}

func (Assert) op()      {}
func (Retract) op()     {}
func (Reserve) op()     {}
func (Release) op()     {}
func (Deactivate) op()  {}
func (Rename) op()      {}
func (Subscribe) op()   {}
func (Unsubscribe) op() {}
