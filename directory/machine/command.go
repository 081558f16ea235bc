package machine

import "github.com/rookery-mail/rookery/directory"

// Command is one entry of the log as the rules see it: who asks, under which
// request number, for what. Everything it needs is in it: names are canonical,
// and nothing is left to a clock, to chance or to a local setting.
type Command struct {
	// Client names one line of requests and Sequence numbers them, ascending
	// from 1, one at a time: the answer to the last is kept, so that a repeat
	// of it is answered and not done twice, and an older one is refused with
	// ErrStaleRequest. A repeat has to be the same command: another one under the
	// same number is refused. Empty: the command is done as often as it is sent.
	Client   string
	Sequence uint64
	// By is who asks, as a history shows it: "operator:carol", "backend:be1".
	By string
	Op Op
}

// Op is what a command asks for: one of the types of this file and no other.
type Op interface{ op() }

// Init begins the cluster. Applied once; later ones change nothing.
type Init struct {
	ClusterID   string
	Incarnation directory.Incarnation
	DigestKey   []byte // 16 octets, drawn by the proposer: keys the digests' hash
	// Version is the cluster version to begin with; 0 is 1. The first nodes must all
	// support it.
	Version uint32
}

// Assert says that Server holds Mailbox. It is accepted: the backend is the
// master of that fact. An unknown server gets its backend row. What it does to
// home, moves and forks is in this package's doc.go.
type Assert struct {
	Mailbox   directory.MailboxName
	Server    directory.BackendName
	Statement directory.Statement
	// Imported: from a dump or a mirror. The backend is admitted whatever the
	// setting says, and neither guard counts it.
	Imported bool
	// Deactivated: the dump says the mailbox is being moved.
	Deactivated bool
	// Since, if not zero, is the revision that a resync compared its list at: if
	// the server's fact changed after it, the assertion is NotSince and writes
	// nothing, for what it says may be older than what is known.
	Since directory.Revision
}

// Retract takes back Server's fact, and only that. Unknown: NotHeld. By the
// primary it decides for the group, unless Epoch is stated and no longer the
// group's. Subject to the withdrawal guard.
type Retract struct {
	Mailbox directory.MailboxName
	Server  directory.BackendName
	Epoch   uint64 // the epoch the sender believes in; 0: none stated
	// Tentative: a rename may be under way. The fact becomes Withdrawing and
	// routes as Moving until it is retracted or asserted again, or, from cluster
	// version 2 on, as long as ReserveGrace was then, or is when that is over: it is
	// active again.
	Tentative bool
	// Since is Assert's.
	Since directory.Revision
}

// Reserve claims a name for Server before the mailbox exists.
type Reserve struct {
	Mailbox   directory.MailboxName
	Server    directory.BackendName
	Partition string
	Grace     directory.Time // 0: the setting's
}

// Release gives a reservation back. None there: NotHeld.
type Release struct {
	Mailbox directory.MailboxName
	Server  directory.BackendName
	// Since, from cluster version 2 on: NotSince if it was made or renewed after it. 0:
	// whenever it was.
	Since directory.Revision
}

// Deactivate gives the mailbox up to whoever asserts it next.
type Deactivate struct {
	Mailbox directory.MailboxName
	Server  directory.BackendName
}

// Rename renames Server's facts: the one mailbox, or with Recursive all below
// it too, in one step or not at all.
type Rename struct {
	From, To  directory.MailboxName
	Recursive bool
	Server    directory.BackendName
}

// SetPrimary moves a group's primary: compare Epoch, then set and add one.
type SetPrimary struct {
	Group         directory.GroupName
	To            directory.BackendName
	Epoch         uint64
	Reason        string
	AcceptMissing bool
}

// SetGroup makes a group or changes its members, in order of preference. A
// backend leaves the group it was in. The present primary must stay a member;
// of a new group the first member is the primary.
type SetGroup struct {
	Group   directory.GroupName
	Members []directory.BackendName
	Mode    directory.GroupMode // zero: unchanged, or manual
	// AcceptMissing lets a backend join that is home to mailboxes which the
	// primary may not hold: they would answer NotAtPrimary.
	AcceptMissing bool
}

// SetBackend changes what operators say of a backend. Nil fields are unchanged.
type SetBackend struct {
	Server        directory.BackendName
	Addresses     *[]directory.Address
	Weight        *uint32
	State         *directory.BackendState
	DrainApproved *bool
	Create        bool // make the row, admitted, if there is none
}

// Admit lets a backend's facts count from now on.
type Admit struct{ Server directory.BackendName }

// Confirm says that Server's list is known whole in this incarnation.
type Confirm struct {
	Server directory.BackendName
	How    directory.ConfirmedBy
	// Incarnation, if not zero, is the life of the cluster in which the whole list
	// was stated: in another one it says nothing.
	Incarnation directory.Incarnation
}

// Restore begins the next life of a cluster whose state came from a snapshot, or
// from the one node that was left. It is that cluster's first command; what it
// does is in this package's doc.go. Of the present life: Unchanged.
type Restore struct {
	ClusterID   string
	Incarnation directory.Incarnation
}

// Finalize raises the cluster version from From to To: all that came with the
// versions between is in force from the next command on, and releases that do not
// know To stop here. Another version than From is in force: refused, but if it is
// To: Unchanged. Who proposes it has made sure that every member supports To.
type Finalize struct {
	From, To uint32
	// Release is what proposes it. It is kept, to be named to an older one.
	Release string
}

// RenameBackend gives a backend another name; its facts stay its own.
type RenameBackend struct{ From, To directory.BackendName }

// Subscribe and Unsubscribe change one subscription.
type Subscribe struct {
	User    directory.UserID
	Mailbox directory.MailboxName
}

// Unsubscribe ends a subscription; none there: Unchanged.
type Unsubscribe struct {
	User    directory.UserID
	Mailbox directory.MailboxName
}

// Settle ends a fork in favour of Keep's group.
type Settle struct {
	Mailbox directory.MailboxName
	Keep    directory.BackendName
}

// Hold puts a hold, or replaces the one there.
type Hold struct {
	Kind directory.HoldKind
	Key  string
	For  directory.Time // how long, from when it is applied
	Why  string
}

// ReleaseHold ends a hold; none there: Unchanged.
type ReleaseHold struct {
	Kind directory.HoldKind
	Key  string
}

// DecideHeld approves or rejects what the guard holds of Server: approved
// withdrawals go, approved returns count; rejected withdrawals are active, or
// deactivated, as before, rejected returns go. Done by a sweep, over what was
// held when the decision was applied.
type DecideHeld struct {
	Server  directory.BackendName
	Approve bool
}

// SetSettings replaces the cluster's settings.
type SetSettings struct{ Settings directory.Settings }

// Tick lapses what is due and carries a sweep on. Only a leader proposes it.
type Tick struct{}

// SetAlarm says that something is wrong with a node of the directory, or with On
// false that it is not any more. A node raises it for itself; who raises one
// for another says so in Why. While a majority of the voters has no space, the
// cluster is as if it were read-only.
type SetAlarm struct {
	Kind directory.AlarmKind
	Node string // its name
	On   bool
	// Voter: the node takes part in decisions. Voters is how many do now; the
	// number said last counts.
	Voter  bool
	Voters uint32
	Why    string
}

// Batch is several commands in one step of the log: one revision, a result for
// each. A refused item changes nothing and stops nothing. Init, Restore, Finalize,
// Tick and Batch may not stand in one.
type Batch struct{ Ops []Op }

func (Init) op()          {}
func (Assert) op()        {}
func (Retract) op()       {}
func (Reserve) op()       {}
func (Release) op()       {}
func (Deactivate) op()    {}
func (Rename) op()        {}
func (SetPrimary) op()    {}
func (SetGroup) op()      {}
func (SetBackend) op()    {}
func (Admit) op()         {}
func (Confirm) op()       {}
func (RenameBackend) op() {}
func (Subscribe) op()     {}
func (Unsubscribe) op()   {}
func (Settle) op()        {}
func (Hold) op()          {}
func (ReleaseHold) op()   {}
func (DecideHeld) op()    {}
func (SetSettings) op()   {}
func (Tick) op()          {}
func (Batch) op()         {}
func (SetAlarm) op()      {}
func (Restore) op()       {}
func (Finalize) op()      {}

// Effect is what a command did, or found.
type Effect uint8

const (
	// Unchanged: all was so already. (That an assertion confirms its fact in a
	// new incarnation is not counted as a change.)
	Unchanged Effect = 1
	// Added: a new fact, reservation, hold, group, backend or subscription.
	Added Effect = 2
	// Changed: it was there and is different now.
	Changed Effect = 3
	// Removed: it is gone.
	Removed Effect = 4
	// Forked: asserted outside the mailbox's home; route, LIST and rights are as before.
	Forked Effect = 5
	// MoveCompleted: the assertion made its group the mailbox's home.
	MoveCompleted Effect = 6
	// MoveAborted: the server that had given the mailbox up keeps it.
	MoveAborted Effect = 7
	// GuardHeld: accepted but not believed; an operator decides.
	GuardHeld Effect = 8
	// NotHeld: there was nothing of that server's to take back.
	NotHeld Effect = 9
	// AlreadyYours: the server holds the name itself.
	AlreadyYours Effect = 10
	// CopyAllowed: the group holds the name; a member may assert its copy.
	CopyAllowed Effect = 11
	// NotAdmitted: the fact is stored but does not count until the backend is admitted.
	NotAdmitted Effect = 12
	// Overtaken: the fact is left behind, stale or stray, and stays so.
	Overtaken Effect = 13
	// NotSince: the fact changed after the revision that was stated; nothing was done.
	NotSince Effect = 14
)

// changed reports whether the effect left the state different.
func (e Effect) changed() bool {
	switch e {
	case Unchanged, NotHeld, AlreadyYours, CopyAllowed, NotSince:
		return false
	}
	return true
}

// Result is what a command came to. Either Refused is nil and Effect says what
// happened, or nothing was changed.
type Result struct {
	Revision directory.Revision
	Effect   Effect
	// Refused is a rejection: one of directory's sentinels, wrapped with what
	// is in the way. Its text, and which sentinel it is, survive encoding.
	Refused error
	// Count is how many mailboxes a Rename moved, a Tick lapsed.
	Count uint32
	// Epoch is the group's after SetPrimary and SetGroup, and its present one
	// when ErrStaleEpoch refused.
	Epoch uint64
	// Holder and Age name who is in the way of a refused Reserve or Rename.
	Holder directory.BackendName
	Age    directory.Time
	// Deadline is, for Reserve, in how many milliseconds the claim lapses if
	// nothing is heard.
	Deadline directory.Time
	// Items are a Batch's results, in its order; their Revision is the batch's.
	Items []Result
}
