package directory

// ChangeKind says what a row of the change log tells of.
type ChangeKind uint8

const (
	// ChangeMailbox: the mailbox of that name changed, in any way a reader can see.
	ChangeMailbox ChangeKind = 1
	// ChangeMoved: as ChangeMailbox, by the completion of a move.
	ChangeMoved ChangeKind = 2
	// ChangeReservation: a reservation of the name began or ended.
	ChangeReservation ChangeKind = 3
	// ChangeSubscription: Key is the user, Name the mailbox.
	ChangeSubscription ChangeKind = 4
	// ChangeBackend: Key is the backend's name.
	ChangeBackend ChangeKind = 5
	// ChangeGroup: Key is the group's name.
	ChangeGroup ChangeKind = 6
	// ChangeHold: Key is the kind, a colon and what is held.
	ChangeHold ChangeKind = 7
	// ChangeSettings: the cluster's settings or incarnation changed.
	ChangeSettings ChangeKind = 8
)

// Change is one row of the change log: which thing changed, not how. A reader
// looks up what it is now.
type Change struct {
	Revision Revision
	Ordinal  uint32
	Kind     ChangeKind
	Name     MailboxName
	Key      string
	Server   ServerID // whose fact changed; zero if none
	From, To GroupID  // of a move
	// Dropped are the other servers whose facts of the mailbox went with it, in
	// order: who is left is found in the mailbox, who is gone nowhere else.
	Dropped []ServerID
}

// Gone says how a name ended.
type Gone uint8

const (
	// GoneRetracted: no server holds it any more.
	GoneRetracted Gone = 1
	// GoneMoved: it is held elsewhere now, after a move.
	GoneMoved Gone = 2
	// GoneRenamed: it has another name now.
	GoneRenamed Gone = 3
)

// Tombstone remembers, for a bounded time, a name that ended or moved.
type Tombstone struct {
	Name     MailboxName
	How      Gone
	Server   ServerID // who retracted it, or gave it up
	From, To GroupID  // of a move
	NewName  MailboxName
	Revision Revision
	Time     Time
	Wall     int64
}
