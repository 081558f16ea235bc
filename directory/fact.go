package directory

import "time"

// ServerID is the number under which a backend's facts are kept. It is given
// when the backend is first heard of and never reused; the name may change.
// Zero is no server.
type ServerID uint32

// GroupID numbers a replica group, never reused. Zero is no group.
type GroupID uint32

// Revision counts the commands applied, accepted or refused; every command has
// its own. Clients see revisions, never Raft's numbers.
type Revision uint64

// Time is directory time in milliseconds. It moves only while there is a
// leader, so it measures how long something was left undone, not when it was.
// Deadlines live in it; it is never compared with a wall clock.
type Time uint64

// String gives t as a duration: "1h2m3s".
func (t Time) String() string { return (time.Duration(t) * time.Millisecond).String() }

// Incarnation counts the lives of a cluster: a restore or a recovery begins
// the next one. The first is 1.
type Incarnation uint32

// FactState is what a fact's server last said of its copy.
type FactState uint8

const (
	// Active: the server holds the mailbox and serves it.
	Active FactState = 1
	// Deactivated: given up in a move, for whoever asserts it next. It keeps
	// location and ACL, stays in LIST, and never times out.
	Deactivated FactState = 2
	// Withdrawing: a rename is under way; the copy is about to go, or to stay.
	Withdrawing FactState = 3
	// HeldWithdrawal: the server retracted it, in such numbers that nobody
	// believes it yet. Still listed; routes as Held.
	HeldWithdrawal FactState = 4
	// HeldReturn: the server asserted it, one of so many names that had been
	// retracted that nobody believes it yet. Not listed; routes as Held if it is
	// all that is known of the name.
	HeldReturn FactState = 5
)

// IsHeld reports whether an operator has to decide about the fact.
func (s FactState) IsHeld() bool { return s == HeldWithdrawal || s == HeldReturn }

func (s FactState) String() string {
	switch s {
	case Active:
		return "active"
	case Deactivated:
		return "deactivated"
	case Withdrawing:
		return "withdrawing"
	case HeldWithdrawal:
		return "held-withdrawal"
	case HeldReturn:
		return "held-return"
	}
	return "unknown"
}

// Standing says whether a fact still counts. All but InForce were overtaken by
// a move, a delete or a verdict: they are kept because the copy may still lie
// on that server's disk, they route nothing, list nothing and fork nothing.
type Standing uint8

const (
	// InForce: the fact counts.
	InForce Standing = 0
	// LeftBehind: a move took the mailbox elsewhere, or was aborted, while this copy stayed.
	LeftBehind Standing = 1
	// StaleCopy: the group's primary retracted the mailbox while this member still had a copy.
	StaleCopy Standing = 2
	// Stray: the fork was settled against this copy.
	Stray Standing = 3
)

func (s Standing) String() string {
	switch s {
	case InForce:
		return "in-force"
	case LeftBehind:
		return "left-behind"
	case StaleCopy:
		return "stale-copy"
	case Stray:
		return "stray"
	}
	return "unknown"
}

// MailboxType is Cyrus's type letter of a mailbox (3.6): e email, n news,
// b collection, c calendar, a addressbook, s submission, p push, f sieve.
// Zero means not stated, and is kept as email.
type MailboxType byte

// The mailbox types that Cyrus knows.
const (
	TypeEmail       MailboxType = 'e'
	TypeNews        MailboxType = 'n'
	TypeCollection  MailboxType = 'b'
	TypeCalendar    MailboxType = 'c'
	TypeAddressbook MailboxType = 'a'
	TypeSubmission  MailboxType = 's'
	TypePush        MailboxType = 'p'
	TypeSieve       MailboxType = 'f'
)

// Valid reports whether t is one of the letters, or zero.
func (t MailboxType) Valid() bool {
	switch t {
	case 0, TypeEmail, TypeNews, TypeCollection, TypeCalendar, TypeAddressbook, TypeSubmission, TypePush, TypeSieve:
		return true
	}
	return false
}

// Statement is what a backend says of its copy. A nil field is not stated: the
// directory keeps what it knew. An empty Partition is never a statement either
// (Cyrus sends none on RENAME): it keeps the known one.
type Statement struct {
	Partition   string
	ACL         *string // "identifier TAB rights TAB ...", kept byte for byte
	MailboxID   *string // Cyrus uniqueid; RFC 8474 MAILBOXID
	UIDValidity *uint32
	Type        *MailboxType
	SpecialUse  *string // attributes in the order of the annotation, one space between: `\Drafts`
}

// Fact is one server's copy of one mailbox. Facts of a mailbox are ordered by
// Server.
type Fact struct {
	Server      ServerID
	Partition   string
	ACL         string
	MailboxID   string
	UIDValidity uint32
	Type        MailboxType
	SpecialUse  string

	State    FactState
	Was      FactState // the state before a hold; zero otherwise
	Standing Standing

	First       Revision    // the first assertion
	Last        Revision    // the last command that changed the fact; repeating it writes nothing
	Changed     Time        // directory time of Last, or of the last change of State
	Incarnation Incarnation // of the last assertion; see Confirmed
	// Counted says that the fact is in force inside its home: derived from the
	// rest, kept with the fact so that the sums of its server can be mended
	// when groups change.
	Counted bool
}

// Merge returns f with what st states put in. It touches neither State nor
// Standing.
func (f Fact) Merge(st Statement) Fact {
	if st.Partition != "" {
		f.Partition = st.Partition
	}
	if st.ACL != nil {
		f.ACL = *st.ACL
	}
	if st.MailboxID != nil {
		f.MailboxID = *st.MailboxID
	}
	if st.UIDValidity != nil {
		f.UIDValidity = *st.UIDValidity
	}
	if st.Type != nil && *st.Type != 0 {
		f.Type = *st.Type
	}
	if f.Type == 0 {
		f.Type = TypeEmail
	}
	if st.SpecialUse != nil {
		f.SpecialUse = *st.SpecialUse
	}
	return f
}

// SameCopy reports whether f and g tell of the same mailbox contents: equal
// mailbox ids. Two unknown ids are taken for the same.
func (f Fact) SameCopy(g Fact) bool { return f.MailboxID == g.MailboxID }

// StrayCopy names a copy against which a fork was settled: while that server
// asserts a copy with that mailbox id, it is Stray and raises no alarm.
type StrayCopy struct {
	Server    ServerID
	MailboxID string
}

// Mailbox is all that the directory keeps of one name.
type Mailbox struct {
	Name  MailboxName
	Home  GroupID     // zero while only backends that were not admitted hold it
	Stray []StrayCopy // the verdict of a settled fork, ordered by Server
	Facts []Fact      // ordered by Server, never empty for a mailbox that is stored
	// Forked and Listed are derived from the rest and kept with the row, so
	// that the indexes can be mended when groups change.
	Forked bool
	Listed bool
}

// Fact returns the fact of server, or nil. The pointer is into m.Facts.
func (m *Mailbox) Fact(server ServerID) *Fact {
	for i := range m.Facts {
		if m.Facts[i].Server == server {
			return &m.Facts[i]
		}
	}
	return nil
}

// Reservation is a claim to a name before its mailbox exists. It covers one
// name, not its children.
type Reservation struct {
	Name      MailboxName
	Server    ServerID
	Partition string
	Made      Time
	Grace     Time // how long the server may take once it is heard again
	Deadline  Time // lapses then; earlier once the server is heard again
	Heard     bool // the server was heard after the claim, so the grace runs
	Revision  Revision
}

// Limits of names and ACLs (octets, identifiers) and of single commands.
const (
	MaxRename     = 20_000 // mailboxes renamed by one command
	MaxFacts      = 64     // servers that state one mailbox
	MaxBackends   = 10_000 // backends, retired ones too
	MaxClientID   = 64     // octets of a client id
	MaxBatch      = 10_000 // items in one batch
	MaxMailboxID  = 255    // octets
	MaxSpecialUse = 255    // octets
	MaxAlarms     = 256    // of all nodes
	MaxText       = 1024   // octets of a reason or a note
)
